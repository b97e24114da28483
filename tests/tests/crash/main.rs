//! The first promise: what was answered 200 survives `kill -9`. The real process is killed at random moments under load,
//! now and then again while it starts, and started on the same data; then everything that was acknowledged must be there,
//! exactly once: messages, receipts, account data, messages to devices, media, sessions, device keys and one-time keys.

mod follow;
mod ledger;
mod load;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reqwest::Method;
use serde_json::json;
use system_tests::{Client, Engine, Server, environment, on_both_engines};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use follow::{Followed, follow, receipts_in};
use ledger::Ledger;
use load::{Devices, Running};

/// Users who send at the same time, each in turn into each room.
const SENDERS: usize = 4;
/// Rooms they share.
const ROOMS: usize = 2;
/// Account data of one round count from here times the round.
const NUMBERS_PER_ROUND: u64 = 1_000_000;

/// The people of the test.
struct Cast {
    senders: Vec<Client>,
    /// Follows everything; account data and messages to devices are this user's.
    reader: Client,
    /// Publishes keys for ever more devices.
    keyholder: Client,
    claimers: [Client; 2],
    rooms: Vec<String>,
    devices: Devices,
}

impl Cast {
    async fn gather(server: &Server) -> Self {
        let register = async |name: &str| server.client().register(name).await;
        let mut senders = Vec::new();
        for number in 0..SENDERS {
            senders.push(register(&format!("sender-{number}")).await);
        }
        let reader = register("reader").await;
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            let room_id = senders[0].create_room(&json!({ "preset": "public_chat" })).await;
            for user in senders[1..].iter().chain([&reader]) {
                user.join(&room_id).await;
            }
            rooms.push(room_id);
        }
        Self {
            senders,
            reader,
            keyholder: register("keyholder").await,
            claimers: [register("claimer-0").await, register("claimer-1").await],
            rooms,
            devices: Devices::default(),
        }
    }

    /// Everybody at once.
    fn start(&self, round: u64, running: &Running) -> JoinSet<Ledger> {
        let mut load = JoinSet::new();
        for (number, user) in self.senders.iter().enumerate() {
            let label = format!("{round}-{number}");
            load.spawn(load::messages(user.clone(), self.rooms.clone(), label, running.clone()));
        }
        for (number, user) in self.claimers.iter().enumerate() {
            let label = format!("to-device-{round}-{number}");
            load.spawn(load::to_device(
                user.clone(),
                self.reader.clone(),
                label,
                running.clone(),
            ));
            let (holder, devices) = (self.keyholder.user_id.clone(), self.devices.clone());
            load.spawn(load::claims(user.clone(), holder, devices, running.clone()));
        }
        for kind in ["org.longhouse.one", "org.longhouse.two"] {
            let first = (round + 1) * NUMBERS_PER_ROUND;
            load.spawn(load::account_data(
                self.reader.clone(),
                kind.to_owned(),
                first,
                running.clone(),
            ));
        }
        load.spawn(load::media(self.reader.clone(), running.clone()));
        let base = self.keyholder.anonymous();
        load.spawn(load::keys(
            "keyholder".to_owned(),
            base,
            self.devices.clone(),
            running.clone(),
        ));
        load
    }
}

/// Kills and restarts a loaded server again and again.
async fn nothing_acknowledged_is_lost(engine: Engine) {
    let rounds = environment::number("LONGHOUSE_TEST_KILL_ROUNDS", 5);
    let mut server = Server::start(engine).await;
    let cast = Cast::gather(&server).await;

    // The first sync shows the newest messages only: it comes before there are any.
    let first = cast
        .reader
        .try_sync(None, Duration::ZERO)
        .await
        .expect("the server answers");
    let since = first.body["next_batch"]
        .as_str()
        .expect("a sync names its end")
        .to_owned();
    let (stop, stopped) = watch::channel(false);
    let follower = tokio::spawn(follow(cast.reader.clone(), since, stopped));
    let mut ledger = Ledger::default();
    for round in 0..rounds {
        let running = Running::new(AtomicBool::new(true));
        let mut load = cast.start(round, &running);
        // The moment is the point of the test, and chance chooses it.
        sleep(Duration::from_millis(rand::random_range(20..700))).await;
        server.kill().await;
        if round % 3 == 0 {
            // Once more, while it opens its database or takes up what was left.
            server.spawn();
            sleep(Duration::from_millis(rand::random_range(1..150))).await;
            server.kill().await;
        }
        server.launch().await;
        running.store(false, Ordering::Relaxed);
        let mut answered = Ledger::default();
        while let Some(one) = load.join_next().await {
            answered.add(one.expect("a client does not panic"));
        }
        last_values_are_kept(&cast, &answered).await;
        ledger.add(answered);
    }
    stop.send(true).expect("the follower still runs");
    let followed = follower.await.expect("the follower does not panic");

    // A test in which nothing was written proves nothing.
    assert!(
        ledger.messages.len() as u64 > rounds * 2,
        "{} messages only",
        ledger.messages.len()
    );
    assert!(
        ledger.to_device.len() as u64 > rounds,
        "{} to devices only",
        ledger.to_device.len()
    );
    assert!(
        ledger.media.len() as u64 > rounds / 2,
        "{} files only",
        ledger.media.len()
    );
    assert!(!ledger.claimed.is_empty() && !ledger.receipts.is_empty() && ledger.account_data.len() == 2);
    messages_are_there_once(&cast, &ledger).await;
    the_follower_missed_nothing(&ledger, &followed);
    sessions_files_and_device_keys_are_kept(&cast, &ledger).await;
    no_one_time_key_is_lost_or_given_twice(&cast, &ledger).await;
}

