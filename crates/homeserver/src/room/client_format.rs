//! Events as clients get them: stored content plus what this server adds in `unsigned`.
//! Spec: client-server API, "Room event format".

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedDeviceId, OwnedUserId, events::TimelineEventType};
use serde::{Serialize, ser::SerializeMap as _};
use serde_json::value::{RawValue, to_raw_value};

use super::{Error, Event, Rooms, Visibility, build::delay_id_of};

/// Whom events are shown to.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device, which sees its own transaction ids.
    pub device_id: Option<OwnedDeviceId>,
}

/// Which fields an event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// With `room_id`: everywhere but in sync.
    WithRoomId,
    /// Without: the place in the answer says it.
    Sync,
}

#[derive(Serialize)]
struct ClientEvent<'a> {
    content: &'a RawValue,
    event_id: &'a str,
    origin_server_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a str>,
    sender: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a str,
    unsigned: Unsigned<'a>,
}

pub(super) struct Unsigned<'a> {
    age: u64,
    membership: Option<&'static str>,
    replaced: Option<&'a Event>,
    redacted_because: Option<Box<RawValue>>,
    /// Of the client, or of the delay that sent the event.
    transaction_id: Option<&'a str>,
    pub(super) relations: Option<&'a RawValue>,
}

impl Serialize for Unsigned<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("age", &self.age)?;
        if let Some(relations) = self.relations {
            map.serialize_entry("m.relations", relations)?;
        }
        if let Some(membership) = self.membership {
            map.serialize_entry("membership", membership)?;
        }
        if let Some(replaced) = self.replaced {
            map.serialize_entry("prev_content", &replaced.content)?;
            map.serialize_entry("prev_sender", &replaced.sender)?;
            map.serialize_entry("replaces_state", &replaced.event_id)?;
        }
        if let Some(because) = &self.redacted_because {
            map.serialize_entry("redacted_because", because)?;
        }
        if let Some(transaction_id) = self.transaction_id {
            // MSC4140: the sender recognises its delayed event by the id it was scheduled under.
            match delay_id_of(transaction_id) {
                Some(delay_id) => map.serialize_entry("org.matrix.msc4140.delay_id", delay_id)?,
                None => map.serialize_entry("transaction_id", transaction_id)?,
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Stripped<'a> {
    content: &'a RawValue,
    sender: &'a str,
    state_key: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
}

/// An event with nothing but what somebody outside the room may know.
/// Spec: client-server API, "Stripped state".
pub(super) fn stripped(event: &Event) -> Result<Box<RawValue>, Error> {
    to_raw_value(&Stripped {
        content: &event.content,
        sender: event.sender.as_str(),
        state_key: event.state_key.as_deref().unwrap_or_default(),
        kind: &event.kind.to_string(),
    })
    .map_err(|e| Error::Internal(e.to_string()))
}

impl Rooms {
    /// The events, which are of one room, as `viewer` gets them. `visibility` adds what the viewer was
    /// in the room at the time (`unsigned.membership`). Reads at most twice, however many events.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn client_events(
        &self,
        events: &[Arc<Event>],
        viewer: &Viewer,
        format: Format,
        visibility: Option<&Visibility>,
    ) -> Result<Vec<Box<RawValue>>, Error> {
        let Some(first) = events.first() else {
            return Ok(Vec::new());
        };
        let also: Vec<i64> = events
            .iter()
            .flat_map(|event| [event.replaces, event.redacted_by])
            .flatten()
            .collect();
        let also: HashMap<i64, Arc<Event>> = self
            .events(&first.room_id, &also)
            .await?
            .into_iter()
            .map(|event| (event.nid, event))
            .collect();
        // Children are shown to whom their own place in the timeline is visible.
        let bundles = match visibility {
            Some(visibility) => self.bundles(events, &viewer.user_id, visibility).await?,
            None => HashMap::new(),
        };
        let now = self.inner.clock.now_ms();
        let mut answer = Vec::with_capacity(events.len());
        for event in events {
            let because = event.redacted_by.and_then(|nid| also.get(&nid));
            let because = because.filter(|redaction| visibility.is_none_or(|v| v.allows(redaction)));
            let redacted_because = match because {
                Some(because) => Some(client_event(because, format, unsigned(because, now))?),
                None => None,
            };
            let unsigned = Unsigned {
                membership: visibility.map(|v| v.membership_at(event.nid).as_str()),
                replaced: event.replaces.and_then(|nid| also.get(&nid)).map(|event| &**event),
                redacted_because,
                transaction_id: own_transaction(event, viewer),
                relations: bundles.get(event.event_id.as_str()).map(|bundle| &**bundle),
                ..unsigned(event, now)
            };
            answer.push(client_event(event, format, unsigned)?);
        }
        Ok(answer)
    }
}

fn own_transaction<'a>(event: &'a Event, viewer: &Viewer) -> Option<&'a str> {
    let (device, transaction) = event.transaction.as_ref()?;
    let own = event.sender == viewer.user_id && viewer.device_id.as_deref().is_some_and(|d| d.as_str() == &**device);
    own.then_some(&**transaction)
}

pub(super) fn unsigned(event: &Event, now_ms: u64) -> Unsigned<'_> {
    Unsigned {
        age: now_ms.saturating_sub(u64::from(event.origin_server_ts.0)),
        membership: None,
        replaced: None,
        redacted_because: None,
        transaction_id: None,
        relations: None,
    }
}

pub(super) fn client_event(event: &Event, format: Format, unsigned: Unsigned<'_>) -> Result<Box<RawValue>, Error> {
    let is_redaction = event.kind == TimelineEventType::RoomRedaction && event.redacted_by.is_none();
    to_raw_value(&ClientEvent {
        content: &event.content,
        event_id: event.event_id.as_str(),
        origin_server_ts: event.origin_server_ts.0.into(),
        // Where it stands in the content, older clients still find it at the top.
        redacts: event.redacts.as_ref().filter(|_| is_redaction).map(|id| id.as_str()),
        room_id: (format == Format::WithRoomId).then_some(event.room_id.as_str()),
        sender: event.sender.as_str(),
        state_key: event.state_key.as_deref(),
        kind: &event.kind.to_string(),
        unsigned,
    })
    .map_err(|e| Error::Internal(e.to_string()))
}
