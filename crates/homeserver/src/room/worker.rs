//! One ordered queue per room: its state and extremities have one owner at a time. What waits while
//! a commit is under way is built together and committed together. Rooms work in parallel; a room
//! without work has no task.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{Mutex, RwLock};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedUserId,
    canonical_json::redact,
    events::{StateEventType, TimelineEventType},
    state_res::events::RoomPowerLevelsIntField,
};
use serde_json::value::RawValue;
use storage::{
    events::EventRow,
    push::{MemberChange, NotifyingEvent},
    rooms::RoomRow,
    state::StateGroup,
};
use tokio::sync::oneshot;
use tracing::{Instrument as _, debug};

use super::{
    Error, Event, Membership, Proposal, RoomChange, RoomState, Rooms, build,
    membership::check_own,
    pipeline::{self, Context, Verdict},
};
use crate::{push::Recorded, sync::RoomStream};

/// How many waiting proposals are committed together.
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

#[derive(Debug)]
struct Job {
    proposal: Proposal,
    reply: oneshot::Sender<Result<Accepted, Error>>,
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
    next: i64,
    now_ms: u64,
    new_room: bool,
    pub(super) events: Vec<NewEvent>,
    redactions: Vec<Redaction>,
}

pub(super) struct NewEvent {
    pub(super) event: Arc<Event>,
    row: EventRow,
    group: Option<(StateGroup, Vec<i64>)>,
}

/// An older event that loses its content.
struct Redaction {
    by: i64,
    json: String,
    pruned: Arc<Event>,
}

impl Batch {
    pub(super) fn new(state: RoomState, first: i64, now_ms: u64, new_room: bool) -> Self {
        Self {
            state,
            next: first,
            now_ms,
            new_room,
            events: Vec::new(),
            redactions: Vec::new(),
        }
    }
}

