//! The SFU's authorisation service: `/livekit/jwt/…` with OpenID tokens, as Element Call speaks it to
//! any deployment, and the client API's own form (MSC4195).
//!
//! For users of this server the OpenID token is checked in memory; no look-up over the network can fail.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Auth, JsonBody, Routes};
use crate::{
    Homeserver,
    calls::sfu_access::{Entry, Identity, ROOM_CALL_SLOT, is_plausible_device},
    limits::Class,
};

/// Where the service is, under the public base URL.
pub const SERVICE_PATH: &str = "/livekit/jwt";

pub(super) fn router() -> Routes {
    Routes::new()
        .route("/livekit/jwt/healthz", get(|| async { StatusCode::OK }))
        .route("/livekit/jwt/sfu/get", post(legacy_entry))
        .route("/livekit/jwt/get_token", post(entry))
        .route("/livekit/jwt/delegate_delayed_leave", post(delegate))
        .route(
            "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token",
            post(client_entry),
        )
        .route(
            "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/delegate_delayed_leave",
            post(client_delegate),
        )
}

/// The verbatim answer of the client API's OpenID call.
#[derive(Deserialize)]
struct OpenIdToken {
    access_token: String,
    matrix_server_name: String,
}

#[derive(Deserialize)]
struct LegacyRequest {
    room: OwnedRoomId,
    openid_token: OpenIdToken,
    #[serde(default)]
    device_id: String,
    delay_id: Option<String>,
    delay_timeout: Option<i64>,
}

#[derive(Deserialize)]
struct EntryRequest {
    room_id: OwnedRoomId,
    slot_id: String,
    openid_token: OpenIdToken,
    member: MemberClaim,
    delay_id: Option<String>,
    delay_timeout: Option<i64>,
}

#[derive(Deserialize)]
struct MemberClaim {
    id: String,
    claimed_user_id: OwnedUserId,
    claimed_device_id: String,
}

#[derive(Deserialize)]
struct ClientRequest {
    url: Option<String>,
    room_id: OwnedRoomId,
    slot_id: Option<String>,
    member: Option<ClientMember>,
    member_id: Option<String>,
    delay_id: Option<String>,
    server_name: Option<String>,
}

#[derive(Deserialize)]
struct ClientMember {
    id: String,
}

/// `POST /sfu/get`: the form that names participants `@user:server:DEVICE`.
async fn legacy_entry(
    State(hs): State<Homeserver>,
    JsonBody(body): JsonBody<LegacyRequest>,
) -> Result<Json<Value>, ApiError> {
    let delayed_leave = delayed_leave(body.delay_id.as_deref(), body.delay_timeout)?;
    let device_id = device(&body.device_id)?;
    let user_id = verify(&hs, &body.openid_token, device_id).await?;
    let admission = hs
        .admit_to_sfu(&Entry {
            user_id: &user_id,
            device_id,
            room_id: &body.room,
            slot_id: ROOM_CALL_SLOT,
            identity: Identity::Legacy,
            delayed_leave,
        })
        .await?;
    Ok(Json(json!({ "url": admission.url, "jwt": admission.jwt })))
}

/// `POST /get_token`: the form that names participants by a hash.
async fn entry(State(hs): State<Homeserver>, JsonBody(body): JsonBody<EntryRequest>) -> Result<Json<Value>, ApiError> {
    admit_claimed(&hs, &body, delayed_leave(body.delay_id.as_deref(), body.delay_timeout)?)
        .await
        .map(Json)
}

/// `POST /delegate_delayed_leave`: the same with a delayed leave, and no token in the answer.
async fn delegate(
    State(hs): State<Homeserver>,
    JsonBody(body): JsonBody<EntryRequest>,
) -> Result<Json<Value>, ApiError> {
    let Some(leave) = delayed_leave(body.delay_id.as_deref(), body.delay_timeout)? else {
        return Err(ApiError::bad_json("delay_id and delay_timeout are needed."));
    };
    admit_claimed(&hs, &body, Some(leave)).await?;
    Ok(Json(json!({})))
}

async fn admit_claimed(hs: &Homeserver, body: &EntryRequest, delayed_leave: Option<&str>) -> Result<Value, ApiError> {
    let device_id = device(&body.member.claimed_device_id)?;
    let user_id = verify(hs, &body.openid_token, device_id).await?;
    if user_id != body.member.claimed_user_id {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "M_UNAUTHORIZED",
            "The OpenID token is another user's.",
        ));
    }
    let admission = hs
        .admit_to_sfu(&Entry {
            user_id: &user_id,
            device_id,
            room_id: &body.room_id,
            slot_id: &body.slot_id,
            identity: Identity::Hashed {
                member_id: &body.member.id,
            },
            delayed_leave,
        })
        .await?;
    Ok(json!({ "url": admission.url, "jwt": admission.jwt }))
}

