//! One device that syncs through every kill with the token it has.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::Value;
use system_tests::{Client, messages_in};
use tokio::{sync::watch, time::sleep};

/// What the device was shown.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// How often each message came, by room and event id.
    pub(crate) messages: HashMap<(String, String), usize>,
    /// How often each message to the device came.
    pub(crate) to_device: HashMap<String, usize>,
    /// The last number of each type of account data.
    pub(crate) account_data: BTreeMap<String, u64>,
    /// The event up to which each user had read each room when it was last shown.
    pub(crate) receipts: BTreeMap<(String, String), String>,
}

/// Follows `/sync` until a sync that was asked for after `stopped` shows nothing new. A gap the server announces is filled
/// from `/messages`, as clients do.
pub(crate) async fn follow(reader: Client, mut since: String, stopped: watch::Receiver<bool>) -> Followed {
    let mut followed = Followed::default();
    loop {
        // Read before the request: only an answer to a request made after the end shows everything.
        let last = *stopped.borrow();
        let wait = if last { Duration::ZERO } else { Duration::from_secs(2) };
        let answer = match reader.try_sync(Some(&since), wait).await {
            Ok(answer) => answer,
            Err(_) => {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        assert_eq!(answer.status, StatusCode::OK, "sync from {since:?}: {}", answer.body);
        let next = answer.body["next_batch"]
            .as_str()
            .expect("a sync names its end")
            .to_owned();
        let news = take_in(&reader, &since, &answer.body, &mut followed).await;
        let (from, to) = (position(&since), position(&next));
        assert!(
            if news { to > from } else { to >= from },
            "positions fell from {since} to {next}"
        );
        if last && !news {
            return followed;
        }
        since = next;
    }
}

/// Notes what one answer shows; whether that is anything.
async fn take_in(reader: &Client, since: &str, answer: &Value, followed: &mut Followed) -> bool {
    let mut news = false;
    for event in answer["to_device"]["events"].as_array().into_iter().flatten() {
        let name = event["content"]["name"].as_str().expect("the test names its messages");
        *followed.to_device.entry(name.to_owned()).or_default() += 1;
        news = true;
    }
    for event in answer["account_data"]["events"].as_array().into_iter().flatten() {
        if let (Some(kind), Some(number)) = (event["type"].as_str(), event["content"]["number"].as_u64()) {
            let before = followed.account_data.insert(kind.to_owned(), number);
            assert!(before <= Some(number), "{kind} fell from {before:?} to {number}");
            news = true;
        }
    }
    for (room_id, room) in answer["rooms"]["join"].as_object().into_iter().flatten() {
        news = true;
        let timeline = &room["timeline"];
        let mut messages: Vec<_> = messages_in(&timeline["events"]).collect();
        if timeline["limited"] == true {
            let mut from = timeline["prev_batch"].as_str().map(str::to_owned);
            while let Some(place) = from {
                let page = reader.messages_back(room_id, &place, since).await;
                messages.extend(messages_in(&page["chunk"]));
                from = page["end"].as_str().filter(|end| *end != place).map(str::to_owned);
            }
        }
        for message in messages {
            *followed
                .messages
                .entry((room_id.clone(), message.event_id))
                .or_default() += 1;
        }
        for event in room["ephemeral"]["events"].as_array().into_iter().flatten() {
            for (user, event_id) in receipts_in(event) {
                followed.receipts.insert((room_id.clone(), user), event_id);
            }
        }
    }
    news
}

/// User and event of each public receipt in an `m.receipt` event.
pub(crate) fn receipts_in(event: &Value) -> impl Iterator<Item = (String, String)> {
    let content = event["content"].as_object().cloned().unwrap_or_default();
    let is_receipt = event["type"] == "m.receipt";
    content
        .into_iter()
        .filter(move |_| is_receipt)
        .flat_map(|(event_id, kinds)| {
            let users = kinds["m.read"].as_object().cloned().unwrap_or_default();
            users.into_iter().map(move |(user, _)| (user, event_id.clone()))
        })
}

/// The place in the stream that a token of this server names.
fn position(token: &str) -> u64 {
    let digits: String = token
        .trim_start_matches('s')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{token:?} is not a token of this server"))
}
