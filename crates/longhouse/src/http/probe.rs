//! Whether what carries calls hears, found out by trying: a STUN Binding round trip to each port of the relay (RFC 8489
//! §6.3.1), and the SFU's own probe. Asked by the page, which anybody may open: one attempt serves everybody for a while.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, join_all};
use parking_lot::Mutex;
use relay::RelayHandle;
use serde::Serialize;
use sfu::SfuHandle;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::clock;

/// How long an outcome is told before it is tried again, in milliseconds.
const FRESH_MS: u64 = 10_000;
/// How long an answer may take on this machine.
const PATIENCE: Duration = Duration::from_millis(500);
/// What is lost is sent again.
const ATTEMPTS: usize = 3;

/// One port and whether it hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Port {
    /// `udp` or `tcp`.
    pub(crate) protocol: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) hears: bool,
}

/// What was found out about every port, in order; of what does not run there is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) relay: Vec<Port>,
    pub(crate) sfu: Vec<Port>,
}

type Attempt = Shared<BoxFuture<'static, Arc<Found>>>;

/// Tries the ports of a relay and an SFU, at most once in [`FRESH_MS`] however often it is asked.
#[derive(Clone)]
pub(crate) struct Probe(Arc<Inner>);

struct Inner {
    relay: Option<RelayHandle>,
    sfu: Option<SfuHandle>,
    last: Mutex<Option<(u64, Attempt)>>,
}

impl Probe {
    pub(crate) fn new(relay: Option<RelayHandle>, sfu: Option<SfuHandle>) -> Self {
        Self(Arc::new(Inner {
            relay,
            sfu,
            last: Mutex::new(None),
        }))
    }

    /// What was found out within the last seconds.
    pub(crate) async fn found(&self) -> Arc<Found> {
        let now = clock::now_ms();
        let attempt = {
            let mut last = self.0.last.lock();
            match &*last {
                // A clock that was set back makes the outcome old.
                Some((at, attempt)) if (*at..*at + FRESH_MS).contains(&now) => attempt.clone(),
                _ => {
                    let (relay, sfu) = (self.0.relay.clone(), self.0.sfu.clone());
                    let attempt = attempt(relay, sfu).boxed().shared();
                    *last = Some((now, attempt.clone()));
                    attempt
                }
            }
        };
        attempt.await
    }
}

async fn attempt(relay: Option<RelayHandle>, sfu: Option<SfuHandle>) -> Arc<Found> {
    let relay = async {
        match &relay {
            Some(relay) => {
                join_all(
                    relay
                        .listeners()
                        .iter()
                        .map(|(protocol, address)| binding(*protocol, *address)),
                )
                .await
            }
            None => Vec::new(),
        }
    };
    let sfu = async {
        match &sfu {
            Some(sfu) => sfu.probe().await,
            None => Vec::new(),
        }
    };
    let (relay, probed) = tokio::join!(relay, sfu);
    let sfu = probed
        .into_iter()
        .map(|probed| Port {
            protocol: match probed.protocol {
                sfu::Protocol::Udp => "udp",
                sfu::Protocol::Tcp => "tcp",
            },
            address: probed.address,
            hears: probed.hears,
        })
        .collect();
    Arc::new(Found { relay, sfu })
}

async fn binding(protocol: relay::Protocol, address: SocketAddr) -> Port {
    let to = on_this_machine(address);
    let request = request();
    let mut hears = false;
    for _ in 0..ATTEMPTS {
        let answered = match protocol {
            relay::Protocol::Udp => timeout(PATIENCE, over_udp(to, &request)).await,
            relay::Protocol::Tcp => timeout(PATIENCE, over_tcp(to, &request)).await,
        };
        hears = matches!(answered, Ok(Ok(true)));
        if hears {
            break;
        }
    }
    Port {
        protocol: match protocol {
            relay::Protocol::Udp => "udp",
            relay::Protocol::Tcp => "tcp",
        },
        address,
        hears,
    }
}

async fn over_udp(to: SocketAddr, request: &[u8; 20]) -> io::Result<bool> {
    let from: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(to).await?;
    socket.send(request).await?;
    let mut head = [0; 20];
    // Longer answers are cut to their head, which is all that is looked at.
    let length = socket.recv(&mut head).await?;
    Ok(length == head.len() && answers(&head, request))
}

async fn over_tcp(to: SocketAddr, request: &[u8; 20]) -> io::Result<bool> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request).await?;
    let mut head = [0; 20];
    stream.read_exact(&mut head).await?;
    Ok(answers(&head, request))
}

/// A Binding request without attributes: type, length 0, magic cookie, transaction.
fn request() -> [u8; 20] {
    let mut request = [0; 20];
    request[..8].copy_from_slice(&[0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xA4, 0x42]);
    request[8..].copy_from_slice(&rand::random::<[u8; 12]>());
    request
}

/// Whether a message begins like the success response to `request`.
fn answers(head: &[u8; 20], request: &[u8; 20]) -> bool {
    head[..2] == [0x01, 0x01] && head[4..] == request[4..]
}

/// A listener on every address is reached on loopback.
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
    use super::*;

    #[tokio::test]
    async fn a_port_that_does_not_answer_is_said_not_to_hear() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = silent.local_addr().expect("bound");
        assert!(!binding(relay::Protocol::Udp, address).await.hears);
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            listener.local_addr().expect("bound")
        };
        assert!(!binding(relay::Protocol::Tcp, closed).await.hears);
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let request = request();
        let mut head = request;
        assert!(!answers(&head, &request), "an echo");
        head[..2].copy_from_slice(&[0x01, 0x01]);
        assert!(answers(&head, &request));
        head[19] ^= 1;
        assert!(!answers(&head, &request), "another transaction");
    }
}
