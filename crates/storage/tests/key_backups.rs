//! Key backups, on both engines.

use storage::{
    Config, Store,
    key_backups::{BackedUpSession, KeyBackupChange, KeyBackupCreation, KeyBackupOutcome, KeyBackupScope},
};
use testkit::database::TestDatabaseUrl;

const USER: &str = "@a:test";
const EVERYTHING: KeyBackupScope<'_> = KeyBackupScope {
    room_id: None,
    session_id: None,
};

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

async fn create(store: &Store, max: i64) -> KeyBackupCreation {
    store
        .create_key_backup(USER.to_owned(), "algorithm".to_owned(), "{}".to_owned(), max)
        .await
        .unwrap()
}

fn session(id: &str, first_message_index: i64) -> BackedUpSession {
    BackedUpSession {
        room_id: "!r:test".to_owned(),
        session_id: id.to_owned(),
        first_message_index,
        forwarded_count: 0,
        is_verified: true,
        session_data: "{}".to_owned(),
    }
}

async fn put(store: &Store, version: i64, sessions: Vec<BackedUpSession>, max: i64) -> KeyBackupOutcome {
    store
        .put_key_backup_sessions(USER.to_owned(), version, sessions, max)
        .await
        .unwrap()
}

#[tokio::test]
async fn backups_and_their_keys_are_bounded_and_numbers_are_used_once() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        assert_eq!(put(&store, 1, vec![], 9).await, KeyBackupOutcome::NoBackup);
        assert_eq!(create(&store, 2).await, KeyBackupCreation::Created(1));
        assert_eq!(create(&store, 2).await, KeyBackupCreation::Created(2));
        assert_eq!(create(&store, 2).await, KeyBackupCreation::TooMany);
        assert!(store.delete_key_backup(USER.to_owned(), 2).await.unwrap());
        assert!(!store.delete_key_backup(USER.to_owned(), 2).await.unwrap());
        assert_eq!(create(&store, 2).await, KeyBackupCreation::Created(3));
        assert_eq!(put(&store, 1, vec![], 9).await, KeyBackupOutcome::NotCurrent(3));

        let stored = KeyBackupOutcome::Stored(KeyBackupChange { count: 2, etag: 1 });
        assert_eq!(put(&store, 3, vec![session("b", 5), session("a", 5)], 2).await, stored);
        // One too many: the better key that came with it is not kept either.
        let too_many = vec![session("a", 0), session("c", 0)];
        assert_eq!(put(&store, 3, too_many, 2).await, KeyBackupOutcome::Full);
        let kept = store.key_backup_sessions(USER, 3, EVERYTHING).await.unwrap();
        assert_eq!(kept, [session("a", 5), session("b", 5)]);
        assert_eq!(store.key_backup(USER, None).await.unwrap().unwrap().etag, 1);
        assert!(
            store
                .set_key_backup_auth_data(USER.to_owned(), 3, "[]".to_owned())
                .await
                .unwrap()
        );
        assert_eq!(store.key_backup(USER, Some(3)).await.unwrap().unwrap().auth_data, "[]");
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn two_devices_that_upload_at_once_keep_the_better_key() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        create(&store, 1).await;
        let ids: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
        let uploads = (0..10).map(|index| {
            let mut sessions: Vec<_> = ids.iter().map(|id| session(id, index)).collect();
            if index % 2 == 0 {
                sessions.reverse();
            }
            put(&store, 1, sessions, 100)
        });
        for outcome in futures_util::future::join_all(uploads).await {
            assert!(matches!(outcome, KeyBackupOutcome::Stored(change) if change.count == 20));
        }
        let kept = store.key_backup_sessions(USER, 1, EVERYTHING).await.unwrap();
        assert!(kept.iter().all(|session| session.first_message_index == 0), "{kept:?}");
        let removed = store
            .delete_key_backup_sessions(USER.to_owned(), 1, Some("!r:test".to_owned()), Some("s0".to_owned()))
            .await
            .unwrap();
        assert_eq!(removed.unwrap().count, 19);
        assert_eq!(store.key_backup_count(USER, 1).await.unwrap(), 19);
        store.close().await;
    })
    .await;
}
