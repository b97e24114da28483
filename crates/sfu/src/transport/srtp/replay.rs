//! The replay window of one SSRC (RFC 3711 §3.3.2) and the guess of a packet's index (§3.3.1).

/// Packets behind the highest that are still told apart. It covers reordering and, towards subscribers, packets that
/// the publisher had to send again.
const WINDOW: u64 = 1024;
const WORDS: usize = WINDOW as usize / 64;

/// Which indices of one SSRC were seen.
#[derive(Debug, Clone, Default)]
pub(super) struct ReplayWindow {
    /// The highest index seen; `None` before the first packet.
    highest: Option<u64>,
    /// A ring of bits: index modulo the window.
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// The most probable index of a packet with these low bits; `None` if it lies before the start of the stream.
    pub(super) fn estimate(&self, sequence_number: u16) -> Option<u64> {
        match self.highest {
            None => Some(u64::from(sequence_number)),
            Some(highest) => highest.checked_add_signed(i64::from(sequence_number.wrapping_sub(highest as u16) as i16)),
        }
    }

    /// Whether the index is neither known nor too old.
    pub(super) fn is_fresh(&self, index: u64) -> bool {
        match self.highest {
            None => true,
            Some(highest) if index > highest => true,
            Some(highest) => highest - index < WINDOW && self.seen[word(index)] & bit(index) == 0,
        }
    }

    /// Notes an authenticated index.
    pub(super) fn mark(&mut self, index: u64) {
        match self.highest {
            Some(highest) if index <= highest => {}
            Some(highest) if index - highest < WINDOW => {
                for passed in highest + 1..index {
                    self.seen[word(passed)] &= !bit(passed);
                }
                self.highest = Some(index);
            }
            _ => {
                self.seen = [0; WORDS];
                self.highest = Some(index);
            }
        }
        self.seen[word(index)] |= bit(index);
    }
}

fn word(index: u64) -> usize {
    (index % WINDOW / 64) as usize
}

fn bit(index: u64) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stream_that_starts_just_before_a_wrap_goes_on_after_it() {
        let mut window = ReplayWindow::default();
        for (wire, index) in [(65_534_u16, 65_534_u64), (0, 65_536), (65_535, 65_535), (1, 65_537)] {
            assert_eq!(window.estimate(wire), Some(index));
            assert!(window.is_fresh(index));
            window.mark(index);
            assert!(!window.is_fresh(index));
        }
        let mut early = ReplayWindow::default();
        early.mark(3);
        assert_eq!(early.estimate(65_530), None, "nothing lies before the first cycle");
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(indices in proptest::collection::vec(0u64..5000, 1..300)) {
            let (mut window, mut seen, mut highest) = (ReplayWindow::default(), HashSet::new(), 0);
            for index in indices {
                let too_old = !seen.is_empty() && index + WINDOW <= highest;
                prop_assert_eq!(window.is_fresh(index), !too_old && !seen.contains(&index));
                if window.is_fresh(index) {
                    window.mark(index);
                    seen.insert(index);
                    highest = highest.max(index);
                }
            }
        }
    }
}
