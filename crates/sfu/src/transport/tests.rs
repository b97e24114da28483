//! Two connections across a simulated network that loses, delays and reorders. The test plays the controlling ICE agent
//! of both, as a browser would; everything else is the real thing on both sides.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::stun::testing::request;
use super::*;
use crate::media::header_extensions::ExtensionBlock;
use crate::media::rtp::{OutgoingRtp, RtpHeader};

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
    Instant::now()
}

fn address(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

fn path(port: u16) -> Path {
    Path {
        carrier: Carrier::Udp,
        remote: address(port),
        local: None,
    }
}

/// Virtual time for a handshake: less than the 30 s after which a connection gives up. Certificates and keys are random, so
/// datagrams fall differently in each run; retransmissions double from one second, and a run of bad luck takes four of them.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(29);

const SERVER: usize = 0;
const CLIENT: usize = 1;
/// The path over which each side sees the other at first.
const PORTS: [u16; 2] = [1000, 2000];

/// A datagram under way, ordered by its arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: Instant,
    order: u64,
    to: usize,
    datagram: Vec<u8>,
}

struct Network {
    now: Instant,
    peers: [PeerTransport; 2],
    events: [Vec<PeerEvent>; 2],
    flying: BinaryHeap<Reverse<Flight>>,
    order: u64,
    loss: f64,
    random: StdRng,
    /// Where the server's last datagram went.
    server_sent_to: Option<Path>,
    next_keep_alive: Instant,
    keep_alive: bool,
}

impl Network {
    fn new(loss: f64, seed: u64) -> Self {
        let now = start();
        let peer = || {
            let certificate = Certificate::generate().expect("the system has randomness");
            let params = PeerParams {
                local: IceCredentials::random(),
                ice_mode: IceMode::Lite,
                certificate: certificate.clone(),
            };
            (PeerTransport::new(params, now), certificate.fingerprint())
        };
        let (server, server_fingerprint) = peer();
        let (client, client_fingerprint) = peer();
        let mut network = Self {
            now,
            peers: [server, client],
            events: [Vec::new(), Vec::new()],
            flying: BinaryHeap::new(),
            order: 0,
            loss,
            random: StdRng::seed_from_u64(seed),
            server_sent_to: None,
            next_keep_alive: now,
            keep_alive: true,
        };
        network.describe(SERVER, client_fingerprint, DtlsRole::Passive);
        network.describe(CLIENT, server_fingerprint, DtlsRole::Active);
        network
    }

    fn describe(&mut self, side: usize, fingerprint: Fingerprint, role: DtlsRole) {
        let ice = self.peers[1 - side].local_credentials().clone();
        self.peers[side].set_remote(self.now, RemoteParams { ice, fingerprint, role });
    }

    /// The controlling agent's check over one path of one side.
    fn nominate(&mut self, side: usize, port: u16) {
        let check = request(self.peers[side].local_credentials(), true, false);
        self.peers[side].handle_datagram(self.now, path(port), BytesMut::from(&check[..]));
        self.collect();
    }

    fn collect(&mut self) {
        for side in [SERVER, CLIENT] {
            while let Some(event) = self.peers[side].poll_event() {
                self.events[side].push(event);
            }
            while let Some(transmit) = self.peers[side].poll_transmit() {
                if side == SERVER {
                    self.server_sent_to = Some(transmit.path);
                }
                for datagram in transmit.datagrams() {
                    if self.random.random::<f64>() < self.loss {
                        continue;
                    }
                    let delay = Duration::from_micros(self.random.random_range(10_000..30_000));
                    self.order += 1;
                    let flight = Flight {
                        at: self.now + delay,
                        order: self.order,
                        to: 1 - side,
                        datagram: datagram.to_vec(),
                    };
                    self.flying.push(Reverse(flight));
                }
            }
        }
    }

