//! Element Call, the unmodified widget, through the homeserver and the SFU, in Chromium.

use std::time::Duration;

use serde_json::{Value, json};
use system_tests::{Client, Engine, PASSWORD, Script, Server, eventually, on_both_engines, one_call_at_a_time};

/// How long a participant whose browser died may still be seen by the others.
const GHOST_LIMIT: Duration = Duration::from_secs(10);

/// How long after a start a membership may outlive its call: the server gives clients half a minute to come back to the
/// SFU with the tokens they have before it takes them for gone.
const RETURN_LIMIT: Duration = Duration::from_secs(45);

/// Two, then three people see each other encrypted; a killed browser leaves no ghost; neither does a restart.
async fn three_people_meet_and_no_ghost_stays(engine: Engine) {
    let _turn = one_call_at_a_time().await;
    let mut server = Server::start(engine).await;
    let mut script = Script::node("element_call.mjs", &json!({ "baseUrl": server.base_url() }))
        .with_patience(Duration::from_secs(150));
    let room = script.expect("room").await;
    let room_id = room["roomId"].as_str().expect("the room has an id").to_owned();

    for size in [2, 3] {
        for viewer in 0..size {
            let sees = script.expect("sees").await;
            assert_eq!(sees["others"].as_array().map(Vec::len), Some(size - 1), "{sees}");
            assert_eq!(
                sees["encrypted"], true,
                "participant {viewer} shows the call as encrypted: {sees}"
            );
            // Each other participant's key came over Olm, and every track in both directions is transformed.
            let keys = &sees["keys"];
            assert!(keys["sent"].as_u64() >= Some(size as u64 - 1), "{sees}");
            assert!(keys["received"].as_u64() >= Some(size as u64 - 1), "{sees}");
            assert!(sees["transforms"].as_u64() >= Some(2 * size as u64), "{sees}");
        }
        script.expect(if size == 2 { "two" } else { "three" }).await;
    }
    let observer = server.client().login("ada", PASSWORD).await;
    assert_eq!(members_in_call(&observer, &room_id).await.len(), 3);

    script.tell("kill-the-third").await;
    script.expect("killed").await;
    let gone = script.expect("gone").await;
    assert!(
        gone["milliseconds"].as_u64() <= Some(GHOST_LIMIT.as_millis() as u64),
        "the ghost stays too long: {gone}"
    );
    let left = eventually(
        "the membership of the killed participant ends",
        GHOST_LIMIT,
        async || {
            let members = members_in_call(&observer, &room_id).await;
            (members.len() == 2).then_some(members)
        },
    );
    let left = left.await;
    assert!(left.iter().all(|key| !key.contains("@cleo:")), "{left:?}");

    script.tell("hang-up-the-first").await;
    script.expect("hung-up").await;
    script.tell("kill-the-second").await;
    script.expect("killed").await;
    server.kill().await;
    server.launch().await;
    eventually(
        "no membership outlives the call and the restart",
        RETURN_LIMIT,
        async || members_in_call(&observer, &room_id).await.is_empty().then_some(()),
    )
    .await;
    script.finish().await;
}

/// The state keys of the memberships that say "in the call": a membership that ended has an empty content.
async fn members_in_call(observer: &Client, room_id: &str) -> Vec<String> {
    let state = observer.full_state(room_id).await;
    let members = state
        .iter()
        .filter(|event| event["type"] == "org.matrix.msc3401.call.member");
    let present = members.filter(|event| event["content"].as_object().is_some_and(|content| !content.is_empty()));
    present
        .map(|event| event["state_key"].as_str().map(str::to_owned).unwrap_or_default())
        .collect()
}

/// The membership of a participant who never connects to the media ends too, at the latest when its delay is over.
async fn a_delayed_leave_is_sent_although_the_server_restarted(engine: Engine) {
    let mut server = Server::start(engine).await;
    let user = server.client().register("erin").await;
    let room_id = user.create_room(&json!({ "preset": "private_chat" })).await;
    let key = format!("_{}_{}_m.call", user.user_id, user.device_id);
    let path = user.state_path(&room_id, "org.matrix.msc3401.call.member", &key);
    user.ask(
        reqwest::Method::PUT,
        &path,
        Some(&json!({ "application": "m.call", "call_id": "" })),
    )
    .await;
    let delayed = format!("{path}?org.matrix.msc4140.delay=2000");
    let answer = user.ask(reqwest::Method::PUT, &delayed, Some(&json!({}))).await;
    assert!(answer["delay_id"].is_string(), "{answer}");
    server.kill().await;
    server.launch().await;
    eventually("the delayed leave is sent", Duration::from_secs(15), async || {
        let now = user.state(&room_id, "org.matrix.msc3401.call.member", &key).await;
        (now == Some(Value::Object(serde_json::Map::new()))).then_some(())
    })
    .await;
}

on_both_engines!(
    three_people_meet_and_no_ghost_stays,
    a_delayed_leave_is_sent_although_the_server_restarted,
);
