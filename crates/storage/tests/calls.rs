//! Delayed events and grants, on both engines.

use storage::{
    Config, Store,
    calls::{DelayedEvent, Finalised, ScheduleError, SfuGrant},
};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

fn event(delay_id: &str) -> DelayedEvent {
    DelayedEvent {
        delay_id: delay_id.to_owned(),
        user_id: "@alice:example.org".to_owned(),
        device_id: "DEVICE".to_owned(),
        room_id: "!room:example.org".to_owned(),
        event_type: "org.matrix.msc3401.call.member".to_owned(),
        state_key: Some("_@alice:example.org_DEVICE_m.call".to_owned()),
        content: "{}".to_owned(),
        delay_ms: 8000,
        running_since: 1000,
        delegated_room: None,
        delegated_identity: None,
        scheduled_position: 7,
    }
}

fn sent(delay_id: &str, at: i64) -> Finalised {
    Finalised {
        delay_id: delay_id.to_owned(),
        outcome: "send".to_owned(),
        reason: "delay".to_owned(),
        event_id: Some("$event".to_owned()),
        error: None,
        finalised_at: at,
    }
}

#[tokio::test]
async fn a_delayed_event_waits_over_a_restart_and_ends_once() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let id = store
            .schedule_delayed_event(event("a"), Some("key".into()), 10)
            .await
            .unwrap();
        assert_eq!(id, "a");
        // The same request again: the same event.
        let id = store
            .schedule_delayed_event(event("b"), Some("key".into()), 10)
            .await
            .unwrap();
        assert_eq!(id, "a");
        assert!(store.restart_delayed_event("a".into(), 5000).await.unwrap());
        assert!(!store.restart_delayed_event("nope".into(), 5000).await.unwrap());
        store.close().await;

        let store = open(&db).await;
        let waiting = store.scheduled_delayed_events().await.unwrap();
        assert_eq!(
            waiting,
            [DelayedEvent {
                running_since: 5000,
                ..event("a")
            }]
        );
        assert!(store.finalise_delayed_event(sent("a", 9000)).await.unwrap());
        assert!(
            !store.finalise_delayed_event(sent("a", 9001)).await.unwrap(),
            "what became of it is recorded once"
        );
        assert!(!store.restart_delayed_event("a".into(), 9500).await.unwrap());
        assert!(store.scheduled_delayed_events().await.unwrap().is_empty());
        let (_, outcome) = store.delayed_event("a").await.unwrap().unwrap();
        assert_eq!(outcome, Some(sent("a", 9000)));
        store.forget_old_calls(9001).await.unwrap();
        assert_eq!(store.delayed_event("a").await.unwrap(), None);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_user_has_a_bounded_number_waiting() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        for id in ["a", "b"] {
            store.schedule_delayed_event(event(id), None, 2).await.unwrap();
        }
        let refused = store.schedule_delayed_event(event("c"), None, 2).await;
        assert!(matches!(refused, Err(ScheduleError::TooMany)));
        store.finalise_delayed_event(sent("a", 1)).await.unwrap();
        store.schedule_delayed_event(event("c"), None, 2).await.unwrap();
        let (waiting, ended) = store.delayed_events_of("@alice:example.org", 10).await.unwrap();
        assert_eq!(
            waiting.iter().map(|e| e.delay_id.as_str()).collect::<Vec<_>>(),
            ["b", "c"]
        );
        assert_eq!(ended, [(event("a"), sent("a", 1))]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn only_its_owner_delegates_a_waiting_event() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store.schedule_delayed_event(event("a"), None, 10).await.unwrap();
        let delegate =
            |user: &str| store.delegate_delayed_event("a".into(), user.into(), "sfu room".into(), "identity".into());
        assert!(!delegate("@mallory:example.org").await.unwrap());
        assert!(delegate("@alice:example.org").await.unwrap());
        let waiting = store.scheduled_delayed_events().await.unwrap();
        assert_eq!(waiting[0].delegated_identity.as_deref(), Some("identity"));
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn grants_are_kept_once_per_participant_until_they_end() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let grant = |expires_at| SfuGrant {
            sfu_room: "alias".into(),
            identity: "@alice:example.org:DEVICE".into(),
            room_id: "!room:example.org".into(),
            user_id: "@alice:example.org".into(),
            device_id: "DEVICE".into(),
            expires_at,
        };
        store.keep_sfu_grant(grant(10)).await.unwrap();
        store.keep_sfu_grant(grant(20)).await.unwrap();
        assert_eq!(store.sfu_grants().await.unwrap(), [grant(20)]);
        store.forget_old_calls(21).await.unwrap();
        assert!(store.sfu_grants().await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}
