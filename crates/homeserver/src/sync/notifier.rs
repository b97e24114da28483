//! Who has news, and since when. Writers announce a change before its position is published; readers learn which
//! streams to look at, and sleeping readers are woken. It holds positions alone, never events or other data, so a lost
//! or needless wake costs time and nothing else.
//!
//! The order that keeps `/sync` from losing anything: a writer calls one of the `mark_*` functions *inside* its write,
//! while its position is unfinished; the position is published after the commit; [`Notifier::advance`] then hands the
//! mark to every session it concerns and raises the position up to which sessions are complete. A reader takes that
//! position as its "now" and never reads past it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use tokio::sync::{Notify, futures::Notified};

/// Event positions remembered per room.
const RECENT_EVENTS: usize = 128;

/// A stream that has something new.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Events of a room the user is joined to.
    Events(OwnedRoomId),
    /// The user's own membership of a room.
    Membership(OwnedRoomId),
    /// Read receipts of a room.
    Receipts(OwnedRoomId),
    /// Who is typing in a room.
    Typing(OwnedRoomId),
    /// The user's unread counts of a room, changed by something else than an event.
    Counts(OwnedRoomId),
    /// The user's account data of a room.
    RoomAccountData(OwnedRoomId),
    /// The user's global account data, push rules among it.
    AccountData,
    /// Messages to one of the user's devices.
    ToDevice,
    /// Device lists of users who share an encrypted room with the user.
    DeviceLists,
    /// Who is there, of those who share a room with the user.
    Presence,
    /// One-time or fallback keys of one of the user's devices.
    DeviceKeys,
}

/// What every member of a room may have to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomStream {
    /// Its events.
    Events,
    /// Its public read receipts.
    Receipts,
    /// Who is typing.
    Typing,
    /// The device list of one of its members.
    DeviceLists,
    /// The presence of one of its members.
    Presence,
}

#[derive(Debug)]
enum Mark {
    Room(OwnedRoomId, RoomStream),
    User(OwnedUserId, Change),
    Membership {
        user_id: OwnedUserId,
        room_id: OwnedRoomId,
        joined: bool,
    },
}

/// Positions at which a room's shared streams were last announced, published or not. A cache that was read up to a
/// later position than these is complete.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomPositions {
    pub(crate) events: i64,
    pub(crate) receipts: i64,
}

#[derive(Debug, Default)]
struct RoomEntry {
    last: RoomPositions,
    /// Positions of the newest events, oldest first.
    recent: VecDeque<i64>,
    /// Positions at or below this one have left `recent`, or were never in it.
    recent_after: Option<i64>,
    watchers: HashMap<OwnedUserId, Arc<Session>>,
}

/// What changed for one user since they began to sync in this process.
#[derive(Debug)]
pub(crate) struct Session {
    user_id: OwnedUserId,
    wake: Notify,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    /// Changes above this position are all known. `i64::MAX` until the user's rooms are watched.
    complete_since: i64,
    latest: HashMap<Change, i64>,
    ordered: BTreeSet<(i64, Change)>,
    /// When the session was last used, Unix milliseconds.
    used_ms: u64,
}

impl Log {
    fn note(&mut self, position: i64, change: Change) {
        if let Some(earlier) = self.latest.insert(change.clone(), position) {
            self.ordered.remove(&(earlier, change.clone()));
        }
        self.ordered.insert((position, change));
    }
}

impl Session {
    /// A future that completes at the next change. Enable it before looking at [`Session::changes`], or a change in
    /// between is slept through.
    pub(crate) fn woken(&self) -> Notified<'_> {
        self.wake.notified()
    }

    /// The streams that changed after `since`, or `None` when this session began later and cannot know. A stream may
    /// be named for a change beyond the reader's own end of the stream; it is never left out.
    pub(crate) fn changes(&self, since: i64) -> Option<Vec<Change>> {
        let log = self.log.lock();
        if since < log.complete_since {
            return None;
        }
        // Walking from the newest end reads what changed, not what was ever noted.
        let newer = log.ordered.iter().rev().take_while(|(position, _)| *position > since);
        Some(newer.map(|(_, change)| change.clone()).collect())
    }

    /// Whether the user's rooms are being watched.
    pub(crate) fn is_complete(&self) -> bool {
        self.log.lock().complete_since != i64::MAX
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Where the stream stood when the process started.
    started: i64,
    processed: i64,
    pending: BTreeMap<i64, Vec<Mark>>,
    rooms: HashMap<OwnedRoomId, RoomEntry>,
    sessions: HashMap<OwnedUserId, Arc<Session>>,
}

