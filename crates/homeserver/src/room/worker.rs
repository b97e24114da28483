//! One ordered queue per room: its state and extremities have one owner at a time. What waits while
//! a commit is under way is built together and committed together. Rooms work in parallel; a room
//! without work has no task.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use ruma::{OwnedEventId, OwnedRoomId};
use storage::{
    events::EventRow,
    state::{StateGroup, StateReset},
};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{
    Error, Event, Pdu, Proposal, Received, RoomState, Rooms,
    commit::Alias,
    receive::GROUPS_PER_EVENT,
    state::{Change, Snapshot, next_group},
};
use crate::push::Recorded;

/// How many waiting events are committed together.
const BATCH: usize = 64;

/// A room that is in memory.
#[derive(Debug)]
pub struct Room {
    pub(super) room_id: OwnedRoomId,
    state: RwLock<Arc<RoomState>>,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: bool,
}

/// An event that waits, and who waits for what becomes of it.
#[derive(Debug)]
enum Job {
    Propose(Proposal, oneshot::Sender<Result<Accepted, Error>>),
    Receive(Pdu, oneshot::Sender<Result<Received, Error>>),
}

impl Job {
    fn refuse(self, e: &storage::Error) {
        let e = Error::Internal(e.to_string());
        match self {
            Self::Propose(_, reply) => drop(reply.send(Err(e))),
            Self::Receive(_, reply) => drop(reply.send(Err(e))),
        }
    }
}

/// What was decided and not told yet, because it is not durable.
enum Decided {
    Proposed(Accepted, oneshot::Sender<Result<Accepted, Error>>),
    Received(Received, oneshot::Sender<Result<Received, Error>>),
}

impl Decided {
    fn tell(self, failed: Option<&Error>) {
        let failed = failed.map(|e| Error::Internal(e.to_string()));
        match self {
            Self::Proposed(accepted, reply) => drop(reply.send(failed.map_or(Ok(accepted), Err))),
            Self::Received(received, reply) => drop(reply.send(failed.map_or(Ok(received), Err))),
        }
    }
}

/// An event that is in the room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub event_id: OwnedEventId,
    /// Its position, when this request put it there; `None` when it was there already.
    pub position: Option<i64>,
}

impl Room {
    pub(super) fn new(state: RoomState) -> Self {
        Self {
            room_id: state.room_id.clone(),
            state: RwLock::new(Arc::new(state)),
            queue: Mutex::default(),
        }
    }

    /// The room after its newest events.
    pub fn state(&self) -> Arc<RoomState> {
        self.state.read().clone()
    }

    /// Whether nothing waits and nobody works: only then may it leave memory.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        !queue.running && queue.waiting.is_empty()
    }
}

/// Marks the room as free again when its work ends by a panic; a regular end forgets it.
struct Running<'a>(&'a Room);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.running = false;
        // Nobody would take them before the next proposal: their senders are answered with an error now.
        queue.waiting.clear();
    }
}

/// Events that are built and checked, waiting for their commit.
pub(super) struct Batch {
    pub(super) state: RoomState,
    /// The next free position.
    pub(super) next: i64,
    /// How many positions each event has.
    pub(super) step: i64,
    pub(super) now_ms: u64,
    pub(super) new_room: bool,
    pub(super) events: Vec<NewEvent>,
    /// State groups to be made, in this order.
    pub(super) groups: Vec<NewGroup>,
    pub(super) redactions: Vec<Redaction>,
    /// Aliases that come into being with a new room.
    pub(super) aliases: Vec<Alias>,
    /// States that were read or made on the way, by their groups.
    pub(super) snapshots: HashMap<i64, Snapshot>,
    /// Which group the states of several groups resolve to.
    pub(super) resolved: HashMap<Vec<i64>, i64>,
}

pub(super) struct NewEvent {
    pub(super) event: Arc<Event>,
    pub(super) row: EventRow,
    /// Whether clients see it.
    pub(super) shown: bool,
    /// Keys of the events that authorise it.
    pub(super) auth: Vec<i64>,
    /// What it changes in the current state.
    pub(super) changes: Vec<Change>,
    /// What of that the event does not say itself.
    pub(super) resets: Vec<StateReset>,
    /// It waits for the event it redacts.
    pub(super) waits_for: Option<OwnedEventId>,
    /// Whom it notifies, once that is decided: see [`Rooms::record_newest`].
    pub(super) recorded: Option<Arc<Recorded>>,
}

/// A state group to be made.
pub(super) struct NewGroup {
    pub(super) group: StateGroup,
    /// Keys of the events in which it differs from its parent.
    pub(super) entries: Vec<i64>,
    /// Keys of the groups it folds in.
    pub(super) folded: Vec<i64>,
}

/// An older event that loses its content.
pub(super) struct Redaction {
    pub(super) by: i64,
    pub(super) json: String,
    pub(super) pruned: Arc<Event>,
}

impl Batch {
    pub(super) fn new(state: RoomState, first: i64, now_ms: u64, new_room: bool) -> Self {
        Self {
            state,
            next: first,
            step: 1,
            now_ms,
            new_room,
            events: Vec::new(),
            groups: Vec::new(),
            redactions: Vec::new(),
            aliases: Vec::new(),
            snapshots: HashMap::new(),
            resolved: HashMap::new(),
        }
    }

