//! Making an account.

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ApiError, JsonBody, Routes, arguments::Query, extract::Ip, interactive::typed, login::session_answer};
use crate::{
    Homeserver,
    accounts::{NewDevice, NewUser, Operation, Passed, RegistrationBy},
    limits::Class,
};

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/register", post(register))
        .client("/register/available", get(available))
        .route(
            "/_matrix/client/v1/register/m.login.registration_token/validity",
            get(token_validity),
        )
        .route(
            "/_synapse/admin/v1/register",
            get(nonce).post(register_by_shared_secret),
        )
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

#[derive(Deserialize)]
struct RegisterRequest {
    username: Option<String>,
    password: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
}

/// `POST /_matrix/client/v3/register`: client-server API, "Account registration".
async fn register(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    Query(Kind { kind }): Query<Kind>,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    match kind.as_deref() {
        None | Some("user") => {}
        Some("guest") => {
            return Err(ApiError::new(
                http::StatusCode::FORBIDDEN,
                "M_GUEST_ACCESS_FORBIDDEN",
                "This server has no guest accounts.",
            ));
        }
        Some(_) => return Err(ApiError::invalid_param("`kind` is `user` or `guest`.")),
    }
    if body.get("type").and_then(Value::as_str) == Some("m.login.application_service") {
        return Err(ApiError::forbidden(
            "No application service is registered with this token.",
        ));
    }
    hs.limits.check_address(ip, Class::Registration)?;
    let flows = hs.accounts.registration_flows();
    if flows.is_empty() {
        return Err(ApiError::forbidden(
            "Registration is closed: ask an administrator of this server for an account.",
        ));
    }
    // A name that cannot be had is told before the stages, so that a token is not asked for in vain.
    let wanted = body.get("username").filter(|name| !name.is_null());
    if let Some(name) = wanted {
        let name = name
            .as_str()
            .ok_or_else(|| ApiError::bad_json("`username` must be a string."))?;
        let user_id = hs.accounts.new_user_id(name)?;
        hs.accounts.check_name_is_free(&user_id).await?;
    }
    let operation = Operation {
        name: "POST /register",
        user: None,
        body,
        flows,
    };
    let Passed {
        body,
        registration_token,
    } = hs.accounts.interact(operation).await?;
    let request: RegisterRequest = typed(body)?;
    let Some(password) = request.password else {
        return Err(ApiError::missing_param("`password` is missing."));
    };
    let user = NewUser {
        user_id: request
            .username
            .as_deref()
            .map(|name| hs.accounts.new_user_id(name))
            .transpose()?,
        password: Some(password),
        display_name: None,
        is_admin: false,
        by: registration_token.map_or(RegistrationBy::Decided, RegistrationBy::Token),
        device: (!request.inhibit_login).then_some(NewDevice {
            device_id: request.device_id,
            display_name: request.initial_device_display_name,
        }),
    };
    let (user_id, login) = hs.accounts.create_user(user).await?;
    Ok(Json(match login {
        Some(login) => session_answer(&hs, &login).into(),
        None => json!({ "user_id": user_id, "home_server": hs.config.server_name }),
    }))
}

#[derive(Deserialize)]
struct Username {
    username: String,
}

/// `GET /_matrix/client/v3/register/available`: client-server API, "Account registration".
async fn available(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    Query(Username { username }): Query<Username>,
) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Registration)?;
    let user_id = hs.accounts.new_user_id(&username)?;
    hs.accounts.check_name_is_free(&user_id).await?;
    Ok(Json(json!({ "available": true })))
}

#[derive(Deserialize)]
struct Token {
    token: String,
}

/// `GET /_matrix/client/v1/register/m.login.registration_token/validity`: client-server API, "Token-authenticated
/// registration".
async fn token_validity(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    Query(Token { token }): Query<Token>,
) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Registration)?;
    if hs.accounts.registration_flows().is_empty() {
        return Err(ApiError::forbidden("Registration is closed."));
    }
    Ok(Json(
        json!({ "valid": hs.accounts.registration_token_is_valid(&token).await? }),
    ))
}

/// `GET /_synapse/admin/v1/register`: Synapse's "Shared-Secret Registration".
async fn nonce(State(hs): State<Homeserver>, Ip(ip): Ip) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Registration)?;
    hs.accounts.check_shared_secret_enabled()?;
    Ok(Json(json!({ "nonce": hs.accounts.new_registration_nonce() })))
}

#[derive(Deserialize)]
struct SharedSecretRequest {
    nonce: String,
    username: String,
    displayname: Option<String>,
    password: String,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    mac: String,
    #[serde(default)]
    inhibit_login: bool,
}

/// `POST /_synapse/admin/v1/register`: Synapse's "Shared-Secret Registration".
async fn register_by_shared_secret(
    State(hs): State<Homeserver>,
    Ip(ip): Ip,
    JsonBody(request): JsonBody<SharedSecretRequest>,
) -> Result<Json<Value>, ApiError> {
    hs.limits.check_address(ip, Class::Registration)?;
    let admin = if request.admin { "admin" } else { "notadmin" };
    let mut fields = vec![request.username.as_str(), request.password.as_str(), admin];
    fields.extend(request.user_type.as_deref());
    hs.accounts.check_shared_secret(&request.nonce, &fields, &request.mac)?;
    let user = NewUser {
        user_id: Some(hs.accounts.new_user_id(&request.username)?),
        password: Some(request.password),
        display_name: request.displayname,
        is_admin: request.admin,
        by: RegistrationBy::Decided,
        device: (!request.inhibit_login).then(NewDevice::default),
    };
    let (user_id, login) = hs.accounts.create_user(user).await?;
    Ok(Json(match login {
        Some(login) => session_answer(&hs, &login).into(),
        None => json!({ "user_id": user_id, "home_server": hs.config.server_name }),
    }))
}