/// The table of sessions and the marks that wait for publication.
#[derive(Debug, Default)]
pub struct Notifier {
    inner: Mutex<Inner>,
}

impl Notifier {
    /// `position` is where the stream stands when the process starts.
    pub(crate) fn new(position: i64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                started: position,
                processed: position,
                ..Inner::default()
            }),
        }
    }

    /// Announces something every member of the room may have to hear of. Call inside the write that owns `position`.
    pub fn mark_room(&self, room_id: &RoomId, stream: RoomStream, position: i64) {
        let mut inner = self.inner.lock();
        let entry = inner.rooms.entry(room_id.to_owned()).or_default();
        match stream {
            RoomStream::Events => {
                entry.last.events = entry.last.events.max(position);
                entry.recent.push_back(position);
                if entry.recent.len() > RECENT_EVENTS {
                    entry.recent_after = entry.recent.pop_front();
                }
            }
            RoomStream::Receipts => entry.last.receipts = entry.last.receipts.max(position),
            RoomStream::Typing | RoomStream::DeviceLists | RoomStream::Presence => {}
        }
        inner
            .pending
            .entry(position)
            .or_default()
            .push(Mark::Room(room_id.to_owned(), stream));
    }

    /// Announces something that concerns one user. Call inside the write that owns `position`.
    pub fn mark_user(&self, user_id: &UserId, change: Change, position: i64) {
        let mut inner = self.inner.lock();
        if let Change::Receipts(room_id) = &change {
            let last = &mut inner.rooms.entry(room_id.clone()).or_default().last;
            last.receipts = last.receipts.max(position);
        }
        inner
            .pending
            .entry(position)
            .or_default()
            .push(Mark::User(user_id.to_owned(), change));
    }

    /// Announces a local user's new membership of a room. Call inside the write that owns `position`, beside
    /// [`Notifier::mark_room`] for the event itself.
    pub fn mark_membership(&self, user_id: &UserId, room_id: &RoomId, joined: bool, position: i64) {
        let mark = Mark::Membership {
            user_id: user_id.to_owned(),
            room_id: room_id.to_owned(),
            joined,
        };
        self.inner.lock().pending.entry(position).or_default().push(mark);
    }

    /// Hands out every mark at or below `published` and returns the position up to which all sessions are complete.
    pub(crate) fn advance(&self, published: i64) -> i64 {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if published <= inner.processed
            && inner
                .pending
                .first_key_value()
                .is_none_or(|(first, _)| *first > published)
        {
            return inner.processed;
        }
        let mut woken: HashMap<*const Session, Arc<Session>> = HashMap::new();
        while let Some(first) = inner.pending.first_entry() {
            if *first.key() > published {
                break;
            }
            let (position, marks) = first.remove_entry();
            for mark in marks {
                deliver(&mut inner.rooms, &inner.sessions, position, mark, &mut woken);
            }
        }
        inner.processed = inner.processed.max(published);
        for session in woken.values() {
            session.wake.notify_waiters();
        }
        inner.processed
    }

    /// Wakes the user's sleeping readers, whether or not there is anything new.
    pub(crate) fn wake(&self, user_id: &UserId) {
        if let Some(session) = self.inner.lock().sessions.get(user_id) {
            session.wake.notify_waiters();
        }
    }

    /// Wakes every sleeping reader.
    pub(crate) fn wake_all(&self) {
        for session in self.inner.lock().sessions.values() {
            session.wake.notify_waiters();
        }
    }

    /// The user's session, begun now if there is none. A new session is not complete until [`Notifier::watch`].
    pub(crate) fn session(&self, user_id: &UserId, now_ms: u64) -> Arc<Session> {
        let mut inner = self.inner.lock();
        let session = match inner.sessions.get(user_id) {
            Some(session) => session.clone(),
            None => {
                let log = Log {
                    complete_since: i64::MAX,
                    latest: HashMap::new(),
                    ordered: BTreeSet::new(),
                    used_ms: now_ms,
                };
                let session = Arc::new(Session {
                    user_id: user_id.to_owned(),
                    wake: Notify::new(),
                    log: Mutex::new(log),
                });
                inner.sessions.insert(user_id.to_owned(), session.clone());
                session
            }
        };
        session.log.lock().used_ms = now_ms;
        session
    }

    /// Completes a session: from here on it hears of `rooms`. The list must have been read after the session began:
    /// rooms joined since are watched through their own membership marks.
    pub(crate) fn watch(&self, session: &Arc<Session>, rooms: impl IntoIterator<Item = OwnedRoomId>) {
        let mut inner = self.inner.lock();
        for room_id in rooms {
            inner
                .rooms
                .entry(room_id)
                .or_default()
                .watchers
                .insert(session.user_id.clone(), session.clone());
        }
        let processed = inner.processed;
        let mut log = session.log.lock();
        if log.complete_since == i64::MAX {
            log.complete_since = processed;
        }
    }

    /// Where the room's shared streams were last announced.
    pub(crate) fn room_positions(&self, room_id: &RoomId) -> RoomPositions {
        self.inner
            .lock()
            .rooms
            .get(room_id)
            .map(|entry| entry.last)
            .unwrap_or_default()
    }

    /// The positions of the room's events in (`after`, `up_to`], oldest first, if they are all remembered.
    pub(crate) fn recent_events(&self, room_id: &RoomId, after: i64, up_to: i64) -> Option<Vec<i64>> {
        let inner = self.inner.lock();
        let entry = inner.rooms.get(room_id)?;
        if after < entry.recent_after.unwrap_or(inner.started) {
            return None;
        }
        Some(
            entry
                .recent
                .iter()
                .copied()
                .filter(|position| *position > after && *position <= up_to)
                .collect(),
        )
    }

    /// Drops sessions that nobody used since `before_ms`. Their users' next sync reads the slow way once.
    pub fn forget_idle(&self, before_ms: u64) -> usize {
        let mut inner = self.inner.lock();
        let idle: HashSet<OwnedUserId> = inner
            .sessions
            .iter()
            .filter(|(_, session)| session.log.lock().used_ms < before_ms)
            .map(|(user_id, _)| user_id.clone())
            .collect();
        if idle.is_empty() {
            return 0;
        }
        for user_id in &idle {
            if let Some(session) = inner.sessions.remove(user_id) {
                // A request that still holds it must not take its silence for "nothing new".
                session.log.lock().complete_since = i64::MAX;
                session.wake.notify_waiters();
            }
        }
        for entry in inner.rooms.values_mut() {
            entry.watchers.retain(|user_id, _| !idle.contains(user_id));
        }
        idle.len()
    }
}

