//! `GET /sync`.

use std::{collections::HashMap, time::Duration};

use axum::{
    extract::{Query, State},
    response::Response,
    routing::get,
};
use serde_json::value::to_raw_value;

use super::{ApiError, Routes, extract::AuthWithToken, raw_json};
use crate::{
    Homeserver,
    presence::State as Presence,
    sync::{StateAfter, SyncRequest, SyncToken},
};

pub(super) fn router() -> Routes {
    Routes::new()
        .route("/_matrix/client/v3/sync", get(sync))
        .route("/_matrix/client/r0/sync", get(sync))
}

/// `GET /_matrix/client/v3/sync` (spec: client-server API §Syncing). Parameters are read by hand: the prefixed one of
/// MSC4222 decides under which name state is answered.
async fn sync(
    State(hs): State<Homeserver>,
    AuthWithToken(sender, token): AuthWithToken,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let parameter = |name: &str| query.get(name).map(String::as_str);
    let flag = |name: &str| match parameter(name) {
        None | Some("" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::invalid_param(format!("`{name}` is `true` or `false`."))),
    };
    let since = parameter("since")
        .filter(|text| !text.is_empty())
        .map(SyncToken::parse)
        .transpose();
    let since = since.map_err(|e| ApiError::invalid_param(format!("`since` is {e}.")))?;
    let timeout_ms = match parameter("timeout").filter(|text| !text.is_empty()) {
        None => 0,
        Some(text) => text
            .parse::<u64>()
            .map_err(|_| ApiError::invalid_param("`timeout` is a number of milliseconds."))?,
    };
    let presence = Presence::parse(parameter("set_presence").unwrap_or("online"))
        .ok_or_else(|| ApiError::invalid_param("`set_presence` is `offline`, `online` or `unavailable`."))?;
    let state_after = match (flag("org.matrix.msc4222.use_state_after")?, flag("use_state_after")?) {
        (true, _) => StateAfter::Unstable,
        (false, true) => StateAfter::Stable,
        (false, false) => StateAfter::No,
    };
    let request = SyncRequest {
        filter: hs.sync.filter(&sender.user_id, parameter("filter")).await?,
        since,
        full_state: flag("full_state")?,
        state_after,
        timeout: Duration::from_millis(timeout_ms),
        sender,
        token,
    };
    let connected = hs
        .connect_presence(&request.sender.user_id, &request.sender.device_id, presence)
        .await?;
    let response = hs.sync(request).await?;
    drop(connected);
    Ok(raw_json(&to_raw_value(&response).map_err(ApiError::internal)?))
}
