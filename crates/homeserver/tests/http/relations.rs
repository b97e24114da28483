//! Relations: pages of them, relations of relations, threads, and what is summed up with an event.
//! Spec: client-server API, "Relationships between events" and "Threading".

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Server};

struct Room<'a> {
    server: &'a Server,
    id: String,
}

impl<'a> Room<'a> {
    /// A public room that everybody named has joined.
    async fn new(server: &'a Server, maker: &str, others: &[&str]) -> Self {
        let body = json!({ "preset": "public_chat" });
        let path = "/_matrix/client/v3/createRoom";
        let made = server.json(Method::POST, path, Some(maker), &body).await.ok();
        let id = made["room_id"].as_str().unwrap().to_owned();
        for other in others {
            let path = format!("/_matrix/client/v3/rooms/{id}/join");
            server.json(Method::POST, &path, Some(other), &json!({})).await.ok();
        }
        Self { server, id }
    }

    async fn send(&self, token: &str, kind: &str, content: Value) -> Answer {
        let txn = format!("{:x}", rand_text(&content));
        let path = format!("/_matrix/client/v3/rooms/{}/send/{kind}/{txn}", self.id);
        self.server.json(Method::PUT, &path, Some(token), &content).await
    }

    async fn say(&self, token: &str, text: &str, relates_to: Value) -> String {
        let mut content = json!({ "msgtype": "m.text", "body": text });
        if !relates_to.is_null() {
            content["m.relates_to"] = relates_to;
        }
        let sent = self.send(token, "m.room.message", content).await.ok();
        sent["event_id"].as_str().unwrap().to_owned()
    }

    async fn react(&self, token: &str, target: &str, key: &str) -> Answer {
        let content = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key } });
        self.send(token, "m.reaction", content).await
    }

    async fn edit(&self, token: &str, target: &str, text: &str) -> String {
        let content = json!({
            "msgtype": "m.text", "body": format!("* {text}"),
            "m.new_content": { "msgtype": "m.text", "body": text },
            "m.relates_to": { "rel_type": "m.replace", "event_id": target },
        });
        let sent = self.send(token, "m.room.message", content).await.ok();
        sent["event_id"].as_str().unwrap().to_owned()
    }

    async fn get(&self, token: &str, rest: &str) -> Value {
        let path = format!("/_matrix/client/v1/rooms/{}/{rest}", self.id);
        self.server.get(&path, Some(token)).await.ok()
    }

    async fn event(&self, token: &str, id: &str) -> Value {
        let path = format!("/_matrix/client/v3/rooms/{}/event/{id}", self.id);
        self.server.get(&path, Some(token)).await.ok()
    }
}

/// Transaction ids differ with what is sent.
fn rand_text(content: &Value) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    content.to_string().hash(&mut hasher);
    hasher.finish()
}

fn thread(root: &str) -> Value {
    json!({ "rel_type": "m.thread", "event_id": root })
}

