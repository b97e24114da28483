//! What the room code keeps in memory besides rooms: events, memberships by user, transaction ids,
//! and which rooms changed lately. Each is bounded and can be forgotten at any time.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, events::TimelineEventType};

use super::{Event, Membership, build::Transaction, state::Snapshot};

const EVENTS: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// Larger contents are read again when they are needed, so that large events cannot fill the memory.
const LARGEST_KEPT: usize = 8 * 1024;

const USERS: NonZeroUsize = NonZeroUsize::new(5_000).expect("not zero");
const DEVICES: NonZeroUsize = NonZeroUsize::new(5_000).expect("not zero");

/// Transaction ids kept per device; repetitions of older ones are looked up in the database.
pub(super) const TRANSACTIONS: usize = 256;

/// Pieces of state kept for rooms whose events fork: some 30 MB.
const STATE_PIECES: usize = 200_000;

/// Results of state resolution kept.
const RESOLVED: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// Changed rooms kept; beyond that the oldest changes are looked up in the database.
const RECENT: usize = 100_000;

/// Events by key.
#[derive(Debug)]
pub(super) struct Events(Mutex<LruCache<i64, Arc<Event>>>);

impl Events {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(EVENTS)))
    }

    pub(super) fn get(&self, nid: i64) -> Option<Arc<Event>> {
        self.0.lock().get(&nid).cloned()
    }

    /// Keeps an event that was just read. One that is here already stays: it may be newer, for
    /// being redacted since the read began.
    pub(super) fn insert_read(&self, event: Arc<Event>) -> Arc<Event> {
        let mut events = self.0.lock();
        if event.content.get().len() > LARGEST_KEPT {
            return events.get(&event.nid).cloned().unwrap_or(event);
        }
        events.get_or_insert(event.nid, || event).clone()
    }

    /// Keeps an event that was just made, or the pruned form of one that was redacted.
    pub(super) fn put(&self, event: Arc<Event>) {
        if event.content.get().len() <= LARGEST_KEPT {
            self.0.lock().put(event.nid, event);
        } else {
            self.0.lock().pop(&event.nid);
        }
    }
}

/// What one user is in one room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomMembership {
    /// The room's key.
    pub room_nid: i64,
    /// What the user is.
    pub membership: Membership,
    /// Since when: the position of the member event, unless state resolution brought that back.
    pub position: i64,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Whether the user asked to forget the room.
    pub forgotten: bool,
}

/// A user's rooms.
pub type UserRooms = HashMap<OwnedRoomId, RoomMembership>;

/// States of rooms whose events fork, by group, and which group several resolve to.
#[derive(Debug)]
pub(super) struct Snapshots(Mutex<SnapshotsInner>);

#[derive(Debug)]
struct SnapshotsInner {
    by_group: LruCache<i64, Snapshot>,
    /// Pieces of state in all of `by_group`.
    pieces: usize,
    resolved: LruCache<Vec<i64>, i64>,
}

impl Snapshots {
    pub(super) fn new() -> Self {
        Self(Mutex::new(SnapshotsInner {
            by_group: LruCache::unbounded(),
            pieces: 0,
            resolved: LruCache::new(RESOLVED),
        }))
    }

    pub(super) fn get(&self, group: i64) -> Option<Snapshot> {
        self.0.lock().by_group.get(&group).cloned()
    }

    pub(super) fn put(&self, snapshot: &Snapshot) {
        let mut inner = self.0.lock();
        inner.pieces += snapshot.map.len();
        if let Some(before) = inner.by_group.put(snapshot.group(), snapshot.clone()) {
            inner.pieces -= before.map.len();
        }
        while inner.pieces > STATE_PIECES {
            let Some((_, oldest)) = inner.by_group.pop_lru() else {
                break;
            };
            inner.pieces -= oldest.map.len();
        }
    }

    /// The group that the states of `groups`, in order and each once, resolve to.
    pub(super) fn resolved(&self, groups: &[i64]) -> Option<i64> {
        self.0.lock().resolved.get(groups).copied()
    }

    pub(super) fn put_resolved(&self, groups: Vec<i64>, group: i64) {
        self.0.lock().resolved.put(groups, group);
    }
}