    /// Runs for `duration`, or until `done` says so; whether it did.
    fn run(&mut self, duration: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + duration;
        self.collect();
        while !done(self) {
            let timers = self.peers.iter().filter_map(PeerTransport::poll_timeout).min();
            let arrival = self.flying.peek().map(|f| f.0.at);
            let keep_alive = self.keep_alive.then_some(self.next_keep_alive);
            let Some(next) = [timers, arrival, keep_alive]
                .into_iter()
                .flatten()
                .min()
                .filter(|at| *at <= end)
            else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            if keep_alive.is_some_and(|at| at <= self.now) {
                self.next_keep_alive = self.now + Duration::from_millis(2500);
                for side in [SERVER, CLIENT] {
                    let check = request(self.peers[side].local_credentials(), false, false);
                    self.peers[side].handle_datagram(self.now, path(PORTS[1 - side]), BytesMut::from(&check[..]));
                }
            }
            while self.flying.peek().is_some_and(|f| f.0.at <= self.now) {
                let Some(Reverse(flight)) = self.flying.pop() else {
                    break;
                };
                let from = path(PORTS[1 - flight.to]);
                self.peers[flight.to].handle_datagram(self.now, from, BytesMut::from(&flight.datagram[..]));
            }
            for peer in &mut self.peers {
                if peer.poll_timeout().is_some_and(|at| at <= self.now) {
                    peer.handle_timeout(self.now);
                }
            }
            self.collect();
        }
        true
    }

    fn connect(&mut self) -> bool {
        self.nominate(SERVER, PORTS[CLIENT]);
        self.nominate(CLIENT, PORTS[SERVER]);
        self.run(HANDSHAKE_PATIENCE, |n| n.peers.iter().all(PeerTransport::is_connected))
    }

    fn channel(&self, side: usize, label: &str) -> Option<ChannelId> {
        self.events[side].iter().find_map(|event| match event {
            PeerEvent::ChannelOpen { id, label: l, .. } if l == label => Some(*id),
            _ => None,
        })
    }

    fn messages(&self, side: usize) -> Vec<(MessageKind, Vec<u8>)> {
        self.events[side]
            .iter()
            .filter_map(|event| match event {
                PeerEvent::ChannelMessage { kind, data, .. } => Some((*kind, data.to_vec())),
                _ => None,
            })
            .collect()
    }

    fn failure(&self, side: usize) -> Option<&str> {
        self.events[side].iter().find_map(|event| match event {
            PeerEvent::Failed { reason } => Some(reason.as_str()),
            _ => None,
        })
    }
}

fn reliable(label: &str) -> ChannelOptions {
    ChannelOptions {
        label: label.to_owned(),
        ordered: true,
        reliability: Reliability::Reliable,
    }
}

fn rtp<'a>(sequence: u64, extensions: &'a ExtensionBlock, payload: &'a [u8]) -> OutgoingRtp<'a> {
    OutgoingRtp {
        marker: false,
        payload_type: 96,
        sequence,
        timestamp: 1,
        ssrc: 5,
        extensions,
        prefix: &[],
        payload,
        padding: 0,
    }
}

#[test]
fn thirty_handshakes_of_thirty_survive_a_bad_link() {
    for seed in 0..30 {
        let mut network = Network::new(0.2, seed);
        assert!(network.connect(), "seed {seed}: {:?}", network.events);
        for side in [SERVER, CLIENT] {
            let profile = network.events[side].iter().find_map(|event| match event {
                PeerEvent::Connected { profile } => Some(*profile),
                _ => None,
            });
            assert_eq!(profile, Some(SrtpProfile::AeadAes256Gcm));
        }
    }
}

#[test]
fn another_certificate_than_the_signalled_one_is_refused() {
    let mut network = Network::new(0.0, 1);
    // A client that believes the server, and a server that was told of somebody else.
    let honest = Certificate::generate().expect("the system has randomness");
    let other = Certificate::generate().expect("the system has randomness");
    let params = |certificate| PeerParams {
        local: IceCredentials::random(),
        ice_mode: IceMode::Lite,
        certificate,
    };
    network.peers[SERVER] = PeerTransport::new(params(honest.clone()), network.now);
    network.peers[CLIENT] = PeerTransport::new(params(other.clone()), network.now);
    network.describe(SERVER, honest.fingerprint(), DtlsRole::Passive);
    network.describe(CLIENT, honest.fingerprint(), DtlsRole::Active);
    assert!(!network.connect());
    assert_eq!(
        network.failure(SERVER),
        Some("the client's certificate is not the one it signalled")
    );
    assert!(
        !network.events[SERVER]
            .iter()
            .any(|e| matches!(e, PeerEvent::Connected { .. }))
    );
    let block = ExtensionBlock::default();
    assert!(!network.peers[SERVER].send_rtp(&rtp(1, &block, &[1])));
    assert_eq!(network.peers[SERVER].poll_timeout(), None, "it is over");
}

