//! The server without a socket: tables of requests and the answers that the RFCs want.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use credentials::turn::TurnSecret;
use fabric::switch::{Datagram, Delivery, Switch};
use proptest::prelude::*;
use relay::{
    Config,
    message::{Class, Encoder, Family, Message, Method, TransactionId},
    server::{Command, Dropped, FiveTuple, Now, Outcome, Parts, Server, ToPeer, Transport},
};
use tokio::sync::mpsc;

const REALM: &str = "example.org";
const UNIX: u64 = 1_800_000_000;
const UDP: u8 = 17;

/// Attribute numbers as RFC 8489 §18.3 and RFC 8656 §18 give them, read here by a second, simpler decoder.
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
const LIFETIME: u16 = 0x000D;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const RESERVATION_TOKEN: u16 = 0x0022;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const FINGERPRINT: u16 = 0x8028;
const ADDRESS_ERROR_CODE: u16 = 0x8001;

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("literal")
}

fn client(port: u16) -> FiveTuple {
    FiveTuple {
        client: SocketAddr::from(([198, 51, 100, 7], port)),
        server: addr("203.0.113.1:3478"),
        transport: Transport::Udp,
    }
}

struct Response {
    success: bool,
    transaction_id: [u8; 12],
    attributes: HashMap<u16, Vec<u8>>,
    order: Vec<u16>,
}

impl Response {
    fn read(bytes: &[u8]) -> Self {
        assert_eq!(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 20, bytes.len());
        let mut response = Self {
            success: bytes[0] & 1 == 1 && bytes[1] & 0x10 == 0,
            transaction_id: bytes[8..20].try_into().expect("twelve"),
            attributes: HashMap::new(),
            order: Vec::new(),
        };
        let mut rest = &bytes[20..];
        while !rest.is_empty() {
            let kind = u16::from_be_bytes([rest[0], rest[1]]);
            let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            response.attributes.insert(kind, rest[4..4 + length].to_vec());
            response.order.push(kind);
            rest = &rest[4 + length.next_multiple_of(4)..];
        }
        response
    }

    fn code(&self) -> u16 {
        match self.attributes.get(&ERROR_CODE) {
            Some(value) => u16::from(value[2]) * 100 + u16::from(value[3]),
            None => 0,
        }
    }

    fn u32(&self, kind: u16) -> u32 {
        u32::from_be_bytes(self.attributes[&kind][..].try_into().expect("four"))
    }

    fn address(&self, kind: u16) -> SocketAddr {
        let value = &self.attributes[&kind];
        let port = u16::from_be_bytes([value[2], value[3]]) ^ 0x2112;
        let mut pad = vec![0x21, 0x12, 0xA4, 0x42];
        pad.extend_from_slice(&self.transaction_id);
        let octets: Vec<u8> = value[4..].iter().zip(pad).map(|(octet, pad)| octet ^ pad).collect();
        let ip: IpAddr = match <[u8; 4]>::try_from(&octets[..]) {
            Ok(v4) => v4.into(),
            Err(_) => <[u8; 16]>::try_from(&octets[..]).expect("sixteen").into(),
        };
        SocketAddr::new(ip, port)
    }
}

struct Fixture {
    server: Server,
    switch: Switch,
    inbox: mpsc::Receiver<Datagram>,
    now: Now,
    next_transaction: u32,
    /// Relayed addresses whose sockets were to be closed.
    closed: Vec<SocketAddr>,
}

impl Fixture {
    fn new(config: Config) -> Self {
        let (sender, inbox) = mpsc::channel(64);
        let switch = Switch::new();
        let parts = Parts {
            secret: TurnSecret::new("secret"),
            realm: REALM.to_owned(),
            switch: switch.clone(),
            inbox: sender,
            sfu_media_addresses: vec![addr("203.0.113.9:7882")],
            local_ips: vec!["2001:db8::1".parse().expect("literal")],
            own_ips: vec!["192.0.2.250".parse().expect("literal")],
            seed: [7; 32],
        };
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin; the tests add to it")]
        let instant = Instant::now();
        Self {
            server: Server::new(&config, parts),
            switch,
            inbox,
            now: Now { instant, unix: UNIX },
            next_transaction: 1,
            closed: Vec::new(),
        }
    }

    fn open() -> Self {
        Self::new(Config {
            allow_peers: vec!["192.0.2.0/24".parse().expect("literal")],
            ..Config::default()
        })
    }

    fn advance(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix += seconds;
        self.server.handle_timeout(self.now.instant);
    }

    fn transaction(&mut self) -> TransactionId {
        self.next_transaction += 1;
        let mut id = [0x5A; 12];
        id[..4].copy_from_slice(&self.next_transaction.to_be_bytes());
        TransactionId(id)
    }