/// What has a last value has the one that was answered last: nobody writes at this moment.
async fn last_values_are_kept(cast: &Cast, answered: &Ledger) {
    for (kind, number) in &answered.account_data {
        let path = format!("/_matrix/client/v3/user/{}/account_data/{kind}", cast.reader.user_id);
        let kept = cast.reader.ask(Method::GET, &path, None).await;
        assert_eq!(kept["number"], *number, "{kind}");
    }
    let whole = cast
        .reader
        .try_sync(None, Duration::ZERO)
        .await
        .expect("the server answers");
    for room_id in &cast.rooms {
        let ephemeral = whole.body["rooms"]["join"][room_id]["ephemeral"]["events"].as_array();
        let kept: BTreeMap<String, String> = ephemeral.into_iter().flatten().flat_map(receipts_in).collect();
        for ((_, user), event_id) in answered.receipts.iter().filter(|((room, _), _)| room == room_id) {
            assert_eq!(
                kept.get(user),
                Some(event_id),
                "the receipt of {user} in {room_id}: {kept:?}"
            );
        }
    }
}

async fn messages_are_there_once(cast: &Cast, ledger: &Ledger) {
    let mut stored: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let mut listed = HashSet::new();
    for room_id in &cast.rooms {
        for message in cast.reader.all_messages(room_id).await {
            assert!(
                listed.insert(message.event_id.clone()),
                "{} is listed twice",
                message.event_id
            );
            stored
                .entry((room_id.clone(), message.body))
                .or_default()
                .insert(message.event_id);
        }
    }
    for (message, event_id) in &ledger.messages {
        let found = stored
            .get(message)
            .unwrap_or_else(|| panic!("{message:?} was answered 200 and is lost"));
        assert_eq!(
            found,
            &BTreeSet::from([event_id.clone()]),
            "{message:?} is there once, as it was acknowledged"
        );
    }
    assert_eq!(stored.len(), ledger.messages.len(), "messages that nobody sent");
}

fn the_follower_missed_nothing(ledger: &Ledger, followed: &Followed) {
    for ((room_id, body), event_id) in &ledger.messages {
        let times = followed.messages.get(&(room_id.clone(), event_id.clone()));
        assert_eq!(times, Some(&1), "{body:?} reached the syncing reader {times:?} times");
    }
    for name in &ledger.to_device {
        let times = followed.to_device.get(name);
        assert_eq!(times, Some(&1), "{name:?} reached the reader's device {times:?} times");
    }
    assert_eq!(followed.account_data, ledger.account_data);
    for (place, event_id) in &ledger.receipts {
        assert_eq!(followed.receipts.get(place), Some(event_id), "the receipt of {place:?}");
    }
}

async fn sessions_files_and_device_keys_are_kept(cast: &Cast, ledger: &Ledger) {
    for session in &ledger.sessions {
        let who = session
            .ask(Method::GET, "/_matrix/client/v3/account/whoami", None)
            .await;
        assert_eq!(who["device_id"], session.device_id, "{who}");
    }
    for (uri, content) in &ledger.media {
        let kept = cast.senders[0].download(uri).await;
        assert!(
            kept.as_ref() == Some(content),
            "{uri} was answered 200 and is lost or damaged"
        );
    }
    let holder = &cast.keyholder.user_id;
    let query = json!({ "device_keys": { holder: [] } });
    let answer = cast
        .reader
        .ask(Method::POST, "/_matrix/client/v3/keys/query", Some(&query))
        .await;
    for (device, identity) in &ledger.device_keys {
        let kept = &answer["device_keys"][holder][device]["keys"][format!("curve25519:{device}")];
        assert_eq!(kept, identity, "the keys of {device}");
    }
}

/// Claims everything that is left: with what was claimed under load, that is every key published, and none twice. Only
/// a claim whose answer was lost may have used one up.
async fn no_one_time_key_is_lost_or_given_twice(cast: &Cast, ledger: &Ledger) {
    let mut given = HashSet::new();
    for key in &ledger.claimed {
        assert!(given.insert(key.clone()), "{key:?} was given twice under load");
    }
    for device in ledger.device_keys.keys() {
        let claimer = &cast.claimers[0];
        while let Some(key) = load::claim(claimer, &cast.keyholder.user_id, device)
            .await
            .expect("the server answers")
        {
            let key = (device.clone(), key);
            assert!(given.insert(key.clone()), "{key:?} was given again after a restart");
        }
    }
    let lost = ledger.published.iter().filter(|key| !given.contains(*key)).count();
    assert!(
        lost <= ledger.unanswered_claims,
        "{lost} one-time keys are gone, and only {} claims had no answer",
        ledger.unanswered_claims
    );
}

on_both_engines!(nothing_acknowledged_is_lost);
