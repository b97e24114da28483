//! coturn's client and peer, which know nothing of us, against the real listeners.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use credentials::turn::TurnSecret;
use fabric::switch::Switch;
use relay::{Config, Protocol, RelayHandle};
use testkit::ports::PortBlock;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const UCLIENT: &str = "/usr/bin/turnutils_uclient";
const PEER: &str = "/usr/bin/turnutils_peer";

fn start(config: Config) -> (RelayHandle, SocketAddr, CancellationToken) {
    let shutdown = CancellationToken::new();
    let relay = relay::start(
        &config,
        TurnSecret::new("north"),
        "example.org",
        Switch::new(),
        Vec::new(),
        shutdown.clone(),
    )
    .expect("starts on a free port");
    let address = relay
        .listeners()
        .iter()
        .find(|(protocol, _)| *protocol == Protocol::Udp)
        .expect("UDP")
        .1;
    (relay, address, shutdown)
}

fn outside(ports: &PortBlock) -> Config {
    Config {
        listen: vec!["127.0.0.1:0".parse().expect("literal")],
        allow_peers: vec!["127.0.0.0/8".parse().expect("literal")],
        relay_ports: ports.to_string().parse().expect("a range"),
        ..Config::default()
    }
}

fn inside(listen: &str) -> Config {
    Config {
        listen: vec![listen.parse().expect("literal")],
        ..Config::default()
    }
}

/// A free port for the peer, which cannot choose one itself.
fn peer() -> (Child, u16) {
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a free port")
        .port();
    let peer = Command::new(PEER)
        .args(["-L", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("turnutils_peer runs");
    (peer, port)
}

/// Runs the client and returns messages sent and received by it.
async fn uclient(server: SocketAddr, arguments: &[&str]) -> (u64, u64) {
    let output = Command::new(UCLIENT)
        .args([
            "-p",
            &server.port().to_string(),
            "-u",
            "alice",
            "-W",
            "north",
            "-z",
            "5",
        ])
        .args(arguments)
        .arg(server.ip().to_string())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), output)
        .await
        .expect("ends")
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let total = |name: &str| {
        text.lines()
            .rev()
            .filter(|line| line.contains("tot_recv_msgs="))
            .find_map(|line| {
                line.split(&format!("{name}="))
                    .nth(1)?
                    .split([',', ' '])
                    .next()?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or_else(|| panic!("no figures in {text}"))
    };
    (total("tot_send_msgs"), total("tot_recv_msgs"))
}

/// Whether the programs are there. Where they must be, their absence fails the test.
fn available() -> bool {
    let available = Path::new(UCLIENT).exists() && Path::new(PEER).exists();
    if !available {
        let reason =
            format!("{UCLIENT} and {PEER} (Debian package coturn) are not installed; tests/prepare installs them");
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        skipped(&reason);
    }
    available
}

fn skipped(reason: &str) {
    use std::io::Write;
    // Past the test runner's capture, so that it is seen.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_to_a_peer_outside() {
    if !available() {
        return;
    }
    let (ports, (_peer, port)) = (PortBlock::claim(), peer());
    let (relay, server, _shutdown) = start(outside(&ports));
    let port = port.to_string();
    let peer = ["-e", "127.0.0.1", "-r", &port, "-n", "20", "-m", "2"];
    for (name, flags) in [
        ("channels over UDP, RTP and RTCP port pairs", &[][..]),
        ("Send indications over UDP", &["-s", "-c"]),
        ("channels over UDP, dont fragment, many requests", &["-g", "-G", "-c"]),
        ("channels over TCP", &["-t", "-c"]),
        ("Send indications over TCP", &["-t", "-s", "-c"]),
    ] {
        let (sent, received) = uclient(server, &[&peer[..], flags].concat()).await;
        assert!(sent >= 40, "{name}: {sent} sent");
        assert_eq!(sent, received, "{name}");
    }
    assert!(relay.stats().sent_packets > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_between_two_clients_without_a_port() {
    if !available() {
        return;
    }
    let (relay, server, _shutdown) = start(inside("127.0.0.1:0"));
    for (name, flags) in [
        ("UDP", &["-y", "-c"][..]),
        ("UDP with RTCP", &["-y"]),
        ("Send", &["-y", "-c", "-s"]),
        ("TCP", &["-y", "-c", "-t"]),
    ] {
        let (sent, received) = uclient(server, &[&["-n", "20", "-m", "4"], flags].concat()).await;
        assert!(sent >= 80, "{name}: {sent} sent");
        assert_eq!(sent, received, "{name}");
        assert_eq!(relay.stats().open_sockets, 0, "{name}: no relay port was needed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_between_two_clients_over_ipv6() {
    if !available() {
        return;
    }
    if let Err(error) = std::net::UdpSocket::bind("[::1]:0") {
        skipped(&format!("this machine has no IPv6 loopback: {error}"));
        return;
    }
    let (relay, server, _shutdown) = start(inside("[::1]:0"));
    let (sent, received) = uclient(server, &["-x", "-y", "-c", "-n", "20", "-m", "2"]).await;
    assert!(sent >= 40 && sent == received, "{sent} sent, {received} received");
    assert_eq!(relay.stats().open_sockets, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survives_the_negative_tests_of_the_client() {
    if !available() {
        return;
    }
    let (ports, (_peer, port)) = (PortBlock::claim(), peer());
    let (relay, server, _shutdown) = start(outside(&ports));
    let port = port.to_string();
    let peer = ["-e", "127.0.0.1", "-r", &port, "-n", "10", "-m", "2", "-c"];
    for flags in [&["-N"][..], &["-R"]] {
        // What these runs send is malformed on purpose: their own figures mean nothing.
        let arguments: Vec<&str> = [&peer[..], flags].concat();
        let before = relay.stats().received_packets;
        let run = Command::new(UCLIENT)
            .args(["-p", &server.port().to_string(), "-u", "alice", "-W", "north"])
            .args(&arguments)
            .arg(server.ip().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .status();
        // It goes on for as long as it is let; how it ends does not matter.
        let _ = tokio::time::timeout(Duration::from_secs(5), run).await;
        let heard = relay.stats().received_packets - before;
        assert!(heard >= 5, "{flags:?} sent {heard} packets only");
    }
    let (sent, received) = uclient(server, &peer).await;
    assert!(sent >= 20, "{sent} sent");
    assert_eq!(sent, received, "still serves");
}