    /// Sends raw bytes and reads the one response.
    fn send(&mut self, from: FiveTuple, bytes: &[u8]) -> Response {
        assert!(
            matches!(self.server.handle_client(self.now, from, bytes), Outcome::Handled),
            "no request"
        );
        let (to, message) = loop {
            match self.server.poll_command() {
                Some(Command::Respond { to, message }) => break (to, message),
                Some(Command::OpenSockets { to, opened, .. }) => break (to, opened),
                Some(Command::CloseSocket { relayed }) => self.closed.push(relayed),
                other => panic!("expected a response, got {other:?}"),
            }
        };
        assert_eq!(to, from);
        Response::read(&message)
    }

    fn nonce(&mut self, from: FiveTuple) -> Vec<u8> {
        let id = self.transaction();
        let challenge = self.send(from, &Encoder::new(Class::Request, Method::Allocate, id).finish());
        assert_eq!(challenge.code(), 401);
        challenge.attributes[&NONCE].clone()
    }

    /// A request signed by `user`.
    fn signed(
        &mut self,
        from: FiveTuple,
        user: &str,
        method: Method,
        fill: impl FnOnce(Encoder) -> Encoder,
    ) -> Vec<u8> {
        let nonce = self.nonce(from);
        let id = self.transaction();
        sign(
            fill(Encoder::new(Class::Request, method, id)),
            user,
            UNIX + 1000,
            &nonce,
        )
    }

    fn request(&mut self, from: FiveTuple, method: Method, fill: impl FnOnce(Encoder) -> Encoder) -> Response {
        let bytes = self.signed(from, "alice", method, fill);
        self.send(from, &bytes)
    }

    fn allocate(&mut self, from: FiveTuple) -> SocketAddr {
        let response = self.request(from, Method::Allocate, |request| request.requested_transport(UDP));
        assert!(response.success, "{}", response.code());
        response.address(XOR_RELAYED_ADDRESS)
    }

    fn permit(&mut self, from: FiveTuple, peer: SocketAddr) -> u16 {
        self.request(from, Method::CreatePermission, |request| request.xor_peer_address(peer))
            .code()
    }

    fn bind_channel(&mut self, from: FiveTuple, number: u16, peer: SocketAddr) -> u16 {
        self.request(from, Method::ChannelBind, |request| {
            request.channel_number(number).xor_peer_address(peer)
        })
        .code()
    }
}

fn key(user: &str, expires: u64) -> (String, hmac::Key) {
    let secret = TurnSecret::new("secret");
    let username = secret.mint(user, expires).username;
    let key = secret.long_term_key(&username, REALM);
    (
        username,
        hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()),
    )
}

fn sign(request: Encoder, user: &str, expires: u64, nonce: &[u8]) -> Vec<u8> {
    let (username, key) = key(user, expires);
    request
        .username(&username)
        .realm(REALM)
        .nonce(nonce)
        .integrity(&key)
        .fingerprint()
        .finish()
}

fn channel_data(number: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short");
    [&number.to_be_bytes()[..], &length.to_be_bytes(), payload].concat()
}

fn send_indication(peer: SocketAddr, payload: &[u8]) -> Vec<u8> {
    Encoder::new(Class::Indication, Method::Send, TransactionId([3; 12]))
        .xor_peer_address(peer)
        .data(payload)
        .finish()
}

#[test]
fn binding_answers_with_the_address_seen() {
    let mut fixture = Fixture::open();
    let request = Encoder::new(Class::Request, Method::Binding, TransactionId([1; 12]));
    let response = fixture.send(client(4000), &request.fingerprint().finish());
    assert!(response.success);
    assert_eq!(response.address(XOR_MAPPED_ADDRESS), client(4000).client);
    assert_eq!(response.order.last(), Some(&FINGERPRINT), "as the request had one");

    let unknown = Encoder::new(Class::Request, Method::Binding, TransactionId([1; 12]))
        .attribute(0x0003, &[0; 4])
        .finish();
    let response = fixture.send(client(4000), &unknown);
    assert_eq!(
        (response.code(), &response.attributes[&UNKNOWN_ATTRIBUTES][..]),
        (420, &[0, 3][..])
    );
    assert!(!response.order.contains(&FINGERPRINT));
}

