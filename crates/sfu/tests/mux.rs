//! The shared sockets through their public face: real loopback sockets on one side, the owner's inbox on the other.

use std::net::SocketAddr;

use bytes::BytesMut;
use fabric::framing;
use fabric::switch::{Datagram, Switch};
use sfu::transport::{Carrier, ConnectionKey, Incoming, Mux, MuxConfig, Transmit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A Binding request that names `ufrag`; the mux looks at nothing else.
fn check(ufrag: &str) -> Vec<u8> {
    let username = format!("{ufrag}:client");
    let padded = username.len().next_multiple_of(4);
    let mut message = vec![0, 1, 0, (4 + padded) as u8, 0x21, 0x12, 0xA4, 0x42];
    message.extend_from_slice(&[1; 12]);
    message.extend_from_slice(&[0, 6, 0, username.len() as u8]);
    message.extend_from_slice(username.as_bytes());
    message.resize(24 + padded, 0);
    message
}

struct Fixture {
    mux: Mux,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    switch: Switch,
}

impl Fixture {
    async fn new(announced: Vec<SocketAddr>) -> Self {
        let (tasks, shutdown, switch) = (TaskTracker::new(), CancellationToken::new(), Switch::new());
        let config = MuxConfig {
            udp: vec![LOOPBACK],
            tcp: vec![LOOPBACK],
            announced,
        };
        let mux = Mux::start(config, switch.clone(), &tasks, shutdown.clone())
            .await
            .expect("loopback ports are free");
        Self {
            mux,
            tasks,
            shutdown,
            switch,
        }
    }

    fn udp(&self) -> SocketAddr {
        self.mux.udp_addrs().next().expect("one socket")
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[tokio::test]
async fn udp_finds_its_connection_by_name_and_then_by_address() {
    let fixture = Fixture::new(Vec::new()).await;
    let (inbox, mut received) = mpsc::channel(16);
    let first = fixture.mux.register("first", ConnectionKey(1), inbox.clone());
    let _second = fixture.mux.register("second", ConnectionKey(2), inbox.clone());
    let client = UdpSocket::bind(LOOPBACK).await.expect("free");
    client.connect(fixture.udp()).await.expect("loopback");

    client.send(b"\x80 nobody knows this address").await.expect("sent");
    client.send(&check("stranger")).await.expect("sent");
    client.send(&[0x80; 2049]).await.expect("sent");
    client.send(&check("first")).await.expect("sent");
    client.send(b"\x80 media").await.expect("sent");
    client.send(&check("second")).await.expect("sent");
    client.send(b"\x80 more media").await.expect("sent");
    let mut seen = Vec::new();
    for _ in 0..4 {
        let Incoming {
            connection,
            path,
            datagram,
        } = received.recv().await.expect("arrives");
        assert_eq!(
            (path.carrier, path.remote),
            (Carrier::Udp, client.local_addr().expect("bound"))
        );
        seen.push((connection.0, datagram[0]));
    }
    assert_eq!(
        seen,
        [(1, 0), (1, 0x80), (2, 0), (1, 0x80)],
        "an address in use is not taken over"
    );
    assert_eq!(fixture.mux.stats().unknown, 2);
    assert_eq!(fixture.mux.stats().oversized, 1);

    drop(first);
    client.send(&check("first")).await.expect("sent");
    client.send(&check("second")).await.expect("sent");
    client.send(b"\x80 media").await.expect("sent");
    assert_eq!(received.recv().await.expect("arrives").datagram[0], 0);
    assert_eq!(
        received.recv().await.expect("arrives").connection,
        ConnectionKey(2),
        "the first is gone"
    );

    let path = sfu::transport::Path {
        carrier: Carrier::Udp,
        remote: client.local_addr().expect("bound"),
        local: None,
    };
    fixture.mux.send(&Transmit {
        path,
        contents: b"aaaabbbbcc",
        segment_size: Some(4),
    });
    let mut buffer = [0; 100];
    for expected in [&b"aaaa"[..], b"bbbb", b"cc"] {
        let length = client.recv(&mut buffer).await.expect("arrives");
        assert_eq!(&buffer[..length], expected);
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_full_inbox_drops_and_counts() {
    let fixture = Fixture::new(Vec::new()).await;
    let (inbox, mut received) = mpsc::channel(1);
    let _registration = fixture.mux.register("slow", ConnectionKey(1), inbox);
    let (other, mut marker) = mpsc::channel(16);
    let _other = fixture.mux.register("other", ConnectionKey(2), other);
    let client = UdpSocket::bind(LOOPBACK).await.expect("free");
    client.connect(fixture.udp()).await.expect("loopback");
    for _ in 0..5 {
        client.send(&check("slow")).await.expect("sent");
    }
    client.send(&check("other")).await.expect("sent");
    marker.recv().await.expect("the others are not held up");
    assert_eq!(fixture.mux.stats().inbox_full, 4);
    assert!(received.recv().await.is_some());
    fixture.stop().await;
}

#[tokio::test]
async fn tcp_is_framed_and_strangers_are_hung_up_on() {
    let fixture = Fixture::new(Vec::new()).await;
    let (inbox, mut received) = mpsc::channel(16);
    let _registration = fixture.mux.register("ufrag", ConnectionKey(7), inbox);
    let server = fixture.mux.tcp_addrs()[0];

    let mut client = TcpStream::connect(server).await.expect("listening");
    let mut stream = BytesMut::new();
    framing::encode(&check("ufrag"), &mut stream).expect("short");
    framing::encode(b"\x80 media", &mut stream).expect("short");
    client.write_all(&stream).await.expect("sent");
    let first = received.recv().await.expect("arrives");
    assert_eq!((first.connection, first.path.carrier), (ConnectionKey(7), Carrier::Tcp));
    assert_eq!(&received.recv().await.expect("arrives").datagram[..], b"\x80 media");
    fixture.mux.send(&Transmit {
        path: first.path,
        contents: b"aabbc",
        segment_size: Some(2),
    });
    let mut answer = [0; 11];
    client.read_exact(&mut answer).await.expect("arrives");
    assert_eq!(&answer, b"\0\x02aa\0\x02bb\0\x01c");

    let mut stranger = TcpStream::connect(server).await.expect("listening");
    let mut stream = BytesMut::new();
    framing::encode(&check("nobody"), &mut stream).expect("short");
    stranger.write_all(&stream).await.expect("sent");
    assert_eq!(stranger.read(&mut answer).await.expect("an orderly end"), 0);
    fixture.stop().await;
}

#[tokio::test]
async fn a_client_of_our_relay_is_reached_without_a_socket() {
    let announced: SocketAddr = "203.0.113.5:7882".parse().expect("literal");
    let relayed: SocketAddr = "203.0.113.5:50000".parse().expect("literal");
    let fixture = Fixture::new(vec![announced]).await;
    let (inbox, mut received) = mpsc::channel(16);
    let _registration = fixture.mux.register("ufrag", ConnectionKey(1), inbox);
    let (relay_inbox, mut at_relay) = mpsc::channel(16);
    let _attachment = fixture.switch.attach(relayed, relay_inbox).expect("free");

    let _ = fixture.switch.deliver(relayed, announced, &check("ufrag"));
    let incoming = received.recv().await.expect("arrives");
    assert_eq!(
        (incoming.path.carrier, incoming.path.remote),
        (Carrier::Switch, relayed)
    );
    fixture.mux.send(&Transmit {
        path: incoming.path,
        contents: b"answer",
        segment_size: None,
    });
    let Datagram { from, to, payload } = at_relay.recv().await.expect("arrives");
    assert_eq!((from, to, &payload[..]), (announced, relayed, &b"answer"[..]));
    fixture.stop().await;
}
