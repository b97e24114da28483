//! Profiles.
//! Spec: client-server API, "Profiles".

use axum::{Json, extract::State, routing::get};
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{ApiError, Auth, JsonBody, Routes, arguments::Path};
use crate::Homeserver;

/// Fields beyond name and picture, under the names used before they became part of the specification.
pub(super) const UNSTABLE_FEATURES: &[&str] = &["uk.tcpip.msc4133", "uk.tcpip.msc4133.stable"];

pub(super) fn router() -> Routes {
    let field = || get(read_field).put(set_field).delete(remove_field);
    Routes::new()
        .client("/profile/{user_id}", get(read))
        .client("/profile/{user_id}/{field}", field())
        .route(
            "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
            field(),
        )
}

/// `GET /_matrix/client/v3/profile/{userId}`: client-server API, "Profiles".
async fn read(State(hs): State<Homeserver>, Path(user_id): Path<OwnedUserId>) -> Result<Json<Value>, ApiError> {
    Ok(Json(profile(&hs, &user_id).await?.into()))
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`: client-server API, "Profiles".
async fn read_field(
    State(hs): State<Homeserver>,
    Path((user_id, field)): Path<(OwnedUserId, String)>,
) -> Result<Json<Value>, ApiError> {
    match profile(&hs, &user_id).await?.remove(&field) {
        Some(value) => Ok(Json(json!({ field: value }))),
        None => Err(ApiError::not_found("This profile does not have that field.")),
    }
}

async fn profile(hs: &Homeserver, user_id: &UserId) -> Result<Map<String, Value>, ApiError> {
    if !hs.accounts.is_local(user_id) {
        return Err(ApiError::not_found("There is no such user on this server."));
    }
    hs.accounts.profile(user_id).await
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`: client-server API, "Profiles".
async fn set_field(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((user_id, field)): Path<(OwnedUserId, String)>,
    JsonBody(mut body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let is_shown = field == "displayname" || field == "avatar_url";
    let value = match body.remove(&field) {
        Some(Value::String(text)) if text.is_empty() && is_shown => None,
        Some(Value::Null) | None if is_shown => None,
        Some(value) if is_shown && !value.is_string() => {
            return Err(ApiError::bad_json(format!("`{field}` must be a string.")));
        }
        Some(value) => Some(value),
        None => return Err(ApiError::missing_param(format!("`{field}` is missing."))),
    };
    change(&hs, &sender.user_id, user_id, &field, value).await
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`: client-server API, "Profiles".
async fn remove_field(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((user_id, field)): Path<(OwnedUserId, String)>,
) -> Result<Json<Value>, ApiError> {
    change(&hs, &sender.user_id, user_id, &field, None).await
}

async fn change(
    hs: &Homeserver,
    sender: &UserId,
    user_id: OwnedUserId,
    field: &str,
    value: Option<Value>,
) -> Result<Json<Value>, ApiError> {
    if sender != user_id {
        return Err(ApiError::forbidden("This is somebody else's profile."));
    }
    let changed = hs.accounts.set_profile_field(&user_id, field, value).await?;
    if changed && matches!(field, "displayname" | "avatar_url") {
        let hs = hs.clone();
        let task = hs.clone();
        hs.tasks.spawn(async move {
            // One after the other, each with what the profile then says: an older name never wins.
            let _one = task.accounts.showing_profiles.lock().await;
            let shown = match task.accounts.shown_profile(&user_id).await {
                Ok(profile) => task
                    .rooms
                    .update_profile(&user_id, &profile)
                    .await
                    .map_err(ApiError::from),
                Err(error) => Err(error),
            };
            if let Err(error) = shown {
                tracing::warn!(%user_id, %error, "could not show a changed profile in rooms");
            }
        });
    }
    Ok(Json(json!({})))
}
