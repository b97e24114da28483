//! Clients that write until they are told to stop. What has no answer is asked again, as clients do, so that everything
//! begun ends acknowledged; what cannot be repeated without a second effect is counted instead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use system_tests::{Answer, Client, PASSWORD, escape};
use tokio::time::sleep;

use crate::ledger::Ledger;

/// Every this many messages their sender also says how far it has read.
const MESSAGES_PER_RECEIPT: usize = 3;
/// One-time keys of each device.
const KEYS: usize = 5;

/// Whether the clients go on.
pub(crate) type Running = Arc<AtomicBool>;

/// The keyholder's devices with keys to claim.
pub(crate) type Devices = Arc<Mutex<Vec<String>>>;

/// Asks until there is an answer, which must be a success.
async fn answered(client: &Client, method: Method, path: &str, body: &Value) -> Value {
    loop {
        match client.try_request(method.clone(), path, Some(body)).await {
            Ok(answer) => return successful(path, answer),
            // The process is gone; its successor will answer.
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

fn successful(what: &str, answer: Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.body);
    answer.body
}

fn text(answer: &Value, field: &str) -> String {
    let value = answer[field].as_str();
    value.unwrap_or_else(|| panic!("no {field} in {answer}")).to_owned()
}

/// Sends into each room in turn, and says now and then how far it has read.
pub(crate) async fn messages(user: Client, rooms: Vec<String>, label: String, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0.. {
        if !running.load(Ordering::Relaxed) {
            break;
        }
        let room_id = &rooms[number % rooms.len()];
        let room = escape(room_id);
        let body = format!("message {label} {number}");
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{label}-{number}");
        let answer = answered(&user, Method::PUT, &path, &json!({ "msgtype": "m.text", "body": body })).await;
        let event_id = text(&answer, "event_id");
        ledger.messages.insert((room_id.clone(), body), event_id.clone());
        if number % MESSAGES_PER_RECEIPT == 0 {
            let path = format!("/_matrix/client/v3/rooms/{room}/receipt/m.read/{}", escape(&event_id));
            answered(&user, Method::POST, &path, &json!({})).await;
            ledger
                .receipts
                .insert((room_id.clone(), user.user_id.clone()), event_id);
        }
    }
    ledger
}

/// Sends messages to one device.
pub(crate) async fn to_device(user: Client, target: Client, label: String, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0.. {
        if !running.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{label}-{number}");
        let body = json!({ "messages": { &target.user_id: { &target.device_id: { "name": name } } } });
        let path = format!("/_matrix/client/v3/sendToDevice/org.longhouse.test/{name}");
        answered(&user, Method::PUT, &path, &body).await;
        ledger.to_device.insert(name);
    }
    ledger
}

/// Writes ever higher numbers under one type of account data, from `first` on.
pub(crate) async fn account_data(user: Client, kind: String, first: u64, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    let path = format!("/_matrix/client/v3/user/{}/account_data/{kind}", user.user_id);
    for number in first.. {
        if !running.load(Ordering::Relaxed) {
            break;
        }
        answered(&user, Method::PUT, &path, &json!({ "number": number })).await;
        ledger.account_data.insert(kind.clone(), number);
    }
    ledger
}

/// Uploads files; one without an answer is forgotten, since its address is unknown.
pub(crate) async fn media(user: Client, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    while running.load(Ordering::Relaxed) {
        let length = rand::random_range(1..50_000);
        let content: Vec<u8> = std::iter::repeat_with(rand::random).take(length).collect();
        match user.try_upload(content.clone()).await {
            Ok(answer) => {
                let uri = text(&successful("upload", answer), "content_uri");
                ledger.media.insert(uri, content);
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    ledger
}

/// Signs in again and again, and publishes keys for each new device.
pub(crate) async fn keys(name: String, base: Client, devices: Devices, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    while running.load(Ordering::Relaxed) {
        let login = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": name },
            "password": PASSWORD,
        });
        let answer = answered(&base, Method::POST, "/_matrix/client/v3/login", &login).await;
        let session = base.signed_in(&answer);
        let (user, device) = (session.user_id.clone(), session.device_id.clone());
        let identity = format!("identity of {device}");
        let one_time: serde_json::Map<String, Value> = (0..KEYS)
            .map(|number| {
                let key = json!({ "key": format!("{device} {number}"), "signatures": { &user: { format!("ed25519:{device}"): "made up" } } });
                (format!("signed_curve25519:{number}"), key)
            })
            .collect();
        let published: Vec<String> = one_time.keys().cloned().collect();
        let body = json!({
            "device_keys": {
                "user_id": user,
                "device_id": device,
                "algorithms": ["m.megolm.v1.aes-sha2"],
                "keys": { format!("curve25519:{device}"): identity },
                "signatures": {},
            },
            "one_time_keys": one_time,
        });
        answered(&session, Method::POST, "/_matrix/client/v3/keys/upload", &body).await;
        ledger.sessions.push(session);
        ledger.device_keys.insert(device.clone(), identity);
        ledger
            .published
            .extend(published.into_iter().map(|key| (device.clone(), key)));
        devices.lock().push(device);
    }
    ledger
}

/// Claims one-time keys of the keyholder's devices, newest first.
pub(crate) async fn claims(user: Client, holder: String, devices: Devices, running: Running) -> Ledger {
    let mut ledger = Ledger::default();
    while running.load(Ordering::Relaxed) {
        let newest = devices.lock().last().cloned();
        let Some(device) = newest else {
            // Nobody has published yet.
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        match claim(&user, &holder, &device).await {
            Ok(Some(key)) => ledger.claimed.push((device, key)),
            // Used up: the next device comes soon.
            Ok(None) => sleep(Duration::from_millis(5)).await,
            Err(_) => {
                ledger.unanswered_claims += 1;
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
    ledger
}

/// Claims one key of one device; `None` when there is none left.
pub(crate) async fn claim(user: &Client, holder: &str, device: &str) -> reqwest::Result<Option<String>> {
    let body = json!({ "one_time_keys": { holder: { device: "signed_curve25519" } } });
    let answer = user
        .try_request(Method::POST, "/_matrix/client/v3/keys/claim", Some(&body))
        .await?;
    let answer = successful("claim", answer);
    let keys = answer["one_time_keys"][holder][device].as_object();
    Ok(keys.and_then(|keys| keys.keys().next().cloned()))
}
