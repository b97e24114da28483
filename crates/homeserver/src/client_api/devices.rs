//! A user's devices.
//! Spec: client-server API, "Device Management".

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use ruma::{DeviceId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage::devices::Device;

use super::{
    ApiError, Auth, JsonBody, Routes,
    arguments::Path,
    interactive::{confirm, typed},
};
use crate::Homeserver;

const MAX_DISPLAY_NAME: usize = 512;

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/devices", get(list))
        .client("/devices/{device_id}", get(show).put(rename).delete(delete))
        .client("/delete_devices", post(delete_several))
}

/// `GET /_matrix/client/v3/devices`: client-server API, "Device Management".
async fn list(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<Value>, ApiError> {
    let devices = hs.store.devices(sender.user_id.as_str()).await?;
    let devices: Vec<Value> = devices
        .iter()
        .map(|device| shown(&hs, &sender.user_id, device))
        .collect();
    Ok(Json(json!({ "devices": devices })))
}

/// `GET /_matrix/client/v3/devices/{deviceId}`: client-server API, "Device Management".
async fn show(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(device_id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let device = hs
        .store
        .device(sender.user_id.as_str(), &device_id)
        .await?
        .ok_or_else(no_such_device)?;
    Ok(Json(shown(&hs, &sender.user_id, &device)))
}

fn shown(hs: &Homeserver, user_id: &UserId, device: &Device) -> Value {
    let (ip, at) = last_seen(hs, user_id, device);
    let mut shown = Map::new();
    shown.insert("device_id".to_owned(), device.device_id.as_str().into());
    let optional = [
        ("display_name", device.display_name.clone().map(Value::from)),
        ("last_seen_ip", ip.map(Value::from)),
        ("last_seen_ts", at.map(Value::from)),
    ];
    for (key, value) in optional {
        shown.extend(value.map(|value| (key.to_owned(), value)));
    }
    shown.into()
}

/// The address a device was last seen at, and when (Unix milliseconds).
pub(super) fn last_seen(hs: &Homeserver, user_id: &UserId, device: &Device) -> (Option<String>, Option<u64>) {
    let unwritten = hs
        .accounts
        .last_seen(user_id, <&DeviceId>::from(device.device_id.as_str()));
    match unwritten {
        Some((ip, at)) => (
            ip.map(|ip| ip.to_string()).or_else(|| device.last_seen_ip.clone()),
            Some(at),
        ),
        None => (
            device.last_seen_ip.clone(),
            device.last_seen_at.and_then(|at| u64::try_from(at).ok()),
        ),
    }
}

#[derive(Deserialize)]
struct Rename {
    display_name: Option<String>,
}

/// `PUT /_matrix/client/v3/devices/{deviceId}`: client-server API, "Device Management".
async fn rename(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(device_id): Path<String>,
    JsonBody(Rename { display_name }): JsonBody<Rename>,
) -> Result<Json<Value>, ApiError> {
    let Some(display_name) = display_name else {
        // Nothing to change; still an error for a device that is not there.
        hs.store
            .device(sender.user_id.as_str(), &device_id)
            .await?
            .ok_or_else(no_such_device)?;
        return Ok(Json(json!({})));
    };
    if display_name.len() > MAX_DISPLAY_NAME {
        return Err(ApiError::invalid_param("A device's name may have at most 512 bytes."));
    }
    let note = hs
        .devices
        .note_list_change(&sender.user_id, hs.joined_rooms(&sender.user_id).await?);
    match hs
        .store
        .rename_device(sender.user_id.as_str(), &device_id, Some(display_name), note)
        .await?
    {
        true => Ok(Json(json!({}))),
        false => Err(no_such_device()),
    }
}

/// `DELETE /_matrix/client/v3/devices/{deviceId}`: client-server API, "Device Management".
async fn delete(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(device_id): Path<String>,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    confirm(&hs, &sender, &format!("DELETE /devices/{device_id}"), body).await?;
    hs.remove_devices(&sender.user_id, &[device_id]).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
struct DeleteSeveral {
    devices: Vec<String>,
}

/// `POST /_matrix/client/v3/delete_devices`: client-server API, "Device Management".
async fn delete_several(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let body = confirm(&hs, &sender, "POST /delete_devices", body).await?;
    let DeleteSeveral { devices } = typed(body)?;
    hs.remove_devices(&sender.user_id, &devices).await?;
    Ok(Json(json!({})))
}

fn no_such_device() -> ApiError {
    ApiError::not_found("There is no such device.")
}