#[test]
fn allocate_answers_as_rfc_8656_section_7_2() {
    type Fill = fn(Encoder) -> Encoder;
    let table: &[(&str, Fill, u16)] = &[
        ("plain", |r| r.requested_transport(UDP), 0),
        ("no transport", |r| r, 400),
        ("TCP to peers", |r| r.requested_transport(6), 442),
        ("malformed transport", |r| r.attribute(0x0019, &[17]), 400),
        (
            "unknown required attribute",
            |r| r.requested_transport(UDP).attribute(0x7FFF, &[]),
            420,
        ),
        (
            "unknown optional attribute",
            |r| r.requested_transport(UDP).attribute(0xFFFF, &[1, 2, 3]),
            0,
        ),
        ("dont fragment", |r| r.requested_transport(UDP).dont_fragment(), 0),
        ("IPv4", |r| r.requested_transport(UDP).requested_family(Family::V4), 0),
        ("IPv6", |r| r.requested_transport(UDP).requested_family(Family::V6), 0),
        (
            "family nobody knows",
            |r| r.requested_transport(UDP).attribute(0x0017, &[9, 0, 0, 0]),
            440,
        ),
        (
            "both families",
            |r| r.requested_transport(UDP).additional_family(Family::V6),
            0,
        ),
        (
            "additional IPv4",
            |r| r.requested_transport(UDP).additional_family(Family::V4),
            400,
        ),
        (
            "requested and additional",
            |r| {
                r.requested_transport(UDP)
                    .requested_family(Family::V4)
                    .additional_family(Family::V6)
            },
            400,
        ),
        ("even port", |r| r.requested_transport(UDP).even_port(false), 0),
        ("even port and next", |r| r.requested_transport(UDP).even_port(true), 0),
        (
            "next with additional family",
            |r| r.requested_transport(UDP).even_port(true).additional_family(Family::V6),
            400,
        ),
        (
            "token nobody gave",
            |r| r.requested_transport(UDP).reservation_token([1; 8]),
            508,
        ),
        (
            "token and even port",
            |r| r.requested_transport(UDP).reservation_token([1; 8]).even_port(false),
            400,
        ),
        (
            "token and family",
            |r| {
                r.requested_transport(UDP)
                    .reservation_token([1; 8])
                    .requested_family(Family::V4)
            },
            400,
        ),
    ];
    for (name, fill, code) in table {
        let mut fixture = Fixture::open();
        let response = fixture.request(client(4000), Method::Allocate, fill);
        assert_eq!(response.code(), *code, "{name}");
        assert_eq!(response.success, *code == 0, "{name}");
        assert!(
            response.order.contains(&MESSAGE_INTEGRITY),
            "{name}: a response to a proven request is signed"
        );
        assert_eq!(fixture.server.allocations(), usize::from(*code == 0), "{name}");
    }
}

#[test]
fn the_response_tells_addresses_and_lifetime() {
    let mut fixture = Fixture::open();
    for (requested, granted) in [
        (None, 600),
        (Some(30), 600),
        (Some(0), 600),
        (Some(1200), 1200),
        (Some(u32::MAX), 3600),
    ] {
        let from = client(5000 + u16::try_from(granted).expect("small"));
        let from = FiveTuple {
            client: SocketAddr::new(from.client.ip(), fixture.transaction().0[3].into()),
            ..from
        };
        let response = fixture.request(from, Method::Allocate, |r| {
            let r = r.requested_transport(UDP);
            match requested {
                Some(seconds) => r.lifetime(seconds),
                None => r,
            }
        });
        assert_eq!(response.u32(LIFETIME), granted);
        assert_eq!(response.address(XOR_MAPPED_ADDRESS), from.client);
        let relayed = response.address(XOR_RELAYED_ADDRESS);
        assert_eq!(relayed.ip(), from.server.ip());
        assert!(fixture.switch.is_here(relayed));
    }
}

#[test]
fn a_retransmitted_allocate_gets_the_same_answer_and_another_one_437() {
    let mut fixture = Fixture::open();
    let request = fixture.signed(client(4000), "alice", Method::Allocate, |r| {
        r.requested_transport(UDP).even_port(true)
    });
    let first = fixture.send(client(4000), &request);
    let again = fixture.send(client(4000), &request);
    for kind in [XOR_RELAYED_ADDRESS, RESERVATION_TOKEN, XOR_MAPPED_ADDRESS, LIFETIME] {
        assert_eq!(first.attributes[&kind], again.attributes[&kind]);
    }
    assert_eq!(fixture.server.allocations(), 1);
    assert_eq!(
        fixture
            .request(client(4000), Method::Allocate, |r| r.requested_transport(UDP))
            .code(),
        437
    );
    for method in [Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        assert_eq!(
            fixture.request(client(4001), method, |r| r).code(),
            437,
            "{method:?} without an allocation"
        );
    }
}

