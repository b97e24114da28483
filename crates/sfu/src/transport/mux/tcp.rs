//! ICE-TCP, passive side (RFC 6544): accepts connections, takes datagrams out of the stream and puts them into it
//! (RFC 4571). A connection that does not begin with a connectivity check for somebody we know is closed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fabric::framing;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AddressTable, Arena, Carrier, Mux, Path, clock};

/// Connections open at once.
const MAX_CONNECTIONS: usize = 4096;
/// Of these, connections that have shown no check for somebody we know yet: strangers leave room for clients.
const MAX_UNPROVEN: usize = 1024;
/// Connections open at once from one address (of IPv6: one network of 64 bits, which is what one host has). A company may
/// be behind one.
const MAX_PER_SOURCE: usize = 256;
const MAX_UNPROVEN_PER_SOURCE: usize = 16;
/// The largest datagram a client may frame; nothing it sends exceeds a path MTU by much.
const MAX_DATAGRAM: usize = 4096;
/// How long a new connection may take until its first check arrived whole, however the bytes trickle in.
const FIRST_CHECK_WITHIN: Duration = Duration::from_secs(5);
/// How long an established connection may go without a check: consent to it ends then (RFC 7675 §5.1).
const CHECKED_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may refuse to read before it is given up.
const WRITE_WITHIN: Duration = Duration::from_secs(15);
/// Runs of datagrams waiting for a slow client; media beyond it is dropped.
const QUEUE: usize = 256;
const READ_BUFFER: usize = 16 * 1024;

/// All connections.
#[derive(Default)]
pub(super) struct TcpConnections(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// The writers, by the client's address.
    writers: HashMap<SocketAddr, mpsc::Sender<Bytes>>,
    unproven: usize,
    sources: HashMap<IpAddr, Source>,
}

/// What one source holds.
#[derive(Default)]
struct Source {
    open: usize,
    unproven: usize,
}

/// One of the places for connections; given back when dropped.
struct Place<'a> {
    connections: &'a TcpConnections,
    client: SocketAddr,
    proven: bool,
}

impl TcpConnections {
    /// Frames the datagrams and queues them; the number that found no room.
    pub(super) fn send<'a>(&self, to: SocketAddr, datagrams: impl Iterator<Item = &'a [u8]>) -> u64 {
        let Some(writer) = self.0.lock().writers.get(&to).cloned() else {
            return datagrams.count() as u64;
        };
        let (mut framed, mut count) = (BytesMut::new(), 0);
        for datagram in datagrams {
            if framing::encode(datagram, &mut framed).is_ok() {
                count += 1;
            }
        }
        if writer.try_send(framed.freeze()).is_ok() {
            0
        } else {
            count
        }
    }

    /// A place for a connection that has proven nothing yet, if there is one.
    fn enter(&self, client: SocketAddr, writer: mpsc::Sender<Bytes>) -> Option<Place<'_>> {
        let mut table = self.0.lock();
        let Table {
            writers,
            unproven,
            sources,
        } = &mut *table;
        let held = sources.get(&source(client.ip()));
        let has_room = writers.len() < MAX_CONNECTIONS
            && *unproven < MAX_UNPROVEN
            && held.is_none_or(|held| held.open < MAX_PER_SOURCE && held.unproven < MAX_UNPROVEN_PER_SOURCE)
            && !writers.contains_key(&client);
        if !has_room {
            return None;
        }
        writers.insert(client, writer);
        *unproven += 1;
        let held = sources.entry(source(client.ip())).or_default();
        held.open += 1;
        held.unproven += 1;
        Some(Place {
            connections: self,
            client,
            proven: false,
        })
    }
}

