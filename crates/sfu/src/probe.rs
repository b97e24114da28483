//! Whether the media sockets hear: a connectivity check of our own, sent to each through the network stack and awaited
//! behind the mux. The sockets answer no stranger, so nobody can make them send anything by this.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::BytesMut;
use fabric::framing;
use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket},
    sync::mpsc,
    time::timeout,
};

use crate::{
    clock,
    transport::{ConnectionKey, IceCredentials, Mux, check_of_ours},
};

/// How long a datagram may take through the machine itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// A datagram that is lost is sent again.
const ATTEMPTS: usize = 3;

/// A transport protocol of media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// UDP.
    Udp,
    /// TCP, RFC 6544.
    Tcp,
}

/// What a probe of one socket found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// By which protocol.
    pub protocol: Protocol,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// What was sent there arrived at the mux.
    pub hears: bool,
}

/// Tries every socket, all at once, within a second and a half.
pub(crate) async fn sockets(mux: &Mux, udp: &[SocketAddr], tcp: &[SocketAddr]) -> Vec<Probed> {
    let udp = udp.iter().map(|address| (Protocol::Udp, *address));
    let all = udp.chain(tcp.iter().map(|address| (Protocol::Tcp, *address)));
    join_all(all.map(|(protocol, address)| async move {
        Probed {
            protocol,
            address,
            hears: hears(mux, protocol, address).await,
        }
    }))
    .await
}

async fn hears(mux: &Mux, protocol: Protocol, address: SocketAddr) -> bool {
    let credentials = IceCredentials::random();
    let (inbox, mut arrived) = mpsc::channel(1);
    let _registration = mux.register(&credentials.ufrag, ConnectionKey(0), inbox);
    let check = check_of_ours(&credentials, &clock::random());
    for _ in 0..ATTEMPTS {
        let attempt = async {
            // Held until the datagram has arrived: closing a connection may outrun what was written to it.
            let _carrier = send(protocol, on_this_machine(address), &check).await?;
            Ok::<_, io::Error>(arrived.recv().await)
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(Some(incoming))) => return incoming.datagram == check,
            Ok(Ok(None)) => return false,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    false
}

/// What a datagram was sent by.
enum Sender {
    Udp(#[expect(dead_code, reason = "keeps the socket open")] UdpSocket),
    Tcp(#[expect(dead_code, reason = "keeps the connection open")] TcpStream),
}

async fn send(protocol: Protocol, to: SocketAddr, datagram: &[u8]) -> io::Result<Sender> {
    match protocol {
        Protocol::Udp => {
            let from: IpAddr = if to.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((from, 0)).await?;
            socket.send_to(datagram, to).await?;
            Ok(Sender::Udp(socket))
        }
        Protocol::Tcp => {
            let mut stream = TcpStream::connect(to).await?;
            let mut framed = BytesMut::new();
            framing::encode(datagram, &mut framed).map_err(io::Error::other)?;
            stream.write_all(&framed).await?;
            Ok(Sender::Tcp(stream))
        }
    }
}

/// A socket bound to every address is reached on loopback.
fn on_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use fabric::switch::Switch;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::transport::MuxConfig;

    #[tokio::test]
    async fn open_sockets_hear_and_closed_ones_do_not() {
        let config = MuxConfig {
            udp: vec!["127.0.0.1:0".parse().unwrap()],
            tcp: vec!["127.0.0.1:0".parse().unwrap()],
            ..MuxConfig::default()
        };
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let mux = Mux::start(config, Switch::new(), &tasks, shutdown.clone())
            .await
            .unwrap();
        let (udp, tcp): (Vec<_>, _) = (mux.udp_addrs().collect(), mux.tcp_addrs().to_vec());
        let hears = |probed: Vec<Probed>| probed.iter().map(|probed| probed.hears).collect::<Vec<_>>();
        assert_eq!(hears(sockets(&mux, &udp, &tcp).await), [true, true]);
        // The ports are still open, and nobody reads them.
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        assert_eq!(hears(sockets(&mux, &udp, &tcp).await), [false, false]);
    }
}
