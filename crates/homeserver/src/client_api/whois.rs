//! Where a user's sessions come from.
//! Spec: client-server API, "Server Administration".

use axum::{Json, extract::State, routing::get};
use ruma::OwnedUserId;
use serde_json::{Map, Value, json};

use super::{ApiError, Auth, Routes, arguments::Path, devices::last_seen};
use crate::Homeserver;

pub(super) fn router() -> Routes {
    Routes::new().client("/admin/whois/{user_id}", get(whois))
}

/// `GET /_matrix/client/v3/admin/whois/{userId}`: for the user and for administrators.
async fn whois(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(user_id): Path<OwnedUserId>,
) -> Result<Json<Value>, ApiError> {
    if sender.user_id != user_id && !sender.is_admin {
        return Err(ApiError::forbidden("Only administrators look up others."));
    }
    if !hs.accounts.exists(&user_id).await? {
        return Err(ApiError::not_found("There is no such user on this server."));
    }
    let mut devices = Map::new();
    for device in hs.store.devices(user_id.as_str()).await? {
        let (ip, at) = last_seen(&hs, &user_id, &device);
        let mut connection = Map::new();
        connection.extend(ip.map(|ip| ("ip".to_owned(), ip.into())));
        connection.extend(at.map(|at| ("last_seen".to_owned(), at.into())));
        devices.insert(
            device.device_id,
            json!({ "sessions": [{ "connections": [connection] }] }),
        );
    }
    Ok(Json(json!({ "user_id": user_id, "devices": devices })))
}
