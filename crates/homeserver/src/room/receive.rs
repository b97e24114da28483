//! Events of other servers: where they stand among the room's events, what the pipeline says of them, and what the room
//! is after them. Also for our own events where the room has more forward extremities than one event can name.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{
    OwnedEventId,
    events::{StateEventType, TimelineEventType},
    state_res::auth_types_for_event,
};
use storage::{events::EventRow, state::StateReset};
use tracing::debug;

use super::{
    Error, Event, Pdu, RoomState, Rooms, StateMap,
    local::prune,
    pipeline::{self, Context, Verdict},
    state::{Change, Extremity, Snapshot},
    worker::{Batch, NewEvent},
};

/// The state groups that an event may bring: the state before it, after it, and the room's. They are named like positions.
pub(super) const GROUPS_PER_EVENT: usize = 3;

/// What became of an event of another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It is in the room, at this position.
    Accepted(i64),
    /// It is kept, but what the room has become since does not allow it: nobody is shown it, nothing is built on it.
    SoftFailed(String),
    /// It is kept as not valid where it stands.
    Rejected(String),
    /// It was here already.
    Known,
    /// It cannot be judged: these events have to be received before it.
    Missing {
        /// Of the events it comes after.
        prev_events: Vec<OwnedEventId>,
        /// Of the events that authorise it.
        auth_events: Vec<OwnedEventId>,
    },
}

/// An accepted event and where it stands.
pub(super) struct Placed {
    pub(super) event: Event,
    pub(super) row: EventRow,
    pub(super) after: Snapshot,
    /// The extremities it does not come after.
    pub(super) beside: Vec<Extremity>,
    pub(super) auth: Vec<i64>,
}

