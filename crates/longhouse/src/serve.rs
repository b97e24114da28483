//! Wires the subsystems together, starts them, and stops them in order. The one place where they meet.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use homeserver::accounts::RegistrationMode;
use homeserver::client_api::ApiError;
use homeserver::{Clock, Homeserver, client_api};
use storage::Store;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::first_admin::{self, FirstAdmin};
use crate::admin::{Administration, execute, socket};
use crate::clock;
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};
use crate::http::health::{self, Readiness};
use crate::http::listener::{Server, Tls};
use crate::http::metrics::{self, MetricsError};
use crate::http::page;
use crate::http::probe::Probe;
use crate::http::request::{self, Surroundings, TrustedProxies};
use crate::http::status::{self, Service, ServiceName, ServiceState, Status};
use crate::http::tls::{Certificate, TlsError};
use crate::media::{Media, MediaError, SIGNALLING_PATH};
use crate::{limits, logging};

/// Requests still unanswered this long after shutdown began are cut off.
const DRAIN: Duration = Duration::from_secs(10);

/// Connections that wait in the kernel's queue of each listener.
const BACKLOG: u32 = 1024;

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
    #[error("{}", .0.message())]
    FirstAdmin(#[from] ApiError),
    #[error("cannot open the administration socket in the data directory: {0}")]
    AdminSocket(std::io::Error),
    #[error(
        "this data directory belongs to the server {kept}, not {configured}\n  a server's name never changes: set `server_name = \"{kept}\"`, or use another `data_dir`"
    )]
    OtherServer { kept: String, configured: String },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot listen on {address}: {source}\n  {}", listen_advice(.source, .key))]
    Listen {
        address: SocketAddr,
        key: &'static str,
        source: std::io::Error,
    },
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

fn listen_advice(error: &std::io::Error, key: &str) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("another program uses this port: stop it, or change `{key}`"),
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE (the systemd unit grants it)".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => format!("this machine has no such address: correct `{key}`"),
        _ => format!("correct `{key}`"),
    }
}

/// Runs the server until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<(), ServeError> {
    logging::install(&config.log);
    limits::raise_open_files();
    limits::make_files_private();
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

    // First of all: what starts before the recorder would record nothing.
    let metrics = if config.metrics.enabled {
        Some(metrics::install(&tasks, shutdown.clone())?)
    } else {
        None
    };
    let data_dir = DataDir::open(&config.data_dir)?;
    let homeserver = start_homeserver(&config, &data_dir, shutdown.clone()).await?;
    let media = Media::start(&config, &homeserver, &tasks, &shutdown).await?;

    let first_step = first_step(&config, &homeserver, &data_dir).await?;
    let administration = Administration::new({
        let homeserver = homeserver.clone();
        move |request| {
            let homeserver = homeserver.clone();
            async move { execute::execute(&homeserver, request).await }
        }
    });
    socket::serve(data_dir.path(), administration, &tasks, shutdown.clone()).map_err(ServeError::AdminSocket)?;

    if let Some(router) = metrics {
        let server = Server::new(router, &config.listen, tasks.clone(), shutdown.clone());
        server.serve(bind(config.metrics.address, "metrics.address", "metrics").await?, None);
    }

    let router = compose(&config, &homeserver, &media, &first_step, readiness.clone());
    let server = Server::new(router, &config.listen, tasks.clone(), shutdown.clone());
    for address in &config.listen.addresses {
        server.serve(bind(*address, "listen.addresses", "HTTP").await?, None);
    }
    if let Some(tls) = tls(&config, &media, &tasks, &shutdown)? {
        for address in &config.tls.addresses {
            server.serve(
                bind(*address, "tls.addresses", "HTTPS and TURN over TLS").await?,
                Some(tls.clone()),
            );
        }
    }
    readiness.set(true);
    tracing::info!(
        server_name = config.server_name,
        public_url = config.public_url(),
        "ready"
    );

    greet(&config, &first_step);

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

/// How the first administrator is made.
enum FirstStep {
    /// On the page; the link while there is none yet.
    Page(FirstAdmin, Option<String>),
    /// On the command line alone: nobody serves the form. Whether that is still to do.
    CommandLine { needed: bool },
}

async fn first_step(config: &Config, homeserver: &Homeserver, data_dir: &DataDir) -> Result<FirstStep, ServeError> {
    if !config.web.enabled {
        first_admin::forget_link(data_dir.path());
        let needed = !homeserver.store.admin_exists().await?;
        return Ok(FirstStep::CommandLine { needed });
    }
    let (first_admin, link) = FirstAdmin::prepare(homeserver, &config.public_url(), data_dir.path()).await?;
    Ok(FirstStep::Page(first_admin, link))
}

