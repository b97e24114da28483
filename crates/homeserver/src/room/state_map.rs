//! A room's state as a persistent map: a snapshot is a pointer, and changing one entry of a large
//! room copies one small bucket, not the room. It knows no Matrix rules.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, LazyLock},
};

use ruma::{OwnedEventId, events::StateEventType};

/// What a user is in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Membership {
    /// In the room.
    Join,
    /// Invited and not yet answered.
    Invite,
    /// Asked to be let in.
    Knock,
    /// Gone, or never there.
    Leave,
    /// Kept out.
    Ban,
}

impl Membership {
    /// From its name in events; an unknown name means no rights, as `leave` does.
    pub fn parse(name: &str) -> Self {
        match name {
            "join" => Self::Join,
            "invite" => Self::Invite,
            "knock" => Self::Knock,
            "ban" => Self::Ban,
            _ => Self::Leave,
        }
    }

    /// Its name in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Invite => "invite",
            Self::Knock => "knock",
            Self::Leave => "leave",
            Self::Ban => "ban",
        }
    }
}

/// Which event holds a piece of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// Key of the event: its stream position.
    pub nid: i64,
    /// Its Matrix id.
    pub event_id: OwnedEventId,
    /// For `m.room.member`: what the user is.
    pub membership: Option<Membership>,
}

impl StateEntry {
    pub(super) fn of(event: &super::Event) -> Self {
        Self {
            nid: event.nid,
            event_id: event.event_id.clone(),
            membership: event.membership(),
        }
    }
}

#[derive(Debug, Clone)]
struct Slot {
    kind: StateEventType,
    key: Box<str>,
    entry: StateEntry,
}

type Bucket = Arc<Vec<Slot>>;

/// How many entries a bucket holds on average before their number is doubled.
const BUCKET: usize = 16;

/// Type and state key to event, with cheap snapshots.
#[derive(Debug, Clone, Default)]
pub struct StateMap {
    /// A power of two of buckets, each sorted by type and state key; none while empty.
    buckets: Arc<Vec<Bucket>>,
    len: usize,
}

/// Keyed per process: state keys are chosen by strangers.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn hash(kind: &StateEventType, key: &str) -> usize {
    // Only the low bits count; truncation is harmless.
    HASHER.hash_one((kind.to_string(), key)) as usize
}

impl StateMap {
    /// How many pieces of state there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no state, as before the create event.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The event that holds `(kind, key)`.
    pub fn get(&self, kind: &StateEventType, key: &str) -> Option<&StateEntry> {
        let bucket = self.buckets.get(self.bucket_of(kind, key)?)?;
        let at = position(bucket, kind, key).ok()?;
        Some(&bucket[at].entry)
    }

    /// Puts an event into its place and answers the one it replaces.
    pub fn insert(&mut self, kind: StateEventType, key: &str, entry: StateEntry) -> Option<StateEntry> {
        if self.len >= self.buckets.len() * BUCKET {
            self.grow();
        }
        let index = self
            .bucket_of(&kind, key)
            .expect("a map that has grown has a bucket for every key");
        let bucket = Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[index]);
        match position(bucket, &kind, key) {
            Ok(at) => Some(std::mem::replace(&mut bucket[at].entry, entry)),
            Err(at) => {
                let key = key.into();
                bucket.insert(at, Slot { kind, key, entry });
                self.len += 1;
                None
            }
        }
    }

    /// Takes a piece of state away and answers the event that held it.
    pub fn remove(&mut self, kind: &StateEventType, key: &str) -> Option<StateEntry> {
        let index = self.bucket_of(kind, key)?;
        let at = position(&self.buckets[index], kind, key).ok()?;
        let bucket = Arc::make_mut(&mut Arc::make_mut(&mut self.buckets)[index]);
        self.len -= 1;
        Some(bucket.remove(at).entry)
    }

    /// The pieces that `other` has otherwise: type, state key, and the entry of `other` if it has one. Parts that both
    /// share are not looked at.
    pub fn differences<'a>(&'a self, other: &'a Self) -> Vec<(&'a StateEventType, &'a str, Option<&'a StateEntry>)> {
        let comparable = self.buckets.len() == other.buckets.len();
        let parts = |map: &'a Self, against: &'a Self| {
            let shared = move |at: usize, bucket: &Bucket| comparable && Arc::ptr_eq(bucket, &against.buckets[at]);
            map.buckets
                .iter()
                .enumerate()
                .filter(move |(at, bucket)| !shared(*at, bucket))
                .flat_map(|(_, bucket)| bucket.iter())
        };
        let gone = parts(self, other)
            .filter(|slot| other.get(&slot.kind, &slot.key).is_none())
            .map(|slot| (&slot.kind, &*slot.key, None));
        let new = parts(other, self)
            .filter(|slot| self.get(&slot.kind, &slot.key).map(|entry| entry.nid) != Some(slot.entry.nid))
            .map(|slot| (&slot.kind, &*slot.key, Some(&slot.entry)));
        gone.chain(new).collect()
    }

    /// Every piece of state, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&StateEventType, &str, &StateEntry)> {
        self.buckets
            .iter()
            .flat_map(|bucket| bucket.iter())
            .map(|slot| (&slot.kind, &*slot.key, &slot.entry))
    }

    /// Every member event: user id as written, and entry.
    pub fn members(&self) -> impl Iterator<Item = (&str, &StateEntry)> {
        self.iter()
            .filter(|(kind, ..)| **kind == StateEventType::RoomMember)
            .map(|(_, key, entry)| (key, entry))
    }

    fn bucket_of(&self, kind: &StateEventType, key: &str) -> Option<usize> {
        let mask = self.buckets.len().checked_sub(1)?;
        Some(hash(kind, key) & mask)
    }

    fn grow(&mut self) {
        let count = (self.buckets.len() * 2).max(1);
        let mut buckets = vec![Vec::new(); count];
        for slot in self.buckets.iter().flat_map(|bucket| bucket.iter()) {
            // Order within a bucket is kept: both halves of a sorted bucket are sorted.
            buckets[hash(&slot.kind, &slot.key) & (count - 1)].push(slot.clone());
        }
        self.buckets = Arc::new(buckets.into_iter().map(Arc::new).collect());
    }
}

