//! The vectors that `ruma-state-res` publishes with its source, taken through storage and the pipeline on both engines.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

use ruma::{CanonicalJsonObject, OwnedRoomId, RoomVersionId};
use serde::Deserialize;
use serde_json::{Value, json};
use storage::{Store, events::EventRow, state::StateGroup};
use testkit::{clock::ManualClock, database::TestDatabaseUrl};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Clock, Config, Homeserver,
    room::{Pdu, Received, RoomState, local::extend},
};

/// The unpacked source of the crate, as the package manager keeps it.
fn vectors() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cargo"));
    let sources = std::fs::read_dir(home.join("registry/src")).expect("crates are unpacked there");
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
    let lock = std::fs::read_to_string(lock).expect("the lock file");
    let version = lock
        .split("name = \"ruma-state-res\"\nversion = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("the crate is locked");
    sources
        .filter_map(|source| {
            Some(
                source
                    .ok()?
                    .path()
                    .join(format!("ruma-state-res-{version}/tests/it/resolve")),
            )
        })
        .find(|path| path.is_dir())
        .expect("the crate is published with its tests")
}

fn read(path: &str) -> Value {
    let text = std::fs::read_to_string(vectors().join("fixtures").join(path)).expect("a vector");
    serde_json::from_str(&text).expect("JSON")
}

/// Type and state key to event id.
type Plain = BTreeMap<(String, String), String>;

fn expected(name: &str) -> Plain {
    #[derive(Deserialize)]
    struct Piece {
        #[serde(rename = "type")]
        kind: String,
        state_key: String,
        event_id: String,
    }
    let path = vectors().join(format!("snapshots/{name}@resolved_state.snap"));
    let text = std::fs::read_to_string(path).expect("a snapshot");
    let body = text.splitn(3, "---\n").nth(2).expect("a body");
    let pieces: Vec<Piece> = serde_json::from_str(body).expect("JSON");
    pieces
        .into_iter()
        .map(|piece| ((piece.kind, piece.state_key), piece.event_id))
        .collect()
}

fn plain(map: &StateMap) -> Plain {
    map.iter()
        .map(|(kind, key, entry)| ((kind.to_string(), key.to_owned()), entry.event_id.to_string()))
        .collect()
}

async fn start(db: &TestDatabaseUrl) -> Homeserver {
    let database = storage::Config {
        url: Some(db.url.clone()),
        ..storage::Config::default()
    };
    let store = Store::open(&database, &db.dir).await.unwrap();
    let name = "example.com".try_into().unwrap();
    let config = Config::new(name, db.dir.clone(), "http://example.com".to_owned());
    let clock = Clock::new(ManualClock::at(1_000).reader());
    Homeserver::start(config, store, clock, CancellationToken::new())
        .await
        .unwrap()
}

async fn stop(hs: Homeserver) {
    hs.shutdown.cancel();
    hs.tasks.close();
    hs.tasks.wait().await;
    hs.store.close().await;
}

/// A list of events as the crate's tests write them, made to look like events: they say no depth.
fn pdus(paths: &[&str]) -> Vec<Pdu> {
    let events = paths.iter().flat_map(|path| read(path).as_array().unwrap().clone());
    events
        .enumerate()
        .map(|(n, mut event)| {
            event["depth"] = json!(n);
            let ids = |field: &str| serde_json::from_value(event[field].clone()).unwrap();
            let room_id = event["room_id"].as_str().unwrap_or("!00-m-room-create");
            Pdu {
                event_id: event["event_id"].as_str().unwrap().try_into().unwrap(),
                room_id: room_id.try_into().unwrap(),
                prev_events: ids("prev_events"),
                auth_events: ids("auth_events"),
                depth: i64::try_from(n).unwrap(),
                redacts: None,
                json: serde_json::from_value::<CanonicalJsonObject>(event.clone()).unwrap(),
            }
        })
        .collect()
}

