//! Rooms: the one entrance for events, the state they make, and everything that reads them.
//!
//! [`Rooms`] is the service. Writers hand it a [`Proposal`]; readers ask for a [`Room`], whose
//! [`RoomState`] is a shared snapshot, or for parts of timelines. This module must not know HTTP,
//! devices' keys or how clients sync.

mod build;
mod bundles;
mod cache;
mod client_format;
mod commit;
mod create;
mod directory;
mod error;
mod event;
mod local;
mod membership;
mod pdu;
mod pipeline;
mod public_rooms;
mod read;
mod receive;
mod resolve;
mod state;
mod state_map;
mod visibility;
mod worker;

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, events::StateEventType};
use storage::Store;
use tokio::sync::{OnceCell, broadcast};
use tokio_util::task::TaskTracker;

pub use build::{Proposal, Transaction};
pub use cache::{RoomMembership, UserRooms};
pub use client_format::{Format, Viewer};
pub use create::{NewRoom, Preset};
pub use error::Error;
pub(crate) use event::is_storable;
pub use event::{Event, Relation};
pub use membership::{Action, MembershipChange};
pub use pdu::{Pdu, signers};
pub use pipeline::Verdict;
pub use public_rooms::{DirectoryPage, DirectoryQuery, PageStart};
pub use read::{RoomSummary, Timeline};
pub use receive::Received;
pub use state::{Extremity, RoomState};
pub use state_map::{Membership, StateEntry, StateMap};
pub use visibility::Visibility;
pub use worker::{Accepted, Room};

use crate::{Clock, Keys, push::Push, sync::Notifier};

/// The settings of rooms.
#[derive(Debug, Clone)]
pub struct Config {
    /// The version of new rooms whose maker names none: 10, 11 or 12.
    pub default_version: RoomVersionId,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_version: RoomVersionId::V12,
        }
    }
}

/// The versions that rooms can have here.
pub const SUPPORTED_VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// Rooms kept in memory.
const ROOMS: NonZeroUsize = NonZeroUsize::new(2_000).expect("not zero");

/// Changes that a slow listener may lag behind before it misses some.
const CHANGES: usize = 4_096;

/// The rooms of this server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rooms {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    keys: Arc<Keys>,
    server_name: OwnedServerName,
    config: Config,
    tasks: TaskTracker,
    rooms: Mutex<LruCache<OwnedRoomId, Cell>>,
    events: cache::Events,
    snapshots: cache::Snapshots,
    members: cache::Members,
    transactions: cache::Transactions,
    recent: cache::Recent,
    changes: broadcast::Sender<RoomChange>,
    /// Told of what changed before its position is passed.
    notifier: Arc<Notifier>,
    push: Arc<Push>,
    /// The newest event of each room that relates to another one.
    relations: cache::Relations,
    public_rooms: public_rooms::PublicRooms,
}

/// A room in memory or being loaded; `None` inside when there is no such room.
type Cell = Arc<OnceCell<Option<Arc<Room>>>>;

/// Something that happened in a room, told after it is durable and visible to readers.
#[derive(Debug, Clone)]
pub enum RoomChange {
    /// An event took its place in the timeline.
    Event {
        /// The room.
        room_id: OwnedRoomId,
        /// The event.
        event: Arc<Event>,
    },
    /// A user became something else in the room; told before the `Event` that did it.
    Membership {
        /// The room.
        room_id: OwnedRoomId,
        /// The user.
        user_id: OwnedUserId,
        /// What the user is.
        membership: Membership,
        /// The member event; where state resolution took a membership away, the event whose arrival did.
        event: Arc<Event>,
    },
}

/// Who works for rooms in the background and hears of every event.
#[derive(Debug, Clone)]
pub(crate) struct Listeners {
    pub(crate) tasks: TaskTracker,
    pub(crate) notifier: Arc<Notifier>,
    pub(crate) push: Arc<Push>,
}

impl Rooms {
    pub(crate) fn new(
        config: Config,
        store: Store,
        clock: Clock,
        keys: Arc<Keys>,
        server_name: OwnedServerName,
        listeners: Listeners,
    ) -> Self {
        let Listeners { tasks, notifier, push } = listeners;
        let started = store.positions().current();
        let recent = cache::Recent::new(started);
        Self {
            inner: Arc::new(Inner {
                store,
                clock,
                keys,
                server_name,
                config,
                tasks,
                rooms: Mutex::new(LruCache::new(ROOMS)),
                events: cache::Events::new(),
                snapshots: cache::Snapshots::new(),
                members: cache::Members::new(),
                transactions: cache::Transactions::new(),
                recent,
                changes: broadcast::channel(CHANGES).0,
                relations: cache::Relations::new(started),
                public_rooms: public_rooms::PublicRooms::default(),
                notifier,
                push,
            }),
        }
    }

    /// Hears of every change in every room from now on. A listener that lags is told how much it missed.
    pub fn changes(&self) -> broadcast::Receiver<RoomChange> {
        self.inner.changes.subscribe()
    }

    /// The version of rooms whose maker names none.
    pub fn default_version(&self) -> &RoomVersionId {
        &self.inner.config.default_version
    }

