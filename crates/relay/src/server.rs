//! The TURN server as a state machine: packets in with their 5-tuple, outcomes and commands out, told the time.
//!
//! Owns every allocation. Knows no socket and no clock: the driver carries out what it says. Data takes the short way: one
//! call returns where a payload goes, borrowing it from the packet; everything else is a queued [`Command`].

mod authentication;
mod data;
mod requests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use credentials::turn::TurnSecret;
use fabric::switch::{Datagram, Switch};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use crate::{
    Config,
    allocation::Allocation,
    channel,
    message::{Class, DataHeader, Encoder, ErrorCode, Family, Message, Method, TransactionId},
    nonce::Nonces,
    peer_policy::PeerPolicy,
    ports::Ports,
    quota::Quota,
};

/// Sent as SOFTWARE (RFC 8489 §14.14); the version is nobody's business.
const SOFTWARE: &str = "Longhouse";
/// Seconds for which a nonce is accepted; RFC 8656 §5 wants at most an hour.
const NONCE_LIFETIME: u64 = 3600;
/// RFC 8656 §3.2: the lifetime of an allocation that asks for none, or for less; in seconds.
const DEFAULT_LIFETIME: u32 = 600;

/// How a client reaches the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    /// TCP, with or without TLS.
    Tcp,
}

/// What identifies a client (RFC 8656 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub transport: Transport,
}

/// The time, as the driver tells it.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For lifetimes.
    pub instant: Instant,
    /// Seconds since the Unix epoch, for credentials and nonces.
    pub unix: u64,
}

/// What became of a packet.
#[derive(Debug)]
#[must_use]
pub enum Outcome<'a> {
    /// A message of the protocol; see [`Server::poll_command`].
    Handled,
    ToPeer(ToPeer<'a>),
    ToClient(ToClient<'a>),
    Dropped(Dropped),
}

/// A payload for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToPeer<'a> {
    /// The relayed address it is sent from.
    pub relayed: SocketAddr,
    pub peer: SocketAddr,
    /// Whether the in-process switch may deliver it.
    pub inside: bool,
    /// Whether the socket of `relayed` may send it.
    pub outside: bool,
    pub payload: &'a [u8],
}

/// A payload for a client: header, payload, padding.
#[derive(Debug, Clone, Copy)]
pub struct ToClient<'a> {
    pub client: FiveTuple,
    pub header: DataHeader,
    pub payload: &'a [u8],
}

/// Why a packet went nowhere. Counted, never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Neither STUN nor ChannelData, or not acceptable as either.
    Malformed,
    /// No allocation for the 5-tuple or the relayed address, or none of the peer's family.
    NoAllocation,
    NoPermission,
    NoChannel,
    /// Over the allocation's bandwidth.
    Bandwidth,
}

/// What the driver is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Send this message.
    Respond { to: FiveTuple, message: Vec<u8> },
    /// Open sockets for peers outside, one per relayed address; then send the one message or the other. After a failure
    /// call [`Server::sockets_failed`].
    OpenSockets {
        relayed: SmallVec<[SocketAddr; 2]>,
        to: FiveTuple,
        opened: Vec<u8>,
        failed: Vec<u8>,
    },
    /// Close the socket of this relayed address.
    CloseSocket { relayed: SocketAddr },
    /// The client's allocation was ended from our side; over TCP, close its connection.
    Disconnect { client: FiveTuple },
}

/// Users remembered whose credentials are over; beyond it the one whose credentials end first is forgotten.
const MAX_REVOKED: usize = 65_536;

/// What a server is made of, besides the configuration.
#[derive(Debug)]
pub struct Parts {
    pub secret: TurnSecret,
    pub realm: String,
    pub switch: Switch,
    /// Where datagrams for relayed addresses arrive from inside the process; hand them to [`Server::handle_peer`].
    pub inbox: mpsc::Sender<Datagram>,
    /// The SFU's media addresses: reachable for every client, through the switch only.
    pub sfu_media_addresses: Vec<SocketAddr>,
    /// Local addresses to fall back to for a family the client did not reach us by.
    pub local_ips: Vec<IpAddr>,
    /// Every address of this machine: peers only where the configuration names them one by one.
    pub own_ips: Vec<IpAddr>,
    /// Chance: seeds ports, tokens and the nonce key.
    pub seed: [u8; 32],
}

/// The TURN server.
pub struct Server {
    secret: TurnSecret,
    realm: String,
    nonces: Nonces,
    policy: PeerPolicy,
    quota: Quota,
    ports: Ports,
    switch: Switch,
    inbox: mpsc::Sender<Datagram>,
    rng: StdRng,
    external_ips: Vec<IpAddr>,
    local_ips: Vec<IpAddr>,
    max_lifetime: u32,
    max_bytes_per_second: u64,

