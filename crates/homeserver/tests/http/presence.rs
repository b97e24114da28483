//! Who is there.
//! Spec: client-server API, "Presence".

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Server};

async fn room_of(server: &Server, maker: &str, others: &[&str]) -> String {
    let body = json!({ "preset": "public_chat" });
    let made = server
        .json(Method::POST, "/_matrix/client/v3/createRoom", Some(maker), &body)
        .await
        .ok();
    let id = made["room_id"].as_str().unwrap().to_owned();
    for other in others {
        let path = format!("/_matrix/client/v3/rooms/{id}/join");
        server.json(Method::POST, &path, Some(other), &json!({})).await.ok();
    }
    id
}

async fn sync(server: &Server, token: &str, query: &str) -> Value {
    server
        .get(&format!("/_matrix/client/v3/sync?{query}"), Some(token))
        .await
        .ok()
}

/// What a sync brought of a user's presence, the newest.
fn presence_of<'a>(synced: &'a Value, user: &str) -> Option<&'a Value> {
    let events = synced["presence"]["events"].as_array()?;
    let event = events.iter().rev().find(|event| event["sender"] == user)?;
    assert_eq!(event["type"], "m.presence");
    Some(&event["content"])
}

fn since(synced: &Value) -> String {
    format!("since={}", synced["next_batch"].as_str().unwrap())
}

async fn status(server: &Server, token: &str, user: &str) -> Answer {
    server
        .get(&format!("/_matrix/client/v3/presence/{user}/status"), Some(token))
        .await
}

async fn say(server: &Server, token: &str, user: &str, body: Value) -> Answer {
    let path = format!("/_matrix/client/v3/presence/{user}/status");
    server.json(Method::PUT, &path, Some(token), &body).await
}

const ALICE: &str = "@alice:example.org";
const BOB: &str = "@bob:example.org";

