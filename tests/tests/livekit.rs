//! The SFU under LiveKit's own clients, with tokens fetched as a MatrixRTC client fetches them: an OpenID token of a real
//! user, handed to the authorisation service.

use reqwest::{Method, StatusCode};
use serde_json::json;
use system_tests::{Client, Engine, Script, Server, on_both_engines, one_call_at_a_time};

/// A room and its joined members.
async fn room_of(server: &Server, names: &[&str]) -> (String, Vec<Client>) {
    let mut members = Vec::new();
    for name in names {
        members.push(server.client().register(name).await);
    }
    let room_id = members[0].create_room(&json!({ "preset": "public_chat" })).await;
    for member in &members[1..] {
        member.join(&room_id).await;
    }
    (room_id, members)
}

async fn browsers_and_the_python_sdk_hear_and_see_each_other(engine: Engine) {
    let _turn = one_call_at_a_time().await;
    let server = Server::start(engine).await;
    let (room_id, members) = room_of(&server, &["web", "older-web", "python"]).await;
    let everyone: Vec<String> = members.iter().map(Client::call_identity).collect();
    let mut tokens = Vec::new();
    for member in &members {
        tokens.push(member.call_token(&room_id).await);
    }
    let browsers = json!({
        "participants": [
            { "url": tokens[0].url, "jwt": tokens[0].jwt },
            { "url": tokens[1].url, "jwt": tokens[1].jwt, "dual": true },
        ],
        "everyone": everyone,
    });
    let python = json!({ "url": tokens[2].url, "jwt": tokens[2].jwt, "peers": &everyone[..2] });

    let mut browsers = Script::node("livekit.mjs", &browsers);
    for expected in &everyone[..2] {
        assert_eq!(browsers.expect("connected").await["identity"], *expected);
        assert_eq!(
            browsers.expect("published").await["sources"],
            json!(["camera", "microphone"])
        );
    }
    let mut python = Script::python("livekit_peer.py", &python);
    assert_eq!(python.expect("connected").await["identity"], everyone[2]);
    python.expect("published").await;

    browsers.tell("exchange").await;
    python.tell("exchange").await;
    // Each browser reports both others; the script fails unless video, audio and data of both have come.
    for _ in 0..4 {
        let received = browsers.expect("received").await;
        assert_eq!(
            received["data"],
            json!([format!("hello from {}", received["peer"].as_str().unwrap_or_default())])
        );
    }
    for _ in 0..2 {
        let received = python.expect("received").await;
        assert_eq!(
            received["data"],
            json!([format!("hello from {}", received["peer"].as_str().unwrap_or_default())])
        );
    }
    browsers.tell("leave").await;
    python.tell("leave").await;
    browsers.finish().await;
    python.finish().await;
}

async fn tokens_are_for_members_with_a_genuine_openid_token(engine: Engine) {
    let server = Server::start(engine).await;
    let (room_id, members) = room_of(&server, &["member", "other"]).await;
    let service = "/livekit/jwt/sfu/get";
    let anonymous = server.client();

    let mut forged = members[0].call_request(&room_id).await;
    forged["openid_token"]["access_token"] = json!("not-a-token-of-this-server");
    let answer = anonymous.request(Method::POST, service, Some(&forged)).await;
    assert_eq!(
        (answer.status, &answer.body["errcode"]),
        (StatusCode::UNAUTHORIZED, &json!("M_UNAUTHORIZED"))
    );

    let outsider = server.client().register("outsider").await;
    let answer = anonymous
        .request(Method::POST, service, Some(&outsider.call_request(&room_id).await))
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);

    let answer = anonymous
        .request(Method::POST, service, Some(&json!({ "room": room_id })))
        .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
}

on_both_engines!(
    browsers_and_the_python_sdk_hear_and_see_each_other,
    tokens_are_for_members_with_a_genuine_openid_token,
);