impl Rooms {
    /// Puts an event into a room, in the order of the room's queue; answers once it is durable.
    ///
    /// # Errors
    /// When the room does not exist, the event is malformed, too large or not allowed, or the database fails.
    pub async fn propose(&self, room: &Arc<Room>, proposal: Proposal) -> Result<Accepted, Error> {
        let (reply, answer) = oneshot::channel();
        let start = {
            let mut queue = room.queue.lock();
            queue.waiting.push_back(Job { proposal, reply });
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let (rooms, room) = (self.clone(), room.clone());
            let span = tracing::debug_span!("room", room_id = %room.room_id);
            self.inner
                .tasks
                .spawn(async move { rooms.drain(&room).await }.instrument(span));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::Internal("a room's worker ended without an answer".to_owned())))
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
        let reservation = match self.inner.store.reserve(jobs.len()).await {
            Ok(reservation) => reservation,
            Err(e) => {
                for job in jobs {
                    job.reply.send(Err(Error::Internal(e.to_string()))).ok();
                }
                return;
            }
        };
        let now = self.inner.clock.now_ms();
        let mut batch = Batch::new((*room.state()).clone(), reservation.first(), now, false);
        let mut accepted = Vec::new();
        for job in jobs {
            match self.prepare(&mut batch, job.proposal).await {
                Ok(done) => accepted.push((job.reply, done)),
                Err(e) => {
                    job.reply.send(Err(e)).ok();
                }
            }
        }
        let committed = self.commit(batch, Vec::new()).await;
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
        for (reply, done) in accepted {
            // A repetition may have found its event in this very batch: it is not durable either.
            let answer = match &committed {
                Ok(_) => Ok(done),
                Err(e) => Err(Error::Internal(e.to_string())),
            };
            reply.send(answer).ok();
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

    /// Builds and checks one event on top of what the batch holds already.
    pub(super) async fn prepare(&self, batch: &mut Batch, mut proposal: Proposal) -> Result<Accepted, Error> {
        name_redacted(&mut proposal)?;
        if let Some(known) = self.repetition(batch, &proposal).await? {
            return Ok(Accepted {
                event_id: known,
                position: None,
            });
        }
        check_text(&proposal)?;
        check_own(&proposal, &batch.state, &self.inner.server_name)?;
        let pruned = match &proposal.redacts {
            Some(target) => Some(self.redaction_target(batch, &proposal, target).await?),
            None => None,
        };
        // The current state's events that authorise it, and with version 12 the create event, which
        // authorises everything without being named.
        let mut current = Vec::new();
        let mut named = Vec::new();
        for (kind, key) in proposal.auth_types(&batch.state)? {
            if let Some(event) = self.state_event(batch, &kind, &key).await? {
                named.push(event.event_id.clone());
                current.push(event);
            }
        }
        if batch.state.rules.authorization.room_create_event_id_as_room_id
            && let Some(create) = batch.state.pinned(&StateEventType::RoomCreate)
        {
            current.push(create.clone());
        }
        let now = ruma::MilliSecondsSinceUnixEpoch(ruma::UInt::new_saturating(batch.now_ms));
        let built = build::build(
            &proposal,
            &batch.state,
            named,
            now,
            &self.inner.server_name,
            &self.inner.keys,
        )?;
        let nid = batch.next;
        let (group, replaces) = match (&proposal.state_key, &proposal.kind) {
            (Some(key), kind) => {
                let kind = StateEventType::from(kind.to_string());
                let replaces = batch.state.map.get(&kind, key).map(|entry| entry.nid);
                (Some(batch.state.next_group(nid)), replaces)
            }
            (None, _) => (None, None),
        };
        let (device_id, txn_id) = match proposal.transaction {
            Some(transaction) => (Some(transaction.device_id), Some(transaction.txn_id)),
            None => (None, None),
        };
        let row = EventRow {
            event_nid: nid,
            room_nid: batch.state.room_nid,
            event_id: built.event_id.to_string(),
            depth: built.depth,
            kind: proposal.kind.to_string(),
            sender: proposal.sender.to_string(),
            state_key: proposal.state_key,
            replaces,
            state_group: if group.is_some() { nid } else { batch.state.group() },
            soft_failed: false,
            redacted_by: None,
            device_id,
            txn_id,
            json: serde_json::to_string(&built.json).map_err(|e| Error::Internal(e.to_string()))?,
        };
        let event = Arc::new(
            Event::from_row(row.clone(), &batch.state.room_id)
                .map_err(|e| Error::BadJson(format!("The content is not valid for its type: {e}.")))?,
        );
        let verdict = pipeline::accept(
            &event,
            &built.json,
            &Context {
                room: &batch.state,
                auth_events: &current,
                state_before: None,
                current: &current,
            },
        );
        match verdict {
            Verdict::Accepted => {}
            Verdict::Rejected(why) | Verdict::SoftFailed(why) => {
                debug!(%why, kind = %proposal.kind, "a local event is not allowed");
                return Err(Error::Forbidden(format!("This is not allowed in this room: {why}.")));
            }
            Verdict::Malformed(why) => return Err(Error::BadJson(why)),
            Verdict::TooLarge(why) => return Err(Error::TooLarge(why)),
        }
        batch.next += 1;
        batch.state.apply(&event, group.as_ref().map(|(group, _)| *group));
        if let Some(row) = pruned {
            let redaction = prune(row, &event, &batch.state)?;
            batch.state.replace_pinned(&redaction.pruned);
            batch.redactions.push(redaction);
        }
        let accepted = Accepted {
            event_id: event.event_id.clone(),
            position: Some(nid),
        };
        batch.events.push(NewEvent { event, row, group });
        Ok(accepted)
    }

    /// The event that an identical earlier request made: the same transaction, or state that says the same.
    async fn repetition(&self, batch: &Batch, proposal: &Proposal) -> Result<Option<OwnedEventId>, Error> {
        if let Some(transaction) = &proposal.transaction {
            let in_batch = batch.events.iter().find(|new| {
                new.row.sender == proposal.sender.as_str()
                    && new.row.device_id.as_deref() == Some(&transaction.device_id)
                    && new.row.txn_id.as_deref() == Some(&transaction.txn_id)
                    && new.event.kind == proposal.kind
            });
            if let Some(new) = in_batch {
                return Ok(Some(new.event.event_id.clone()));
            }
            let room_nid = batch.state.room_nid;
            let known = self
                .transaction(&proposal.sender, transaction, room_nid, &proposal.kind)
                .await?;
            if known.is_some() {
                return Ok(known);
            }
        }
        let Some(key) = &proposal.state_key else {
            return Ok(None);
        };
        let kind = StateEventType::from(proposal.kind.to_string());
        let Some(current) = self.state_event(batch, &kind, key).await? else {
            return Ok(None);
        };
        let same = current.sender == proposal.sender
            && serde_json::from_str::<CanonicalJsonObject>(current.content.get())
                .is_ok_and(|content| content == proposal.content);
        Ok(same.then(|| current.event_id.clone()))
    }

    /// A piece of the state that the batch stands on.
    pub(super) async fn state_event(
        &self,
        batch: &Batch,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<Arc<Event>>, Error> {
        let Some(entry) = batch.state.map.get(kind, key) else {
            return Ok(None);
        };
        if let Some(new) = batch.events.iter().find(|new| new.event.nid == entry.nid) {
            return Ok(Some(new.event.clone()));
        }
        self.state_event_of(&batch.state, kind, key).await
    }

    /// The event to be redacted, after checking that the sender may redact it.
    /// Spec: client-server API, "Redactions": one's own events, or with the room's redact level.
    async fn redaction_target(
        &self,
        batch: &Batch,
        proposal: &Proposal,
        target: &ruma::EventId,
    ) -> Result<EventRow, Error> {
        let row = self.inner.store.event(target.as_str()).await?;
        let Some(row) = row.filter(|row| row.room_nid == batch.state.room_nid) else {
            return Err(Error::NotFound("The event to redact is not in this room.".to_owned()));
        };
        let own = row.sender == proposal.sender.as_str();
        let level = batch.state.action_level(RoomPowerLevelsIntField::Redact);
        if !own && batch.state.power_level(&proposal.sender) < level {
            return Err(Error::Forbidden(format!(
                "Redacting other users' events needs power level {level} in this room."
            )));
        }
        Ok(row)
    }

    /// Makes a batch durable. `aliases` come into being with a new room. Answers the new state and
    /// events, or `None` when there was nothing to commit.
    pub(super) async fn commit(&self, batch: Batch, aliases: Vec<Alias>) -> Result<Option<Committed>, Error> {
        if batch.events.is_empty() {
            return Ok(None);
        }
        let news = News {
            events: batch.events.iter().map(|new| new.event.clone()).collect(),
            pruned: batch.redactions.iter().map(|r| r.pruned.clone()).collect(),
        };
        let mut notifying = Vec::with_capacity(batch.events.len());
        for new in &batch.events {
            notifying.push(Arc::new(self.notifying(&batch.state, new, batch.now_ms).await?));
        }
        let state = Arc::new(batch.state);
        let committed = state.clone();
        let (events, redactions, new_room) = (batch.events, batch.redactions, batch.new_room);
        let recorded = notifying.clone();
        let written = self
            .inner
            .store
            .write::<(), Error, _>(move |tx| {
                Box::pin(async move {
                    persist(tx, state, events, redactions, aliases, new_room).await?;
                    for recorded in &recorded {
                        storage::push::record_notified(tx, &recorded.event, &recorded.notified).await?;
                    }
                    Ok(())
                })
            })
            .await;
        match written {
            Ok(()) => self.inner.push.counts.committed(&notifying),
            Err(_) => self.inner.push.counts.unknown(&notifying),
        }
        written.map(|()| Some((committed, news)))
    }

    /// Whom an event notifies, to be recorded with it.
    async fn notifying(&self, state: &RoomState, new: &NewEvent, now_ms: u64) -> Result<Recorded, Error> {
        let json = RawValue::from_string(new.row.json.clone()).map_err(|e| Error::Internal(e.to_string()))?;
        let thread = self.inner.push.thread_of(&json).await?;
        let notified = self.inner.push.evaluate(json, &new.event.sender, state).await?;
        let local = |user: &&str| {
            <&ruma::UserId>::try_from(*user).is_ok_and(|user| user.server_name() == self.inner.server_name)
        };
        let change = new.event.membership().and_then(|membership| match membership {
            Membership::Join => Some(MemberChange::Joined),
            Membership::Leave | Membership::Ban => Some(MemberChange::Gone),
            Membership::Invite | Membership::Knock => None,
        });
        let user = new.event.state_key.as_deref().filter(local);
        let event = NotifyingEvent {
            room_nid: state.room_nid,
            thread_id: thread.map(String::from).unwrap_or_default(),
            sender: new.row.sender.clone(),
            position: new.row.event_nid,
            ts: i64::try_from(now_ms).unwrap_or(i64::MAX),
            membership: user.map(str::to_owned).zip(change),
        };
        Ok(Recorded { event, notified })
    }

    /// Brings the caches up to what was committed, and announces it to readers.
    pub(super) async fn remember(&self, state: &RoomState, news: &News) {
        for event in &news.events {
            self.inner.events.put(event.clone());
            if event.relation().is_some() {
                self.inner.relations.added(&state.room_id, event.nid);
            }
            if let Some((device_id, txn_id)) = &event.transaction {
                self.inner.transactions.add(event, state.room_nid, device_id, txn_id);
            }
            if let (Some(membership), Some(user)) = (event.membership(), event.state_key.as_deref()) {
                self.inner.members.changed(user, state, event, membership);
                if let Ok(user) = <&ruma::UserId>::try_from(user) {
                    let joined = membership == Membership::Join;
                    self.inner
                        .notifier
                        .mark_membership(user, &state.room_id, joined, event.nid);
                }
            }
            self.inner
                .notifier
                .mark_room(&state.room_id, RoomStream::Events, event.nid);
        }
        for event in &news.pruned {
            self.inner.events.put(event.clone());
        }
        self.inner.recent.changed(state.room_nid, state.latest);
        if news.events.iter().any(|event| event.state_key.is_some()) || !news.pruned.is_empty() {
            self.inner.public_rooms.entries.lock().update(state);
        }
    }

    /// Tells the rest of the process what happened in a room.
    pub(super) fn announce(&self, state: &RoomState, news: &News) {
        for event in &news.events {
            if let (Some(membership), Some(user)) = (event.membership(), event.state_key.as_deref())
                && let Ok(user) = OwnedUserId::try_from(user)
            {
                // Nobody listening is no error.
                self.inner
                    .changes
                    .send(RoomChange::Membership {
                        room_id: state.room_id.clone(),
                        user_id: user,
                        membership,
                        event: event.clone(),
                    })
                    .ok();
            }
            self.inner
                .changes
                .send(RoomChange::Event {
                    room_id: state.room_id.clone(),
                    event: event.clone(),
                })
                .ok();
        }
    }
}

/// A room's state after a commit, and what the commit brought.
pub(super) type Committed = (Arc<RoomState>, News);

pub(super) struct News {
    pub(super) events: Vec<Arc<Event>>,
    pruned: Vec<Arc<Event>>,
}

/// An alias that is made together with its room.
pub(super) struct Alias {
    pub(super) alias: String,
    pub(super) creator: String,
}

/// A redaction names its target whichever way it came in: the right to redact is checked against that.
fn name_redacted(proposal: &mut Proposal) -> Result<(), Error> {
    if proposal.kind != TimelineEventType::RoomRedaction || proposal.redacts.is_some() {
        return Ok(());
    }
    if proposal.state_key.is_some() {
        return Err(Error::BadJson("A redaction is not a state event.".to_owned()));
    }
    let target = proposal.content.get("redacts").and_then(|target| target.as_str());
    let target =
        target.ok_or_else(|| Error::BadJson("A redaction names the event it redacts in `redacts`.".to_owned()))?;
    let target = ruma::EventId::parse(target)
        .map_err(|e| Error::InvalidParam(format!("{target:?} is not an event id: {e}.")))?;
    proposal.redacts = Some(target);
    Ok(())
}

/// PostgreSQL has no place for U+0000 in text, and one such event would take its whole batch with it.
fn check_text(proposal: &Proposal) -> Result<(), Error> {
    let transaction = proposal.transaction.as_ref().map(|t| t.txn_id.as_str());
    let relates_to = proposal.content.get("m.relates_to").and_then(|value| value.as_object());
    let relation = |field: &str| relates_to?.get(field)?.as_str();
    let kind = proposal.kind.to_string();
    let texts = [
        Some(kind.as_str()),
        proposal.state_key.as_deref(),
        transaction,
        relation("rel_type"),
        relation("event_id"),
    ];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(Error::InvalidParam(
            "Types, keys and ids cannot hold the character U+0000.".to_owned(),
        ));
    }
    Ok(())
}

fn prune(mut row: EventRow, by: &Event, state: &RoomState) -> Result<Redaction, Error> {
    let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("redacting {}: {e}", row.event_id));
    let object: CanonicalJsonObject = serde_json::from_str(&row.json).map_err(|e| internal(&e))?;
    let pruned = redact(object, &state.rules.redaction, None).map_err(|e| internal(&e))?;
    let json = serde_json::to_string(&CanonicalJsonValue::Object(pruned)).map_err(|e| internal(&e))?;
    row.json.clone_from(&json);
    row.redacted_by = Some(by.nid);
    let pruned = Arc::new(Event::from_row(row, &state.room_id)?);
    Ok(Redaction {
        by: by.nid,
        json,
        pruned,
    })
}

