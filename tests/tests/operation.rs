//! What whoever runs the server relies on: health, metrics, and an end that cuts nobody off.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::json;
use system_tests::{Database, Engine, Server, Setup, eventually, on_both_engines};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

/// How long an end with open long polls may take: they are told, not waited for.
const PROMPT: Duration = Duration::from_secs(5);

/// The values of a Prometheus text page by name and labels.
async fn metrics(server: &Server) -> BTreeMap<String, f64> {
    let answer = reqwest::get(server.metrics_url())
        .await
        .expect("the metrics listener answers");
    assert_eq!(answer.status(), StatusCode::OK);
    let kind = answer.headers()["content-type"].to_str().expect("the header is text");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = answer.text().await.expect("the whole page comes");
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            (name.to_owned(), value)
        })
        .collect()
}

/// The sum of all samples whose name and labels contain every part.
fn total(samples: &BTreeMap<String, f64>, parts: &[&str]) -> f64 {
    let matching = samples
        .iter()
        .filter(|(name, _)| parts.iter().all(|part| name.contains(part)));
    matching.map(|(_, value)| value).sum()
}

async fn metrics_are_off_unless_asked_for(engine: Engine) {
    let server = Server::start(engine).await;
    let error = reqwest::get(server.metrics_url()).await.expect_err("nobody listens");
    assert!(error.is_connect(), "{error:?}");
    let public = reqwest::get(format!("{}/metrics", server.base_url())).await;
    assert_eq!(public.expect("the server answers").status(), StatusCode::NOT_FOUND);
}

async fn metrics_have_their_own_listener_and_move_with_what_happens(engine: Engine) {
    let server = Setup::new(engine).set("metrics", "enabled", "true").start().await;
    let public = reqwest::get(format!("{}/metrics", server.base_url())).await;
    assert_eq!(public.expect("the server answers").status(), StatusCode::NOT_FOUND);
    let elsewhere = server.metrics_url().replace("/metrics", "/_matrix/client/versions");
    let elsewhere = reqwest::get(elsewhere).await.expect("the metrics listener answers");
    assert_eq!(
        elsewhere.status(),
        StatusCode::NOT_FOUND,
        "the metrics listener serves nothing else"
    );

    let before = metrics(&server).await;
    assert_eq!(total(&before, &["longhouse_build_info"]), 1.0);
    let user = server.client().register("observer").await;
    let room_id = user.create_room(&json!({})).await;
    for number in 0..5 {
        let sent = user.try_send(&room_id, &number.to_string(), "counted").await;
        assert_eq!(sent.expect("the server answers").status, StatusCode::OK);
    }
    // A STUN binding request (RFC 8489 §5): 20 bytes, no attributes.
    let stun = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("a socket can be opened");
    let mut request = [0; 20];
    request[1] = 1;
    request[4..8].copy_from_slice(&0x2112_A442_u32.to_be_bytes());
    stun.send_to(&request, ("127.0.0.1", server.turn_port()))
        .await
        .expect("loopback takes a datagram");
    let mut answer = [0; 128];
    let answered = timeout(PROMPT, stun.recv(&mut answer))
        .await
        .expect("the relay answers a binding request");
    assert!(answered.expect("loopback gives a datagram") >= 20);

    let grown = |after: &BTreeMap<String, f64>, parts: &[&str]| total(after, parts) - total(&before, parts);
    let sends = [
        "longhouse_http_request_seconds_count",
        "/send/",
        "method=\"PUT\"",
        "status=\"200\"",
    ];
    eventually("every figure has moved", PROMPT, async || {
        let after = metrics(&server).await;
        let moved = grown(&after, &sends) == 5.0
            && grown(&after, &["longhouse_http_request_seconds_sum"]) > 0.0
            // PostgreSQL groups the commits itself.
            && (engine == Engine::Postgres
                || grown(&after, &["longhouse_storage_group_commit_writes_count"]) >= 5.0)
            && grown(&after, &["relay_received_packets_total"]) >= 1.0
            && grown(&after, &["relay_received_bytes_total"]) >= 20.0;
        moved.then_some(())
    })
    .await;

    // Labels name routes and outcomes, never people, rooms or tokens.
    let page = reqwest::get(server.metrics_url())
        .await
        .expect("the metrics listener answers");
    let page = page.text().await.expect("the whole page comes");
    for secret in [&user.user_id, &room_id, &user.access_token, &"observer".to_owned()] {
        assert!(
            !page.contains(secret.as_str()),
            "{secret} is among the metrics:\n{page}"
        );
    }
}