    allocations: Slab<Allocation>,
    by_client: HashMap<FiveTuple, usize>,
    by_relayed: HashMap<SocketAddr, usize>,
    /// Addresses that allocations have, with how many.
    relayed_ips: HashMap<IpAddr, usize>,
    /// When each allocation next has something to expire.
    deadlines: BTreeSet<(Instant, usize)>,
    commands: VecDeque<Command>,
    /// Until when the credentials of these users are over, seconds since the Unix epoch.
    revoked: HashMap<String, u64>,
    /// The next transaction id of an indication; indications are not paired with anything.
    indication: u128,
}

impl Server {
    pub fn new(config: &Config, parts: Parts) -> Self {
        let mut rng = StdRng::from_seed(parts.seed);
        let inside = parts
            .sfu_media_addresses
            .iter()
            .map(SocketAddr::ip)
            .chain(config.external_ips.iter().copied());
        let mut policy = PeerPolicy::new(inside, &config.allow_peers);
        policy.set_own(parts.own_ips);
        Self {
            nonces: Nonces::new(&rng.random(), NONCE_LIFETIME),
            ports: Ports::new(&config.relay_ports, policy.reaches_outside()),
            policy,
            quota: Quota::new(config.max_allocations_per_user, config.max_allocations),
            secret: parts.secret,
            realm: parts.realm,
            switch: parts.switch,
            inbox: parts.inbox,
            external_ips: config.external_ips.clone(),
            local_ips: parts.local_ips,
            max_lifetime: config.max_lifetime,
            max_bytes_per_second: config.max_bytes_per_second,
            allocations: Slab::new(),
            by_client: HashMap::new(),
            by_relayed: HashMap::new(),
            relayed_ips: HashMap::new(),
            deadlines: BTreeSet::new(),
            commands: VecDeque::new(),
            revoked: HashMap::new(),
            indication: rng.random(),
            rng,
        }
    }

    /// The machine has these addresses from now on: home connections and private IPv6 addresses change.
    pub fn set_own_ips(&mut self, own_ips: Vec<IpAddr>) {
        self.policy.set_own(own_ips);
    }

