//! The client of the `turn` crate over real sockets: two of them through the switch, one to the SFU's address, and the
//! life of the relay in the process.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use credentials::turn::TurnSecret;
use fabric::switch::{Delivery, Switch};
use relay::{Config, Protocol, RelayHandle, StartError};
use testkit::ports::PortBlock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use turn::client::{Client, ClientConfig};
use webrtc_util::conn::Conn;

const PATIENCE: Duration = Duration::from_secs(10);
const NEVER: u64 = 4_000_000_000;

struct Relay {
    handle: RelayHandle,
    secret: TurnSecret,
    switch: Switch,
    shutdown: CancellationToken,
}

impl Relay {
    fn start(sfu: Vec<SocketAddr>) -> Self {
        Self::start_with(Config::default(), sfu)
    }

    fn start_with(config: Config, sfu: Vec<SocketAddr>) -> Self {
        let config = Config {
            listen: vec!["127.0.0.1:0".parse().expect("literal")],
            ..config
        };
        let (secret, switch, shutdown) = (TurnSecret::new("s3cret"), Switch::new(), CancellationToken::new());
        let handle = relay::start(
            &config,
            secret.clone(),
            "example.org",
            switch.clone(),
            sfu,
            shutdown.clone(),
        )
        .expect("starts on a free port");
        Self {
            handle,
            secret,
            switch,
            shutdown,
        }
    }

    fn address(&self, wanted: Protocol) -> SocketAddr {
        self.handle
            .listeners()
            .iter()
            .find(|(protocol, _)| *protocol == wanted)
            .expect("listens")
            .1
    }

    async fn client(&self, user: &str) -> Client {
        let credentials = self.secret.mint(user, NEVER);
        let address = self.address(Protocol::Udp).to_string();
        let client = Client::new(ClientConfig {
            stun_serv_addr: address.clone(),
            turn_serv_addr: address,
            username: credentials.username,
            password: credentials.password,
            realm: "example.org".to_owned(),
            software: String::new(),
            rto_in_ms: 0,
            conn: Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds")),
            vnet: None,
        })
        .await
        .expect("a client");
        client.listen().await.expect("listens");
        client
    }
}

/// Sends until the other side answers once: permissions are installed by the first sends of either side.
async fn exchange(from: &impl Conn, to: &impl Conn, payload: &[u8]) {
    let target = to.local_addr().expect("relayed");
    let mut buffer = [0; 2000];
    let received = async {
        loop {
            from.send_to(payload, target).await.expect("sent");
            match tokio::time::timeout(Duration::from_millis(200), to.recv_from(&mut buffer)).await {
                Ok(received) => {
                    let (length, source) = received.expect("received");
                    if &buffer[..length] == payload {
                        return source;
                    }
                }
                Err(_) => continue,
            }
        }
    };
    let source = tokio::time::timeout(PATIENCE, received).await.expect("arrives");
    assert_eq!(source, from.local_addr().expect("relayed"));
}

#[tokio::test]
async fn two_clients_reach_each_other_without_a_relay_port() {
    let ports = PortBlock::claim();
    let relay = Relay::start_with(
        Config {
            // Somebody outside may be reached, so relayed addresses come from the range that is ours alone.
            allow_peers: vec!["192.0.2.0/24".parse().expect("literal")],
            relay_ports: ports.to_string().parse().expect("a range"),
            ..Config::default()
        },
        Vec::new(),
    );
    let (alice, bob) = (
        relay.client("@alice:example.org").await,
        relay.client("@bob:example.org").await,
    );
    let mapped = alice.send_binding_request().await.expect("STUN on the same port");
    assert_eq!(mapped.ip(), IpAddr::from([127, 0, 0, 1]));
    let a = alice.allocate().await.expect("allocated");
    let b = bob.allocate().await.expect("allocated");
    // Opens the permission at b for a.
    b.send_to(b"punch", a.local_addr().expect("relayed"))
        .await
        .expect("permitted");
    exchange(&a, &b, b"hello bob").await;
    exchange(&b, &a, b"hello alice").await;
    let stats = relay.handle.stats();
    assert_eq!((stats.allocations, stats.open_sockets), (2, 0));

    // The relayed port is a name, not a socket: anyone may bind it.
    std::net::UdpSocket::bind(a.local_addr().expect("relayed")).expect("no kernel socket holds the port");
    assert!(
        a.send_to(b"x", "127.0.0.2:9".parse().expect("literal")).await.is_err(),
        "a peer outside is denied"
    );
}