fn row(pdu: &Pdu, nid: i64, room_nid: i64) -> EventRow {
    let text = |field: &str| pdu.text(field).map(str::to_owned);
    EventRow {
        event_nid: nid,
        room_nid,
        event_id: pdu.event_id.to_string(),
        depth: pdu.depth,
        kind: text("type").unwrap(),
        sender: text("sender").unwrap(),
        state_key: text("state_key"),
        replaces: None,
        state_group: nid,
        soft_failed: false,
        redacted_by: None,
        device_id: None,
        txn_id: None,
        room_group: None,
        rejected: false,
        json: serde_json::to_string(&pdu.json).unwrap(),
    }
}

/// A room that has its create event and nothing more.
async fn room_of(hs: &Homeserver, create: &Pdu) -> OwnedRoomId {
    let version = create.json["content"].as_object().unwrap()["room_version"]
        .as_str()
        .unwrap();
    let version = RoomVersionId::try_from(version).unwrap();
    let reservation = hs.store.reserve(1).await.unwrap();
    let nid = reservation.first();
    let state = RoomState::before_creation(create.room_id.clone(), nid, version).unwrap();
    let row = row(create, nid, nid);
    let event = Event::from_row(row.clone(), &create.room_id).unwrap();
    let mut batch = Batch::new(state, nid, 0, true);
    let new = extend(&mut batch, event, row, Vec::new());
    batch.events.push(new);
    assert!(hs.rooms.commit(batch).await.unwrap().is_some());
    create.room_id.clone()
}

async fn batch(hs: &Homeserver, room_id: &OwnedRoomId) -> Batch {
    let state = hs.rooms.get(room_id).await.unwrap().state();
    let next = hs.store.reserve(3).await.unwrap().first();
    Batch::new((*state).clone(), next, 0, false)
}

/// Receives the events and resolves the states after all that nothing comes after.
async fn received(hs: &Homeserver, files: &[&str]) -> Plain {
    let events = pdus(files);
    let room_id = room_of(hs, &events[0]).await;
    let room = hs.rooms.get(&room_id).await.unwrap();
    let mut waiting: Vec<Pdu> = events[1..].to_vec();
    while !waiting.is_empty() {
        let count = waiting.len();
        let mut later = Vec::new();
        for pdu in waiting {
            match hs.rooms.receive(&room, pdu.clone()).await.unwrap() {
                Received::Missing { .. } => later.push(pdu),
                Received::Rejected(why) => panic!("{} is rejected: {why}", pdu.event_id),
                _ => {}
            }
        }
        waiting = later;
        assert!(waiting.len() < count, "events wait for what never comes");
    }
    let followed: HashSet<&OwnedEventId> = events.iter().flat_map(|pdu| &pdu.prev_events).collect();
    let mut groups = Vec::new();
    for pdu in events.iter().filter(|pdu| !followed.contains(&pdu.event_id)) {
        let row = hs.store.event(pdu.event_id.as_str()).await.unwrap().unwrap();
        groups.push(row.state_group);
    }
    let mut batch = batch(hs, &room_id).await;
    let resolved = hs.rooms.merged(&mut batch, groups).await.unwrap();
    plain(&resolved.map)
}

