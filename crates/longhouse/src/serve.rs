//! Wires the subsystems together, starts them, and stops them in order. The one place where they meet.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::http::health::{self, Readiness};
use crate::http::listener::Server;
use crate::http::request::{self, TrustedProxies};
use crate::logging;

/// Requests still unanswered this long after shutdown began are cut off.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot listen on {address}: {source}\n  {}", listen_advice(.source))]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

fn listen_advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "another program uses this port: stop it, or change `listen.addresses`",
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE (the systemd unit grants it)"
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address: correct `listen.addresses`",
        _ => "correct `listen.addresses`",
    }
}

/// Runs the server until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<(), ServeError> {
    logging::install(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let result = runtime.block_on(serve(config));
    // Whatever ignored the shutdown token until here is abandoned.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(config: Config) -> Result<(), ServeError> {
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let readiness = Readiness::default();
    let signal = signals().map_err(ServeError::Signals)?;

    let router = compose(&config, readiness.clone());
    let server = Server::new(router, &config.listen, tasks.clone(), shutdown.clone());
    for address in &config.listen.addresses {
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen {
            address: *address,
            source,
        })?;
        // Port 0 asks for any free port: the log says which.
        let bound = listener.local_addr().unwrap_or(*address);
        tracing::info!(address = %bound, "listening for HTTP");
        server.serve(listener);
    }
    readiness.set(true);
    tracing::info!(
        server_name = config.server_name,
        public_url = config.public_url(),
        "ready"
    );

    signal.await;
    tracing::info!("shutting down");
    readiness.set(false);
    shutdown.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!(
            unfinished_tasks = tasks.len(),
            "some work did not finish in time and was cut off"
        );
    }
    Ok(())
}

/// The routers of the subsystems in one; what none of them knows is answered last.
fn compose(config: &Config, readiness: Readiness) -> Router {
    let proxies = TrustedProxies(config.listen.trusted_proxies.clone().into());
    Router::new()
        .merge(health::router(readiness))
        .layer(axum::middleware::from_fn_with_state(proxies, request::trace))
}

/// Resolves at the first SIGTERM or SIGINT.
fn signals() -> Result<impl Future<Output = ()>, std::io::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
