//! The client-server API: a file per endpoint family, each with a `router()` that this one merges.
//!
//! Handlers are thin: they take a typed request apart, ask the services, and build the typed answer.

mod arguments;
mod byte_range;
mod cors;
mod error;
mod extract;
mod history;
mod interactive;
mod limited;
mod room_arguments;
mod routes;

mod absent;
mod account;
mod account_data;
mod calls;
mod create_room;
mod devices;
mod directory;
mod discovery;
mod filters;
mod key_backup;
mod keys;
mod login;
mod media;
mod members;
mod membership;
mod messages;
mod moments;
mod mutual_rooms;
mod notifications;
mod presence;
mod previews;
mod profile;
mod push_rules;
mod receipts;
mod register;
mod relations;
mod reports;
mod send;
mod sfu_service;
mod state;
mod sync;
mod third_party;
mod to_device;
mod typing;
mod upgrade;
mod user_directory;
mod whois;

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{Method, StatusCode, header};
use ruma::{RoomId, UserId};
use serde_json::value::RawValue;

pub use error::ApiError;
pub(crate) use extract::AccessToken;
pub use extract::{Auth, ClientIp, JsonBody, OptionalAuth, Ruma, RumaResponse};
pub use limited::Limit;

use crate::Homeserver;
use limited::PathLimits;
use routes::Routes;

pub use sfu_service::SERVICE_PATH as SFU_SERVICE_PATH;

/// Everything under `/_matrix`, `/_synapse` and `/.well-known/matrix`, with the answers for unknown
/// paths and wrong methods, and CORS headers on every answer.
pub fn router(homeserver: Homeserver) -> Router {
    routes()
        .router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(refuse_nul))
        .layer(middleware::from_fn(cors::allow_any_origin))
        .with_state(homeserver)
}

/// Every path that is served, as it is registered: `{name}` stands for an argument.
pub fn paths() -> Vec<String> {
    routes().paths
}

/// What a request to a path of [`paths`] counts against; `None` for reading that is not limited.
pub fn limit(method: &Method, path: &str) -> Option<Limit> {
    PathLimits::of(path).limit(method)
}

fn routes() -> Routes {
    Routes::new()
        .merge(absent::router())
        .merge(account::router())
        .merge(account_data::router())
        .merge(calls::router())
        .merge(create_room::router())
        .merge(devices::router())
        .merge(directory::router())
        .merge(discovery::router())
        .merge(filters::router())
        .merge(key_backup::router())
        .merge(keys::router())
        .merge(login::router())
        .merge(media::router())
        .merge(members::router())
        .merge(membership::router())
        .merge(messages::router())
        .merge(moments::router())
        .merge(mutual_rooms::router())
        .merge(notifications::router())
        .merge(presence::router())
        .merge(previews::router())
        .merge(profile::router())
        .merge(push_rules::router())
        .merge(receipts::router())
        .merge(register::router())
        .merge(relations::router())
        .merge(reports::router())
        .merge(send::router())
        .merge(sfu_service::router())
        .merge(state::router())
        .merge(sync::router())
        .merge(third_party::router())
        .merge(to_device::router())
        .merge(typing::router())
        .merge(upgrade::router())
        .merge(user_directory::router())
        .merge(whois::router())
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

/// No id, token or parameter has U+0000 in it, and PostgreSQL takes no text that has.
async fn refuse_nul(request: Request, next: Next) -> Response {
    let uri = request.uri();
    let holds_nul = |text: &str| text.contains("%00");
    if holds_nul(uri.path()) || uri.query().is_some_and(holds_nul) {
        return error::no_nul().into_response();
    }
    next.run(request).await
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
