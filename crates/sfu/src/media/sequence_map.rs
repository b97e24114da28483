//! Translation of a source stream's packet numbers into those of one subscriber's stream: gaps that the network made
//! stay gaps, so that late packets find their place; packets that we leave out leave none. Pure.

use std::collections::VecDeque;

/// Places where packets were left out that are remembered for late and lost packets.
const MAX_SEGMENTS: usize = 64;

/// The numbers of one source from the packet on at which the subscriber was moved to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceMap {
    segments: VecDeque<Segment>,
    highest: u64,
}

/// From `first` on numbers differ by `offset`; `skipped` packets before it were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u64,
    skipped: u64,
    offset: i64,
}

impl SequenceMap {
    /// The source's packet `up` becomes the subscriber's packet `down`.
    pub fn starting(up: u64, down: u64) -> Self {
        let segment = Segment {
            first: up,
            skipped: 0,
            offset: down as i64 - up as i64,
        };
        Self {
            segments: VecDeque::from([segment]),
            highest: up,
        }
    }

    /// The subscriber's number for a packet of the source; `None` for one from before the start or left out.
    pub fn map(&mut self, up: u64) -> Option<u64> {
        self.highest = self.highest.max(up);
        for segment in self.segments.iter().rev() {
            if up >= segment.first {
                return up.checked_add_signed(segment.offset);
            }
            if up + segment.skipped >= segment.first {
                return None;
            }
        }
        None
    }

    /// Leaves a packet out. One that comes late leaves a gap after all: its place was given.
    pub fn skip(&mut self, up: u64) {
        if up <= self.highest {
            return;
        }
        self.highest = up;
        let Some(last) = self.segments.back_mut() else { return };
        if last.first == up {
            last.first += 1;
            last.skipped += 1;
            last.offset -= 1;
            return;
        }
        let offset = last.offset - 1;
        self.segments.push_back(Segment {
            first: up + 1,
            skipped: 1,
            offset,
        });
        if self.segments.len() > MAX_SEGMENTS {
            self.segments.pop_front();
        }
    }

    /// The source's number for a packet of the subscriber's, for retransmission.
    pub fn unmap(&self, down: u64) -> Option<u64> {
        let segment = self
            .segments
            .iter()
            .rev()
            .find(|s| down >= s.first.saturating_add_signed(s.offset))?;
        down.checked_add_signed(-segment.offset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn left_out_packets_close_up_and_lost_ones_do_not() {
        let mut map = SequenceMap::starting(100, 7);
        assert_eq!(map.map(100), Some(7));
        map.skip(101);
        map.skip(102);
        assert_eq!(map.map(103), Some(8));
        assert_eq!(map.map(106), Some(11), "104 and 105 are missing");
        map.skip(107);
        assert_eq!(map.map(108), Some(12));
        assert_eq!(map.map(105), Some(10), "late, but its place is free");
        assert_eq!(map.map(102), None);
        assert_eq!(map.map(99), None);
    }

    proptest! {
        /// Whatever is lost, late or left out: numbers never collide, keep their order, and lead back.
        #[test]
        fn numbers_are_unique_ordered_and_reversible(
            packets in proptest::collection::vec((any::<bool>(), 0u8..3), 1..200),
            start in 1u64 << 16..1 << 20, down in 0u64..1 << 16,
        ) {
            let mut map = SequenceMap::starting(start, down);
            let mut late = Vec::new();
            let mut given: HashMap<u64, u64> = HashMap::new();
            for (i, (left_out, fate)) in packets.iter().enumerate() {
                let up = start + i as u64;
                match fate {
                    0 if i > 0 => late.push((up, *left_out)),
                    _ if *left_out && i > 0 => map.skip(up),
                    _ => if let Some(down) = map.map(up) {
                        prop_assert_eq!(given.insert(down, up), None);
                        prop_assert_eq!(map.unmap(down), Some(up));
                    },
                }
                if i % 7 == 6 {
                    for (up, left_out) in late.drain(..) {
                        if left_out { map.skip(up); continue; }
                        if let Some(down) = map.map(up) {
                            prop_assert_eq!(given.insert(down, up), None);
                        }
                    }
                }
            }
            let mut pairs = given.into_iter().collect::<Vec<_>>();
            pairs.sort_unstable();
            prop_assert!(pairs.is_sorted_by_key(|(_, up)| *up));
        }
    }
}
