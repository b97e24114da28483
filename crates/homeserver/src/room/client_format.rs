//! Events as clients get them: stored content plus what this server adds in `unsigned`.
//! Spec: client-server API, "Room event format".

use std::{collections::HashMap, sync::Arc};

use ruma::{OwnedDeviceId, OwnedUserId, UserId, events::TimelineEventType};
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

struct Unsigned<'a> {
    age: u64,
    membership: Option<&'static str>,
    replaced: Option<&'a Event>,
    redacted_because: Option<Box<RawValue>>,
    /// Of the client, or of the delay that sent the event.
    transaction_id: Option<&'a str>,
    relations: Option<&'a RawValue>,
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

    /// What relates to the events, summed up for the viewer: threads, the newest edit, references.
    /// Spec: client-server API, "Aggregations of child events".
    async fn bundles(
        &self,
        events: &[Arc<Event>],
        viewer: &UserId,
        visibility: &Visibility,
    ) -> Result<HashMap<String, Box<RawValue>>, Error> {
        let targets: Vec<String> = events
            .iter()
            .filter(|event| event.state_key.is_none() && event.redacted_by.is_none())
            .filter(|event| self.inner.relations.may_have(&event.room_id, event.nid))
            .map(|event| event.event_id.to_string())
            .collect();
        if targets.is_empty() {
            return Ok(HashMap::new());
        }
        let room_nid = self.get(&events[0].room_id).await?.state().room_nid;
        let mut relations = self.inner.store.relations_to(room_nid, &targets).await?;
        relations.retain(|(_, nid, _, _)| visibility.allows_at(*nid));
        if relations.is_empty() {
            return Ok(HashMap::new());
        }
        let mut by_target: HashMap<String, Children> = HashMap::new();
        let senders: HashMap<&str, &UserId> = events.iter().map(|e| (e.event_id.as_str(), &*e.sender)).collect();
        for (target, nid, rel_type, sender) in relations {
            let of_author = senders
                .get(target.as_str())
                .is_some_and(|author| author.as_str() == sender);
            let children = by_target.entry(target).or_default();
            match rel_type.as_str() {
                "m.thread" => {
                    children.thread_count += 1;
                    children.thread_latest = Some(nid);
                    children.participated |= sender == viewer.as_str();
                }
                // Only the author of an event may edit it.
                "m.replace" if of_author => children.edit = Some(nid),
                "m.reference" => children.references.push(nid),
                _ => {}
            }
        }
        let room_id = &events[0].room_id;
        let nids: Vec<i64> = by_target.values().flat_map(Children::nids).collect();
        let loaded: HashMap<i64, Arc<Event>> = self
            .events(room_id, &nids)
            .await?
            .into_iter()
            .map(|event| (event.nid, event))
            .collect();
        let now = self.inner.clock.now_ms();
        let mut bundles = HashMap::with_capacity(by_target.len());
        for (target, children) in by_target {
            let mut bundle: serde_json::Map<String, serde_json::Value> = serde_json::Map::new();
            let full = |event: &Event| {
                let raw = client_event(event, Format::WithRoomId, unsigned(event, now))?;
                serde_json::to_value(raw).map_err(|e| Error::Internal(e.to_string()))
            };
            if let Some(latest) = children.thread_latest.and_then(|nid| loaded.get(&nid)) {
                bundle.insert(
                    "m.thread".to_owned(),
                    serde_json::json!({
                        "latest_event": full(latest)?,
                        "count": children.thread_count,
                        "current_user_participated": children.participated
                            || senders.get(target.as_str()).is_some_and(|author| *author == viewer),
                    }),
                );
            }
            if let Some(edit) = children.edit.and_then(|nid| loaded.get(&nid)) {
                bundle.insert("m.replace".to_owned(), full(edit)?);
            }
            let references: Vec<_> = children.references.iter().filter_map(|nid| loaded.get(nid)).collect();
            if !references.is_empty() {
                let chunk: Vec<_> = references
                    .iter()
                    .map(|event| serde_json::json!({ "event_id": event.event_id }))
                    .collect();
                bundle.insert("m.reference".to_owned(), serde_json::json!({ "chunk": chunk }));
            }
            if !bundle.is_empty() {
                bundles.insert(
                    target,
                    to_raw_value(&bundle).map_err(|e| Error::Internal(e.to_string()))?,
                );
            }
        }
        Ok(bundles)
    }
}

#[derive(Default)]
struct Children {
    thread_count: u64,
    thread_latest: Option<i64>,
    participated: bool,
    edit: Option<i64>,
    references: Vec<i64>,
}

impl Children {
    fn nids(&self) -> impl Iterator<Item = i64> {
        let single = [self.thread_latest, self.edit];
        single.into_iter().flatten().chain(self.references.iter().copied())
    }
}

fn own_transaction<'a>(event: &'a Event, viewer: &Viewer) -> Option<&'a str> {
    let (device, transaction) = event.transaction.as_ref()?;
    let own = event.sender == viewer.user_id && viewer.device_id.as_deref().is_some_and(|d| d.as_str() == &**device);
    own.then_some(&**transaction)
}

fn unsigned(event: &Event, now_ms: u64) -> Unsigned<'_> {
    Unsigned {
        age: now_ms.saturating_sub(u64::from(event.origin_server_ts.0)),
        membership: None,
        replaced: None,
        redacted_because: None,
        transaction_id: None,
        relations: None,
    }
}

fn client_event(event: &Event, format: Format, unsigned: Unsigned<'_>) -> Result<Box<RawValue>, Error> {
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
