//! What users of this server propose: built on top of everything the room has, checked like any event, and refused with a
//! reason instead of being kept.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId,
    canonical_json::redact,
    events::{StateEventType, TimelineEventType},
    state_res::events::RoomPowerLevelsIntField,
};
use storage::events::EventRow;
use tracing::debug;

use super::{
    Accepted, Error, Event, Proposal, RoomState, Rooms, build,
    membership::check_own,
    pipeline::{self, Context, Verdict},
    receive::{Placed, add},
    state::{Change, Extremity, Snapshot},
    worker::{Batch, NewEvent, Redaction},
};

impl Rooms {
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
        let prev = build::predecessors(&batch.state);
        let beside: Vec<Extremity> = match prev.len() == batch.state.extremities.len() {
            true => Vec::new(),
            false => {
                let named = |extremity: &Extremity| prev.iter().any(|named| named.nid == extremity.nid);
                let extremities = batch.state.extremities.iter();
                extremities.filter(|extremity| !named(extremity)).cloned().collect()
            }
        };
        let nid = batch.next;
        let before: Option<Snapshot> = match beside.is_empty() {
            true => None,
            false => {
                let states = prev.iter().map(|extremity| extremity.group).collect();
                Some(self.merged(batch, states).await?)
            }
        };
        let types = proposal.auth_types(&batch.state)?;
        // The current state's events that authorise it, and with version 12 the create event, which
        // authorises everything without being named.
        let current = self.authorising(batch, &batch.state.map, &types).await?;
        let state_before = match &before {
            Some(before) => Some(self.authorising(batch, &before.map, &types).await?),
            None => None,
        };
        let authorising = state_before.as_ref().unwrap_or(&current);
        let implied = batch.state.rules.authorization.room_create_event_id_as_room_id;
        let named: Vec<_> = authorising
            .iter()
            .filter(|event| !(implied && event.kind == TimelineEventType::RoomCreate))
            .collect();
        let now = ruma::MilliSecondsSinceUnixEpoch(ruma::UInt::new_saturating(batch.now_ms));
        let standing = build::Standing {
            prev: &prev,
            auth_events: named.iter().map(|event| event.event_id.clone()).collect(),
            now,
        };
        let built = build::build(
            &proposal,
            &batch.state,
            standing,
            &self.inner.server_name,
            &self.inner.keys,
        )?;
        let auth: Vec<i64> = match proposal.state_key {
            Some(_) => named.iter().map(|event| event.nid).collect(),
            None => Vec::new(),
        };
        let replaces = proposal.state_key.as_ref().and_then(|key| {
            let kind = StateEventType::from(proposal.kind.to_string());
            batch.state.map.get(&kind, key).map(|entry| entry.nid)
        });
        let (device_id, txn_id) = match proposal.transaction.clone() {
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
            state_key: proposal.state_key.clone(),
            replaces,
            state_group: before.as_ref().map_or(batch.state.group(), Snapshot::group),
            soft_failed: false,
            redacted_by: None,
            device_id,
            txn_id,
            room_group: None,
            rejected: false,
            json: serde_json::to_string(&built.json).map_err(|e| Error::Internal(e.to_string()))?,
        };
        let event = Event::from_row(row.clone(), &batch.state.room_id)
            .map_err(|e| Error::BadJson(format!("The content is not valid for its type: {e}.")))?;
        let verdict = pipeline::accept(
            &event,
            &built.json,
            &Context {
                room: &batch.state,
                auth_events: authorising,
                state_before: state_before.as_deref(),
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
        self.check_canonical_alias(batch, &proposal).await?;
        let redaction = pruned.map(|row| prune(row, &event, &batch.state)).transpose()?;
        match before {
            None => {
                let new = extend(batch, event, row, auth);
                batch.events.push(new);
            }
            Some(mut after) => {
                let (mut event, mut row) = (event, row);
                if event.state_key.is_some() {
                    add(batch, &mut after, &event);
                }
                (event.state_group, row.state_group) = (after.group(), after.group());
                batch.snapshots.insert(after.group(), after.clone());
                let placed = Placed {
                    event,
                    row,
                    after,
                    beside,
                    auth,
                };
                self.place(batch, placed).await?;
            }
        }
        batch.next += batch.step;
        if let Some(redaction) = redaction {
            batch.state.replace_pinned(&redaction.pruned);
            batch.redactions.push(redaction);
        }
        Ok(Accepted {
            event_id: built.event_id,
            position: Some(nid),
        })
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
        let Some(row) = row.filter(|row| row.room_nid == batch.state.room_nid && !row.soft_failed) else {
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
}

/// Puts an event on top of all that the room has: the common case, in which nothing is to be resolved.
pub(super) fn extend(batch: &mut Batch, mut event: Event, mut row: EventRow, auth: Vec<i64>) -> NewEvent {
    let mut changes = Vec::new();
    let event = match event.state_type().map(|(kind, key)| (kind, Box::from(key))) {
        Some((kind, key)) => {
            let mut chain = Snapshot {
                chain: batch.state.chain.clone(),
                ..Snapshot::default()
            };
            batch.add_group(&mut chain, vec![event.nid]);
            (event.state_group, row.state_group) = (chain.group(), chain.group());
            let event = Arc::new(event);
            batch.state.apply(&event, Some(chain.chain));
            changes.push(Change {
                kind,
                key,
                event: Some(event.clone()),
            });
            event
        }
        None => {
            let event = Arc::new(event);
            batch.state.apply(&event, None);
            event
        }
    };
    NewEvent {
        event,
        row,
        shown: true,
        auth,
        changes,
        resets: Vec::new(),
        waits_for: None,
        recorded: None,
    }
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
        proposal.redacts.as_ref().map(|target| target.as_str()),
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

/// The pruned form of an event.
pub(super) fn prune(mut row: EventRow, by: &Event, state: &RoomState) -> Result<Redaction, Error> {
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
