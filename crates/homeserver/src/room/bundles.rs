//! What relates to an event, summed up for one viewer and sent with the event.
//! Spec: client-server API, "Aggregations of child events".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedUserId, UserId};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{
    Error, Event, Format, Rooms, Visibility,
    client_format::{client_event, unsigned},
};

/// Edits that are looked at for one that is valid, the newest first.
const EDITS_TRIED: usize = 5;

/// What is sent in `unsigned.m.relations`, by the id of the event it belongs to.
pub(super) type Bundles = HashMap<String, Box<RawValue>>;

/// The events that relate to one event.
#[derive(Default)]
struct Children {
    thread_count: u64,
    thread_latest: Option<i64>,
    participated: bool,
    edits: Vec<i64>,
    references: Vec<i64>,
}

impl Children {
    fn needed(&self) -> impl Iterator<Item = i64> {
        let edits = self.edits.iter().rev().take(EDITS_TRIED);
        let events = self.thread_latest.iter().chain(edits).chain(&self.references);
        events.copied()
    }
}

/// For whom is summed up.
struct Audience<'a> {
    viewer: &'a UserId,
    visibility: &'a Visibility,
    ignored: Option<Arc<HashSet<OwnedUserId>>>,
}

impl Audience<'_> {
    fn hears(&self, sender: &str, nid: i64) -> bool {
        // Children are shown to whom their own place in the timeline is visible.
        self.visibility.allows_at(nid)
            && !self
                .ignored
                .as_ref()
                .is_some_and(|ignored| <&UserId>::try_from(sender).is_ok_and(|sender| ignored.contains(sender)))
    }
}

impl Rooms {
    /// The bundles of the events, which are of one room.
    pub(super) async fn bundles(
        &self,
        events: &[Arc<Event>],
        viewer: &UserId,
        visibility: &Visibility,
    ) -> Result<Bundles, Error> {
        let audience = Audience {
            viewer,
            visibility,
            ignored: self.inner.push.ignored.of(viewer),
        };
        let (children, loaded) = self.children(events, &audience).await?;
        if children.is_empty() {
            return Ok(Bundles::new());
        }
        // The newest reply of a thread comes with its own children; those have none that would be sent.
        let newest: Vec<Arc<Event>> = children
            .values()
            .filter_map(|children| loaded.get(&children.thread_latest?).cloned())
            .collect();
        let (of_newest, loaded_of_newest) = self.children(&newest, &audience).await?;
        let nested = self.summed_up(&newest, of_newest, &loaded_of_newest, &audience, &Bundles::new())?;
        self.summed_up(events, children, &loaded, &audience, &nested)
    }

    /// What relates to the events, and those of the related events that are shown.
    async fn children(
        &self,
        events: &[Arc<Event>],
        audience: &Audience<'_>,
    ) -> Result<(HashMap<String, Children>, HashMap<i64, Arc<Event>>), Error> {
        let mut by_target: HashMap<String, Children> = HashMap::new();
        let parents: HashMap<&str, &Arc<Event>> = events
            .iter()
            .filter(|event| event.state_key.is_none() && event.redacted_by.is_none())
            .filter(|event| self.inner.relations.may_have(&event.room_id, event.nid))
            .map(|event| (event.event_id.as_str(), event))
            .collect();
        let Some(first) = parents.values().next() else {
            return Ok((by_target, HashMap::new()));
        };
        let room_nid = self.get(&first.room_id).await?.state().room_nid;
        let targets: Vec<String> = parents.keys().map(|id| (*id).to_owned()).collect();
        for relation in self.inner.store.aggregated_relations(room_nid, &targets).await? {
            let Some(parent) = parents.get(relation.target.as_str()) else {
                continue;
            };
            if !audience.hears(&relation.sender, relation.event_nid) {
                continue;
            }
            let children = by_target.entry(relation.target).or_default();
            match relation.rel_type.as_str() {
                "m.thread" => {
                    children.thread_count += 1;
                    children.thread_latest = Some(relation.event_nid);
                    children.participated |= relation.sender == audience.viewer.as_str();
                }
                // Spec: "Validity of replacement events".
                "m.replace" => {
                    if parent.sender == relation.sender && parent.kind.to_string() == relation.kind {
                        children.edits.push(relation.event_nid);
                    }
                }
                _ => children.references.push(relation.event_nid),
            }
        }
        let nids: Vec<i64> = by_target.values().flat_map(Children::needed).collect();
        let loaded = self.events(&first.room_id, &nids).await?;
        Ok((by_target, loaded.into_iter().map(|event| (event.nid, event)).collect()))
    }

    /// The children as they are sent. `nested` are the bundles of the newest replies.
    fn summed_up(
        &self,
        events: &[Arc<Event>],
        children: HashMap<String, Children>,
        loaded: &HashMap<i64, Arc<Event>>,
        audience: &Audience<'_>,
        nested: &Bundles,
    ) -> Result<Bundles, Error> {
        let internal = |e: serde_json::Error| Error::Internal(e.to_string());
        let now = self.inner.clock.now_ms();
        let parents: HashMap<&str, &Arc<Event>> = events.iter().map(|e| (e.event_id.as_str(), e)).collect();
        let whole = |event: &Event| {
            let mut unsigned = unsigned(event, now);
            unsigned.relations = nested.get(event.event_id.as_str()).map(|bundle| &**bundle);
            client_event(event, Format::WithRoomId, unsigned)
        };
        let mut bundles = Bundles::with_capacity(children.len());
        for (target, children) in children {
            let Some(parent) = parents.get(target.as_str()) else {
                continue;
            };
            let mut bundle: HashMap<&str, Box<RawValue>> = HashMap::new();
            if let Some(latest) = children.thread_latest.and_then(|nid| loaded.get(&nid)) {
                let thread = HashMap::from([
                    ("latest_event", whole(latest)?),
                    ("count", to_raw_value(&children.thread_count).map_err(internal)?),
                    (
                        "current_user_participated",
                        to_raw_value(&(children.participated || parent.sender == audience.viewer)).map_err(internal)?,
                    ),
                ]);
                bundle.insert("m.thread", to_raw_value(&thread).map_err(internal)?);
            }
            let is_edit = || {
                parent
                    .relation()
                    .is_some_and(|relation| relation.rel_type == "m.replace")
            };
            let edits = children.edits.iter().rev().filter_map(|nid| loaded.get(nid));
            if let Some(edit) = edits.into_iter().find(|edit| is_replacement(edit))
                && !is_edit()
            {
                bundle.insert("m.replace", whole(edit)?);
            }
            let references: Vec<Value> = children
                .references
                .iter()
                .filter_map(|nid| loaded.get(nid))
                .map(|event| json!({ "event_id": event.event_id }))
                .collect();
            if !references.is_empty() {
                let references = json!({ "chunk": references });
                bundle.insert("m.reference", to_raw_value(&references).map_err(internal)?);
            }
            if !bundle.is_empty() {
                bundles.insert(target, to_raw_value(&bundle).map_err(internal)?);
            }
        }
        Ok(bundles)
    }
}

/// Whether an edit says what the event becomes. Encrypted ones say it where the server cannot look.
fn is_replacement(edit: &Event) -> bool {
    edit.kind.to_string() == "m.room.encrypted"
        || edit
            .content_field::<serde_json::Map<String, Value>>("m.new_content")
            .is_some()
}
