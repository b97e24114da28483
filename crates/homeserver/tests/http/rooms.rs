//! Rooms over HTTP: making them, coming and going, sending, reading back.

use homeserver::accounts::RegistrationMode;
use http::Method;
use serde_json::{Value, json};
use testkit::database::TestDatabaseUrl;

use crate::harness::{Answer, Server};

const V3: &str = "/_matrix/client/v3";

async fn open(db: &TestDatabaseUrl) -> Server {
    Server::start_with(db, |config| {
        config.registration.mode = RegistrationMode::Open;
        config.rate_limits.enabled = false;
    })
    .await
}

impl Server {
    async fn ask(&self, path: &str, token: &str, body: Value) -> Answer {
        self.json(Method::POST, &format!("{V3}{path}"), Some(token), &body)
            .await
    }

    async fn put_v3(&self, path: &str, token: &str, body: Value) -> Answer {
        self.json(Method::PUT, &format!("{V3}{path}"), Some(token), &body).await
    }

    async fn read_v3(&self, path: &str, token: &str) -> Answer {
        self.get(&format!("{V3}{path}"), Some(token)).await
    }

    async fn room(&self, token: &str, body: Value) -> String {
        let answer = self.ask("/createRoom", token, body).await.ok();
        answer["room_id"].as_str().expect("a room id").to_owned()
    }

    async fn say(&self, room: &str, token: &str, txn: &str, text: &str) -> String {
        let body = json!({ "msgtype": "m.text", "body": text });
        let path = format!("/rooms/{room}/send/m.room.message/{txn}");
        let answer = self.put_v3(&path, token, body).await.ok();
        answer["event_id"].as_str().expect("an event id").to_owned()
    }

    async fn bodies(&self, room: &str, token: &str, query: &str) -> Vec<String> {
        let answer = self
            .read_v3(&format!("/rooms/{room}/messages?{query}"), token)
            .await
            .ok();
        let chunk = answer["chunk"].as_array().expect("a chunk");
        chunk
            .iter()
            .filter_map(|event| event["content"]["body"].as_str().map(str::to_owned))
            .collect()
    }
}

