//! Account data, filters, receipts and unread counts, on both engines.

use storage::{
    Config, Error, Store,
    account_data::{AccountData, set_account_data},
    push::{Notified, NotifyingEvent, ReadUpTo, UnreadCount, forget_room_notifications, mark_read, record_notified},
    receipts::{Receipt, set_receipt},
};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

async fn put(store: &Store, key: (&'static str, &'static str, &'static str), content: &'static str) -> i64 {
    store
        .write_at::<_, Error, _>(1, move |tx, at| {
            Box::pin(async move { set_account_data(tx, key, content, at).await.map(|()| at) })
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn account_data_changes_come_once_with_their_last_content() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        put(&store, ("@a:x", "", "t"), "{}").await;
        let tag = put(&store, ("@a:x", "!r:x", "m.tag"), r#"{"tags":{}}"#).await;
        let last = put(&store, ("@a:x", "", "t"), r#"{"n":2}"#).await;
        put(&store, ("@b:x", "", "t"), "{}").await;
        let entry = |room: &str, r#type: &str, content: &str, position| AccountData {
            room_id: room.into(),
            r#type: r#type.into(),
            content: content.into(),
            position,
        };
        assert_eq!(
            store.account_data_changes("@a:x", 0, i64::MAX).await.unwrap(),
            [
                entry("!r:x", "m.tag", r#"{"tags":{}}"#, tag),
                entry("", "t", r#"{"n":2}"#, last)
            ]
        );
        assert_eq!(store.account_data_changes("@a:x", tag, last - 1).await.unwrap(), []);
        assert_eq!(store.account_data_of_room("@a:x", "!r:x").await.unwrap().len(), 1);
        assert_eq!(
            store.account_data("@a:x", "", "t").await.unwrap().as_deref(),
            Some(r#"{"n":2}"#)
        );
        assert_eq!(store.account_data("@a:x", "", "u").await.unwrap(), None);
        put(&store, ("@a:x", "", "m.push_rules"), "{}").await;
        put(&store, ("@b:x", "", "m.ignored_user_list"), r#"{"ignored_users":{}}"#).await;
        assert_eq!(store.users_with_push_rules().await.unwrap(), ["@a:x"]);
        assert_eq!(
            store.ignored_user_lists().await.unwrap(),
            [("@b:x".to_owned(), r#"{"ignored_users":{}}"#.to_owned())]
        );
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn filters_belong_to_their_user() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        for _ in 0..2 {
            store.keep_filter("@a:x".into(), "f".into(), "{}".into()).await.unwrap();
        }
        assert_eq!(store.filter("@a:x", "f").await.unwrap().as_deref(), Some("{}"));
        assert_eq!(store.filter("@b:x", "f").await.unwrap(), None);
        assert_eq!(store.filter("@a:x", "g").await.unwrap(), None);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn receipts_only_move_forward_in_their_thread() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let set = async |thread: &'static str, event_position: i64| {
            store
                .write_at::<_, Error, _>(1, move |tx, position| {
                    Box::pin(async move {
                        let receipt = Receipt {
                            user_id: "@a:x".into(),
                            r#type: "m.read".into(),
                            thread_id: thread.into(),
                            event_id: format!("${event_position}"),
                            event_position,
                            ts: 1,
                            position,
                        };
                        Ok((set_receipt(tx, "!r:x", &receipt).await?, position))
                    })
                })
                .await
                .unwrap()
        };
        let (moved, first) = set("", 10).await;
        assert!(moved);
        assert!(!set("", 10).await.0);
        assert!(!set("", 9).await.0);
        assert!(set("main", 9).await.0);
        let (moved, last) = set("", 11).await;
        assert!(moved);
        let events: Vec<String> = store
            .receipts_of_room("!r:x", 0, last)
            .await
            .unwrap()
            .into_iter()
            .map(|r| r.event_id)
            .collect();
        assert_eq!(events, ["$9", "$11"]);
        assert_eq!(store.receipts_of_room("!r:x", 0, first).await.unwrap(), []);
        assert_eq!(
            store.rooms_with_receipts(&["!q:x", "!r:x"], first, last).await.unwrap(),
            ["!r:x"]
        );
        assert_eq!(
            store.rooms_with_receipts(&["!r:x"], last, i64::MAX).await.unwrap(),
            [""; 0]
        );
        store.close().await;
    })
    .await;
}

fn event(position: i64, thread: &str) -> NotifyingEvent {
    NotifyingEvent {
        room_id: "!r:x".into(),
        event_id: format!("${position}"),
        thread_id: thread.into(),
        sender: "@s:x".into(),
        position,
        ts: 1000,
    }
}

async fn record(store: &Store, event: NotifyingEvent, groups: &[(&[&str], bool)]) {
    let groups: Vec<Notified> = groups
        .iter()
        .map(|(users, highlight)| Notified {
            user_ids: users.iter().map(|u| (*u).to_owned()).collect(),
            notify: true,
            highlight: *highlight,
            actions: r#"["notify"]"#.into(),
        })
        .collect();
    store
        .write::<_, Error, _>(move |tx| Box::pin(async move { record_notified(tx, &event, &groups).await }))
        .await
        .unwrap();
}

async fn read_up_to(store: &Store, thread: Option<&'static str>, event_position: i64, position: i64) -> bool {
    store
        .write::<_, Error, _>(move |tx| {
            Box::pin(async move {
                let read = ReadUpTo {
                    room_id: "!r:x",
                    user_id: "@a:x",
                    thread_id: thread,
                    event_position,
                    now_ms: 2000,
                };
                mark_read(tx, &read, position).await
            })
        })
        .await
        .unwrap()
}

async fn counts(store: &Store, user_id: &str) -> Vec<(String, i64, i64)> {
    let mut counts: Vec<_> = store
        .unread_counts_of_user(user_id)
        .await
        .unwrap()
        .into_iter()
        .map(|c| (c.thread_id, c.notify, c.highlight))
        .collect();
    counts.sort();
    counts
}

#[tokio::test]
async fn counts_follow_events_and_receipts() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        record(&store, event(10, ""), &[(&["@a:x", "@b:x"], false)]).await;
        record(&store, event(11, ""), &[(&["@b:x"], false), (&["@a:x"], true)]).await;
        record(&store, event(12, "$10"), &[(&["@a:x"], false)]).await;
        assert_eq!(counts(&store, "@a:x").await, [("".into(), 2, 1), ("$10".into(), 1, 0)]);
        assert_eq!(counts(&store, "@b:x").await, [("".into(), 2, 0)]);
        assert_eq!(store.unread_counts_of_room("!r:x", 11, 12).await.unwrap().len(), 1);

        // A receipt in the middle leaves what is above it, in its own thread.
        assert!(read_up_to(&store, Some(""), 10, 13).await);
        assert_eq!(counts(&store, "@a:x").await, [("".into(), 1, 1), ("$10".into(), 1, 0)]);
        assert!(
            !read_up_to(&store, Some(""), 9, 14).await,
            "an earlier receipt brings nothing back"
        );
        assert!(read_up_to(&store, None, 12, 15).await);
        assert_eq!(counts(&store, "@a:x").await, []);
        let moved = store.unread_counts_of_room("!r:x", 14, 15).await.unwrap();
        assert_eq!(moved.len(), 2);
        assert!(moved.iter().all(|c| (c.notify, c.highlight) == (0, 0)));

        // Sending is reading.
        let mut own = event(16, "");
        own.sender = "@b:x".into();
        record(&store, own, &[(&["@a:x"], false)]).await;
        assert_eq!(counts(&store, "@b:x").await, []);
        assert_eq!(counts(&store, "@a:x").await, [("".into(), 1, 0)]);

        // Leaving the room forgets both.
        store
            .write::<_, Error, _>(|tx| Box::pin(async move { forget_room_notifications(tx, "@a:x", "!r:x", 17).await }))
            .await
            .unwrap();
        assert_eq!(counts(&store, "@a:x").await, []);
        assert_eq!(store.notifications("@a:x", i64::MAX, false, 10).await.unwrap(), []);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn notifications_are_listed_newest_first_and_know_what_was_read() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        for position in 1..=4 {
            record(&store, event(position, ""), &[(&["@a:x"], position == 2)]).await;
        }
        read_up_to(&store, None, 2, 5).await;
        let listed = async |before, only, limit| -> Vec<(i64, bool)> {
            let rows = store.notifications("@a:x", before, only, limit).await.unwrap();
            rows.into_iter().map(|n| (n.position, n.read)).collect()
        };
        assert_eq!(
            listed(i64::MAX, false, 10).await,
            [(4, false), (3, false), (2, true), (1, true)]
        );
        assert_eq!(listed(4, false, 1).await, [(3, false)]);
        assert_eq!(listed(i64::MAX, true, 10).await, [(2, true)]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn counts_of_a_finished_thread_are_dropped_later() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        record(&store, event(1, "$t"), &[(&["@a:x"], false)]).await;
        record(&store, event(2, ""), &[(&["@a:x"], false)]).await;
        read_up_to(&store, None, 2, 3).await;
        record(&store, event(4, ""), &[(&["@a:x"], false)]).await;
        read_up_to(&store, None, 4, 5).await;
        let rows: Vec<UnreadCount> = store.unread_counts_of_room("!r:x", 0, 10).await.unwrap();
        let threads: Vec<&str> = rows.iter().map(|c| c.thread_id.as_str()).collect();
        assert_eq!(threads, [""]);
        store.close().await;
    })
    .await;
}
