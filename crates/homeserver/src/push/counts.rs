//! Unread counts in memory. A user's counts of a room are read from the database when they are first asked for, and
//! brought forward by the room's newest events from then on: a message costs nobody a query. What moves counts in
//! another way (a receipt, a join) makes them stale, and they are read again.
//!
//! Writers tell of an event after its commit and before its position is published, and of staleness inside the write;
//! so a reader at a position knows of everything up to it.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use storage::{
    Error, Store,
    push::{MemberChange, Notified, NotifyingEvent, UnreadCount},
};

/// Rooms kept at once.
const MAX_ROOMS: NonZeroUsize = NonZeroUsize::new(2000).expect("not zero");
/// Events remembered per room; counts that lag behind further are read again.
const MAX_EVENTS: usize = 128;
/// Users' counts kept at once, of all rooms together.
const MAX_USERS: usize = 100_000;

/// An event and whom it notified.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) event: NotifyingEvent,
    pub(crate) notified: Notified,
}

impl Recorded {
    /// What it means to a member who did not send it: notifies, highlights.
    fn outcome(&self, user_id: &UserId, user_nid: Option<i64>) -> (bool, bool) {
        let own = self.notified.personal.iter().find(|(user, _)| user == user_id.as_str());
        if let Some((_, own)) = own {
            return (own.notify, own.highlight);
        }
        match user_nid.and_then(|nid| self.notified.others.of(nid)) {
            Some(other) => (other.notify, other.highlight),
            None => (self.notified.base.notify, self.notified.base.highlight),
        }
    }
}

/// The unread counts of recently read rooms.
#[derive(Debug)]
pub(crate) struct Counts {
    store: Store,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Nothing was told of beyond this position.
    newest: i64,
    rooms: LruCache<i64, RoomCounts>,
    /// Users' counts that were made since the useless ones were last dropped.
    made: usize,
}

#[derive(Debug)]
struct RoomCounts {
    /// Every event after this position is in `events`.
    after: i64,
    events: VecDeque<Arc<Recorded>>,
    users: HashMap<OwnedUserId, UserCounts>,
}

#[derive(Debug)]
struct UserCounts {
    /// The position up to which events are counted; -1 before the first reading.
    upto: i64,
    /// What was read below this position does not count.
    stale: i64,
    counts: Vec<UnreadCount>,
}

impl Counts {
    pub(crate) fn new(store: Store) -> Self {
        let newest = store.positions().current();
        Self {
            store,
            inner: Mutex::new(Inner::new(newest)),
        }
    }

