//! Which packets of one stream are missing and when to ask for them (RFC 4585 §6.2.1). Pure; told the time. It sees
//! packets only after retransmissions were unwrapped, so that a repaired packet counts as received.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Missing packets remembered; beyond it the stream needs a keyframe.
const MAX_MISSING: usize = 512;
/// A gap larger than this is a new start, not a loss.
const MAX_GAP: u64 = 256;
const MAX_REQUESTS: u8 = 10;
/// Older losses are of no use to a live stream.
const GIVE_UP_AFTER: Duration = Duration::from_millis(1500);
/// Reordering is given this long before the first request.
const PATIENCE: Duration = Duration::from_millis(10);
const MIN_INTERVAL: Duration = Duration::from_millis(25);

#[derive(Debug, Default)]
pub(super) struct NackGenerator {
    highest: Option<u64>,
    missing: BTreeMap<u64, Missing>,
}

#[derive(Debug)]
struct Missing {
    since: Instant,
    next: Instant,
    requests: u8,
}

/// What a newly received packet means for the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// In order, or the first.
    Next,
    /// Later than its successors: reordered or retransmitted.
    Late,
    /// So much is missing that asking is pointless: a keyframe is needed.
    TooManyLost,
}

impl NackGenerator {
    /// Notes an arrived packet.
    pub(super) fn received(&mut self, now: Instant, sequence: u64) -> Arrival {
        let Some(highest) = self.highest else {
            self.highest = Some(sequence);
            return Arrival::Next;
        };
        if sequence <= highest {
            self.missing.remove(&sequence);
            return Arrival::Late;
        }
        self.highest = Some(sequence);
        if sequence - highest > MAX_GAP || self.missing.len() as u64 + (sequence - highest) > MAX_MISSING as u64 {
            self.missing.clear();
            return Arrival::TooManyLost;
        }
        for lost in highest + 1..sequence {
            self.missing.insert(
                lost,
                Missing {
                    since: now,
                    next: now + PATIENCE,
                    requests: 0,
                },
            );
        }
        Arrival::Next
    }

    /// Appends the numbers to ask for now, in order. `round_trip` paces repetitions.
    pub(super) fn due(&mut self, now: Instant, round_trip: Duration, lost: &mut Vec<u16>) {
        let interval = round_trip.max(MIN_INTERVAL);
        self.missing
            .retain(|_, m| m.requests < MAX_REQUESTS && now < m.since + GIVE_UP_AFTER);
        for (sequence, missing) in self.missing.iter_mut().filter(|(_, m)| m.next <= now) {
            missing.requests += 1;
            missing.next = now + interval;
            lost.push(*sequence as u16);
        }
    }

    /// When something will be due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.missing.values().map(|m| m.next).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::media::test_time::start;

    #[test]
    fn losses_are_asked_for_again_until_they_arrive() {
        let (begin, mut nack) = (start(), NackGenerator::default());
        let round_trip = Duration::from_millis(50);
        let due = |nack: &mut NackGenerator, ms| {
            let mut lost = Vec::new();
            nack.due(begin + Duration::from_millis(ms), round_trip, &mut lost);
            lost
        };
        for sequence in [65_534, 65_537, 65_539] {
            nack.received(begin, sequence);
        }
        assert_eq!(due(&mut nack, 0), [0_u16; 0], "reordering is waited for");
        assert_eq!(due(&mut nack, 10), [65_535, 0, 2]);
        assert_eq!(nack.received(begin, 65_536), Arrival::Late);
        assert_eq!(due(&mut nack, 30), [0_u16; 0]);
        assert_eq!(due(&mut nack, 60), [65_535, 2]);
        assert_eq!(due(&mut nack, 2000), [0_u16; 0]);
        assert_eq!(nack.poll_timeout(), None);
        assert_eq!(nack.received(begin, 70_000), Arrival::TooManyLost);
    }

    proptest! {
        #[test]
        fn only_missing_numbers_are_asked_for(order in proptest::collection::vec(0u64..300, 1..300)) {
            let (begin, mut nack) = (start(), NackGenerator::default());
            let mut seen = std::collections::HashSet::new();
            for sequence in order {
                nack.received(begin, sequence);
                seen.insert(sequence);
            }
            let mut lost = Vec::new();
            nack.due(begin + PATIENCE, Duration::ZERO, &mut lost);
            for number in lost {
                prop_assert!(!seen.contains(&u64::from(number)));
            }
        }
    }
}
