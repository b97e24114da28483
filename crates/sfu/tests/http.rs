//! The signalling paths as browsers and probes see them before any WebSocket.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::body::{Body, to_bytes};
use credentials::livekit::{ApiKey, RoomGrant};
use http::{Request, StatusCode};
use sfu::{Admission, Admitted, Config, SfuHandle, Surroundings};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Tokens for the test never expire: the SFU reads the real clock.
const FOREVER: u64 = 10_000_000_000;

#[expect(clippy::disallowed_methods, reason = "the SFU reads the real clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn start() -> (SfuHandle, ApiKey) {
    start_with(Arc::new(|_, _| Box::pin(std::future::ready(Admitted::Yes)))).await
}

async fn start_with(admission: Admission) -> (SfuHandle, ApiKey) {
    let key = ApiKey::new("key", "secret");
    let config = Config {
        udp_listen: Some("127.0.0.1:0".parse().unwrap()),
        tcp_listen: Some("127.0.0.1:0".parse().unwrap()),
        candidate_ips: vec!["127.0.0.1".parse().unwrap()],
        ..Config::default()
    };
    let surroundings = Surroundings {
        key: key.clone(),
        switch: fabric::switch::Switch::new(),
        events: mpsc::channel(8).0,
        ice_servers: Arc::new(|_, _| Vec::new()),
        admission,
        shutdown: CancellationToken::new(),
    };
    (sfu::start(config, surroundings).await.unwrap(), key)
}

async fn get(sfu: &SfuHandle, path: &str, bearer: Option<&str>) -> (StatusCode, String) {
    let mut request = Request::get(path);
    if let Some(token) = bearer {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = sfu
        .router()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.headers()["access-control-allow-origin"], "*", "{path}");
    let status = response.status();
    let body = to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn validate_says_why_a_client_is_not_let_in() {
    let (sfu, key) = start().await;
    sfu.ensure_room("open");
    let token = |room: &str| key.mint("@a:b:C", RoomGrant::participant(room), 0, FOREVER);
    let no_join = key.mint(
        "@a:b:C",
        RoomGrant {
            room: "open".into(),
            ..RoomGrant::default()
        },
        0,
        FOREVER,
    );
    let foreign = ApiKey::new("key", "other").mint("@a:b:C", RoomGrant::participant("open"), 0, FOREVER);
    for (path, token, status, text) in [
        ("/rtc/v1/validate", Some(token("open")), StatusCode::OK, "success"),
        ("//rtc//validate", Some(token("open")), StatusCode::OK, "success"),
        (
            "/rtc/v1/validate",
            Some(token("shut")),
            StatusCode::NOT_FOUND,
            "requested room does not exist",
        ),
        ("/rtc/v1/validate", None, StatusCode::UNAUTHORIZED, "missing"),
        ("/rtc/validate", Some(foreign), StatusCode::UNAUTHORIZED, "signature"),
        ("/rtc/validate", Some(no_join), StatusCode::FORBIDDEN, "permit"),
        ("/rtc/v1", Some(token("open")), StatusCode::NOT_FOUND, ""),
        ("/rtc", None, StatusCode::NOT_FOUND, ""),
        ("/", None, StatusCode::OK, "OK"),
        ("/elsewhere", None, StatusCode::NOT_FOUND, ""),
    ] {
        let (got, body) = get(&sfu, path, token.as_deref()).await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
        if path.ends_with("validate")
            && let Some(token) = token
        {
            let (in_query, _) = get(&sfu, &format!("{path}?access_token={token}"), None).await;
            assert_eq!(in_query, status, "{path} with the token in the query");
        }
    }
}

#[tokio::test]
async fn a_token_from_before_the_removal_is_over_and_a_later_one_is_not() {
    let (sfu, key) = start().await;
    sfu.ensure_room("room");
    let now = now();
    let token = |identity: &str, issued| key.mint(identity, RoomGrant::participant("room"), issued, 3600);
    let of_alice = token("@a:b:C", now - 10);
    assert_eq!(get(&sfu, "/rtc/v1/validate", Some(&of_alice)).await.0, StatusCode::OK);
    sfu.remove_participant("room", "@a:b:C").await;
    let (status, body) = get(&sfu, "/rtc/v1/validate", Some(&of_alice)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains("removed"), "{body}");
    let others = token("@b:b:C", now - 10);
    assert_eq!(get(&sfu, "/rtc/v1/validate", Some(&others)).await.0, StatusCode::OK);
    // A minute of clock difference is tolerated: it may be issued "later" already.
    let later = token("@a:b:C", now + 30);
    assert_eq!(get(&sfu, "/rtc/v1/validate", Some(&later)).await.0, StatusCode::OK);
}

#[tokio::test]
async fn who_lost_the_right_is_turned_away_at_the_door() {
    let admission: Admission = Arc::new(|room, identity| {
        let admitted = match (room.as_str(), identity.as_str()) {
            ("room", "@in:b:C") => Admitted::Yes,
            ("room", "@out:b:C") => Admitted::No,
            _ => Admitted::Unknown,
        };
        Box::pin(std::future::ready(admitted))
    });
    let (sfu, key) = start_with(admission).await;
    sfu.ensure_room("room");
    for (identity, status) in [
        ("@in:b:C", StatusCode::OK),
        ("@out:b:C", StatusCode::FORBIDDEN),
        ("@other:b:C", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let token = key.mint(identity, RoomGrant::participant("room"), 0, FOREVER);
        assert_eq!(
            get(&sfu, "/rtc/v1/validate", Some(&token)).await.0,
            status,
            "{identity}"
        );
    }
}

#[tokio::test]
async fn a_room_is_open_from_its_opening_to_its_closing() {
    let (sfu, key) = start().await;
    let token = key.mint("@a:b:C", RoomGrant::participant("room"), 0, FOREVER);
    sfu.ensure_room("room");
    assert!(sfu.participants("room").await.is_empty() && !sfu.has_participant("room", "@a:b:C"));
    assert_eq!(get(&sfu, "/rtc/v1/validate", Some(&token)).await.0, StatusCode::OK);
    sfu.close_room("room").await;
    // Asking the room takes its place in line behind the closing.
    assert!(sfu.participants("room").await.is_empty());
    assert_eq!(
        get(&sfu, "/rtc/v1/validate", Some(&token)).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(sfu.media_addresses().udp.len(), 1);
}
