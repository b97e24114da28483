//! Starting the relay: listeners are bound, the owner task runs, TCP connections are accepted.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use credentials::turn::TurnSecret;
use fabric::{switch::Switch, udp::UdpSocket};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::{Semaphore, mpsc, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config,
    driver::{Control, Driver, Queues},
    message::Family,
    server::{Parts, Server},
    stream::{self, Event},
};

/// Datagrams from inside the process that wait for the owner task; some 50 ms of a busy call server.
const INBOX: usize = 4096;
/// Messages from TCP connections that wait; beyond it connections are read more slowly.
const EVENTS: usize = 1024;
const BACKLOG: u32 = 1024;

/// The relay cannot start: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "turn.listen: cannot listen on {protocol} {address}: {source}. {}",
        advice(.source)
    )]
    Listen {
        protocol: Protocol,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(
        "turn.listen: no address to listen on is left. Add one, such as \"0.0.0.0:3478\", or set turn.enabled = false."
    )]
    NoListener,
    #[error(
        "turn.external_ips: {0} is the second {family} address. Keep the one that clients reach; a relayed address has one per family.",
        family = if .0.is_ipv4() { "IPv4" } else { "IPv6" }
    )]
    TwoExternalIps(IpAddr),
    #[error(
        "turn.external_ips: {0} is not an address that clients could reach. Give the public address of the router in front, or leave the list empty."
    )]
    UnusableExternalIp(IpAddr),
    #[error("cannot obtain randomness from the system: {0}")]
    Randomness(#[from] rand::rngs::SysError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "Another process, perhaps a TURN server, has the port: stop it, or choose another port in turn.listen."
        }
        io::ErrorKind::PermissionDenied => {
            "Ports below 1024 need a privilege: use 3478, or grant CAP_NET_BIND_SERVICE."
        }
        io::ErrorKind::AddrNotAvailable => {
            "The address is not one of this machine: name a local one, and the public one in turn.external_ips."
        }
        _ => "Choose another address in turn.listen.",
    }
}

/// Transport protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Udp,
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// A running relay. Dropping the handle does not stop it; the token given to [`start`] does.
#[derive(Debug, Clone)]
pub struct RelayHandle {
    listeners: Arc<[(Protocol, SocketAddr)]>,
    control: mpsc::Sender<Control>,
    events: mpsc::Sender<Event>,
    connections: Arc<Semaphore>,
    stats: Arc<SharedStats>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Counts since the start, and what exists now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub allocations: u64,
    /// Sockets open for peers outside the process.
    pub open_sockets: u64,
    pub received_packets: u64,
    /// Through sockets.
    pub sent_packets: u64,
    /// Handed to the SFU or another part of the process.
    pub switched_packets: u64,
    /// Payload bytes given on.
    pub relayed_bytes: u64,
    pub dropped_packets: u64,
}

#[derive(Debug, Default)]
pub(crate) struct SharedStats {
    pub(crate) allocations: AtomicU64,
    pub(crate) open_sockets: AtomicU64,
    pub(crate) received_packets: AtomicU64,
    pub(crate) sent_packets: AtomicU64,
    pub(crate) switched_packets: AtomicU64,
    pub(crate) relayed_bytes: AtomicU64,
    pub(crate) dropped_packets: AtomicU64,
}