impl Rooms {
    /// Takes a verified event into the batch.
    pub(super) async fn take_in(&self, batch: &mut Batch, pdu: Pdu) -> Result<Received, Error> {
        if pdu.room_id != batch.state.room_id {
            return Err(Error::InvalidParam(format!("{} is of another room.", pdu.event_id)));
        }
        if !self
            .find_events(batch, std::slice::from_ref(&pdu.event_id))
            .await?
            .is_empty()
        {
            return Ok(Received::Known);
        }
        // The authorisation rules let every create event pass; a room has one.
        if pdu.prev_events.is_empty() || pdu.text("type") == Some("m.room.create") {
            return Err(Error::BadJson("The room begins with another event.".to_owned()));
        }
        let named: Vec<OwnedEventId> = pdu.prev_events.iter().chain(&pdu.auth_events).cloned().collect();
        let found = self.find_events(batch, &named).await?;
        let found: HashMap<&OwnedEventId, &Arc<Event>> = found.iter().map(|event| (&event.event_id, event)).collect();
        let missing = |ids: &[OwnedEventId]| -> Vec<OwnedEventId> {
            ids.iter().filter(|id| !found.contains_key(id)).cloned().collect()
        };
        let (prev_events, auth_events) = (missing(&pdu.prev_events), missing(&pdu.auth_events));
        if !prev_events.is_empty() || !auth_events.is_empty() {
            return Ok(Received::Missing {
                prev_events,
                auth_events,
            });
        }
        let of = |ids: &[OwnedEventId]| -> Vec<Arc<Event>> { ids.iter().map(|id| found[id].clone()).collect() };
        let (prev, auth) = (of(&pdu.prev_events), of(&pdu.auth_events));

        let position = batch.next;
        let before = prev.iter().map(|event| event.state_group).collect();
        let before = self.merged(batch, before).await?;
        let mut row = row_of(&pdu, batch, position)?;
        let mut event = Event::from_row(row.clone(), &batch.state.room_id)
            .map_err(|e| Error::BadJson(format!("The event is malformed: {e}.")))?;
        // What cannot be read has no auth events; the pipeline says so.
        let types = auth_types_for_event(
            &event.kind,
            &event.sender,
            event.state_key.as_deref(),
            &event.content,
            &batch.state.rules.authorization,
        )
        .unwrap_or_default();
        let state_before = self.authorising(batch, &before.map, &types).await?;
        let current = self.authorising(batch, &batch.state.map, &types).await?;
        let mut auth_events = auth.clone();
        auth_events.extend(implied_create(&batch.state));
        let verdict = pipeline::accept(
            &event,
            &pdu.json,
            &Context {
                room: &batch.state,
                auth_events: &auth_events,
                state_before: (before.group() != batch.state.group()).then_some(state_before.as_slice()),
                current: &current,
            },
        );
        let mut after = before;
        if !matches!(verdict, Verdict::Rejected(_)) && event.state_key.is_some() {
            add(batch, &mut after, &event);
        }
        event.state_group = after.group();
        row.state_group = after.group();
        batch.snapshots.insert(after.group(), after.clone());
        let auth = match event.state_key {
            // An event that names one twice is refused, and kept all the same.
            Some(_) => BTreeSet::from_iter(auth.iter().map(|event| event.nid))
                .into_iter()
                .collect(),
            None => Vec::new(),
        };
        let (why, rejected) = match verdict {
            Verdict::Accepted => {
                let waits_for = self
                    .redact_both_ways(batch, &pdu, &state_before, &mut event, &mut row)
                    .await?;
                let shown = !row.soft_failed;
                let named = |extremity: &Extremity| pdu.prev_events.contains(&extremity.event_id);
                let extremities = batch.state.extremities.iter();
                let beside = extremities.filter(|extremity| !named(extremity)).cloned().collect();
                let placed = Placed {
                    event,
                    row,
                    after,
                    beside,
                    auth,
                };
                self.place(batch, placed).await?;
                batch.next += batch.step;
                if let Some(new) = batch.events.last_mut() {
                    new.waits_for = waits_for;
                }
                return Ok(match shown {
                    true => Received::Accepted(position),
                    false => Received::SoftFailed("It redacts what it may not, or what is not here.".to_owned()),
                });
            }
            Verdict::SoftFailed(why) => (why, false),
            Verdict::Rejected(why) => (why, true),
            Verdict::Malformed(why) => return Err(Error::BadJson(why)),
            Verdict::TooLarge(why) => return Err(Error::TooLarge(why)),
        };
        debug!(%why, rejected, event_id = %pdu.event_id, "an event of another server is refused");
        (row.soft_failed, row.rejected) = (true, rejected);
        (event.soft_failed, event.rejected) = (true, rejected);
        batch.events.push(NewEvent {
            event: Arc::new(event),
            row,
            shown: false,
            auth,
            changes: Vec::new(),
            resets: Vec::new(),
            waits_for: None,
            recorded: None,
        });
        batch.next += batch.step;
        Ok(match rejected {
            true => Received::Rejected(why),
            false => Received::SoftFailed(why),
        })
    }

    /// Makes an accepted event a forward extremity, and what the states after all of these resolve to the room's state.
    /// The event is the last of the batch then; where it fails, the batch is as it was.
    pub(super) async fn place(&self, batch: &mut Batch, placed: Placed) -> Result<(), Error> {
        let Placed {
            mut event,
            mut row,
            after,
            beside,
            auth,
        } = placed;
        if let Some((kind, key)) = event.state_type() {
            row.replaces = batch.state.map.get(&kind, key).map(|entry| entry.nid);
            event.replaces = row.replaces;
        }
        let mut extremities = beside;
        extremities.push(Extremity::of(&event));
        // Resolution has to find it.
        batch.events.push(NewEvent {
            event: Arc::new(event),
            row,
            shown: true,
            auth,
            changes: Vec::new(),
            resets: Vec::new(),
            waits_for: None,
            recorded: None,
        });
        let settled = self.settle(batch, after, extremities).await;
        if settled.is_err() {
            batch.events.pop();
        }
        settled
    }