fn deliver(
    rooms: &mut HashMap<OwnedRoomId, RoomEntry>,
    sessions: &HashMap<OwnedUserId, Arc<Session>>,
    position: i64,
    mark: Mark,
    woken: &mut HashMap<*const Session, Arc<Session>>,
) {
    let mut note = |session: &Arc<Session>, change: Change| {
        session.log.lock().note(position, change);
        woken.entry(Arc::as_ptr(session)).or_insert_with(|| session.clone());
    };
    match mark {
        Mark::Room(room_id, stream) => {
            let Some(entry) = rooms.get(&room_id) else { return };
            for session in entry.watchers.values() {
                let change = match stream {
                    RoomStream::Events => Change::Events(room_id.clone()),
                    RoomStream::Receipts => Change::Receipts(room_id.clone()),
                    RoomStream::Typing => Change::Typing(room_id.clone()),
                    RoomStream::DeviceLists => Change::DeviceLists,
                    RoomStream::Presence => Change::Presence,
                };
                note(session, change);
            }
        }
        Mark::User(user_id, change) => {
            if let Some(session) = sessions.get(&user_id) {
                note(session, change);
            }
        }
        Mark::Membership {
            user_id,
            room_id,
            joined,
        } => {
            let Some(session) = sessions.get(&user_id) else { return };
            let watchers = &mut rooms.entry(room_id.clone()).or_default().watchers;
            if joined {
                watchers.insert(user_id, session.clone());
            } else {
                watchers.remove(&user_id);
            }
            note(session, Change::Membership(room_id));
        }
    }
}

#[cfg(test)]
mod tests;
