//! Which thread an event belongs to.

use ruma::OwnedEventId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Push;
use crate::room::is_storable;

/// How an event stands to threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ThreadRelation {
    /// It is in the thread of this root.
    InThread(OwnedEventId),
    /// It relates to this event in another way and is where that one is.
    RelatedTo(OwnedEventId),
    /// It is in the main timeline.
    None,
}

/// Reads the thread relation of an event (client or federation format).
pub(crate) fn thread_relation(event: &RawValue) -> ThreadRelation {
    #[derive(Deserialize)]
    struct Event {
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Option<RelatesTo>,
    }
    #[derive(Deserialize)]
    struct RelatesTo {
        rel_type: String,
        event_id: OwnedEventId,
    }
    let relation = serde_json::from_str::<Event>(event.get())
        .ok()
        .and_then(|event| event.content.relates_to)
        .filter(|relation| is_storable(relation.event_id.as_str()));
    match relation {
        Some(RelatesTo { rel_type, event_id }) if rel_type == "m.thread" => ThreadRelation::InThread(event_id),
        Some(RelatesTo { event_id, .. }) => ThreadRelation::RelatedTo(event_id),
        None => ThreadRelation::None,
    }
}

/// Links that are followed to find the thread of an event (spec: client-server API §Threaded read receipts).
const MAX_THREAD_HOPS: usize = 3;

impl Push {
    /// The root of the thread an event belongs to; `None` for the main timeline.
    pub(crate) async fn thread_of(&self, event: &RawValue) -> Result<Option<OwnedEventId>, storage::Error> {
        let mut relation = thread_relation(event);
        for _ in 0..MAX_THREAD_HOPS {
            let target = match relation {
                ThreadRelation::InThread(root) => return Ok(Some(root)),
                ThreadRelation::None => return Ok(None),
                ThreadRelation::RelatedTo(target) => target,
            };
            let Some(row) = self.store.event(target.as_str()).await? else {
                return Ok(None);
            };
            let Ok(json) = RawValue::from_string(row.json) else {
                return Ok(None);
            };
            relation = thread_relation(&json);
        }
        Ok(match relation {
            ThreadRelation::InThread(root) => Some(root),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use ruma::owned_event_id;
    use serde_json::json;

    use super::*;

    #[test]
    fn relations_are_read_and_other_shapes_are_none() {
        let relation = |content: serde_json::Value| {
            thread_relation(&RawValue::from_string(json!({"content": content}).to_string()).unwrap())
        };
        let to = |rel_type: &str| json!({"m.relates_to": {"rel_type": rel_type, "event_id": "$e"}});
        assert_eq!(
            relation(to("m.thread")),
            ThreadRelation::InThread(owned_event_id!("$e"))
        );
        assert_eq!(
            relation(to("m.annotation")),
            ThreadRelation::RelatedTo(owned_event_id!("$e"))
        );
        for content in [
            json!({}),
            json!({"m.relates_to": {}}),
            json!({"m.relates_to": 1}),
            json!({"m.relates_to": {"rel_type": "m.thread", "event_id": "$e\0"}}),
            json!({"m.relates_to": {"rel_type": "m.thread", "event_id": format!("${}", "e".repeat(255))}}),
            json!(1),
        ] {
            assert_eq!(relation(content), ThreadRelation::None);
        }
    }
}
