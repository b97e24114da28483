//! Every parser of the relay that sees bytes before anyone is authenticated, one function each. What runs them is the fuzz
//! targets in `fuzz/` and the property tests, so that both always mean the same code.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::BytesMut;
use credentials::turn::TurnSecret;
use fabric::switch::Switch;
use tokio::sync::mpsc;

use crate::{
    Config,
    message::Message,
    server::{FiveTuple, Now, Parts, Server, Transport},
    stream::split_message,
};

/// One STUN or TURN message.
pub fn message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert!(
            message.peers.len() <= bytes.len() / 12,
            "each peer took at least twelve bytes"
        );
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"key");
        assert!(message.has_integrity() || !message.verify_integrity(&key));
    }
}

/// A byte stream of STUN messages and ChannelData.
pub fn stream(bytes: &[u8]) {
    let mut stream = BytesMut::from(bytes);
    let mut taken = 0;
    while let Ok(Some(message)) = split_message(&mut stream) {
        assert!(message.len() >= 4, "every message has a header");
        taken += message.len();
    }
    assert_eq!(taken + stream.len(), bytes.len(), "nothing is lost or read twice");
}

/// Datagrams of a stranger to a server, each two bytes of length and the content.
pub fn server(bytes: &[u8]) {
    let (inbox, _received) = mpsc::channel(1);
    let parts = Parts {
        secret: TurnSecret::new("secret"),
        realm: "realm".to_owned(),
        switch: Switch::new(),
        inbox,
        sfu_media_addresses: Vec::new(),
        local_ips: Vec::new(),
        own_ips: Vec::new(),
        seed: [1; 32],
    };
    let mut server = Server::new(&Config::default(), parts);
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    let now = Now {
        instant: Instant::now(),
        unix: 1_800_000_000,
    };
    let from = FiveTuple {
        client: SocketAddr::from(([192, 0, 2, 1], 4000)),
        server: SocketAddr::from(([192, 0, 2, 2], 3478)),
        transport: Transport::Udp,
    };
    let mut datagrams = BytesMut::from(bytes);
    while let Ok(Some(datagram)) = fabric::framing::decode(&mut datagrams, 1500) {
        let _ = server.handle_client(now, from, &datagram);
        while server.poll_command().is_some() {}
    }
    assert_eq!(server.allocations(), 0, "a stranger gets nothing");
}
