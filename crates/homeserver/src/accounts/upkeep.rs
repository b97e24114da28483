//! What has to be done for accounts and devices from time to time.

use std::time::Duration;

use tracing::warn;

use crate::Homeserver;

/// How often sightings of devices are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

impl Homeserver {
    /// Writes what has gathered in memory, until the process stops, and once more then.
    pub(crate) async fn keep_accounts(self) {
        loop {
            let stopping = tokio::select! {
                () = self.shutdown.cancelled() => true,
                () = tokio::time::sleep(FLUSH_INTERVAL) => false,
            };
            if let Err(error) = self.accounts.flush_last_seen().await {
                warn!(%error, "could not write when devices were last seen");
            }
            if stopping {
                return;
            }
        }
    }
}
