//! The one place of this crate where the clock and the system's randomness are read: by the tasks that drive rooms and
//! connections. Everything below them is told the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time.
#[expect(clippy::disallowed_methods, reason = "entry point of the media drivers")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "entry point of the media drivers")]
pub(crate) fn unix_millis() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> u64 {
    u64::try_from(unix_millis() / 1000).unwrap_or(0)
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    bytes
}

/// A LiveKit identifier: `prefix` and twelve characters.
pub(crate) fn sid(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyzACDEFGHJK";
    let tail = random::<12>().map(|byte| ALPHABET[usize::from(byte % 32)] as char);
    format!("{prefix}{}", String::from_iter(tail))
}