/// Memberships by user.
#[derive(Debug)]
pub(super) struct Members(Mutex<MembersInner>);

#[derive(Debug)]
struct MembersInner {
    users: LruCache<OwnedUserId, Arc<UserRooms>>,
    /// Counts changes, so that a read that a change overtook is not kept.
    generation: u64,
}

impl Members {
    pub(super) fn new() -> Self {
        Self(Mutex::new(MembersInner {
            users: LruCache::new(USERS),
            generation: 0,
        }))
    }

    /// What is kept of `user`, or the generation to hand to [`Members::loaded`].
    pub(super) fn get(&self, user: &UserId) -> Result<Arc<UserRooms>, u64> {
        let mut inner = self.0.lock();
        let generation = inner.generation;
        inner.users.get(user).cloned().ok_or(generation)
    }

    pub(super) fn loaded(&self, user: &UserId, rooms: Arc<UserRooms>, generation: u64) {
        let mut inner = self.0.lock();
        if inner.generation == generation {
            inner.users.put(user.to_owned(), rooms);
        }
    }

    /// Notes a new membership. Who is put out of a room they forgot does not see it again.
    pub(super) fn changed(&self, user: &UserId, room: &RoomId, mut membership: RoomMembership) {
        let mut inner = self.0.lock();
        inner.generation += 1;
        if let Some(rooms) = inner.users.get_mut(user) {
            let rooms = Arc::make_mut(rooms);
            let gone = matches!(membership.membership, Membership::Leave | Membership::Ban);
            membership.forgotten = gone && rooms.get(room).is_some_and(|before| before.forgotten);
            rooms.insert(room.to_owned(), membership);
        }
    }

    pub(super) fn forget(&self, user: &UserId, room: &RoomId) {
        let mut inner = self.0.lock();
        inner.generation += 1;
        if let Some(membership) = inner.users.get_mut(user).and_then(|r| Arc::make_mut(r).get_mut(room)) {
            membership.forgotten = true;
        }
    }
}

/// The newest event of each room that relates to another one: what came later has nothing relating to it.
#[derive(Debug)]
pub(super) struct Relations {
    /// Where the stream stood at the start: relations up to there are only in the database.
    started: i64,
    newest: Mutex<HashMap<OwnedRoomId, i64>>,
}

impl Relations {
    pub(super) fn new(started: i64) -> Self {
        Self {
            started,
            newest: Mutex::default(),
        }
    }

    pub(super) fn added(&self, room_id: &RoomId, position: i64) {
        self.newest.lock().insert(room_id.to_owned(), position);
    }

    /// Whether something may relate to the event at `position`.
    pub(super) fn may_have(&self, room_id: &RoomId, position: i64) -> bool {
        position < self.newest.lock().get(room_id).copied().unwrap_or(self.started)
    }
}

/// Transaction ids by device.
#[derive(Debug)]
pub(super) struct Transactions(Mutex<LruCache<(OwnedUserId, String), Device>>);

type Name = (i64, String, String);

#[derive(Debug, Default)]
struct Device {
    known: HashMap<Name, OwnedEventId>,
    order: VecDeque<Name>,
    /// Whether the database may hold older ones.
    older: bool,
}

/// What memory says about a transaction id.
pub(super) enum Known {
    /// It made this event.
    Event(OwnedEventId),
    /// It made none.
    No,
    /// The database has to be asked about this transaction.
    AskOne,
    /// Nothing is known about the device.
    AskDevice,
}

