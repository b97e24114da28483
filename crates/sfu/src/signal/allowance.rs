//! How much one signalling connection may say: a token bucket, generous to clients and a wall to scripts. Pure; is told the
//! time.

use std::time::{Duration, Instant};

/// Messages at once. A client of a large call says most when its layout changes: one message per track it shows.
const BURST: f64 = 1000.0;
/// Messages per second on average.
const PER_SECOND: f64 = 50.0;
/// A message of this many bytes counts twice, and so on: descriptions cost more to read than pings.
const BYTES: f64 = 16.0 * 1024.0;
/// Whoever presses against the limit for this long is no client.
const PATIENCE: Duration = Duration::from_secs(20);

/// The name under which the log speaks of this limit.
pub(crate) const NAME: &str = "signalling messages per connection";

/// What one connection may still say.
#[derive(Debug)]
pub(crate) struct Allowance {
    tokens: f64,
    at: Instant,
    /// Since when the connection presses against the limit: from the last token on, until half of the burst is back.
    exceeded: Option<Instant>,
}

/// What a message does to the allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spent {
    /// More may follow at once.
    Within,
    /// Nothing more is read until then; said once for every time the limit is reached.
    Exceeded(Instant),
    /// The same, after the first time.
    StillExceeded(Instant),
    /// The connection has gone on for too long.
    Abused,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            at: now,
            exceeded: None,
        }
    }

    /// Counts a message of `length` bytes.
    pub(crate) fn spend(&mut self, length: usize, now: Instant) -> Spent {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + elapsed * PER_SECOND).min(BURST);
        if self.tokens >= BURST / 2.0 {
            self.exceeded = None;
        }
        self.tokens -= 1.0 + length as f64 / BYTES;
        if self.tokens >= 0.0 {
            return Spent::Within;
        }
        let until = now + Duration::from_secs_f64(-self.tokens / PER_SECOND);
        match self.exceeded {
            None => {
                self.exceeded = Some(now);
                Spent::Exceeded(until)
            }
            Some(since) if now.saturating_duration_since(since) >= PATIENCE => Spent::Abused,
            Some(_) => Spent::StillExceeded(until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_client_with_many_tracks_is_not_slowed_down() {
        let now = clock::now();
        let mut allowance = Allowance::new(now);
        for _ in 0..900 {
            assert_eq!(allowance.spend(100, now), Spent::Within);
        }
        let later = now + Duration::from_secs(20);
        for _ in 0..900 {
            assert_eq!(allowance.spend(100, later), Spent::Within);
        }
    }

    #[test]
    fn a_flood_is_slowed_down_and_then_ended() {
        let start = clock::now();
        let mut allowance = Allowance::new(start);
        let (mut now, mut told, mut read) = (start, 0, 0);
        loop {
            read += 1;
            match allowance.spend(0, now) {
                Spent::Within => {}
                Spent::Exceeded(until) => {
                    told += 1;
                    now = until;
                }
                Spent::StillExceeded(until) => now = until,
                Spent::Abused => break,
            }
        }
        assert_eq!(told, 1);
        assert!(now.duration_since(start) <= PATIENCE + Duration::from_secs(1));
        assert!(f64::from(read) <= BURST + PER_SECOND * 21.0, "{read}");
    }

    #[test]
    fn large_messages_cost_more() {
        let now = clock::now();
        let mut allowance = Allowance::new(now);
        let large = (0..)
            .take_while(|_| allowance.spend(1024 * 1024, now) == Spent::Within)
            .count();
        assert!((10..20).contains(&large), "{large}");
    }

    #[test]
    fn whoever_pauses_is_forgiven() {
        let start = clock::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        for _ in 0..5 {
            while allowance.spend(0, now) == Spent::Within {}
            now += Duration::from_secs(15);
        }
        assert_ne!(allowance.spend(0, now), Spent::Abused);
    }
}
