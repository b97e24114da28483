//! Another server as rooms see it: users elsewhere, whose events are built on any part of a room and signed with a key of
//! their own.

use std::{collections::BTreeMap, sync::Arc};

use homeserver::room::{Error, Event, Pdu, Received, Room};
use ruma::{
    CanonicalJsonObject, OwnedUserId, RoomVersionId,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    serde::Base64,
    signatures::{Ed25519KeyPair, PublicKeyMap, hash_and_sign_event, reference_hash},
    state_res::auth_types_for_event,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::harness::Server;

/// Type and state key to event id.
pub(crate) type State = BTreeMap<(String, String), String>;

/// A place in a room's graph: an event and the state after it, as its maker sees it.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) ids: Vec<String>,
    pub(crate) state: State,
    pub(crate) depth: i64,
}

/// A signed event on its way.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) id: String,
    pub(crate) json: CanonicalJsonObject,
    /// The place after it.
    pub(crate) point: Point,
}

/// A server named `remote.example`.
#[derive(Clone)]
pub(crate) struct Remote {
    pair: Arc<Ed25519KeyPair>,
    pub(crate) keys: PublicKeyMap,
    rules: RoomVersionRules,
    pub(crate) version: RoomVersionId,
    pub(crate) room_id: String,
}

/// What an event says.
pub(crate) struct Said<'a> {
    pub(crate) sender: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) content: Value,
    pub(crate) ts: u64,
}

impl Remote {
    /// The server, in a room of the server under test.
    pub(crate) fn new(version: RoomVersionId, room_id: &str) -> Self {
        let der = Ed25519KeyPair::generate();
        let pair = Ed25519KeyPair::from_der(&der, "r".to_owned()).expect("a fresh key");
        let mut keys = PublicKeyMap::new();
        keys.entry("remote.example".to_owned())
            .or_default()
            .insert("ed25519:r".to_owned(), Base64::new(pair.public_key().to_vec()));
        Self {
            pair: Arc::new(pair),
            keys,
            rules: version.rules().expect("a known version"),
            version,
            room_id: room_id.to_owned(),
        }
    }

    /// Where the room stands on the server under test.
    pub(crate) async fn here(&self, server: &Server) -> Point {
        let state = self.room(server).await.state();
        Point {
            ids: state.extremities().iter().map(|end| end.event_id.to_string()).collect(),
            state: state
                .map
                .iter()
                .map(|(kind, key, entry)| ((kind.to_string(), key.to_owned()), entry.event_id.to_string()))
                .collect(),
            depth: state.extremities().iter().map(|end| end.depth).max().unwrap_or(0),
        }
    }

    pub(crate) async fn room(&self, server: &Server) -> Arc<Room> {
        let room_id = self.room_id.as_str().try_into().expect("a room id");
        server.homeserver.rooms.get(room_id).await.expect("the room is there")
    }

    /// A signed event at `on`.
    pub(crate) fn make(&self, on: &Point, said: &Said<'_>) -> Made {
        let sender = OwnedUserId::try_from(said.sender).expect("a user id");
        let types = auth_types_for_event(
            &TimelineEventType::from(said.kind),
            &sender,
            said.key,
            &to_raw_value(&said.content).expect("JSON"),
            &self.rules.authorization,
        )
        .unwrap_or_default();
        let auth: Vec<&String> = types
            .iter()
            .filter_map(|(kind, key)| on.state.get(&(kind.to_string(), key.clone())))
            .collect();
        let mut event = json!({
            "room_id": self.room_id, "sender": said.sender, "type": said.kind, "content": said.content,
            "origin_server_ts": said.ts, "depth": on.depth + 1, "prev_events": on.ids, "auth_events": auth,
        });
        if let Some(key) = said.key {
            event["state_key"] = json!(key);
        }
        self.sign(on, event)
    }

    /// Signs any JSON as an event at `on`.
    pub(crate) fn sign(&self, on: &Point, event: Value) -> Made {
        let mut json: CanonicalJsonObject = serde_json::from_value(event).expect("canonical JSON");
        hash_and_sign_event("remote.example", &*self.pair, &mut json, &self.rules.redaction).expect("it can be signed");
        let id = format!("${}", reference_hash(&json, &self.rules).expect("it can be hashed"));
        let text = |field: &str| json.get(field).and_then(|value| value.as_str()).map(str::to_owned);
        let mut state = on.state.clone();
        if let (Some(kind), Some(key)) = (text("type"), text("state_key")) {
            state.insert((kind, key), id.clone());
        }
        let point = Point {
            ids: vec![id.clone()],
            state,
            depth: on.depth + 1,
        };
        Made { id, json, point }
    }

    /// Hands an event to the server under test, by the way federation will.
    pub(crate) async fn deliver(&self, server: &Server, made: &Made) -> Result<Received, Error> {
        let pdu = Pdu::verify(made.json.clone(), &self.version, &self.keys)?;
        assert_eq!(pdu.event_id().as_str(), made.id);
        server.homeserver.rooms.receive(&self.room(server).await, pdu).await
    }

    /// Makes an event where the room stands and hands it over; it has to be accepted.
    pub(crate) async fn add(&self, server: &Server, said: &Said<'_>) -> Made {
        let made = self.make(&self.here(server).await, said);
        let received = self.deliver(server, &made).await.expect("it is received");
        assert!(matches!(received, Received::Accepted(_)), "{}: {received:?}", said.kind);
        made
    }

    /// The event that holds a piece of the room's current state.
    pub(crate) async fn held(&self, server: &Server, kind: &str, key: &str) -> Option<Arc<Event>> {
        let state = self.room(server).await.state();
        let rooms = &server.homeserver.rooms;
        rooms
            .state_event_of(&state, &kind.into(), key)
            .await
            .expect("the database answers")
    }
}
