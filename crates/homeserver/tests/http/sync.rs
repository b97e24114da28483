//! `GET /sync` and the streams it reads, on both engines.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use testkit::database;

use crate::harness::Server;

/// A user and the token of their device.
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) token: String,
}

/// A server and what users do there.
pub(crate) struct World {
    pub(crate) server: Server,
}

pub(crate) fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl World {
    pub(crate) async fn user(&self, name: &str) -> User {
        User {
            id: format!("@{name}:example.org"),
            token: self.server.register(name).await,
        }
    }

    pub(crate) async fn post(&self, user: &User, path: &str, body: Value) -> Value {
        self.server
            .json(Method::POST, path, Some(&user.token), &body)
            .await
            .ok()
    }

    pub(crate) async fn put(&self, user: &User, path: &str, body: Value) -> Value {
        self.server.json(Method::PUT, path, Some(&user.token), &body).await.ok()
    }

    pub(crate) async fn room(&self, user: &User, body: Value) -> String {
        let answer = self.post(user, "/_matrix/client/v3/createRoom", body).await;
        answer["room_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn join(&self, user: &User, room: &str) {
        self.post(
            user,
            &format!("/_matrix/client/v3/rooms/{}/join", escaped(room)),
            json!({}),
        )
        .await;
    }

    pub(crate) async fn leave(&self, user: &User, room: &str) {
        self.post(
            user,
            &format!("/_matrix/client/v3/rooms/{}/leave", escaped(room)),
            json!({}),
        )
        .await;
    }

    pub(crate) async fn send(&self, user: &User, room: &str, txn: &str, content: Value) -> String {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn}", escaped(room));
        let answer = self.put(user, &path, content).await;
        answer["event_id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn say(&self, user: &User, room: &str, text: &str) -> String {
        self.send(user, room, &escaped(text), json!({"msgtype": "m.text", "body": text}))
            .await
    }

    pub(crate) async fn set_state(&self, user: &User, room: &str, event_type: &str, content: Value) {
        self.put(
            user,
            &format!("/_matrix/client/v3/rooms/{}/state/{event_type}", escaped(room)),
            content,
        )
        .await;
    }

    pub(crate) async fn sync(&self, user: &User, parameters: &str) -> Value {
        self.server
            .get(&format!("/_matrix/client/v3/sync?{parameters}"), Some(&user.token))
            .await
            .ok()
    }

    pub(crate) async fn since(&self, user: &User, since: &Value) -> Value {
        self.sync(user, &format!("since={}", since["next_batch"].as_str().unwrap()))
            .await
    }

    pub(crate) async fn receipt(&self, user: &User, room: &str, receipt_type: &str, event: &str, body: Value) {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/receipt/{receipt_type}/{}",
            escaped(room),
            escaped(event)
        );
        self.post(user, &path, body).await;
    }
}

pub(crate) async fn each<Fut: Future<Output = ()>>(test: impl Fn(World) -> Fut) {
    let test = &test;
    database::each(|db| async move {
        let world = World {
            server: Server::start(&db).await,
        };
        test(world).await;
    })
    .await;
}

pub(crate) fn joined<'a>(sync: &'a Value, room: &str) -> &'a Value {
    &sync["rooms"]["join"][room]
}

