//! Stream positions: one rising number for everything that `/sync` reads.
//!
//! They are given out in process, not by a database sequence: a sequence skips on rollback and
//! commits out of order, and a reader that trusted its highest value would lose events. A position
//! counts as passed only when it and every smaller one are finished. Positions are reserved from
//! durable blocks, so they rise over restarts and over a killed process.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

/// How many positions one durable reservation covers: one small write per so many positions.
pub(crate) const BLOCK: i64 = 1 << 16;

/// The process' stream positions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Positions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    current: watch::Sender<i64>,
}

#[derive(Debug)]
struct State {
    /// The next position to give out.
    next: i64,
    /// The highest position that may be given out before a new block is reserved durably.
    ceiling: i64,
    /// First positions of reservations under way, with their lengths.
    unfinished: BTreeMap<i64, i64>,
}

impl Positions {
    pub(crate) fn new(next: i64, ceiling: i64) -> Self {
        let (current, _) = watch::channel(next - 1);
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    next,
                    ceiling,
                    unfinished: BTreeMap::new(),
                }),
                current,
            }),
        }
    }

    /// The largest position at or below which nothing is unfinished: what a reader may read up to.
    pub fn current(&self) -> i64 {
        *self.shared.current.borrow()
    }

    /// Wakes whenever [`Positions::current`] rises.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.shared.current.subscribe()
    }

    /// `count` consecutive positions, or the ceiling that must be made durable first.
    pub(crate) fn try_reserve(&self, count: i64) -> Result<Reservation, NeedsBlock> {
        let mut state = self.shared.state.lock();
        let first = state.next;
        if first + count - 1 > state.ceiling {
            return Err(NeedsBlock {
                ceiling: state.ceiling,
                wanted: first + count - 1 + BLOCK,
            });
        }
        state.next += count;
        if count > 0 {
            state.unfinished.insert(first, count);
        }
        Ok(Reservation {
            first,
            count,
            positions: self.clone(),
        })
    }

    pub(crate) fn ceiling(&self) -> i64 {
        self.shared.state.lock().ceiling
    }

    pub(crate) fn raise_ceiling(&self, ceiling: i64) {
        let mut state = self.shared.state.lock();
        state.ceiling = state.ceiling.max(ceiling);
    }

    fn finish(&self, first: i64, count: i64) {
        if count == 0 {
            return;
        }
        let mut state = self.shared.state.lock();
        state.unfinished.remove(&first);
        let current = state
            .unfinished
            .first_key_value()
            .map_or(state.next, |(first, _)| *first)
            - 1;
        // Sent under the lock: otherwise a slower thread could publish a smaller value later.
        self.shared.current.send_if_modified(|seen| {
            let rises = current > *seen;
            if rises {
                *seen = current;
            }
            rises
        });
    }
}

/// The current block is used up.
#[derive(Debug)]
pub(crate) struct NeedsBlock {
    pub(crate) ceiling: i64,
    pub(crate) wanted: i64,
}

/// Positions given out and not yet passed. Dropping it finishes them: hold it until what was
/// written under them is committed, or given up.
#[derive(Debug)]
pub struct Reservation {
    first: i64,
    count: i64,
    positions: Positions,
}

impl Reservation {
    /// The first of the reserved positions; the others follow it.
    pub fn first(&self) -> i64 {
        self.first
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.positions.finish(self.first, self.count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn current_waits_for_the_smallest_unfinished() {
        let positions = Positions::new(1, 100);
        let a = positions.try_reserve(2).unwrap();
        let b = positions.try_reserve(1).unwrap();
        assert_eq!((a.first(), b.first(), positions.current()), (1, 3, 0));
        drop(b);
        assert_eq!(positions.current(), 0);
        drop(a);
        assert_eq!(positions.current(), 3);
    }

    #[test]
    fn a_used_up_block_asks_for_the_next() {
        let positions = Positions::new(1, 2);
        assert!(positions.try_reserve(3).is_err());
        positions.raise_ceiling(10);
        assert_eq!(positions.try_reserve(3).unwrap().first(), 1);
    }

    proptest! {
        /// In whatever order reservations finish, `current` never passes an unfinished one and ends at the last.
        #[test]
        fn current_never_passes_an_unfinished(counts in prop::collection::vec(1i64..4, 1..20), seed in any::<u64>()) {
            let positions = Positions::new(1, 1000);
            let mut open: Vec<_> = counts.iter().map(|n| positions.try_reserve(*n).unwrap()).collect();
            let last: i64 = counts.iter().sum();
            let mut pick = seed;
            while !open.is_empty() {
                pick = pick.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let index = (pick >> 33) as usize % open.len();
                open.swap_remove(index);
                let smallest = open.iter().map(Reservation::first).min().unwrap_or(last + 1);
                prop_assert_eq!(positions.current(), smallest - 1);
            }
            prop_assert_eq!(positions.current(), last);
        }
    }
}
