//! What users say of themselves, what they report, and who is found by whom, on both engines.

use storage::{
    Config, Store,
    accounts::{Admission, NewAccount},
    reports::NewReport,
    rooms::{RoomRow, insert_room, set_membership},
};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

#[tokio::test]
async fn what_users_say_is_replaced_and_removed() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        for (user, status) in [
            ("@a:test", "one"),
            ("@b:test", "x"),
            ("@a:test", "two"),
            ("@b:test", ""),
        ] {
            store
                .set_presence_status(user.to_owned(), status.to_owned())
                .await
                .unwrap();
        }
        let kept = store.presence_statuses().await.unwrap();
        assert_eq!(kept, [("@a:test".to_owned(), "two".to_owned())]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn reports_are_read_newest_first() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let mut numbers = Vec::new();
        for reason in ["one", "two", "three"] {
            let report = NewReport {
                reporter: "@a:test".to_owned(),
                room_id: Some("!r:test".to_owned()),
                event_id: None,
                user_id: None,
                reason: reason.to_owned(),
                score: None,
                reported_at: 7,
            };
            numbers.push(store.keep_report(report).await.unwrap());
        }
        let reasons =
            |reports: Vec<storage::reports::Report>| reports.into_iter().map(|r| r.reason).collect::<Vec<_>>();
        assert_eq!(reasons(store.reports(i64::MAX, 2).await.unwrap()), ["three", "two"]);
        assert_eq!(reasons(store.reports(numbers[1], 2).await.unwrap()), ["one"]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn users_are_listed_by_the_rooms_they_are_in() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        for user in ["@a:test", "@b:test", "@c:test", "@gone:test"] {
            let account = NewAccount {
                user_id: user.to_owned(),
                password_hash: None,
                is_admin: false,
                created_at: 1,
                display_name: Some(format!("\"{user}\"")),
                admission: Admission::Granted,
                session: None,
            };
            store.create_account(account).await.unwrap();
        }
        store.deactivate_account("@gone:test", 2).await.unwrap();
        store
            .write::<_, storage::Error, _>(|tx| {
                Box::pin(async move {
                    for (room_nid, listed) in [(1, false), (2, true)] {
                        let room = RoomRow {
                            room_nid,
                            room_id: format!("!{room_nid}:test"),
                            version: "11".to_owned(),
                            extremities: "[]".to_owned(),
                            state_group: 1,
                            latest: 1,
                            listed,
                        };
                        insert_room(tx, &room).await?;
                    }
                    set_membership(tx, 1, "@a:test", "join", 1, 1).await?;
                    set_membership(tx, 1, "@b:test", "invite", 1, 1).await?;
                    set_membership(tx, 2, "@c:test", "join", 1, 1).await?;
                    set_membership(tx, 2, "@gone:test", "join", 1, 1).await
                })
            })
            .await
            .unwrap();
        let found = |rooms: Option<Vec<i64>>| {
            let store = &store;
            async move {
                let users = store.listed_users(rooms.as_deref()).await.unwrap();
                let mut ids: Vec<String> = users.into_iter().map(|user| user.user_id).collect();
                ids.sort();
                ids
            }
        };
        assert_eq!(found(Some(vec![])).await, ["@c:test"]);
        assert_eq!(found(Some(vec![1])).await, ["@a:test", "@c:test"]);
        assert_eq!(found(None).await, ["@a:test", "@b:test", "@c:test"]);
        store.close().await;
    })
    .await;
}
