//! Setting read receipts and read markers. A receipt is kept, lowers the reader's unread counts in the same
//! transaction, and is announced: public ones to the room, private ones to the reader alone.

use ruma::{
    EventId, OwnedEventId, RoomId, UserId, api::client::receipt::create_receipt::v3::ReceiptType,
    events::receipt::ReceiptThread,
};
use serde_json::{json, value::RawValue};
use storage::{
    push::{ReadUpTo, mark_read},
    receipts::{Receipt, set_receipt},
};

use super::{Change, RoomStream, account_data::FULLY_READ};
use crate::Homeserver;

/// A receipt that a client sets.
#[derive(Debug)]
pub(crate) struct NewReceipt {
    pub(crate) receipt_type: ReceiptType,
    pub(crate) thread: ReceiptThread,
    pub(crate) event_id: OwnedEventId,
}

/// Why a receipt was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiptError {
    #[error("There is no receipt type {0}.")]
    UnknownType(String),
    #[error("The event {0} is not known in this room.")]
    UnknownEvent(OwnedEventId),
    #[error("The event {0} is not in this thread.")]
    NotInThread(OwnedEventId),
    #[error("`thread_id` must be \"main\" or an event id, and only receipts have threads.")]
    InvalidThread,
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Homeserver {
    /// Sets a receipt of a joined member, or the read marker.
    pub(crate) async fn set_receipt(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        new: NewReceipt,
    ) -> Result<(), ReceiptError> {
        let private = match new.receipt_type {
            ReceiptType::Read => false,
            ReceiptType::ReadPrivate => true,
            ReceiptType::FullyRead if new.thread == ReceiptThread::Unthreaded => {
                return self.set_fully_read(room_id, user_id, &new.event_id).await;
            }
            ReceiptType::FullyRead => return Err(ReceiptError::InvalidThread),
            other => return Err(ReceiptError::UnknownType(other.to_string())),
        };
        let (event_position, room_nid, event) = self.event_of_room(room_id, &new.event_id).await?;
        let (thread_id, counted) = match &new.thread {
            ReceiptThread::Unthreaded => (String::new(), None),
            ReceiptThread::Main => ("main".to_owned(), Some(String::new())),
            ReceiptThread::Thread(root) => (root.to_string(), Some(root.to_string())),
            _ => return Err(ReceiptError::InvalidThread),
        };
        if let Some(counted) = &counted {
            let thread = self.push.thread_of(&event).await?;
            let thread = thread.as_ref().map_or("", |root| root.as_str());
            // The root of a thread stands in the main timeline, and can be marked in its thread too.
            if thread != counted && new.event_id.as_str() != counted {
                return Err(ReceiptError::NotInThread(new.event_id));
            }
        }
        let now_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        let (room_id, user_id, notifier) = (room_id.to_owned(), user_id.to_owned(), self.sync.notifier.clone());
        let push = self.push.clone();
        self.store
            .write_at(1, move |tx, position| {
                Box::pin(async move {
                    let receipt = Receipt {
                        user_id: user_id.to_string(),
                        r#type: if private { "m.read.private" } else { "m.read" }.to_owned(),
                        thread_id,
                        event_id: new.event_id.to_string(),
                        event_position,
                        ts: now_ms,
                        position,
                    };
                    if !set_receipt(tx, room_id.as_str(), &receipt).await? {
                        return Ok(());
                    }
                    let read = ReadUpTo {
                        room_nid,
                        user_id: user_id.as_str(),
                        thread_id: counted.as_deref(),
                        event_position,
                    };
                    if mark_read(tx, &read).await? {
                        push.counts.stale(&user_id, room_nid, position);
                        notifier.mark_user(&user_id, Change::Counts(room_id.clone()), position);
                    }
                    if private {
                        notifier.mark_user(&user_id, Change::Receipts(room_id), position);
                    } else {
                        notifier.mark_room(&room_id, RoomStream::Receipts, position);
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn set_fully_read(&self, room_id: &RoomId, user_id: &UserId, event_id: &EventId) -> Result<(), ReceiptError> {
        let content = json!({ "event_id": event_id }).to_string();
        Ok(self
            .sync
            .write_account_data(user_id, Some(room_id), FULLY_READ, content)
            .await?)
    }

    /// The position of an event, the key of its room and its JSON, if it is in the room.
    async fn event_of_room(
        &self,
        room_id: &RoomId,
        event_id: &EventId,
    ) -> Result<(i64, i64, Box<RawValue>), ReceiptError> {
        let unknown = || ReceiptError::UnknownEvent(event_id.to_owned());
        let room = self.store.room(room_id.as_str()).await?.ok_or_else(unknown)?;
        let event = self.store.event(event_id.as_str()).await?.ok_or_else(unknown)?;
        if event.room_nid != room.room_nid {
            return Err(unknown());
        }
        let json = RawValue::from_string(event.json).map_err(|e| storage::Error::corrupt("events", e))?;
        Ok((event.event_nid, event.room_nid, json))
    }
}
