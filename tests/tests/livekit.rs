//! The SFU under LiveKit's own clients, with tokens fetched as a MatrixRTC client fetches them: an OpenID token of a real
//! user, handed to the authorisation service.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use system_tests::{Client, Engine, Script, Server};

/// What a client needs to join the room's call, as `/sfu/get` answers it.
async fn token(client: &Client, room_id: &str) -> Value {
    let transports = client
        .ask(
            Method::GET,
            "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
            None,
        )
        .await;
    let service = transports["rtc_transports"]
        .as_array()
        .and_then(|all| all.iter().find(|transport| transport["type"] == "livekit"))
        .and_then(|transport| transport["livekit_service_url"].as_str())
        .unwrap_or_else(|| panic!("no livekit transport in {transports}"));
    let service = service
        .strip_prefix(client.base_url())
        .unwrap_or_else(|| panic!("{service} is not on this server"));
    let answer = client
        .anonymous()
        .request(
            Method::POST,
            &format!("{service}/sfu/get"),
            Some(&request(client, room_id).await),
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body
}

/// The body of a request for a token.
async fn request(client: &Client, room_id: &str) -> Value {
    let path = format!("/_matrix/client/v3/user/{}/openid/request_token", client.user_id);
    let openid = client.ask(Method::POST, &path, Some(&json!({}))).await;
    json!({ "room": room_id, "openid_token": openid, "device_id": client.device_id })
}

/// The identity under which a device is known in the call.
fn identity(client: &Client) -> String {
    format!("{}:{}", client.user_id, client.device_id)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn browsers_and_the_python_sdk_hear_and_see_each_other() {
    let server = Server::start(Engine::Sqlite).await;
    let (room_id, members) = room_of(&server, &["web", "older-web", "python"]).await;
    let everyone: Vec<String> = members.iter().map(identity).collect();
    let mut tokens = Vec::new();
    for member in &members {
        tokens.push(token(member, &room_id).await);
    }
    let browsers = json!({
        "participants": [
            { "url": tokens[0]["url"], "jwt": tokens[0]["jwt"] },
            { "url": tokens[1]["url"], "jwt": tokens[1]["jwt"], "dual": true },
        ],
        "everyone": everyone,
    });
    let python = json!({ "url": tokens[2]["url"], "jwt": tokens[2]["jwt"], "peers": &everyone[..2] });

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

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_members_with_a_genuine_openid_token() {
    let server = Server::start(Engine::Sqlite).await;
    let (room_id, members) = room_of(&server, &["member", "other"]).await;
    let service = "/livekit/jwt/sfu/get";
    let anonymous = server.client();

    let mut forged = request(&members[0], &room_id).await;
    forged["openid_token"]["access_token"] = json!("not-a-token-of-this-server");
    let answer = anonymous.request(Method::POST, service, Some(&forged)).await;
    assert_eq!(
        (answer.status, &answer.body["errcode"]),
        (StatusCode::UNAUTHORIZED, &json!("M_UNAUTHORIZED"))
    );

    let outsider = server.client().register("outsider").await;
    let answer = anonymous
        .request(Method::POST, service, Some(&request(&outsider, &room_id).await))
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);

    let answer = anonymous
        .request(Method::POST, service, Some(&json!({ "room": room_id })))
        .await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
}