/// The status of `/health/ready`; `None` while nobody listens.
async fn readiness(server: &Server) -> Option<StatusCode> {
    let answer = reqwest::get(format!("{}/health/ready", server.base_url())).await;
    answer.ok().map(|answer| answer.status())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_not_ready_before_its_database_is_open() {
    // PostgreSQL behind a door that the test opens.
    let database = Database::fresh(Engine::Postgres);
    let url = database.url().expect("a PostgreSQL database has an address");
    let (head, rest) = url.split_once('@').expect("the address names a user");
    let (authority, path) = rest.split_once('/').expect("the address names a database");
    let door = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = door.local_addr().expect("a bound socket has an address").port();
    let (open, opened) = watch::channel(false);
    let (came, mut comes) = watch::channel(false);
    let behind = authority.to_owned();
    let proxy = tokio::spawn(async move {
        while let Ok((mut client, _)) = door.accept().await {
            came.send_replace(true);
            let (mut opened, behind) = (opened.clone(), behind.clone());
            tokio::spawn(async move {
                // Both ends may be gone before the test is.
                if opened.wait_for(|open| *open).await.is_ok()
                    && let Ok(mut postgres) = TcpStream::connect(&behind).await
                {
                    let _ = copy_bidirectional(&mut client, &mut postgres).await;
                }
            });
        }
    });
    let mut server = Setup::new(Engine::Sqlite)
        .set("database", "url", format!("\"{head}@127.0.0.1:{port}/{path}\""))
        .prepare();
    server.spawn();
    let knocked = timeout(Duration::from_secs(30), comes.wait_for(|came| *came)).await;
    knocked
        .expect("the server goes to its database")
        .expect("the proxy runs");

    assert_ne!(readiness(&server).await, Some(StatusCode::OK));
    let ready = server.admin(&["ready"]).await;
    assert!(
        !ready.status.success(),
        "`longhouse ready` takes a server without its database for ready"
    );

    open.send_replace(true);
    eventually("the server is ready", Duration::from_secs(30), async || {
        (readiness(&server).await == Some(StatusCode::OK)).then_some(())
    })
    .await;
    let live = reqwest::get(format!("{}/health/live", server.base_url())).await;
    assert_eq!(live.expect("the server answers").status(), StatusCode::OK);
    assert!(server.admin(&["ready"]).await.status.success());
    assert!(server.stop().await.success);
    assert_eq!(readiness(&server).await, None);
    assert!(!server.admin(&["ready"]).await.status.success());
    proxy.abort();
}

/// A request whose body is still on its way when the end is announced is answered; meanwhile nobody is told "ready".
async fn a_request_on_its_way_is_answered_and_the_server_is_not_ready_while_it_stops(engine: Engine) {
    let mut server = Setup::new(engine).set("metrics", "enabled", "true").start().await;
    let user = server.client().register("slow").await;
    let address = server.base_url().replace("http://", "");
    let mut upload = TcpStream::connect(&address).await.expect("the server accepts");
    let content = vec![b'x'; 100_000];
    let head = format!(
        "POST /_matrix/media/v3/upload?filename=slow HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        user.access_token,
        content.len()
    );
    upload.write_all(head.as_bytes()).await.expect("the server reads");
    upload.write_all(&content[..50_000]).await.expect("the server reads");
    in_flight(&server, 1.0).await;

    server.terminate().await;
    eventually("the server no longer takes connections", PROMPT, async || {
        let status = readiness(&server).await;
        (status != Some(StatusCode::OK)).then_some(())
    })
    .await;
    assert!(!server.admin(&["ready"]).await.status.success());

    upload.write_all(&content[50_000..]).await.expect("the server reads on");
    let mut answer = Vec::new();
    let read = timeout(PROMPT, upload.read_to_end(&mut answer)).await;
    read.expect("the answer comes").expect("the answer is whole");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let uri = answer
        .split('"')
        .find_map(|part| part.strip_prefix("mxc://"))
        .unwrap_or_else(|| panic!("no content_uri in {answer}"))
        .to_owned();
    assert!(server.ended().await.success);

    server.launch().await;
    let path = format!("/_matrix/client/v1/media/download/{uri}");
    assert_eq!(user.request(Method::GET, &path, None).await.status, StatusCode::OK);
}

/// Waits until that many requests are being answered, those to `/metrics` apart.
async fn in_flight(server: &Server, count: f64) {
    eventually("the requests have arrived", PROMPT, async || {
        let samples = metrics(server).await;
        (total(&samples, &["longhouse_http_requests_in_flight"]) == count).then_some(())
    })
    .await;
}

async fn long_polls_and_calls_end_promptly_and_in_order(engine: Engine) {
    let mut server = Setup::new(engine).set("metrics", "enabled", "true").start().await;
    let user = server.client().register("waiting").await;
    let room_id = user.create_room(&json!({ "preset": "public_chat" })).await;
    let call = user.call_token(&room_id).await;
    let stream = TcpStream::connect(server.base_url().replace("http://", "")).await;
    let mut signalling = call.join(stream.expect("the server accepts")).await;

    let first = user.try_sync(None, Duration::ZERO).await.expect("the server answers");
    let since = first.body["next_batch"]
        .as_str()
        .expect("a sync names its end")
        .to_owned();
    let polls: Vec<_> = (0..20)
        .map(|_| {
            let (user, since) = (user.clone(), since.clone());
            tokio::spawn(async move { user.try_sync(Some(&since), Duration::from_secs(60)).await })
        })
        .collect();
    in_flight(&server, 20.0).await;

    server.terminate().await;
    let ended = timeout(PROMPT, server.ended())
        .await
        .expect("the server waits for nobody's long poll");
    assert!(ended.success);
    for poll in polls {
        let answer = poll
            .await
            .expect("the poll does not panic")
            .expect("the poll is answered, not cut off");
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        // Nothing is skipped: the client goes on from where it was.
        assert!(answer.body["next_batch"].is_string(), "{}", answer.body);
    }
    let close = loop {
        match timeout(PROMPT, signalling.next())
            .await
            .expect("the call's connection ends")
        {
            Some(Ok(Message::Close(frame))) => break frame,
            Some(Ok(_)) => {}
            end => panic!("the call's connection was cut: {end:?}"),
        }
    };
    assert_eq!(close.map(|frame| u16::from(frame.code)), Some(1000));
}

on_both_engines!(
    metrics_are_off_unless_asked_for,
    metrics_have_their_own_listener_and_move_with_what_happens,
    a_request_on_its_way_is_answered_and_the_server_is_not_ready_while_it_stops,
    long_polls_and_calls_end_promptly_and_in_order,
);
