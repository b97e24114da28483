//! Sending to devices.

use std::collections::BTreeMap;

use axum::{Json, extract::State, routing::put};
use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage::to_device::{Recipient, ToDeviceMessage, ToDeviceTransaction};

use super::{ApiError, Auth, JsonBody, Routes, arguments::Path};
use crate::{Homeserver, accounts::unix_ms};

/// One to-device message may be as large as an event. Spec: "Size limits".
const MAX_CONTENT: usize = 65_536;

pub(super) fn router() -> Routes {
    Routes::new().client("/sendToDevice/{event_type}/{txn_id}", put(send))
}

#[derive(Deserialize)]
struct Request {
    messages: BTreeMap<OwnedUserId, BTreeMap<String, Map<String, Value>>>,
}

/// `PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}`: client-server API, "Send-to-Device messaging".
async fn send(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((event_type, txn_id)): Path<(String, String)>,
    JsonBody(request): JsonBody<Request>,
) -> Result<Json<Value>, ApiError> {
    let mut messages = Vec::new();
    for (user_id, devices) in request.messages {
        // Users of other servers are reached by federation, which this server does not speak.
        if !hs.accounts.is_local(&user_id) {
            continue;
        }
        for (device_id, content) in devices {
            let event = json!({ "sender": sender.user_id, "type": event_type, "content": content }).to_string();
            if event.len() > MAX_CONTENT {
                return Err(ApiError::too_large("A to-device message may have at most 64 KiB."));
            }
            let recipient = if device_id == "*" {
                Recipient::AllDevices
            } else {
                Recipient::Device(device_id)
            };
            messages.push(ToDeviceMessage {
                user_id: user_id.to_string(),
                recipient,
                event,
            });
        }
    }
    let transaction = ToDeviceTransaction {
        user_id: sender.user_id.to_string(),
        device_id: sender.device_id.to_string(),
        event_type,
        txn_id,
        created_at: unix_ms(&hs.clock),
    };
    hs.devices.send_to_device(transaction, messages).await?;
    Ok(Json(json!({})))
}