#[tokio::test]
async fn those_who_share_a_room_see_each_other_come_rest_and_go() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let eve = server.register("eve").await;
        room_of(&server, &alice, &[&bob]).await;
        let start = sync(&server, &alice, "set_presence=offline").await;
        assert!(presence_of(&start, BOB).is_none());
        assert_eq!(status(&server, &alice, BOB).await.ok()["presence"], "offline");

        // Whoever syncs is there.
        sync(&server, &bob, "").await;
        let come = sync(&server, &alice, &format!("{}&set_presence=offline", since(&start))).await;
        let seen = presence_of(&come, BOB).expect("bob came");
        assert_eq!(
            (&seen["presence"], &seen["currently_active"]),
            (&json!("online"), &json!(true))
        );
        assert_eq!(seen["last_active_ago"], 0);
        assert!(
            presence_of(&come, ALICE).is_none(),
            "who does not want to be seen is not"
        );
        let quiet = sync(&server, &alice, &format!("{}&set_presence=offline", since(&come))).await;
        assert!(quiet.get("presence").is_none(), "{quiet}");

        // A minute on, still syncing: there, but not active. Five minutes on: idle.
        server.clock.advance_ms(20_000);
        sync(&server, &bob, "").await;
        server.clock.advance_ms(20_000);
        sync(&server, &bob, "").await;
        server.clock.advance_ms(20_000);
        server.homeserver.expire_presence().await.unwrap();
        let rests = sync(&server, &alice, &format!("{}&set_presence=offline", since(&quiet))).await;
        let seen = presence_of(&rests, BOB).expect("bob rests");
        assert_eq!(
            (&seen["presence"], &seen["currently_active"]),
            (&json!("online"), &json!(false))
        );
        assert_eq!(seen["last_active_ago"], 60_000);
        sync(&server, &bob, "").await;
        for _ in 0..12 {
            server.clock.advance_ms(20_000);
            sync(&server, &bob, "").await;
        }
        server.homeserver.expire_presence().await.unwrap();
        let idle = sync(&server, &alice, &format!("{}&set_presence=offline", since(&rests))).await;
        assert_eq!(presence_of(&idle, BOB).expect("bob is idle")["presence"], "unavailable");

        // Doing something ends that at once; staying away is noticed after half a minute.
        say(
            &server,
            &bob,
            BOB,
            json!({ "presence": "online", "status_msg": "at the fire" }),
        )
        .await
        .ok();
        let back = sync(&server, &alice, &format!("{}&set_presence=offline", since(&idle))).await;
        let seen = presence_of(&back, BOB).expect("bob is back");
        assert_eq!(
            (&seen["presence"], &seen["status_msg"]),
            (&json!("online"), &json!("at the fire"))
        );
        server.clock.advance_ms(30_000);
        server.homeserver.expire_presence().await.unwrap();
        let gone = sync(&server, &alice, &format!("{}&set_presence=offline", since(&back))).await;
        let seen = presence_of(&gone, BOB).expect("bob is gone");
        assert_eq!(
            (&seen["presence"], &seen["last_active_ago"]),
            (&json!("offline"), &json!(30_000))
        );

        // Outsiders see nothing, and nobody speaks for another.
        status(&server, &eve, BOB).await.is_error(403, "M_FORBIDDEN");
        status(&server, &eve, "@nobody:example.org")
            .await
            .is_error(404, "M_NOT_FOUND");
        assert!(presence_of(&sync(&server, &eve, "").await, BOB).is_none());
        say(&server, &eve, BOB, json!({ "presence": "online" }))
            .await
            .is_error(403, "M_FORBIDDEN");
        say(&server, &bob, BOB, json!({ "presence": "dancing" }))
            .await
            .is_error(400, "M_INVALID_PARAM");
        server
            .get("/_matrix/client/v3/sync?set_presence=dancing", Some(&bob))
            .await
            .is_error(400, "M_INVALID_PARAM");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_waiting_sync_is_woken_and_its_filter_counts() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        room_of(&server, &alice, &[&bob]).await;
        let start = sync(&server, &alice, "").await;
        let wait = format!("{}&timeout=30000", since(&start));
        let waiting = sync(&server, &alice, &wait);
        let coming = async {
            tokio::task::yield_now().await;
            sync(&server, &bob, "").await
        };
        let woken = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(waiting, coming).0 }).await;
        let woken = woken.expect("it does not wait for the end");
        assert_eq!(presence_of(&woken, BOB).expect("bob came")["presence"], "online");
        // While a sync waits its device is there, however long that takes.
        assert_eq!(status(&server, &bob, ALICE).await.ok()["presence"], "online");

        let nothing = "filter=%7B%22presence%22%3A%7B%22not_types%22%3A%5B%22*%22%5D%7D%7D";
        let filtered = sync(&server, &alice, nothing).await;
        assert!(filtered.get("presence").is_none(), "{filtered}");
        let senders = "filter=%7B%22presence%22%3A%7B%22not_senders%22%3A%5B%22@bob:example.org%22%5D%7D%7D";
        let filtered = sync(&server, &alice, senders).await;
        assert!(presence_of(&filtered, BOB).is_none() && presence_of(&filtered, ALICE).is_some());
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_enters_a_room_sees_who_is_there_and_is_seen() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let (at_alice, at_bob) = (sync(&server, &alice, "").await, sync(&server, &bob, "").await);
        assert!(presence_of(&at_bob, ALICE).is_none());
        room_of(&server, &alice, &[&bob]).await;
        let entered = sync(&server, &bob, &since(&at_bob)).await;
        assert_eq!(
            presence_of(&entered, ALICE).expect("alice is there")["presence"],
            "online"
        );
        // Bob's coming is told by the task that hears of it.
        let mut from = since(&at_alice);
        let mut heard = false;
        for _ in 0..20 {
            let synced = sync(&server, &alice, &format!("{from}&timeout=1000")).await;
            heard = presence_of(&synced, BOB).is_some();
            if heard {
                break;
            }
            from = since(&synced);
        }
        assert!(heard, "alice does not hear of bob");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn words_outlive_a_restart_and_a_setting_turns_all_off() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let alice = server.register("alice").await;
        let said = json!({ "presence": "online", "status_msg": "在火边" });
        say(&server, &alice, ALICE, said).await.ok();
        server.stop().await;

        let server = Server::start(&db).await;
        let seen = status(&server, &alice, ALICE).await.ok();
        assert_eq!(seen, json!({ "presence": "offline", "status_msg": "在火边" }));
        say(&server, &alice, ALICE, json!({ "presence": "online" })).await.ok();
        assert!(status(&server, &alice, ALICE).await.ok().get("status_msg").is_none());
        server.stop().await;

        let server = Server::start_with(&db, |c| c.presence.enabled = false).await;
        say(&server, &alice, ALICE, json!({ "presence": "online" }))
            .await
            .is_error(403, "M_FORBIDDEN");
        assert!(sync(&server, &alice, "").await.get("presence").is_none());
        assert_eq!(
            status(&server, &alice, ALICE).await.ok(),
            json!({ "presence": "offline" })
        );
        server.stop().await;
    })
    .await;
}