#[test]
fn a_client_hello_may_come_before_the_description() {
    let mut network = Network::new(0.0, 3);
    let certificate = Certificate::generate().expect("the system has randomness");
    let server_fingerprint = certificate.fingerprint();
    let local = IceCredentials::random();
    network.peers[SERVER] = PeerTransport::new(
        PeerParams {
            local,
            ice_mode: IceMode::Lite,
            certificate,
        },
        network.now,
    );
    let client_certificate = Certificate::generate().expect("the system has randomness");
    let client_fingerprint = client_certificate.fingerprint();
    let params = PeerParams {
        local: IceCredentials::random(),
        ice_mode: IceMode::Lite,
        certificate: client_certificate,
    };
    network.peers[CLIENT] = PeerTransport::new(params, network.now);
    network.describe(CLIENT, server_fingerprint, DtlsRole::Active);
    network.nominate(SERVER, PORTS[CLIENT]);
    network.nominate(CLIENT, PORTS[SERVER]);
    assert!(!network.run(Duration::from_millis(200), |n| n.peers[SERVER].is_connected()));
    network.describe(SERVER, client_fingerprint, DtlsRole::Passive);
    assert!(
        network.run(Duration::from_millis(500), |n| n.peers[SERVER].is_connected()),
        "no flight was lost"
    );
}

#[test]
fn media_flows_both_ways_and_the_latest_nomination_is_followed() {
    let mut network = Network::new(0.0, 4);
    assert!(network.connect());
    let block = ExtensionBlock::default();
    let count = |n: &Network, side: usize| n.events[side].iter().filter(|e| matches!(e, PeerEvent::Rtp(_))).count();
    for sequence in 0..10 {
        assert!(network.peers[SERVER].send_rtp(&rtp(sequence, &block, &[7; 100])));
        assert!(network.peers[CLIENT].send_rtp(&rtp(sequence, &block, &[8; 100])));
    }
    assert!(network.peers[SERVER].send_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 5]));
    assert!(network.run(Duration::from_secs(1), |n| count(n, SERVER) == 10
        && count(n, CLIENT) == 10));
    let packet = network.events[CLIENT].iter().find_map(|event| match event {
        PeerEvent::Rtp(packet) => Some(packet.clone()),
        _ => None,
    });
    let packet = packet.expect("ten came");
    let header = RtpHeader::parse(&packet).expect("well-formed");
    assert_eq!(packet[header.payload_start..], [7; 100]);
    assert!(
        network.events[CLIENT].contains(&PeerEvent::Rtcp(bytes::Bytes::from_static(&[
            0x80, 201, 0, 1, 0, 0, 0, 5
        ])))
    );

    network.nominate(SERVER, 7777);
    network.peers[SERVER].send_rtp(&rtp(10, &block, &[9]));
    network.collect();
    assert_eq!(network.server_sent_to, Some(path(7777)));
    network.nominate(SERVER, PORTS[CLIENT]);
    network.peers[SERVER].send_rtp(&rtp(11, &block, &[9]));
    network.collect();
    assert_eq!(network.server_sent_to, Some(path(PORTS[CLIENT])));
}

#[test]
fn an_ice_restart_keeps_the_dtls_connection() {
    let mut network = Network::new(0.0, 5);
    assert!(network.connect());
    let client = IceCredentials::random();
    assert!(network.peers[SERVER].is_restart(&client));
    network.peers[SERVER].restart_ice(network.now, IceCredentials::random(), client);
    let block = ExtensionBlock::default();
    assert!(network.peers[SERVER].send_rtp(&rtp(1, &block, &[1])), "media flows on");
    network.nominate(SERVER, 3000);
    assert!(network.peers[SERVER].send_rtp(&rtp(2, &block, &[2])));
    network.collect();
    assert_eq!(network.server_sent_to, Some(path(3000)));
    assert!(network.run(Duration::from_secs(1), |n| {
        n.events[CLIENT]
            .iter()
            .filter(|e| matches!(e, PeerEvent::Rtp(_)))
            .count()
            == 2
    }));
    let connected = network.events[SERVER]
        .iter()
        .filter(|e| matches!(e, PeerEvent::Connected { .. }))
        .count();
    assert_eq!(connected, 1);
}

