//! What runs here, for the page: a summary anybody may see. Owns its shape (`web/src/status.ts` reads it); must not name
//! users, rooms or secrets.

use std::net::IpAddr;

use axum::routing::get;
use axum::{Json, Router};
use http::header::CACHE_CONTROL;
use serde::Serialize;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
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
    Running,
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

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    status: &'a Status,
    needs_first_administrator: bool,
}

pub(crate) fn router(status: Status, first: FirstAdmin) -> Router {
    Router::new().route(
        "/_longhouse/status",
        // GET /_longhouse/status: what the page shows.
        get(move || async move {
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
