//! Making our own events: what a local user proposes becomes a complete, hashed and signed event at
//! the end of the room's graph. It decides nothing about permission; that is `pipeline`.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, ServerName,
    UserId,
    events::{StateEventType, TimelineEventType},
    signatures::{hash_and_sign_event, reference_hash},
    state_res::auth_types_for_event,
};
use serde_json::value::to_raw_value;

use super::{Error, Extremity, RoomState, event::MAX_DEPTH, event::redacts_in_content};
use crate::Keys;

/// The most predecessors an event may name.
/// Spec: rooms/v1, "Event format".
const MAX_PREV_EVENTS: usize = 20;

/// The largest event. Spec: client-server API, "Size limits".
pub(super) const MAX_EVENT_BYTES: usize = 65_536;

/// What a user of this server wants to put into a room.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Who.
    pub sender: OwnedUserId,
    /// The event's type.
    pub kind: TimelineEventType,
    /// Its state key, for state.
    pub state_key: Option<String>,
    /// Its content.
    pub content: CanonicalJsonObject,
    /// The event it redacts.
    pub redacts: Option<OwnedEventId>,
    /// The device and transaction id that make a repetition harmless.
    pub transaction: Option<Transaction>,
    /// When it was made; the time of building when not said.
    pub timestamp: Option<MilliSecondsSinceUnixEpoch>,
    /// For a join on another member's authority: that this server checked the room's allow rules.
    pub(super) allowed_by_rule: bool,
}

/// A client's own name for a request it may repeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// The device that sends.
    pub device_id: String,
    /// Its name for the request.
    pub txn_id: String,
}

impl Transaction {
    /// The transaction under which a delayed event is sent (MSC4140).
    pub(crate) fn delayed(device_id: String, delay_id: &str) -> Self {
        Self {
            device_id,
            txn_id: format!("{DELAYED}{delay_id}"),
        }
    }
}

/// The `delay_id` that a transaction of [`Transaction::delayed`] was made of.
pub(super) fn delay_id_of(txn_id: &str) -> Option<&str> {
    txn_id.strip_prefix(DELAYED)
}

const DELAYED: &str = "longhouse-delayed-";

impl Proposal {
    /// A message event.
    pub fn message(sender: &UserId, kind: impl Into<TimelineEventType>, content: CanonicalJsonObject) -> Self {
        Self {
            sender: sender.to_owned(),
            kind: kind.into(),
            state_key: None,
            content,
            redacts: None,
            transaction: None,
            timestamp: None,
            allowed_by_rule: false,
        }
    }

    /// A state event.
    pub fn state(
        sender: &UserId,
        kind: impl Into<TimelineEventType>,
        state_key: impl Into<String>,
        content: CanonicalJsonObject,
    ) -> Self {
        Self {
            state_key: Some(state_key.into()),
            ..Self::message(sender, kind, content)
        }
    }

    /// The pieces of state that authorise it.
    pub(super) fn auth_types(&self, state: &RoomState) -> Result<Vec<(StateEventType, String)>, Error> {
        let content = to_raw_value(&self.content).map_err(|e| Error::Internal(e.to_string()))?;
        auth_types_for_event(
            &self.kind,
            &self.sender,
            self.state_key.as_deref(),
            &content,
            &state.rules.authorization,
        )
        .map_err(Error::BadJson)
    }
}

/// A finished event and its id.
pub(super) struct Built {
    pub(super) event_id: OwnedEventId,
    pub(super) json: CanonicalJsonObject,
    pub(super) depth: i64,
}

/// The forward extremities that a new event comes after: all of them, or of too many the newest.
pub(super) fn predecessors(state: &RoomState) -> Vec<Extremity> {
    let mut prev = state.extremities.clone();
    prev.sort_by_key(|extremity| std::cmp::Reverse((extremity.depth, extremity.nid)));
    prev.truncate(MAX_PREV_EVENTS);
    prev
}

/// Where in the room's graph an event is made, and when.
pub(super) struct Standing<'a> {
    /// What it comes after.
    pub(super) prev: &'a [Extremity],
    /// What authorises it.
    pub(super) auth_events: Vec<OwnedEventId>,
    /// The time, unless the proposal says another.
    pub(super) now: MilliSecondsSinceUnixEpoch,
}

/// Completes `proposal` in the room `state`.
pub(super) fn build(
    proposal: &Proposal,
    state: &RoomState,
    standing: Standing<'_>,
    server_name: &ServerName,
    keys: &Keys,
) -> Result<Built, Error> {
    let Standing { prev, auth_events, now } = standing;
    let is_create = proposal.kind == TimelineEventType::RoomCreate;
    let depth = prev
        .iter()
        .map(|e| e.depth)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
        .min(MAX_DEPTH);
    let ids = |ids: Vec<OwnedEventId>| {
        CanonicalJsonValue::Array(
            ids.into_iter()
                .map(|id| CanonicalJsonValue::String(id.into()))
                .collect(),
        )
    };
    let timestamp = proposal.timestamp.unwrap_or(now);
    let mut json: CanonicalJsonObject = BTreeMap::new();
    let mut put = |key: &str, value: CanonicalJsonValue| {
        json.insert(key.to_owned(), value);
    };
    let mut content = proposal.content.clone();
    if let Some(redacts) = &proposal.redacts {
        let redacts = CanonicalJsonValue::String(redacts.to_string());
        if redacts_in_content(&state.rules) {
            content.insert("redacts".to_owned(), redacts);
        } else {
            put("redacts", redacts);
        }
    }
    put("auth_events", ids(auth_events));
    put("content", CanonicalJsonValue::Object(content));
    put("depth", CanonicalJsonValue::Integer(Int::new_saturating(depth)));
    put(
        "origin_server_ts",
        CanonicalJsonValue::Integer(Int::new_saturating(
            i64::try_from(u64::from(timestamp.0)).unwrap_or(MAX_DEPTH),
        )),
    );
    put("prev_events", ids(prev.iter().map(|e| e.event_id.clone()).collect()));
    if !is_create || state.rules.event_format.require_room_create_room_id {
        put("room_id", CanonicalJsonValue::String(state.room_id.to_string()));
    }
    put("sender", CanonicalJsonValue::String(proposal.sender.to_string()));
    if let Some(state_key) = &proposal.state_key {
        put("state_key", CanonicalJsonValue::String(state_key.clone()));
    }
    put("type", CanonicalJsonValue::String(proposal.kind.to_string()));
    hash_and_sign_event(server_name.as_str(), keys.pair(), &mut json, &state.rules.redaction).map_err(too_large)?;
    let hash = reference_hash(&json, &state.rules).map_err(too_large)?;
    let event_id =
        OwnedEventId::try_from(format!("${hash}")).map_err(|e| Error::Internal(format!("a made event id: {e}")))?;
    Ok(Built { event_id, json, depth })
}

fn too_large(e: ruma::signatures::JsonError) -> Error {
    match e {
        ruma::signatures::JsonError::PduTooLarge => {
            Error::TooLarge(format!("The event is larger than {MAX_EVENT_BYTES} bytes."))
        }
        other => Error::BadJson(format!("The event cannot be signed: {other}.")),
    }
}
