//! The first promise: what was answered 200 survives `kill -9`. The real process is killed at random moments under load
//! and started again on the same data; then everything that was acknowledged must be there, exactly once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};
use system_tests::{Client, Engine, Server, environment, messages_in};
use tokio::{sync::watch, task::JoinSet, time::sleep};

/// Users who send at the same time, each in turn into each room.
const SENDERS: usize = 6;
/// Rooms they share.
const ROOMS: usize = 2;

/// What one sender knows: the event id the server acknowledged for each message.
type Acknowledged = BTreeMap<String, String>;

/// Kills and restarts a loaded server `rounds` times.
async fn nothing_acknowledged_is_lost(engine: Engine) {
    let rounds = environment::number("LONGHOUSE_TEST_KILL_ROUNDS", 5);
    let mut server = Server::start(engine).await;
    let mut users = Vec::new();
    for number in 0..SENDERS {
        users.push(server.client().register(&format!("sender-{number}")).await);
    }
    let reader = server.client().register("reader").await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        let room_id = users[0].create_room(&json!({ "preset": "public_chat" })).await;
        for user in users[1..].iter().chain([&reader]) {
            user.join(&room_id).await;
        }
        rooms.push(room_id);
    }

    // The first sync shows the newest messages only: it comes before there are any.
    let first = reader.try_sync(None, Duration::ZERO).await.expect("the server answers");
    let since = first.body["next_batch"]
        .as_str()
        .expect("a sync names its end")
        .to_owned();
    let (stop, stopped) = watch::channel(false);
    let follower = tokio::spawn(follow(reader.clone(), since, stopped));
    let mut acknowledged: HashMap<String, Acknowledged> = HashMap::new();
    for round in 0..rounds {
        let running = Arc::new(AtomicBool::new(true));
        let mut senders = JoinSet::new();
        for (number, user) in users.iter().enumerate() {
            let label = format!("{round}-{number}");
            senders.spawn(send_until_told(user.clone(), rooms.clone(), label, running.clone()));
        }
        // The moment is the point of the test, and chance chooses it.
        sleep(Duration::from_millis(rand::random_range(20..700))).await;
        server.kill().await;
        server.launch().await;
        running.store(false, Ordering::Relaxed);
        while let Some(sent) = senders.join_next().await {
            for (room_id, messages) in sent.expect("a sender does not panic") {
                acknowledged.entry(room_id).or_default().extend(messages);
            }
        }
    }

    // One last message per room tells the follower that it has seen everything before.
    for room_id in &rooms {
        let answer = users[0]
            .try_send(room_id, "the-last", "the last")
            .await
            .expect("the server answers");
        let event_id = acknowledged_id(&answer.body).expect("the last message is acknowledged");
        acknowledged
            .entry(room_id.clone())
            .or_default()
            .insert("the last".to_owned(), event_id);
    }
    stop.send(true).expect("the follower still runs");
    let followed = follower.await.expect("the follower does not panic");

    for room_id in &rooms {
        let expected = &acknowledged[room_id];
        let mut stored: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut count = 0_usize;
        for message in reader.all_messages(room_id).await {
            stored.entry(message.body).or_default().insert(message.event_id);
            count += 1;
        }
        assert_eq!(
            count,
            stored.values().map(BTreeSet::len).sum::<usize>(),
            "an event is listed twice"
        );
        for (body, event_id) in expected {
            let found = stored
                .get(body)
                .unwrap_or_else(|| panic!("{body:?} was answered 200 and is lost"));
            assert_eq!(
                found,
                &BTreeSet::from([event_id.clone()]),
                "{body:?} is there once, as it was acknowledged"
            );
        }
        let seen = &followed[room_id];
        for (body, event_id) in expected {
            let times = seen.iter().filter(|seen| *seen == event_id).count();
            assert_eq!(times, 1, "{body:?} reached the syncing reader {times} times");
        }
    }
}

/// Sends messages until told to stop; a message without an answer is sent again under its transaction id, as clients do,
/// so that every message ends acknowledged.
async fn send_until_told(
    user: Client,
    rooms: Vec<String>,
    label: String,
    running: Arc<AtomicBool>,
) -> HashMap<String, Acknowledged> {
    let mut sent: HashMap<String, Acknowledged> = HashMap::new();
    for number in 0_u64.. {
        if !running.load(Ordering::Relaxed) {
            break;
        }
        let room_id = &rooms[number as usize % rooms.len()];
        let (transaction, text) = (format!("{label}-{number}"), format!("message {label} {number}"));
        loop {
            match user.try_send(room_id, &transaction, &text).await {
                Ok(answer) => {
                    assert_eq!(answer.status, StatusCode::OK, "{transaction}: {}", answer.body);
                    let event_id = acknowledged_id(&answer.body).expect("an acknowledgement names the event");
                    sent.entry(room_id.clone()).or_default().insert(text, event_id);
                    break;
                }
                // The process is gone; its successor will answer.
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
    sent
}

fn acknowledged_id(answer: &Value) -> Option<String> {
    answer["event_id"].as_str().map(str::to_owned)
}

/// Follows `/sync` through every kill with the token it has, and returns the ids of the messages each room showed, in
/// order. A gap the server announces is filled from `/messages`, as clients do.
async fn follow(reader: Client, mut since: String, stopped: watch::Receiver<bool>) -> HashMap<String, Vec<String>> {
    let mut seen: HashMap<String, Vec<String>> = HashMap::new();
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
        let rooms = answer.body["rooms"]["join"].as_object().cloned().unwrap_or_default();
        let nothing_new = rooms.is_empty();
        for (room_id, room) in rooms {
            let timeline = &room["timeline"];
            let mut messages: Vec<_> = messages_in(&timeline["events"]).collect();
            if timeline["limited"] == true {
                let mut from = timeline["prev_batch"].as_str().map(str::to_owned);
                while let Some(place) = from {
                    let page = reader.messages_back(&room_id, &place, &since).await;
                    for message in messages_in(&page["chunk"]) {
                        messages.insert(0, message);
                    }
                    from = page["end"].as_str().filter(|end| *end != place).map(str::to_owned);
                }
            }
            seen.entry(room_id)
                .or_default()
                .extend(messages.into_iter().map(|message| message.event_id));
        }
        let next = answer.body["next_batch"].as_str().expect("a sync names its end");
        assert!(
            position(next) >= position(&since),
            "positions fell from {since} to {next}"
        );
        if last && nothing_new {
            return seen;
        }
        since = next.to_owned();
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_what_it_acknowledged() {
    nothing_acknowledged_is_lost(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_what_it_acknowledged() {
    nothing_acknowledged_is_lost(Engine::Postgres).await;
}
