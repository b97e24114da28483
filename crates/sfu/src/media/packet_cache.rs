//! The retransmission cache: one per layer of a published track, whatever the number of its subscribers. It keeps the
//! decrypted packets of about the last second in buffers that are used again and again. Pure; told the time.

use std::time::{Duration, Instant};

/// A subscriber that misses a packet for longer needs a keyframe anyway.
const KEEP_FOR: Duration = Duration::from_secs(1);
const INITIAL_SLOTS: usize = 32;
const MAX_SLOTS: usize = 1024;

/// Recent packets of one stream, by extended sequence number.
#[derive(Debug, Default)]
pub(super) struct PacketCache {
    /// Indexed by number modulo length; the length is a power of two.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    held: Option<(u64, Instant)>,
    packet: Vec<u8>,
}

impl PacketCache {
    /// Keeps a copy of a packet given in two parts: its header with the extensions, and its payload.
    pub(super) fn insert(&mut self, now: Instant, sequence: u64, [header, payload]: [&[u8]; 2]) {
        if self.slots.is_empty() {
            self.slots.resize(INITIAL_SLOTS, Slot::default());
        }
        let evicts_young = |slot: &Slot| {
            slot.held
                .is_some_and(|(held, at)| held < sequence && now.saturating_duration_since(at) < KEEP_FOR)
        };
        while self.slots.len() < MAX_SLOTS && evicts_young(&self.slots[self.index(sequence)]) {
            self.grow();
        }
        let index = self.index(sequence);
        let slot = &mut self.slots[index];
        if slot.held.is_some_and(|(held, _)| held > sequence) {
            return;
        }
        slot.held = Some((sequence, now));
        slot.packet.clear();
        slot.packet.extend_from_slice(header);
        slot.packet.extend_from_slice(payload);
    }

    /// The packet of this number, if it is still there.
    pub(super) fn get(&self, sequence: u64) -> Option<&[u8]> {
        let slot = self.slots.get(self.index(sequence))?;
        slot.held
            .is_some_and(|(held, _)| held == sequence)
            .then_some(&slot.packet)
    }

    fn index(&self, sequence: u64) -> usize {
        (sequence as usize) & self.slots.len().wrapping_sub(1)
    }

    fn grow(&mut self) {
        let larger = vec![Slot::default(); self.slots.len() * 2];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if let Some((sequence, _)) = slot.held {
                let index = self.index(sequence);
                self.slots[index] = slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_time::start;

    #[test]
    fn a_second_of_packets_is_kept_whatever_the_rate() {
        let (begin, mut cache) = (start(), PacketCache::default());
        let mut now = begin;
        for sequence in 0..2000_u64 {
            now = begin + Duration::from_millis(2 * sequence);
            cache.insert(now, sequence, [&sequence.to_be_bytes(), &[]]);
        }
        for sequence in 1500..2000_u64 {
            assert_eq!(cache.get(sequence), Some(&sequence.to_be_bytes()[..]));
        }
        assert_eq!(cache.get(2000), None);
        assert_eq!(cache.get(0), None);
        cache.insert(now, 1, [&[1], &[]]);
        assert_eq!(cache.get(1), None, "an old packet does not displace a new one");

        let mut slow = PacketCache::default();
        for sequence in 0..100_u64 {
            slow.insert(begin + Duration::from_millis(50 * sequence), sequence, [&[], &[0]]);
        }
        assert_eq!(slow.slots.len(), INITIAL_SLOTS, "a slow stream takes little memory");
    }
}
