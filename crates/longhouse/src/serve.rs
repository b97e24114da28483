//! Wires the subsystems together, starts them, and stops them in order. The one place where they meet.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use homeserver::{Clock, Homeserver, client_api};
use storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};
use crate::http::health::{self, Readiness};
use crate::http::listener::Server;
use crate::http::page;
use crate::http::request::{self, TrustedProxies};
use crate::http::status::{self, Service, ServiceName, ServiceState, Status};
use crate::media::{Media, MediaError};
use crate::secrets::Secrets;
use crate::{limits, logging};

/// Requests still unanswered this long after shutdown began are cut off.
const DRAIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Database(#[from] storage::OpenError),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Homeserver(#[from] homeserver::StartError),
    #[error(transparent)]
    Media(#[from] MediaError),
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
    limits::raise_open_files();
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

    let data_dir = DataDir::open(&config.data_dir)?;
    let homeserver = start_homeserver(&config, &data_dir, shutdown.clone()).await?;
    let secrets = Secrets::load(&homeserver.store).await?;
    let media = Media::start(&config, &secrets, &shutdown)?;

    let router = compose(&config, &homeserver, &media, readiness.clone());
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
    homeserver.tasks.close();
    let drained = async {
        tasks.wait().await;
        homeserver.tasks.wait().await;
        media.stopped().await;
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        let unfinished_tasks = tasks.len() + homeserver.tasks.len();
        tracing::warn!(unfinished_tasks, "some work did not finish in time and was cut off");
    }
    homeserver.store.close().await;
    Ok(())
}

/// Opens the store and the homeserver on it; the administration commands do the same while no server runs.
pub(crate) async fn start_homeserver(
    config: &Config,
    data_dir: &DataDir,
    shutdown: CancellationToken,
) -> Result<Homeserver, ServeError> {
    let store = Store::open(&config.database, data_dir.path()).await?;
    let settings = config.homeserver(data_dir.path());
    Ok(Homeserver::start(settings, store, Clock::new(clock::now_ms), shutdown).await?)
}

/// The routers of the subsystems in one. The homeserver's comes first and brings the answer for unknown paths.
fn compose(config: &Config, homeserver: &Homeserver, media: &Media, readiness: Readiness) -> Router {
    let proxies = TrustedProxies(config.listen.trusted_proxies.clone().into());
    let mut router = client_api::router(homeserver.clone()).merge(health::router(readiness));
    if config.web.enabled {
        router = router
            .merge(page::router())
            .merge(status::router(summary(config, media)));
    }
    router.layer(axum::middleware::from_fn_with_state(proxies, request::trace))
}

fn summary(config: &Config, media: &Media) -> Status {
    let chat = Service {
        name: ServiceName::Chat,
        state: ServiceState::Running,
        reach: None,
        addresses: Vec::new(),
        detail: None,
        stun: None,
    };
    Status {
        server_name: config.server_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        homeserver_url: config.public_url(),
        registration: "closed",
        needs_first_administrator: false,
        services: std::iter::once(chat).chain(media.services(config)).collect(),
    }
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
