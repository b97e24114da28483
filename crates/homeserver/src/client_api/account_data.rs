//! Account data and tags.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ruma::{
    UserId,
    api::client::{
        config::{get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data},
        tag::{create_tag, delete_tag, get_tags},
    },
};
use serde_json::{Map, Value, json, value::to_raw_value};

use super::{ApiError, Routes, Ruma, RumaResponse, raw_json};
use crate::{Homeserver, accounts::Authenticated, sync::AccountDataError};

pub(super) fn router() -> Routes {
    Routes::new()
        .ruma(set_global)
        .ruma(get_global)
        .ruma(set_of_room)
        .ruma(get_of_room)
        .ruma(list_tags)
        .ruma(add_tag)
        .ruma(remove_tag)
}

fn require_own(sender: &Authenticated, user_id: &UserId) -> Result<(), ApiError> {
    if sender.user_id == user_id {
        Ok(())
    } else {
        Err(ApiError::forbidden("Account data is visible to its owner only."))
    }
}

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}` (spec: client-server API §Client Config).
async fn set_global(
    State(hs): State<Homeserver>,
    req: Ruma<set_global_account_data::v3::Request>,
) -> Result<RumaResponse<set_global_account_data::v3::Response>, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    let event_type = req.body.event_type.to_string();
    hs.set_account_data(&req.body.user_id, None, &event_type, req.body.data.json())
        .await?;
    Ok(RumaResponse(set_global_account_data::v3::Response::new()))
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}` (spec: client-server API §Client Config).
async fn get_global(
    State(hs): State<Homeserver>,
    req: Ruma<get_global_account_data::v3::Request>,
) -> Result<Response, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    let content = hs
        .account_data(&req.body.user_id, None, &req.body.event_type.to_string())
        .await?;
    content.map(|content| raw_json(&content)).ok_or_else(none_of_type)
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}` (spec: client-server API §Client Config).
async fn set_of_room(
    State(hs): State<Homeserver>,
    req: Ruma<set_room_account_data::v3::Request>,
) -> Result<RumaResponse<set_room_account_data::v3::Response>, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    let event_type = req.body.event_type.to_string();
    hs.set_account_data(
        &req.body.user_id,
        Some(&req.body.room_id),
        &event_type,
        req.body.data.json(),
    )
    .await?;
    Ok(RumaResponse(set_room_account_data::v3::Response::new()))
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}` (spec: client-server API §Client Config).
async fn get_of_room(
    State(hs): State<Homeserver>,
    req: Ruma<get_room_account_data::v3::Request>,
) -> Result<Response, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    let event_type = req.body.event_type.to_string();
    let content = hs
        .account_data(&req.body.user_id, Some(&req.body.room_id), &event_type)
        .await?;
    content.map(|content| raw_json(&content)).ok_or_else(none_of_type)
}

fn none_of_type() -> ApiError {
    ApiError::not_found("There is no account data of this type.")
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags` (spec: client-server API §Room Tagging).
async fn list_tags(State(hs): State<Homeserver>, req: Ruma<get_tags::v3::Request>) -> Result<Response, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    let tags = hs.sync.tags(&req.body.user_id, &req.body.room_id).await?;
    let content = to_raw_value(&json!({ "tags": tags })).map_err(ApiError::internal)?;
    Ok(raw_json(&content))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}` (spec: client-server API §Room Tagging).
async fn add_tag(
    State(hs): State<Homeserver>,
    req: Ruma<create_tag::v3::Request>,
) -> Result<RumaResponse<create_tag::v3::Response>, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    // Spec: §m.tag: a namespaced name or one of the client's own, at most 255 bytes.
    if req.body.tag.to_string().len() > 255 {
        return Err(ApiError::invalid_param("A tag's name has at most 255 bytes."));
    }
    // Taken from the body as it came: a tag may carry more than ruma's type knows.
    let info: Map<String, Value> = if req.raw.is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(&req.raw).map_err(|_| ApiError::bad_json("A tag is a JSON object."))?
    };
    hs.sync
        .set_tag(
            &req.body.user_id,
            &req.body.room_id,
            &req.body.tag.to_string(),
            Some(info),
        )
        .await?;
    Ok(RumaResponse(create_tag::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}` (spec: client-server API §Room Tagging).
async fn remove_tag(
    State(hs): State<Homeserver>,
    req: Ruma<delete_tag::v3::Request>,
) -> Result<RumaResponse<delete_tag::v3::Response>, ApiError> {
    require_own(req.sender(), &req.body.user_id)?;
    hs.sync
        .set_tag(&req.body.user_id, &req.body.room_id, &req.body.tag.to_string(), None)
        .await?;
    Ok(RumaResponse(delete_tag::v3::Response::new()))
}

impl From<AccountDataError> for ApiError {
    fn from(error: AccountDataError) -> Self {
        let message = error.to_string();
        match error {
            // Spec: PUT …/account_data/{type}, 405.
            AccountDataError::Controlled(_) => Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message),
            AccountDataError::NotAnObject => Self::bad_json(message),
            AccountDataError::TooLarge => Self::too_large(message),
            AccountDataError::TooManyTags => Self::new(StatusCode::BAD_REQUEST, "M_LIMIT_EXCEEDED", message),
            AccountDataError::Storage(e) => e.into(),
        }
    }
}
