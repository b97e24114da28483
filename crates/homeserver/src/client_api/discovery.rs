//! What clients ask first: versions, capabilities, and where the server is.

use axum::{Json, extract::State, routing::get};
use serde_json::{Map, Value, json};

use super::{ApiError, Auth, Routes};
use crate::{
    Homeserver,
    calls::delayed::{MAX_DELAY_MS, MAX_SCHEDULED},
    room::SUPPORTED_VERSIONS,
};

/// Every version of the client-server API whose endpoints this server answers.
const VERSIONS: &[&str] = &[
    "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
    "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// Unstable features that work here, by the module that makes them work. Only what a client can rely on.
const UNSTABLE_FEATURES: &[&[&str]] = &[
    super::calls::UNSTABLE_FEATURES,
    super::keys::UNSTABLE_FEATURES,
    super::mutual_rooms::UNSTABLE_FEATURES,
    super::profile::UNSTABLE_FEATURES,
];

pub(super) fn router() -> Routes {
    Routes::new()
        .route("/_matrix/client/versions", get(versions))
        .client("/capabilities", get(capabilities))
        .route("/.well-known/matrix/client", get(well_known_client))
        .route("/.well-known/matrix/server", get(well_known_server))
}

/// `GET /_matrix/client/versions`: client-server API, "API Versions".
async fn versions() -> Json<Value> {
    let features: Map<String, Value> = UNSTABLE_FEATURES
        .iter()
        .copied()
        .flatten()
        .map(|feature| ((*feature).to_owned(), Value::Bool(true)))
        .collect();
    Json(json!({ "versions": VERSIONS, "unstable_features": features }))
}

/// `GET /_matrix/client/v3/capabilities`: client-server API, "Capabilities negotiation".
async fn capabilities(State(hs): State<Homeserver>, Auth(_): Auth) -> Result<Json<Value>, ApiError> {
    let versions: Map<String, Value> = SUPPORTED_VERSIONS
        .iter()
        .map(|version| (version.to_string(), Value::from("stable")))
        .collect();
    Ok(Json(json!({ "capabilities": {
        "m.room_versions": { "default": hs.rooms.default_version(), "available": versions },
        "org.matrix.msc4140.delayed_events": { "max_delay_ms": MAX_DELAY_MS, "max_scheduled": MAX_SCHEDULED },
        "m.change_password": { "enabled": true },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": true },
    } })))
}

/// `GET /.well-known/matrix/client`: client-server API, "Server Discovery".
async fn well_known_client(State(hs): State<Homeserver>) -> Json<Value> {
    let mut document = json!({ "m.homeserver": { "base_url": hs.config.public_base_url } });
    if let Some((key, foci)) = super::calls::well_known(&hs) {
        document[key] = foci;
    }
    Json(document)
}

/// `GET /.well-known/matrix/server`: server-server API, "Resolving server names".
async fn well_known_server(State(hs): State<Homeserver>) -> Result<Json<Value>, ApiError> {
    let base = hs.config.public_base_url.as_str();
    let (host, default_port) = match (base.strip_prefix("https://"), base.strip_prefix("http://")) {
        (Some(host), _) => (host, 443),
        (None, Some(host)) => (host, 80),
        (None, None) => return Err(ApiError::not_found("This server has no public address.")),
    };
    // Without a port the reader would look at 8448.
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let server = if has_port {
        host.to_owned()
    } else {
        format!("{host}:{default_port}")
    };
    Ok(Json(json!({ "m.server": server })))
}