#[tokio::test]
async fn a_client_reaches_the_sfu_through_the_switch() {
    let sfu: SocketAddr = "192.0.2.200:7882".parse().expect("literal");
    let relay = Relay::start(vec![sfu]);
    let (inbox, mut received) = mpsc::channel(16);
    let _attached = relay.switch.attach(sfu, inbox).expect("free");
    let alice = relay.client("@alice:example.org").await;
    let a = alice.allocate().await.expect("allocated");
    a.send_to(b"binding request", sfu).await.expect("permitted");
    let datagram = tokio::time::timeout(PATIENCE, received.recv())
        .await
        .expect("arrives")
        .expect("open");
    assert_eq!(
        (datagram.from, &datagram.payload[..]),
        (a.local_addr().expect("relayed"), &b"binding request"[..])
    );
    assert_eq!(
        relay.switch.deliver(sfu, datagram.from, b"response"),
        Delivery::Delivered
    );
    let mut buffer = [0; 100];
    let (length, from) = tokio::time::timeout(PATIENCE, a.recv_from(&mut buffer))
        .await
        .expect("arrives")
        .expect("read");
    assert_eq!((&buffer[..length], from), (&b"response"[..], sfu));

    assert_eq!(relay.handle.users().await, ["@alice:example.org"]);
    assert_eq!(relay.handle.close_user("@alice:example.org").await, 1);
    assert_eq!(
        relay.switch.deliver(sfu, datagram.from, b"late"),
        Delivery::NotHere,
        "ended with the user"
    );
    assert_eq!(relay.handle.close_user("@alice:example.org").await, 0);
    assert!(relay.handle.users().await.is_empty());
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let mut relay = Relay::start(Vec::new());
    relay.secret = TurnSecret::new("another");
    assert!(relay.client("@eve:example.org").await.allocate().await.is_err());
    assert_eq!(relay.handle.stats().allocations, 0);
}

#[tokio::test]
async fn tcp_carries_stun_and_ends_on_nonsense() {
    let relay = Relay::start(Vec::new());
    let mut stream = TcpStream::connect(relay.address(Protocol::Tcp))
        .await
        .expect("connects");
    let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 12]].concat();
    for piece in request.chunks(7) {
        stream.write_all(piece).await.expect("written");
    }
    let mut header = [0; 20];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut header))
        .await
        .expect("answers")
        .expect("read");
    assert_eq!((&header[..2], &header[8..]), (&[1, 1][..], &[7; 12][..]));

    let mut other = TcpStream::connect(relay.address(Protocol::Tcp))
        .await
        .expect("connects");
    other.write_all(b"\x16\x03\x01 not for you").await.expect("written");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(PATIENCE, other.read_to_end(&mut rest))
        .await
        .expect("closed");
    assert!(read.is_err() || rest.is_empty());
}

#[tokio::test]
async fn stops_with_its_token_and_says_why_it_cannot_start() {
    let relay = Relay::start(Vec::new());
    let taken = Config {
        listen: vec![relay.address(Protocol::Udp)],
        ..Config::default()
    };
    let start = |config: &Config| {
        relay::start(
            config,
            TurnSecret::new("s"),
            "r",
            Switch::new(),
            Vec::new(),
            CancellationToken::new(),
        )
    };
    let error = start(&taken).expect_err("the port is taken");
    assert!(matches!(error, StartError::Listen { .. }));
    assert!(
        error.to_string().contains("turn.listen") && error.to_string().contains("another port"),
        "{error}"
    );
    assert!(matches!(
        start(&Config {
            listen: Vec::new(),
            ..Config::default()
        }),
        Err(StartError::NoListener)
    ));
    let twice = vec![
        "192.0.2.1".parse().expect("literal"),
        "192.0.2.2".parse().expect("literal"),
    ];
    assert!(matches!(
        start(&Config {
            external_ips: twice,
            ..Config::default()
        }),
        Err(StartError::TwoExternalIps(_))
    ));

    relay.shutdown.cancel();
    tokio::time::timeout(PATIENCE, relay.handle.stopped())
        .await
        .expect("tasks end");
    start(&taken).expect("the port is free again");
}

#[test]
fn the_configuration_knows_its_keys() {
    let parsed: Config = serde_json::from_str(
        r#"{"allow_peers": ["10.0.0.0/8"], "relay_ports": "50000-50010", "external_ips": ["203.0.113.1"]}"#,
    )
    .expect("parses");
    assert_eq!(parsed.relay_ports.to_string(), "50000-50010");
    assert!(serde_json::from_str::<Config>(r#"{"alow_peers": []}"#).is_err());
    assert!(serde_json::from_str::<Config>(r#"{"relay_ports": "50010-50000"}"#).is_err());
}