fn ids(answer: &Value) -> Vec<&str> {
    let chunk = answer["chunk"].as_array().unwrap();
    chunk.iter().map(|event| event["event_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn relations_are_read_in_both_directions_page_by_page_and_below_each_other() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let room = Room::new(&server, &alice, &[&bob]).await;
        let root = room.say(&alice, "root", Value::Null).await;
        let mut replies = Vec::new();
        for n in 0..5 {
            replies.push(room.say(&bob, &format!("reply {n}"), thread(&root)).await);
        }
        let replies: Vec<&str> = replies.iter().map(String::as_str).collect();
        let newest_first: Vec<&str> = replies.iter().rev().copied().collect();

        for (dir, expected) in [("f", &replies), ("b", &newest_first)] {
            let (mut found, mut from) = (Vec::new(), String::new());
            loop {
                let page = room
                    .get(&alice, &format!("relations/{root}/m.thread?dir={dir}&limit=2{from}"))
                    .await;
                found.extend(ids(&page).into_iter().map(str::to_owned));
                match page["next_batch"].as_str() {
                    Some(next) => from = format!("&from={next}"),
                    None => break,
                }
            }
            assert_eq!(found, *expected, "dir={dir}");
        }
        let unlimited = room.get(&alice, &format!("relations/{root}")).await;
        assert_eq!(
            ids(&unlimited),
            newest_first,
            "the newest come first where nothing is said"
        );
        assert!(unlimited.get("recursion_depth").is_none());

        let reaction = room.react(&alice, replies[0], "👍").await.ok();
        let reaction = reaction["event_id"].as_str().unwrap();
        let edit = room.edit(&bob, replies[1], "better").await;
        let below = room
            .get(&alice, &format!("relations/{root}?recurse=true&dir=f&limit=50"))
            .await;
        assert!(below["recursion_depth"].as_i64().unwrap() >= 3);
        let expected: Vec<&str> = replies.iter().copied().chain([reaction, &*edit]).collect();
        assert_eq!(ids(&below), expected);
        let edits = room
            .get(&alice, &format!("relations/{root}/m.replace?recurse=true"))
            .await;
        assert_eq!(ids(&edits), [&*edit]);
        let reactions = room
            .get(
                &alice,
                &format!("relations/{root}/m.annotation/m.reaction?recurse=true"),
            )
            .await;
        assert_eq!(ids(&reactions), [reaction]);
        let path = format!("/_matrix/client/v1/rooms/{}/relations/{root}?dir=x", room.id);
        server.get(&path, Some(&alice)).await.is_error(400, "M_INVALID_PARAM");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_relates_to_an_event_is_summed_up_with_it() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob, eve) = (
            server.register("alice").await,
            server.register("bob").await,
            server.register("eve").await,
        );
        let room = Room::new(&server, &alice, &[&bob, &eve]).await;
        let root = room.say(&alice, "root", Value::Null).await;
        let reply = room.say(&bob, "reply", thread(&root)).await;
        let edit = room.edit(&bob, &reply, "edited reply").await;
        room.say(&eve, "noise", thread(&root)).await;
        room.edit(&bob, &root, "not his").await;
        let content = json!({ "m.relates_to": { "rel_type": "m.reference", "event_id": root } });
        let reference = room.send(&bob, "org.example.pointer", content).await.ok();

        let relations = |event: Value| event["unsigned"]["m.relations"].clone();
        let seen = relations(room.event(&bob, &root).await);
        assert_eq!(seen["m.thread"]["count"], 2);
        assert_eq!(seen["m.thread"]["latest_event"]["content"]["body"], "noise");
        assert_eq!(seen["m.thread"]["current_user_participated"], true);
        assert_eq!(
            seen["m.reference"]["chunk"],
            json!([{ "event_id": reference["event_id"] }])
        );
        assert!(seen.get("m.replace").is_none(), "only the author edits: {seen}");

        // Whom a user ignores does not count, and the newest reply comes with its own edit.
        let ignore = json!({ "ignored_users": { "@eve:example.org": {} } });
        let path = "/_matrix/client/v3/user/@alice:example.org/account_data/m.ignored_user_list";
        server.json(Method::PUT, path, Some(&alice), &ignore).await.ok();
        let seen = relations(room.event(&alice, &root).await);
        assert_eq!(seen["m.thread"]["count"], 1);
        let latest = &seen["m.thread"]["latest_event"];
        assert_eq!(latest["event_id"], reply.as_str());
        assert_eq!(
            latest["unsigned"]["m.relations"]["m.replace"]["event_id"],
            edit.as_str()
        );
        assert_eq!(
            seen["m.thread"]["current_user_participated"], true,
            "the author of the root"
        );

        // An edit of another type, or without new content, is none; and an edit cannot be edited.
        let target = room.say(&alice, "target", Value::Null).await;
        let relation = json!({ "rel_type": "m.replace", "event_id": target });
        room.send(
            &alice,
            "org.example.other",
            json!({ "m.new_content": {}, "m.relates_to": relation }),
        )
        .await
        .ok();
        room.say(&alice, "no new content", relation).await;
        assert!(relations(room.event(&alice, &target).await).is_null());
        let first = room.edit(&alice, &target, "edited").await;
        room.edit(&alice, &first, "edit of an edit").await;
        assert!(relations(room.event(&alice, &first).await).is_null());
        assert_eq!(
            relations(room.event(&alice, &target).await)["m.replace"]["event_id"],
            first.as_str()
        );

        // The other readers bring it too.
        let messages = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=50", room.id);
        let messages = server.get(&messages, Some(&bob)).await.ok();
        let context = format!("/_matrix/client/v3/rooms/{}/context/{root}", room.id);
        let context = server.get(&context, Some(&bob)).await.ok();
        let synced = server
            .get(
                "/_matrix/client/v3/sync?filter={\"room\":{\"timeline\":{\"limit\":50}}}"
                    .replace('"', "%22")
                    .replace('{', "%7B")
                    .replace('}', "%7D")
                    .as_str(),
                Some(&bob),
            )
            .await
            .ok();
        let timeline = &synced["rooms"]["join"][&room.id]["timeline"]["events"];
        for (reader, events) in [("messages", &messages["chunk"]), ("sync", timeline)] {
            let event = events
                .as_array()
                .unwrap()
                .iter()
                .find(|event| event["event_id"] == root.as_str());
            let event = event.unwrap_or_else(|| panic!("{reader} shows the root"));
            assert_eq!(event["unsigned"]["m.relations"]["m.thread"]["count"], 2, "{reader}");
        }
        assert_eq!(context["event"]["unsigned"]["m.relations"]["m.thread"]["count"], 2);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_threads_of_a_room_are_listed_by_their_newest_reply() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob, eve) = (
            server.register("alice").await,
            server.register("bob").await,
            server.register("eve").await,
        );
        let room = Room::new(&server, &alice, &[&bob, &eve]).await;
        let mut roots = Vec::new();
        for (n, author) in [&alice, &bob, &eve].into_iter().enumerate() {
            roots.push(room.say(author, &format!("root {n}"), Value::Null).await);
        }
        for (n, root) in [(0, 2), (1, 1), (2, 0)] {
            room.say(&eve, &format!("reply {n}"), thread(&roots[root])).await;
        }
        room.say(&bob, "once more", thread(&roots[2])).await;
        let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
        let all = room.get(&alice, "threads").await;
        assert_eq!(ids(&all), [roots[2], roots[0], roots[1]]);
        let first = &all["chunk"][0]["unsigned"]["m.relations"]["m.thread"];
        assert_eq!((&first["count"], &first["latest_event"]["content"]["body"]), (&json!(2), &json!("once more")));
        let mine = room.get(&alice, "threads?include=participated").await;
        assert_eq!(ids(&mine), [roots[0]]);
        let bobs = room.get(&bob, "threads?include=participated").await;
        assert_eq!(ids(&bobs), [roots[2], roots[1]]);
        let page = room.get(&alice, "threads?limit=2").await;
        assert_eq!(ids(&page), [roots[2], roots[0]]);
        let next = page["next_batch"].as_str().unwrap();
        let page = room.get(&alice, &format!("threads?limit=2&from={next}")).await;
        assert_eq!(ids(&page), [roots[1]]);
        assert!(page.get("next_batch").is_none(), "{page}");

        // A thread begins at an event that relates to nothing, and one reaction is enough.
        let reply = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": thread(
                mine["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"].as_str().unwrap()) });
        room.send(&alice, "m.room.message", reply).await.is_error(400, "M_UNKNOWN");
        room.react(&alice, roots[0], "👍").await.ok();
        room.react(&bob, roots[0], "👍").await.ok();
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.reaction/again", room.id);
        let again = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": roots[0], "key": "👍" } });
        server.json(Method::PUT, &path, Some(&alice), &again).await.is_error(400, "M_DUPLICATE_ANNOTATION");
        let outsider = server.register("outsider").await;
        let path = format!("/_matrix/client/v1/rooms/{}/threads", room.id);
        server.get(&path, Some(&outsider)).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}
