//! An SFU by itself on loopback, for trying clients: `standalone PORT SECRET [IDENTITY…]` serves signalling on
//! `ws://127.0.0.1:PORT`, media on the two ports after it, and prints a token for room `lobby` per identity. `GET
//! /token?identity=…&room=…` mints more, `GET /events` lists what happened.

use std::{
    error::Error,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{Router, extract::Query, routing::get};
use credentials::livekit::{ApiKey, RoomGrant};
use sfu::{Admitted, Config, Surroundings};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

#[derive(serde::Deserialize)]
struct TokenRequest {
    identity: String,
    room: String,
}

#[expect(clippy::disallowed_methods, reason = "this is a process")]
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

#[expect(clippy::disallowed_methods, reason = "this is a process")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("PORT is missing")?.parse()?;
    let key = ApiKey::new("devkey", arguments.next().ok_or("SECRET is missing")?);
    let (events, mut heard) = mpsc::channel(64);
    let shutdown = CancellationToken::new();
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let config = Config {
        udp_listen: Some(loopback(port + 1)),
        tcp_listen: Some(loopback(port + 2)),
        candidate_ips: vec![Ipv4Addr::LOCALHOST.into()],
        offer_loopback: true,
        ..Config::default()
    };
    let surroundings = Surroundings {
        key: key.clone(),
        switch: fabric::switch::Switch::new(),
        events,
        ice_servers: Arc::new(|_, _| Vec::new()),
        admission: Arc::new(|_, _| Box::pin(std::future::ready(Admitted::Yes))),
        shutdown: shutdown.clone(),
    };
    let sfu = sfu::start(config, surroundings).await?;
    let mut out = std::io::stdout();
    for identity in arguments {
        sfu.ensure_room("lobby");
        writeln!(
            out,
            "{identity} {}",
            key.mint(&identity, RoomGrant::participant("lobby"), unix_seconds(), 86_400)
        )?;
    }
    let log = Arc::new(Mutex::new(Vec::<String>::new()));
    let begun = now();
    let writing = Arc::clone(&log);
    tokio::spawn(async move {
        while let Some(event) = heard.recv().await {
            writing
                .lock()
                .await
                .push(format!("{:.1} {event:?}", now().duration_since(begun).as_secs_f32()));
        }
    });
    let opening = sfu.clone();
    let minting = key.clone();
    let token = move |Query(request): Query<TokenRequest>| async move {
        opening.ensure_room(&request.room);
        let token = minting.mint(
            &request.identity,
            RoomGrant::participant(request.room),
            unix_seconds(),
            86_400,
        );
        ([("access-control-allow-origin", "*")], token)
    };
    let app = Router::new()
        .route("/token", get(token))
        .route("/events", get(move || async move { log.lock().await.join("\n") }))
        .nest("/livekit/sfu", sfu.router())
        .fallback_service(sfu.router());
    let listener = tokio::net::TcpListener::bind(loopback(port)).await?;
    writeln!(
        out,
        "listening on {}, media {:?}",
        listener.local_addr()?,
        sfu.media_addresses()
    )?;
    let stop = shutdown.clone();
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            // Without a signal handler the process ends at once, which is as good here.
            let _ = tokio::signal::ctrl_c().await;
            stop.cancel();
        })
        .await?;
    tokio::time::timeout(Duration::from_secs(1), sfu.stopped()).await?;
    Ok(())
}