#[test]
fn a_reserved_port_is_the_next_one_and_is_given_once() {
    let mut fixture = Fixture::open();
    let first = fixture.request(client(1), Method::Allocate, |r| {
        r.requested_transport(UDP).even_port(true)
    });
    let token: [u8; 8] = first.attributes[&RESERVATION_TOKEN][..].try_into().expect("eight");
    let redeem = |r: Encoder| r.requested_transport(UDP).reservation_token(token);
    let second = fixture.request(client(2), Method::Allocate, redeem);
    let (even, odd) = (first.address(XOR_RELAYED_ADDRESS), second.address(XOR_RELAYED_ADDRESS));
    assert!(even.port().is_multiple_of(2));
    assert_eq!(odd.port(), even.port() + 1);
    assert_eq!(fixture.request(client(3), Method::Allocate, redeem).code(), 508);
}

#[test]
fn both_families_live_and_die_apart() {
    let mut fixture = Fixture::new(Config {
        external_ips: vec!["203.0.113.1".parse().expect("literal")],
        ..Config::default()
    });
    let response = fixture.request(client(1), Method::Allocate, |r| {
        r.requested_transport(UDP).additional_family(Family::V6)
    });
    assert!(response.success && !response.attributes.contains_key(&ADDRESS_ERROR_CODE));
    assert_eq!(fixture.permit(client(1), addr("203.0.113.1:1")), 0);
    assert_eq!(fixture.permit(client(1), addr("[2001:db8::1]:1")), 0);
    let end_v6 = |r: Encoder| r.requested_family(Family::V6).lifetime(0);
    assert_eq!(fixture.request(client(1), Method::Refresh, end_v6).code(), 0);
    assert_eq!(fixture.permit(client(1), addr("[2001:db8::1]:1")), 443);
    assert_eq!(fixture.request(client(1), Method::Refresh, end_v6).code(), 443);
    assert_eq!(fixture.permit(client(1), addr("203.0.113.1:1")), 0);
    assert_eq!(fixture.server.allocations(), 1);
}

#[test]
fn authentication_answers_as_rfc_8489_section_9_2_4() {
    let mut fixture = Fixture::open();
    let from = client(4000);
    let nonce = fixture.nonce(from);
    let other_nonce = fixture.nonce(client(4001));
    let (username, good) = key("alice", UNIX + 10);
    let (_, wrong) = key("mallory", UNIX + 10);
    let base = || Encoder::new(Class::Request, Method::Allocate, TransactionId([9; 12])).requested_transport(UDP);
    let whole = |nonce: &[u8]| base().username(&username).realm(REALM).nonce(nonce);
    let (expired, expired_key) = key("alice", UNIX);
    let table = [
        ("no integrity", base().username(&username).finish(), 401),
        (
            "no username",
            base().realm(REALM).nonce(&nonce).integrity(&good).finish(),
            400,
        ),
        (
            "no realm",
            base().username(&username).nonce(&nonce).integrity(&good).finish(),
            400,
        ),
        (
            "no nonce",
            base().username(&username).realm(REALM).integrity(&good).finish(),
            400,
        ),
        ("forged nonce", whole(b"abc").integrity(&good).finish(), 438),
        (
            "another client's nonce",
            whole(&other_nonce).integrity(&good).finish(),
            438,
        ),
        ("wrong key", whole(&nonce).integrity(&wrong).finish(), 401),
        (
            "other realm",
            base()
                .username(&username)
                .realm("x")
                .nonce(&nonce)
                .integrity(&good)
                .finish(),
            401,
        ),
        (
            "unreadable username",
            base()
                .username("alice")
                .realm(REALM)
                .nonce(&nonce)
                .integrity(&good)
                .finish(),
            401,
        ),
        (
            "expired",
            base()
                .username(&expired)
                .realm(REALM)
                .nonce(&nonce)
                .integrity(&expired_key)
                .finish(),
            401,
        ),
        ("right", whole(&nonce).integrity(&good).finish(), 0),
    ];
    for (name, request, code) in table {
        let response = fixture.send(from, &request);
        assert_eq!(response.code(), code, "{name}");
        assert_eq!(
            response.attributes.contains_key(&NONCE),
            matches!(code, 401 | 438),
            "{name}: a challenge"
        );
    }
    fixture.advance(3600);
    assert_eq!(
        fixture.send(from, &whole(&nonce).integrity(&good).finish()).code(),
        438,
        "stale"
    );
}

#[test]
fn what_follows_the_integrity_counts_for_nothing() {
    let mut fixture = Fixture::open();
    let nonce = fixture.nonce(client(1));
    let (username, key) = key("alice", UNIX + 10);
    let request = Encoder::new(Class::Request, Method::Allocate, TransactionId([9; 12]))
        .username(&username)
        .realm(REALM)
        .nonce(&nonce)
        .integrity(&key)
        .requested_transport(UDP)
        .finish();
    assert_eq!(
        fixture.send(client(1), &request).code(),
        400,
        "the transport was not signed"
    );
}

