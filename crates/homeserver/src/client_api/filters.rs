//! Filters.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ruma::api::client::filter::{create_filter, get_filter};
use serde_json::value::RawValue;

use super::{ApiError, Routes, Ruma, RumaResponse, raw_json};
use crate::{Homeserver, sync::FilterLookup};

pub(super) fn router() -> Routes {
    Routes::new().ruma(upload_filter).ruma(download_filter)
}

/// `POST /_matrix/client/v3/user/{userId}/filter` (spec: client-server API §Filtering).
async fn upload_filter(
    State(hs): State<Homeserver>,
    req: Ruma<create_filter::v3::Request>,
) -> Result<RumaResponse<create_filter::v3::Response>, ApiError> {
    if req.sender().user_id != req.body.user_id {
        return Err(ApiError::forbidden("Filters are uploaded by their owner only."));
    }
    // Kept as it came: fields of later versions come back to the client.
    let text = std::str::from_utf8(&req.raw).map_err(|_| ApiError::not_json("The body is not valid UTF-8."))?;
    let text = if text.trim().is_empty() { "{}" } else { text };
    let filter_id = hs.sync.keep_filter(&req.body.user_id, text.to_owned()).await?;
    Ok(RumaResponse(create_filter::v3::Response::new(filter_id)))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}` (spec: client-server API §Filtering).
async fn download_filter(
    State(hs): State<Homeserver>,
    req: Ruma<get_filter::v3::Request>,
) -> Result<Response, ApiError> {
    if req.sender().user_id != req.body.user_id {
        return Err(ApiError::forbidden("Filters are visible to their owner only."));
    }
    let kept = hs
        .sync
        .filter_definition(&req.body.user_id, &req.body.filter_id)
        .await?;
    let text = kept.ok_or_else(|| ApiError::not_found("There is no filter with this id."))?;
    Ok(raw_json(&RawValue::from_string(text).map_err(ApiError::internal)?))
}

impl From<FilterLookup> for ApiError {
    fn from(error: FilterLookup) -> Self {
        match error {
            FilterLookup::Unknown => Self::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", error.to_string()),
            FilterLookup::Refused(e) => Self::bad_json(e.to_string()),
            FilterLookup::Storage(e) => e.into(),
        }
    }
}
