//! Who is there, asked for and said.
//! Spec: client-server API, "Presence".

use axum::{Json, extract::State, routing::get};
use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Auth, JsonBody, Routes, arguments::Path};
use crate::{
    Homeserver,
    presence::{Content, State as Presence},
};

/// The longest text a user can say of themselves, in bytes.
const MAX_STATUS: usize = 1024;

pub(super) fn router() -> Routes {
    Routes::new().client("/presence/{user_id}/status", get(read).put(set))
}

/// `GET /_matrix/client/v3/presence/{userId}/status`
async fn read(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(user_id): Path<OwnedUserId>,
) -> Result<Json<Content>, ApiError> {
    if !hs.accounts.exists(&user_id).await? {
        return Err(ApiError::not_found("There is no presence of this user here."));
    }
    if !hs.shares_room(&sender.user_id, &user_id).await? {
        return Err(ApiError::forbidden("You share no room with this user."));
    }
    Ok(Json(hs.presence.of(&user_id)))
}

#[derive(Deserialize)]
struct Said {
    presence: String,
    status_msg: Option<String>,
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`
async fn set(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(user_id): Path<OwnedUserId>,
    JsonBody(said): JsonBody<Said>,
) -> Result<Json<Value>, ApiError> {
    if sender.user_id != user_id {
        return Err(ApiError::forbidden("This is somebody else's presence."));
    }
    if !hs.presence.is_enabled() {
        return Err(ApiError::forbidden("This server does not tell others who is there."));
    }
    let state = Presence::parse(&said.presence)
        .ok_or_else(|| ApiError::invalid_param("`presence` is `offline`, `online` or `unavailable`."))?;
    let status = said.status_msg.unwrap_or_default();
    if status.len() > MAX_STATUS || status.contains('\0') {
        return Err(ApiError::invalid_param(format!(
            "`status_msg` may have at most {MAX_STATUS} bytes, none of them NUL."
        )));
    }
    hs.set_presence(&user_id, &sender.device_id, state, Some(status))
        .await?;
    Ok(Json(json!({})))
}
