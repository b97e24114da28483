//! The owner task: the one place that holds the [`Server`], every socket and every connection of the relay.
//!
//! Receives in batches, asks the server where each payload goes, sends in batches. Nothing here decides anything: who may
//! do what is the server's; what does not fit a queue is dropped and counted.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use fabric::{
    switch::{Arena, Datagram, Delivery, Switch},
    udp::{Coalescer, RecvBatch, Sent, Transmit, UdpSocket},
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered, task::AtomicWaker};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::counters::Counters;
use crate::{
    listeners::{SharedStats, interface_ips},
    server::{Command, FiveTuple, Now, Outcome, Server, ToClient, ToPeer, Transport},
    stream::{Connection, Event},
};

mod counters;

/// Receive calls on one socket before the others have their turn.
const BATCHES_PER_TURN: usize = 4;
/// Readable sockets served before the queues have their turn.
const SOCKETS_PER_TURN: usize = 32;
/// Items taken from a queue per turn.
const ITEMS_PER_TURN: usize = 128;
/// How often connections without an allocation and the machine's addresses are looked at, and how long the former may
/// live.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
const CONNECTION_WITHOUT_ALLOCATION: Duration = Duration::from_secs(30);

/// A request of the process.
#[derive(Debug)]
pub(crate) enum Control {
    /// End a user's allocations; answer with how many there were.
    CloseUser {
        user_id: String,
        ended: oneshot::Sender<usize>,
    },
    /// End a user's allocations, and the credentials that expire until then.
    RevokeUser { user_id: String, until: u64 },
    /// Tell who has allocations.
    Users { users: oneshot::Sender<Vec<String>> },
}

/// What the owner task receives from.
pub(crate) struct Queues {
    pub(crate) inbox: mpsc::Receiver<Datagram>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) control: mpsc::Receiver<Control>,
}

pub(crate) struct Driver {
    server: Server,
    listeners: Vec<Socket>,
    /// Sockets of relayed addresses with peers outside.
    relays: HashMap<SocketAddr, Socket>,
    /// Relay sockets to be watched from the next turn on.
    opened: Vec<SocketAddr>,
    connections: HashMap<FiveTuple, Connected>,
    switch: Switch,
    arena: Arena,
    outgoing: Coalescer,
    counters: Counters,
}

struct Socket {
    socket: Arc<UdpSocket>,
    /// Ends the wait for readability, and with it the last reference, when the socket is closed.
    closed: Arc<Closed>,
}

struct Connected {
    connection: Connection,
    since: Instant,
}

/// What became readable.
#[derive(Clone, Copy)]
enum Source {
    Listener(usize),
    Relay(SocketAddr),
}

