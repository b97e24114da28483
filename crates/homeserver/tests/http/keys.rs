//! Keys for end-to-end encryption and messages from device to device.

use std::collections::BTreeSet;

use http::Method;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId,
    serde::base64::{Base64, Standard},
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::{Value, json};

use crate::{
    harness::{Answer, Server},
    sync::each,
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const SIGNING: &str = "/_matrix/client/v3/keys/device_signing/upload";
const SIGNATURES: &str = "/_matrix/client/v3/keys/signatures/upload";

async fn post(server: &Server, path: &str, token: &str, body: Value) -> Answer {
    server.json(Method::POST, path, Some(token), &body).await
}

/// A signing key named by its own public half, or by a device.
struct Key {
    pair: Ed25519KeyPair,
    public: String,
}

impl Key {
    fn new(name: Option<&str>) -> Self {
        let der = Ed25519KeyPair::generate();
        let public = |pair: &Ed25519KeyPair| Base64::<Standard, _>::new(pair.public_key()).encode();
        let unnamed = Ed25519KeyPair::from_der(&der, "x".to_owned()).unwrap();
        let name = name.map_or_else(|| public(&unnamed), str::to_owned);
        // A version of base64 characters is not what the constructor allows, so the name is put in when signing.
        Self {
            public: public(&unnamed),
            pair: Ed25519KeyPair::from_der(&der, name).unwrap(),
        }
    }

    fn sign(&self, user: &str, object: Value) -> Value {
        let mut object: CanonicalJsonObject = match CanonicalJsonValue::try_from(object).unwrap() {
            CanonicalJsonValue::Object(object) => object,
            _ => panic!("an object is signed"),
        };
        sign_json(user, &self.pair, &mut object).unwrap();
        serde_json::to_value(object).unwrap()
    }
}

fn cross_signing(user: &str, usage: &str, key: &Key) -> Value {
    json!({ "user_id": user, "usage": [usage], "keys": { format!("ed25519:{}", key.public): key.public } })
}

fn device_keys(user: &str, device: &str, key: &Key) -> Value {
    json!({
        "user_id": user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): key.public, format!("curve25519:{device}"): "abc" },
    })
}