#[test]
fn a_call_outlasts_its_credentials_but_nothing_new_begins() {
    let mut fixture = Fixture::open();
    fixture.allocate(client(1));
    fixture.advance(599);
    fixture.request(client(1), Method::Refresh, |r| r.lifetime(3600));
    fixture.advance(3000);
    assert!(fixture.now.unix > UNIX + 1000, "the credentials have expired");
    assert_eq!(fixture.request(client(1), Method::Refresh, |r| r).code(), 0);
    assert_eq!(
        fixture
            .request(client(2), Method::Allocate, |r| r.requested_transport(UDP))
            .code(),
        401
    );
}

#[test]
fn an_allocation_belongs_to_its_user() {
    let mut fixture = Fixture::open();
    fixture.allocate(client(1));
    let request = fixture.signed(client(1), "mallory", Method::Refresh, |r| r.lifetime(0));
    assert_eq!(fixture.send(client(1), &request).code(), 441);
    let id = fixture.transaction();
    let nonce = fixture.nonce(client(1));
    let fresher = sign(
        Encoder::new(Class::Request, Method::Refresh, id),
        "alice",
        UNIX + 9000,
        &nonce,
    );
    assert_eq!(
        fixture.send(client(1), &fresher).code(),
        0,
        "the same user with fresher credentials"
    );
}

#[test]
fn refresh_extends_and_ends() {
    let mut fixture = Fixture::open();
    let relayed = fixture.allocate(client(1));
    fixture.advance(599);
    assert_eq!(
        fixture
            .request(client(1), Method::Refresh, |r| r.lifetime(900))
            .u32(LIFETIME),
        900
    );
    fixture.advance(899);
    assert_eq!(fixture.server.allocations(), 1);
    assert!(fixture.server.poll_timeout().is_some());
    fixture.advance(1);
    assert_eq!(
        (fixture.server.allocations(), fixture.switch.is_here(relayed)),
        (0, false),
        "expired"
    );
    assert_eq!(fixture.server.poll_timeout(), None);

    let mut fixture = Fixture::open();
    let relayed = fixture.allocate(client(1));
    let response = fixture.request(client(1), Method::Refresh, |r| r.lifetime(0));
    assert_eq!((response.code(), response.u32(LIFETIME)), (0, 0));
    assert_eq!(
        (fixture.server.allocations(), fixture.switch.is_here(relayed)),
        (0, false),
        "ended"
    );
}

#[test]
fn permissions_are_all_or_none_and_denied_by_default() {
    let mut fixture = Fixture::open();
    fixture.allocate(client(1));
    let table = [
        ("192.0.2.5:9", 0),
        ("203.0.113.9:7882", 0),  // the SFU
        ("203.0.113.1:50000", 0), // where allocations are
        ("192.0.2.250:53", 403),  // this machine, within a network that is allowed
        ("8.8.8.8:53", 403),
        ("127.0.0.1:8008", 403),
        ("10.0.0.1:22", 403),
        ("169.254.169.254:80", 403),
        ("[::ffff:127.0.0.1]:8008", 403),
        ("[2001:db8::5]:9", 443),
        ("[::1]:9", 443),
    ];
    for (peer, code) in table {
        assert_eq!(fixture.permit(client(1), addr(peer)), code, "{peer}");
    }
    assert_eq!(fixture.request(client(1), Method::CreatePermission, |r| r).code(), 400);

    let several = |r: Encoder| {
        r.xor_peer_address(addr("192.0.2.77:1"))
            .xor_peer_address(addr("8.8.8.8:1"))
    };
    assert_eq!(
        fixture.request(client(1), Method::CreatePermission, several).code(),
        403
    );
    let sent = fixture
        .server
        .handle_client(fixture.now, client(1), &send_indication(addr("192.0.2.78:1"), b"x"))
        .reason();
    assert_eq!(sent, Some(Dropped::NoPermission));
    let several = |r: Encoder| {
        r.xor_peer_address(addr("192.0.2.78:1"))
            .xor_peer_address(addr("192.0.2.79:1"))
    };
    assert_eq!(fixture.request(client(1), Method::CreatePermission, several).code(), 0);
    for peer in ["192.0.2.78:5", "192.0.2.79:6"] {
        let packet = send_indication(addr(peer), b"x");
        assert!(
            matches!(
                fixture.server.handle_client(fixture.now, client(1), &packet),
                Outcome::ToPeer(_)
            ),
            "{peer}"
        );
    }
}

