//! Moments in which a sync could go wrong: between a change and its publication, and at the end of a session.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::{
    harness::Answer,
    sync::{User, World, bodies, each, escaped, joined},
};

/// Somebody writes and throws a member out, but an older position is unfinished (as PostgreSQL's commits may be): the
/// member's answers lag behind what memory knows, and must not lose the message for that.
#[tokio::test]
async fn a_kick_that_is_not_published_yet_hides_no_message() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        // Both with and without a session that remembers what changed.
        for remembered in [true, false] {
            let before = w.sync(&bob, "").await;
            if !remembered {
                w.server.homeserver.sync.notifier.forget_idle(u64::MAX);
            }
            let last = format!("the last word, {remembered}");
            w.say(&alice, &room, &last).await;
            let held = w.server.homeserver.store.reserve(1).await.unwrap();
            let kick = format!("/_matrix/client/v3/rooms/{}/kick", escaped(&room));
            w.post(&alice, &kick, json!({"user_id": bob.id})).await;
            let behind = w.since(&bob, &before).await;
            assert_eq!(bodies(&joined(&behind, &room)["timeline"]), [last.as_str()], "{behind}");
            drop(held);
            let after = w.since(&bob, &behind).await;
            assert!(after["rooms"]["leave"][&room].is_object(), "{after}");
            assert_eq!(bodies(&after["rooms"]["leave"][&room]["timeline"]), Vec::<&str>::new());
            w.join(&bob, &room).await;
        }
        w.server.stop().await;
    })
    .await;
}

/// What ends a membership, but is not published yet, is no break in it: the member has what came before.
#[tokio::test]
async fn a_kick_that_is_not_published_yet_makes_nobody_a_newcomer() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        let before = w.sync(&bob, "").await;
        let member = format!("m.room.member/{}", escaped(&bob.id));
        let renamed = json!({"membership": "join", "displayname": "Bob"});
        w.set_state(&bob, &room, &member, renamed).await;
        let held = w.server.homeserver.store.reserve(1).await.unwrap();
        let kick = format!("/_matrix/client/v3/rooms/{}/kick", escaped(&room));
        w.post(&alice, &kick, json!({"user_id": bob.id})).await;
        let behind = w.since(&bob, &before).await;
        let told = &joined(&behind, &room)["timeline"];
        assert_eq!(told["limited"], false, "{behind}");
        assert_eq!(told["events"].as_array().unwrap().len(), 1, "{behind}");
        drop(held);
        w.server.stop().await;
    })
    .await;
}

async fn waiting<T>(w: &World, user: &User, since: &Value, meanwhile: impl Future<Output = T>) -> Answer {
    let since = since["next_batch"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/sync?since={since}&timeout=60000");
    let poll = w.server.get(&path, Some(&user.token));
    tokio::pin!(poll);
    tokio::select! {
        answer = &mut poll => panic!("it does not wait: {answer:?}"),
        // Polled first, so that the sync sleeps when the other begins.
        () = tokio::task::yield_now() => {}
    }
    let (answer, _) = tokio::join!(tokio::time::timeout(Duration::from_secs(30), poll), meanwhile);
    answer.expect("it is woken")
}

#[tokio::test]
async fn a_waiting_sync_ends_with_its_session() {
    each(|w| async move {
        let log_in = async |name: &str, device: &str| {
            let body = json!({
                "type": "m.login.password", "device_id": device, "password": format!("password of {name}"),
                "identifier": {"type": "m.id.user", "user": name},
            });
            let answer = w
                .server
                .json(Method::POST, "/_matrix/client/v3/login", None, &body)
                .await
                .ok();
            User {
                id: answer["user_id"].as_str().unwrap().to_owned(),
                token: answer["access_token"].as_str().unwrap().to_owned(),
            }
        };
        let first = w.user("alice").await;
        let log_out = |user: &User| {
            let (w, token) = (&w, user.token.clone());
            async move {
                w.server
                    .json(Method::POST, "/_matrix/client/v3/logout", Some(&token), &json!({}))
                    .await
                    .ok()
            }
        };

        // It logs out.
        let second = log_in("alice", "second").await;
        let sync = w.sync(&second, "").await;
        let answer = waiting(&w, &second, &sync, log_out(&second)).await;
        answer.is_error(401, "M_UNKNOWN_TOKEN");

        // The same device signs in again: the token of before is of no use.
        let third = log_in("alice", "third").await;
        let sync = w.sync(&third, "").await;
        waiting(&w, &third, &sync, log_in("alice", "third"))
            .await
            .is_error(401, "M_UNKNOWN_TOKEN");

        // Another device comes and goes: this one sleeps on, and hears of the next message to it.
        let sync = w.sync(&first, "").await;
        let other = async {
            let other = log_in("alice", "other").await;
            w.put(
                &other,
                "/_matrix/client/v3/sendToDevice/my.type/1",
                json!({"messages": {&first.id: {"alice-device": {"body": "still here"}}}}),
            )
            .await;
        };
        let answer = waiting(&w, &first, &sync, other).await.ok();
        assert_eq!(bodies(&answer["to_device"]), ["still here"]);

        // The account ends.
        let sync = w.since(&first, &answer).await;
        let user_id = first.id.as_str().try_into().unwrap();
        let end = w.server.homeserver.deactivate_account(user_id);
        waiting(&w, &first, &sync, end).await.is_error(401, "M_UNKNOWN_TOKEN");
        w.server.stop().await;
    })
    .await;
}
