//! Starts the relay and the SFU around one in-process switch and connects them with the homeserver: what would be a
//! network, a token and a webhook between three programs is a function call and a channel here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use fabric::switch::Switch;
use futures_util::future::BoxFuture;
use homeserver::Homeserver;
use homeserver::calls::media::SfuUrls;
use homeserver::calls::{MediaControl, MediaEvent, MediaPlane, PartingReason};
use homeserver::client_api::SFU_SERVICE_PATH;
use relay::RelayHandle;
use sfu::{Admitted, IceServer, LeaveReason, SfuEvent, SfuHandle, Surroundings};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, host_of};
use crate::http::status::{Reach, Service, ServiceName, ServiceState};

/// Where the SFU's signalling is mounted.
pub(crate) const SIGNALLING_PATH: &str = "/livekit/sfu";
/// Events of calls that may wait for the homeserver.
const EVENTS: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum MediaError {
    #[error("the relay cannot start: {0}")]
    Relay(#[from] relay::StartError),
    #[error("the SFU cannot start: {0}\n  choose another port in section [sfu], or set `sfu.enabled = false`")]
    Sfu(#[from] sfu::StartError),
}

/// What runs, and where clients find it.
#[derive(Clone)]
pub(crate) struct Media {
    pub(crate) relay: Option<RelayHandle>,
    pub(crate) sfu: Option<SfuHandle>,
    /// `turn:` addresses for clients; empty without a relay.
    turn_uris: Vec<String>,
}

impl Media {
    /// Starts what the configuration asks for and connects the homeserver with it.
    pub(crate) async fn start(
        config: &Config,
        homeserver: &Homeserver,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<Self, MediaError> {
        let switch = Switch::new();
        let (event_sender, events) = mpsc::channel(EVENTS);
        // The relay must know the SFU's sockets, the SFU's clients the relay's: the addresses follow when both stand.
        let turn_uris: Arc<OnceLock<Vec<String>>> = Arc::default();
        let sfu = if config.sfu.enabled {
            let surroundings = Surroundings {
                key: homeserver.calls.sfu_key().clone(),
                switch: switch.clone(),
                events: event_sender,
                ice_servers: ice_servers(Arc::clone(&turn_uris), homeserver.clone()),
                admission: admission(homeserver.clone()),
                shutdown: shutdown.clone(),
            };
            Some(sfu::start(config.sfu.clone(), surroundings).await?)
        } else {
            None
        };
        let relay = if config.turn.enabled {
            let sfu_addresses = sfu.as_ref().map(|sfu| sfu.media_addresses().udp).unwrap_or_default();
            let secret = homeserver.calls.turn_secret().clone();
            let realm = &config.server_name;
            Some(relay::start(
                &config.turn,
                secret,
                realm,
                switch,
                sfu_addresses,
                shutdown.clone(),
            )?)
        } else {
            None
        };
        let uris = relay
            .as_ref()
            .map(|relay| relay_uris(config, relay.listeners()))
            .unwrap_or_default();
        // Nobody else sets it.
        let _ = turn_uris.set(uris.clone());
        let media = Self {
            relay,
            sfu,
            turn_uris: uris,
        };
        let plane = MediaPlane {
            control: Arc::new(media.clone()),
            turn_uris: media.turn_uris.clone(),
            sfu: media.sfu.is_some().then(|| sfu_urls(&config.public_url())),
        };
        tasks.spawn(forward(events, homeserver.connect_media(plane), shutdown.clone()));
        Ok(media)
    }

    /// What the page says about relay and SFU.
    pub(crate) fn services(&self, config: &Config) -> [Service; 2] {
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
            None => off(ServiceName::Relay, "turn.enabled"),
        };
        let calls = match &self.sfu {
            Some(sfu) => {
                let addresses = sfu.media_addresses();
                running(ServiceName::Calls, &[addresses.udp, addresses.tcp].concat())
            }
            None => off(ServiceName::Calls, "sfu.enabled"),
        };
        [relay, calls]
    }

    /// Resolves when both have ended, after the shutdown token was cancelled.
    pub(crate) async fn stopped(&self) {
        if let Some(sfu) = &self.sfu {
            sfu.stopped().await;
        }
        if let Some(relay) = &self.relay {
            relay.stopped().await;
        }
    }
}

impl MediaControl for Media {
    fn open_room(&self, sfu_room: &str) {
        if let Some(sfu) = &self.sfu {
            sfu.ensure_room(sfu_room);
        }
    }

    fn is_present(&self, sfu_room: &str, identity: &str) -> bool {
        self.sfu
            .as_ref()
            .is_some_and(|sfu| sfu.has_participant(sfu_room, identity))
    }

    fn remove_participant<'a>(&'a self, sfu_room: &'a str, identity: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(sfu) = &self.sfu {
                sfu.remove_participant(sfu_room, identity).await;
            }
        })
    }

    fn allocation_holders(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            match &self.relay {
                Some(relay) => relay.users().await,
                None => Vec::new(),
            }
        })
    }

    fn revoke_relay<'a>(&'a self, user_id: &'a str, until: u64) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(relay) = &self.relay {
                relay.revoke_user(user_id, until).await;
            }
        })
    }

    fn close_allocations<'a>(&'a self, user_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(relay) = &self.relay {
                let allocations = relay.close_user(user_id).await;
                if allocations > 0 {
                    tracing::info!(user_id, allocations, "relay allocations ended");
                }
            }
        })
    }
}

