//! The time, as this crate is told it.

use std::sync::Arc;

use ruma::{MilliSecondsSinceUnixEpoch, UInt};

/// Reads the wall clock. The process makes one from the system's clock, a test from one it moves by hand.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock that shows what `now_ms` answers: milliseconds since the Unix epoch.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }

    /// Seconds since the Unix epoch.
    pub fn now_secs(&self) -> u64 {
        self.now_ms() / 1000
    }

    /// The time as Matrix writes it.
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        // A clock beyond 2^53 ms would be wrong by 285,000 years.
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.now_ms()))
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now_ms())
    }
}
