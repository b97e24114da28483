//! Logging in and out.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, Auth, JsonBody, Routes, extract::Ip, interactive};
use crate::{
    Homeserver,
    accounts::{Login, NewDevice},
    limits::Class,
};

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/login", get(flows).post(login))
        .route("/_matrix/client/v1/login/get_token", post(get_token))
        .client("/logout", post(logout))
        .client("/logout/all", post(logout_all))
}

/// `GET /_matrix/client/v3/login`: client-server API, "Login".
async fn flows() -> Json<Value> {
    Json(json!({ "flows": [
        { "type": "m.login.password" },
        { "type": "m.login.token", "get_login_token": true },
    ] }))
}

#[derive(Deserialize)]
struct LoginRequest {
    r#type: String,
    identifier: Option<Identifier>,
    /// Older than `identifier`.
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
}

/// Spec: client-server API, "Identifier types".
#[derive(Deserialize)]
struct Identifier {
    r#type: String,
    user: Option<String>,
}

/// `POST /_matrix/client/v3/login`: client-server API, "Login".
async fn login(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    JsonBody(request): JsonBody<LoginRequest>,
) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Login)?;
    let user_id = match request.r#type.as_str() {
        "m.login.password" => {
            let user = match &request.identifier {
                Some(identifier) if identifier.r#type != "m.id.user" => {
                    return Err(ApiError::forbidden("Users sign in here by their user name only."));
                }
                Some(identifier) => identifier.user.as_deref(),
                None => request.user.as_deref(),
            };
            let user = user.ok_or_else(|| ApiError::missing_param("`identifier.user` is missing."))?;
            let password = request
                .password
                .as_deref()
                .ok_or_else(|| ApiError::missing_param("`password` is missing."))?;
            hs.accounts.check_password(user, password).await?
        }
        "m.login.token" => {
            let token = request
                .token
                .as_deref()
                .ok_or_else(|| ApiError::missing_param("`token` is missing."))?;
            hs.accounts.redeem_login_token(token)?
        }
        _ => {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "This way to log in is not offered: GET this path to see those that are.",
            ));
        }
    };
    let device = NewDevice {
        device_id: request.device_id,
        display_name: request.initial_device_display_name,
    };
    let login = hs.accounts.log_in(user_id, device).await?;
    let mut answer = session_answer(&hs, &login);
    answer.insert(
        "well_known".to_owned(),
        json!({ "m.homeserver": { "base_url": hs.config.public_base_url } }),
    );
    Ok(Json(answer.into()))
}

/// What login and registration answer alike.
pub(super) fn session_answer(hs: &Homeserver, login: &Login) -> Map<String, Value> {
    let mut answer = Map::new();
    answer.insert("user_id".to_owned(), login.user_id.as_str().into());
    answer.insert("home_server".to_owned(), hs.config.server_name.as_str().into());
    answer.insert("access_token".to_owned(), login.access_token.as_str().into());
    answer.insert("device_id".to_owned(), login.device_id.as_str().into());
    answer
}

/// `POST /_matrix/client/v1/login/get_token`: client-server API, "Login".
async fn get_token(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    interactive::confirm(&hs, &sender, "POST /login/get_token", body).await?;
    let (login_token, expires_in_ms) = hs.accounts.new_login_token(sender.user_id);
    Ok(Json(
        json!({ "login_token": login_token, "expires_in_ms": expires_in_ms }),
    ))
}

/// `POST /_matrix/client/v3/logout`: client-server API, "Logout".
async fn logout(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<Value>, ApiError> {
    hs.remove_devices(&sender.user_id, &[sender.device_id.to_string()])
        .await?;
    Ok(Json(json!({})))
}

/// `POST /_matrix/client/v3/logout/all`: client-server API, "Logout".
async fn logout_all(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<Value>, ApiError> {
    hs.remove_all_devices(&sender.user_id, None).await?;
    Ok(Json(json!({})))
}