impl Place<'_> {
    /// The client has shown a check for somebody we know.
    fn prove(&mut self) {
        if !std::mem::replace(&mut self.proven, true) {
            let mut table = self.connections.0.lock();
            table.unproven -= 1;
            if let Some(held) = table.sources.get_mut(&source(self.client.ip())) {
                held.unproven -= 1;
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.prove();
        let mut table = self.connections.0.lock();
        table.writers.remove(&self.client);
        let source = source(self.client.ip());
        if let Some(held) = table.sources.get_mut(&source) {
            held.open -= 1;
            if held.open == 0 {
                table.sources.remove(&source);
            }
        }
    }
}

/// What counts as one source.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

pub(super) async fn accept(mux: Mux, listener: TcpListener, tasks: TaskTracker, shutdown: CancellationToken) {
    loop {
        let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await else {
            return;
        };
        match accepted {
            Ok((stream, client)) => {
                let (mux, shutdown) = (mux.clone(), shutdown.clone());
                tasks.spawn(async move { shutdown.run_until_cancelled(serve(mux, stream, client)).await });
            }
            Err(error) => {
                // Out of file descriptors, mostly: give others the time to close theirs.
                tracing::warn!(%error, "cannot accept a media connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mux: Mux, stream: TcpStream, client: SocketAddr) {
    let (queue, outgoing) = mpsc::channel(QUEUE);
    let Some(place) = mux.0.tcp_connections.enter(client, queue) else {
        mux.0.counters.refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    // Nagle's algorithm would hold back every small packet.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let local = stream.local_addr().ok().map(|addr| addr.ip());
    let path = Path {
        carrier: Carrier::Tcp,
        remote: client,
        local,
    };
    let (reader, writer) = stream.into_split();
    tokio::select! {
        () = read(&mux, reader, path, Stay::begin(place, clock())) => {}
        () = write(writer, outgoing) => {}
    }
}

/// How long a connection may stay. Only checks prolong it: bytes that make up nothing cost a client nothing.
struct Stay<'a> {
    place: Place<'a>,
    until: Instant,
}

impl<'a> Stay<'a> {
    fn begin(place: Place<'a>, now: Instant) -> Self {
        Self {
            place,
            until: now + FIRST_CHECK_WITHIN,
        }
    }

    /// A whole datagram came; whether the connection may go on.
    fn received(&mut self, now: Instant, is_check: bool) -> bool {
        if is_check {
            self.place.prove();
            self.until = now + CHECKED_WITHIN;
        }
        self.place.proven
    }
}

/// Reads until the client ends, breaks the framing, or has stayed for too long.
async fn read(mux: &Mux, mut reader: impl AsyncRead + Unpin, path: Path, mut stay: Stay<'_>) {
    let (mut table, mut arena) = (AddressTable::default(), Arena::default());
    let mut buffer = BytesMut::with_capacity(READ_BUFFER);
    loop {
        buffer.reserve(READ_BUFFER);
        match timeout_at(stay.until.into(), reader.read_buf(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return,
        }
        let now = clock();
        loop {
            match framing::decode(&mut buffer, MAX_DATAGRAM) {
                Ok(Some(datagram)) => {
                    let is_check = mux.route(&mut table, now, path, &datagram, &mut arena);
                    if !stay.received(now, is_check) {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut outgoing: mpsc::Receiver<Bytes>) {
    while let Some(framed) = outgoing.recv().await {
        if !matches!(timeout(WRITE_WITHIN, writer.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::stun::clients::request;
    use crate::transport::{ConnectionKey, IceCredentials, MuxConfig};

    /// A place on `mux`, and who would write to its client.
    fn enter(mux: &Mux) -> (Path, Place<'_>, mpsc::Receiver<Bytes>) {
        let path = Path {
            carrier: Carrier::Tcp,
            remote: ([192, 0, 2, 1], 1).into(),
            local: None,
        };
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let place = mux.0.tcp_connections.enter(path.remote, queue).expect("room");
        (path, place, outgoing)
    }

    async fn mux() -> Mux {
        let switch = fabric::switch::Switch::new();
        Mux::start(
            MuxConfig::default(),
            switch,
            &TaskTracker::new(),
            CancellationToken::new(),
        )
        .await
        .expect("no socket is asked for")
    }

    /// Bytes arrive all the time, and never make up a datagram.
    #[tokio::test]
    async fn slow_bytes_do_not_hold_a_place() {
        let mux = mux().await;
        let (inbox, mut received) = mpsc::channel(16);
        let local = IceCredentials::random();
        let _registration = mux.register(&local, ConnectionKey::next(), inbox);
        let (path, place, _outgoing) = enter(&mux);
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut stay = Stay::begin(place, clock());
        stay.until = clock() + Duration::from_millis(100);
        let trickle = async {
            let mut stream = BytesMut::new();
            framing::encode(&request(&local, false, false), &mut stream).expect("short");
            for byte in &stream[..] {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if theirs.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(read(&mux, ours, path, stay), trickle);
        assert!(received.try_recv().is_err(), "the check never came whole");
        assert!(mux.0.tcp_connections.0.lock().sources.is_empty(), "the place is free");
    }

    #[tokio::test]
    async fn a_connection_lives_by_its_checks_alone() {
        let mux = mux().await;
        let (_, place, _outgoing) = enter(&mux);
        let now = clock();
        let mut stay = Stay::begin(place, now);
        assert_eq!(stay.until, now + FIRST_CHECK_WITHIN);
        assert!(!stay.received(now, false), "it must begin with a check");
        let later = now + FIRST_CHECK_WITHIN / 2;
        assert!(stay.received(later, true));
        assert_eq!(stay.until, later + CHECKED_WITHIN);
        assert!(stay.received(later + CHECKED_WITHIN / 2, false));
        assert_eq!(stay.until, later + CHECKED_WITHIN, "media does not prolong it");
    }

    #[test]
    fn one_source_holds_few_places_before_it_proves_anything_and_some_after() {
        let connections = TcpConnections::default();
        let (queue, _outgoing) = mpsc::channel(1);
        let enter = |ip: IpAddr, port| connections.enter((ip, port).into(), queue.clone());
        let stranger: IpAddr = [192, 0, 2, 1].into();
        let mut places: Vec<_> = (1..).map_while(|port| enter(stranger, port)).collect();
        assert_eq!(places.len(), MAX_UNPROVEN_PER_SOURCE);
        let other = enter([192, 0, 2, 2].into(), 1).expect("others have theirs");
        places.iter_mut().for_each(Place::prove);
        let mut port = 1000;
        while let Some(mut place) = enter(stranger, port) {
            place.prove();
            places.push(place);
            port += 1;
        }
        assert_eq!(places.len(), MAX_PER_SOURCE);
        places.pop();
        assert!(enter(stranger, port).is_some(), "a place is given back");
        drop((places, other));

        let network = |host: u128| IpAddr::V6((0x2001_0db8 << 96 | host).into());
        let places: Vec<_> = (1..).map_while(|host| enter(network(host), 1)).collect();
        assert_eq!(places.len(), MAX_UNPROVEN_PER_SOURCE, "a host has 64 bits of addresses");
        drop(places);

        let places: Vec<_> = (0..1000_u32)
            .flat_map(|ip| (0..2).map_while(move |port| Some((IpAddr::from((10 << 24 | ip).to_be_bytes()), port))))
            .map_while(|(ip, port)| enter(ip, port))
            .collect();
        assert_eq!(places.len(), MAX_UNPROVEN);
        drop(places);
        let table = connections.0.lock();
        assert!(table.writers.is_empty() && table.sources.is_empty() && table.unproven == 0);
    }
}
