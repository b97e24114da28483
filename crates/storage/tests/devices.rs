//! Keys, to-device messages and media rows, on both engines.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use storage::{
    Config, Store,
    accounts::{Admission, NewAccount, NewSession},
    keys::{CrossSigningKey, KeyClaim, KeySignature, KeyUpload, KeyUploadOutcome, NewKey},
    media::{Media, MediaFill},
    to_device::{Recipient, ToDeviceMessage, ToDeviceTransaction},
};
use testkit::database::TestDatabaseUrl;

const USER: &str = "@a:test";

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    let store = Store::open(&config, &db.dir).await.expect("the store opens");
    store
        .create_account(NewAccount {
            user_id: USER.to_owned(),
            password_hash: None,
            is_admin: false,
            created_at: 1,
            display_name: None,
            admission: Admission::Granted,
            session: None,
        })
        .await
        .unwrap();
    for (n, device) in ["D1", "D2"].into_iter().enumerate() {
        store
            .open_session(NewSession {
                user_id: USER.to_owned(),
                device_id: device.to_owned(),
                display_name: None,
                token_hash: vec![n as u8; 32],
                created_at: 1,
            })
            .await
            .unwrap();
    }
    store
}

fn key(id: &str, json: &str) -> NewKey {
    NewKey {
        algorithm: "signed_curve25519".to_owned(),
        key_id: id.to_owned(),
        key_json: json.to_owned(),
    }
}

fn upload(device_keys: Option<&str>, one_time_keys: Vec<NewKey>, fallback_keys: Vec<NewKey>) -> KeyUpload {
    KeyUpload {
        user_id: USER.to_owned(),
        device_id: "D1".to_owned(),
        device_keys: device_keys.map(str::to_owned),
        one_time_keys,
        fallback_keys,
        now: 1,
    }
}

fn claim() -> KeyClaim {
    KeyClaim {
        user_id: USER.to_owned(),
        device_id: "D1".to_owned(),
        algorithm: "signed_curve25519".to_owned(),
    }
}

