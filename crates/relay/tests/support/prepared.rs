//! A server with allocations, permissions and channels: what the benchmark and the count of allocations share.

use std::{net::SocketAddr, time::Instant};

use aws_lc_rs::hmac;
use credentials::turn::TurnSecret;
use fabric::switch::Switch;
use relay::{
    Config,
    message::{Class, Encoder, Message, Method, TransactionId},
    server::{Command, FiveTuple, Now, Parts, Server, Transport},
};
use tokio::sync::mpsc;

pub(crate) fn client(port: u16) -> FiveTuple {
    let server = SocketAddr::from(([203, 0, 113, 1], 3478));
    FiveTuple {
        client: SocketAddr::from(([198, 51, 100, 7], 1000 + port)),
        server,
        transport: Transport::Udp,
    }
}

pub(crate) struct Prepared {
    pub(crate) server: Server,
    pub(crate) now: Now,
    transaction: u64,
    _inbox: mpsc::Receiver<fabric::switch::Datagram>,
}

impl Prepared {
    fn exchange(&mut self, from: FiveTuple, bytes: &[u8]) -> Vec<u8> {
        let _ = self.server.handle_client(self.now, from, bytes);
        match self.server.poll_command() {
            Some(Command::Respond { message, .. } | Command::OpenSockets { opened: message, .. }) => message,
            other => panic!("no response but {other:?}"),
        }
    }

    fn request(&mut self, from: FiveTuple, method: Method, fill: impl Fn(Encoder) -> Encoder) -> Vec<u8> {
        self.transaction += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transaction.to_be_bytes());
        let new = || Encoder::new(Class::Request, method, TransactionId(id));
        let challenge = self.exchange(from, &new().finish());
        let nonce = Message::decode(&challenge)
            .expect("ours")
            .nonce
            .expect("a challenge")
            .to_vec();
        let secret = TurnSecret::new("secret");
        let username = secret.mint("alice", u64::MAX).username;
        let key = secret.long_term_key(&username, "r");
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
        let request = fill(new())
            .username(&username)
            .realm("r")
            .nonce(&nonce)
            .integrity(&key)
            .finish();
        let response = self.exchange(from, &request);
        assert_eq!(response[0], 1, "success");
        response
    }

    pub(crate) fn allocate(&mut self, from: FiveTuple) -> SocketAddr {
        let response = self.request(from, Method::Allocate, |request| request.requested_transport(17));
        // XOR-RELAYED-ADDRESS is the first attribute of the response.
        let port = u16::from_be_bytes([response[26], response[27]]) ^ 0x2112;
        SocketAddr::new(from.server.ip(), port)
    }

    pub(crate) fn permit(&mut self, from: FiveTuple, peer: SocketAddr) {
        self.request(from, Method::CreatePermission, |request| request.xor_peer_address(peer));
    }

    pub(crate) fn bind(&mut self, from: FiveTuple, peer: SocketAddr) {
        self.request(from, Method::ChannelBind, |request| {
            request.channel_number(0x4000).xor_peer_address(peer)
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
pub(crate) fn prepared() -> Prepared {
    let (sender, inbox) = mpsc::channel(64);
    let config = Config {
        allow_peers: vec!["192.0.2.0/24".parse().expect("literal")],
        relay_ports: "41000-42000".parse().expect("literal"),
        max_allocations_per_user: 10_000,
        ..Config::default()
    };
    let parts = Parts {
        secret: TurnSecret::new("secret"),
        realm: "r".to_owned(),
        switch: Switch::new(),
        inbox: sender,
        sfu_media_addresses: Vec::new(),
        local_ips: Vec::new(),
        own_ips: Vec::new(),
        seed: [1; 32],
    };
    let now = Now {
        instant: Instant::now(),
        unix: 1_800_000_000,
    };
    Prepared {
        server: Server::new(&config, parts),
        now,
        transaction: 0,
        _inbox: inbox,
    }
}