fn position(bucket: &[Slot], kind: &StateEventType, key: &str) -> Result<usize, usize> {
    bucket.binary_search_by(|slot| (*slot.key).cmp(key).then_with(|| slot.kind.cmp(kind)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use ruma::EventId;

    use super::*;

    fn entry(nid: i64) -> StateEntry {
        StateEntry {
            nid,
            event_id: EventId::parse(format!("${nid}")).unwrap(),
            membership: None,
        }
    }

    proptest! {
        /// The map answers as a plain one does, and a snapshot taken on the way never changes.
        #[test]
        fn behaves_like_a_plain_map(writes in prop::collection::vec((0u8..3, 0u16..200), 1..400), at in 0usize..400) {
            let kinds = [StateEventType::RoomMember, StateEventType::RoomName, StateEventType::from("x.y")];
            let mut map = StateMap::default();
            let mut plain = HashMap::new();
            let mut snapshot = None;
            for (nid, (kind, key)) in writes.iter().enumerate() {
                if nid == at {
                    snapshot = Some((map.clone(), plain.clone()));
                }
                let kind = kinds[usize::from(*kind)].clone();
                let nid = nid as i64;
                let replaced = map.insert(kind.clone(), &key.to_string(), entry(nid)).map(|e| e.nid);
                prop_assert_eq!(replaced, plain.insert((kind, key.to_string()), nid));
            }
            for (map, plain) in [Some((map, plain)), snapshot].into_iter().flatten() {
                prop_assert_eq!(map.len(), plain.len());
                prop_assert_eq!(map.iter().count(), plain.len());
                for ((kind, key), nid) in &plain {
                    prop_assert_eq!(map.get(kind, key).map(|e| e.nid), Some(*nid));
                }
            }
        }
    }

    proptest! {
        /// Laying the differences over a map makes the other one, wherever the two part.
        #[test]
        fn differences_lead_from_one_map_to_the_other(
            common in prop::collection::vec(0u16..60, 0..200),
            changes in prop::collection::vec((any::<bool>(), any::<bool>(), 0u16..60), 0..60),
        ) {
            let kind = StateEventType::RoomMember;
            let mut one = StateMap::default();
            for (nid, key) in common.iter().enumerate() {
                one.insert(kind.clone(), &key.to_string(), entry(nid as i64));
            }
            let mut two = one.clone();
            for (nid, (first, removes, key)) in changes.iter().enumerate() {
                let map = if *first { &mut one } else { &mut two };
                let key = key.to_string();
                if *removes {
                    let held = map.get(&kind, &key).cloned();
                    prop_assert_eq!(map.remove(&kind, &key), held);
                } else {
                    map.insert(kind.clone(), &key, entry(1_000 + nid as i64));
                }
            }
            let mut led = one.clone();
            for (kind, key, entry) in one.differences(&two) {
                prop_assert_ne!(one.get(kind, key), entry);
                match entry {
                    Some(entry) => drop(led.insert(kind.clone(), key, entry.clone())),
                    None => drop(led.remove(kind, key)),
                }
            }
            prop_assert_eq!(led.len(), two.len());
            prop_assert!(led.differences(&two).is_empty());
            prop_assert!(two.iter().all(|(kind, key, entry)| led.get(kind, key) == Some(entry)));
        }
    }

    #[test]
    fn an_empty_map_has_nothing() {
        assert!(StateMap::default().get(&StateEventType::RoomName, "").is_none());
    }
}
