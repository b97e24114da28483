//! Unread counts as clients know them, on both engines.

use std::collections::BTreeMap;

use homeserver::room::Proposal;
use serde_json::{Value, json};
use testkit::database;

use crate::{
    harness::Server,
    sync::{User, World, each, escaped, joined},
};

/// A reproducible choice.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// What a client shows for its rooms.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown(BTreeMap<String, (i64, i64)>);

impl Shown {
    fn take(&mut self, sync: &Value) {
        for (room_id, room) in sync["rooms"]["join"].as_object().into_iter().flatten() {
            let count = |name: &str| room["unread_notifications"][name].as_i64().unwrap();
            let counts = (count("notification_count"), count("highlight_count"));
            self.0.insert(room_id.clone(), counts);
        }
        for (room_id, _) in sync["rooms"]["leave"].as_object().into_iter().flatten() {
            self.0.remove(room_id);
        }
    }
}

async fn mute(w: &World, user: &User, room: &str, actions: Value) {
    let path = format!("/_matrix/client/v3/pushrules/global/room/{}", escaped(room));
    w.put(user, &path, json!({ "actions": actions })).await;
}

/// Whatever happens, in whatever order: what a client was told step by step is what a fresh one is told, before and
/// after a restart.
#[tokio::test]
async fn counts_told_step_by_step_are_those_told_at_once() {
    database::each(|db| async move {
        let w = World {
            server: Server::start(&db).await,
        };
        let mut users = Vec::new();
        for name in ["a", "b", "c", "d"] {
            users.push(w.user(name).await);
        }
        let mut rooms = Vec::new();
        for _ in 0..2 {
            let room = w.room(&users[0], json!({"preset": "public_chat"})).await;
            for user in &users[1..] {
                w.join(user, &room).await;
            }
            rooms.push(room);
        }
        mute(&w, &users[1], &rooms[0], json!([])).await;
        mute(&w, &users[2], &rooms[0], json!([])).await;
        mute(
            &w,
            &users[2],
            &rooms[1],
            json!(["notify", {"set_tweak": "sound", "value": "bell"}]),
        )
        .await;
        let mut members = [[true; 4]; 2];
        let mut events: [Vec<(String, Option<String>)>; 2] = Default::default();
        let mut shown: [Shown; 4] = Default::default();
        let mut tokens = Vec::new();
        for (user, shown) in users.iter().zip(&mut shown) {
            let sync = w.sync(user, "").await;
            shown.take(&sync);
            tokens.push(sync);
        }
        let mut dice = Dice(7);
        for step in 0..300 {
            let (u, r) = (dice.below(4), dice.below(2));
            let (user, room) = (&users[u], &rooms[r]);
            match dice.below(10) {
                0..=4 if members[r][u] => {
                    let mut content = json!({"msgtype": "m.text", "body": format!("{step}")});
                    if dice.below(4) == 0 {
                        content["m.mentions"] = json!({"user_ids": [users[dice.below(4)].id]});
                    }
                    let mut root = None;
                    if dice.below(3) == 0
                        && let Some((event, _)) = events[r].iter().find(|(_, thread)| thread.is_none())
                    {
                        content["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": event});
                        root = Some(event.clone());
                    }
                    let event = w.send(user, room, &step.to_string(), content).await;
                    events[r].push((event, root));
                }
                5 | 6 if members[r][u] && !events[r].is_empty() => {
                    let last = events[r].len() - 1;
                    let (event, root) = &events[r][last - dice.below(6).min(last)];
                    let body = match (dice.below(2), root) {
                        (0, _) => json!({}),
                        (_, None) => json!({"thread_id": "main"}),
                        (_, Some(root)) => json!({ "thread_id": root }),
                    };
                    let kind = ["m.read", "m.read.private"][dice.below(2)];
                    w.receipt(user, room, kind, event, body).await;
                }
                7 if u > 0 => {
                    match members[r][u] {
                        true => w.leave(user, room).await,
                        false => w.join(user, room).await,
                    }
                    members[r][u] = !members[r][u];
                }
                _ => {
                    tokens[u] = w.since(user, &tokens[u]).await;
                    shown[u].take(&tokens[u]);
                }
            }
        }
        let mut fresh = Vec::new();
        for (u, user) in users.iter().enumerate() {
            shown[u].take(&w.since(user, &tokens[u]).await);
            let mut at_once = Shown::default();
            at_once.take(&w.sync(user, "").await);
            assert_eq!(shown[u], at_once, "user {u}");
            fresh.push(at_once);
        }
        assert!(
            fresh.iter().any(|shown| shown.0.values().any(|(n, h)| *h > 0 && n > h)),
            "{fresh:?}"
        );
        w.server.stop().await;
        let w = World {
            server: Server::start(&db).await,
        };
        for (u, user) in users.iter().enumerate() {
            let mut restarted = Shown::default();
            restarted.take(&w.sync(user, "").await);
            assert_eq!(restarted, fresh[u], "user {u} after a restart");
        }
        w.server.stop().await;
    })
    .await;
}

