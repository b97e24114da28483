//! Waiting for a condition with a deadline, instead of sleeping and hoping.

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks again and again until `condition` gives a value.
///
/// # Panics
/// With `what`, when it gives none within `limit`.
pub async fn eventually<T>(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(limit, async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            sleep(INTERVAL).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}
