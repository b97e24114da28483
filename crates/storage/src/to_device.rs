//! Messages from device to device, kept until the receiver has them.
//!
//! Content is opaque text. A message is delivered by its position and removed once the receiver's token passes it.

use crate::{Error, Store};

/// Messages of one request to the devices of one user.
#[derive(Debug, Clone)]
pub struct ToDeviceMessage {
    pub user_id: String,
    pub recipient: Recipient,
    /// The whole event, JSON text.
    pub event: String,
}

/// Which devices of a user receive a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipient {
    AllDevices,
    Device(String),
}

/// A request's identity, by which a repetition is known.
#[derive(Debug, Clone)]
pub struct ToDeviceTransaction {
    pub user_id: String,
    pub device_id: String,
    pub event_type: String,
    pub txn_id: String,
    /// Unix milliseconds.
    pub created_at: i64,
}

impl Store {
    /// Queues the messages of one request in one transaction, at one position; devices that do not exist get none.
    /// `queued` hears, before the commit, the position and every device that has something to read at it.
    /// A request that came before (same transaction) queues nothing.
    pub async fn queue_to_device(
        &self,
        transaction: ToDeviceTransaction,
        messages: Vec<ToDeviceMessage>,
        queued: impl FnOnce(i64, Vec<(String, String)>) + Send + 'static,
    ) -> Result<(), Error> {
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                let fresh = execute!(
                    tx,
                    "INSERT INTO to_device_transactions (user_id, device_id, event_type, txn_id, created_at)
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_id, device_id, event_type, txn_id) DO NOTHING",
                    &transaction.user_id,
                    &transaction.device_id,
                    &transaction.event_type,
                    &transaction.txn_id,
                    transaction.created_at
                )?;
                if fresh == 0 {
                    return Ok(());
                }
                let mut reached = Vec::with_capacity(messages.len());
                for message in &messages {
                    // The row of a device named both by itself and by `*` is its first one.
                    let devices: Vec<(String,)> = match &message.recipient {
                        Recipient::AllDevices => fetch_all!(
                            tx,
                            (String,),
                            "INSERT INTO to_device_messages (user_id, device_id, position, event)
                             SELECT user_id, device_id, $2, $3 FROM devices WHERE user_id = $1
                             ON CONFLICT (user_id, device_id, position) DO NOTHING RETURNING device_id",
                            &message.user_id,
                            position,
                            &message.event
                        )?,
                        Recipient::Device(device_id) => fetch_all!(
                            tx,
                            (String,),
                            "INSERT INTO to_device_messages (user_id, device_id, position, event)
                             SELECT user_id, device_id, $2, $3 FROM devices WHERE user_id = $1 AND device_id = $4
                             ON CONFLICT (user_id, device_id, position) DO NOTHING RETURNING device_id",
                            &message.user_id,
                            position,
                            &message.event,
                            device_id
                        )?,
                    };
                    reached.extend(
                        devices
                            .into_iter()
                            .map(|(device_id,)| (message.user_id.clone(), device_id)),
                    );
                }
                if !reached.is_empty() {
                    queued(position, reached);
                }
                Ok(())
            })
        })
        .await
    }

    /// Messages waiting for a device at positions in `(from, to]`, oldest first, at most `limit`: position and event.
    pub async fn to_device_messages(
        &self,
        user_id: &str,
        device_id: &str,
        from: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<(i64, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (i64, String),
            "SELECT position, event FROM to_device_messages
             WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4 ORDER BY position LIMIT $5",
            user_id,
            device_id,
            from,
            to,
            limit
        )
    }

    /// Removes what the device has received: everything up to and including `position`.
    pub async fn delete_to_device_messages(&self, user_id: &str, device_id: &str, position: i64) -> Result<u64, Error> {
        let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "DELETE FROM to_device_messages WHERE user_id = $1 AND device_id = $2 AND position <= $3",
                    &user_id,
                    &device_id,
                    position
                )
            })
        })
        .await
    }

    /// Every device for which messages wait, with the positions of the oldest and the newest.
    pub async fn devices_with_to_device_messages(&self) -> Result<Vec<(String, String, i64, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String, i64, i64),
            "SELECT user_id, device_id, MIN(position), MAX(position) FROM to_device_messages GROUP BY user_id, device_id"
        )
    }

    /// Forgets the identities of at most `limit` requests made before `before` (Unix milliseconds), the oldest first;
    /// answers of how many.
    pub async fn forget_to_device_transactions(&self, before: i64, limit: i64) -> Result<u64, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "DELETE FROM to_device_transactions WHERE (user_id, device_id, event_type, txn_id) IN
                         (SELECT user_id, device_id, event_type, txn_id FROM to_device_transactions
                          WHERE created_at < $1 ORDER BY created_at LIMIT $2)",
                    before,
                    limit
                )
            })
        })
        .await
    }
}