#[tokio::test]
async fn a_one_time_key_is_issued_once_and_the_fallback_key_afterwards() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let keys = (0..40).map(|n| key(&format!("K{n:02}"), "{}")).collect();
        let fallback = vec![key("F", "{\"fallback\":true}")];
        assert_eq!(
            store
                .upload_keys(upload(None, keys, fallback.clone()), |_, _| ())
                .await
                .unwrap(),
            KeyUploadOutcome::Stored
        );
        assert_eq!(
            store.unused_fallback_key_types(USER, "D1").await.unwrap(),
            ["signed_curve25519"]
        );

        let claims = (0..50).map(|_| store.claim_keys(vec![claim()], |_, _| ()));
        let claimed: Vec<_> = futures_util::future::try_join_all(claims)
            .await
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(claimed.len(), 50);
        let one_time: Vec<_> = claimed
            .iter()
            .filter(|k| !k.is_fallback)
            .map(|k| k.key_id.clone())
            .collect();
        assert_eq!(one_time.len(), 40);
        assert_eq!(
            one_time.iter().collect::<BTreeSet<_>>().len(),
            40,
            "no key was issued twice"
        );
        assert!(store.unused_fallback_key_types(USER, "D1").await.unwrap().is_empty());
        assert!(store.one_time_key_counts(USER, "D1").await.unwrap().is_empty());

        // The used key uploaded again stays used; a new one is unused.
        store
            .upload_keys(upload(None, vec![], fallback), |_, _| ())
            .await
            .unwrap();
        assert!(store.unused_fallback_key_types(USER, "D1").await.unwrap().is_empty());
        store
            .upload_keys(upload(None, vec![], vec![key("G", "{}")]), |_, _| ())
            .await
            .unwrap();
        assert_eq!(store.unused_fallback_key_types(USER, "D1").await.unwrap().len(), 1);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_key_name_with_another_content_is_refused_whole() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        store
            .upload_keys(upload(None, vec![key("K", "{\"a\":1}")], vec![]), |_, _| ())
            .await
            .unwrap();
        let again = upload(None, vec![key("K", "{\"a\":1}"), key("L", "{}")], vec![]);
        assert_eq!(
            store.upload_keys(again, |_, _| ()).await.unwrap(),
            KeyUploadOutcome::Stored
        );
        let other = upload(Some("{}"), vec![key("M", "{}"), key("K", "{\"a\":2}")], vec![]);
        assert_eq!(
            store.upload_keys(other, |_, _| ()).await.unwrap(),
            KeyUploadOutcome::Conflict {
                algorithm: "signed_curve25519".to_owned(),
                key_id: "K".to_owned()
            }
        );
        assert_eq!(
            store.one_time_key_counts(USER, "D1").await.unwrap(),
            [("signed_curve25519".to_owned(), 2)]
        );
        assert!(store.published_devices(&[USER.to_owned()]).await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn changes_of_keys_move_the_device_list() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let noted = Arc::new(Mutex::new(Vec::new()));
        let note = || {
            let noted = noted.clone();
            move |position: i64| noted.lock().unwrap().push(position)
        };
        let note_upload = || {
            let note = note();
            move |position, changed| {
                if changed {
                    note(position);
                }
            }
        };
        store
            .upload_keys(upload(Some("{\"v\":1}"), vec![], vec![]), note_upload())
            .await
            .unwrap();
        // Unchanged keys are no change.
        store
            .upload_keys(upload(Some("{\"v\":1}"), vec![], vec![]), note_upload())
            .await
            .unwrap();
        assert_eq!(noted.lock().unwrap().len(), 1);
        let master = CrossSigningKey {
            user_id: USER.to_owned(),
            usage: "master".to_owned(),
            key_json: "{}".to_owned(),
        };
        store
            .set_cross_signing_keys(USER, vec![master.clone()], note())
            .await
            .unwrap();
        store
            .set_cross_signing_keys(USER, vec![master.clone()], note())
            .await
            .unwrap();
        assert_eq!(store.cross_signing_keys(&[USER.to_owned()]).await.unwrap(), [master]);

        let signature = |signer: &str| KeySignature {
            target_user_id: USER.to_owned(),
            target_key: "D1".to_owned(),
            signer_user_id: signer.to_owned(),
            signer_key_id: "ed25519:X".to_owned(),
            signature: "s".to_owned(),
        };
        store
            .add_key_signatures(
                vec![signature(USER), signature("@b:test"), signature("@c:test")],
                note(),
            )
            .await
            .unwrap();
        let seen = store.key_signatures(&[USER.to_owned()], "@b:test").await.unwrap();
        assert_eq!(
            seen.iter().map(|s| s.signer_user_id.as_str()).collect::<Vec<_>>(),
            [USER, "@b:test"]
        );
        let noted = noted.lock().unwrap().clone();
        assert_eq!(noted.len(), 4);
        assert_eq!(store.latest_device_list_change().await.unwrap(), noted[3]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn to_device_messages_arrive_once_each() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let transaction = |txn: &str| ToDeviceTransaction {
            user_id: USER.to_owned(),
            device_id: "D1".to_owned(),
            event_type: "m.t".to_owned(),
            txn_id: txn.to_owned(),
            created_at: 5,
        };
        let message = |recipient: Recipient, event: &str| ToDeviceMessage {
            user_id: USER.to_owned(),
            recipient,
            event: event.to_owned(),
        };
        let reached = Arc::new(Mutex::new(Vec::new()));
        let note = || {
            let reached = reached.clone();
            move |position, devices: Vec<(String, String)>| reached.lock().unwrap().push((position, devices.len()))
        };
        let messages = vec![
            message(Recipient::Device("D2".to_owned()), "1"),
            message(Recipient::Device("GONE".to_owned()), "2"),
        ];
        store
            .queue_to_device(transaction("a"), messages.clone(), note())
            .await
            .unwrap();
        store.queue_to_device(transaction("a"), messages, note()).await.unwrap();
        store
            .queue_to_device(transaction("b"), vec![message(Recipient::AllDevices, "3")], note())
            .await
            .unwrap();
        assert_eq!(
            reached.lock().unwrap().iter().map(|(_, n)| *n).collect::<Vec<_>>(),
            [1, 2]
        );

        let now = store.positions().current();
        let all = store.to_device_messages(USER, "D2", 0, now, 10).await.unwrap();
        assert_eq!(
            all.iter().map(|(_, event)| event.as_str()).collect::<Vec<_>>(),
            ["1", "3"]
        );
        let rest = store.to_device_messages(USER, "D2", all[0].0, now, 10).await.unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(store.to_device_messages(USER, "D2", 0, now, 1).await.unwrap().len(), 1);
        assert_eq!(store.delete_to_device_messages(USER, "D2", all[0].0).await.unwrap(), 1);
        let waiting = store.devices_with_to_device_messages().await.unwrap();
        assert_eq!(waiting.len(), 2);
        assert!(waiting.iter().all(|(_, _, oldest, newest)| oldest == newest));
        assert_eq!(store.forget_to_device_transactions(5, 10).await.unwrap(), 0);
        assert_eq!(store.forget_to_device_transactions(6, 1).await.unwrap(), 1);
        assert_eq!(store.forget_to_device_transactions(6, 10).await.unwrap(), 1);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_reserved_media_address_is_filled_once_by_its_owner() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let media = |content: Option<&str>, user: &str| Media {
            media_id: "M".to_owned(),
            user_id: user.to_owned(),
            created_at: 100,
            content_hash: content.map(str::to_owned),
            size_bytes: 3,
            content_type: Some("text/plain".to_owned()),
            filename: None,
        };
        assert_eq!(store.media("M").await.unwrap(), None);
        store.create_media(media(None, USER)).await.unwrap();
        assert_eq!(store.reserved_media_count(USER, 0).await.unwrap(), 1);
        assert_eq!(store.reserved_media_count(USER, 100).await.unwrap(), 0);
        assert_eq!(
            store.fill_media(media(Some("h"), "@b:test"), 0).await.unwrap(),
            MediaFill::NotYours
        );
        assert_eq!(
            store.fill_media(media(Some("h"), USER), 100).await.unwrap(),
            MediaFill::Unknown
        );
        assert_eq!(
            store.fill_media(media(Some("h"), USER), 99).await.unwrap(),
            MediaFill::Stored
        );
        assert_eq!(
            store.fill_media(media(Some("i"), USER), 99).await.unwrap(),
            MediaFill::AlreadyFilled
        );
        assert_eq!(store.media("M").await.unwrap(), Some(media(Some("h"), USER)));
        store.close().await;
    })
    .await;
}