#[tokio::test]
async fn every_version_makes_rooms_that_keep_their_rules() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        for version in ["10", "11", "12"] {
            let room = server
                .room(
                    &alice,
                    json!({ "room_version": version, "name": "N", "topic": "T", "preset": "public_chat",
                            "room_alias_name": format!("v{version}") }),
                )
                .await;
            let state = server.read_v3(&format!("/rooms/{room}/state"), &alice).await.ok();
            let state = state.as_array().unwrap();
            let of = |kind: &str| &state.iter().find(|e| e["type"] == kind).expect(kind)["content"];
            let create = state.iter().find(|e| e["type"] == "m.room.create").unwrap();
            assert_eq!(create["content"]["room_version"], version);
            assert_eq!(create["content"].get("creator").is_some(), version == "10");
            if version == "12" {
                // The room's id is its create event's.
                assert_eq!(room[1..], create["event_id"].as_str().unwrap()[1..]);
                assert_eq!(of("m.room.power_levels")["users"], json!({}));
            } else {
                assert!(room.ends_with(":example.org"));
                assert_eq!(of("m.room.power_levels")["users"]["@alice:example.org"], 100);
            }
            assert_eq!(of("m.room.power_levels")["events"]["org.matrix.msc3401.call.member"], 0);
            assert_eq!(of("m.room.join_rules")["join_rule"], "public");
            assert_eq!(of("m.room.name")["name"], "N");
            assert_eq!(
                of("m.room.canonical_alias")["alias"],
                format!("#v{version}:example.org")
            );
            // The creator has the power that the version gives.
            let event = server
                .put_v3(
                    &format!("/rooms/{room}/state/m.room.tombstone"),
                    &alice,
                    json!({ "body": "x", "replacement_room": "!a:b" }),
                )
                .await;
            event.ok();
        }
        server
            .ask("/createRoom", &alice, json!({ "room_version": "99" }))
            .await
            .is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
        server
            .ask("/createRoom", &alice, json!({ "room_alias_name": "v10" }))
            .await
            .is_error(400, "M_ROOM_IN_USE");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn members_come_and_go() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let carol = server.register("carol").await;
        let room = server.room(&alice, json!({ "preset": "private_chat" })).await;
        let path = |action: &str| format!("/rooms/{room}/{action}");
        server
            .ask(&path("join"), &bob, json!({}))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .ask(&path("invite"), &bob, json!({ "user_id": "@carol:example.org" }))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .ask(&path("invite"), &alice, json!({ "user_id": "@bob:example.org" }))
            .await
            .ok();
        server.ask(&path("join"), &bob, json!({})).await.ok();
        // Joining again changes nothing.
        server.ask(&format!("/join/{room}"), &bob, json!({})).await.ok();
        assert_eq!(
            server.read_v3("/joined_rooms", &bob).await.ok()["joined_rooms"],
            json!([room])
        );
        let joined = server.read_v3(&path("joined_members"), &bob).await.ok();
        assert_eq!(joined["joined"].as_object().unwrap().len(), 2);
        // Declining an invitation.
        server
            .ask(&path("invite"), &alice, json!({ "user_id": "@carol:example.org" }))
            .await
            .ok();
        server.ask(&path("leave"), &carol, json!({})).await.ok();
        server
            .ask(&path("join"), &carol, json!({}))
            .await
            .is_error(403, "M_FORBIDDEN");
        // Kicks need power; bans keep out; unbanning lets back in.
        let at_alice = json!({ "user_id": "@alice:example.org" });
        server
            .ask(&path("kick"), &bob, at_alice.clone())
            .await
            .is_error(403, "M_FORBIDDEN");
        let at_bob = json!({ "user_id": "@bob:example.org", "reason": "because" });
        server.ask(&path("ban"), &alice, at_bob.clone()).await.ok();
        server
            .ask(&path("join"), &bob, json!({}))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .ask(&path("invite"), &alice, at_bob.clone())
            .await
            .is_error(403, "M_FORBIDDEN");
        server.ask(&path("unban"), &alice, at_bob.clone()).await.ok();
        server
            .ask(&path("unban"), &alice, at_bob.clone())
            .await
            .is_error(403, "M_BAD_STATE");
        server.ask(&path("invite"), &alice, at_bob).await.ok();
        server.ask(&path("join"), &bob, json!({})).await.ok();
        // Forgetting needs leaving.
        server
            .ask(&path("forget"), &bob, json!({}))
            .await
            .is_error(400, "M_UNKNOWN");
        server.ask(&path("leave"), &bob, json!({})).await.ok();
        server.read_v3(&path("messages?dir=b"), &bob).await.ok();
        server.ask(&path("forget"), &bob, json!({})).await.ok();
        server
            .read_v3(&path("messages?dir=b"), &bob)
            .await
            .is_error(403, "M_FORBIDDEN");
        let members = server.read_v3(&path("members?membership=leave"), &alice).await.ok();
        assert_eq!(members["chunk"].as_array().unwrap().len(), 2);
        server
            .ask("/join/!nowhere:example.org", &bob, json!({}))
            .await
            .is_error(404, "M_NOT_FOUND");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_repeated_transaction_is_one_event() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let room = server.room(&alice, json!({})).await;
        let other = server.room(&alice, json!({})).await;
        let first = server.say(&room, &alice, "t1", "one").await;
        assert_eq!(server.say(&room, &alice, "t1", "one").await, first);
        assert_ne!(server.say(&room, &alice, "t2", "one").await, first);
        assert_ne!(server.say(&other, &alice, "t1", "one").await, first);
        let both = tokio::join!(
            server.say(&room, &alice, "t3", "same"),
            server.say(&room, &alice, "t3", "same")
        );
        assert_eq!(both.0, both.1);
        let event = server
            .read_v3(&format!("/rooms/{room}/event/{first}"), &alice)
            .await
            .ok();
        assert_eq!(event["unsigned"]["transaction_id"], "t1");
        assert_eq!(event["content"]["body"], "one");
        // State that says what is said already is the same event.
        let path = format!("/rooms/{room}/state/m.room.name");
        let named = server.put_v3(&path, &alice, json!({ "name": "A" })).await.ok();
        assert_eq!(server.put_v3(&path, &alice, json!({ "name": "A" })).await.ok(), named);
        let changed = server.put_v3(&path, &alice, json!({ "name": "B" })).await.ok();
        let event = server
            .read_v3(
                &format!("/rooms/{room}/event/{}", changed["event_id"].as_str().unwrap()),
                &alice,
            )
            .await
            .ok();
        assert_eq!(event["unsigned"]["prev_content"]["name"], "A");
        assert_eq!(event["unsigned"]["replaces_state"], named["event_id"]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn history_is_read_in_pages_and_only_by_those_who_may() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let room = server.room(&alice, json!({ "preset": "public_chat" })).await;
        for n in 0..25 {
            server.say(&room, &alice, &format!("t{n}"), &format!("m{n}")).await;
        }
        let mut seen = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("/rooms/{room}/messages?dir=b&limit=7{from}");
            let answer = server.read_v3(&path, &alice).await.ok();
            for event in answer["chunk"].as_array().unwrap() {
                seen.extend(event["content"]["body"].as_str().map(str::to_owned));
            }
            let Some(end) = answer["end"].as_str() else { break };
            from = format!("&from={end}");
        }
        let expected: Vec<_> = (0..25).rev().map(|n| format!("m{n}")).collect();
        assert_eq!(seen, expected);
        let forward = server.bodies(&room, &alice, "dir=f&limit=100").await;
        assert_eq!(forward, expected.into_iter().rev().collect::<Vec<_>>());
        let filter = "filter=%7B%22types%22%3A%5B%22m.room.name%22%5D%7D";
        assert!(
            server
                .bodies(&room, &alice, &format!("dir=b&{filter}"))
                .await
                .is_empty()
        );
        server
            .read_v3(&format!("/rooms/{room}/messages?dir=b"), &bob)
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .read_v3(&format!("/rooms/{room}/messages?dir=b&from=garbage"), &alice)
            .await
            .is_error(400, "M_INVALID_PARAM");
        // From here on, only what happens while one is in the room.
        let visibility = format!("/rooms/{room}/state/m.room.history_visibility");
        server
            .put_v3(&visibility, &alice, json!({ "history_visibility": "joined" }))
            .await
            .ok();
        let hidden = server.say(&room, &alice, "h", "hidden").await;
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        let middle = server.say(&room, &alice, "v", "visible").await;
        let read = server.bodies(&room, &bob, "dir=b&limit=5").await;
        assert_eq!(read, ["visible", "m24", "m23"]);
        server
            .read_v3(&format!("/rooms/{room}/event/{hidden}"), &bob)
            .await
            .is_error(404, "M_NOT_FOUND");
        // What is said after one left stays unseen.
        server.ask(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
        server.say(&room, &alice, "l", "later").await;
        assert_eq!(server.bodies(&room, &bob, "dir=b&limit=1").await, Vec::<String>::new());
        let name = format!("/rooms/{room}/state/m.room.name");
        server.put_v3(&name, &alice, json!({ "name": "after" })).await.ok();
        server.read_v3(&name, &bob).await.is_error(404, "M_NOT_FOUND");
        let context = server
            .read_v3(&format!("/rooms/{room}/context/{middle}?limit=4"), &alice)
            .await
            .ok();
        assert_eq!(context["event"]["content"]["body"], "visible");
        assert_eq!(context["events_before"].as_array().unwrap().len(), 2);
        assert_eq!(context["events_after"].as_array().unwrap().len(), 2);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn redaction_removes_what_was_said() {
    testkit::database::each(|db| async move {
        for version in ["10", "11", "12"] {
            let server = open(&db).await;
            let (alice, bob) = if version == "10" {
                (server.register("alice").await, server.register("bob").await)
            } else {
                let names = [format!("alice{version}"), format!("bob{version}")];
                (server.register(&names[0]).await, server.register(&names[1]).await)
            };
            let room = server
                .room(&alice, json!({ "preset": "public_chat", "room_version": version }))
                .await;
            server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
            let secret = server.say(&room, &alice, "t1", "secret").await;
            let event = format!("/rooms/{room}/event/{secret}");
            server
                .put_v3(&format!("/rooms/{room}/redact/{secret}/r0"), &bob, json!({}))
                .await
                .is_error(403, "M_FORBIDDEN");
            server.read_v3(&event, &bob).await.ok();
            let redaction = server
                .put_v3(
                    &format!("/rooms/{room}/redact/{secret}/r1"),
                    &alice,
                    json!({ "reason": "oops" }),
                )
                .await
                .ok();
            let redacted = server.read_v3(&event, &bob).await.ok();
            assert_eq!(redacted["content"], json!({}), "{version}");
            let because = &redacted["unsigned"]["redacted_because"];
            assert_eq!(because["event_id"], redaction["event_id"], "{version}");
            assert_eq!(because["redacts"], secret, "{version}");
            assert_eq!(because["content"]["reason"], "oops");
            let messages = server.read_v3(&format!("/rooms/{room}/messages?dir=b"), &bob).await;
            assert!(!String::from_utf8_lossy(&messages.bytes).contains("secret"));
            server.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn hostile_events_are_refused_and_nothing_is_lost() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let room = server.room(&alice, json!({})).await;
        let path = |txn: &str| format!("{V3}/rooms/{room}/send/m.room.message/{txn}");
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let deep = [b"{\"a\":".to_vec(), deep, b"}".to_vec()].concat();
        let cases: [(Vec<u8>, u16, &str); 6] = [
            (b"{".to_vec(), 400, "M_NOT_JSON"),
            (b"[]".to_vec(), 400, "M_BAD_JSON"),
            (b"{\"a\":\xff}".to_vec(), 400, "M_NOT_JSON"),
            (b"{\"a\":1.5}".to_vec(), 400, "M_BAD_JSON"),
            (deep, 400, "M_NOT_JSON"),
            (
                serde_json::to_vec(&json!({ "body": "x".repeat(70_000) })).unwrap(),
                413,
                "M_TOO_LARGE",
            ),
        ];
        for (n, (body, status, errcode)) in cases.into_iter().enumerate() {
            let answer = server
                .raw(Method::PUT, &path(&format!("bad{n}")), Some(&alice), body)
                .await;
            answer.is_error(status, errcode);
        }
        let long = "x".repeat(300);
        server
            .put_v3(&format!("/rooms/{room}/state/m.room.name/{long}"), &alice, json!({}))
            .await
            .is_error(413, "M_TOO_LARGE");
        server
            .put_v3(&format!("/rooms/{room}/state/m.room.create"), &alice, json!({}))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .put_v3(
                &format!("/rooms/{room}/state/m.room.power_levels"),
                &alice,
                json!({ "users": "x" }),
            )
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .put_v3(
                &format!("/rooms/{room}/state/m.room.member/@alice:example.org"),
                &alice,
                json!({}),
            )
            .await
            .is_error(400, "M_BAD_JSON");
        server.say(&room, &alice, "good", "still here").await;
        assert_eq!(server.bodies(&room, &alice, "dir=b&limit=1").await, ["still here"]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn everything_survives_a_restart() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let room = server
            .room(&alice, json!({ "preset": "public_chat", "name": "kept" }))
            .await;
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        // Enough changes for state groups of every kind.
        for n in 0..20 {
            let path = format!("/rooms/{room}/state/x.y/{}", n % 7);
            server.put_v3(&path, &alice, json!({ "n": n })).await.ok();
        }
        let said = server.say(&room, &bob, "t1", "before").await;
        let state = server.read_v3(&format!("/rooms/{room}/state"), &alice).await.ok();
        server.stop().await;
        let server = open(&db).await;
        let again = server.read_v3(&format!("/rooms/{room}/state"), &alice).await.ok();
        let ids = |state: &Value| {
            let mut ids: Vec<String> = state
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["event_id"].as_str().unwrap().to_owned())
                .collect();
            ids.sort();
            ids
        };
        assert_eq!(ids(&again), ids(&state));
        assert_eq!(server.say(&room, &bob, "t1", "before").await, said);
        server.say(&room, &bob, "t2", "after").await;
        assert_eq!(server.bodies(&room, &alice, "dir=b&limit=2").await, ["after", "before"]);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn aliases_and_the_directory() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let room = server
            .room(
                &alice,
                json!({ "visibility": "public", "name": "Garden", "room_alias_name": "garden" }),
            )
            .await;
        let alias = "%23garden:example.org";
        let found = server.read_v3(&format!("/directory/room/{alias}"), &bob).await.ok();
        assert_eq!(found["room_id"], room);
        server.ask(&format!("/join/{alias}"), &bob, json!({})).await.ok();
        let listed = server.get(&format!("{V3}/publicRooms"), None).await.ok();
        assert_eq!(listed["chunk"][0]["name"], "Garden");
        assert_eq!(listed["chunk"][0]["num_joined_members"], 2);
        let search = json!({ "filter": { "generic_search_term": "nothing" } });
        assert_eq!(server.ask("/publicRooms", &bob, search).await.ok()["chunk"], json!([]));
        server
            .put_v3(
                "/directory/room/%23garden:example.org",
                &bob,
                json!({ "room_id": room }),
            )
            .await
            .is_error(409, "M_UNKNOWN");
        let canonical = format!("/rooms/{room}/state/m.room.canonical_alias");
        server
            .put_v3(&canonical, &alice, json!({ "alias": "#else:example.org" }))
            .await
            .is_error(400, "M_BAD_ALIAS");
        let delete = format!("{V3}/directory/room/{alias}");
        server
            .raw(Method::DELETE, &delete, Some(&bob), Vec::new())
            .await
            .is_error(403, "M_FORBIDDEN");
        server.raw(Method::DELETE, &delete, Some(&alice), Vec::new()).await.ok();
        server
            .read_v3(&format!("/directory/room/{alias}"), &bob)
            .await
            .is_error(404, "M_NOT_FOUND");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_restricted_room_lets_members_of_the_other_room_in() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let carol = server.register("carol").await;
        let space = server.room(&alice, json!({ "preset": "public_chat" })).await;
        let rule = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": space }] });
        let room = server
            .room(
                &alice,
                json!({ "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": rule }] }),
            )
            .await;
        server.ask(&format!("/rooms/{space}/join"), &bob, json!({})).await.ok();
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        server
            .ask(&format!("/rooms/{room}/join"), &carol, json!({}))
            .await
            .is_error(403, "M_FORBIDDEN");
        // Claiming the authority oneself does not help.
        let claim = json!({ "membership": "join", "join_authorised_via_users_server": "@alice:example.org" });
        server
            .put_v3(
                &format!("/rooms/{room}/state/m.room.member/@carol:example.org"),
                &carol,
                claim,
            )
            .await
            .is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn threads_edits_and_relations() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let room = server.room(&alice, json!({})).await;
        let root = server.say(&room, &alice, "t1", "root").await;
        for n in 0..3 {
            let body = json!({ "msgtype": "m.text", "body": format!("r{n}"),
                               "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
            let path = format!("/rooms/{room}/send/m.room.message/r{n}");
            server.put_v3(&path, &alice, body).await.ok();
        }
        let edit = json!({ "msgtype": "m.text", "body": "* new", "m.new_content": { "body": "new" },
                           "m.relates_to": { "rel_type": "m.replace", "event_id": root } });
        let path = format!("/rooms/{room}/send/m.room.message/e1");
        let edit = server.put_v3(&path, &alice, edit).await.ok();
        let event = server
            .read_v3(&format!("/rooms/{room}/event/{root}"), &alice)
            .await
            .ok();
        let relations = &event["unsigned"]["m.relations"];
        assert_eq!(relations["m.thread"]["count"], 3);
        assert_eq!(relations["m.thread"]["latest_event"]["content"]["body"], "r2");
        assert_eq!(relations["m.replace"]["event_id"], edit["event_id"]);
        let path = format!("/_matrix/client/v1/rooms/{room}/relations/{root}/m.thread?limit=2");
        let page = server.get(&path, Some(&alice)).await.ok();
        assert_eq!(page["chunk"].as_array().unwrap().len(), 2);
        let next = page["next_batch"].as_str().expect("a next page");
        let page = server.get(&format!("{path}&from={next}"), Some(&alice)).await.ok();
        assert_eq!(page["chunk"].as_array().unwrap().len(), 1);
        assert_eq!(page["chunk"][0]["content"]["body"], "r0");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn stored_events_carry_the_hash_id_and_signature_of_their_version() {
    use ruma::{
        CanonicalJsonObject, RoomVersionId,
        serde::Base64,
        signatures::{PublicKeyMap, Verified, reference_hash, verify_event},
    };
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let keys = &server.homeserver.keys;
        let mut known = PublicKeyMap::new();
        known
            .entry("example.org".to_owned())
            .or_default()
            .insert(keys.id(), Base64::new(keys.public().to_vec()));
        for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
            let rules = version.rules().unwrap();
            let room = server
                .room(
                    &alice,
                    json!({ "room_version": version, "invite": ["@bob:example.org"] }),
                )
                .await;
            let mut ids = vec![server.say(&room, &alice, "t", "hello").await];
            let state = server.read_v3(&format!("/rooms/{room}/state"), &alice).await.ok();
            ids.extend(
                state
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|event| event["event_id"].as_str().unwrap().to_owned()),
            );
            let create = state
                .as_array()
                .unwrap()
                .iter()
                .find(|e| e["type"] == "m.room.create")
                .unwrap();
            for id in ids {
                let row = server.homeserver.store.event(&id).await.unwrap().expect("it is stored");
                let event: CanonicalJsonObject = serde_json::from_str(&row.json).unwrap();
                assert_eq!(format!("${}", reference_hash(&event, &rules).unwrap()), id);
                let verified = verify_event(&known, &event, &rules).unwrap();
                assert_eq!(verified, Verified::All, "{version} {}", row.kind);
                let text = |field: &str| serde_json::to_string(&event.get(field)).unwrap();
                // Version 12: the create event names its room and is named by no other event.
                let is_v12_create = version == RoomVersionId::V12 && row.kind == "m.room.create";
                assert_eq!(event.contains_key("room_id"), !is_v12_create);
                if version == RoomVersionId::V12 {
                    assert!(!text("auth_events").contains(create["event_id"].as_str().unwrap()));
                } else if row.kind != "m.room.create" {
                    assert!(text("auth_events").contains(create["event_id"].as_str().unwrap()));
                }
            }
        }
        server.stop().await;
    })
    .await;
}

/// What is kept from former members, and what is not: reading ends where their last stay did, whatever was done to them since.
#[tokio::test]
async fn former_members_read_up_to_the_end_of_their_stay() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let body = json!({ "preset": "public_chat", "topic": "during" });
        let room = server.room(&alice, body).await;
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        server.say(&room, &alice, "1", "during").await;
        server.ask(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
        let last = server.say(&room, &alice, "2", "secret").await;
        let path = format!("/rooms/{room}/state/m.room.topic");
        server.put_v3(&path, &alice, json!({ "topic": "secret" })).await.ok();
        let target = json!({ "user_id": "@bob:example.org" });
        for what in ["ban", "unban", "invite"] {
            server
                .ask(&format!("/rooms/{room}/{what}"), &alice, target.clone())
                .await
                .ok();
            assert_eq!(
                server.read_v3(&path, &bob).await.ok()["topic"],
                "during",
                "after {what}"
            );
            let state = server.read_v3(&format!("/rooms/{room}/state"), &bob).await.ok();
            assert!(!state.to_string().contains("secret"), "after {what}");
            assert_eq!(server.bodies(&room, &bob, "dir=b").await, ["during"], "after {what}");
            let members = server.read_v3(&format!("/rooms/{room}/members"), &bob).await.ok();
            let chunk = members["chunk"].as_array().unwrap();
            let own = chunk
                .iter()
                .find(|event| event["state_key"] == "@bob:example.org")
                .unwrap();
            assert_eq!(
                (&own["content"]["membership"], &own["sender"]),
                (&json!("leave"), &json!("@bob:example.org"))
            );
            let context = server.read_v3(&format!("/rooms/{room}/context/{last}"), &bob).await;
            context.is_error(404, "M_NOT_FOUND");
        }
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        assert_eq!(server.read_v3(&path, &bob).await.ok()["topic"], "secret");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn members_at_a_time_are_for_those_who_may_see_that_time() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        for (visibility, allowed) in [
            ("joined", false),
            ("invited", false),
            ("shared", true),
            ("world_readable", true),
        ] {
            let visible =
                json!({ "type": "m.room.history_visibility", "content": { "history_visibility": visibility } });
            let body = json!({ "preset": "public_chat", "initial_state": [visible] });
            let room = server.room(&alice, body).await;
            let token = |sync: Value| sync["next_batch"].as_str().unwrap().to_owned();
            let early = token(server.read_v3("/sync?timeout=0", &alice).await.ok());
            server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
            let then = server.read_v3(&format!("/rooms/{room}/members?at={early}"), &bob).await;
            if allowed {
                assert_eq!(then.ok()["chunk"].as_array().unwrap().len(), 1, "{visibility}");
            } else {
                then.is_error(403, "M_FORBIDDEN");
            }
            let now = token(server.read_v3("/sync?timeout=0", &bob).await.ok());
            let path = format!("/rooms/{room}/members?at={now}");
            assert_eq!(
                server.read_v3(&path, &bob).await.ok()["chunk"]
                    .as_array()
                    .unwrap()
                    .len(),
                2
            );
            server.ask(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
            assert_eq!(
                server.read_v3(&path, &bob).await.ok()["chunk"]
                    .as_array()
                    .unwrap()
                    .len(),
                2
            );
            let after = token(server.read_v3("/sync?timeout=0", &alice).await.ok());
            let path = format!("/rooms/{room}/members?at={after}");
            assert_eq!(
                server.read_v3(&path, &bob).await.ok()["chunk"]
                    .as_array()
                    .unwrap()
                    .len(),
                2
            );
        }
        server.stop().await;
    })
    .await;
}

