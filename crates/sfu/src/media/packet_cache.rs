//! The retransmission cache: one per layer of a published track, whatever the number of its subscribers. It keeps the
//! decrypted packets of about the last second in buffers that are used again and again, as far as the layer's own limit
//! and a budget shared with others allow. Pure; told the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A subscriber that misses a packet for longer needs a keyframe anyway.
const KEEP_FOR: Duration = Duration::from_secs(1);
/// A stream that brought nothing for so long gives its memory back.
const IDLE_AFTER: Duration = Duration::from_secs(2);
const INITIAL_SLOTS: usize = 32;
const MAX_SLOTS: usize = 1024;
/// Bytes of one layer: a second of 8 Mbit/s.
const MAX_BYTES: usize = 1024 * 1024;
/// Buffers have multiples of this length, so that packets of similar length fit each other's.
const GRAIN: usize = 256;

/// Memory that several caches share, in bytes. Clones are one budget.
#[derive(Debug, Clone)]
pub struct CacheBudget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    limit: usize,
    used: AtomicUsize,
    whole: Option<CacheBudget>,
}

impl CacheBudget {
    /// All caches of a process together.
    pub const PROCESS: usize = 256 * 1024 * 1024;
    /// All caches of a room: none starves the others by what it publishes.
    pub const ROOM: usize = 64 * 1024 * 1024;