    /// What the last event of the batch makes of the room.
    async fn settle(&self, batch: &mut Batch, after: Snapshot, extremities: Vec<Extremity>) -> Result<(), Error> {
        let now = match extremities.len() {
            1 => after,
            _ => {
                let states = extremities.iter().map(|extremity| extremity.group).collect();
                self.merged(batch, states).await?
            }
        };
        let (changes, mut resets) = self.changes_to(batch, &now.map).await?;
        let Some(new) = batch.events.last_mut() else {
            return Err(Error::Internal("an event has left its batch".to_owned()));
        };
        let position = new.event.nid;
        if let Some((kind, key)) = new.event.state_type() {
            let holder = now.map.get(&kind, key).map(|entry| entry.nid);
            let told = changes.iter().any(|change| change.kind == kind && &*change.key == key);
            if holder != Some(position) && !told {
                // It is in the room and changes nothing: another event holds its place.
                resets.push(reset(position, &kind, key, holder));
            }
        }
        new.shown = !new.row.soft_failed || !resets.is_empty();
        new.row.soft_failed = !new.shown;
        new.row.room_group = (now.group() != new.row.state_group).then(|| now.group());
        let state = &mut batch.state;
        state.extremities = extremities;
        if new.shown {
            state.latest = position;
        }
        if !resets.is_empty() {
            state.reset_at = position;
        }
        if now.group() != state.group() {
            // Extremities of this batch may stand on it, and it may be nowhere else yet.
            batch.snapshots.insert(state.group(), state.snapshot());
            state.replace(now, &changes, position);
        }
        (new.changes, new.resets) = (changes, resets);
        Ok(())
    }

    /// How the current state becomes `now` with the last event of the batch, and what of that the event does not say.
    async fn changes_to(&self, batch: &Batch, now: &StateMap) -> Result<(Vec<Change>, Vec<StateReset>), Error> {
        let position = batch.events.last().map_or(0, |new| new.event.nid);
        let differences = batch.state.map.differences(now);
        let holders: Vec<i64> = differences
            .iter()
            .filter_map(|(_, _, entry)| Some(entry.as_ref()?.nid))
            .collect();
        let holders = self.known_events(batch, holders).await?;
        let mut changes = Vec::with_capacity(differences.len());
        let mut resets = Vec::new();
        for (kind, key, entry) in differences {
            let holder = entry.map(|entry| entry.nid);
            if holder != Some(position) {
                resets.push(reset(position, kind, key, holder));
            }
            changes.push(Change {
                kind: kind.clone(),
                key: key.into(),
                event: holder.and_then(|nid| holders.iter().find(|event| event.nid == nid).cloned()),
            });
        }
        Ok((changes, resets))
    }

    /// The events of `map` that may authorise an event, and the create event.
    pub(super) async fn authorising(
        &self,
        batch: &Batch,
        map: &StateMap,
        types: &[(StateEventType, String)],
    ) -> Result<Vec<Arc<Event>>, Error> {
        let mut events = Vec::with_capacity(types.len() + 1);
        let mut others = Vec::new();
        for (kind, key) in types {
            let Some(entry) = map.get(kind, key) else { continue };
            match batch.state.pinned(kind).filter(|pinned| pinned.nid == entry.nid) {
                Some(pinned) => events.push(pinned.clone()),
                None => others.push(entry.nid),
            }
        }
        events.extend(self.known_events(batch, others).await?);
        events.extend(implied_create(&batch.state));
        Ok(events)
    }

