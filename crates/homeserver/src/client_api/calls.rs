//! What clients ask before and during a call: TURN credentials, RTC transports, OpenID tokens,
//! delayed events. The entry to the SFU is in `sfu_service`.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use ruma::api::client::{account::request_openid_token, voip::get_turn_server_info};
use ruma::authentication::TokenType;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, Auth, JsonBody, OptionalAuth, Routes, Ruma, RumaResponse,
    arguments::{Path, Query},
    extract::Ip,
};
use crate::{
    Homeserver,
    accounts::Authenticated,
    calls::{delayed::Action, openid, sfu_access::ROOM_CALL_SLOT},
    limits::Class,
};

/// What works here beyond the specification.
pub(super) const UNSTABLE_FEATURES: &[&str] = &["org.matrix.msc4140", "org.matrix.msc4143"];

pub(super) fn router() -> Routes {
    let mut router = Routes::new()
        .ruma(turn_server)
        .ruma(openid_token)
        .route(
            "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
            get(rtc_transports),
        )
        .route("/_matrix/client/v1/rtc/transports", get(rtc_transports))
        .route("/_matrix/federation/v1/openid/userinfo", get(openid_userinfo));
    for prefix in ["/_matrix/client/unstable/org.matrix.msc4140", "/_matrix/client/v1"] {
        router = router
            .route(&format!("{prefix}/delayed_events"), get(list_delayed_events))
            .route(
                &format!("{prefix}/delayed_events/{{delay_id}}"),
                get(show_delayed_event).post(manage_by_body),
            )
            .route(
                &format!("{prefix}/delayed_events/{{delay_id}}/{{action}}"),
                post(manage_by_path),
            );
    }
    router
}

/// `GET /_matrix/client/v3/voip/turnServer`. Spec: client-server API, "Voice over IP".
async fn turn_server(
    State(hs): State<Homeserver>,
    req: Ruma<get_turn_server_info::v3::Request>,
) -> Result<RumaResponse<get_turn_server_info::v3::Response>, ApiError> {
    let sender = req.sender();
    let (Some((credentials, valid)), Some(plane)) = (hs.calls.turn_credentials(&sender.user_id), hs.calls.plane())
    else {
        return Err(ApiError::not_found("This server has no relay: `turn.enabled` is off."));
    };
    Ok(RumaResponse(get_turn_server_info::v3::Response::new(
        credentials.username,
        credentials.password,
        plane.turn_uris.clone(),
        valid,
    )))
}

/// `GET …/rtc/transports` (MSC4143). An empty list would mean "no calls here", without a way back.
async fn rtc_transports(State(hs): State<Homeserver>, _: Auth) -> Result<Json<Value>, ApiError> {
    let sfu = hs.calls.plane().and_then(|plane| plane.sfu.as_ref());
    // As where there is no such endpoint: clients then look elsewhere.
    let sfu = sfu.ok_or_else(|| ApiError::unrecognized("This server has no SFU: `sfu.enabled` is off."))?;
    Ok(Json(json!({
        "rtc_transports": [{ "type": "livekit", "livekit_service_url": sfu.service_url }]
    })))
}

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`. Spec: client-server API, "OpenID".
async fn openid_token(
    State(hs): State<Homeserver>,
    req: Ruma<request_openid_token::v3::Request>,
) -> Result<RumaResponse<request_openid_token::v3::Response>, ApiError> {
    let sender = req.sender();
    if req.body.user_id != sender.user_id {
        return Err(ApiError::forbidden("OpenID tokens are given for oneself only."));
    }
    Ok(RumaResponse(request_openid_token::v3::Response::new(
        hs.calls
            .openid()
            .mint(&sender.user_id, &sender.device_id, hs.clock.now_secs()),
        TokenType::Bearer,
        hs.config.server_name.clone(),
        openid::VALID,
    )))
}

#[derive(Deserialize)]
struct UserInfoQuery {
    access_token: Option<String>,
}

/// `GET /_matrix/federation/v1/openid/userinfo`. Spec: server-server API, "OpenID". Without request
/// signing: whoever holds the token may learn whose it is.
async fn openid_userinfo(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    Query(query): Query<UserInfoQuery>,
) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Calls)?;
    let token = query.access_token.ok_or_else(ApiError::missing_token)?;
    match hs.openid_holder(&token).await? {
        Some((user_id, _)) => Ok(Json(json!({ "sub": user_id }))),
        None => Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "M_UNKNOWN_TOKEN",
            "This OpenID token is not valid (any more).",
        )),
    }
}

/// `GET …/delayed_events` (MSC4140).
async fn list_delayed_events(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<Value>, ApiError> {
    hs.list_delayed_events(&sender.user_id).await.map(Json)
}

/// `GET …/delayed_events/{delay_id}` (MSC4140).
async fn show_delayed_event(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(delay_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    hs.show_delayed_event(&sender.user_id, &delay_id).await.map(Json)
}

#[derive(Deserialize)]
struct ManageBody {
    action: String,
}

/// `POST …/delayed_events/{delay_id}` with the action in the body: the form of earlier clients.
async fn manage_by_body(
    State(hs): State<Homeserver>,
    OptionalAuth(sender): OptionalAuth,
    Ip(ip): Ip,
    Path(delay_id): Path<String>,
    JsonBody(body): JsonBody<ManageBody>,
) -> Result<Json<Value>, ApiError> {
    limit_management(&hs, sender.as_ref(), ip)?;
    let action = Action::parse(&body.action)
        .ok_or_else(|| ApiError::invalid_param("action must be restart, send or cancel."))?;
    hs.manage_delayed_event(&delay_id, action)
        .await
        .map(|()| Json(json!({})))
}

/// `POST …/delayed_events/{delay_id}/{action}` (MSC4140). The id is the permission: it needs no token, so that a
/// service which the client trusts with it may act.
async fn manage_by_path(
    State(hs): State<Homeserver>,
    OptionalAuth(sender): OptionalAuth,
    Ip(ip): Ip,
    Path((delay_id, action)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    limit_management(&hs, sender.as_ref(), ip)?;
    let action =
        Action::parse(&action).ok_or_else(|| ApiError::unrecognized("There is no such action on a delayed event."))?;
    hs.manage_delayed_event(&delay_id, action)
        .await
        .map(|()| Json(json!({})))
}

/// Counts for the address where there is no token; otherwise it is counted already.
fn limit_management(
    hs: &Homeserver,
    sender: Option<&Authenticated>,
    ip: Option<std::net::IpAddr>,
) -> Result<(), ApiError> {
    match sender {
        Some(_) => Ok(()),
        None => hs.limits.check_address(ip, Class::DelayedEvents),
    }
}

/// What `.well-known/matrix/client` says about calls.
pub(super) fn well_known(hs: &Homeserver) -> Option<(&'static str, Value)> {
    let sfu = hs.calls.plane()?.sfu.as_ref()?;
    Some((
        "org.matrix.msc4143.rtc_foci",
        json!([{ "type": "livekit", "livekit_service_url": sfu.service_url }]),
    ))
}

/// The slot that a request names, or the room's one call.
pub(super) fn slot_or_default(slot: Option<&str>) -> &str {
    slot.unwrap_or(ROOM_CALL_SLOT)
}