impl Driver {
    pub(crate) fn new(server: Server, listeners: Vec<UdpSocket>, switch: Switch, stats: Arc<SharedStats>) -> Self {
        Self {
            server,
            listeners: listeners.into_iter().map(Socket::new).collect(),
            relays: HashMap::new(),
            opened: Vec::new(),
            connections: HashMap::new(),
            switch,
            arena: Arena::default(),
            outgoing: Coalescer::default(),
            counters: Counters::new(stats),
        }
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(mut self, mut queues: Queues, shutdown: CancellationToken) {
        let mut batch = RecvBatch::new();
        let mut datagrams = Vec::new();
        let mut events = Vec::new();
        let mut readable = FuturesUnordered::new();
        for (index, listener) in self.listeners.iter().enumerate() {
            readable.push(listener.readable(Source::Listener(index)));
        }
        let mut sweep = now().instant + SWEEP_INTERVAL;
        // Made once: entering them anew for every packet would cost more than the packet.
        let mut timer = pin!(tokio::time::sleep_until(sweep.into()));
        let mut stopped = pin!(shutdown.cancelled());
        loop {
            for relayed in self.opened.drain(..) {
                if let Some(relay) = self.relays.get(&relayed) {
                    readable.push(relay.readable(Source::Relay(relayed)));
                }
            }
            let deadline = self.server.poll_timeout().map_or(sweep, |deadline| deadline.min(sweep));
            if timer.deadline() != deadline.into() {
                timer.as_mut().reset(deadline.into());
            }
            tokio::select! {
                () = &mut stopped => return,
                Some(source) = readable.next(), if !readable.is_empty() => {
                    let mut next = Some(source);
                    for _ in 0..SOCKETS_PER_TURN {
                        let Some(source) = next else { break };
                        if let Some(source) = source {
                            self.drain(source, &mut batch);
                            readable.extend(self.socket(source).map(|socket| socket.readable(source)));
                        }
                        next = readable.next().now_or_never().flatten();
                    }
                    // Taken, but the turn is over: it is still readable, and watched again.
                    if let Some(Some(source)) = next {
                        readable.extend(self.socket(source).map(|socket| socket.readable(source)));
                    }
                }
                received = queues.inbox.recv_many(&mut datagrams, ITEMS_PER_TURN), if !queues.inbox.is_closed() => {
                    if received > 0 {
                        self.drain_inbox(&mut datagrams);
                    }
                }
                _ = queues.events.recv_many(&mut events, ITEMS_PER_TURN), if !queues.events.is_closed() => {
                    events.drain(..).for_each(|event| self.connection_event(event));
                }
                Some(control) = queues.control.recv() => self.control(control),
                () = &mut timer => {
                    let now = now().instant;
                    self.server.handle_timeout(now);
                    self.perform();
                    if now >= sweep {
                        self.sweep(now);
                        sweep = now + SWEEP_INTERVAL;
                    }
                }
            }
            self.counters.publish(self.server.allocations(), self.relays.len());
        }
    }

    fn socket(&self, source: Source) -> Option<&Socket> {
        match source {
            Source::Listener(index) => self.listeners.get(index),
            Source::Relay(relayed) => self.relays.get(&relayed),
        }
    }

    /// Empties a readable socket, a few batches at a time.
    fn drain(&mut self, source: Source, batch: &mut RecvBatch) {
        let Some(socket) = self.socket(source).map(|socket| Arc::clone(&socket.socket)) else {
            return;
        };
        let bound = socket.local_addr();
        for _ in 0..BATCHES_PER_TURN {
            if socket.try_recv(batch).is_err() {
                break;
            }
            let now = now();
            for datagram in batch.datagrams() {
                self.counters.received(datagram.data.len());
                let outcome = match source {
                    Source::Listener(_) => {
                        let ip = datagram
                            .local_ip
                            .filter(|_| bound.ip().is_unspecified())
                            .unwrap_or(bound.ip());
                        let server = SocketAddr::new(ip, bound.port());
                        let from = FiveTuple {
                            client: datagram.from,
                            server,
                            transport: Transport::Udp,
                        };
                        self.server.handle_client(now, from, datagram.data)
                    }
                    Source::Relay(relayed) => self.server.handle_peer(now, relayed, datagram.from, datagram.data),
                };
                self.carry_out(outcome);
            }
            self.flush();
        }
    }

    fn drain_inbox(&mut self, datagrams: &mut Vec<Datagram>) {
        let now = now();
        for Datagram { from, to, payload } in datagrams.drain(..) {
            let outcome = self.server.handle_peer(now, to, from, &payload);
            self.carry_out(outcome);
        }
        self.flush();
    }

    fn connection_event(&mut self, event: Event) {
        match event {
            Event::Connected(tuple, connection) => {
                self.connections.insert(
                    tuple,
                    Connected {
                        connection,
                        since: now().instant,
                    },
                );
            }
            Event::Message(tuple, message) => {
                self.counters.received(message.len());
                let outcome = self.server.handle_client(now(), tuple, &message);
                self.carry_out(outcome);
                self.flush();
            }
            Event::Disconnected(tuple) => {
                self.connections.remove(&tuple);
                self.server.connection_closed(tuple);
                self.perform();
            }
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::CloseUser { user_id, ended } => {
                let before = self.server.allocations();
                self.server.close_user(&user_id);
                self.perform();
                // The process may have stopped waiting.
                let _ = ended.send(before - self.server.allocations());
            }
            Control::RevokeUser { user_id, until } => {
                self.server.revoke_user(now(), &user_id, until);
                self.perform();
            }
            Control::Users { users } => {
                // The process may have stopped waiting.
                let _ = users.send(self.server.users());
            }
        }
    }

    fn carry_out(&mut self, outcome: Outcome<'_>) {
        match outcome {
            Outcome::Handled => self.perform(),
            Outcome::ToPeer(to_peer) => self.send_to_peer(&to_peer),
            Outcome::ToClient(to_client) => self.send_to_client(&to_client),
            Outcome::Dropped(reason) => self.counters.dropped(reason),
        }
    }

    fn send_to_peer(
        &mut self,
        ToPeer {
            relayed,
            peer,
            inside,
            outside,
            payload,
        }: &ToPeer<'_>,
    ) {
        if *inside {
            match self.switch.deliver_from(&mut self.arena, *relayed, *peer, payload) {
                Delivery::Delivered => return self.counters.switched(payload.len()),
                Delivery::Dropped => return self.counters.queue_full(),
                Delivery::NotHere => {}
            }
        }
        match self.relays.get(relayed) {
            Some(relay) if *outside => {
                let sent = self.outgoing.push(&relay.socket, *peer, None, &[payload]);
                self.counters.sent(sent, payload.len());
            }
            _ => self.counters.peer_gone(),
        }
    }

    fn send_to_client(
        &mut self,
        ToClient {
            client,
            header,
            payload,
        }: &ToClient<'_>,
    ) {
        let parts = [header.front(), payload, header.padding()];
        match client.transport {
            Transport::Udp => {
                let Some((listener, source)) = listener_for(&self.listeners, client.server) else {
                    return;
                };
                let sent = self.outgoing.push(&listener.socket, client.client, source, &parts);
                self.counters.sent(sent, payload.len());
            }
            Transport::Tcp => {
                let packet = Bytes::from(parts.concat());
                match self
                    .connections
                    .get(client)
                    .map(|client| client.connection.outgoing.try_send(packet))
                {
                    Some(Ok(())) => self.counters.sent(Sent { datagrams: 1, lost: 0 }, payload.len()),
                    Some(Err(_)) => self.counters.queue_full(),
                    None => self.counters.peer_gone(),
                }
            }
        }
    }

    /// Carries out the server's commands.
    fn perform(&mut self) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Respond { to, message } => self.respond(to, message),
                Command::OpenSockets {
                    relayed,
                    to,
                    opened,
                    failed,
                } => {
                    if relayed.iter().all(|address| self.open_relay(*address)) {
                        self.respond(to, opened);
                    } else {
                        for address in &relayed {
                            self.close_relay(address);
                        }
                        self.server.sockets_failed(&relayed);
                        self.respond(to, failed);
                    }
                }
                Command::CloseSocket { relayed } => self.close_relay(&relayed),
                Command::Disconnect { client } => {
                    if let Some(client) = self.connections.remove(&client) {
                        client.connection.close.cancel();
                    }
                }
            }
        }
    }

    fn respond(&mut self, to: FiveTuple, message: Vec<u8>) {
        match to.transport {
            Transport::Udp => {
                let Some((listener, source)) = listener_for(&self.listeners, to.server) else {
                    return;
                };
                let transmit = Transmit {
                    to: to.client,
                    contents: &message,
                    segment_size: None,
                    source,
                };
                if listener.socket.try_send(transmit).is_err() {
                    self.counters.queue_full();
                }
            }
            Transport::Tcp => {
                let queued = self
                    .connections
                    .get(&to)
                    .map(|to| to.connection.outgoing.try_send(message.into()));
                if queued.is_some_and(|queued| queued.is_err()) {
                    self.counters.queue_full();
                }
            }
        }
    }

    /// Binds the socket of a relayed address: on the address itself, or on the wildcard where a router translates.
    fn open_relay(&mut self, relayed: SocketAddr) -> bool {
        let wildcard: IpAddr = if relayed.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let bound = UdpSocket::bind(relayed).or_else(|error| match error.kind() {
            std::io::ErrorKind::AddrNotAvailable => UdpSocket::bind((wildcard, relayed.port()).into()),
            _ => Err(error),
        });
        match bound {
            Ok(socket) => {
                self.relays.insert(relayed, Socket::new(socket));
                self.opened.push(relayed);
                true
            }
            Err(error) => {
                tracing::warn!(%relayed, %error, "cannot open a relay port; is another process using turn.relay_ports?");
                false
            }
        }
    }

    fn close_relay(&mut self, relayed: &SocketAddr) {
        if let Some(relay) = self.relays.remove(relayed) {
            relay.closed.close();
        }
    }

    fn flush(&mut self) {
        let sent = self.outgoing.flush();
        self.counters.sent(sent, 0);
    }

    fn sweep(&mut self, now: Instant) {
        // Where they cannot be listed, those known before are the best guess.
        if let Ok(own_ips) = interface_ips() {
            self.server.set_own_ips(own_ips);
        }
        self.connections.retain(|tuple, connected| {
            let keep = now.saturating_duration_since(connected.since) < CONNECTION_WITHOUT_ALLOCATION
                || self.server.has_allocation(*tuple);
            if !keep {
                connected.connection.close.cancel();
            }
            keep
        });
    }
}