#[test]
fn channels_answer_as_rfc_8656_section_12_2() {
    let mut fixture = Fixture::open();
    fixture.allocate(client(1));
    let (peer, other) = (addr("192.0.2.5:9"), addr("192.0.2.6:9"));
    for (number, peer, code) in [
        (0x3FFF, peer, 400),
        (0x8000, peer, 400),
        (0x4000, peer, 0),
        (0x4000, peer, 0),    // a refresh
        (0x4000, other, 400), // number taken
        (0x4001, peer, 400),  // peer bound
        (0x7FFF, other, 0),   // RFC 5766
        (0x4002, addr("8.8.8.8:53"), 403),
        (0x4002, addr("[2001:db8::5]:9"), 443),
    ] {
        assert_eq!(
            fixture.bind_channel(client(1), number, peer),
            code,
            "{number:#x} {peer}"
        );
    }
    assert_eq!(
        fixture
            .request(client(1), Method::ChannelBind, |r| r.channel_number(0x4003))
            .code(),
        400
    );
    assert_eq!(
        fixture
            .request(client(1), Method::ChannelBind, |r| r.xor_peer_address(peer))
            .code(),
        400
    );
}

trait Reason {
    fn reason(self) -> Option<Dropped>;
}

impl Reason for Outcome<'_> {
    fn reason(self) -> Option<Dropped> {
        match self {
            Outcome::Dropped(reason) => Some(reason),
            _ => None,
        }
    }
}

#[test]
fn data_goes_both_ways_and_only_with_permission() {
    let mut fixture = Fixture::open();
    let relayed = fixture.allocate(client(1));
    let peer = addr("192.0.2.5:9");
    let now = fixture.now;
    assert_eq!(
        fixture
            .server
            .handle_client(now, client(1), &send_indication(peer, b"x"))
            .reason(),
        Some(Dropped::NoPermission)
    );
    assert_eq!(
        fixture
            .server
            .handle_client(now, client(1), &channel_data(0x4000, b"x"))
            .reason(),
        Some(Dropped::NoChannel)
    );
    assert_eq!(
        fixture
            .server
            .handle_client(now, client(2), &channel_data(0x4000, b"x"))
            .reason(),
        Some(Dropped::NoAllocation)
    );
    assert_eq!(
        fixture.server.handle_peer(now, relayed, peer, b"x").reason(),
        Some(Dropped::NoPermission)
    );

    fixture.permit(client(1), peer);
    let packet = send_indication(peer, b"hello");
    let Outcome::ToPeer(sent) = fixture.server.handle_client(now, client(1), &packet) else {
        panic!("relayed")
    };
    assert_eq!(
        sent,
        ToPeer {
            relayed,
            peer,
            inside: false,
            outside: true,
            payload: b"hello"
        }
    );
    let Outcome::ToClient(got) = fixture.server.handle_peer(now, relayed, addr("192.0.2.5:10"), b"back!") else {
        panic!("any port of a permitted address")
    };
    let bytes = [got.header.front(), got.payload, got.header.padding()].concat();
    let indication = Message::decode(&bytes).expect("a STUN message");
    assert_eq!((indication.class, indication.method), (Class::Indication, Method::Data));
    assert_eq!(
        (&indication.peers[..], indication.data),
        (&[addr("192.0.2.5:10")][..], Some(&b"back!"[..]))
    );

    fixture.bind_channel(client(1), 0x4000, peer);
    let packet = channel_data(0x4000, b"via channel");
    let Outcome::ToPeer(sent) = fixture.server.handle_client(now, client(1), &packet) else {
        panic!("relayed")
    };
    assert_eq!((sent.peer, sent.payload), (peer, &b"via channel"[..]));
    let Outcome::ToClient(got) = fixture.server.handle_peer(now, relayed, peer, b"back!") else {
        panic!("relayed")
    };
    assert_eq!(
        (got.client, got.header.front(), got.header.padding()),
        (client(1), &[0x40, 0, 0, 5][..], &[][..])
    );

    fixture.advance(300);
    let now = fixture.now;
    assert_eq!(
        fixture.server.handle_peer(now, relayed, peer, b"x").reason(),
        Some(Dropped::NoPermission),
        "expired"
    );
}

#[test]
fn over_streams_channel_data_is_padded() {
    let mut fixture = Fixture::open();
    let from = FiveTuple {
        transport: Transport::Tcp,
        ..client(1)
    };
    let relayed = fixture.allocate(from);
    let peer = addr("192.0.2.5:9");
    fixture.bind_channel(from, 0x4000, peer);
    let now = fixture.now;
    let Outcome::ToClient(got) = fixture.server.handle_peer(now, relayed, peer, b"five!") else {
        panic!("relayed")
    };
    assert_eq!(
        (got.header.front(), got.header.padding()),
        (&[0x40, 0, 0, 5][..], &[0, 0, 0][..])
    );
    fixture.server.connection_closed(from);
    assert_eq!(fixture.server.allocations(), 0);
}

