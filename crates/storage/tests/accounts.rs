//! Accounts, tokens and profiles, on both engines.

use storage::{
    Config, Store,
    accounts::{AccountCreation, Admission, NewAccount, NewSession, RegistrationToken},
    devices::LastSeen,
};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

fn account(name: &str, admission: Admission) -> NewAccount {
    let user_id = format!("@{name}:test");
    NewAccount {
        user_id: user_id.clone(),
        password_hash: Some("hash".to_owned()),
        is_admin: false,
        created_at: 10,
        display_name: Some("\"Name\"".to_owned()),
        admission,
        session: Some(session(name, "DEV", 1)),
    }
}

fn session(name: &str, device: &str, token: u8) -> NewSession {
    NewSession {
        user_id: format!("@{name}:test"),
        device_id: device.to_owned(),
        display_name: Some(format!("{name}'s")),
        token_hash: vec![token; 32],
        created_at: 20,
    }
}

#[tokio::test]
async fn an_account_opens_with_its_session_and_ends_without() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        assert!(!store.admin_exists().await.unwrap());
        assert_eq!(
            store.create_account(account("a", Admission::Granted)).await.unwrap(),
            AccountCreation::Created
        );
        assert_eq!(
            store.create_account(account("a", Admission::Granted)).await.unwrap(),
            AccountCreation::NameTaken
        );
        assert_eq!(
            store.profile_fields("@a:test").await.unwrap(),
            [("displayname".to_owned(), "\"Name\"".to_owned())]
        );
        let owner = store.token_owner(&[1; 32]).await.unwrap().expect("the session is open");
        assert_eq!(
            (owner.user_id.as_str(), owner.device_id.as_str(), owner.is_admin),
            ("@a:test", "DEV", false)
        );

        // The same device again: one token, the newer.
        store
            .open_session(NewSession {
                display_name: None,
                ..session("a", "DEV", 2)
            })
            .await
            .unwrap();
        assert!(store.token_owner(&[1; 32]).await.unwrap().is_none());
        assert!(store.token_owner(&[2; 32]).await.unwrap().is_some());
        assert_eq!(
            store
                .device("@a:test", "DEV")
                .await
                .unwrap()
                .unwrap()
                .display_name
                .as_deref(),
            Some("a's")
        );

        assert!(store.set_admin("@a:test", true).await.unwrap());
        assert!(store.admin_exists().await.unwrap());
        assert!(
            store
                .set_password_hash("@a:test", Some("other".to_owned()))
                .await
                .unwrap()
        );
        assert_eq!(
            store
                .account("@a:test")
                .await
                .unwrap()
                .unwrap()
                .password_hash
                .as_deref(),
            Some("other")
        );
        assert!(!store.set_password_hash("@nobody:test", None).await.unwrap());

        assert!(store.deactivate_account("@a:test", 99).await.unwrap());
        assert!(!store.deactivate_account("@a:test", 100).await.unwrap());
        let ended = store.account("@a:test").await.unwrap().unwrap();
        assert_eq!(
            (ended.deactivated_at, ended.is_admin, ended.password_hash),
            (Some(99), false, None)
        );
        assert!(store.token_owner(&[2; 32]).await.unwrap().is_none());
        assert!(store.profile_fields("@a:test").await.unwrap().is_empty());
        assert!(!store.admin_exists().await.unwrap());
        assert_eq!(store.accounts("", 10).await.unwrap().len(), 1);
        assert!(store.accounts("@a:test", 10).await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_registration_token_admits_as_often_as_it_says() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let token = RegistrationToken {
            token: "t".to_owned(),
            uses_allowed: Some(2),
            uses: 0,
            expires_at: Some(100),
            created_at: 1,
        };
        assert!(store.create_registration_token(token.clone()).await.unwrap());
        assert!(!store.create_registration_token(token).await.unwrap());
        assert!(store.registration_token_is_valid("t", 99).await.unwrap());
        assert!(!store.registration_token_is_valid("t", 100).await.unwrap());
        assert!(!store.registration_token_is_valid("other", 1).await.unwrap());

        let by_token = || Admission::RegistrationToken("t".to_owned());
        let attempts = (0..8).map(|n| {
            let mut new = account(&format!("u{n}"), by_token());
            new.session = None;
            store.create_account(new)
        });
        let outcomes = futures_util::future::try_join_all(attempts).await.unwrap();
        let created = outcomes.iter().filter(|o| **o == AccountCreation::Created).count();
        assert_eq!(created, 2, "{outcomes:?}");
        assert_eq!(store.registration_tokens().await.unwrap()[0].uses, 2);
        assert!(!store.registration_token_is_valid("t", 1).await.unwrap());
        assert!(store.revoke_registration_token("t").await.unwrap());
        assert!(!store.revoke_registration_token("t").await.unwrap());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_taken_name_costs_no_use_of_the_token() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store
            .create_registration_token(RegistrationToken {
                token: "t".to_owned(),
                uses_allowed: Some(1),
                uses: 0,
                expires_at: None,
                created_at: 1,
            })
            .await
            .unwrap();
        store.create_account(account("a", Admission::Granted)).await.unwrap();
        let again = account("a", Admission::RegistrationToken("t".to_owned()));
        assert_eq!(store.create_account(again).await.unwrap(), AccountCreation::NameTaken);
        assert!(store.registration_token_is_valid("t", 5).await.unwrap());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn the_first_administrators_link_works_once() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store.set_first_admin_link(vec![7; 32], 1).await.unwrap();
        store.set_first_admin_link(vec![8; 32], 2).await.unwrap();
        assert_eq!(store.first_admin_link().await.unwrap(), Some(vec![8; 32]));
        let by_link = |name: &str, byte: u8| {
            let mut new = account(
                name,
                Admission::FirstAdminLink {
                    token_hash: vec![byte; 32],
                },
            );
            new.session = None;
            store.create_account(new)
        };
        assert_eq!(by_link("a", 7).await.unwrap(), AccountCreation::NotAdmitted);
        let (one, two) = tokio::join!(by_link("b", 8), by_link("c", 8));
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|o| *o != AccountCreation::Created);
        assert_eq!(outcomes, [AccountCreation::Created, AccountCreation::NotAdmitted]);
        assert_eq!(store.first_admin_link().await.unwrap(), None);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn profile_fields_are_set_replaced_and_removed() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store
            .set_profile_field("@a:test", "m.tz", Some("\"UTC\"".to_owned()))
            .await
            .unwrap();
        store
            .set_profile_field("@a:test", "m.tz", Some("\"CET\"".to_owned()))
            .await
            .unwrap();
        store
            .set_profile_field("@b:test", "displayname", Some("\"B\"".to_owned()))
            .await
            .unwrap();
        let of = store
            .profile_fields_of(&["@a:test".to_owned(), "@b:test".to_owned()])
            .await
            .unwrap();
        assert_eq!(of.len(), 2);
        assert_eq!(of[0], ("@a:test".to_owned(), "m.tz".to_owned(), "\"CET\"".to_owned()));
        store.set_profile_field("@a:test", "m.tz", None).await.unwrap();
        assert!(store.profile_fields("@a:test").await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn devices_are_seen_renamed_and_deleted() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store.create_account(account("a", Admission::Granted)).await.unwrap();
        store.open_session(session("a", "TWO", 2)).await.unwrap();
        let seen = |at, ip: Option<&str>| LastSeen {
            user_id: "@a:test".to_owned(),
            device_id: "DEV".to_owned(),
            ip: ip.map(str::to_owned),
            at,
        };
        store
            .record_last_seen(vec![seen(5, Some("10.0.0.1")), seen(6, None)])
            .await
            .unwrap();
        let device = store.device("@a:test", "DEV").await.unwrap().unwrap();
        assert_eq!(
            (device.last_seen_at, device.last_seen_ip.as_deref()),
            (Some(6), Some("10.0.0.1"))
        );

        let before = store.positions().current();
        assert!(
            store
                .rename_device("@a:test", "DEV", Some("Phone".to_owned()), |_| ())
                .await
                .unwrap()
        );
        assert!(!store.rename_device("@a:test", "NONE", None, |_| ()).await.unwrap());
        let after = store.positions().current();
        assert_eq!(store.device_list_changes(before, after).await.unwrap(), ["@a:test"]);
        assert!(store.device_list_changes(after, after + 100).await.unwrap().is_empty());

        let gone = store
            .delete_devices("@a:test", &["DEV".to_owned(), "NONE".to_owned()], 50, |_| ())
            .await
            .unwrap();
        assert_eq!(gone, ["DEV"]);
        assert!(store.token_owner(&[1; 32]).await.unwrap().is_none());
        let left: Vec<_> = store
            .devices("@a:test")
            .await
            .unwrap()
            .into_iter()
            .map(|d| d.device_id)
            .collect();
        assert_eq!(left, ["TWO"]);
        assert_eq!(
            store.latest_device_list_change().await.unwrap(),
            store.positions().current()
        );
        store.close().await;
    })
    .await;
}
