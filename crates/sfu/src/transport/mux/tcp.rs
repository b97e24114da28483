//! ICE-TCP, passive side (RFC 6544): accepts connections, takes datagrams out of the stream and puts them into it
//! (RFC 4571). A connection that does not begin with a connectivity check for somebody we know is closed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fabric::framing;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AddressTable, Arena, Carrier, Mux, Path, clock};

/// Connections open at once.
const MAX_CONNECTIONS: usize = 4096;
/// The largest datagram a client may frame; nothing it sends exceeds a path MTU by much.
const MAX_DATAGRAM: usize = 4096;
/// How long a new connection may take to show its first datagram, and an established one to show any.
const FIRST_DATAGRAM_WITHIN: Duration = Duration::from_secs(10);
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// How long a client may refuse to read before it is given up.
const WRITE_WITHIN: Duration = Duration::from_secs(15);
/// Runs of datagrams waiting for a slow client; media beyond it is dropped.
const QUEUE: usize = 256;
const READ_BUFFER: usize = 16 * 1024;

/// The writers of all connections, by the client's address.
#[derive(Default)]
pub(super) struct TcpConnections(Mutex<HashMap<SocketAddr, mpsc::Sender<Bytes>>>);

impl TcpConnections {
    /// Frames the datagrams and queues them; the number that found no room.
    pub(super) fn send<'a>(&self, to: SocketAddr, datagrams: impl Iterator<Item = &'a [u8]>) -> u64 {
        let Some(writer) = self.0.lock().get(&to).cloned() else {
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

    fn insert(&self, client: SocketAddr, writer: mpsc::Sender<Bytes>) -> bool {
        let mut connections = self.0.lock();
        let has_room = connections.len() < MAX_CONNECTIONS;
        if has_room {
            connections.insert(client, writer);
        }
        has_room
    }

    fn remove(&self, client: SocketAddr) {
        self.0.lock().remove(&client);
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
    // Nagle's algorithm would hold back every small packet.
    if stream.set_nodelay(true).is_err() || !mux.0.tcp_connections.insert(client, queue) {
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
        () = read(&mux, reader, path) => {}
        () = write(writer, outgoing) => {}
    }
    mux.0.tcp_connections.remove(client);
}

async fn read(mux: &Mux, mut reader: OwnedReadHalf, path: Path) {
    let (mut table, mut arena) = (AddressTable::default(), Arena::default());
    let mut buffer = BytesMut::with_capacity(READ_BUFFER);
    let mut patience = FIRST_DATAGRAM_WITHIN;
    loop {
        buffer.reserve(READ_BUFFER);
        match timeout(patience, reader.read_buf(&mut buffer)).await {
            Ok(Ok(length)) if length > 0 => {}
            _ => return,
        }
        let now = clock();
        loop {
            match framing::decode(&mut buffer, MAX_DATAGRAM) {
                Ok(Some(datagram)) => {
                    if table.find(&mux.0.routes, now, path.remote, &datagram).is_none()
                        && patience == FIRST_DATAGRAM_WITHIN
                    {
                        mux.0.counters.unknown.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    patience = IDLE_AFTER;
                    mux.route(&mut table, now, path, &datagram, &mut arena);
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
