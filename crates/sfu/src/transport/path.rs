//! Where a datagram came from and goes to. Knows neither protocols nor sockets.

use std::net::{IpAddr, SocketAddr};

/// One way to a client: what carries the datagrams and between which addresses. Two datagrams with equal paths
/// travelled the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// What carries the datagrams.
    pub carrier: Carrier,
    /// The client's address as we see it.
    pub remote: SocketAddr,
    /// Our address that the client used, where the system tells; answers leave from it.
    pub local: Option<IpAddr>,
}

/// What carries a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// The shared UDP socket.
    Udp,
    /// A TCP connection that the client opened, framed by RFC 4571.
    Tcp,
    /// The switch in this process: the client's address is one that our own relay gave it.
    Switch,
}

/// One datagram, or several of equal length to the same place, ready to be sent in one call.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    pub path: Path,
    /// The datagrams, back to back.
    pub contents: &'a [u8],
    /// Length of each datagram in bytes when there are several; the last may be shorter.
    pub segment_size: Option<usize>,
}

impl<'a> Transmit<'a> {
    /// The single datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        self.contents
            .chunks(self.segment_size.unwrap_or(self.contents.len()).max(1))
    }
}