/// Who forgot a room and is banned from it afterwards does not see it again.
#[tokio::test]
async fn a_ban_does_not_bring_a_forgotten_room_back() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let room = server.room(&alice, json!({ "preset": "public_chat" })).await;
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        server.ask(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
        server.ask(&format!("/rooms/{room}/forget"), &bob, json!({})).await.ok();
        let sync = server.read_v3("/sync?timeout=0", &bob).await.ok();
        let since = sync["next_batch"].as_str().unwrap().to_owned();
        let target = json!({ "user_id": "@bob:example.org" });
        for what in ["ban", "unban"] {
            server
                .ask(&format!("/rooms/{room}/{what}"), &alice, target.clone())
                .await
                .ok();
            let sync = server
                .read_v3(&format!("/sync?timeout=0&since={since}"), &bob)
                .await
                .ok();
            assert!(sync["rooms"]["leave"][&room].is_null(), "after {what}");
            let read = server.read_v3(&format!("/rooms/{room}/messages?dir=b"), &bob).await;
            read.is_error(403, "M_FORBIDDEN");
        }
        server.ask(&format!("/rooms/{room}/invite"), &alice, target).await.ok();
        let sync = server
            .read_v3(&format!("/sync?timeout=0&since={since}"), &bob)
            .await
            .ok();
        assert!(!sync["rooms"]["invite"][&room].is_null());
        server.stop().await;
    })
    .await;
}

