//! A user's own account: who am I, password, end.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ApiError, Auth, JsonBody, Routes,
    interactive::{confirm, typed},
};
use crate::Homeserver;

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/account/whoami", get(whoami))
        .client("/account/password", post(change_password))
        .client("/account/deactivate", post(deactivate))
}

/// `GET /_matrix/client/v3/account/whoami`: client-server API, "Current account information".
async fn whoami(Auth(sender): Auth) -> Json<Value> {
    Json(json!({ "user_id": sender.user_id, "device_id": sender.device_id, "is_guest": false }))
}

#[derive(Deserialize)]
struct NewPassword {
    new_password: Option<String>,
    #[serde(default = "yes")]
    logout_devices: bool,
}

fn yes() -> bool {
    true
}

/// `POST /_matrix/client/v3/account/password`: client-server API, "Changing the account's password".
async fn change_password(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let body = confirm(&hs, &sender, "POST /account/password", body).await?;
    let NewPassword {
        new_password,
        logout_devices,
    } = typed(body)?;
    let new_password = new_password.ok_or_else(|| ApiError::missing_param("`new_password` is missing."))?;
    hs.accounts.set_password(&sender.user_id, &new_password).await?;
    if logout_devices {
        hs.remove_all_devices(&sender.user_id, Some(&sender.device_id)).await?;
    }
    Ok(Json(json!({})))
}

/// `POST /_matrix/client/v3/account/deactivate`: client-server API, "Account deactivation".
async fn deactivate(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    confirm(&hs, &sender, "POST /account/deactivate", body).await?;
    hs.deactivate_account(&sender.user_id).await?;
    Ok(Json(json!({ "id_server_unbind_result": "no-support" })))
}
