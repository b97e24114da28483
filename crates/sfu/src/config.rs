//! The `[sfu]` section of the configuration, with the defaults in code.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;

/// What an operator may set about the SFU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether calls of several people are offered at all.
    pub enabled: bool,
    /// The one UDP address of all media; `None` switches UDP off.
    pub udp_listen: Option<SocketAddr>,
    /// The one TCP address of all media (RFC 6544, passive); `None` switches TCP off.
    pub tcp_listen: Option<SocketAddr>,
    /// Addresses under which the media ports are reachable from outside, offered to clients besides the local ones.
    pub external_ips: Vec<IpAddr>,
    /// Replaces the addresses found on the local interfaces, when not empty.
    pub candidate_ips: Vec<IpAddr>,
    /// Offer loopback addresses: for tests and for a server used on its own machine.
    pub offer_loopback: bool,
    /// Most participants of one room; 0 means no limit.
    pub max_participants_per_room: u32,
    /// A room that nobody joined is closed after this many seconds.
    pub empty_timeout_seconds: u32,
    /// A room that everybody left is closed after this many seconds.
    pub departure_timeout_seconds: u32,
    /// Seconds without any message after which a signalling connection is closed.
    pub ping_timeout_seconds: u32,
    /// Seconds without media after which a participant whose signalling is gone is removed.
    pub media_timeout_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            udp_listen: Some(SocketAddr::from(([0, 0, 0, 0], 7882))),
            tcp_listen: Some(SocketAddr::from(([0, 0, 0, 0], 7881))),
            external_ips: Vec::new(),
            candidate_ips: Vec::new(),
            offer_loopback: false,
            max_participants_per_room: 0,
            empty_timeout_seconds: 300,
            departure_timeout_seconds: 20,
            ping_timeout_seconds: 15,
            media_timeout_seconds: 5,
        }
    }
}

impl Config {
    pub(crate) fn empty_timeout(&self) -> Duration {
        Duration::from_secs(self.empty_timeout_seconds.into())
    }

    pub(crate) fn departure_timeout(&self) -> Duration {
        Duration::from_secs(self.departure_timeout_seconds.into())
    }

    pub(crate) fn ping_timeout(&self) -> Duration {
        Duration::from_secs(self.ping_timeout_seconds.max(1).into())
    }

    pub(crate) fn media_timeout(&self) -> Duration {
        Duration::from_secs(self.media_timeout_seconds.max(1).into())
    }
}
