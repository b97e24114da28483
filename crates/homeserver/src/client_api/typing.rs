//! Typing notifications.

use axum::extract::State;
use ruma::api::client::typing::create_typing_event::v3::{self, Typing};

use super::{ApiError, Routes, Ruma, RumaResponse};
use crate::Homeserver;

pub(super) fn router() -> Routes {
    Routes::new().ruma(set_typing)
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}` (spec: client-server API §Typing Notifications).
async fn set_typing(
    State(hs): State<Homeserver>,
    req: Ruma<v3::Request>,
) -> Result<RumaResponse<v3::Response>, ApiError> {
    let sender = &req.sender().user_id;
    if *sender != req.body.user_id {
        return Err(ApiError::forbidden("Only your own typing can be announced."));
    }
    super::require_joined(&hs, sender, &req.body.room_id).await?;
    match &req.body.state {
        Typing::Yes(info) => {
            hs.note_activity(sender).await?;
            let timeout_ms = u64::try_from(info.timeout.as_millis()).unwrap_or(u64::MAX);
            hs.sync.start_typing(&req.body.room_id, sender, timeout_ms).await?;
        }
        Typing::No => hs.sync.stop_typing(&req.body.room_id, sender).await?,
    }
    Ok(RumaResponse(v3::Response::new()))
}