#[tokio::test]
async fn one_time_keys_go_to_one_claimant_each() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.rate_limits.enabled = false).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let keys: serde_json::Map<String, Value> =
            (0..10).map(|n| (format!("signed_curve25519:K{n}"), json!({ "key": n.to_string() }))).collect();
        let body = json!({ "one_time_keys": keys, "fallback_keys": { "signed_curve25519:F": { "key": "f", "fallback": true } } });
        let counts = post(&server, UPLOAD, &alice, body.clone()).await.ok();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 10);
        // Again the same: nothing changes. Another content: refused.
        post(&server, UPLOAD, &alice, body).await.ok();
        let other = json!({ "one_time_keys": { "signed_curve25519:K0": { "key": "other" } } });
        post(&server, UPLOAD, &alice, other).await.is_error(400, "M_INVALID_PARAM");

        let claim = json!({ "one_time_keys": { "@alice:example.org": { "alice-device": "signed_curve25519" } } });
        let claims = (0..15).map(|_| post(&server, "/_matrix/client/v3/keys/claim", &bob, claim.clone()));
        let mut taken = Vec::new();
        for answer in futures_util::future::join_all(claims).await {
            let answer = answer.ok();
            let keys = answer["one_time_keys"]["@alice:example.org"]["alice-device"].as_object().unwrap().clone();
            taken.extend(keys.into_iter().map(|(name, _)| name));
        }
        assert_eq!(taken.len(), 15);
        assert_eq!(taken.iter().filter(|name| *name == "signed_curve25519:F").count(), 5);
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 11);
        let user: OwnedUserId = "@alice:example.org".try_into().unwrap();
        let left = server.homeserver.devices.key_counts(&user, "alice-device".into()).await.unwrap();
        assert_eq!(*left, homeserver::devices::KeyCounts::default());
        let counts = post(&server, UPLOAD, &alice, json!({})).await.ok();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], 0);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn cross_signing_from_the_first_start_to_a_verified_friend() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.rate_limits.enabled = false).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let (a, b) = ("@alice:example.org", "@bob:example.org");
        let device = Key::new(Some("alice-device"));
        let keys = device.sign(a, device_keys(a, "alice-device", &device));
        post(&server, UPLOAD, &alice, json!({ "device_keys": keys })).await.ok();
        post(&server, UPLOAD, &bob, json!({ "device_keys": keys }))
            .await
            .is_error(400, "M_INVALID_PARAM");

        // The first keys need no confirmation.
        let (master, selfs, users) = (Key::new(None), Key::new(None), Key::new(None));
        let signing = json!({
            "master_key": device.sign(a, cross_signing(a, "master", &master)),
            "self_signing_key": master.sign(a, cross_signing(a, "self_signing", &selfs)),
            "user_signing_key": master.sign(a, cross_signing(a, "user_signing", &users)),
        });
        let mut forged = signing.clone();
        forged["self_signing_key"] = users.sign(a, cross_signing(a, "self_signing", &selfs));
        post(&server, SIGNING, &alice, forged)
            .await
            .is_error(400, "M_INVALID_SIGNATURE");
        post(&server, SIGNING, &alice, signing.clone()).await.ok();
        post(&server, SIGNING, &alice, signing.clone()).await.ok();

        // Others see them, but not the user-signing key.
        let query = json!({ "device_keys": { a: [], b: [], "@x:elsewhere": [] } });
        let mine = post(&server, QUERY, &alice, query.clone()).await.ok();
        assert_eq!(
            mine["user_signing_keys"][a]["keys"],
            signing["user_signing_key"]["keys"]
        );
        let theirs = post(&server, QUERY, &bob, query.clone()).await.ok();
        assert_eq!(theirs["master_keys"][a], signing["master_key"]);
        assert_eq!(theirs["user_signing_keys"], json!({}));
        assert_eq!(theirs["device_keys"][b], json!({}));
        assert!(theirs["failures"]["elsewhere"].is_object());

        // Another master key needs the password.
        let replaced = Key::new(None);
        let replacement = json!({ "master_key": cross_signing(a, "master", &replaced) });
        let asked = post(&server, SIGNING, &alice, replacement.clone()).await;
        assert_eq!(asked.status, 401);
        assert_eq!(
            post(&server, QUERY, &bob, query.clone()).await.ok()["master_keys"][a],
            signing["master_key"]
        );

        // Alice signs her device with the self-signing key; everybody sees it.
        let signed = selfs.sign(a, device_keys(a, "alice-device", &device));
        let body = json!({ a: { "alice-device": signed } });
        assert_eq!(
            post(&server, SIGNATURES, &alice, body).await.ok()["failures"],
            json!({})
        );
        let theirs = post(&server, QUERY, &bob, query.clone()).await.ok();
        let signatures = theirs["device_keys"][a]["alice-device"]["signatures"][a]
            .as_object()
            .unwrap();
        assert_eq!(signatures.len(), 2);

        // Bob verifies alice: his signature is his alone.
        let (bob_master, bob_users) = (Key::new(None), Key::new(None));
        let signing = json!({
            "master_key": cross_signing(b, "master", &bob_master),
            "user_signing_key": bob_master.sign(b, cross_signing(b, "user_signing", &bob_users)),
        });
        post(&server, SIGNING, &bob, signing).await.ok();
        let verified = bob_users.sign(b, cross_signing(a, "master", &master));
        let body = json!({ a: { master.public.as_str(): verified } });
        assert_eq!(post(&server, SIGNATURES, &bob, body).await.ok()["failures"], json!({}));
        let theirs = post(&server, QUERY, &bob, query.clone()).await.ok();
        assert!(theirs["master_keys"][a]["signatures"][b].is_object());
        let mine = post(&server, QUERY, &alice, query.clone()).await.ok();
        assert!(mine["master_keys"][a]["signatures"].get(b).is_none());

        // What does not hold is named.
        let mut wrong = bob_users.sign(b, cross_signing(a, "master", &master));
        wrong["usage"] = json!(["other"]);
        let body = json!({ a: { master.public.as_str(): wrong, "unknown": {} } });
        let failures = post(&server, SIGNATURES, &bob, body).await.ok();
        assert_eq!(
            failures["failures"][a][master.public.as_str()]["errcode"],
            "M_INVALID_SIGNATURE"
        );
        assert_eq!(failures["failures"][a]["unknown"]["errcode"], "M_NOT_FOUND");

        // With the password the master key is replaced.
        let mut confirmed = replacement;
        confirmed["auth"] = json!({
            "type": "m.login.password", "password": "password of alice", "session": asked.json()["session"],
            "identifier": { "type": "m.id.user", "user": "alice" },
        });
        post(&server, SIGNING, &alice, confirmed).await.ok();
        let theirs = post(&server, QUERY, &bob, query).await.ok();
        assert!(
            theirs["master_keys"][a]["keys"]
                .get(format!("ed25519:{}", replaced.public))
                .is_some()
        );
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn messages_to_devices_are_queued_once_and_deleted_when_received() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, _bob) = (server.register("alice").await, server.register("bob").await);
        let path = "/_matrix/client/v3/sendToDevice/m.test/t1";
        let body = json!({ "messages": { "@bob:example.org": { "*": { "n": 1 } }, "@x:elsewhere": { "*": {} } } });
        for _ in 0..3 {
            server.json(Method::PUT, path, Some(&alice), &body).await.ok();
        }
        let body = json!({ "messages": { "@bob:example.org": { "bob-device": { "n": 2 }, "none": {} } } });
        server
            .json(
                Method::PUT,
                "/_matrix/client/v3/sendToDevice/m.test/t2",
                Some(&alice),
                &body,
            )
            .await
            .ok();

        let hs = &server.homeserver;
        let bob: OwnedUserId = "@bob:example.org".try_into().unwrap();
        let device = "bob-device".into();
        let now = hs.store.positions().current();
        let waiting = hs.devices.to_device(&bob, device, 0, now, 100).await.unwrap();
        let numbers: Vec<_> = waiting
            .iter()
            .map(|(_, event)| {
                serde_json::from_str::<Value>(event).unwrap()["content"]["n"]
                    .as_i64()
                    .unwrap()
            })
            .collect();
        assert_eq!(numbers, [1, 2]);
        hs.devices.delete_to_device(&bob, device, waiting[0].0).await.unwrap();
        assert_eq!(hs.devices.to_device(&bob, device, 0, now, 100).await.unwrap().len(), 1);
        hs.devices.delete_to_device(&bob, device, now).await.unwrap();
        assert!(
            hs.devices
                .to_device(&bob, device, 0, now, 100)
                .await
                .unwrap()
                .is_empty()
        );
        let body = json!({ "messages": { "@bob:example.org": { "bob-device": 1 } } });
        server
            .json(
                Method::PUT,
                "/_matrix/client/v3/sendToDevice/m.test/t3",
                Some(&alice),
                &body,
            )
            .await
            .is_error(400, "M_BAD_JSON");
        server.stop().await;
    })
    .await;
}