/// Tells the homeserver what happens in calls, until shutdown.
async fn forward(
    mut events: mpsc::Receiver<SfuEvent>,
    homeserver: mpsc::Sender<MediaEvent>,
    shutdown: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => event,
        };
        let Some(event) = event else { return };
        // A homeserver that listens no more is shutting down.
        if homeserver.send(translated(event)).await.is_err() {
            return;
        }
    }
}

fn translated(event: SfuEvent) -> MediaEvent {
    match event {
        SfuEvent::ParticipantJoined { room, identity } => MediaEvent::Joined {
            sfu_room: room,
            identity,
        },
        SfuEvent::ParticipantLeft { room, identity, reason } => MediaEvent::Left {
            sfu_room: room,
            identity,
            reason: match reason {
                LeaveReason::Left => PartingReason::Left,
                LeaveReason::MediaGone => PartingReason::MediaGone,
                LeaveReason::Removed | LeaveReason::RoomClosed => PartingReason::Removed,
                LeaveReason::Duplicate => PartingReason::Replaced,
                LeaveReason::Shutdown => PartingReason::Shutdown,
            },
        },
    }
}

fn ice_servers(uris: Arc<OnceLock<Vec<String>>>, homeserver: Homeserver) -> sfu::IceServers {
    Arc::new(move |room: &str, identity: &str| {
        let Some(urls) = uris.get().filter(|uris| !uris.is_empty()) else {
            return Vec::new();
        };
        let Some(credentials) = homeserver.calls.participant_turn_credentials(room, identity) else {
            return Vec::new();
        };
        vec![IceServer {
            urls: urls.clone(),
            username: credentials.username,
            credential: credentials.password,
        }]
    })
}

fn admission(homeserver: Homeserver) -> sfu::Admission {
    Arc::new(move |room: String, identity: String| {
        let homeserver = homeserver.clone();
        Box::pin(async move {
            match homeserver.admit_participant(&room, &identity).await {
                Ok(true) => Admitted::Yes,
                Ok(false) => Admitted::No,
                Err(error) => {
                    tracing::warn!(%error, "whether a participant may enter a call could not be checked");
                    Admitted::Unknown
                }
            }
        })
    })
}

fn sfu_urls(public_url: &str) -> SfuUrls {
    let websocket = match public_url.split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some((_, rest)) => format!("wss://{rest}"),
        None => format!("wss://{public_url}"),
    };
    SfuUrls {
        service_url: format!("{public_url}{SFU_SERVICE_PATH}"),
        websocket_url: format!("{websocket}{SIGNALLING_PATH}"),
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
    // The certificate is made out to the name: TLS clients must use it.
    for address in config.tls.addresses.iter().filter(|_| config.tls.certificate.is_some()) {
        let uri = format!("turns:{public_host}:{}?transport=tcp", address.port());
        if !uris.contains(&uri) {
            uris.push(uri);
        }
    }
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
    let (listen, external) = match name {
        ServiceName::Relay => ("`turn.listen`", "`turn.external_ips`"),
        ServiceName::Calls | ServiceName::Chat => ("`sfu.udp_listen` and `sfu.tcp_listen`", "`sfu.external_ips`"),
    };
    let cure = match reach {
        Some(Reach::Internet) => None,
        Some(Reach::Network) => Some(format!(
            "For calls from elsewhere, forward its ports on your router (`longhouse ports` lists them) and name the \
             public address in {external}."
        )),
        Some(Reach::Machine) | None => Some(format!(
            "For calls with others, let {listen} name an address that they can reach, or every address: `0.0.0.0`."
        )),
    };
    Service {
        name,
        state: ServiceState::Running,
        reach,
        addresses: shown,
        detail: None,
        cure,
        stun: None,
    }
}

fn off(name: ServiceName, setting: &str) -> Service {
    Service {
        name,
        state: ServiceState::Off,
        reach: None,
        addresses: Vec::new(),
        detail: Some(format!("The configuration says `{setting} = false`.")),
        cure: Some("Take that line out and restart Longhouse to switch it on.".to_owned()),
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
        let mut config = Config {
            server_name: "example.org".to_owned(),
            ..Config::default()
        };
        config.tls.addresses = vec![address("0.0.0.0:443"), address("[::]:443")];
        config.tls.certificate = Some("chain.pem".into());
        assert_eq!(relay_uris(&config, &[]), ["turns:example.org:443?transport=tcp"]);
        assert_eq!(stun_uri("turn:[::1]:9?transport=udp"), "stun:[::1]:9");
    }
}
