//! What clients ask for at their start that this server has none of: the specification's answers for nothing.

use axum::{Json, routing::get};
use serde_json::{Value, json};

use super::{Auth, Routes};

pub(super) fn router() -> Routes {
    Routes::new().client("/pushers", get(pushers))
}

/// `GET /_matrix/client/v3/pushers`: client-server API, "Push Notifications".
async fn pushers(Auth(_): Auth) -> Json<Value> {
    Json(json!({ "pushers": [] }))
}