async fn persist(
    tx: &mut storage::Conn,
    state: Arc<RoomState>,
    events: Vec<NewEvent>,
    redactions: Vec<Redaction>,
    aliases: Vec<Alias>,
    new_room: bool,
) -> Result<(), Error> {
    let extremities: Vec<i64> = state.extremities.iter().map(|e| e.nid).collect();
    let extremities = storage::list(&extremities);
    if new_room {
        let room = RoomRow {
            room_nid: state.room_nid,
            room_id: state.room_id.to_string(),
            version: state.version.to_string(),
            extremities,
            state_group: state.group(),
            latest: state.latest,
            listed: false,
        };
        storage::rooms::insert_room(tx, &room).await?;
    } else {
        storage::rooms::advance_room(tx, state.room_nid, &extremities, state.group(), state.latest).await?;
    }
    for new in &events {
        storage::events::insert_event(tx, &new.row).await?;
        if let Some((group, folded)) = &new.group {
            storage::state::insert_state_group(tx, state.room_nid, *group, &[new.row.event_nid], folded).await?;
        }
        if let (Some(membership), Some(user)) = (new.event.membership(), new.event.state_key.as_deref()) {
            let (name, nid) = (membership.as_str(), new.row.event_nid);
            storage::rooms::set_membership(tx, state.room_nid, user, name, nid).await?;
        }
        if new.event.kind != TimelineEventType::RoomRedaction
            && let Some(relation) = new.event.relation()
        {
            let target = relation.event_id.as_str();
            storage::events::insert_relation(tx, target, new.row.event_nid, &relation.rel_type).await?;
        }
    }
    for redaction in &redactions {
        storage::events::redact_event(tx, redaction.pruned.nid, redaction.by, &redaction.json).await?;
    }
    for alias in &aliases {
        if !storage::rooms::add_alias(tx, &alias.alias, state.room_nid, &alias.creator).await? {
            return Err(Error::AliasTaken(alias.alias.clone()));
        }
    }
    Ok(())
}
