//! The client-server API: a file per endpoint family, each with a `router()` that this one merges.
//!
//! Handlers are thin: they take a typed request apart, ask the services, and build the typed answer.

mod arguments;
mod byte_range;
mod cors;
mod error;
mod extract;
mod interactive;
mod room_arguments;

mod absent;
mod account;
mod account_data;
mod calls;
mod create_room;
mod devices;
mod directory;
mod discovery;
mod filters;
mod keys;
mod login;
mod media;
mod members;
mod membership;
mod messages;
mod notifications;
mod profile;
mod push_rules;
mod receipts;
mod register;
mod send;
mod sfu_service;
mod state;
mod sync;
mod to_device;
mod typing;

use axum::{
    Router, middleware,
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use ruma::{RoomId, UserId};
use serde_json::value::RawValue;

pub use error::ApiError;
pub(crate) use extract::AccessToken;
pub use extract::{Auth, ClientIp, JsonBody, OptionalAuth, Ruma, RumaResponse, RumaRouter};

use crate::Homeserver;

pub use sfu_service::SERVICE_PATH as SFU_SERVICE_PATH;

/// Everything under `/_matrix`, `/_synapse` and `/.well-known/matrix`, with the answers for unknown
/// paths and wrong methods, and CORS headers on every answer.
pub fn router(homeserver: Homeserver) -> Router {
    Router::new()
        .merge(account_data::router())
        .merge(filters::router())
        .merge(notifications::router())
        .merge(push_rules::router())
        .merge(receipts::router())
        .merge(sync::router())
        .merge(typing::router())
        .merge(absent::router())
        .merge(account::router())
        .merge(calls::router())
        .merge(sfu_service::router())
        .merge(devices::router())
        .merge(discovery::router())
        .merge(keys::router())
        .merge(login::router())
        .merge(media::router())
        .merge(profile::router())
        .merge(register::router())
        .merge(create_room::router())
        .merge(directory::router())
        .merge(members::router())
        .merge(membership::router())
        .merge(messages::router())
        .merge(send::router())
        .merge(state::router())
        .merge(to_device::router())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(cors::allow_any_origin))
        .with_state(homeserver)
}

/// Refuses who is not a joined member of the room.
async fn require_joined(hs: &Homeserver, user_id: &UserId, room_id: &RoomId) -> Result<(), ApiError> {
    let room = hs.rooms.find(room_id).await?;
    if room.is_some_and(|room| room.state().is_joined(user_id)) {
        Ok(())
    } else {
        Err(ApiError::forbidden("You are not a member of this room."))
    }
}

/// An answer that is JSON text already.
fn raw_json(json: &RawValue) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.get().to_owned()).into_response()
}

// Spec: client-server API, "Common error codes", M_UNRECOGNIZED.
async fn unknown_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "M_UNRECOGNIZED",
        "There is no such endpoint on this server.",
    )
}

async fn wrong_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "M_UNRECOGNIZED",
        "This endpoint does not have that method.",
    )
}