    /// Applies a redaction to the event it names, and to an event the redactions that came before it. A redaction that
    /// has nothing to redact, or may not, is not shown; answers the event it has to wait for.
    /// Spec: rooms/v3, "Handling redactions".
    async fn redact_both_ways(
        &self,
        batch: &mut Batch,
        pdu: &Pdu,
        state_before: &[Arc<Event>],
        event: &mut Event,
        row: &mut EventRow,
    ) -> Result<Option<OwnedEventId>, Error> {
        for waiting in self.inner.store.waiting_redactions(pdu.event_id.as_str()).await? {
            let Some(redaction) = self.known_events(batch, [waiting]).await?.into_iter().next() else {
                continue;
            };
            let then = self.snapshot(batch, redaction.state_group).await?;
            let levels = [(StateEventType::RoomPowerLevels, String::new())];
            let then = self.authorising(batch, &then.map, &levels).await?;
            if may_redact(&batch.state, &then, &redaction, event) {
                let pruned = prune(row.clone(), &redaction, &batch.state)?;
                (row.json, row.redacted_by) = (pruned.json, Some(redaction.nid));
                *event = Event::from_row(row.clone(), &batch.state.room_id)?;
                break;
            }
        }
        let Some(target) = &pdu.redacts else {
            // A redaction without a target is nothing to show either.
            row.soft_failed = event.kind == TimelineEventType::RoomRedaction && event.state_key.is_none();
            return Ok(None);
        };
        let in_batch = batch.events.iter().find(|new| new.event.event_id == *target);
        let target_row = match in_batch {
            Some(new) => Some(new.row.clone()),
            None => self.inner.store.event(target.as_str()).await?,
        };
        let Some(target_row) = target_row.filter(|row| row.room_nid == batch.state.room_nid) else {
            row.soft_failed = true;
            return Ok(Some(target.clone()));
        };
        let full = Event::from_row(target_row.clone(), &batch.state.room_id)?;
        if may_redact(&batch.state, state_before, event, &full) {
            let redaction = prune(target_row, event, &batch.state)?;
            batch.state.replace_pinned(&redaction.pruned);
            batch.redactions.push(redaction);
        } else {
            row.soft_failed = true;
        }
        Ok(None)
    }
}

/// For versions whose create event is named by nobody because the room is called after it: that event.
fn implied_create(state: &RoomState) -> Option<Arc<Event>> {
    let implied = state.rules.authorization.room_create_event_id_as_room_id;
    state.pinned(&StateEventType::RoomCreate).filter(|_| implied).cloned()
}

/// Spec: rooms/v3, "Handling redactions": with the room's redact level, or within one server.
fn may_redact(room: &RoomState, state: &[Arc<Event>], redaction: &Event, target: &Event) -> bool {
    let levels = state
        .iter()
        .find(|event| event.kind == TimelineEventType::RoomPowerLevels);
    redaction.sender.server_name() == target.sender.server_name()
        || room.may_redact(levels.map(|event| &**event), &redaction.sender)
}

/// Puts a state event into `state`, as a group of its own.
pub(super) fn add(batch: &mut Batch, state: &mut Snapshot, event: &Event) {
    if let Some((kind, state_key)) = event.state_type() {
        state.map.insert(kind, state_key, super::StateEntry::of(event));
    }
    batch.add_group(state, vec![event.nid]);
}

fn reset(position: i64, kind: &StateEventType, key: &str, event_nid: Option<i64>) -> StateReset {
    StateReset {
        position,
        kind: kind.to_string(),
        state_key: key.to_owned(),
        event_nid,
    }
}

fn row_of(pdu: &Pdu, batch: &Batch, position: i64) -> Result<EventRow, Error> {
    let text = |field: &str| pdu.text(field).map(str::to_owned);
    Ok(EventRow {
        event_nid: position,
        room_nid: batch.state.room_nid,
        event_id: pdu.event_id.to_string(),
        depth: pdu.depth,
        kind: text("type").unwrap_or_default(),
        sender: text("sender").unwrap_or_default(),
        state_key: text("state_key"),
        replaces: None,
        state_group: 0,
        soft_failed: false,
        redacted_by: None,
        device_id: None,
        txn_id: None,
        room_group: None,
        rejected: false,
        json: serde_json::to_string(&pdu.json).map_err(|e| Error::Internal(e.to_string()))?,
    })
}