/// Resolves states that are given as lists of events.
async fn resolved(hs: &Homeserver, states: [&str; 2], events: &str) -> Plain {
    let events = pdus(&[events]);
    let room_id = room_of(hs, &events[0]).await;
    let room_nid = hs.rooms.get(&room_id).await.unwrap().state().room_nid;
    let first = hs.store.reserve(events.len() + 2).await.unwrap().first();
    let rows: Vec<EventRow> = (first..)
        .zip(&events[1..])
        .map(|(nid, pdu)| row(pdu, nid, room_nid))
        .collect();
    let mut nids: BTreeMap<String, i64> = rows.iter().map(|row| (row.event_id.clone(), row.event_nid)).collect();
    nids.insert(events[0].event_id.to_string(), room_nid);
    let auth: Vec<Vec<i64>> = events[1..]
        .iter()
        .map(|pdu| pdu.auth_events.iter().map(|id| nids[id.as_str()]).collect())
        .collect();
    let entries = states.map(|state| -> Vec<i64> {
        let ids: Vec<String> = serde_json::from_value(read(state)).unwrap();
        ids.iter().map(|id| nids[id]).collect()
    });
    let groups = [0, 1].map(|n| first + i64::try_from(rows.len()).unwrap() + n);
    hs.store
        .write::<(), storage::Error, _>(move |tx| {
            Box::pin(async move {
                for (row, auth) in rows.iter().zip(&auth) {
                    storage::events::insert_event(tx, row).await?;
                    storage::state::insert_auth_events(tx, row.event_nid, auth).await?;
                }
                for (state_group, entries) in groups.into_iter().zip(&entries) {
                    let group = StateGroup {
                        state_group,
                        generation: 0,
                        parent: None,
                    };
                    storage::state::insert_state_group(tx, room_nid, group, entries, &[]).await?;
                }
                Ok(())
            })
        })
        .await
        .unwrap();
    let mut batch = batch(hs, &room_id).await;
    let resolved = hs.rooms.merged(&mut batch, groups.to_vec()).await.unwrap();
    plain(&resolved.map)
}

#[tokio::test]
async fn forks_resolve_as_published() {
    const PUBLIC: &str = "bootstrap-public-chat.json";
    const PRIVATE: &str = "bootstrap-private-chat.json";
    let cases: [(&str, &[&str]); 9] = [
        ("minimal_private_chat", &[PRIVATE]),
        ("minimal_public_chat", &[PUBLIC]),
        (
            "origin_server_ts_tiebreak",
            &[PRIVATE, "origin-server-ts-tiebreak.json"],
        ),
        (
            "ban_vs_power_levels",
            &[PUBLIC, "ban-vs-power-levels-alice.json", "ban-vs-power-levels-bob.json"],
        ),
        (
            "topic_vs_power_levels",
            &[
                PUBLIC,
                "topic-vs-power-levels-alice.json",
                "topic-vs-power-levels-bob.json",
            ],
        ),
        (
            "power_levels_admin_vs_mod",
            &[
                PUBLIC,
                "power-levels-admin-vs-mod-alice.json",
                "power-levels-admin-vs-mod-bob.json",
            ],
        ),
        (
            "topic_vs_ban",
            &[
                PUBLIC,
                "topic-vs-ban-common.json",
                "topic-vs-ban-alice.json",
                "topic-vs-ban-bob.json",
            ],
        ),
        (
            "join_rules_vs_join",
            &[
                PUBLIC,
                "join-rules-vs-join-common.json",
                "join-rules-vs-join-alice.json",
                "join-rules-vs-join-ella.json",
            ],
        ),
        (
            "concurrent_joins",
            &[PUBLIC, "concurrent-joins-charlie.json", "concurrent-joins-ella.json"],
        ),
    ];
    for (name, files) in cases {
        testkit::database::each(|db| async move {
            let hs = start(&db).await;
            assert_eq!(received(&hs, files).await, expected(name), "{name}");
            stop(hs).await;
        })
        .await;
    }
}

/// MSC4297: where version 2.1 of the algorithm differs from 2.0.
#[tokio::test]
async fn states_resolve_as_published() {
    for (problem, other, name) in [("A", "bob", "charlie"), ("B", "eve", "zara")] {
        for (version, algorithm) in [(11, "v2_0"), (12, "v2_1")] {
            testkit::database::each(|db| async move {
                let hs = start(&db).await;
                let state = |who: &str| format!("MSC4297-problem-{problem}/state-{who}.json");
                let events = format!("MSC4297-problem-{problem}/pdus-v{version}.json");
                let found = resolved(&hs, [&state(other), &state(name)], &events).await;
                let expected = expected(&format!(
                    "msc4297_problem_{}_state_res_{algorithm}",
                    problem.to_lowercase()
                ));
                assert_eq!(found, expected, "problem {problem}, version {version}");
                stop(hs).await;
            })
            .await;
        }
    }
}
