//! What grows old is removed, on both engines.

use http::Method;
use serde_json::json;

use crate::sync::{each, joined};

const DAY_MS: u64 = 24 * 3_600_000;

#[tokio::test]
async fn what_is_old_is_removed_and_what_is_unread_stays() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let room = w.room(&alice, json!({"preset": "public_chat"})).await;
        w.join(&bob, &room).await;
        w.say(&alice, &room, "one").await;
        w.say(&alice, &room, "two").await;
        let to_device = json!({"messages": {&bob.id: {"bob-device": {"body": "x"}}}});
        w.put(&alice, "/_matrix/client/v3/sendToDevice/my.type/1", to_device)
            .await;
        let reserved = w.post(&alice, "/_matrix/media/v1/create", json!({})).await;
        let media_id = reserved["content_uri"].as_str().unwrap().rsplit('/').next().unwrap();
        let store = &w.server.homeserver.store;

        w.server.homeserver.tidy().await.unwrap();
        assert!(store.media(media_id).await.unwrap().is_some());
        assert_eq!(store.push_rows().await.unwrap(), 2);

        w.server.clock.advance_ms(DAY_MS + 1);
        w.server.homeserver.tidy().await.unwrap();
        assert!(store.media(media_id).await.unwrap().is_none());
        assert_eq!(store.forget_to_device_transactions(i64::MAX, 10).await.unwrap(), 0);
        assert_eq!(store.push_rows().await.unwrap(), 2);

        w.server.clock.advance_ms(30 * DAY_MS);
        w.server.homeserver.tidy().await.unwrap();
        assert_eq!(store.push_rows().await.unwrap(), 0);
        let count = |sync| joined(&sync, &room)["unread_notifications"]["notification_count"].clone();
        assert_eq!(count(w.sync(&bob, "").await), 2);
        w.say(&alice, &room, "three").await;
        assert_eq!(count(w.sync(&bob, "").await), 3);
        let read = w.say(&alice, &room, "four").await;
        w.receipt(&bob, &room, "m.read", &read, json!({})).await;
        assert_eq!(count(w.sync(&bob, "").await), 0);
        // Devices are still who they were.
        w.server
            .json(
                Method::GET,
                "/_matrix/client/v3/account/whoami",
                Some(&bob.token),
                &json!({}),
            )
            .await
            .ok();
        w.server.stop().await;
    })
    .await;
}
