//! What clients ask for at their start that this server has none of: the specification's answers for nothing.

use axum::{Json, Router, extract::State, routing::get};
use ruma::OwnedUserId;
use serde_json::{Value, json};

use super::{
    ApiError, Auth,
    arguments::{ClientPaths as _, Path},
};
use crate::Homeserver;

pub(super) fn router() -> Router<Homeserver> {
    Router::new()
        .client("/thirdparty/protocols", get(third_party_protocols))
        .client("/pushers", get(pushers))
        .client("/presence/{user_id}/status", get(presence).put(set_presence))
}

/// `GET /_matrix/client/v3/thirdparty/protocols`: client-server API, "Third-party Networks".
async fn third_party_protocols(Auth(_): Auth) -> Json<Value> {
    Json(json!({}))
}

/// `GET /_matrix/client/v3/pushers`: client-server API, "Push Notifications".
async fn pushers(Auth(_): Auth) -> Json<Value> {
    Json(json!({ "pushers": [] }))
}

/// `GET /_matrix/client/v3/presence/{userId}/status`: client-server API, "Presence".
async fn presence(
    State(hs): State<Homeserver>,
    Auth(_): Auth,
    Path(user_id): Path<OwnedUserId>,
) -> Result<Json<Value>, ApiError> {
    match hs.accounts.exists(&user_id).await? {
        true => Ok(Json(json!({ "presence": "offline" }))),
        false => Err(ApiError::not_found("There is no presence of this user here.")),
    }
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`: client-server API, "Presence".
async fn set_presence(Auth(_): Auth) -> ApiError {
    ApiError::forbidden("This server does not tell others who is online.")
}
