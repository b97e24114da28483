//! What rooms show to who is not in them, moving to another version, moments, reports and look-ups.

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Server};

async fn post(server: &Server, token: &str, path: &str, body: Value) -> Answer {
    let path = format!("/_matrix/client/v3{path}");
    server.json(Method::POST, &path, Some(token), &body).await
}

async fn room(server: &Server, token: &str, body: Value) -> String {
    let made = post(server, token, "/createRoom", body).await.ok();
    made["room_id"].as_str().unwrap().to_owned()
}

async fn put_state(server: &Server, token: &str, room: &str, kind: &str, body: Value) -> Answer {
    let path = format!("/_matrix/client/v3/rooms/{room}/state/{kind}");
    server.json(Method::PUT, &path, Some(token), &body).await
}

async fn state(server: &Server, token: &str, room: &str, kind: &str) -> Answer {
    let path = format!("/_matrix/client/v3/rooms/{room}/state/{kind}");
    server.get(&path, Some(token)).await
}

#[tokio::test]
async fn an_upgraded_room_takes_over_what_it_can() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        for (old_version, new_version) in [("10", "11"), ("11", "12"), ("12", "12"), ("12", "11")] {
            let alias = format!("hall-{old_version}-{new_version}");
            let mut users = json!({ "@bob:example.org": 50 });
            if old_version != "12" {
                users["@alice:example.org"] = json!(100);
            }
            let old = room(
                &server,
                &alice,
                json!({
                    "preset": "public_chat", "visibility": "public", "name": "Hall", "topic": "Fires",
                    "room_version": old_version, "room_alias_name": alias,
                    "creation_content": { "type": "m.space" },
                    "power_level_content_override": { "users": users, "events": { "m.room.tombstone": 100 } },
                }),
            )
            .await;
            post(&server, &bob, &format!("/join/{old}"), json!({})).await.ok();
            let ban = json!({ "user_id": "@eve:example.org", "reason": "noise" });
            post(&server, &alice, &format!("/rooms/{old}/ban"), ban).await.ok();
            let path = format!("/rooms/{old}/upgrade");
            post(&server, &bob, &path, json!({ "new_version": new_version }))
                .await
                .is_error(403, "M_FORBIDDEN");
            post(&server, &alice, &path, json!({ "new_version": "99" }))
                .await
                .is_error(400, "M_UNSUPPORTED_ROOM_VERSION");
            let creators = json!({ "new_version": new_version, "additional_creators": ["@bob:example.org"] });
            if new_version != "12" {
                post(&server, &alice, &path, creators)
                    .await
                    .is_error(400, "M_INVALID_PARAM");
            }
            let answer = post(&server, &alice, &path, json!({ "new_version": new_version }))
                .await
                .ok();
            let new = answer["replacement_room"].as_str().unwrap();

            let create = state(&server, &alice, new, "m.room.create").await.ok();
            assert_eq!(create["room_version"], new_version);
            assert_eq!(create["predecessor"]["room_id"], old);
            assert_eq!(create["type"], "m.space");
            assert_eq!(state(&server, &alice, new, "m.room.name").await.ok()["name"], "Hall");
            assert_eq!(state(&server, &alice, new, "m.room.topic").await.ok()["topic"], "Fires");
            assert_eq!(
                state(&server, &alice, new, "m.room.join_rules").await.ok()["join_rule"],
                "public"
            );
            let banned = state(&server, &alice, new, "m.room.member/@eve:example.org").await.ok();
            assert_eq!(
                (&banned["membership"], &banned["reason"]),
                (&json!("ban"), &json!("noise"))
            );
            let levels = state(&server, &alice, new, "m.room.power_levels").await.ok();
            assert_eq!(levels["users"]["@bob:example.org"], 50);
            assert_eq!(
                levels["users"].get("@alice:example.org").is_some(),
                new_version != "12",
                "{levels}"
            );

            let tombstone = state(&server, &alice, &old, "m.room.tombstone").await.ok();
            assert_eq!(tombstone["replacement_room"], new);
            let closed = state(&server, &alice, &old, "m.room.power_levels").await.ok();
            assert_eq!((&closed["events_default"], &closed["invite"]), (&json!(50), &json!(50)));
            let path = format!("/_matrix/client/v3/directory/room/%23{alias}:example.org");
            assert_eq!(server.get(&path, None).await.ok()["room_id"], new);
            let canonical = state(&server, &alice, new, "m.room.canonical_alias").await.ok();
            assert_eq!(canonical["alias"], format!("#{alias}:example.org"));
            for (room, visibility) in [(old.as_str(), "private"), (new, "public")] {
                let path = format!("/_matrix/client/v3/directory/list/room/{room}");
                assert_eq!(server.get(&path, None).await.ok()["visibility"], visibility);
            }
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn summaries_are_for_those_who_may_know_of_a_room() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let summary = |room: String, token: Option<String>| {
            let server = &server;
            async move {
                let path = format!("/_matrix/client/v1/room_summary/{room}");
                server.get(&path, token.as_deref()).await
            }
        };
        let open = room(
            &server,
            &alice,
            json!({
                "preset": "public_chat", "name": "Open", "room_alias_name": "open", "room_version": "11",
            }),
        )
        .await;
        let seen = summary("%23open:example.org".to_owned(), None).await.ok();
        assert_eq!(seen["room_id"], open);
        assert_eq!(
            (&seen["name"], &seen["join_rule"], &seen["room_version"]),
            (&json!("Open"), &json!("public"), &json!("11"))
        );
        assert_eq!(
            (&seen["num_joined_members"], &seen["world_readable"]),
            (&json!(1), &json!(false))
        );
        assert!(seen.get("membership").is_none());
        assert_eq!(
            summary(open.clone(), Some(bob.clone())).await.ok()["membership"],
            "leave"
        );

        let hidden = room(&server, &alice, json!({ "preset": "private_chat" })).await;
        for token in [None, Some(bob.clone())] {
            summary(hidden.clone(), token).await.is_error(404, "M_NOT_FOUND");
        }
        put_state(
            &server,
            &alice,
            &hidden,
            "m.room.encryption",
            json!({ "algorithm": "m.megolm.v1.aes-sha2" }),
        )
        .await
        .ok();
        post(
            &server,
            &alice,
            &format!("/rooms/{hidden}/invite"),
            json!({ "user_id": "@bob:example.org" }),
        )
        .await
        .ok();
        let seen = summary(hidden.clone(), Some(bob.clone())).await.ok();
        assert_eq!(
            (&seen["membership"], &seen["encryption"]),
            (&json!("invite"), &json!("m.megolm.v1.aes-sha2"))
        );

        let rules = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": open }] });
        let restricted = room(
            &server,
            &alice,
            json!({
                "initial_state": [{ "type": "m.room.join_rules", "content": rules }],
            }),
        )
        .await;
        summary(restricted.clone(), Some(bob.clone()))
            .await
            .is_error(404, "M_NOT_FOUND");
        post(&server, &bob, &format!("/join/{open}"), json!({})).await.ok();
        let seen = summary(restricted, Some(bob)).await.ok();
        assert_eq!(
            (&seen["join_rule"], &seen["allowed_room_ids"]),
            (&json!("restricted"), &json!([open]))
        );
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_space_is_walked_in_order_and_in_pages() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let space = json!({ "preset": "public_chat", "creation_content": { "type": "m.space" } });
        let root = room(&server, &alice, space.clone()).await;
        let inner = room(&server, &alice, space).await;
        let leaf = room(&server, &alice, json!({ "preset": "public_chat" })).await;
        let deep = room(&server, &alice, json!({ "preset": "public_chat" })).await;
        let secret = room(&server, &alice, json!({ "preset": "private_chat" })).await;
        let child = |parent: &str, child: &str, content: Value| {
            let (server, alice) = (&server, &alice);
            let kind = format!("m.space.child/{child}");
            let parent = parent.to_owned();
            async move { put_state(server, alice, &parent, &kind, content).await.ok() }
        };
        let via = json!(["example.org"]);
        child(&root, &leaf, json!({ "via": via, "suggested": true })).await;
        child(&root, &secret, json!({ "via": via })).await;
        child(&root, &inner, json!({ "via": via, "order": "a" })).await;
        child(&root, "!unknown:example.org", json!({ "via": via })).await;
        child(&root, &deep, json!({})).await;
        child(&inner, &deep, json!({ "via": via })).await;
        // Round and round.
        child(&inner, &root, json!({ "via": via })).await;
        let walk = |token: &str, query: &str| {
            let path = format!("/_matrix/client/v1/rooms/{root}/hierarchy?{query}");
            let (server, token) = (&server, token.to_owned());
            async move { server.get(&path, Some(&token)).await }
        };
        let ids = |answer: &Value| -> Vec<String> {
            let rooms = answer["rooms"].as_array().unwrap().iter();
            rooms.map(|room| room["room_id"].as_str().unwrap().to_owned()).collect()
        };
        let all = walk(&bob, "").await.ok();
        assert_eq!(
            ids(&all),
            [&*root, &*inner, &*deep, &*leaf],
            "an order comes first, and hidden rooms not at all"
        );
        assert!(all.get("next_batch").is_none());
        let children = all["rooms"][0]["children_state"].as_array().unwrap();
        assert_eq!(children.len(), 4, "a child without servers is none: {children:?}");
        assert_eq!(children[0]["state_key"], inner);
        assert!(children[0]["origin_server_ts"].is_u64());
        assert!(ids(&walk(&alice, "").await.ok()).contains(&secret));
        assert_eq!(ids(&walk(&bob, "max_depth=1").await.ok()), [&*root, &*inner, &*leaf]);
        assert_eq!(ids(&walk(&bob, "suggested_only=true").await.ok()), [&*root, &*leaf]);

        let first = walk(&bob, "limit=3").await.ok();
        assert_eq!(ids(&first), [&*root, &*inner, &*deep]);
        let next = first["next_batch"].as_str().unwrap();
        let rest = walk(&bob, &format!("limit=3&from={next}")).await.ok();
        assert_eq!(ids(&rest), [&*leaf]);
        assert!(rest.get("next_batch").is_none());
        walk(&bob, &format!("max_depth=1&from={next}"))
            .await
            .is_error(400, "M_INVALID_PARAM");
        let path = format!("/_matrix/client/v1/rooms/{secret}/hierarchy");
        server.get(&path, Some(&bob)).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_moment_leads_to_its_event() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.rate_limits.enabled = false).await;
        let alice = server.register("alice").await;
        let hall = room(&server, &alice, json!({ "preset": "public_chat" })).await;
        let start = 1_800_000_000_000_u64;
        let mut events = Vec::new();
        for n in 0..20 {
            server.clock.advance_ms(1_000);
            let path = format!("/_matrix/client/v3/rooms/{hall}/send/m.room.message/{n}");
            let body = json!({ "msgtype": "m.text", "body": n.to_string() });
            let sent = server.json(Method::PUT, &path, Some(&alice), &body).await.ok();
            events.push(sent["event_id"].as_str().unwrap().to_owned());
            // Positions of others lie between.
            room(&server, &alice, json!({})).await;
        }
        let at = |ts: u64, dir: &str| {
            let path = format!("/_matrix/client/v1/rooms/{hall}/timestamp_to_event?ts={ts}&dir={dir}");
            let (server, alice) = (&server, &alice);
            async move { server.get(&path, Some(alice)).await }
        };
        for (n, event) in events.iter().enumerate() {
            let ts = start + 1_000 * (n as u64 + 1);
            for (moment, dir) in [(ts, "f"), (ts, "b"), (ts - 999, "f"), (ts + 999, "b")] {
                let found = at(moment, dir).await.ok();
                assert_eq!(
                    (&found["event_id"], &found["origin_server_ts"]),
                    (&json!(event), &json!(ts)),
                    "{n} {dir}"
                );
            }
        }
        at(start + 20_001, "f").await.is_error(404, "M_NOT_FOUND");
        at(start - 1, "b").await.is_error(404, "M_NOT_FOUND");
        assert_eq!(at(0, "f").await.ok()["origin_server_ts"], start);
        let bob = server.register("bob").await;
        let path = format!("/_matrix/client/v1/rooms/{hall}/timestamp_to_event?ts=0&dir=f");
        server.get(&path, Some(&bob)).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn reports_are_kept() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let hall = room(&server, &alice, json!({ "preset": "public_chat" })).await;
        let path = format!("/_matrix/client/v3/rooms/{hall}/send/m.room.message/1");
        let sent = server
            .json(
                Method::PUT,
                &path,
                Some(&alice),
                &json!({ "body": "x", "msgtype": "m.text" }),
            )
            .await
            .ok();
        let event = sent["event_id"].as_str().unwrap();
        let about_event = format!("/rooms/{hall}/report/{event}");
        post(&server, &bob, &about_event, json!({ "reason": "x" }))
            .await
            .is_error(404, "M_NOT_FOUND");
        post(&server, &bob, &format!("/join/{hall}"), json!({})).await.ok();
        post(&server, &bob, &about_event, json!({ "reason": "rude", "score": -500 }))
            .await
            .ok();
        post(
            &server,
            &bob,
            &format!("/rooms/{hall}/report"),
            json!({ "reason": "all of it" }),
        )
        .await
        .ok();
        post(&server, &bob, "/users/@alice:example.org/report", json!({}))
            .await
            .ok();
        post(&server, &bob, "/users/@nobody:example.org/report", json!({}))
            .await
            .is_error(404, "M_NOT_FOUND");
        post(&server, &bob, "/rooms/!nowhere:example.org/report", json!({}))
            .await
            .is_error(404, "M_NOT_FOUND");
        let long = json!({ "reason": "x".repeat(5000) });
        post(&server, &bob, &about_event, long)
            .await
            .is_error(400, "M_INVALID_PARAM");

        let kept = server.homeserver.store.reports(i64::MAX, 10).await.unwrap();
        let [user, room, message] = &kept[..] else {
            panic!("{kept:?}")
        };
        assert_eq!(user.user_id.as_deref(), Some("@alice:example.org"));
        assert_eq!((room.room_id.as_deref(), &*room.reason), (Some(&*hall), "all of it"));
        assert_eq!(
            (message.event_id.as_deref(), message.user_id.as_deref()),
            (Some(event), Some("@alice:example.org"))
        );
        assert_eq!((message.score, &*message.reporter), (Some(-100), "@bob:example.org"));
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn sessions_are_shown_to_their_user_and_identifiers_of_others_refused() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let path = "/_matrix/client/v3/admin/whois/@alice:example.org";
        let seen = server.get(path, Some(&alice)).await.ok();
        assert_eq!(seen["user_id"], "@alice:example.org");
        let connection = &seen["devices"]["alice-device"]["sessions"][0]["connections"][0];
        assert!(connection["last_seen"].is_u64(), "{seen}");
        server.get(path, Some(&bob)).await.is_error(403, "M_FORBIDDEN");

        post(&server, &alice, "/account/3pid/email/requestToken", json!({}))
            .await
            .is_error(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED");
        post(&server, &alice, "/register/email/requestToken", json!({}))
            .await
            .is_error(403, "M_THREEPID_DENIED");
        post(&server, &alice, "/account/3pid/add", json!({}))
            .await
            .is_error(403, "M_THREEPID_AUTH_FAILED");
        let none = server.get("/_matrix/client/v3/account/3pid", Some(&alice)).await.ok();
        assert_eq!(none, json!({ "threepids": [] }));
        assert_eq!(
            server
                .get("/_matrix/client/v3/thirdparty/protocols", Some(&alice))
                .await
                .ok(),
            json!({})
        );
        for path in ["protocol/irc", "location", "location/irc", "user", "user/irc"] {
            let path = format!("/_matrix/client/v3/thirdparty/{path}");
            server.get(&path, Some(&alice)).await.is_error(404, "M_NOT_FOUND");
        }
        server.stop().await;
    })
    .await;
}