/// Starts the relay on the current tokio runtime.
///
/// `realm` is used unless the configuration names one. `sfu_media_addresses` are reachable for every client, through the
/// switch. The tasks end when `shutdown` is cancelled.
///
/// # Errors
/// When an address cannot be listened on or the configuration contradicts itself; the message says what to do.
pub fn start(
    config: &Config,
    secret: TurnSecret,
    realm: &str,
    switch: Switch,
    sfu_media_addresses: Vec<SocketAddr>,
    shutdown: CancellationToken,
) -> Result<RelayHandle, StartError> {
    config.check_external_ips()?;
    let (udp, tcp) = bind(config)?;
    let listeners: Arc<[(Protocol, SocketAddr)]> = udp
        .iter()
        .map(|socket| (Protocol::Udp, socket.local_addr()))
        .chain(tcp.iter().map(|(_, address)| (Protocol::Tcp, *address)))
        .collect();

    let (inbox_sender, inbox) = mpsc::channel(INBOX);
    let (events_sender, events) = mpsc::channel(EVENTS);
    let (control_sender, control) = mpsc::channel(16);
    let parts = Parts {
        secret,
        realm: config.realm.clone().unwrap_or_else(|| realm.to_owned()),
        switch: switch.clone(),
        inbox: inbox_sender,
        sfu_media_addresses,
        local_ips: local_ips(&listeners),
        own_ips: interface_ips().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the addresses of this machine: turn.allow_peers may let clients reach it");
            Vec::new()
        }),
        seed: seed()?,
    };
    let stats = Arc::new(SharedStats::default());
    let driver = Driver::new(Server::new(config, parts), udp, switch, Arc::clone(&stats));
    let tasks = TaskTracker::new();
    tasks.spawn(driver.run(Queues { inbox, events, control }, shutdown.clone()));

    let handle = RelayHandle {
        listeners,
        control: control_sender,
        events: events_sender,
        connections: Arc::new(Semaphore::new(config.max_tcp_connections as usize)),
        stats,
        tasks,
        shutdown,
    };
    for (listener, address) in tcp {
        handle.tasks.spawn(accept(listener, address, handle.clone()));
    }
    Ok(handle)
}

impl RelayHandle {
    /// What the relay listens on, with real ports where port 0 was configured.
    pub fn listeners(&self) -> &[(Protocol, SocketAddr)] {
        &self.listeners
    }

    /// Ends a user's allocations and tells how many there were. Credentials already minted stay good until they expire:
    /// whoever calls this also stops minting.
    pub async fn close_user(&self, user_id: &str) -> usize {
        let (ended, answer) = oneshot::channel();
        let request = Control::CloseUser {
            user_id: user_id.to_owned(),
            ended,
        };
        match self.control.send(request).await {
            Ok(()) => answer.await.unwrap_or(0),
            // Shut down: nothing is left.
            Err(_) => 0,
        }
    }

    /// Ends a user's allocations and the credentials minted until now: those that expire at `until` (seconds since the
    /// Unix epoch) or earlier.
    pub async fn revoke_user(&self, user_id: &str, until: u64) {
        let request = Control::RevokeUser {
            user_id: user_id.to_owned(),
            until,
        };
        // An error means it is shut down: nothing is left.
        let _ = self.control.send(request).await;
    }

    /// The users who have allocations at this moment, each once.
    pub async fn users(&self) -> Vec<String> {
        let (users, answer) = oneshot::channel();
        match self.control.send(Control::Users { users }).await {
            Ok(()) => answer.await.unwrap_or_default(),
            // Shut down: nothing is left.
            Err(_) => Vec::new(),
        }
    }

    pub fn stats(&self) -> Stats {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Stats {
            allocations: read(&self.stats.allocations),
            open_sockets: read(&self.stats.open_sockets),
            received_packets: read(&self.stats.received_packets),
            sent_packets: read(&self.stats.sent_packets),
            switched_packets: read(&self.stats.switched_packets),
            relayed_bytes: read(&self.stats.relayed_bytes),
            dropped_packets: read(&self.stats.dropped_packets),
        }
    }

