//! What runs here, for the page: a summary anybody may see. Owns its shape (`web/src/status.ts` reads it); must not name
//! users, rooms or secrets.

use std::net::IpAddr;

use axum::routing::get;
use axum::{Json, Router};
use http::header::CACHE_CONTROL;
use serde::Serialize;

use super::probe::{Found, Port, Probe};
use crate::admin::first_admin::FirstAdmin;

/// Everything but what can change while the process runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Status {
    pub(crate) server_name: String,
    pub(crate) version: &'static str,
    pub(crate) homeserver_url: String,
    /// `closed`, `token` or `open`.
    pub(crate) registration: &'static str,
    pub(crate) services: Vec<Service>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Service {
    pub(crate) name: ServiceName,
    pub(crate) state: ServiceState,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reach: Option<Reach>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<String>,
    /// What is wrong, or why it does not run. Words between backticks are to be typed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cure: Option<String>,
    /// `stun:host:port`, which the browser may try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stun: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceName {
    Chat,
    Relay,
    Calls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceState {
    /// Runs, and every port of it was found to hear.
    Running,
    /// Some of its ports do not hear.
    Impaired,
    /// None of its ports hears.
    Unreachable,
    Off,
}

/// Who can reach a set of addresses, judged by the addresses alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reach {
    Machine,
    Network,
    Internet,
}

impl Reach {
    pub(crate) fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        addresses.into_iter().map(Self::of_one).max()
    }

    fn of_one(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            ip if ip.is_loopback() => Self::Machine,
            // RFC 1918, RFC 3927, RFC 6598.
            IpAddr::V4(ip)
                if ip.is_private() || ip.is_link_local() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64) =>
            {
                Self::Network
            }
            IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => Self::Network,
            _ => Self::Internet,
        }
    }
}

impl Service {
    /// The service after a look at its ports: what does not hear is worse news than who could reach it.
    fn found(mut self, ports: &[Port]) -> Self {
        if self.state != ServiceState::Running {
            return self;
        }
        let deaf: Vec<String> = ports
            .iter()
            .filter(|port| !port.hears)
            .map(|port| format!("{} {}", port.protocol.to_uppercase(), port.address))
            .collect();
        if deaf.is_empty() {
            return self;
        }
        self.state = if deaf.len() == ports.len() {
            ServiceState::Unreachable
        } else {
            ServiceState::Impaired
        };
        self.detail = Some(format!(
            "Nothing that is sent to {} arrives, not even from this machine.",
            deaf.join(" and ")
        ));
        self.cure = Some(
            "Restart Longhouse. If that does not help, a firewall on this machine drops the packets: \
             `longhouse ports` prints the lines that open the ports."
                .to_owned(),
        );
        self
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    status: &'a Status,
    needs_first_administrator: bool,
}

impl Status {
    fn found(&self, found: &Found) -> Self {
        let services = self.services.iter().cloned().map(|service| {
            let ports = match service.name {
                ServiceName::Chat => &[][..],
                ServiceName::Relay => &found.relay,
                ServiceName::Calls => &found.sfu,
            };
            service.found(ports)
        });
        Self {
            services: services.collect(),
            ..self.clone()
        }
    }
}

pub(crate) fn router(status: Status, probe: Probe, first: FirstAdmin) -> Router {
    Router::new().route(
        "/_longhouse/status",
        // GET /_longhouse/status: what the page shows.
        get(move || async move {
            let status = status.found(&*probe.found().await);
            let body = Body {
                status: &status,
                needs_first_administrator: first.is_needed().await,
            };
            ([(CACHE_CONTROL, "no-store")], Json(serde_json::json!(body)))
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hear_is_said_with_its_cure() {
        let service = Service {
            name: ServiceName::Relay,
            state: ServiceState::Running,
            reach: Some(Reach::Internet),
            addresses: Vec::new(),
            detail: None,
            cure: None,
            stun: None,
        };
        let port = |protocol, hears| Port {
            protocol,
            address: "0.0.0.0:3478".parse().expect("address"),
            hears,
        };
        let found = |udp, tcp| service.clone().found(&[port("udp", udp), port("tcp", tcp)]);
        assert_eq!(found(true, true).state, ServiceState::Running);
        let impaired = found(true, false);
        assert_eq!(impaired.state, ServiceState::Impaired);
        assert!(impaired.detail.expect("why").contains("TCP 0.0.0.0:3478"));
        let unreachable = found(false, false);
        assert_eq!(unreachable.state, ServiceState::Unreachable);
        assert!(unreachable.cure.expect("a cure").contains("longhouse ports"));
        let off = Service {
            state: ServiceState::Off,
            ..service
        };
        assert_eq!(off.found(&[port("udp", false)]).state, ServiceState::Off);
    }

    #[test]
    fn reach_follows_the_widest_address() {
        for (addresses, expected) in [
            (&[][..], None),
            (&["127.0.0.1", "::1"], Some(Reach::Machine)),
            (&["127.0.0.1", "192.168.1.2"], Some(Reach::Network)),
            (&["100.64.0.1"], Some(Reach::Network)),
            (&["fd00::1", "fe80::1"], Some(Reach::Network)),
            (&["10.0.0.1", "203.0.113.1"], Some(Reach::Internet)),
            (&["2a01:4f8::1"], Some(Reach::Internet)),
        ] {
            let addresses = addresses.iter().map(|text| text.parse().expect("address"));
            assert_eq!(Reach::of(addresses), expected);
        }
    }
}
