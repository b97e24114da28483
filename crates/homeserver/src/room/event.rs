//! An event as the room code sees it: identity and content of a stored event, and where it stands
//! in this server's streams. It knows no HTTP and no SQL.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use storage::events::EventRow;

/// A stored event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its key: its position in the stream of everything.
    pub nid: i64,
    /// Its Matrix id.
    pub event_id: OwnedEventId,
    /// Its room.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub kind: TimelineEventType,
    /// Its state key, when it is a state event.
    pub state_key: Option<Box<str>>,
    /// When its sender's server says it was made.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// Its depth in the room's graph.
    pub depth: i64,
    /// Its content, pruned if it is redacted.
    pub content: Box<RawValue>,
    /// The events before it.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that authorise it.
    pub auth_events: Vec<OwnedEventId>,
    /// The event it redacts.
    pub redacts: Option<OwnedEventId>,
    /// Key of the state event it took the place of.
    pub replaces: Option<i64>,
    /// Key of the state after it.
    pub state_group: i64,
    /// Key of the redaction that pruned it.
    pub redacted_by: Option<i64>,
    /// Device and transaction id of a local sender.
    pub transaction: Option<(Box<str>, Box<str>)>,
    /// Whether it is kept without being shown: the room's current state refused it.
    pub soft_failed: bool,
    /// Whether it is refused where it stands.
    pub rejected: bool,
    /// `m.room.create` of a version whose room ids are made from it: it has no room id of its own.
    names_its_room: bool,
}

/// The parts of an event's JSON that are read.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: TimelineEventType,
    #[serde(borrow)]
    content: &'a RawValue,
    sender: OwnedUserId,
    room_id: Option<OwnedRoomId>,
    state_key: Option<Box<str>>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    // Means something in redactions alone: elsewhere it may be anything.
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Redacts {
    redacts: Option<OwnedEventId>,
}

impl Event {
    /// Reads a stored event of the room `room_id`.
    ///
    /// # Errors
    /// When what is stored is not an event.
    pub fn from_row(mut row: EventRow, room_id: &RoomId) -> Result<Self, storage::Error> {
        let json = std::mem::take(&mut row.json);
        let wire: Wire<'_> = serde_json::from_str(&json)
            .map_err(|e| storage::Error::corrupt("events", format!("{}: {e}", row.event_id)))?;
        let event_id =
            OwnedEventId::try_from(row.event_id.as_str()).map_err(|e| storage::Error::corrupt("events", e))?;
        Ok(Self::new(wire, row, event_id, room_id))
    }

    fn new(wire: Wire<'_>, row: EventRow, event_id: OwnedEventId, room_id: &RoomId) -> Self {
        let redacts = (wire.kind == TimelineEventType::RoomRedaction)
            .then(|| {
                let top = wire
                    .redacts
                    .and_then(|redacts| serde_json::from_str(redacts.get()).ok());
                // Room version 11 moved the field into the content.
                top.or_else(|| serde_json::from_str::<Redacts>(wire.content.get()).ok()?.redacts)
            })
            .flatten()
            .filter(|target: &OwnedEventId| is_storable(target.as_str()));
        Self {
            nid: row.event_nid,
            event_id,
            names_its_room: wire.kind == TimelineEventType::RoomCreate && wire.room_id.is_none(),
            room_id: room_id.to_owned(),
            sender: wire.sender,
            kind: wire.kind,
            state_key: wire.state_key,
            origin_server_ts: wire.origin_server_ts,
            depth: row.depth,
            content: wire.content.to_owned(),
            prev_events: wire.prev_events,
            auth_events: wire.auth_events,
            redacts,
            replaces: row.replaces,
            state_group: row.state_group,
            redacted_by: row.redacted_by,
            transaction: row.device_id.zip(row.txn_id).map(|(d, t)| (d.into(), t.into())),
            soft_failed: row.soft_failed,
            rejected: row.rejected,
        }
    }

    /// The type as state events have it, when this is one.
    pub fn state_type(&self) -> Option<(StateEventType, &str)> {
        let key = self.state_key.as_deref()?;
        Some((StateEventType::from(self.kind.to_string()), key))
    }

    /// One top-level field of the content, when it is there and has the type `T`.
    pub fn content_field<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        let content: std::collections::HashMap<std::borrow::Cow<'_, str>, &RawValue> =
            serde_json::from_str(self.content.get()).ok()?;
        serde_json::from_str(content.get(name)?.get()).ok()
    }

    /// For `m.room.member`: what it makes of the user.
    pub fn membership(&self) -> Option<super::Membership> {
        if self.kind != TimelineEventType::RoomMember {
            return None;
        }
        let name: String = self.content_field("membership")?;
        Some(super::Membership::parse(&name))
    }

    /// What it relates to, and how: `m.relates_to`. Names that cannot be kept say nothing.
    pub fn relation(&self) -> Option<Relation> {
        self.content_field("m.relates_to")
            .filter(|relation: &Relation| is_storable(relation.event_id.as_str()) && is_storable(&relation.rel_type))
    }
}

/// The longest id, type or state key, in bytes. Spec: appendices, "Identifier Grammar"; client-server API, "Size limits".
pub(super) const MAX_NAME_BYTES: usize = 255;

/// Whether a name that a stranger chose can be kept and looked up: PostgreSQL has no place for U+0000 in text, and none in
/// an index for text of any length. One that cannot would take its whole batch with it.
pub(crate) fn is_storable(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES && !name.contains('\0')
}

/// `m.relates_to` of an event, as far as servers read it.
#[derive(Debug, Clone, Deserialize)]
pub struct Relation {
    /// The event it relates to.
    pub event_id: OwnedEventId,
    /// How: `m.thread`, `m.replace`, `m.annotation`, `m.reference`, …
    pub rel_type: String,
}

/// The `redacts` of an event's JSON: at the top, or in the content since version 11.
pub(crate) fn redacts_in_content(rules: &RoomVersionRules) -> bool {
    rules.redaction.content_field_redacts
}

impl ruma::state_res::Event for Event {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        (!self.names_its_room).then_some(&*self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}

/// The largest depth an event may have: the largest integer of canonical JSON.
pub(crate) const MAX_DEPTH: i64 = (1 << 53) - 1;