    /// Makes a state group of a state that differs in `entries` from the one that its chain stands for. Groups are named
    /// like positions, of which each event has enough; a name is not used twice even if its event comes to nothing.
    pub(super) fn add_group(&mut self, snapshot: &mut Snapshot, entries: Vec<i64>) {
        let newest = self.groups.last().map_or(0, |new| new.group.state_group);
        let (group, folded) = next_group(&snapshot.chain, self.next.max(newest + 1));
        snapshot.grow(group);
        self.groups.push(NewGroup { group, entries, folded });
    }

    /// What authorises an event of this batch; `None` for any other.
    pub(super) fn auth_of(&self, nid: i64) -> Option<&[i64]> {
        let new = self.events.iter().find(|new| new.event.nid == nid)?;
        Some(&new.auth)
    }
}

impl Rooms {
    /// Puts an event of a local user into a room, in the order of the room's queue; answers once it is durable.
    ///
    /// # Errors
    /// When the room does not exist, the event is malformed, too large or not allowed, or the database fails.
    pub async fn propose(&self, room: &Arc<Room>, proposal: Proposal) -> Result<Accepted, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(room, Job::Propose(proposal, reply));
        answer
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a room's worker ended without an answer".to_owned())))
    }

    /// Takes an event of another server into a room, in the order of the room's queue; answers once what became of it
    /// is durable. An event that is refused is an answer too: see [`Received`].
    ///
    /// # Errors
    /// When it cannot be an event of this room, or the database fails.
    pub async fn receive(&self, room: &Arc<Room>, pdu: Pdu) -> Result<Received, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(room, Job::Receive(pdu, reply));
        answer
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a room's worker ended without an answer".to_owned())))
    }

    fn enqueue(&self, room: &Arc<Room>, job: Job) {
        let start = {
            let mut queue = room.queue.lock();
            queue.waiting.push_back(job);
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let (rooms, room) = (self.clone(), room.clone());
            let span = tracing::debug_span!("room", room_id = %room.room_id);
            self.inner
                .tasks
                .spawn(async move { rooms.drain(&room).await }.instrument(span));
        }
    }

    async fn drain(&self, room: &Room) {
        let running = Running(room);
        loop {
            let jobs: Vec<Job> = {
                let mut queue = room.queue.lock();
                if queue.waiting.is_empty() {
                    // Under the same lock that a proposer looks at it.
                    queue.running = false;
                    std::mem::forget(running);
                    return;
                }
                let count = queue.waiting.len().min(BATCH);
                queue.waiting.drain(..count).collect()
            };
            self.work(room, jobs).await;
        }
    }

    async fn work(&self, room: &Room, jobs: Vec<Job>) {
        let state = room.state();
        // Where all there is to do is to go on from the one end, an event brings one state at most.
        let forks = state.extremities.len() > 1 || jobs.iter().any(|job| matches!(job, Job::Receive(..)));
        let step = if forks { GROUPS_PER_EVENT } else { 1 };
        let reservation = match self.inner.store.reserve(jobs.len() * step).await {
            Ok(reservation) => reservation,
            Err(e) => {
                for job in jobs {
                    job.refuse(&e);
                }
                return;
            }
        };
        let now = self.inner.clock.now_ms();
        let mut batch = Batch::new((*state).clone(), reservation.first(), now, false);
        batch.step = i64::try_from(step).unwrap_or(1);
        let mut decided = Vec::new();
        let mut unrecorded = None;
        for job in jobs {
            match job {
                Job::Propose(proposal, reply) => match self.prepare(&mut batch, proposal).await {
                    Ok(done) => decided.push(Decided::Proposed(done, reply)),
                    Err(e) => drop(reply.send(Err(e))),
                },
                Job::Receive(pdu, reply) => match self.take_in(&mut batch, pdu).await {
                    Ok(done) => decided.push(Decided::Received(done, reply)),
                    Err(e) => drop(reply.send(Err(e))),
                },
            }
            if let Err(e) = self.record_newest(&mut batch).await {
                unrecorded = Some(e);
            }
        }
        let committed = match unrecorded {
            None => self.commit(batch).await,
            Some(e) => Err(e),
        };
        if committed.is_err() {
            self.reread(room).await;
        }
        if let Ok(Some((state, news))) = &committed {
            *room.state.write() = state.clone();
            self.remember(state, news).await;
        }
        // Readers pass the positions only after every cache knows what happened at them.
        drop(reservation);
        if let Ok(Some((state, news))) = &committed {
            self.announce(state, news);
        }
        for done in decided {
            // A repetition may have found its event in this very batch: it is not durable either.
            done.tell(committed.as_ref().err());
        }
    }

    /// A commit whose outcome is unknown (the connection broke while it ran) may have happened: the room goes on from
    /// what the database says.
    async fn reread(&self, room: &Room) {
        match self.load(&room.room_id).await {
            Ok(Some(kept)) => *room.state.write() = kept.state(),
            Ok(None) => {}
            Err(e) => tracing::error!(error = %e, "a room could not be read again after a failed commit"),
        }
    }
}