    /// The counts of a joined member that are not zero, as of `now` or later.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn of(&self, user_id: &UserId, room_nid: i64, now: i64) -> Result<Vec<UnreadCount>, Error> {
        let user_nid = self.store.push_user_nid(user_id.as_str()).await?;
        if let Some(counts) = self.known(user_id, user_nid, room_nid, now) {
            return Ok(counts);
        }
        let counts = self.store.unread_counts(user_id.as_str(), &[room_nid], now).await?;
        self.keep(user_id, room_nid, now, counts.clone());
        Ok(counts)
    }

    /// The counts of a joined member in many rooms, read at once.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn of_rooms(&self, user_id: &UserId, rooms: &[i64], now: i64) -> Result<Vec<UnreadCount>, Error> {
        {
            let mut inner = self.inner.lock();
            for room_nid in rooms {
                inner.watch(*room_nid);
            }
        }
        let counts = self.store.unread_counts(user_id.as_str(), rooms, now).await?;
        let mut by_room: HashMap<i64, Vec<UnreadCount>> = HashMap::new();
        for count in &counts {
            by_room.entry(count.room_nid).or_default().push(count.clone());
        }
        for room_nid in rooms {
            let counts = by_room.remove(room_nid).unwrap_or_default();
            self.keep(user_id, *room_nid, now, counts);
        }
        Ok(counts)
    }

    /// Tells of events after their commit, before their positions are published.
    pub(crate) fn committed(&self, events: &[Arc<Recorded>]) {
        let mut inner = self.inner.lock();
        for recorded in events {
            let (room_nid, position) = (recorded.event.room_nid, recorded.event.position);
            inner.newest = inner.newest.max(position);
            if let Some(room) = inner.rooms.peek_mut(&room_nid) {
                room.events.push_back(recorded.clone());
                if room.events.len() > MAX_EVENTS
                    && let Some(oldest) = room.events.pop_front()
                {
                    room.after = oldest.event.position;
                }
            }
            for (user_id, change) in &recorded.event.memberships {
                let Ok(user_id) = <&UserId>::try_from(user_id.as_str()) else {
                    continue;
                };
                match change {
                    MemberChange::Joined => inner.make_stale(user_id, room_nid, position),
                    MemberChange::Gone => inner.forget(user_id, room_nid),
                }
            }
        }
    }

    /// Tells that it is not known whether events were kept, before their positions are published.
    pub(crate) fn unknown(&self, events: &[Arc<Recorded>]) {
        let mut inner = self.inner.lock();
        for recorded in events {
            inner.newest = inner.newest.max(recorded.event.position);
            inner.rooms.pop(&recorded.event.room_nid);
        }
    }

    /// Tells that a user's counts move at `position` by something else than an event. Call inside the write that owns it.
    pub(crate) fn stale(&self, user_id: &UserId, room_nid: i64, position: i64) {
        self.inner.lock().make_stale(user_id, room_nid, position);
    }

    fn known(&self, user_id: &UserId, user_nid: Option<i64>, room_nid: i64, now: i64) -> Option<Vec<UnreadCount>> {
        let mut inner = self.inner.lock();
        let room = inner.watch(room_nid);
        let user = room.users.get_mut(user_id)?;
        if user.upto < room.after || user.stale > user.upto {
            return None;
        }
        let newer = room
            .events
            .partition_point(|recorded| recorded.event.position <= user.upto);
        for recorded in room
            .events
            .range(newer..)
            .take_while(|recorded| recorded.event.position <= now)
        {
            user.count(user_id, user_nid, recorded);
        }
        user.upto = user.upto.max(now);
        Some(user.counts.clone())
    }

    fn keep(&self, user_id: &UserId, room_nid: i64, now: i64, counts: Vec<UnreadCount>) {
        let mut inner = self.inner.lock();
        // Without the room's entry nobody watched what happened meanwhile.
        if let Some(user) = inner.user(user_id, room_nid)
            && user.upto < now
        {
            (user.upto, user.counts) = (now, counts);
        }
    }
}

impl Inner {
    fn new(newest: i64) -> Self {
        Self {
            newest,
            rooms: LruCache::new(MAX_ROOMS),
            made: 0,
        }
    }

    /// A user's counts of a room that is watched, made if there are none.
    fn user(&mut self, user_id: &UserId, room_nid: i64) -> Option<&mut UserCounts> {
        if self.made >= MAX_USERS / 2 {
            self.drop_useless();
        }
        let room = self.rooms.peek_mut(&room_nid)?;
        if !room.users.contains_key(user_id) {
            self.made += 1;
            room.users.insert(user_id.to_owned(), UserCounts::unread());
        }
        room.users.get_mut(user_id)
    }

    /// Drops counts that would be read again anyway; then, if too many are left, whole rooms, those asked for longest ago
    /// first. At most half of what may be kept stays, so that this is rare.
    fn drop_useless(&mut self) {
        self.made = 0;
        let mut kept = 0;
        for (_, room) in &mut self.rooms {
            // A stale mark above `after` is still needed: it tells who read before it and is not done that it was in vain.
            room.users
                .retain(|_, user| user.upto >= room.after || user.stale > room.after);
            room.users.shrink_to_fit();
            kept += room.users.len();
        }
        while kept > MAX_USERS / 2
            && let Some((_, room)) = self.rooms.pop_lru()
        {
            kept -= room.users.len();
        }
    }

