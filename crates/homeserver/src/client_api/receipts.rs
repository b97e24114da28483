//! Read receipts and read markers.

use axum::extract::State;
use http::StatusCode;
use ruma::{
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
    },
    events::receipt::ReceiptThread,
};

use super::{ApiError, Routes, Ruma, RumaResponse};
use crate::{
    Homeserver,
    sync::{NewReceipt, ReceiptError},
};

pub(super) fn router() -> Routes {
    Routes::new().ruma(send_receipt).ruma(set_read_markers)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}` (spec: client-server API §Receipts).
async fn send_receipt(
    State(hs): State<Homeserver>,
    req: Ruma<create_receipt::v3::Request>,
) -> Result<RumaResponse<create_receipt::v3::Response>, ApiError> {
    let sender = &req.sender().user_id;
    super::require_joined(&hs, sender, &req.body.room_id).await?;
    let new = NewReceipt {
        receipt_type: req.body.receipt_type.clone(),
        thread: req.body.thread.clone(),
        event_id: req.body.event_id.clone(),
    };
    hs.set_receipt(&req.body.room_id, sender, new).await?;
    hs.note_activity(sender).await?;
    Ok(RumaResponse(create_receipt::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers` (spec: client-server API §Fully read markers).
async fn set_read_markers(
    State(hs): State<Homeserver>,
    req: Ruma<set_read_marker::v3::Request>,
) -> Result<RumaResponse<set_read_marker::v3::Response>, ApiError> {
    let sender = &req.sender().user_id;
    super::require_joined(&hs, sender, &req.body.room_id).await?;
    let markers = [
        (ReceiptType::FullyRead, &req.body.fully_read),
        (ReceiptType::Read, &req.body.read_receipt),
        (ReceiptType::ReadPrivate, &req.body.private_read_receipt),
    ];
    for (receipt_type, event_id) in markers {
        if let Some(event_id) = event_id.clone() {
            let new = NewReceipt {
                receipt_type,
                thread: ReceiptThread::Unthreaded,
                event_id,
            };
            hs.set_receipt(&req.body.room_id, sender, new).await?;
        }
    }
    hs.note_activity(sender).await?;
    Ok(RumaResponse(set_read_marker::v3::Response::new()))
}

impl From<ReceiptError> for ApiError {
    fn from(error: ReceiptError) -> Self {
        let message = error.to_string();
        match error {
            ReceiptError::UnknownEvent(_) => Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message),
            ReceiptError::UnknownType(_) | ReceiptError::NotInThread(_) | ReceiptError::InvalidThread => {
                Self::invalid_param(message)
            }
            ReceiptError::Storage(e) => e.into(),
        }
    }
}