/// Of a room, its members learn who came and went while they were in it themselves.
#[tokio::test]
async fn key_changes_of_a_room_begin_with_the_join() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let (before, after) = (w.user("before").await, w.user("after").await);
        let begin = w.sync(&bob, "").await;
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&before, &room).await;
        w.leave(&before, &room).await;
        let changes = async |from: &Value, to: &Value| {
            let token = |sync: &Value| sync["next_batch"].as_str().unwrap().to_owned();
            let path = format!("/_matrix/client/v3/keys/changes?from={}&to={}", token(from), token(to));
            let mut answer = w.server.get(&path, Some(&bob.token)).await.ok();
            for list in ["changed", "left"] {
                // Everybody's own registration is news to themselves.
                answer[list]
                    .as_array_mut()
                    .unwrap()
                    .retain(|user| *user != json!(bob.id));
            }
            answer
        };
        w.join(&bob, &room).await;
        let joined = w.sync(&bob, "").await;
        assert_eq!(
            changes(&begin, &joined).await,
            json!({"changed": [alice.id], "left": []})
        );
        w.join(&after, &room).await;
        w.leave(&after, &room).await;
        let later = w.sync(&bob, "").await;
        assert_eq!(
            changes(&joined, &later).await,
            json!({"changed": [], "left": [after.id]})
        );
        assert_eq!(
            changes(&begin, &later).await,
            json!({"changed": [alice.id], "left": [after.id]})
        );
        w.leave(&bob, &room).await;
        let parted = w.sync(&bob, "").await;
        assert_eq!(
            changes(&later, &parted).await,
            json!({"changed": [], "left": [alice.id]})
        );
        w.join(&before, &room).await;
        let last = w.sync(&bob, "").await;
        assert_eq!(changes(&parted, &last).await, json!({"changed": [], "left": []}));
        w.server.stop().await;
    })
    .await;
}