impl Socket {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket: Arc::new(socket),
            closed: Arc::default(),
        }
    }

    /// Resolves when there is something to receive; to `None` when the socket was closed.
    fn readable(&self, source: Source) -> impl Future<Output = Option<Source>> + use<> {
        let (socket, closed) = (Arc::clone(&self.socket), Arc::clone(&self.closed));
        poll_fn(move |cx| match closed.poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => socket.poll_readable(cx).map(|ready| ready.ok().map(|()| source)),
        })
    }
}

/// A flag that wakes the one future that watches it.
#[derive(Default)]
struct Closed {
    closed: AtomicBool,
    waker: AtomicWaker,
}

impl Closed {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.closed.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The listener that a client reaches the relay by, and the address to answer from if it is bound to the wildcard.
fn listener_for(listeners: &[Socket], server: SocketAddr) -> Option<(&Socket, Option<IpAddr>)> {
    listeners.iter().find_map(|listener| {
        let bound = listener.socket.local_addr();
        let any = bound.ip().is_unspecified() && bound.is_ipv4() == server.is_ipv4();
        let matches = bound.port() == server.port() && (any || bound.ip() == server.ip());
        matches.then(|| (listener, any.then_some(server.ip())))
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the relay reads the clock; everything below is told"
)]
fn now() -> Now {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    Now {
        instant: Instant::now(),
        unix,
    }
}
