//! Making a batch durable, and telling everybody: the caches first, then the rest of the process.

use std::sync::Arc;

use ruma::{
    UserId,
    events::{StateEventType, TimelineEventType},
};
use serde_json::value::RawValue;
use storage::{
    push::{MemberChange, NotifyingEvent},
    rooms::RoomRow,
};

use super::{
    Error, Event, Membership, RoomChange, RoomMembership, RoomState, Rooms,
    state::Change,
    worker::{Batch, NewEvent, NewGroup, Redaction},
};
use crate::{push::Recorded, sync::RoomStream};

impl Rooms {
    /// Makes a batch durable. Answers the new state and what happened, or `None` when there was nothing to commit.
    pub(super) async fn commit(&self, batch: Batch) -> Result<Option<Committed>, Error> {
        if batch.events.is_empty() {
            return Ok(None);
        }
        let shown = batch.events.iter().filter(|new| new.shown);
        let news = News {
            events: shown
                .clone()
                .map(|new| (new.event.clone(), new.changes.clone()))
                .collect(),
            pruned: batch.redactions.iter().map(|r| r.pruned.clone()).collect(),
        };
        let notifying: Vec<Arc<Recorded>> = shown.filter_map(|new| new.recorded.clone()).collect();
        let state = Arc::new(batch.state);
        let committed = state.clone();
        let changes = Changes {
            state,
            new_room: batch.new_room,
            events: batch.events,
            groups: batch.groups,
            redactions: batch.redactions,
            aliases: batch.aliases,
        };
        let recorded = notifying.clone();
        let written = self
            .inner
            .store
            .write::<(), Error, _>(move |tx| {
                Box::pin(async move {
                    persist(tx, changes).await?;
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
        written?;
        // Until here they were of a state that might never have been.
        for snapshot in batch.snapshots.values() {
            self.inner.snapshots.put(snapshot);
        }
        for (groups, group) in batch.resolved {
            self.inner.snapshots.put_resolved(groups, group);
        }
        Ok(Some((committed, news)))
    }

    /// Decides whom the newest event of the batch notifies, if that is still to be done: by the members and the power
    /// levels that the room has right after it, whatever the rest of the batch makes of them.
    ///
    /// # Errors
    /// When the database fails: then the batch cannot be committed.
    pub(super) async fn record_newest(&self, batch: &mut Batch) -> Result<(), Error> {
        let Some(new) = batch.events.last() else { return Ok(()) };
        if !new.shown || new.recorded.is_some() {
            return Ok(());
        }
        let recorded = self.notifying(&batch.state, new, batch.now_ms).await?;
        if let Some(new) = batch.events.last_mut() {
            new.recorded = Some(Arc::new(recorded));
        }
        Ok(())
    }

    /// Whom an event notifies, to be recorded with it.
    async fn notifying(&self, state: &RoomState, new: &NewEvent, now_ms: u64) -> Result<Recorded, Error> {
        let json = RawValue::from_string(new.row.json.clone()).map_err(|e| Error::Internal(e.to_string()))?;
        let thread = self.inner.push.thread_of(&json).await?;
        let notified = self.inner.push.evaluate(json, &new.event.sender, state).await?;
        let local = memberships(&new.event, &new.changes)
            .filter(|(user, _, _)| user.server_name() == self.inner.server_name)
            .map(|(user, membership, _)| {
                let change = match membership {
                    Membership::Join => MemberChange::Joined,
                    // The invited and those who knock were members before, if state resolution says so.
                    Membership::Leave | Membership::Ban | Membership::Invite | Membership::Knock => MemberChange::Gone,
                };
                (user.to_string(), change)
            });
        let event = NotifyingEvent {
            room_nid: state.room_nid,
            thread_id: thread.map(String::from).unwrap_or_default(),
            sender: new.row.sender.clone(),
            position: new.row.event_nid,
            ts: i64::try_from(now_ms).unwrap_or(i64::MAX),
            memberships: local.collect(),
        };
        Ok(Recorded { event, notified })
    }

    /// Brings the caches up to what was committed, and announces it to readers.
    pub(super) async fn remember(&self, state: &RoomState, news: &News) {
        for (event, changes) in &news.events {
            self.inner.events.put(event.clone());
            if event.relation().is_some() {
                self.inner.relations.added(&state.room_id, event.nid);
            }
            if let Some((device_id, txn_id)) = &event.transaction {
                self.inner.transactions.add(event, state.room_nid, device_id, txn_id);
            }
            for (user, membership, holder) in memberships(event, changes) {
                let kept = RoomMembership {
                    room_nid: state.room_nid,
                    membership,
                    position: event.nid,
                    sender: holder.sender.clone(),
                    forgotten: false,
                };
                self.inner.members.changed(user, &state.room_id, kept);
                let joined = membership == Membership::Join;
                self.inner
                    .notifier
                    .mark_membership(user, &state.room_id, joined, event.nid);
            }
            self.inner
                .notifier
                .mark_room(&state.room_id, RoomStream::Events, event.nid);
        }
        for event in &news.pruned {
            self.inner.events.put(event.clone());
        }
        self.inner.recent.changed(state.room_nid, state.latest);
        if news.events.iter().any(|(_, changes)| !changes.is_empty()) || !news.pruned.is_empty() {
            self.inner.public_rooms.entries.lock().update(state);
        }
    }

    /// Tells the rest of the process what happened in a room.
    pub(super) fn announce(&self, state: &RoomState, news: &News) {
        for (event, changes) in &news.events {
            for (user, membership, holder) in memberships(event, changes) {
                // Nobody listening is no error.
                self.inner
                    .changes
                    .send(RoomChange::Membership {
                        room_id: state.room_id.clone(),
                        user_id: user.to_owned(),
                        membership,
                        event: holder.clone(),
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

/// Whose membership an event changed, what it became, and the event that says so; the changing event itself where a
/// membership went away.
fn memberships<'a>(
    event: &'a Arc<Event>,
    changes: &'a [Change],
) -> impl Iterator<Item = (&'a UserId, Membership, &'a Arc<Event>)> {
    changes
        .iter()
        .filter(|change| change.kind == StateEventType::RoomMember)
        .filter_map(move |change| {
            let user = <&UserId>::try_from(&*change.key).ok()?;
            let holder = change.event.as_ref();
            let membership = holder.and_then(|holder| holder.membership());
            Some((user, membership.unwrap_or(Membership::Leave), holder.unwrap_or(event)))
        })
}

/// A room's state after a commit, and what the commit brought.
pub(super) type Committed = (Arc<RoomState>, News);

/// What happened, in order.
pub(super) struct News {
    /// The events that are shown, and what each changed in the current state.
    events: Vec<(Arc<Event>, Vec<Change>)>,
    pruned: Vec<Arc<Event>>,
}

/// An alias that is made together with its room.
pub(super) struct Alias {
    pub(super) alias: String,
    pub(super) creator: String,
}

/// What is to be made durable.
struct Changes {
    state: Arc<RoomState>,
    new_room: bool,
    events: Vec<NewEvent>,
    groups: Vec<NewGroup>,
    redactions: Vec<Redaction>,
    aliases: Vec<Alias>,
}

async fn persist(tx: &mut storage::Conn, changes: Changes) -> Result<(), Error> {
    let state = &changes.state;
    let extremities: Vec<i64> = state.extremities.iter().map(|e| e.nid).collect();
    let extremities = storage::list(&extremities);
    if changes.new_room {
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
    for new in &changes.events {
        persist_event(tx, state, new).await?;
    }
    for new in &changes.groups {
        storage::state::insert_state_group(tx, state.room_nid, new.group, &new.entries, &new.folded).await?;
    }
    for redaction in &changes.redactions {
        storage::events::redact_event(tx, redaction.pruned.nid, redaction.by, &redaction.json).await?;
    }
    for alias in &changes.aliases {
        if !storage::rooms::add_alias(tx, &alias.alias, state.room_nid, &alias.creator).await? {
            return Err(Error::AliasTaken(alias.alias.clone()));
        }
    }
    Ok(())
}

async fn persist_event(tx: &mut storage::Conn, state: &RoomState, new: &NewEvent) -> Result<(), Error> {
    let nid = new.row.event_nid;
    storage::events::insert_event(tx, &new.row).await?;
    storage::state::insert_auth_events(tx, nid, &new.auth).await?;
    for reset in &new.resets {
        storage::state::insert_state_reset(tx, state.room_nid, reset).await?;
    }
    for (user, membership, holder) in memberships(&new.event, &new.changes) {
        let (user, name) = (user.as_str(), membership.as_str());
        storage::rooms::set_membership(tx, state.room_nid, user, name, holder.nid, nid).await?;
    }
    if let Some(target) = &new.waits_for {
        storage::events::insert_waiting_redaction(tx, target.as_str(), nid).await?;
    }
    if new.shown
        && new.event.kind != TimelineEventType::RoomRedaction
        && let Some(relation) = new.event.relation()
    {
        let target = relation.event_id.as_str();
        storage::events::insert_relation(tx, state.room_nid, target, nid, &relation.rel_type).await?;
    }
    Ok(())
}
