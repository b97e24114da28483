//! Messages from device to device: queued, read by position, removed once received.
//!
//! Which devices have anything waiting is known in memory, so that a sync without messages asks the database nothing.

use std::collections::HashMap;

use ruma::{DeviceId, OwnedDeviceId, UserId};
use storage::{
    Store,
    to_device::{ToDeviceMessage, ToDeviceTransaction},
};

use super::{Device, Devices};
use crate::sync::Change;

/// The positions between which messages wait for a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    oldest: i64,
    newest: i64,
}

pub(super) async fn load(store: &Store) -> Result<HashMap<Device, Waiting>, storage::Error> {
    store
        .devices_with_to_device_messages()
        .await?
        .into_iter()
        .map(|(user_id, device_id, oldest, newest)| {
            let user_id = UserId::parse(user_id).map_err(|e| storage::Error::corrupt("to_device_messages", e))?;
            Ok(((user_id, OwnedDeviceId::from(device_id)), Waiting { oldest, newest }))
        })
        .collect()
}

impl Devices {
    /// Queues the messages of one request, once, in one transaction.
    pub async fn send_to_device(
        &self,
        transaction: ToDeviceTransaction,
        messages: Vec<ToDeviceMessage>,
    ) -> Result<(), storage::Error> {
        let (waiting, notifier) = (self.waiting.clone(), self.notifier.clone());
        self.store
            .queue_to_device(transaction, messages, move |position, reached| {
                let mut waiting = waiting.lock();
                for (user_id, device_id) in reached {
                    let Ok(user_id) = UserId::parse(user_id) else { continue };
                    notifier.mark_user(&user_id, Change::ToDevice, position);
                    waiting
                        .entry((user_id, device_id.into()))
                        .and_modify(|w| {
                            // PostgreSQL's transactions reach this line in any order.
                            w.oldest = w.oldest.min(position);
                            w.newest = w.newest.max(position);
                        })
                        .or_insert(Waiting {
                            oldest: position,
                            newest: position,
                        });
                }
            })
            .await
    }

    /// Messages waiting for a device at positions in `(from, to]`, oldest first: position and event, JSON text. At most
    /// `limit`: a full answer means that more may wait after the last position.
    pub async fn to_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        from: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<(i64, String)>, storage::Error> {
        let waiting = self
            .waiting
            .lock()
            .get(&(user_id.to_owned(), device_id.to_owned()))
            .copied();
        match waiting {
            Some(waiting) if waiting.newest > from && waiting.oldest <= to => {
                self.store
                    .to_device_messages(user_id.as_str(), device_id.as_str(), from, to, limit)
                    .await
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The device has everything up to and including `position`: removes it. No write when there is nothing.
    pub async fn delete_to_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        position: i64,
    ) -> Result<(), storage::Error> {
        let device = (user_id.to_owned(), device_id.to_owned());
        if self
            .waiting
            .lock()
            .get(&device)
            .is_none_or(|waiting| waiting.oldest > position)
        {
            return Ok(());
        }
        self.store
            .delete_to_device_messages(user_id.as_str(), device_id.as_str(), position)
            .await?;
        let mut waiting = self.waiting.lock();
        if let Some(entry) = waiting.get_mut(&device) {
            entry.oldest = entry.oldest.max(position + 1);
            if entry.newest <= position {
                waiting.remove(&device);
            }
        }
        Ok(())
    }
}