    /// Takes one packet of a client: a UDP datagram, or one message off a TCP stream.
    pub fn handle_client<'a>(&mut self, now: Now, from: FiveTuple, packet: &'a [u8]) -> Outcome<'a> {
        // RFC 7983: 0..=3 is STUN, 64..=79 (RFC 5766: ..=127) is ChannelData.
        match packet.first() {
            Some(0x40..=0x7F) => self.channel_data(now.instant, from, packet),
            Some(0x00..=0x03) => self.stun(now, from, packet),
            _ => Outcome::Dropped(Dropped::Malformed),
        }
    }

    /// Takes one datagram that a peer sent to a relayed address, through a socket or the switch.
    pub fn handle_peer<'a>(
        &mut self,
        now: Now,
        relayed: SocketAddr,
        from: SocketAddr,
        payload: &'a [u8],
    ) -> Outcome<'a> {
        self.deliver(now.instant, relayed, from, payload)
    }

    /// Expires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ports.expire(now);
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            for family in [Family::V4, Family::V6] {
                if self.allocations[id]
                    .relays
                    .get(family)
                    .is_some_and(|relay| relay.expires <= now)
                {
                    self.remove_relay(id, family);
                }
            }
            self.reschedule(id);
        }
    }

    /// When [`Server::handle_timeout`] next has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines
            .first()
            .map(|&(deadline, _)| deadline)
            .into_iter()
            .chain(self.ports.next_expiry())
            .min()
    }

    /// What the driver is to do next; call until `None` after every other call.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// These sockets, asked for by [`Command::OpenSockets`], could not be opened.
    pub fn sockets_failed(&mut self, relayed: &[SocketAddr]) {
        for address in relayed {
            let Some(allocation) = self
                .by_relayed
                .get(address)
                .and_then(|&id| self.allocations.get_mut(id))
            else {
                continue;
            };
            for relay in allocation.relays.iter_mut().filter(|relay| relay.address == *address) {
                relay.socket_open = false;
            }
            allocation.permissions.revoke_outside();
            allocation.channels.revoke_outside();
        }
    }

    /// The connection of a TCP client is gone, and its allocation with it.
    pub fn connection_closed(&mut self, client: FiveTuple) {
        if let Some(&id) = self.by_client.get(&client) {
            self.remove(id);
        }
    }

    /// Ends every allocation of a user, and refuses new ones to credentials that expire at `until` (seconds since the Unix
    /// epoch) or earlier: those that were minted before. Credentials cannot be taken back, so this is remembered for as
    /// long as they would live.
    pub fn revoke_user(&mut self, now: Now, user_id: &str, until: u64) {
        self.close_user(user_id);
        self.revoked.retain(|_, until| *until > now.unix);
        if self.revoked.len() >= MAX_REVOKED
            && let Some(first) = self.revoked.iter().min_by_key(|(_, until)| **until)
        {
            let first = first.0.clone();
            self.revoked.remove(&first);
        }
        self.revoked.insert(user_id.to_owned(), until);
    }

    /// Ends every allocation of a user.
    pub fn close_user(&mut self, user_id: &str) {
        let ids: Vec<usize> = self
            .allocations
            .iter()
            .filter(|(_, allocation)| allocation.quota.user() == user_id)
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            self.commands.push_back(Command::Disconnect {
                client: self.allocations[id].client,
            });
            self.remove(id);
        }
    }

    /// The users who have allocations, each once.
    pub fn users(&self) -> Vec<String> {
        let mut users: Vec<String> = self
            .allocations
            .iter()
            .map(|(_, allocation)| allocation.quota.user().to_owned())
            .collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Allocations that exist.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// Whether this client has an allocation.
    pub fn has_allocation(&self, client: FiveTuple) -> bool {
        self.by_client.contains_key(&client)
    }

    fn stun<'a>(&mut self, now: Now, from: FiveTuple, packet: &'a [u8]) -> Outcome<'a> {
        let Ok(message) = Message::decode(packet) else {
            return Outcome::Dropped(Dropped::Malformed);
        };
        match (message.class, message.method) {
            (Class::Indication, Method::Send) => return self.send_indication(now.instant, from, &message),
            // A keep-alive (RFC 8489 §7.3.2).
            (Class::Indication, Method::Binding) => {}
            (Class::Request, Method::Binding) => self.binding(from, &message),
            (Class::Request, Method::Allocate | Method::Refresh | Method::CreatePermission | Method::ChannelBind) => {
                self.authenticated_request(now, from, &message)
            }
            _ => return Outcome::Dropped(Dropped::Malformed),
        }
        Outcome::Handled
    }

    fn respond(&mut self, to: FiveTuple, message: Vec<u8>) {
        self.commands.push_back(Command::Respond { to, message });
    }

    /// The address to relay from for this client, if there is one of the family.
    fn relay_ip(&self, family: Family, client: &FiveTuple) -> Option<IpAddr> {
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        self.external_ips.iter().copied().find(of_family).or_else(|| {
            let reached = client.server.ip();
            if of_family(&reached) && !reached.is_unspecified() {
                return Some(reached);
            }
            self.local_ips.iter().copied().find(of_family)
        })
    }

    /// Removes one relayed address; the allocation goes with the last.
    fn remove_relay(&mut self, id: usize, family: Family) {
        let Some(relay) = self.allocations[id].relays.slot(family).take() else {
            return;
        };
        self.by_relayed.remove(&relay.address);
        if let Some(count) = self.relayed_ips.get_mut(&relay.address.ip()) {
            *count -= 1;
            if *count == 0 {
                self.relayed_ips.remove(&relay.address.ip());
            }
        }
        if relay.socket_open {
            self.commands.push_back(Command::CloseSocket { relayed: relay.address });
        }
    }

    fn remove(&mut self, id: usize) {
        if let Some(deadline) = self.allocations[id].relays.next_expiry() {
            self.deadlines.remove(&(deadline, id));
        }
        for family in [Family::V4, Family::V6] {
            self.remove_relay(id, family);
        }
        self.reschedule(id);
    }

    /// Enters the allocation's next deadline (the caller has removed the previous one), or ends it if nothing is left.
    fn reschedule(&mut self, id: usize) {
        match self.allocations[id].relays.next_expiry() {
            Some(deadline) => {
                self.deadlines.insert((deadline, id));
            }
            None => {
                let allocation = self.allocations.remove(id);
                self.by_client.remove(&allocation.client);
            }
        }
    }

    /// Seconds granted for a requested lifetime (RFC 8656 §7.2).
    fn lifetime(&self, requested: Option<u32>) -> u32 {
        requested
            .unwrap_or(DEFAULT_LIFETIME)
            .max(DEFAULT_LIFETIME)
            .min(self.max_lifetime)
    }

    fn next_indication(&mut self) -> TransactionId {
        self.indication = self.indication.wrapping_add(1);
        let mut id = [0; 12];
        id.copy_from_slice(&self.indication.to_be_bytes()[4..]);
        TransactionId(id)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("allocations", &self.allocations.len())
            .finish_non_exhaustive()
    }
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}