/// A canonical alias that does not point to its room is refused, whichever way it comes.
#[tokio::test]
async fn canonical_aliases_have_to_point_to_their_room() {
    testkit::database::each(|db| async move {
        let server = open(&db).await;
        let alice = server.register("alice").await;
        let bob = server.register("bob").await;
        let other = server.room(&alice, json!({ "room_alias_name": "other" })).await;
        let room = server
            .room(&alice, json!({ "preset": "public_chat", "room_alias_name": "mine" }))
            .await;
        let path = format!("/rooms/{room}/state/m.room.canonical_alias");
        for content in [
            json!({ "alias": "#nothing:example.org" }),
            json!({ "alias": "#other:example.org" }),
            json!({ "alias": "#mine:example.org", "alt_aliases": ["#other:example.org"] }),
        ] {
            server
                .put_v3(&path, &alice, content.clone())
                .await
                .is_error(400, "M_BAD_ALIAS");
            let initial = json!({ "initial_state": [{ "type": "m.room.canonical_alias", "content": content }] });
            server
                .ask("/createRoom", &alice, initial)
                .await
                .is_error(400, "M_BAD_ALIAS");
        }
        for content in [
            json!({ "alias": "nonsense" }),
            json!({ "alias": 1 }),
            json!({ "alt_aliases": "#mine:example.org" }),
        ] {
            server
                .put_v3(&path, &alice, content)
                .await
                .is_error(400, "M_INVALID_PARAM");
        }
        // The rules of the room come first.
        server.ask(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
        let refused = server
            .put_v3(&path, &bob, json!({ "alias": "#nothing:example.org" }))
            .await;
        refused.is_error(403, "M_FORBIDDEN");
        // The alias made with a room counts in its initial state.
        let content = json!({ "alias": "#fresh:example.org", "alt_aliases": ["#fresh:example.org"] });
        let initial = json!({
            "room_alias_name": "fresh", "initial_state": [{ "type": "m.room.canonical_alias", "content": content }],
        });
        server.room(&alice, initial).await;
        // What stands may stay once its alias is gone; what is new may not.
        let path_of_alias = format!("{V3}/directory/room/%23mine:example.org");
        let removed = server
            .json(Method::DELETE, &path_of_alias, Some(&alice), &json!({}))
            .await;
        removed.ok();
        server.put_v3(&path, &alice, json!({})).await.ok();
        server
            .put_v3(&path, &alice, json!({ "alias": "#mine:example.org" }))
            .await
            .is_error(400, "M_BAD_ALIAS");
        assert_ne!(room, other);
        server.stop().await;
    })
    .await;
}