    /// Serves TURN on a stream that was accepted elsewhere: TLS, on its own port or beside HTTPS. Returns at once; the
    /// stream is closed if there are too many connections already.
    pub fn serve_stream<S>(&self, stream: S, client: SocketAddr, server: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            return;
        };
        let (events, shutdown) = (self.events.clone(), self.shutdown.clone());
        self.tasks
            .spawn(stream::serve(stream, client, server, events, permit, shutdown));
    }

    /// Resolves when every task has ended, after the shutdown token was cancelled.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn accept(listener: TcpListener, address: SocketAddr, relay: RelayHandle) {
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    // Packets are already whole; waiting to merge them costs a call its latency.
                    let _ = stream.set_nodelay(true);
                    let server = stream.local_addr().unwrap_or(address);
                    relay.serve_stream(stream, client, server);
                }
                Err(error) => {
                    // Out of descriptors, or the client is gone already: neither is cured by asking again at once.
                    tracing::warn!(%address, %error, "cannot accept a TURN connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    };
    relay.shutdown.run_until_cancelled(accepting).await;
}

type Bound = (Vec<UdpSocket>, Vec<(TcpListener, SocketAddr)>);

fn bind(config: &Config) -> Result<Bound, StartError> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for &address in &config.listen {
        let socket = match UdpSocket::bind(address) {
            Ok(socket) => socket,
            Err(error) if address.ip().is_unspecified() && lacks_family(&error) => {
                tracing::info!(%address, %error, "passed over: this machine lacks the address family");
                continue;
            }
            Err(source) => {
                return Err(StartError::Listen {
                    protocol: Protocol::Udp,
                    address,
                    source,
                });
            }
        };
        // The same port for both protocols, also where the system chose it.
        let address = socket.local_addr();
        udp.push(socket);
        if config.tcp {
            let listener = listen(address).map_err(|source| StartError::Listen {
                protocol: Protocol::Tcp,
                address,
                source,
            })?;
            tcp.push((listener, address));
        }
    }
    if udp.is_empty() {
        Err(StartError::NoListener)
    } else {
        Ok((udp, tcp))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if address.is_ipv6() {
        socket2::SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn lacks_family(error: &io::Error) -> bool {
    /// `EAFNOSUPPORT` on Linux.
    const ADDRESS_FAMILY_NOT_SUPPORTED: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(ADDRESS_FAMILY_NOT_SUPPORTED)
}

impl Config {
    /// Whether clients could be told these addresses.
    ///
    /// # Errors
    /// [`StartError::UnusableExternalIp`] for a special one, [`StartError::TwoExternalIps`] for a second of one family.
    pub fn check_external_ips(&self) -> Result<(), StartError> {
        let ips = &self.external_ips;
        for (index, ip) in ips.iter().enumerate() {
            if ip.is_unspecified() || ip.is_multicast() || ip.to_canonical() != *ip {
                return Err(StartError::UnusableExternalIp(*ip));
            }
            if ips[..index]
                .iter()
                .any(|earlier| Family::of(*earlier) == Family::of(*ip))
            {
                return Err(StartError::TwoExternalIps(*ip));
            }
        }
        Ok(())
    }
}

/// Addresses of this machine to relay from where the client's own family does not suggest one: those listened on, and
/// for wildcards those of the interfaces, the ones others can reach first.
fn local_ips(listeners: &[(Protocol, SocketAddr)]) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = listeners
        .iter()
        .map(|(_, address)| address.ip())
        .filter(|ip| !ip.is_unspecified())
        .collect();
    let wildcards: Vec<Family> = listeners
        .iter()
        .filter(|(_, address)| address.ip().is_unspecified())
        .map(|(_, address)| Family::of(address.ip()))
        .collect();
    let mut interfaces: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .filter(|interface| !interface.is_link_local())
        .map(|interface| interface.ip())
        .filter(|ip| wildcards.contains(&Family::of(*ip)))
        .collect();
    interfaces.sort_by_key(IpAddr::is_loopback);
    ips.extend(interfaces);
    ips
}

/// Every address of this machine's interfaces at this moment.
pub(crate) fn interface_ips() -> io::Result<Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces.into_iter().map(|interface| interface.ip()).collect())
}

fn seed() -> Result<[u8; 32], rand::rngs::SysError> {
    let mut seed = [0; 32];
    rand::TryRng::try_fill_bytes(&mut rand::rngs::SysRng, &mut seed)?;
    Ok(seed)
}