/// `POST /_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token`.
async fn client_entry(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<ClientRequest>,
) -> Result<Json<Value>, ApiError> {
    admit_client(&hs, &sender, &body, body.delay_id.as_deref())
        .await
        .map(|jwt| Json(json!({ "jwt": jwt })))
}

/// `POST /_matrix/client/unstable/io.element.msc4195/rtc/livekit/delegate_delayed_leave`.
async fn client_delegate(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<ClientRequest>,
) -> Result<Json<Value>, ApiError> {
    let leave = body
        .delay_id
        .as_deref()
        .ok_or_else(|| ApiError::bad_json("delay_id is needed."))?;
    admit_client(&hs, &sender, &body, Some(leave)).await?;
    Ok(Json(json!({})))
}

async fn admit_client(
    hs: &Homeserver,
    sender: &crate::accounts::Authenticated,
    body: &ClientRequest,
    delayed_leave: Option<&str>,
) -> Result<String, ApiError> {
    if body
        .server_name
        .as_deref()
        .is_some_and(|name| name != hs.config.server_name.as_str())
    {
        return Err(ApiError::new(
            StatusCode::BAD_GATEWAY,
            "M_UNKNOWN",
            "This server does not ask other servers for access to their SFU.",
        ));
    }
    let sfu = hs.calls.plane().and_then(|plane| plane.sfu.as_ref());
    if let (Some(url), Some(sfu)) = (&body.url, sfu)
        && *url != sfu.websocket_url
        && *url != sfu.service_url
    {
        return Err(ApiError::invalid_param("url is not this server's SFU."));
    }
    let member_id = body
        .member_id
        .as_deref()
        .or(body.member.as_ref().map(|m| m.id.as_str()));
    let member_id = member_id.ok_or_else(|| ApiError::bad_json("member_id is needed."))?;
    let admission = hs
        .admit_to_sfu(&Entry {
            user_id: &sender.user_id,
            device_id: sender.device_id.as_str(),
            room_id: &body.room_id,
            slot_id: super::calls::slot_or_default(body.slot_id.as_deref()),
            identity: Identity::Hashed { member_id },
            delayed_leave,
        })
        .await?;
    Ok(admission.jwt)
}

/// The user behind an OpenID token, who may claim no other device than the one it was given to.
async fn verify(hs: &Homeserver, token: &OpenIdToken, claimed_device: &str) -> Result<OwnedUserId, ApiError> {
    let refused = |why| ApiError::new(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", why);
    if token.matrix_server_name != hs.config.server_name.as_str() {
        return Err(refused(
            "Users of other servers are not let in: this server does not federate yet.",
        ));
    }
    match hs.openid_holder(&token.access_token).await? {
        Some((user_id, device_id)) if device_id.as_str() == claimed_device => {
            hs.limits.check(&user_id, Class::Calls)?;
            Ok(user_id)
        }
        Some(_) => Err(refused("The OpenID token was given to another device.")),
        None => Err(refused("The OpenID token is not valid (any more): ask for a new one.")),
    }
}

fn device(device_id: &str) -> Result<&str, ApiError> {
    if is_plausible_device(device_id) {
        Ok(device_id)
    } else {
        Err(ApiError::bad_json("A device id is needed."))
    }
}

/// The delayed leave of a request: both of its fields, or neither.
fn delayed_leave(delay_id: Option<&str>, delay_timeout: Option<i64>) -> Result<Option<&str>, ApiError> {
    match (delay_id, delay_timeout) {
        (None, None) => Ok(None),
        (Some(id), Some(timeout)) if timeout > 0 && !id.is_empty() => Ok(Some(id)),
        _ => Err(ApiError::bad_json("delay_id and a positive delay_timeout go together.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delayed_leave_has_both_fields_or_neither() {
        assert_eq!(delayed_leave(None, None).unwrap(), None);
        assert_eq!(delayed_leave(Some("a"), Some(1)).unwrap(), Some("a"));
        for (id, timeout) in [
            (Some("a"), None),
            (None, Some(1)),
            (Some("a"), Some(0)),
            (Some(""), Some(1)),
        ] {
            assert_eq!(delayed_leave(id, timeout).unwrap_err().errcode(), "M_BAD_JSON");
        }
    }
}