#[test]
fn channels_of_both_sides_carry_large_messages_over_a_lossy_link() {
    let mut network = Network::new(0.05, 6);
    network.peers[SERVER].open_channel(network.now, reliable("_reliable_of_server"));
    assert!(network.connect());
    let now = network.now;
    network.peers[CLIENT].open_channel(now, reliable("_reliable"));
    let lossy = ChannelOptions {
        label: "_lossy".to_owned(),
        ordered: false,
        reliability: Reliability::MaxRetransmits(0),
    };
    network.peers[CLIENT].open_channel(now, lossy.clone());
    assert!(network.run(Duration::from_secs(20), |n| {
        ["_reliable", "_lossy", "_reliable_of_server"]
            .iter()
            .all(|label| n.channel(SERVER, label).is_some() && n.channel(CLIENT, label).is_some())
    }));
    assert!(network.events[SERVER].iter().any(|event| matches!(
        event,
        PeerEvent::ChannelOpen { label, ordered: false, reliability: Reliability::MaxRetransmits(0), .. } if label == "_lossy"
    )));

    let large: Vec<u8> = (0..65_536_u32).map(|i| (i % 251) as u8).collect();
    let id = network.channel(CLIENT, "_reliable").expect("open");
    network.peers[CLIENT]
        .send_message(network.now, id, MessageKind::Binary, &large)
        .expect("open");
    network.peers[CLIENT]
        .send_message(network.now, id, MessageKind::Text, b"")
        .expect("open");
    assert!(network.run(Duration::from_secs(60), |n| n.messages(SERVER).len() == 2));
    assert_eq!(
        network.messages(SERVER),
        [(MessageKind::Binary, large.clone()), (MessageKind::Text, Vec::new())]
    );
    let id = network.channel(SERVER, "_reliable").expect("open");
    network.peers[SERVER]
        .send_message(network.now, id, MessageKind::Binary, &large)
        .expect("open");
    assert!(network.run(Duration::from_secs(60), |n| n.messages(CLIENT).len() == 1));
    assert_eq!(network.messages(CLIENT), [(MessageKind::Binary, large)]);

    let id = network.channel(CLIENT, "_lossy").expect("open");
    for _ in 0..40 {
        network.peers[CLIENT]
            .send_message(network.now, id, MessageKind::Binary, b"now or never")
            .expect("open");
        network.run(Duration::from_millis(20), |_| false);
    }
    network.run(Duration::from_secs(2), |_| false);
    assert!(
        network.messages(SERVER).len() > 30,
        "most arrive: {}",
        network.messages(SERVER).len()
    );

    network.peers[CLIENT].close_channel(network.now, id);
    let server_id = network.channel(SERVER, "_lossy").expect("open");
    assert!(network.run(Duration::from_secs(10), |n| {
        n.events[SERVER].contains(&PeerEvent::ChannelClosed { id: server_id })
    }));
    let id = network.channel(CLIENT, "_reliable").expect("still open");
    network.peers[CLIENT]
        .send_message(network.now, id, MessageKind::Text, b"alive")
        .expect("the association lives");
    assert!(network.run(Duration::from_secs(10), |n| n.messages(SERVER).last()
        == Some(&(MessageKind::Text, b"alive".to_vec()))));
}

#[test]
fn a_silent_client_is_disconnected_and_then_failed() {
    let mut network = Network::new(0.0, 7);
    assert!(network.connect());
    network.keep_alive = false;
    network.loss = 1.0;
    network.run(Duration::from_secs(12), |_| false);
    assert!(network.events[SERVER].contains(&PeerEvent::Disconnected));
    assert_eq!(network.failure(SERVER), None);
    network.run(Duration::from_secs(6), |_| false);
    assert_eq!(network.failure(SERVER), Some("the client fell silent"));
}

#[test]
fn closing_tells_the_client() {
    let mut network = Network::new(0.0, 8);
    assert!(network.connect());
    network.peers[SERVER].close();
    network.run(Duration::from_secs(1), |n| n.failure(CLIENT).is_some());
    assert_eq!(network.failure(CLIENT), Some("the client closed the connection"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a stranger or a client sends at any stage, nothing panics.
    #[test]
    fn hostile_datagrams_never_panic(datagrams in proptest::collection::vec((prop_oneof![0u8..4, 20u8..64, 128u8..192, any::<u8>()], proptest::collection::vec(any::<u8>(), 0..300)), 1..40), connected: bool) {
        let mut network = Network::new(0.0, 9);
        if connected {
            prop_assert!(network.connect());
        } else {
            network.nominate(SERVER, PORTS[CLIENT]);
        }
        for (first, rest) in datagrams {
            let datagram = [&[first][..], &rest].concat();
            network.peers[SERVER].handle_datagram(network.now, path(PORTS[CLIENT]), BytesMut::from(&datagram[..]));
        }
        network.collect();
    }
}