#[test]
fn a_socket_is_opened_for_peers_outside_only_and_closed_with_the_allocation() {
    let mut fixture = Fixture::open();
    let relayed = fixture.allocate(client(1));
    for inside in ["203.0.113.1:50000", "203.0.113.9:7882"] {
        let request = fixture.signed(client(1), "alice", Method::CreatePermission, |r| {
            r.xor_peer_address(addr(inside))
        });
        let _ = fixture.server.handle_client(fixture.now, client(1), &request);
        assert!(
            matches!(fixture.server.poll_command(), Some(Command::Respond { .. })),
            "{inside}"
        );
    }
    let request = fixture.signed(client(1), "alice", Method::CreatePermission, |r| {
        r.xor_peer_address(addr("192.0.2.5:9"))
    });
    let _ = fixture.server.handle_client(fixture.now, client(1), &request);
    let Some(Command::OpenSockets {
        relayed: open, failed, ..
    }) = fixture.server.poll_command()
    else {
        panic!("outside")
    };
    assert_eq!(&open[..], [relayed]);
    assert_eq!(Response::read(&failed).code(), 508);

    fixture.server.sockets_failed(&open);
    let sent = fixture
        .server
        .handle_client(fixture.now, client(1), &send_indication(addr("192.0.2.5:9"), b"x"))
        .reason();
    assert_eq!(
        sent,
        Some(Dropped::NoPermission),
        "what could not be had is not pretended"
    );

    assert_eq!(fixture.permit(client(1), addr("192.0.2.5:9")), 0, "tried again");
    fixture.request(client(1), Method::Refresh, |r| r.lifetime(0));
    assert_eq!(fixture.closed, [relayed]);
}

#[test]
fn two_clients_meet_inside_the_server() {
    let mut fixture = Fixture::new(Config::default());
    let (a, b) = (client(1), client(2));
    let (relayed_a, relayed_b) = (fixture.allocate(a), fixture.allocate(b));
    assert_eq!(fixture.bind_channel(a, 0x4000, relayed_b), 0);
    let now = fixture.now;
    assert_eq!(
        fixture
            .server
            .handle_client(now, a, &channel_data(0x4000, b"x"))
            .reason(),
        Some(Dropped::NoPermission),
        "b has not permitted a"
    );
    assert_eq!(fixture.bind_channel(b, 0x4001, relayed_a), 0);
    let packet = channel_data(0x4000, b"hello b");
    let Outcome::ToClient(got) = fixture.server.handle_client(now, a, &packet) else {
        panic!("straight to b")
    };
    assert_eq!(
        (got.client, got.header.front(), got.payload),
        (b, &[0x40, 1, 0, 7][..], &b"hello b"[..])
    );
}

#[test]
fn the_sfu_is_reached_through_the_switch() {
    let mut fixture = Fixture::new(Config::default());
    let sfu = addr("203.0.113.9:7882");
    let relayed = fixture.allocate(client(1));
    fixture.bind_channel(client(1), 0x4000, sfu);
    let packet = channel_data(0x4000, b"media");
    let now = fixture.now;
    let Outcome::ToPeer(sent) = fixture.server.handle_client(now, client(1), &packet) else {
        panic!("to the switch")
    };
    assert_eq!(
        sent,
        ToPeer {
            relayed,
            peer: sfu,
            inside: true,
            outside: false,
            payload: b"media"
        }
    );
    assert_eq!(fixture.switch.deliver(sfu, relayed, b"answer"), Delivery::Delivered);
    let Datagram { from, to, payload } = fixture.inbox.try_recv().expect("delivered");
    assert!(matches!(
        fixture.server.handle_peer(now, to, from, &payload),
        Outcome::ToClient(_)
    ));
}

#[test]
fn quotas_hold() {
    let mut fixture = Fixture::new(Config {
        max_allocations_per_user: 2,
        max_allocations: 3,
        ..Config::default()
    });
    fixture.allocate(client(1));
    fixture.allocate(client(2));
    assert_eq!(
        fixture
            .request(client(3), Method::Allocate, |r| r.requested_transport(UDP))
            .code(),
        486
    );
    for (port, user, code) in [(3, "bob", 0), (4, "carol", 508)] {
        let request = fixture.signed(client(port), user, Method::Allocate, |r| r.requested_transport(UDP));
        assert_eq!(fixture.send(client(port), &request).code(), code);
    }
    fixture.server.close_user("alice");
    assert_eq!(fixture.server.allocations(), 1);
    let disconnected: Vec<Command> = std::iter::from_fn(|| fixture.server.poll_command()).collect();
    assert!(disconnected.contains(&Command::Disconnect { client: client(1) }));
    fixture.allocate(client(1));
}