/// Tells the person at the terminal where to go. The link is a secret: a log gets only the place of its file.
fn greet(config: &Config, first_step: &FirstStep) {
    let text = match first_step {
        FirstStep::Page(first_admin, Some(link)) => {
            tracing::warn!(
                file = %first_admin.file().display(),
                "there is no administrator yet: open the link in this file, or run `longhouse user add NAME --admin`"
            );
            format!("  Create the administrator:  {link}\n")
        }
        FirstStep::CommandLine { needed: true } => {
            tracing::warn!("there is no administrator yet: run `longhouse user add NAME --admin`");
            "  Create the administrator:  longhouse user add NAME --admin\n".to_owned()
        }
        FirstStep::Page(_, None) | FirstStep::CommandLine { needed: false } => String::new(),
    };
    let mut terminal = std::io::stdout();
    if !terminal.is_terminal() {
        return;
    }
    let text = format!("\n  Longhouse runs:            {}/\n{text}\n", config.public_url());
    // The terminal may be gone; the server does not need it.
    let _ = terminal.write_all(text.as_bytes());
}

async fn bind(address: SocketAddr, key: &'static str, purpose: &str) -> Result<TcpListener, ServeError> {
    let listener = listen(address).map_err(|source| ServeError::Listen { address, key, source })?;
    // Port 0 asks for any free port: the log says which.
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "listening for {purpose}");
    Ok(listener)
}

/// `[::]` is IPv6 alone, so that it can stand beside `0.0.0.0` on the same port.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        socket2::SockRef::from(&socket).set_only_v6(true)?;
        socket
    };
    // A successor may listen while connections of its predecessor still end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The certificate for the TLS listeners, followed as its files change; `None` when none is configured.
fn tls(
    config: &Config,
    media: &Media,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Option<Tls>, ServeError> {
    let (Some(chain), Some(key)) = (&config.tls.certificate, &config.tls.private_key) else {
        return Ok(None);
    };
    let certificate = Certificate::read(chain, key)?;
    let acceptor = certificate.acceptor()?;
    tasks.spawn(certificate.follow(shutdown.clone()));
    Ok(Some(Tls {
        acceptor,
        relay: media.relay.clone(),
    }))
}

/// Opens the store and the homeserver on it; the administration commands do the same while no server runs.
pub(crate) async fn start_homeserver(
    config: &Config,
    data_dir: &DataDir,
    shutdown: CancellationToken,
) -> Result<Homeserver, ServeError> {
    let store = Store::open(&config.database, data_dir.path()).await?;
    let name = config.server_name.clone().into_bytes();
    let kept = store.server_value_or("server_name", name).await?;
    if kept != config.server_name.as_bytes() {
        store.close().await;
        let kept = String::from_utf8_lossy(&kept).into_owned();
        return Err(ServeError::OtherServer {
            kept,
            configured: config.server_name.clone(),
        });
    }
    let settings = config.homeserver(data_dir.path());
    Ok(Homeserver::start(settings, store, Clock::new(clock::now_ms), shutdown).await?)
}

/// The routers of the subsystems in one. The homeserver's comes first and brings the answer for unknown paths.
fn compose(
    config: &Config,
    homeserver: &Homeserver,
    media: &Media,
    first_step: &FirstStep,
    readiness: Readiness,
) -> Router {
    let around = Surroundings {
        proxies: TrustedProxies(config.listen.trusted_proxies.clone().into()),
        tasks: homeserver.tasks.clone(),
    };
    let mut router = client_api::router(homeserver.clone()).merge(health::router(readiness));
    if let Some(sfu) = &media.sfu {
        router = router.nest(SIGNALLING_PATH, sfu.router());
    }
    if let FirstStep::Page(first_admin, _) = first_step {
        let probe = Probe::new(media.relay.clone(), media.sfu.clone());
        router = router
            .merge(page::router())
            .merge(status::router(summary(config, media), probe, first_admin.clone()))
            .merge(first_admin::router(first_admin.clone()));
    }
    router.layer(axum::middleware::from_fn_with_state(around, request::trace))
}

fn summary(config: &Config, media: &Media) -> Status {
    let chat = Service {
        name: ServiceName::Chat,
        state: ServiceState::Running,
        reach: None,
        addresses: Vec::new(),
        detail: None,
        cure: None,
        stun: None,
    };
    Status {
        server_name: config.server_name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        homeserver_url: config.public_url(),
        registration: match config.registration.mode {
            RegistrationMode::Closed => "closed",
            RegistrationMode::Token => "token",
            RegistrationMode::Open => "open",
        },
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