pub(crate) fn bodies(section: &Value) -> Vec<&str> {
    let events = section["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .filter_map(|event| event["content"]["body"].as_str())
        .collect()
}

pub(crate) fn types(section: &Value) -> Vec<&str> {
    let events = section["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

pub(crate) fn filter(filter: Value) -> String {
    format!("filter={}", escaped(&filter.to_string()))
}

#[tokio::test]
async fn a_message_arrives_once_and_the_sender_sees_its_transaction() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let (of_alice, of_bob) = (w.sync(&alice, "").await, w.sync(&bob, "").await);
        assert!(
            types(&joined(&of_bob, &room)["state"]).contains(&"m.room.create")
                || types(&joined(&of_bob, &room)["timeline"]).contains(&"m.room.create")
        );
        let event = w.say(&alice, &room, "hello").await;

        let of_bob = w.since(&bob, &of_bob).await;
        let timeline = &joined(&of_bob, &room)["timeline"];
        assert_eq!(bodies(timeline), ["hello"]);
        assert_eq!(timeline["limited"], false);
        assert_eq!(timeline["events"][0]["event_id"], event);
        assert!(timeline["events"][0]["unsigned"]["transaction_id"].is_null());
        assert_eq!(joined(&of_bob, &room)["unread_notifications"]["notification_count"], 1);

        let of_alice = w.since(&alice, &of_alice).await;
        let own = &joined(&of_alice, &room)["timeline"]["events"][0];
        assert_eq!(own["unsigned"]["transaction_id"], "hello");
        assert_eq!(
            joined(&of_alice, &room)["unread_notifications"]["notification_count"],
            0
        );

        let nothing = w.since(&bob, &of_bob).await;
        assert!(nothing["rooms"].is_null(), "{nothing}");
        assert!(nothing["device_one_time_keys_count"].is_object());
        assert!(nothing["device_unused_fallback_key_types"].is_array());
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_gap_is_limited_and_brings_the_state_that_changed_in_it() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let before = w.sync(&bob, "").await;
        w.set_state(&alice, &room, "m.room.topic", json!({"topic": "one"}))
            .await;
        w.set_state(&alice, &room, "m.room.name", json!({"name": "first"}))
            .await;
        for n in 0..5 {
            w.say(&alice, &room, &format!("m{n}")).await;
        }
        w.set_state(&alice, &room, "m.room.name", json!({"name": "second"}))
            .await;
        w.say(&alice, &room, "last").await;

        let since = before["next_batch"].as_str().unwrap();
        let small = filter(json!({"room": {"timeline": {"limit": 3}}}));
        let sync = w.sync(&bob, &format!("since={since}&{small}")).await;
        let timeline = &joined(&sync, &room)["timeline"];
        assert_eq!(timeline["limited"], true);
        assert_eq!(bodies(timeline), ["m4", "last"]);
        // Before the timeline the topic had changed, and the name for the first time.
        let state = &joined(&sync, &room)["state"];
        let contents: Vec<&Value> = state["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| &e["content"])
            .collect();
        assert_eq!(contents, [&json!({"topic": "one"}), &json!({"name": "first"})]);

        // After it, the name has its second value; the request decides under which name that is told.
        for (parameter, section) in [
            ("use_state_after", "state_after"),
            ("org.matrix.msc4222.use_state_after", "org.matrix.msc4222.state_after"),
        ] {
            let sync = w.sync(&bob, &format!("since={since}&{small}&{parameter}=true")).await;
            let room = joined(&sync, &room);
            assert!(room["state"].is_null());
            let contents: Vec<&Value> = room[section]["events"]
                .as_array()
                .unwrap()
                .iter()
                .map(|e| &e["content"])
                .collect();
            assert_eq!(
                contents,
                [&json!({"topic": "one"}), &json!({"name": "second"})],
                "{section}"
            );
        }

        // The rest is found backwards from prev_batch.
        let from = timeline["prev_batch"].as_str().unwrap();
        let path = format!(
            "/_matrix/client/v3/rooms/{}/messages?dir=b&limit=4&from={from}",
            escaped(&room)
        );
        let page = w.server.get(&path, Some(&bob.token)).await.ok();
        let found: Vec<&str> = page["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|e| e["content"]["body"].as_str())
            .collect();
        assert_eq!(found, ["m3", "m2", "m1", "m0"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn state_after_is_present_even_if_empty_and_holds_what_the_timeline_changed() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let room = w.room(&alice, json!({"preset": "private_chat"})).await;
        let first = w.sync(&alice, "use_state_after=true").await;
        let all = types(&joined(&first, &room)["state_after"]);
        assert!(
            all.contains(&"m.room.create") && all.contains(&"m.room.member"),
            "{all:?}"
        );
        w.say(&alice, &room, "x").await;
        let since = first["next_batch"].as_str().unwrap();
        let sync = w.sync(&alice, &format!("since={since}&use_state_after=true")).await;
        assert_eq!(joined(&sync, &room)["state_after"]["events"], json!([]));
        w.set_state(&alice, &room, "m.room.name", json!({"name": "n"})).await;
        let sync = w.sync(&alice, &format!("since={since}&use_state_after=true")).await;
        assert_eq!(types(&joined(&sync, &room)["state_after"]), ["m.room.name"]);
        let sync = w.sync(&alice, &format!("since={since}")).await;
        assert_eq!(types(&joined(&sync, &room)["state"]), [""; 0]);
        assert_eq!(
            types(&joined(&sync, &room)["timeline"]),
            ["m.room.message", "m.room.name"]
        );
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_newly_joined_room_comes_whole() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat", "name": "plaza"})).await;
        let before = w.sync(&bob, "").await;
        assert!(before["rooms"].is_null());
        w.join(&bob, &room).await;
        let sync = w.since(&bob, &before).await;
        let state = types(&joined(&sync, &room)["state"]);
        let timeline = types(&joined(&sync, &room)["timeline"]);
        for expected in ["m.room.create", "m.room.power_levels", "m.room.name", "m.room.member"] {
            assert!(state.contains(&expected) || timeline.contains(&expected), "{expected}");
        }
        assert_eq!(joined(&sync, &room)["summary"]["m.joined_member_count"], 2);

        // Leaving and coming back: the room comes whole again.
        w.leave(&bob, &room).await;
        let away = w.since(&bob, &sync).await;
        assert_eq!(types(&away["rooms"]["leave"][&room]["timeline"]), ["m.room.member"]);
        assert!(joined(&away, &room).is_null());
        w.set_state(&alice, &room, "m.room.topic", json!({"topic": "while away"}))
            .await;
        let quiet = w.since(&bob, &away).await;
        assert!(quiet["rooms"].is_null(), "who left hears nothing: {quiet}");
        w.join(&bob, &room).await;
        let back = w.since(&bob, &away).await;
        let seen: Vec<&str> = types(&joined(&back, &room)["state"])
            .into_iter()
            .chain(types(&joined(&back, &room)["timeline"]))
            .collect();
        assert!(
            seen.contains(&"m.room.create") && seen.contains(&"m.room.topic"),
            "{seen:?}"
        );
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn left_rooms_are_listed_on_request() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let room = w.room(&alice, json!({"preset": "private_chat"})).await;
        w.say(&alice, &room, "farewell").await;
        w.leave(&alice, &room).await;
        assert!(w.sync(&alice, "").await["rooms"].is_null());
        let sync = w.sync(&alice, &filter(json!({"room": {"include_leave": true}}))).await;
        let left = &sync["rooms"]["leave"][&room];
        assert_eq!(bodies(&left["timeline"]), ["farewell"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_invite_is_stripped_and_goes_away_when_refused() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let before = w.sync(&bob, "").await;
        let room = w
            .room(
                &alice,
                json!({"preset": "private_chat", "name": "secret", "invite": [bob.id]}),
            )
            .await;
        let sync = w.since(&bob, &before).await;
        let invite = &sync["rooms"]["invite"][&room]["invite_state"];
        assert!(types(invite).contains(&"m.room.name"), "{sync}");
        for event in invite["events"].as_array().unwrap() {
            assert!(
                event["event_id"].is_null() && event["origin_server_ts"].is_null(),
                "{event}"
            );
        }
        assert!(w.sync(&bob, "").await["rooms"]["invite"][&room].is_object());
        w.leave(&bob, &room).await;
        let refused = w.since(&bob, &sync).await;
        assert_eq!(types(&refused["rooms"]["leave"][&room]["timeline"]), ["m.room.member"]);
        assert_eq!(types(&refused["rooms"]["leave"][&room]["state"]), [""; 0]);
        assert!(refused["rooms"]["invite"].is_null());
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_waiting_sync_is_woken_by_a_message_and_by_nothing_else() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        let other = w.room(&alice, json!({"preset": "private_chat"})).await;
        w.join(&bob, &room).await;
        let before = w.sync(&bob, "").await;
        let since = format!("since={}&timeout=60000", before["next_batch"].as_str().unwrap());
        let mut waiting = Box::pin(w.sync(&bob, &since));
        // Whatever happens elsewhere leaves it asleep.
        w.say(&alice, &other, "not yours").await;
        tokio::select! {
            woken = &mut waiting => panic!("woken for nothing: {woken}"),
            () = tokio::task::yield_now() => {}
        }
        let (answer, _) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(30), &mut waiting),
            w.say(&alice, &room, "wake up")
        );
        let answer = answer.expect("woken in time");
        drop(waiting);
        assert_eq!(bodies(&joined(&answer, &room)["timeline"]), ["wake up"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_waiting_sync_answers_when_its_time_is_over() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let before = w.sync(&alice, "").await;
        let since = before["next_batch"].as_str().unwrap();
        let sync = w.sync(&alice, &format!("since={since}&timeout=20")).await;
        assert!(sync["rooms"].is_null() && sync["next_batch"].is_string());
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn bad_parameters_are_refused() {
    each(|w| async move {
        let alice = w.user("alice").await;
        for parameters in [
            "since=bad",
            "since=s-1",
            "timeout=x",
            "full_state=maybe",
            "set_presence=asleep",
            "filter=unknown",
        ] {
            let answer = w
                .server
                .get(&format!("/_matrix/client/v3/sync?{parameters}"), Some(&alice.token))
                .await;
            answer.is_error(400, "M_INVALID_PARAM");
        }
        let broken = w
            .server
            .get(
                &format!("/_matrix/client/v3/sync?filter={}", escaped("{")),
                Some(&alice.token),
            )
            .await;
        broken.is_error(400, "M_BAD_JSON");
        w.server
            .get("/_matrix/client/v3/sync", None)
            .await
            .is_error(401, "M_MISSING_TOKEN");
        // A token from beyond the end (of a backup that was restored) waits like one from now.
        let sync = w.sync(&alice, "since=s9223372036854775807").await;
        assert!(sync["rooms"].is_null());
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn lazy_loading_sends_a_member_with_their_first_message_only() {
    each(|w| async move {
        let (alice, bob, carol) = (w.user("alice").await, w.user("bob").await, w.user("carol").await);
        let room = w.room(&alice, json!({"preset": "public_chat", "name": "named"})).await;
        for user in [&bob, &carol] {
            w.join(user, &room).await;
        }
        for n in 0..3 {
            w.say(&bob, &room, &format!("b{n}")).await;
        }
        let lazy = filter(json!({"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 2}}}));
        let members = |sync: &Value| -> Vec<String> {
            let events = joined(sync, &room)["state"]["events"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let members = events.iter().filter(|e| e["type"] == "m.room.member");
            members.map(|e| e["state_key"].as_str().unwrap().to_owned()).collect()
        };
        let first = w.sync(&alice, &lazy).await;
        assert_eq!(members(&first), [alice.id.clone(), bob.id.clone()], "{first}");
        let next = |sync: &Value| format!("since={}&{lazy}", sync["next_batch"].as_str().unwrap());
        w.say(&bob, &room, "again").await;
        let second = w.sync(&alice, &next(&first)).await;
        assert_eq!(members(&second), [""; 0]);
        w.say(&carol, &room, "hello").await;
        let third = w.sync(&alice, &next(&second)).await;
        assert_eq!(members(&third), [carol.id.as_str()]);

        let redundant = filter(json!({"room": {
            "state": {"lazy_load_members": true, "include_redundant_members": true}}}));
        w.say(&carol, &room, "and again").await;
        let fourth = w
            .sync(
                &alice,
                &format!("since={}&{redundant}", third["next_batch"].as_str().unwrap()),
            )
            .await;
        assert_eq!(members(&fourth), [carol.id.as_str()]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn filters_choose_rooms_and_events() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let (room, other) = (
            w.room(&alice, json!({"preset": "private_chat"})).await,
            w.room(&alice, json!({"preset": "private_chat"})).await,
        );
        w.say(&alice, &room, "wanted").await;
        w.set_state(&alice, &room, "m.room.topic", json!({"topic": "t"})).await;
        w.say(&alice, &other, "unwanted").await;
        let body = json!({"room": {
            "rooms": [room], "timeline": {"types": ["m.room.message"]}, "state": {"types": ["m.room.create"]},
            "ephemeral": {"types": []}, "account_data": {"types": []}}, "event_fields": ["type", "content.body"]});
        let path = format!("/_matrix/client/v3/user/{}/filter", escaped(&alice.id));
        let id = w.post(&alice, &path, body.clone()).await["filter_id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(w.post(&alice, &path, body.clone()).await["filter_id"], id.as_str());
        assert_eq!(
            w.server.get(&format!("{path}/{id}"), Some(&alice.token)).await.ok(),
            body
        );
        let sync = w.sync(&alice, &format!("filter={id}")).await;
        assert!(joined(&sync, &other).is_null());
        let timeline = &joined(&sync, &room)["timeline"];
        assert_eq!(
            timeline["events"],
            json!([{"type": "m.room.message", "content": {"body": "wanted"}}])
        );
        assert_eq!(types(&joined(&sync, &room)["state"]), ["m.room.create"]);
        let bob = w.user("bob").await;
        w.server
            .get(&format!("{path}/{id}"), Some(&bob.token))
            .await
            .is_error(403, "M_FORBIDDEN");
        w.server
            .get(&format!("{path}/nothing"), Some(&alice.token))
            .await
            .is_error(404, "M_NOT_FOUND");
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn receipts_lower_counts_and_are_seen_by_others() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let mut events = Vec::new();
        for n in 0..3 {
            events.push(w.say(&alice, &room, &format!("m{n}")).await);
        }
        let (of_alice, of_bob) = (w.sync(&alice, "").await, w.sync(&bob, "").await);
        let count = |sync: &Value| joined(sync, &room)["unread_notifications"]["notification_count"].as_i64();
        assert_eq!(count(&of_bob), Some(3));

        w.receipt(&bob, &room, "m.read", &events[1], json!({})).await;
        let read = w.since(&bob, &of_bob).await;
        assert_eq!(count(&read), Some(1));
        let seen = w.since(&alice, &of_alice).await;
        let receipt = &joined(&seen, &room)["ephemeral"]["events"][0];
        assert_eq!(receipt["type"], "m.receipt");
        assert!(
            receipt["content"][&events[1]]["m.read"][&bob.id]["ts"].is_number(),
            "{seen}"
        );

        // A private one is its reader's own affair.
        w.receipt(&bob, &room, "m.read.private", &events[2], json!({})).await;
        let read = w.since(&bob, &read).await;
        assert_eq!(count(&read), Some(0));
        assert!(joined(&read, &room)["ephemeral"]["events"][0]["content"][&events[2]]["m.read.private"].is_object());
        let unseen = w.since(&alice, &seen).await;
        assert!(unseen["rooms"].is_null(), "{unseen}");

        // Sending is reading.
        w.say(&alice, &room, "one more").await;
        assert_eq!(count(&w.since(&bob, &read).await), Some(1));
        w.say(&bob, &room, "an answer").await;
        assert_eq!(count(&w.since(&bob, &read).await), Some(0));

        let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/$unknown", escaped(&room));
        let unknown = w.server.json(Method::POST, &path, Some(&bob.token), &json!({})).await;
        unknown.is_error(404, "M_NOT_FOUND");
        let path = format!(
            "/_matrix/client/v3/rooms/{}/receipt/m.read/{}",
            escaped(&room),
            escaped(&events[0])
        );
        let wrong = w
            .server
            .json(Method::POST, &path, Some(&bob.token), &json!({"thread_id": "$other"}))
            .await;
        wrong.is_error(400, "M_INVALID_PARAM");
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn threads_have_counts_of_their_own() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let root = w.say(&alice, &room, "root").await;
        let reply = json!({"msgtype": "m.text", "body": "reply",
            "m.relates_to": {"rel_type": "m.thread", "event_id": root}});
        let reply = w.send(&alice, &room, "r", reply).await;
        let per_thread = filter(json!({"room": {"timeline": {"unread_thread_notifications": true}}}));
        let sync = w.sync(&bob, &per_thread).await;
        assert_eq!(joined(&sync, &room)["unread_notifications"]["notification_count"], 1);
        assert_eq!(
            joined(&sync, &room)["unread_thread_notifications"][&root]["notification_count"],
            1
        );
        assert_eq!(
            joined(&w.sync(&bob, "").await, &room)["unread_notifications"]["notification_count"],
            2
        );

        w.receipt(&bob, &room, "m.read", &reply, json!({"thread_id": root}))
            .await;
        let sync = w
            .sync(
                &bob,
                &format!("since={}&{per_thread}", sync["next_batch"].as_str().unwrap()),
            )
            .await;
        assert_eq!(joined(&sync, &room)["unread_notifications"]["notification_count"], 1);
        assert!(joined(&sync, &room)["unread_thread_notifications"].is_null());
        let content = &joined(&sync, &room)["ephemeral"]["events"][0]["content"];
        assert_eq!(content[&reply]["m.read"][&bob.id]["thread_id"], root.as_str());
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn mentions_highlight_and_muted_rooms_are_silent() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let mention = json!({"msgtype": "m.text", "body": "bob!", "m.mentions": {"user_ids": [bob.id]}});
        w.send(&alice, &room, "1", mention).await;
        let all = json!({"msgtype": "m.text", "body": "all!", "m.mentions": {"room": true}});
        w.send(&alice, &room, "2", all.clone()).await;
        let counts = |sync: &Value| joined(sync, &room)["unread_notifications"].clone();
        let sync = w.sync(&bob, "").await;
        assert_eq!(counts(&sync), json!({"highlight_count": 2, "notification_count": 2}));

        let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", escaped(&room));
        w.put(&bob, &rule, json!({"actions": []})).await;
        w.say(&alice, &room, "unheard").await;
        let sync = w.since(&bob, &sync).await;
        assert_eq!(counts(&sync), json!({"highlight_count": 2, "notification_count": 2}));
        assert_eq!(sync["account_data"]["events"][0]["type"], "m.push_rules");

        let listed = w
            .server
            .get("/_matrix/client/v3/notifications?only=highlight", Some(&bob.token))
            .await
            .ok();
        let found: Vec<&str> = listed["notifications"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|n| n["event"]["content"]["body"].as_str())
            .collect();
        assert_eq!(found, ["all!", "bob!"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn typing_begins_and_ends() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let before = w.sync(&bob, "").await;
        let path = format!(
            "/_matrix/client/v3/rooms/{}/typing/{}",
            escaped(&room),
            escaped(&alice.id)
        );
        w.put(&alice, &path, json!({"typing": true, "timeout": 5000})).await;
        let typing = |sync: &Value| -> Value {
            let events = joined(sync, &room)["ephemeral"]["events"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let event = events.into_iter().find(|event| event["type"] == "m.typing");
            event.map_or(Value::Null, |event| event["content"]["user_ids"].clone())
        };
        let sync = w.since(&bob, &before).await;
        assert_eq!(typing(&sync), json!([alice.id]));
        assert_eq!(
            typing(&w.sync(&bob, "").await),
            json!([alice.id]),
            "a first sync sees it too"
        );
        w.put(&alice, &path, json!({"typing": false})).await;
        let sync = w.since(&bob, &sync).await;
        assert_eq!(typing(&sync), json!([]));
        let forbidden = w
            .server
            .json(Method::PUT, &path, Some(&bob.token), &json!({"typing": false}))
            .await;
        forbidden.is_error(403, "M_FORBIDDEN");
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn account_data_comes_once_and_to_its_owner() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "private_chat"})).await;
        let before = w.sync(&alice, "").await;
        assert_eq!(types(&before["account_data"]), ["m.push_rules"]);
        let base = format!("/_matrix/client/v3/user/{}", escaped(&alice.id));
        w.put(&alice, &format!("{base}/account_data/my.type"), json!({"n": 1}))
            .await;
        w.put(
            &alice,
            &format!("{base}/rooms/{}/account_data/my.room", escaped(&room)),
            json!({"m": 2}),
        )
        .await;
        w.put(
            &alice,
            &format!("{base}/rooms/{}/tags/u.work", escaped(&room)),
            json!({"order": 0.5}),
        )
        .await;
        let sync = w.since(&alice, &before).await;
        assert_eq!(
            sync["account_data"]["events"],
            json!([{"type": "my.type", "content": {"n": 1}}])
        );
        assert_eq!(
            joined(&sync, &room)["account_data"]["events"],
            json!([
                {"type": "my.room", "content": {"m": 2}},
                {"type": "m.tag", "content": {"tags": {"u.work": {"order": 0.5}}}},
            ])
        );
        assert!(w.since(&alice, &sync).await["account_data"].is_null());
        let got = w
            .server
            .get(&format!("{base}/account_data/my.type"), Some(&alice.token))
            .await
            .ok();
        assert_eq!(got, json!({"n": 1}));
        let tags = w
            .server
            .get(&format!("{base}/rooms/{}/tags", escaped(&room)), Some(&alice.token))
            .await
            .ok();
        assert_eq!(tags, json!({"tags": {"u.work": {"order": 0.5}}}));

        w.server
            .get(&format!("{base}/account_data/none"), Some(&alice.token))
            .await
            .is_error(404, "M_NOT_FOUND");
        w.server
            .get(&format!("{base}/account_data/my.type"), Some(&bob.token))
            .await
            .is_error(403, "M_FORBIDDEN");
        for controlled in [
            "account_data/m.push_rules".to_owned(),
            format!("rooms/{}/account_data/m.fully_read", escaped(&room)),
        ] {
            let answer = w
                .server
                .json(
                    Method::PUT,
                    &format!("{base}/{controlled}"),
                    Some(&alice.token),
                    &json!({}),
                )
                .await;
            answer.is_error(405, "M_BAD_JSON");
        }
        let list = w
            .server
            .json(
                Method::PUT,
                &format!("{base}/account_data/t"),
                Some(&alice.token),
                &json!([]),
            )
            .await;
        list.is_error(400, "M_BAD_JSON");
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn messages_of_ignored_users_are_left_out() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let path = format!(
            "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
            escaped(&bob.id)
        );
        let mut ignored = serde_json::Map::new();
        ignored.insert(alice.id.clone(), json!({}));
        w.put(&bob, &path, json!({ "ignored_users": ignored })).await;
        let before = w.sync(&bob, "").await;
        w.say(&alice, &room, "unheard").await;
        w.set_state(&alice, &room, "m.room.topic", json!({"topic": "heard"}))
            .await;
        let sync = w.since(&bob, &before).await;
        assert_eq!(types(&joined(&sync, &room)["timeline"]), ["m.room.topic"]);
        assert_eq!(joined(&sync, &room)["unread_notifications"]["notification_count"], 0);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_read_marker_is_account_data() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let room = w.room(&alice, json!({"preset": "private_chat"})).await;
        let event = w.say(&alice, &room, "x").await;
        let before = w.sync(&alice, "").await;
        let path = format!("/_matrix/client/v3/rooms/{}/read_markers", escaped(&room));
        w.post(&alice, &path, json!({"m.fully_read": event, "m.read": event}))
            .await;
        let sync = w.since(&alice, &before).await;
        assert_eq!(
            joined(&sync, &room)["account_data"]["events"],
            json!([{"type": "m.fully_read", "content": {"event_id": event}}])
        );
        assert_eq!(types(&joined(&sync, &room)["ephemeral"]), ["m.receipt"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_sync_after_a_restart_misses_nothing() {
    database::each(|db| async move {
        let w = World {
            server: Server::start(&db).await,
        };
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let before = w.sync(&bob, "").await;
        let event = w.say(&alice, &room, "before the restart").await;
        w.receipt(&alice, &room, "m.read", &event, json!({})).await;
        w.server.stop().await;
        let w = World {
            server: Server::start(&db).await,
        };
        let sync = w.since(&bob, &before).await;
        assert_eq!(bodies(&joined(&sync, &room)["timeline"]), ["before the restart"]);
        assert_eq!(joined(&sync, &room)["unread_notifications"]["notification_count"], 1);
        assert_eq!(types(&joined(&sync, &room)["ephemeral"]), ["m.receipt"]);
        assert!(w.since(&bob, &sync).await["rooms"].is_null());
        w.server.stop().await;
    })
    .await;
}

/// More messages than one answer holds: every one arrives once, and a token sent again gets the same answer.
#[tokio::test]
async fn messages_to_a_device_arrive_exactly_once() {
    const MESSAGES: usize = 130;
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let mut sync = w.sync(&bob, "").await;
        for n in 0..MESSAGES {
            let path = format!("/_matrix/client/v3/sendToDevice/my.type/{n}");
            w.put(
                &alice,
                &path,
                json!({"messages": {&bob.id: {"bob-device": {"body": n.to_string()}}}}),
            )
            .await;
        }
        let mut seen = Vec::new();
        while seen.len() < MESSAGES {
            let next = w.since(&bob, &sync).await;
            let again = w.since(&bob, &sync).await;
            assert_eq!(
                bodies(&next["to_device"]),
                bodies(&again["to_device"]),
                "a lost answer is repeated"
            );
            assert!(!bodies(&next["to_device"]).is_empty());
            seen.extend(bodies(&next["to_device"]).into_iter().map(str::to_owned));
            sync = next;
        }
        let expected: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
        assert_eq!(seen, expected);
        assert!(w.since(&bob, &sync).await["to_device"].is_null());
        assert!(
            w.sync(&bob, "").await["to_device"].is_null(),
            "what was received is gone"
        );
        w.server.stop().await;
    })
    .await;
}

/// What a sync costs the database: nothing when nothing happened, and next to nothing for a message, which all members
/// of the room read.
#[tokio::test]
async fn incremental_syncs_cost_few_queries() {
    const MEMBERS: u64 = 10;
    each(|w| async move {
        let alice = w.user("alice").await;
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        let mut members = Vec::new();
        for n in 0..MEMBERS {
            let user = w.user(&format!("m{n}")).await;
            w.join(&user, &room).await;
            members.push(user);
        }
        let mut syncs = Vec::new();
        for user in &members {
            let first = w.sync(user, "").await;
            syncs.push(w.since(user, &first).await);
        }
        w.say(&alice, &room, "first").await;
        for (user, sync) in members.iter().zip(&mut syncs) {
            *sync = w.since(user, sync).await;
        }
        let reads = || w.server.homeserver.store.reads();

        let before = reads();
        for (user, sync) in members.iter().zip(&syncs) {
            assert!(w.since(user, sync).await["rooms"].is_null());
        }
        assert_eq!(reads() - before, 0, "syncs with nothing new");

        w.say(&alice, &room, "second").await;
        let before = reads();
        for (user, sync) in members.iter().zip(&syncs) {
            let sync = w.since(user, sync).await;
            assert_eq!(bodies(&joined(&sync, &room)["timeline"]), ["second"]);
            assert_eq!(joined(&sync, &room)["unread_notifications"]["notification_count"], 2);
        }
        let cost = reads() - before;
        assert!(cost <= 1, "{cost} reads for {MEMBERS} members");
        w.server.stop().await;
    })
    .await;
}

/// Writers in several rooms at once, a reader that follows: every message once, in the order of its room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_lose_nothing() {
    const ROOMS: usize = 3;
    const MESSAGES: usize = 25;
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            let room = w.room(&alice, json!({"preset": "public_chat"})).await;
            w.join(&bob, &room).await;
            rooms.push(room);
        }
        let mut sync = w.sync(&bob, "").await;
        let writers = futures_util::future::join_all(rooms.iter().enumerate().map(|(n, room)| {
            let (w, alice) = (&w, &alice);
            async move {
                for m in 0..MESSAGES {
                    w.say(alice, room, &format!("{n}-{m}")).await;
                }
            }
        }));
        let reader = async {
            let mut seen = vec![Vec::new(); ROOMS];
            let all = filter(json!({"room": {"timeline": {"limit": 100}}}));
            while seen.iter().map(Vec::len).sum::<usize>() < ROOMS * MESSAGES {
                let since = sync["next_batch"].as_str().unwrap();
                sync = w.sync(&bob, &format!("since={since}&timeout=30000&{all}")).await;
                for (n, room) in rooms.iter().enumerate() {
                    seen[n].extend(bodies(&joined(&sync, room)["timeline"]).into_iter().map(str::to_owned));
                }
            }
            seen
        };
        let (seen, _) = tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(reader, writers) })
            .await
            .expect("every message arrives");
        for (n, seen) in seen.into_iter().enumerate() {
            let expected: Vec<String> = (0..MESSAGES).map(|m| format!("{n}-{m}")).collect();
            assert_eq!(seen, expected, "room {n}");
        }
        w.server.stop().await;
    })
    .await;
}
