//! The sockets that all clients share: UDP, TCP for networks without UDP, and the attachment to the switch in this
//! process. Finds the connection a datagram belongs to (by the ICE user name first, by the sender's address from then
//! on) and hands it to the connection's owner through a bounded queue. Knows no protocol beyond STUN's user name.

mod routes;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::BytesMut;
use fabric::switch::{AlreadyAttached, Attachment, Datagram, Delivery, Switch};
use fabric::udp::{RecvBatch, UdpSocket};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::path::{Carrier, Path, Transmit};
pub use routes::Registration;
use routes::{AddressTable, Routes};
use tcp::TcpConnections;

/// Datagrams from the switch that may wait for the mux.
const SWITCH_QUEUE: usize = 1024;
/// Datagrams are cut out of blocks of this size: one allocation per block, not per datagram.
const BLOCK: usize = 64 * 1024;

/// Where the mux listens.
#[derive(Debug, Clone, Default)]
pub struct MuxConfig {
    /// One socket each; usually one of IPv4 and one of IPv6.
    pub udp: Vec<SocketAddr>,
    /// Listeners for ICE-TCP (RFC 6544, passive).
    pub tcp: Vec<SocketAddr>,
    /// The addresses under which clients see the UDP sockets, port included: what the candidates say. They are attached
    /// to the switch, so that clients of the relay in this process reach us without the kernel.
    pub announced: Vec<SocketAddr>,
}

/// The longest datagram taken in, in bytes. Nothing a client sends exceeds a path MTU by much; longer ones would only
/// make parsing and the retransmission cache expensive.
const MAX_DATAGRAM: usize = 2048;

/// Names a connection to the owner of its inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(pub u64);

/// A datagram for a connection, to be given to [`super::PeerTransport::handle_datagram`].
#[derive(Debug)]
pub struct Incoming {
    pub connection: ConnectionKey,
    pub path: Path,
    pub datagram: BytesMut,
}

