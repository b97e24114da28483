//! UDP sockets that move many datagrams per system call: `recvmmsg` and receive offload in, segmentation offload out.
//!
//! Owns the socket and its buffers. An IPv6 socket is IPv6 only, so addresses are never IPv4-mapped and the wildcard of
//! both families can be bound side by side.

mod coalescer;

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
};

use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

pub use coalescer::{Coalescer, Sent};

/// Room for one receive-offload run: the largest UDP payload there is.
const BUFFER_LEN: usize = 64 * 1024;
/// Asked of the kernel for each direction; it grants what `net.core.{r,w}mem_max` allow. Holds a burst of some 50 ms.
const SOCKET_BUFFER_LEN: usize = 4 * 1024 * 1024;
/// Kernel limit of a run: one UDP payload.
const MAX_COALESCED_LEN: usize = 65_000;

/// A datagram, or a run of equally long ones, to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    pub to: SocketAddr,
    /// One datagram, or several back to back when `segment_size` is given.
    pub contents: &'a [u8],
    /// Length in bytes of each datagram in `contents`; the last may be shorter.
    pub segment_size: Option<usize>,
    /// The local address to send from, where the socket is bound to the wildcard. Answer from the address that was asked.
    pub source: Option<IpAddr>,
}

/// A datagram in a [`RecvBatch`].
#[derive(Debug)]
pub struct Received<'a> {
    pub from: SocketAddr,
    /// The local address it was sent to, where the platform tells.
    pub local_ip: Option<IpAddr>,
    pub data: &'a mut [u8],
}

/// Buffers for one receive call (2 MiB of address space, touched only as far as it is used). One per receiving task.
pub struct RecvBatch {
    buffers: Box<[u8]>,
    metas: [RecvMeta; BATCH_SIZE],
    filled: usize,
}

impl RecvBatch {
    pub fn new() -> Self {
        Self {
            buffers: vec![0; BATCH_SIZE * BUFFER_LEN].into_boxed_slice(),
            metas: [RecvMeta::default(); BATCH_SIZE],
            filled: 0,
        }
    }

    /// The datagrams of the last receive call, receive-offload runs taken apart. Empty datagrams are left out.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Received<'_>> {
        self.buffers
            .chunks_exact_mut(BUFFER_LEN)
            .zip(&self.metas[..self.filled])
            .flat_map(|(buffer, meta)| {
                buffer[..meta.len].chunks_mut(meta.stride.max(1)).map(|data| Received {
                    from: meta.addr,
                    local_ip: meta.dst_ip,
                    data,
                })
            })
    }

    fn fill(
        &mut self,
        recv: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.filled = 0;
        let mut chunks = self.buffers.chunks_exact_mut(BUFFER_LEN);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().expect("one buffer per slice by construction")));
        self.filled = recv(&mut slices, &mut self.metas)?;
        Ok(())
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// A UDP socket on the current tokio runtime.
#[derive(Debug)]
pub struct UdpSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    local_addr: SocketAddr,
}

impl UdpSocket {
    /// Binds a non-blocking socket with large kernel buffers. Must be called on a tokio runtime with IO enabled.
    ///
    /// # Errors
    /// As `bind(2)`: the port is taken, the address is not local, no permission.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Best effort: the kernel silently caps at its own limits, and a smaller buffer still works.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_LEN);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_LEN);
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        let local_addr = io.local_addr()?;
        Ok(Self { io, state, local_addr })
    }

    /// The bound address, with the real port where port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Receives at least one datagram into `batch`, replacing what it held. Cancel safe.
    ///
    /// # Errors
    /// Only what concerns the socket as a whole; errors that an earlier datagram provoked from the network are skipped.
    pub async fn recv(&self, batch: &mut RecvBatch) -> io::Result<()> {
        loop {
            self.io.readable().await?;
            match self.try_recv(batch) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_transient(&error) => {}
                other => return other,
            }
        }
    }

    /// Receives what is there without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is; otherwise as [`UdpSocket::recv`].
    pub fn try_recv(&self, batch: &mut RecvBatch) -> io::Result<()> {
        let mut received = Err(io::ErrorKind::WouldBlock.into());
        let exhausted = self.io.try_io(Interest::READABLE, || {
            received = self.recv_now(batch);
            match &received {
                // The queue is empty: forget the readiness here instead of asking the kernel once more.
                Ok(()) if batch.filled < BATCH_SIZE => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        });
        debug_assert!(exhausted.is_ok() || exhausted.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
        received
    }

    /// Resolves when the socket is worth a [`UdpSocket::try_recv`]; lets several sockets share one batch.
    ///
    /// # Errors
    /// When the runtime's IO driver is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    /// As [`UdpSocket::readable`], for a task that watches many sockets.
    pub fn poll_readable(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        self.io.poll_recv_ready(cx)
    }

    /// Sends without waiting; splits a run itself where the kernel lacks segmentation offload.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the kernel's buffer is full (the rest of a run is then lost: count and go on),
    /// or what the kernel says about this destination or length.
    pub fn try_send(&self, transmit: Transmit<'_>) -> io::Result<()> {
        // Straight to the non-blocking socket: the runtime believes a new socket unwritable until it has polled once.
        self.runs(&transmit).try_for_each(|run| self.send_now(&transmit, run))
    }

    /// As [`UdpSocket::try_send`], waiting for room in the kernel's buffer.
    ///
    /// # Errors
    /// What the kernel says about this destination or length.
    pub async fn send(&self, transmit: Transmit<'_>) -> io::Result<()> {
        for run in self.runs(&transmit) {
            self.io
                .async_io(Interest::WRITABLE, || self.send_now(&transmit, run))
                .await?;
        }
        Ok(())
    }

    fn recv_now(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.fill(|slices, metas| self.state.recv(UdpSockRef::from(&self.io), slices, metas))
    }

    /// Cuts the contents into what one system call may carry. No contents are one empty datagram.
    fn runs<'a>(&self, transmit: &Transmit<'a>) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let run_len = match transmit.segment_size {
            Some(segment) if segment > 0 => {
                let segments = self.state.max_gso_segments().min(MAX_COALESCED_LEN / segment).max(1);
                segment * segments
            }
            _ => transmit.contents.len().max(1),
        };
        let empty = transmit.contents.is_empty().then_some(&[][..]);
        empty.into_iter().chain(transmit.contents.chunks(run_len))
    }

    fn send_now(&self, transmit: &Transmit<'_>, run: &[u8]) -> io::Result<()> {
        let whole = quinn_udp::Transmit {
            destination: transmit.to,
            ecn: None,
            contents: run,
            segment_size: transmit.segment_size,
            src_ip: transmit.source,
        };
        match (
            self.state.try_send(UdpSockRef::from(&self.io), &whole),
            transmit.segment_size,
        ) {
            // The first failing run teaches `state` that offload is unavailable here; its datagrams still go out.
            (Err(error), Some(segment))
                if error.kind() != io::ErrorKind::WouldBlock && segment > 0 && segment < run.len() =>
            {
                run.chunks(segment).try_for_each(|contents| {
                    let single = quinn_udp::Transmit {
                        contents,
                        segment_size: None,
                        ..whole.clone()
                    };
                    self.state.try_send(UdpSockRef::from(&self.io), &single)
                })
            }
            (result, _) => result,
        }
    }
}

/// Errors that a previous datagram provoked (ICMP unreachable); they say nothing about the socket.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