impl Transactions {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(DEVICES)))
    }

    pub(super) fn get(
        &self,
        sender: &UserId,
        transaction: &Transaction,
        room_nid: i64,
        kind: &TimelineEventType,
    ) -> Known {
        let mut devices = self.0.lock();
        let Some(device) = devices.get(&(sender.to_owned(), transaction.device_id.clone())) else {
            return Known::AskDevice;
        };
        match device
            .known
            .get(&(room_nid, kind.to_string(), transaction.txn_id.clone()))
        {
            Some(event_id) => Known::Event(event_id.clone()),
            None if device.older => Known::AskOne,
            None => Known::No,
        }
    }

    /// What the database holds of a device, newest first.
    pub(super) fn loaded(&self, sender: &UserId, device_id: &str, rows: Vec<(i64, String, String, String)>) {
        let mut device = Device {
            older: rows.len() >= TRANSACTIONS,
            ..Device::default()
        };
        for (room_nid, kind, txn_id, event_id) in rows.into_iter().rev() {
            if let Ok(event_id) = OwnedEventId::try_from(event_id) {
                device.add((room_nid, kind, txn_id), &event_id);
            }
        }
        self.0
            .lock()
            .get_or_insert((sender.to_owned(), device_id.to_owned()), || device);
    }

    pub(super) fn add(&self, event: &Event, room_nid: i64, device_id: &str, txn_id: &str) {
        let mut devices = self.0.lock();
        // A device that is not here is loaded with this one when it is asked about.
        if let Some(device) = devices.get_mut(&(event.sender.clone(), device_id.to_owned())) {
            device.add((room_nid, event.kind.to_string(), txn_id.to_owned()), &event.event_id);
        }
    }
}

impl Device {
    fn add(&mut self, name: Name, event_id: &EventId) {
        if self.known.insert(name.clone(), event_id.to_owned()).is_none() {
            self.order.push_back(name);
        }
        while self.order.len() > TRANSACTIONS {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
                self.older = true;
            }
        }
    }
}

/// The newest event position of every room that changed lately.
#[derive(Debug)]
pub(super) struct Recent(Mutex<RecentInner>);

#[derive(Debug)]
struct RecentInner {
    /// Rooms that are not in `rooms` have nothing newer than this.
    floor: i64,
    rooms: HashMap<i64, i64>,
}

impl Recent {
    pub(super) fn new(position: i64) -> Self {
        Self(Mutex::new(RecentInner {
            floor: position,
            rooms: HashMap::new(),
        }))
    }

    pub(super) fn changed(&self, room_nid: i64, latest: i64) {
        let mut inner = self.0.lock();
        inner.rooms.insert(room_nid, latest);
        if inner.rooms.len() > RECENT {
            let mut latest: Vec<i64> = inner.rooms.values().copied().collect();
            let (_, median, _) = latest.select_nth_unstable(RECENT / 2);
            let median = *median;
            inner.floor = inner.floor.max(median);
            inner.rooms.retain(|_, latest| *latest > median);
        }
    }

    /// Which of `rooms` have an event after `after`; `None` when that is too long ago to be known here.
    pub(super) fn after(&self, rooms: &[i64], after: i64) -> Option<Vec<i64>> {
        let inner = self.0.lock();
        if after < inner.floor {
            return None;
        }
        let changed = |nid: &&i64| inner.rooms.get(nid).is_some_and(|latest| *latest > after);
        Some(rooms.iter().filter(changed).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_changes_answer_only_what_they_can_know() {
        let recent = Recent::new(10);
        recent.changed(1, 11);
        recent.changed(2, 12);
        recent.changed(1, 13);
        assert_eq!(recent.after(&[1, 2, 3], 10), Some(vec![1, 2]));
        assert_eq!(recent.after(&[1, 2, 3], 12), Some(vec![1]));
        assert_eq!(recent.after(&[1, 2, 3], 9), None);
    }

    #[test]
    fn a_device_remembers_its_newest_transactions() {
        let transactions = Transactions::new();
        let user = <&UserId>::try_from("@a:example.org").unwrap();
        let event = OwnedEventId::try_from("$e").unwrap();
        let ask = |txn: &str| {
            let transaction = Transaction {
                device_id: "D".to_owned(),
                txn_id: txn.to_owned(),
            };
            transactions.get(user, &transaction, 1, &TimelineEventType::from("m.room.message"))
        };
        assert!(matches!(ask("1"), Known::AskDevice));
        let rows = vec![(1, "m.room.message".to_owned(), "1".to_owned(), event.to_string())];
        transactions.loaded(user, "D", rows);
        assert!(matches!(ask("1"), Known::Event(_)));
        assert!(matches!(ask("2"), Known::No));
        let mut devices = transactions.0.lock();
        let device = devices.get_mut(&(user.to_owned(), "D".to_owned())).unwrap();
        for n in 0..TRANSACTIONS {
            device.add((1, "m.room.message".to_owned(), format!("x{n}")), &event);
        }
        drop(devices);
        assert!(matches!(ask("1"), Known::AskOne));
    }
}
