//! When to ask a publisher for a keyframe: soon after somebody needs one, but never in a rhythm that would starve the
//! picture, and again if none came. Pure; told the time.

use std::time::{Duration, Instant};

/// Between two requests for the same layer. A keyframe takes about a round trip and is large.
const MIN_INTERVAL: Duration = Duration::from_millis(500);

/// The requests for one layer.
#[derive(Debug, Default)]
pub(super) struct KeyframeRequests {
    wanted: bool,
    last: Option<Instant>,
}

impl KeyframeRequests {
    /// Somebody needs a keyframe.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// A keyframe has begun: everybody who waited has it.
    pub(super) fn arrived(&mut self) {
        self.wanted = false;
    }

    /// Whether to send a request now; true at most twice a second.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout(now).is_some_and(|at| at <= now);
        if due {
            self.last = Some(now);
        }
        due
    }

    /// When the next request is due.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.wanted.then(|| self.last.map_or(now, |last| last + MIN_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_time::start;

    #[test]
    fn requests_are_throttled_and_repeated_until_a_keyframe_comes() {
        let (begin, mut requests) = (start(), KeyframeRequests::default());
        assert!(!requests.take_due(begin));
        requests.want();
        assert!(requests.take_due(begin));
        requests.want();
        assert!(!requests.take_due(begin + Duration::from_millis(499)));
        assert!(requests.take_due(begin + MIN_INTERVAL));
        requests.arrived();
        assert!(!requests.take_due(begin + MIN_INTERVAL * 4));
        assert_eq!(requests.poll_timeout(begin), None);
    }
}
