//! Starts the relay and the SFU around one in-process switch, and gives each what only the process knows: secrets, and
//! the other's addresses. Knows no Matrix.

use std::net::{IpAddr, SocketAddr};

use credentials::turn::TurnSecret;
use fabric::switch::Switch;
use relay::RelayHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, host_of};
use crate::http::status::{Reach, Service, ServiceName, ServiceState};
use crate::secrets::Secrets;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MediaError {
    #[error("the relay cannot start: {0}")]
    Relay(#[from] relay::StartError),
}

/// What runs, and what others need to know of it.
pub(crate) struct Media {
    pub(crate) relay: Option<RelayHandle>,
    /// `turn:` addresses for clients; empty without a relay.
    pub(crate) turn_uris: Vec<String>,
}

impl Media {
    /// Starts what the configuration asks for.
    pub(crate) fn start(config: &Config, secrets: &Secrets, shutdown: &CancellationToken) -> Result<Self, MediaError> {
        let switch = Switch::new();
        let turn_secret = TurnSecret::new(secrets.turn.reveal());
        let relay = if config.turn.enabled {
            Some(relay::start(
                &config.turn,
                turn_secret,
                &config.server_name,
                switch,
                Vec::new(),
                shutdown.clone(),
            )?)
        } else {
            None
        };
        let uris = relay
            .as_ref()
            .map(|relay| relay_uris(config, relay.listeners()))
            .unwrap_or_default();
        Ok(Self { relay, turn_uris: uris })
    }

    /// What the page says about relay and SFU.
    pub(crate) fn services(&self, config: &Config) -> [Service; 1] {
        let relay = match &self.relay {
            Some(relay) => {
                let listeners = relay.listeners().iter().map(|(_, address)| *address);
                let addresses = reachable(listeners, &config.turn.external_ips);
                let stun = self.turn_uris.first().map(|uri| stun_uri(uri));
                Service {
                    stun,
                    ..running(ServiceName::Relay, &addresses)
                }
            }
            None => off(ServiceName::Relay, "The configuration says `turn.enabled = false`."),
        };
        [relay]
    }

    /// Resolves when both have ended, after the shutdown token was cancelled.
    pub(crate) async fn stopped(&self) {
        if let Some(relay) = &self.relay {
            relay.stopped().await;
        }
    }
}

/// RFC 7065 addresses under which clients reach the relay, UDP before TCP.
fn relay_uris(config: &Config, listeners: &[(relay::Protocol, SocketAddr)]) -> Vec<String> {
    let public_url = config.public_url();
    let authority = public_url
        .split_once("://")
        .map_or(public_url.as_str(), |(_, authority)| authority);
    let public_host = host_of(authority);
    let mut uris = Vec::new();
    for (protocol, address) in listeners {
        let external = config
            .turn
            .external_ips
            .iter()
            .find(|ip| ip.is_ipv4() == address.is_ipv4());
        let host = match external {
            Some(ip) => host_text(*ip),
            None if address.ip().is_unspecified() => public_host.to_owned(),
            None => host_text(address.ip()),
        };
        let transport = match protocol {
            relay::Protocol::Udp => "udp",
            relay::Protocol::Tcp => "tcp",
        };
        let uri = format!("turn:{host}:{}?transport={transport}", address.port());
        if !uris.contains(&uri) {
            uris.push(uri);
        }
    }
    uris.sort_by_key(|uri| uri.ends_with("tcp"));
    uris
}

fn host_text(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// RFC 7064: a `stun:` address has no transport.
fn stun_uri(turn: &str) -> String {
    let address = turn.trim_start_matches("turn:");
    format!(
        "stun:{}",
        address.split_once('?').map_or(address, |(address, _)| address)
    )
}

/// The addresses behind listeners: a wildcard stands for every interface.
fn reachable(listeners: impl Iterator<Item = SocketAddr>, external: &[IpAddr]) -> Vec<SocketAddr> {
    let interfaces: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .into_iter()
        .map(|interface| interface.ip())
        .collect();
    let mut addresses = Vec::new();
    for listener in listeners {
        let ips: Vec<IpAddr> = if listener.ip().is_unspecified() {
            external
                .iter()
                .chain(&interfaces)
                .copied()
                .filter(|ip| ip.is_ipv4() == listener.is_ipv4())
                .collect()
        } else {
            vec![listener.ip()]
        };
        addresses.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, listener.port())));
    }
    addresses
}

fn running(name: ServiceName, addresses: &[SocketAddr]) -> Service {
    let reach = Reach::of(addresses.iter().map(SocketAddr::ip));
    // Only the widest are worth showing: loopback helps nobody who can also be reached from outside.
    let mut shown: Vec<String> = addresses
        .iter()
        .filter(|address| Reach::of([address.ip()]) == reach)
        .map(SocketAddr::to_string)
        .collect();
    shown.sort();
    shown.dedup();
    Service {
        name,
        state: ServiceState::Running,
        reach,
        addresses: shown,
        detail: None,
        stun: None,
    }
}

fn off(name: ServiceName, detail: &str) -> Service {
    Service {
        name,
        state: ServiceState::Off,
        reach: None,
        addresses: Vec::new(),
        detail: Some(detail.to_owned()),
        stun: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_addresses_they_can_reach() {
        use relay::Protocol::{Tcp, Udp};
        let address = |text: &str| -> SocketAddr { text.parse().expect("address") };
        let listeners = [
            (Udp, address("0.0.0.0:3478")),
            (Udp, address("[::]:3478")),
            (Tcp, address("0.0.0.0:3478")),
            (Tcp, address("[::]:3478")),
        ];
        let mut config = Config {
            server_name: "example.org".to_owned(),
            ..Config::default()
        };
        assert_eq!(
            relay_uris(&config, &listeners),
            [
                "turn:example.org:3478?transport=udp",
                "turn:example.org:3478?transport=tcp"
            ]
        );
        config.turn.external_ips = vec!["203.0.113.7".parse().expect("address")];
        assert_eq!(
            relay_uris(&config, &listeners[..1]),
            ["turn:203.0.113.7:3478?transport=udp"]
        );
        assert_eq!(
            relay_uris(
                &Config::default(),
                &[(Udp, address("127.0.0.1:9")), (Udp, address("[::1]:9"))]
            ),
            ["turn:127.0.0.1:9?transport=udp", "turn:[::1]:9?transport=udp"]
        );
        assert_eq!(stun_uri("turn:[::1]:9?transport=udp"), "stun:[::1]:9");
    }
}
