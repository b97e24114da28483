//! Opening, writing and stream positions, on both engines.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use storage::{Config, Error, OpenError, Store};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    Store::open(&config(db), &db.dir).await.expect("the store opens")
}

fn config(db: &TestDatabaseUrl) -> Config {
    Config {
        url: Some(db.url.clone()),
        ..Config::default()
    }
}

#[tokio::test]
async fn server_values_are_kept_once_and_over_a_restart() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        assert_eq!(store.server_value("a").await.unwrap(), None);
        assert_eq!(store.server_value_or("a", vec![1]).await.unwrap(), vec![1]);
        assert_eq!(store.server_value_or("a", vec![2]).await.unwrap(), vec![1]);
        store.set_server_value("a", vec![3]).await.unwrap();
        store.close().await;
        let store = open(&db).await;
        assert_eq!(store.server_value("a").await.unwrap(), Some(vec![3]));
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn positions_rise_over_restarts_and_blocks() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let first = store.reserve(10).await.unwrap().first();
        // More than a block at once: a second one is made durable first.
        let second = store.reserve(100_000).await.unwrap().first();
        assert!(second > first);
        let reached = store.positions().current();
        assert!(reached >= second + 99_999);
        store.close().await;
        let store = open(&db).await;
        assert!(store.positions().current() >= reached);
        assert!(store.reserve(1).await.unwrap().first() > reached);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_write_keeps_nothing_and_its_neighbours_stay() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let writes = (0..100).map(|n| {
            let store = store.clone();
            async move {
                store
                    .write_at::<i64, Error, _>(1, move |_, position| {
                        Box::pin(async move {
                            if n % 3 == 0 {
                                return Err(Error::corrupt("test", "refused"));
                            }
                            assert!(n % 3 != 1 || n % 7 != 0, "a panic is contained too");
                            Ok(position)
                        })
                    })
                    .await
            }
        });
        let results = futures_util::future::join_all(writes).await;
        let mut kept: Vec<_> = results.iter().filter_map(|r| r.as_ref().ok()).copied().collect();
        let count = kept.len();
        kept.sort_unstable();
        kept.dedup();
        assert_eq!(kept.len(), count, "no position is given twice");
        assert_eq!(
            count,
            (0..100).filter(|n| n % 3 != 0 && (n % 3 != 1 || n % 7 != 0)).count()
        );
        assert!(
            store.positions().current() >= *kept.last().unwrap(),
            "nothing is left unfinished"
        );
        store.close().await;
        assert!(matches!(
            store.set_server_value("late", vec![]).await,
            Err(Error::Closed)
        ));
    })
    .await;
}

#[tokio::test]
async fn a_caller_who_goes_away_does_not_undo_its_write() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let ran = Arc::new(AtomicI64::new(0));
        let (started, go) = (
            Arc::new(tokio::sync::Notify::new()),
            Arc::new(tokio::sync::Notify::new()),
        );
        let task = tokio::spawn({
            let (store, ran, started, go) = (store.clone(), ran.clone(), started.clone(), go.clone());
            async move {
                store
                    .write_at::<(), Error, _>(1, move |_, position| {
                        Box::pin(async move {
                            started.notify_one();
                            go.notified().await;
                            ran.store(position, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                    .await
            }
        });
        started.notified().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let before = store.positions().current();
        go.notify_one();
        let mut passed = store.positions().subscribe();
        passed.wait_for(|current| *current > before).await.unwrap();
        assert_eq!(
            ran.load(Ordering::SeqCst),
            before + 1,
            "readers were kept from the position until it was written"
        );
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_second_process_is_kept_out_of_postgres() {
    let Some(db) = testkit::database::TestDatabase::postgres().await else {
        return;
    };
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    let store = Store::open(&config, db.dir.path()).await.unwrap();
    assert!(matches!(
        Store::open(&config, db.dir.path()).await,
        Err(OpenError::InUse)
    ));
    store.close().await;
    Store::open(&config, db.dir.path()).await.unwrap().close().await;
    db.drop_database().await;
}

#[tokio::test]
async fn an_unknown_scheme_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        url: Some("mysql://x".into()),
        ..Config::default()
    };
    assert!(matches!(
        Store::open(&config, dir.path()).await,
        Err(OpenError::UnknownScheme)
    ));
}

/// A write that hangs (a server that does not answer) does not keep the process from ending.
#[tokio::test]
async fn closing_does_not_wait_for_ever() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let (begun, began) = tokio::sync::oneshot::channel();
        let writing = {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .write::<(), Error, _>(|_| {
                        Box::pin(async move {
                            begun.send(()).ok();
                            std::future::pending().await
                        })
                    })
                    .await
            })
        };
        began.await.unwrap();
        assert!(!store.close_within(std::time::Duration::from_millis(20)).await);
        writing.abort();
    })
    .await;
}