    /// The room `room_id`, when this server knows it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find(&self, room_id: &RoomId) -> Result<Option<Arc<Room>>, Error> {
        let cell = {
            let mut rooms = self.inner.rooms.lock();
            match rooms.get(room_id) {
                Some(cell) => cell.clone(),
                None => {
                    evict_idle(&mut rooms);
                    let cell = Cell::default();
                    rooms.put(room_id.to_owned(), cell.clone());
                    cell
                }
            }
        };
        let room = cell.get_or_try_init(|| self.load(room_id)).await?.clone();
        if room.is_none() {
            let mut rooms = self.inner.rooms.lock();
            if rooms.peek(room_id).is_some_and(|kept| Arc::ptr_eq(kept, &cell)) {
                rooms.pop(room_id);
            }
        }
        Ok(room)
    }

    /// The room `room_id`.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or when the database fails.
    pub async fn get(&self, room_id: &RoomId) -> Result<Arc<Room>, Error> {
        self.find(room_id)
            .await?
            .ok_or_else(|| Error::NotFound(format!("This server knows no room {room_id}.")))
    }

    /// Takes a room that was just made into memory.
    fn keep(&self, room: Arc<Room>) {
        let mut rooms = self.inner.rooms.lock();
        evict_idle(&mut rooms);
        rooms.put(room.room_id.clone(), Arc::new(OnceCell::new_with(Some(Some(room)))));
    }

    async fn load(&self, room_id: &RoomId) -> Result<Option<Arc<Room>>, Error> {
        let store = &self.inner.store;
        let Some(row) = store.room(room_id.as_str()).await? else {
            return Ok(None);
        };
        let version = RoomVersionId::try_from(row.version.as_str())
            .map_err(|e| storage::Error::corrupt("rooms", format!("version of {room_id}: {e}")))?;
        let mut state = RoomState::before_creation(room_id.to_owned(), row.room_nid, version)?;
        let members = store.members_of(row.room_nid).await?;
        let members: std::collections::HashMap<i64, Membership> = members
            .into_iter()
            .map(|(_, membership, nid)| (nid, Membership::parse(&membership)))
            .collect();
        let mut pinned = Vec::new();
        for entry in store.state(row.state_group).await? {
            let kind = StateEventType::from(entry.kind);
            if entry.state_key.is_empty() && state::PINNED.contains(&kind) {
                pinned.push(entry.event_nid);
            }
            let event_id = entry
                .event_id
                .try_into()
                .map_err(|e| storage::Error::corrupt("events", format!("an event id: {e}")))?;
            let membership = (kind == StateEventType::RoomMember)
                .then(|| members.get(&entry.event_nid).copied().unwrap_or(Membership::Leave));
            let nid = entry.event_nid;
            let slot = StateEntry {
                nid,
                event_id,
                membership,
            };
            state.map.insert(kind, &entry.state_key, slot);
        }
        state.chain = Arc::new(store.state_chain(row.state_group).await?);
        state.latest = row.latest;
        state.recount();
        let extremities: Vec<i64> = serde_json::from_str(&row.extremities)
            .map_err(|e| storage::Error::corrupt("rooms", format!("extremities of {room_id}: {e}")))?;
        state.extremities = self
            .events(room_id, &extremities)
            .await?
            .iter()
            .map(|event| Extremity::of(event))
            .collect();
        state.reset_at = store.last_state_reset(row.room_nid).await?;
        let pinned = self.events(room_id, &pinned).await?;
        state.pinned = Arc::new(
            pinned
                .into_iter()
                .filter_map(|event| Some((event.state_type()?.0, event.clone())))
                .collect(),
        );
        let history = self
            .state_history(&state, &StateEventType::RoomHistoryVisibility, "")
            .await?;
        let changes = history
            .into_iter()
            .map(|(position, event)| (position, state::history_visibility_at(event.as_deref())))
            .collect();
        state.visibility_changes = Arc::new(changes);
        Ok(Some(Arc::new(Room::new(state))))
    }
}

/// Makes place for a room when memory is full: the one least used that nobody holds.
fn evict_idle(rooms: &mut LruCache<OwnedRoomId, Cell>) {
    if rooms.len() < rooms.cap().get() {
        return;
    }
    let idle = |cell: &Cell| match cell.get() {
        // Held only by this cell, and this cell only by the cache: nobody can be working on it.
        Some(Some(room)) => Arc::strong_count(cell) == 1 && Arc::strong_count(room) == 1 && room.is_idle(),
        Some(None) => true,
        // Being looked up, unless whoever did has gone or failed.
        None => Arc::strong_count(cell) == 1,
    };
    match rooms
        .iter()
        .rev()
        .find(|(_, cell)| idle(cell))
        .map(|(id, _)| id.clone())
    {
        Some(id) => {
            rooms.pop(&id);
        }
        // Every room is in use: keep them all rather than have one twice.
        None => {
            let more = NonZeroUsize::new(rooms.cap().get() * 2).unwrap_or(ROOMS);
            rooms.resize(more);
        }
    }
}
