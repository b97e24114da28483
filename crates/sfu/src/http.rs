//! The HTTP surface under which clients reach the SFU: the signalling WebSockets and their `validate` companions, under
//! whatever prefix the process mounts the router.
//!
//! Owns authentication before the upgrade and the errors clients act upon. Knows rooms only by name.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    extract::{Query, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    response::{IntoResponse, Response},
};
use credentials::livekit::Claims;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use tracing::debug;

use crate::{
    Admission, Admitted, Environment, clock,
    room::{Join, RoomLink, Rooms},
    signal::{
        codec, connection,
        join::{self, JoinParameters},
    },
};

pub(crate) struct Surface {
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) environment: Arc<Environment>,
    pub(crate) admission: Admission,
}

/// The router of [`Surface`]. Everything is dispatched by hand, because clients build paths like `//rtc`.
pub(crate) fn router(surface: Surface) -> Router {
    Router::new().fallback(dispatch).with_state(Arc::new(surface))
}

/// Why a client is not let in; the text reaches the user of the client.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no permissions to access the room: {0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("requested room does not exist")]
    NoRoom,
    #[error("room is full")]
    Full,
    #[error("the server cannot tell at the moment whether the token is still good: try again")]
    Undecided,
    #[error("{0}")]
    BadRequest(String),
    #[error("not found")]
    NotFound,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NoRoom | Self::NotFound => StatusCode::NOT_FOUND,
            // Element Call reads 503 as "insufficient capacity".
            Self::Full | Self::Undecided => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
        };
        (status, self.to_string()).into_response()
    }
}

async fn dispatch(
    State(surface): State<Arc<Surface>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let path: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let mut response = match (&method, path.as_slice()) {
        (&Method::OPTIONS, _) => StatusCode::OK.into_response(),
        (&Method::GET | &Method::HEAD, []) => (StatusCode::OK, "OK").into_response(),
        (_, ["rtc", "v1"]) => open(&surface, &headers, &query, upgrade, join::single_connection).await,
        (_, ["rtc"]) => open(&surface, &headers, &query, upgrade, join::dual_connection).await,
        (&Method::GET, ["rtc", "validate"] | ["rtc", "v1", "validate"]) => validate(&surface, &headers, &query).await,
        _ => Refusal::NotFound.into_response(),
    };
    let cors = response.headers_mut();
    cors.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    cors.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, OPTIONS"),
    );
    cors.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("*, Authorization"),
    );
    response
}

/// `GET …/rtc/v1` and `GET …/rtc`: the signalling WebSocket of LiveKit's client protocol.
async fn open(
    surface: &Surface,
    headers: &HeaderMap,
    query: &HashMap<String, String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    read: fn(&HashMap<String, String>) -> Result<JoinParameters, join::JoinError>,
) -> Response {
    // A plain GET is how some probes ask whether the path exists: LiveKit answers 404.
    let Ok(upgrade) = upgrade else {
        return Refusal::NotFound.into_response();
    };
    let admitted = admit(surface, headers, query).await.and_then(|(claims, room)| {
        let parameters = read(query).map_err(|error| Refusal::BadRequest(error.to_string()))?;
        Ok((claims, room, parameters))
    });
    let (claims, room, mut parameters) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            debug!(%refusal, "signalling connection refused");
            metrics::counter!("sfu_signal_refused_total").increment(1);
            return refusal.into_response();
        }
    };
    if parameters.client.browser.is_empty() {
        parameters.client.browser = browser(headers).to_owned();
    }
    let silence = surface.environment.config.ping_timeout();
    upgrade
        .max_message_size(codec::MAX_MESSAGE)
        .max_frame_size(codec::MAX_MESSAGE)
        .on_upgrade(move |socket| {
            let join = move |connection, outbound| Join {
                connection,
                claims,
                parameters,
                outbound,
            };
            connection::run(socket, room, join, silence)
        })
}

/// `GET …/rtc/v1/validate` and `GET …/rtc/validate`: why the WebSocket was refused, in a form that a browser may read.
async fn validate(surface: &Surface, headers: &HeaderMap, query: &HashMap<String, String>) -> Response {
    match admit(surface, headers, query).await {
        Ok(_) => (StatusCode::OK, "success").into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Token, grant, admission and room: in that order, so that a stranger learns nothing about rooms.
async fn admit(
    surface: &Surface,
    headers: &HeaderMap,
    query: &HashMap<String, String>,
) -> Result<(Claims, RoomLink), Refusal> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
    let token = bearer
        .or_else(|| query.get("access_token").map(String::as_str))
        .ok_or_else(|| Refusal::Unauthorized("access token is missing".to_owned()))?;
    let claims = surface
        .environment
        .key
        .verify(token, clock::unix_seconds())
        .map_err(|error| Refusal::Unauthorized(error.to_string()))?;
    if !claims.video.room_join || claims.video.room.is_empty() {
        return Err(Refusal::Forbidden("the token does not permit joining a room"));
    }
    if claims.identity.is_empty() || claims.identity.len() > 1024 {
        return Err(Refusal::Forbidden("the token names no participant"));
    }
    if surface.environment.removals.ended(&claims) {
        return Err(Refusal::Unauthorized("its holder was removed".to_owned()));
    }
    match (surface.admission)(claims.video.room.clone(), claims.identity.clone()).await {
        Admitted::Yes => {}
        Admitted::No => return Err(Refusal::Forbidden("its holder may not be in this call any more")),
        Admitted::Unknown => return Err(Refusal::Undecided),
    }
    let room = if claims.video.room_create {
        surface.rooms.ensure(&claims.video.room).ok_or(Refusal::NoRoom)?
    } else {
        surface.rooms.get(&claims.video.room).ok_or(Refusal::NoRoom)?
    };
    let limit = surface.environment.config.max_participants_per_room;
    if limit > 0 && room.participant_count() >= limit && !room.has_participant(&claims.identity) {
        return Err(Refusal::Full);
    }
    Ok((claims, room))
}

/// The browser's name as LiveKit writes it, for the few places where browsers differ.
fn browser(headers: &HeaderMap) -> &'static str {
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    [
        ("Firefox/", "Firefox"),
        ("Edg/", "Edge"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ]
    .into_iter()
    .find(|(mark, _)| agent.contains(mark))
    .map_or("", |(_, name)| name)
}