    /// Drops a user's counts of a room that the user left; a join makes those that are read meanwhile stale.
    fn forget(&mut self, user_id: &UserId, room_nid: i64) {
        if let Some(room) = self.rooms.peek_mut(&room_nid) {
            room.users.remove(user_id);
        }
    }

    /// The room's entry, from which on nothing of it is missed.
    fn watch(&mut self, room_nid: i64) -> &mut RoomCounts {
        let after = self.newest;
        self.rooms.get_or_insert_mut(room_nid, || RoomCounts {
            after,
            events: VecDeque::new(),
            users: HashMap::new(),
        })
    }

    fn make_stale(&mut self, user_id: &UserId, room_nid: i64, position: i64) {
        // An entry that is made later distrusts what was read before this.
        self.newest = self.newest.max(position);
        if let Some(user) = self.user(user_id, room_nid) {
            user.stale = user.stale.max(position);
        }
    }
}

impl UserCounts {
    fn unread() -> Self {
        Self {
            upto: -1,
            stale: 0,
            counts: Vec::new(),
        }
    }

    fn count(&mut self, user_id: &UserId, user_nid: Option<i64>, recorded: &Recorded) {
        let event = &recorded.event;
        let at = self.counts.iter().position(|count| count.thread_id == event.thread_id);
        if event.sender == user_id.as_str() {
            // Who sends has read what came before.
            at.map(|at| self.counts.swap_remove(at));
            return;
        }
        let (notify, highlight) = recorded.outcome(user_id, user_nid);
        if !notify && !highlight {
            return;
        }
        let at = at.unwrap_or_else(|| {
            self.counts.push(UnreadCount {
                room_nid: event.room_nid,
                thread_id: event.thread_id.clone(),
                notify: 0,
                highlight: 0,
            });
            self.counts.len() - 1
        });
        self.counts[at].notify += i64::from(notify);
        self.counts[at].highlight += i64::from(highlight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(inner: &Inner) -> usize {
        inner.rooms.iter().map(|(_, room)| room.users.len()).sum()
    }

    #[test]
    fn users_counts_are_bounded_and_end_with_membership() {
        let mut inner = Inner::new(10);
        let user_id = |number: usize| OwnedUserId::try_from(format!("@u{number}:x")).unwrap();
        for room_nid in 0..50 {
            inner.watch(room_nid);
            for number in 0..MAX_USERS / 20 {
                inner.user(&user_id(number), room_nid).unwrap().upto = 10;
                assert!(number % 500 != 0 || users(&inner) <= MAX_USERS);
            }
        }
        assert!(inner.rooms.contains(&49), "the room that was asked for last stays");
        assert!(users(&inner) > MAX_USERS / 4);
        inner.forget(&user_id(3), 49);
        assert!(!inner.rooms.peek(&49).unwrap().users.contains_key(&user_id(3)));
    }

    #[test]
    fn useless_counts_go_first() {
        let mut inner = Inner::new(10);
        let user_id = |name: &str| OwnedUserId::try_from(format!("@{name}:x")).unwrap();
        inner.watch(1);
        for (name, upto, stale) in [
            ("behind", 15, 0),
            ("known", 20, 0),
            ("marked", -1, 30),
            ("overtaken", -1, 20),
        ] {
            let user = inner.user(&user_id(name), 1).unwrap();
            (user.upto, user.stale) = (upto, stale);
        }
        inner.rooms.peek_mut(&1).unwrap().after = 20;
        inner.drop_useless();
        let mut kept: Vec<_> = inner.rooms.peek(&1).unwrap().users.keys().collect();
        kept.sort();
        assert_eq!(kept, [&user_id("known"), &user_id("marked")]);
    }
}