/// The sockets could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    #[error("cannot open the media port {0}: {1}")]
    Bind(SocketAddr, #[source] io::Error),
    #[error("the address {0} is announced twice")]
    Announced(SocketAddr),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MuxStats {
    /// Datagrams that belong to no connection.
    pub unknown: u64,
    /// Datagrams dropped because the connection's inbox was full.
    pub inbox_full: u64,
    /// Datagrams dropped because a socket or stream could take no more.
    pub send_failed: u64,
    /// Datagrams dropped because they were longer than any client's need be.
    pub oversized: u64,
}

#[derive(Default)]
struct Counters {
    unknown: AtomicU64,
    inbox_full: AtomicU64,
    send_failed: AtomicU64,
    oversized: AtomicU64,
}

/// A handle to the shared sockets; clones are one mux.
#[derive(Clone)]
pub struct Mux(Arc<Shared>);

struct Shared {
    udp: Vec<UdpSocket>,
    tcp: Vec<SocketAddr>,
    announced: Vec<SocketAddr>,
    switch: Switch,
    routes: Routes,
    tcp_connections: TcpConnections,
    counters: Counters,
    /// Keeps the announced addresses reachable in the switch.
    _attachments: Vec<Attachment>,
}

impl Mux {
    /// Opens the sockets and starts to receive; the tasks run on `tasks` and end with `shutdown`.
    ///
    /// # Errors
    /// When a port is taken or not ours, or an address is announced twice.
    pub async fn start(
        config: MuxConfig,
        switch: Switch,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, MuxError> {
        let (switch_inbox, from_switch) = mpsc::channel(SWITCH_QUEUE);
        let attachments = config
            .announced
            .iter()
            .map(|addr| switch.attach(*addr, switch_inbox.clone()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|AlreadyAttached(addr)| MuxError::Announced(addr))?;
        let udp = config
            .udp
            .iter()
            .map(|addr| UdpSocket::bind(*addr).map_err(|error| MuxError::Bind(*addr, error)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut listeners = Vec::new();
        for addr in &config.tcp {
            let bound = TcpListener::bind(addr)
                .await
                .and_then(|l| l.local_addr().map(|local| (l, local)));
            listeners.push(bound.map_err(|error| MuxError::Bind(*addr, error))?);
        }
        let mux = Self(Arc::new(Shared {
            udp,
            tcp: listeners.iter().map(|(_, local)| *local).collect(),
            announced: config.announced,
            switch,
            routes: Routes::default(),
            tcp_connections: TcpConnections::default(),
            counters: Counters::default(),
            _attachments: attachments,
        }));
        for socket in 0..mux.0.udp.len() {
            let (mux, shutdown) = (mux.clone(), shutdown.clone());
            tasks.spawn(async move { shutdown.run_until_cancelled(mux.receive_udp(socket)).await });
        }
        for (listener, _) in listeners {
            tasks.spawn(tcp::accept(mux.clone(), listener, tasks.clone(), shutdown.clone()));
        }
        let receiving = mux.clone();
        tasks.spawn(async move {
            shutdown
                .run_until_cancelled(receiving.receive_switch(from_switch))
                .await
        });
        Ok(mux)
    }

    /// The bound UDP addresses, with the real ports where port 0 was asked for.
    pub fn udp_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.udp.iter().map(UdpSocket::local_addr)
    }

    /// The bound TCP addresses.
    pub fn tcp_addrs(&self) -> &[SocketAddr] {
        &self.0.tcp
    }

    /// Routes what carries this local user name fragment, and what then comes from the addresses that used it, to
    /// `inbox`. An ICE restart registers a second fragment for the same connection. Dropping the registration ends it.
    ///
    /// Give an inbox the capacity of some 50 ms of the traffic expected; what does not fit is dropped and counted.
    pub fn register(&self, ufrag: &str, connection: ConnectionKey, inbox: mpsc::Sender<Incoming>) -> Registration {
        self.0.routes.register(ufrag, connection, inbox)
    }

    /// Sends without waiting. Datagrams that find no room are dropped and counted, as the network would.
    pub fn send(&self, transmit: &Transmit<'_>) {
        let path = transmit.path;
        match path.carrier {
            Carrier::Udp if self.0.switch.is_here(path.remote) => self.send_switch(transmit),
            Carrier::Udp => self.send_udp(transmit),
            Carrier::Tcp => {
                let lost = self.0.tcp_connections.send(path.remote, transmit.datagrams());
                self.0.counters.send_failed.fetch_add(lost, Ordering::Relaxed);
            }
            Carrier::Switch => self.send_switch(transmit),
        }
    }

    fn send_udp(&self, transmit: &Transmit<'_>) {
        let to = transmit.path.remote;
        let socket = self
            .0
            .udp
            .iter()
            .find(|s| s.local_addr().is_ipv4() == to.is_ipv4())
            .or_else(|| self.0.udp.first());
        let sent = socket.is_some_and(|socket| {
            socket
                .try_send(fabric::udp::Transmit {
                    to,
                    contents: transmit.contents,
                    segment_size: transmit.segment_size,
                    source: transmit.path.local,
                })
                .is_ok()
        });
        if !sent {
            self.0
                .counters
                .send_failed
                .fetch_add(transmit.datagrams().count() as u64, Ordering::Relaxed);
        }
    }

    fn send_switch(&self, transmit: &Transmit<'_>) {
        let remote = transmit.path.remote;
        let announced = &self.0.announced;
        // The relay admits answers only from the address its client asked for.
        let from = transmit
            .path
            .local
            .and_then(|local| announced.iter().find(|a| a.ip() == local))
            .or_else(|| announced.iter().find(|a| a.is_ipv4() == remote.is_ipv4()))
            .copied()
            .or_else(|| self.0.udp.first().map(UdpSocket::local_addr));
        for datagram in transmit.datagrams() {
            let delivered =
                from.is_some_and(|from| self.0.switch.deliver(from, remote, datagram) == Delivery::Delivered);
            if !delivered {
                self.0.counters.send_failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn stats(&self) -> MuxStats {
        let Counters {
            unknown,
            inbox_full,
            send_failed,
            oversized,
        } = &self.0.counters;
        MuxStats {
            unknown: unknown.load(Ordering::Relaxed),
            inbox_full: inbox_full.load(Ordering::Relaxed),
            send_failed: send_failed.load(Ordering::Relaxed),
            oversized: oversized.load(Ordering::Relaxed),
        }
    }

    async fn receive_udp(&self, socket: usize) {
        let socket = &self.0.udp[socket];
        let (mut batch, mut table, mut arena) = (RecvBatch::new(), AddressTable::default(), Arena::default());
        loop {
            if let Err(error) = socket.recv(&mut batch).await {
                tracing::error!(%error, "the media socket failed");
                return;
            }
            let now = clock();
            for received in batch.datagrams() {
                let path = Path {
                    carrier: Carrier::Udp,
                    remote: received.from,
                    local: received.local_ip,
                };
                self.route(&mut table, now, path, received.data, &mut arena);
            }
        }
    }

    async fn receive_switch(&self, mut inbox: mpsc::Receiver<Datagram>) {
        let (mut table, mut arena) = (AddressTable::default(), Arena::default());
        while let Some(Datagram { from, to, payload }) = inbox.recv().await {
            let path = Path {
                carrier: Carrier::Switch,
                remote: from,
                local: Some(to.ip()),
            };
            self.route(&mut table, clock(), path, &payload, &mut arena);
        }
    }

    /// Hands one datagram to its connection.
    fn route(&self, table: &mut AddressTable, now: Instant, path: Path, datagram: &[u8], arena: &mut Arena) {
        let counters = &self.0.counters;
        if datagram.len() > MAX_DATAGRAM {
            counters.oversized.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(route) = table.find(&self.0.routes, now, path.remote, datagram) else {
            counters.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let incoming = Incoming {
            connection: route.connection,
            path,
            datagram: arena.copy(datagram),
        };
        if route.inbox.try_send(incoming).is_err() {
            counters.inbox_full.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The time a batch arrived.
fn clock() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the sockets' driver: here the time enters")]
    Instant::now()
}

/// Cuts datagrams out of large blocks.
#[derive(Default)]
struct Arena(BytesMut);

impl Arena {
    fn copy(&mut self, datagram: &[u8]) -> BytesMut {
        if self.0.capacity() < datagram.len() {
            self.0 = BytesMut::with_capacity(BLOCK.max(datagram.len()));
        }
        self.0.extend_from_slice(datagram);
        self.0.split()
    }
}
