//! Starting the SFU and what the process may ask of it.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::Router;
use livekit_protocol::DisconnectReason;
use parking_lot::RwLock;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::{
    Admission, Config, Environment, ParticipantSummary, Surroundings, candidates, clock,
    http::{self, Surface},
    probe::{self, Probed},
    room::{Command, Rooms, removals::Removals},
    transport::{Certificate, CertificateError, Mux, MuxConfig, MuxError},
};

/// Why the SFU does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A media port cannot be opened.
    #[error(transparent)]
    Sockets(#[from] MuxError),
    /// No certificate for DTLS.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The addresses of this machine cannot be listed.
    #[error("cannot list network interfaces: {0}")]
    Interfaces(#[source] std::io::Error),
    /// Neither UDP nor TCP is to be used.
    #[error("both udp_listen and tcp_listen are switched off: no media could flow")]
    NoListener,
}

/// Opens the media sockets and makes ready for rooms.
///
/// # Errors
/// When a port is taken or the machine's addresses cannot be listed.
pub async fn start(config: Config, surroundings: Surroundings) -> Result<SfuHandle, StartError> {
    let interfaces: Vec<IpAddr> = if_addrs::get_if_addrs()
        .map_err(StartError::Interfaces)?
        .into_iter()
        .map(|interface| interface.ip())
        .collect();
    let addresses = candidates::addresses(&config, &interfaces);
    let mut udp: Vec<SocketAddr> = config.udp_listen.into_iter().collect();
    // The unspecified IPv4 address means every address; IPv6 takes a socket of its own.
    if let Some(listen) = config.udp_listen
        && listen.ip() == IpAddr::from([0, 0, 0, 0])
        && listen.port() != 0
        && addresses.iter().any(IpAddr::is_ipv6)
    {
        udp.push(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), listen.port()));
    }
    let tcp: Vec<SocketAddr> = config.tcp_listen.into_iter().collect();
    if udp.is_empty() && tcp.is_empty() {
        return Err(StartError::NoListener);
    }
    let tasks = TaskTracker::new();
    let announced = candidates::reachable(&addresses, &udp, &config.external_ips);
    let mux_config = MuxConfig { udp, tcp, announced };
    let mux = Mux::start(
        mux_config,
        surroundings.switch.clone(),
        &tasks,
        surroundings.shutdown.clone(),
    )
    .await?;
    let udp_bound: Vec<SocketAddr> = mux.udp_addrs().collect();
    let tcp_bound = mux.tcp_addrs().to_vec();
    let udp = candidates::reachable(&addresses, &udp_bound, &config.external_ips);
    let tcp = candidates::reachable(&addresses, &tcp_bound, &config.external_ips);
    let lines = candidates::lines(&udp, &tcp);
    tracing::info!(?udp, ?tcp, "media sockets are open");

    let config = Arc::new(config);
    let environment = Arc::new(Environment {
        config: Arc::clone(&config),
        key: surroundings.key,
        certificate: Certificate::generate()?,
        mux,
        candidates: RwLock::new(lines),
        ice_servers: surroundings.ice_servers,
        removals: Removals::default(),
        events: surroundings.events,
        shutdown: surroundings.shutdown,
    });
    let rooms = Rooms::new(Arc::clone(&environment), tasks.clone());
    Ok(SfuHandle {
        environment,
        rooms,
        tasks,
        admission: surroundings.admission,
        interfaces,
        udp_bound,
        tcp_bound,
    })
}

/// A running SFU.
#[derive(Clone)]
pub struct SfuHandle {
    environment: Arc<Environment>,
    rooms: Arc<Rooms>,
    tasks: TaskTracker,
    admission: Admission,
    interfaces: Vec<IpAddr>,
    udp_bound: Vec<SocketAddr>,
    tcp_bound: Vec<SocketAddr>,
}

impl SfuHandle {
    /// The signalling paths, to be mounted under any prefix.
    pub fn router(&self) -> Router {
        http::router(Surface {
            rooms: Arc::clone(&self.rooms),
            environment: Arc::clone(&self.environment),
            admission: Arc::clone(&self.admission),
        })
    }

    /// Opens the room of this name, if it is not open. The authorisation service does so for users who may open rooms.
    pub fn ensure_room(&self, name: &str) {
        // None means that the process stops: whoever comes then is told that there is no room.
        let _ = self.rooms.ensure(name);
    }

    /// Ends a room and everybody's stay in it.
    pub async fn close_room(&self, name: &str) {
        self.rooms.close(name).await;
    }

    /// Removes a participant for good: its client is told not to come back by itself, and its tokens are over. A token
    /// issued in a later second lets the same identity in again.
    pub async fn remove_participant(&self, room: &str, identity: &str) {
        // Noted first: whoever asks to come in behind the removal is refused.
        self.environment.removals.note(room, identity, clock::unix_seconds());
        if let Some(room) = self.rooms.get(room) {
            let command = Command::Remove {
                identity: identity.to_owned(),
                reason: DisconnectReason::ParticipantRemoved,
            };
            // A room that closed meanwhile has no participants.
            let _ = room.send(command).await;
        }
    }

    /// Who is in a room; empty when it is not open.
    pub async fn participants(&self, room: &str) -> Vec<ParticipantSummary> {
        let Some(room) = self.rooms.get(room) else {
            return Vec::new();
        };
        let (reply, answer) = oneshot::channel();
        if room.send(Command::Participants { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Whether a participant of this identity is in the room, from memory and without waiting for the room.
    pub fn has_participant(&self, room: &str, identity: &str) -> bool {
        self.rooms.get(room).is_some_and(|room| room.has_participant(identity))
    }

    /// The sockets media uses: for the relay's peer policy, the firewall lines and the self-test.
    pub fn media_addresses(&self) -> MediaAddresses {
        let config = &self.environment.config;
        let addresses = candidates::addresses(config, &self.interfaces);
        MediaAddresses {
            udp: candidates::reachable(&addresses, &self.udp_bound, &config.external_ips),
            tcp: candidates::reachable(&addresses, &self.tcp_bound, &config.external_ips),
        }
    }

    /// Whether the media sockets hear at this moment, tried from this machine; takes up to a second and a half.
    pub async fn probe(&self) -> Vec<Probed> {
        probe::sockets(&self.environment.mux, &self.udp_bound, &self.tcp_bound).await
    }

    /// Replaces the addresses under which the machine is reachable from outside: home connections change theirs.
    /// New sessions are offered the new ones.
    pub fn set_external_ips(&self, external_ips: Vec<IpAddr>) {
        let config = Config {
            external_ips,
            ..(*self.environment.config).clone()
        };
        let addresses = candidates::addresses(&config, &self.interfaces);
        let udp = candidates::reachable(&addresses, &self.udp_bound, &config.external_ips);
        let tcp = candidates::reachable(&addresses, &self.tcp_bound, &config.external_ips);
        *self.environment.candidates.write() = candidates::lines(&udp, &tcp);
    }

    /// Waits until every room and socket task has ended; to be called after the shutdown token was cancelled.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Where media can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaAddresses {
    /// UDP candidates.
    pub udp: Vec<SocketAddr>,
    /// TCP candidates.
    pub tcp: Vec<SocketAddr>,
}