    /// A budget of its own.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Pool {
            limit,
            used: AtomicUsize::new(0),
            whole: None,
        }))
    }

    /// A part of this budget that takes at most `limit` of it.
    pub fn part(&self, limit: usize) -> Self {
        Self(Arc::new(Pool {
            limit,
            used: AtomicUsize::new(0),
            whole: Some(self.clone()),
        }))
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        if self.0.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.0.limit {
            self.0.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        let granted = self.0.whole.as_ref().is_none_or(|whole| whole.take(bytes));
        if !granted {
            self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        granted
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(whole) = &self.0.whole {
            whole.give_back(bytes);
        }
    }
}

/// Recent packets of one stream, by extended sequence number.
#[derive(Debug)]
pub(super) struct PacketCache {
    /// Indexed by number modulo length; the length is a power of two.
    slots: Vec<Slot>,
    /// No packet below is held.
    oldest: u64,
    newest: Option<(u64, Instant)>,
    /// Bytes of all buffers.
    bytes: usize,
    budget: CacheBudget,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    held: Option<(u64, Instant)>,
    length: usize,
    buffer: Box<[u8]>,
}

impl PacketCache {
    pub(super) fn new(budget: CacheBudget) -> Self {
        Self {
            slots: Vec::new(),
            oldest: 0,
            newest: None,
            bytes: 0,
            budget,
        }
    }

    /// Keeps a copy of a packet given in two parts: its header with the extensions, and its payload. Where memory is short
    /// the oldest packets make room.
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
        if self.slots[index].held.is_some_and(|(held, _)| held > sequence) {
            return;
        }
        self.slots[index].held = None;
        let length = header.len() + payload.len();
        if self.slots[index].buffer.len() < length {
            let short = std::mem::take(&mut self.slots[index].buffer).len();
            self.released(short);
            let Some(buffer) = self.buffer(length.next_multiple_of(GRAIN)) else {
                return;
            };
            self.slots[index].buffer = buffer;
        }
        let slot = &mut self.slots[index];
        slot.held = Some((sequence, now));
        slot.length = length;
        let (front, rest) = slot.buffer.split_at_mut(header.len());
        front.copy_from_slice(header);
        rest[..payload.len()].copy_from_slice(payload);
        self.oldest = self.newest.map_or(sequence, |_| self.oldest.min(sequence));
        if self.newest.is_none_or(|(newest, _)| newest < sequence) {
            self.newest = Some((sequence, now));
        }
    }

    /// The packet of this number, if it is still there.
    pub(super) fn get(&self, sequence: u64) -> Option<&[u8]> {
        let slot = self.slots.get(self.index(sequence))?;
        slot.held
            .is_some_and(|(held, _)| held == sequence)
            .then(|| &slot.buffer[..slot.length])
    }

    /// Gives everything back if the stream brings nothing any more; to be called from time to time.
    pub(super) fn expire(&mut self, now: Instant) {
        if self
            .newest
            .is_some_and(|(_, at)| now.saturating_duration_since(at) >= IDLE_AFTER)
        {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.slots = Vec::new();
        self.newest = None;
        self.budget.give_back(std::mem::take(&mut self.bytes));
    }

    /// A buffer of this length, at the cost of the oldest packets if need be.
    fn buffer(&mut self, length: usize) -> Option<Box<[u8]>> {
        loop {
            if self.bytes + length <= MAX_BYTES && self.budget.take(length) {
                self.bytes += length;
                return Some(vec![0; length].into_boxed_slice());
            }
            let oldest = self.take_oldest()?;
            if oldest.len() >= length {
                return Some(oldest);
            }
            self.released(oldest.len());
        }
    }

    /// The buffer of the oldest packet, which is lost.
    fn take_oldest(&mut self) -> Option<Box<[u8]>> {
        let (newest, _) = self.newest?;
        // What lies further back than there are slots was displaced.
        let reach = self.slots.len() as u64;
        self.oldest = self.oldest.max((newest + 1).saturating_sub(reach));
        while self.oldest <= newest {
            let index = self.index(self.oldest);
            self.oldest += 1;
            let slot = &mut self.slots[index];
            if !slot.buffer.is_empty() {
                slot.held = None;
                return Some(std::mem::take(&mut slot.buffer));
            }
        }
        None
    }

    /// A buffer of this many bytes was let go.
    fn released(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.give_back(bytes);
    }

    fn index(&self, sequence: u64) -> usize {
        (sequence as usize) & self.slots.len().wrapping_sub(1)
    }

    fn grow(&mut self) {
        let larger = vec![Slot::default(); self.slots.len() * 2];
        for slot in std::mem::replace(&mut self.slots, larger) {
            match slot.held {
                Some((sequence, _)) => {
                    let index = self.index(sequence);
                    self.slots[index] = slot;
                }
                None => self.released(slot.buffer.len()),
            }
        }
    }
}

impl Drop for PacketCache {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_time::start;

    #[test]
    fn a_second_of_packets_is_kept_whatever_the_rate() {
        let (begin, mut cache) = (start(), PacketCache::new(CacheBudget::new(usize::MAX)));
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

        let mut slow = PacketCache::new(CacheBudget::new(usize::MAX));
        for sequence in 0..100_u64 {
            slow.insert(begin + Duration::from_millis(50 * sequence), sequence, [&[], &[0]]);
        }
        assert_eq!(slow.slots.len(), INITIAL_SLOTS, "a slow stream takes little memory");
    }

    /// Fills a cache as fast as a client can: `count` packets of `length` bytes in one second.
    fn flood(cache: &mut PacketCache, begin: Instant, count: u64, length: usize) {
        let payload = vec![7; length];
        for sequence in 0..count {
            let now = begin + Duration::from_secs(1) * sequence as u32 / count as u32;
            cache.insert(now, sequence, [&sequence.to_be_bytes(), &payload]);
        }
    }

    #[test]
    fn a_layer_keeps_to_its_limit_and_loses_its_oldest_packets() {
        let whole = CacheBudget::new(usize::MAX);
        let mut cache = PacketCache::new(whole.clone());
        flood(&mut cache, start(), 1000, 2000);
        assert!(
            whole.used() <= MAX_BYTES && whole.used() > MAX_BYTES - 4096,
            "{}",
            whole.used()
        );
        let kept = (0..1000).filter(|sequence| cache.get(*sequence).is_some()).count();
        assert!(kept >= MAX_BYTES / (2008 + GRAIN), "{kept}");
        assert!(
            (1000 - kept as u64..1000).all(|sequence| cache.get(sequence).is_some()),
            "the newest"
        );
        assert_eq!(cache.get(999).map(|packet| (packet.len(), packet[8])), Some((2008, 7)));
        drop(cache);
        assert_eq!(whole.used(), 0);
    }

    #[test]
    fn caches_share_a_budget_and_a_room_does_not_starve_another() {
        let process = CacheBudget::new(600_000);
        let (greedy, modest) = (process.part(400_000), process.part(400_000));
        let mut many: Vec<_> = (0..32).map(|_| PacketCache::new(greedy.clone())).collect();
        for cache in &mut many {
            flood(cache, start(), 500, 1200);
        }
        assert!(greedy.used() <= 400_000);
        let mut other = PacketCache::new(modest.clone());
        flood(&mut other, start(), 500, 1200);
        assert!(process.used() <= 600_000 && process.used() == greedy.used() + modest.used());
        assert!((400..500).all(|sequence| other.get(sequence).is_some()));

        // Streams that ended, and streams that pause, give back what they had.
        many.truncate(1);
        many[0].expire(start() + Duration::from_secs(1));
        assert!(greedy.used() > 0);
        many[0].expire(start() + Duration::from_secs(1) + IDLE_AFTER);
        assert_eq!((greedy.used(), many[0].get(499)), (0, None));
        flood(&mut many[0], start() + Duration::from_secs(9), 10, 1200);
        assert!(many[0].get(9).is_some(), "it begins anew");
    }

    #[test]
    fn packets_of_all_lengths_and_orders_are_read_back_as_they_were() {
        let budget = CacheBudget::new(100_000);
        let (begin, mut cache) = (start(), PacketCache::new(budget.clone()));
        let mut seed = 1_u64;
        for step in 0..20_000_u64 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let sequence = (step + 50).saturating_sub(seed >> 59);
            let payload = vec![sequence as u8; (seed >> 40) as usize % 1500];
            let now = begin + Duration::from_micros(700 * step);
            cache.insert(now, sequence, [&sequence.to_be_bytes(), &payload]);
            if let Some(packet) = cache.get(sequence) {
                assert_eq!(packet[..8], sequence.to_be_bytes());
                assert!(packet[8..].iter().all(|byte| *byte == sequence as u8));
            }
            let held: usize = cache.slots.iter().map(|slot| slot.buffer.len()).sum();
            assert!(
                step % 100 != 0 || (held == cache.bytes && held == budget.used()),
                "{held}"
            );
        }
    }
}