#[test]
fn credentials_of_a_user_who_is_gone_open_nothing() {
    let mut fixture = Fixture::new(Config::default());
    fixture.allocate(client(1));
    let now = fixture.now;
    // Those in the tests expire at `UNIX + 1000`.
    fixture.server.revoke_user(now, "alice", UNIX + 1000);
    while fixture.server.poll_command().is_some() {}
    assert_eq!(fixture.server.allocations(), 0);
    let mut ask = |user| {
        let request = fixture.signed(client(2), user, Method::Allocate, |r| r.requested_transport(UDP));
        fixture.send(client(2), &request).code()
    };
    assert_eq!((ask("alice"), ask("bob")), (401, 0));
    // Whoever signs in again is given later ones.
    let now = fixture.now;
    fixture.server.revoke_user(now, "alice", UNIX + 999);
    let request = fixture.signed(client(3), "alice", Method::Allocate, |r| r.requested_transport(UDP));
    assert_eq!(fixture.send(client(3), &request).code(), 0);
}

#[test]
fn bandwidth_is_bounded() {
    let mut fixture = Fixture::new(Config {
        max_bytes_per_second: 1000,
        ..Config::default()
    });
    fixture.allocate(client(1));
    fixture.bind_channel(client(1), 0x4000, addr("203.0.113.9:7882"));
    let packet = channel_data(0x4000, &[0; 600]);
    let now = fixture.now;
    assert!(matches!(
        fixture.server.handle_client(now, client(1), &packet),
        Outcome::ToPeer(_)
    ));
    assert_eq!(
        fixture.server.handle_client(now, client(1), &packet).reason(),
        Some(Dropped::Bandwidth)
    );
    fixture.advance(1);
    let now = fixture.now;
    assert!(matches!(
        fixture.server.handle_client(now, client(1), &packet),
        Outcome::ToPeer(_)
    ));
}

/// What the `turn` 0.17 server failed: 200,000 unauthenticated Allocates took 20 MB that never came back.
#[test]
fn a_flood_of_unauthenticated_requests_leaves_no_state() {
    let mut fixture = Fixture::open();
    let before = format!("{:?}", fixture.server);
    for index in 0..200_000_u32 {
        let from = FiveTuple {
            client: SocketAddr::from((index.to_be_bytes(), 5000)),
            ..client(1)
        };
        let mut id = [1; 12];
        id[..4].copy_from_slice(&index.to_be_bytes());
        let request = Encoder::new(Class::Request, Method::Allocate, TransactionId(id))
            .requested_transport(UDP)
            .finish();
        let _ = fixture.server.handle_client(fixture.now, from, &request);
        assert!(matches!(fixture.server.poll_command(), Some(Command::Respond { .. })));
        assert_eq!(fixture.server.poll_command(), None);
    }
    assert_eq!(format!("{:?}", fixture.server), before);
    assert_eq!((fixture.server.allocations(), fixture.server.poll_timeout()), (0, None));
    assert_eq!(format!("{:?}", fixture.switch), "Switch { attached: 0 }");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut fixture = Fixture::open();
        let relayed = fixture.allocate(client(1));
        for packet in &packets {
            let _ = fixture.server.handle_client(fixture.now, client(1), packet);
            let _ = fixture.server.handle_peer(fixture.now, relayed, addr("192.0.2.5:9"), packet);
            let _ = Message::decode(packet);
        }
        prop_assert!(fixture.server.allocations() <= 1);
    }

    #[test]
    fn mutated_requests_never_panic_nor_authenticate(
        method in prop_oneof![
            Just(Method::Allocate), Just(Method::Refresh), Just(Method::CreatePermission), Just(Method::ChannelBind),
        ],
        position in any::<proptest::sample::Index>(),
        flip in 1_u8..=255,
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut fixture = Fixture::open();
        let nonce = fixture.nonce(client(1));
        let request = Encoder::new(Class::Request, method, TransactionId([2; 12]))
            .requested_transport(UDP)
            .lifetime(0)
            .channel_number(0x4000)
            .xor_peer_address(addr("192.0.2.5:9"));
        let (username, key) = key("alice", UNIX + 10);
        let mut bytes = request.username(&username).realm(REALM).nonce(&nonce).integrity(&key).finish();
        let position = position.index(bytes.len());
        bytes[position] ^= flip;
        let _ = fixture.server.handle_client(fixture.now, client(1), &bytes);
        prop_assert_eq!(fixture.server.allocations(), 0, "a changed byte at {} was accepted", position);
        let cut = cut.index(bytes.len());
        let _ = fixture.server.handle_client(fixture.now, client(1), &bytes[..cut]);
        prop_assert_eq!(fixture.server.allocations(), 0);
    }
}
