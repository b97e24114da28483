//! The `[turn]` section of the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ports::PortRange;

/// Port of STUN and TURN over UDP and TCP (RFC 8656 §3.1).
const DEFAULT_PORT: u16 = 3478;

/// The relay's settings. The secret that signs credentials is not among them: the process hands it over in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether to run the relay at all.
    pub enabled: bool,
    /// Addresses to listen on, UDP and TCP. A wildcard of a family the machine lacks is passed over.
    pub listen: Vec<SocketAddr>,
    /// Whether to listen for TCP on the same addresses, for clients whose network blocks UDP.
    pub tcp: bool,
    /// Public addresses, at most one per family, where a router in front translates to the listening ones. Empty: clients
    /// are told the address they reached the relay at.
    pub external_ips: Vec<IpAddr>,
    /// Realm of the credentials; the server's name if absent.
    pub realm: Option<String>,
    /// Ports for peers outside this process. Two clients of the relay, or a client and the SFU, need none.
    pub relay_ports: PortRange,
    /// Networks outside this process to which clients may relay. Special-purpose addresses (loopback, private,
    /// link-local, …) only through a network that lies wholly within their own block; this machine's own addresses only
    /// where they are named one by one (`192.0.2.7/32`).
    pub allow_peers: Vec<IpNet>,
    /// Allocations one user may hold at a time; a browser holds several per call.
    pub max_allocations_per_user: u32,
    /// Allocations all users together may hold at a time.
    pub max_allocations: u32,
    /// Longest lifetime of an allocation between refreshes, in seconds.
    pub max_lifetime: u32,
    /// What one allocation may send towards its peers, in bytes per second; 0 means unlimited.
    pub max_bytes_per_second: u64,
    /// TCP connections at a time.
    pub max_tcp_connections: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: vec![
                (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(),
                (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into(),
            ],
            tcp: true,
            external_ips: Vec::new(),
            realm: None,
            relay_ports: PortRange::default(),
            allow_peers: Vec::new(),
            max_allocations_per_user: 64,
            max_allocations: 4096,
            max_lifetime: 3600,
            max_bytes_per_second: 0,
            max_tcp_connections: 2048,
        }
    }
}
