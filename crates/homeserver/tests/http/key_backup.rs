//! Server-side key backups.
//! Spec: client-server API, "Server-side key backups".

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Server};

const VERSION: &str = "/_matrix/client/v3/room_keys/version";
const KEYS: &str = "/_matrix/client/v3/room_keys/keys";

struct User<'a> {
    server: &'a Server,
    token: String,
}

impl User<'_> {
    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        self.server.json(method, path, Some(&self.token), &body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.server.get(path, Some(&self.token)).await
    }

    async fn create(&self, key: &str) -> String {
        let answer = self.call(Method::POST, VERSION, definition(key)).await.ok();
        answer["version"].as_str().unwrap().to_owned()
    }

    async fn put(&self, path: &str, body: Value) -> Value {
        self.call(Method::PUT, path, body).await.ok()
    }
}

fn definition(key: &str) -> Value {
    json!({ "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": { "public_key": key } })
}

fn session(index: u64, forwarded: u64, verified: bool, text: &str) -> Value {
    json!({
        "first_message_index": index, "forwarded_count": forwarded, "is_verified": verified,
        "session_data": { "ciphertext": text },
    })
}

#[tokio::test]
async fn versions_follow_each_other() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let [alice, bob] = [alice, bob].map(|token| User { server: &server, token });
        alice.get(VERSION).await.is_error(404, "M_NOT_FOUND");
        alice.get(&format!("{VERSION}/1")).await.is_error(404, "M_NOT_FOUND");
        alice
            .get(&format!("{VERSION}/not-a-version"))
            .await
            .is_error(404, "M_NOT_FOUND");

        let first = alice.create("one").await;
        let shown = alice.get(VERSION).await.ok();
        assert_eq!(shown["version"], first.as_str());
        assert_eq!(
            (&shown["count"], &shown["auth_data"]["public_key"]),
            (&json!(0), &json!("one"))
        );
        assert!(shown["etag"].is_string(), "{shown}");
        bob.get(VERSION).await.is_error(404, "M_NOT_FOUND");

        let path = format!("{VERSION}/{first}");
        alice.put(&path, definition("renewed")).await;
        assert_eq!(alice.get(&path).await.ok()["auth_data"]["public_key"], "renewed");
        let mut other = definition("x");
        other["algorithm"] = json!("org.example.other");
        alice
            .call(Method::PUT, &path, other)
            .await
            .is_error(400, "M_INVALID_PARAM");
        let mut other = definition("x");
        other["version"] = json!("9");
        alice
            .call(Method::PUT, &path, other)
            .await
            .is_error(400, "M_INVALID_PARAM");
        alice
            .call(Method::PUT, &format!("{VERSION}/9"), definition("x"))
            .await
            .is_error(404, "M_NOT_FOUND");

        // The newest is the current one; when it is deleted, the one before is, and its number is not given out again.
        let second = alice.create("two").await;
        assert_eq!(alice.get(VERSION).await.ok()["version"], second.as_str());
        alice
            .call(Method::DELETE, &format!("{VERSION}/{second}"), json!({}))
            .await
            .ok();
        alice
            .get(&format!("{VERSION}/{second}"))
            .await
            .is_error(404, "M_NOT_FOUND");
        alice
            .call(Method::DELETE, &format!("{VERSION}/{second}"), json!({}))
            .await
            .is_error(404, "M_NOT_FOUND");
        assert_eq!(alice.get(VERSION).await.ok()["version"], first.as_str());
        assert!(![first, second].contains(&alice.create("three").await));
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn keys_are_put_read_and_deleted_by_all_by_room_and_by_session() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let alice = User {
            server: &server,
            token: server.register("alice").await,
        };
        let version = alice.create("one").await;
        let at = |path: &str| format!("{KEYS}{path}?version={version}");

        let all = json!({ "rooms": {
            "!a:example.org": { "sessions": { "s1": session(0, 0, true, "a1"), "s2": session(0, 0, true, "a2") } },
            "!b:example.org": { "sessions": { "s1": session(0, 0, true, "b1") } },
        } });
        let stored = alice.put(&at(""), all.clone()).await;
        assert_eq!(stored["count"], 3);
        let etag = stored["etag"].as_str().unwrap().to_owned();
        assert_eq!(alice.get(&at("")).await.ok(), all);
        assert_eq!(
            alice.get(&at("/!a:example.org")).await.ok(),
            all["rooms"]["!a:example.org"]
        );
        assert_eq!(
            alice.get(&at("/!a:example.org/s2")).await.ok(),
            session(0, 0, true, "a2")
        );
        assert_eq!(alice.get(&at("/!c:example.org")).await.ok(), json!({ "sessions": {} }));
        alice.get(&at("/!a:example.org/s9")).await.is_error(404, "M_NOT_FOUND");

        // The same again changes nothing, so the etag stays.
        assert_eq!(alice.put(&at(""), all).await["etag"], etag.as_str());
        let room = json!({ "sessions": { "s3": session(0, 0, true, "a3") } });
        let stored = alice.put(&at("/!a:example.org"), room).await;
        assert_eq!(stored["count"], 4);
        assert_ne!(stored["etag"], etag.as_str());
        let stored = alice.put(&at("/!a:example.org/s4"), session(0, 0, true, "a4")).await;
        assert_eq!(stored["count"], 5);
        assert_eq!(alice.get(VERSION).await.ok()["count"], 5);
        assert_eq!(alice.get(VERSION).await.ok()["etag"], stored["etag"]);

        let deleted = |path: &str| {
            let path = at(path);
            let alice = &alice;
            async move { alice.call(Method::DELETE, &path, json!({})).await.ok() }
        };
        let etag = stored["etag"].clone();
        assert_eq!(deleted("/!a:example.org/s9").await, json!({ "count": 5, "etag": etag }));
        let one = deleted("/!a:example.org/s1").await;
        assert_eq!(one["count"], 4);
        assert_ne!(one["etag"], etag);
        assert_eq!(deleted("/!a:example.org").await["count"], 1);
        assert_eq!(deleted("").await["count"], 0);
        assert_eq!(alice.get(&at("")).await.ok(), json!({ "rooms": {} }));
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_better_key_of_a_session_stays() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let alice = User {
            server: &server,
            token: server.register("alice").await,
        };
        let version = alice.create("one").await;
        let path = format!("{KEYS}/!a:example.org/s?version={version}");
        // In turn: the key that comes, and which one is there afterwards.
        let steps = [
            (session(5, 5, false, "first"), "first"),
            (session(5, 6, false, "forwarded more often"), "first"),
            (session(6, 0, false, "later index"), "first"),
            (session(5, 4, false, "forwarded less often"), "forwarded less often"),
            (session(4, 9, false, "earlier index"), "earlier index"),
            (session(9, 9, true, "verified"), "verified"),
            (session(0, 0, false, "not verified"), "verified"),
            (session(9, 9, true, "as good"), "verified"),
            (session(8, 9, true, "verified, earlier"), "verified, earlier"),
        ];
        let mut etag = String::new();
        for (key, expected) in steps {
            let text = key["session_data"]["ciphertext"].as_str().unwrap().to_owned();
            let stored = alice.put(&path, key).await;
            let kept = alice.get(&path).await.ok();
            assert_eq!(kept["session_data"]["ciphertext"], expected, "after {text:?}");
            assert_eq!(stored["count"], 1);
            // The etag moves exactly when the backup does.
            assert_eq!(stored["etag"] != etag.as_str(), text == expected, "after {text:?}");
            etag = stored["etag"].as_str().unwrap().to_owned();
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn keys_go_into_the_current_version_only() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let alice = User {
            server: &server,
            token: server.register("alice").await,
        };
        let body = json!({ "rooms": {} });
        alice
            .call(Method::PUT, &format!("{KEYS}?version=1"), body.clone())
            .await
            .is_error(404, "M_NOT_FOUND");
        let old = alice.create("one").await;
        alice
            .put(
                &format!("{KEYS}/!a:example.org/s?version={old}"),
                session(0, 0, true, "old"),
            )
            .await;
        let new = alice.create("two").await;
        for path in ["", "/!a:example.org", "/!a:example.org/s"] {
            let body = match path.matches('/').count() {
                0 => body.clone(),
                1 => json!({ "sessions": {} }),
                _ => session(0, 0, true, "x"),
            };
            let refused = alice
                .call(Method::PUT, &format!("{KEYS}{path}?version={old}"), body.clone())
                .await;
            refused.is_error(403, "M_WRONG_ROOM_KEYS_VERSION");
            assert_eq!(refused.json()["current_version"], new.as_str());
            alice
                .call(Method::PUT, &format!("{KEYS}{path}"), body)
                .await
                .is_error(400, "M_MISSING_PARAM");
        }
        // Old ones can still be read, and keys deleted from them.
        let kept = alice.get(&format!("{KEYS}?version={old}")).await.ok();
        assert_eq!(
            kept["rooms"]["!a:example.org"]["sessions"]["s"]["session_data"]["ciphertext"],
            "old"
        );
        for method in [Method::GET, Method::DELETE] {
            alice
                .call(method.clone(), &format!("{KEYS}?version=77"), json!({}))
                .await
                .is_error(404, "M_NOT_FOUND");
            alice
                .call(method, KEYS, json!({}))
                .await
                .is_error(400, "M_MISSING_PARAM");
        }
        alice
            .call(Method::DELETE, &format!("{KEYS}?version={old}"), json!({}))
            .await
            .ok();
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_backup_takes_is_bounded() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let alice = User {
            server: &server,
            token: server.register("alice").await,
        };
        let version = alice.create("one").await;
        let path = format!("{KEYS}/!a:example.org/s?version={version}");
        let big = "x".repeat(17 * 1024);
        alice
            .call(Method::PUT, &path, session(0, 0, true, &big))
            .await
            .is_error(413, "M_TOO_LARGE");
        let mut text = session(0, 0, true, "x");
        text["session_data"] = json!("text");
        alice.call(Method::PUT, &path, text).await.is_error(400, "M_BAD_JSON");
        let mut negative = session(0, 0, true, "x");
        negative["first_message_index"] = json!(-1);
        alice
            .call(Method::PUT, &path, negative)
            .await
            .is_error(400, "M_BAD_JSON");
        let long = "s".repeat(256);
        for id in ["%00", long.as_str()] {
            let path = format!("{KEYS}/!a:example.org/{id}?version={version}");
            for method in [Method::PUT, Method::GET, Method::DELETE] {
                let refused = alice.call(method, &path, session(0, 0, true, "x")).await;
                refused.is_error(400, "M_INVALID_PARAM");
            }
        }
        let auth_data = definition(&"x".repeat(65 * 1024));
        alice
            .call(Method::POST, VERSION, auth_data)
            .await
            .is_error(413, "M_TOO_LARGE");
        for body in [
            json!({}),
            json!({ "algorithm": "x", "auth_data": "text" }),
            json!({ "auth_data": {} }),
        ] {
            alice
                .call(Method::POST, VERSION, body)
                .await
                .is_error(400, "M_BAD_JSON");
        }
        assert_eq!(alice.get(VERSION).await.ok()["count"], 0);
        server.stop().await;
    })
    .await;
}
