//! Networks of others, and identifiers of others: this server is bridged to none and keeps none, and says so as the
//! specification has it.
//! Spec: client-server API, "Third-party Networks" and "Adding Account Administrative Contact Information".

use axum::{
    Json,
    routing::{get, post},
};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{ApiError, Auth, JsonBody, Routes};

pub(super) fn router() -> Routes {
    let mut routes = Routes::new()
        .client("/thirdparty/protocols", get(protocols))
        .client("/thirdparty/protocol/{protocol}", get(no_network))
        .client("/thirdparty/location", get(no_network))
        .client("/thirdparty/location/{protocol}", get(no_network))
        .client("/thirdparty/user", get(no_network))
        .client("/thirdparty/user/{protocol}", get(no_network))
        .client("/account/3pid", get(identifiers).post(refuse))
        .client("/account/3pid/add", post(refuse))
        .client("/account/3pid/bind", post(refuse))
        .client("/account/3pid/delete", post(remove))
        .client("/account/3pid/unbind", post(remove));
    for medium in ["email", "msisdn"] {
        routes = routes
            .client(&format!("/account/3pid/{medium}/requestToken"), post(no_medium))
            .client(&format!("/account/password/{medium}/requestToken"), post(denied))
            .client(&format!("/register/{medium}/requestToken"), post(denied));
    }
    routes
}

/// `GET /_matrix/client/v3/thirdparty/protocols`
async fn protocols(Auth(_): Auth) -> Json<Value> {
    Json(json!({}))
}

/// `GET /_matrix/client/v3/thirdparty/…` about one network, its places or its users.
async fn no_network(Auth(_): Auth) -> ApiError {
    ApiError::not_found("This server is bridged to no such network.")
}

/// `GET /_matrix/client/v3/account/3pid`
async fn identifiers(Auth(_): Auth) -> Json<Value> {
    Json(json!({ "threepids": [] }))
}

/// `POST /_matrix/client/v3/account/3pid`, `…/add` and `…/bind`: there is no session of a validation to go on from.
async fn refuse(Auth(_): Auth, JsonBody(_): JsonBody<Map<String, Value>>) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "M_THREEPID_AUTH_FAILED",
        "This server keeps no e-mail addresses and telephone numbers.",
    )
}

/// `POST /_matrix/client/v3/account/3pid/delete` and `…/unbind`. An identifier that is not there is removed already.
async fn remove(Auth(_): Auth, JsonBody(_): JsonBody<Map<String, Value>>) -> Json<Value> {
    Json(json!({ "id_server_unbind_result": "no-support" }))
}

/// `POST /_matrix/client/v3/account/3pid/{medium}/requestToken`
async fn no_medium(JsonBody(_): JsonBody<Map<String, Value>>) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "M_THREEPID_MEDIUM_NOT_SUPPORTED",
        "This server sends no e-mails and no text messages.",
    )
}

/// `POST /_matrix/client/v3/register/{medium}/requestToken` and `…/account/password/{medium}/requestToken`
async fn denied(JsonBody(_): JsonBody<Map<String, Value>>) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "M_THREEPID_DENIED",
        "This server sends no e-mails and no text messages.",
    )
}