/// An ordinary message writes as much into a room of many as into a room of few.
#[tokio::test]
async fn a_message_costs_one_row_however_many_it_notifies() {
    each(|w| async move {
        let alice = w.user("alice").await;
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        let mut members = Vec::new();
        for n in 0..30 {
            let user = w.user(&format!("m{n}")).await;
            w.join(&user, &room).await;
            members.push(user);
        }
        // Every third has rules of their own.
        for user in members.iter().step_by(3) {
            mute(&w, user, &room, json!([])).await;
        }
        let rows = async || w.server.homeserver.store.push_rows().await.unwrap();
        let before = rows().await;
        w.say(&alice, &room, "to all").await;
        assert_eq!(rows().await - before, 1);
        for (n, user) in members.iter().enumerate() {
            let count = joined(&w.sync(user, "").await, &room)["unread_notifications"]["notification_count"].as_i64();
            assert_eq!(count, Some(i64::from(n % 3 != 0)), "member {n}");
        }
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn counts_and_lists_begin_with_the_join() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.say(&alice, &room, "before").await;
        w.join(&bob, &room).await;
        let first = w.sync(&bob, "").await;
        assert_eq!(joined(&first, &room)["unread_notifications"]["notification_count"], 0);
        w.say(&alice, &room, "one").await;
        w.say(&alice, &room, "two").await;
        let listed = async |parameters: &str| {
            let path = format!("/_matrix/client/v3/notifications?{parameters}");
            let page = w.server.get(&path, Some(&bob.token)).await.ok();
            let bodies = page["notifications"].as_array().unwrap().iter();
            let bodies: Vec<String> = bodies
                .map(|n| n["event"]["content"]["body"].as_str().unwrap().to_owned())
                .collect();
            (bodies, page["next_token"].as_str().map(str::to_owned))
        };
        assert_eq!(listed("").await, (vec!["two".to_owned(), "one".to_owned()], None));
        let (page, next) = listed("limit=1").await;
        assert_eq!(page, ["two"]);
        let (page, _) = listed(&format!("limit=1&from={}", next.unwrap())).await;
        assert_eq!(page, ["one"]);
        w.leave(&bob, &room).await;
        assert_eq!(listed("").await, (vec![], None));
        w.server.stop().await;
    })
    .await;
}

/// Events that are committed together notify those who were in the room at each of them.
#[tokio::test]
async fn a_mention_just_before_a_join_notifies_nobody() {
    each(|w| async move {
        let (alice, bob, carol) = (w.user("alice").await, w.user("bob").await, w.user("carol").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let rooms = &w.server.homeserver.rooms;
        let held = rooms.get(room.as_str().try_into().unwrap()).await.unwrap();
        let content = |value: Value| serde_json::from_value(value).unwrap();
        let mention = |text: &str| {
            let mentions = json!({"user_ids": [carol.id]});
            content(json!({"msgtype": "m.text", "body": text, "m.mentions": mentions}))
        };
        let (sender, joining) = (
            alice.id.as_str().try_into().unwrap(),
            carol.id.as_str().try_into().unwrap(),
        );
        let join = content(json!({"membership": "join"}));
        let [before, join, after] = [
            Proposal::message(sender, "m.room.message", mention("before")),
            Proposal::state(joining, "m.room.member", carol.id.as_str(), join),
            Proposal::message(sender, "m.room.message", mention("after")),
        ]
        .map(|proposal| rooms.propose(&held, proposal));
        let (before, join, after) = tokio::join!(before, join, after);
        let at = [before, join, after].map(|accepted| accepted.unwrap().position.unwrap());
        assert_eq!((at[1], at[2]), (at[0] + 1, at[0] + 2), "they are one batch");

        let sync = w.sync(&carol, "").await;
        let counts = &joined(&sync, &room)["unread_notifications"];
        assert_eq!(*counts, json!({"notification_count": 1, "highlight_count": 1}));
        let path = "/_matrix/client/v3/notifications";
        let listed = w.server.get(path, Some(&carol.token)).await.ok();
        let listed = listed["notifications"].as_array().unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0]["event"]["content"]["body"], "after");

        // The invited are told of it without being members.
        let private = w.room(&alice, json!({"invite": [bob.id]})).await;
        let listed = w.server.get(path, Some(&bob.token)).await.ok();
        let listed = listed["notifications"].as_array().unwrap();
        let invite = listed
            .iter()
            .find(|notification| notification["room_id"] == private.as_str());
        assert_eq!(invite.unwrap()["event"]["content"]["membership"], "invite");
        w.server.stop().await;
    })
    .await;
}
