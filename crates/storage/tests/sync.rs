//! Account data, filters and receipts, on both engines.

use storage::{
    Config, Error, Store,
    account_data::{AccountData, set_account_data},
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
