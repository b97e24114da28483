//! Devices and the record of whose keys changed.
//!
//! Does not know what a key says; `keys` keeps them.

use crate::{Conn, Error, Store, list};

/// A device of a user of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub device_id: String,
    pub display_name: Option<String>,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds.
    pub last_seen_at: Option<i64>,
    pub last_seen_ip: Option<String>,
}
from_row!(Device {
    device_id,
    display_name,
    created_at,
    last_seen_at,
    last_seen_ip
});

/// When and from where a device last spoke to us.
#[derive(Debug, Clone)]
pub struct LastSeen {
    pub user_id: String,
    pub device_id: String,
    pub ip: Option<String>,
    /// Unix milliseconds.
    pub at: i64,
}

impl Store {
    pub async fn devices(&self, user_id: &str) -> Result<Vec<Device>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            Device,
            "SELECT device_id, display_name, created_at, last_seen_at, last_seen_ip FROM devices
             WHERE user_id = $1 ORDER BY device_id",
            user_id
        )
    }

    pub async fn device(&self, user_id: &str, device_id: &str) -> Result<Option<Device>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            Device,
            "SELECT device_id, display_name, created_at, last_seen_at, last_seen_ip FROM devices
             WHERE user_id = $1 AND device_id = $2",
            user_id,
            device_id
        )
    }

    /// Renames a device, which others see in its published keys. False when there is no such device.
    pub async fn rename_device(
        &self,
        user_id: &str,
        device_id: &str,
        display_name: Option<String>,
        noted: impl FnOnce(i64) + Send + 'static,
    ) -> Result<bool, Error> {
        let (user_id, device_id) = (user_id.to_owned(), device_id.to_owned());
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                let changed = execute!(
                    tx,
                    "UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2",
                    &user_id,
                    &device_id,
                    &display_name
                )?;
                if changed == 1 {
                    record_device_list_change(tx, &user_id, position).await?;
                    noted(position);
                }
                Ok(changed == 1)
            })
        })
        .await
    }

    /// Removes devices with their tokens, keys and waiting messages. Returns the ids of those that existed. With the last
    /// of a user go the user's TURN credentials: those that expire at `turn_until` (Unix seconds) or earlier.
    pub async fn delete_devices(
        &self,
        user_id: &str,
        device_ids: &[String],
        turn_until: i64,
        noted: impl FnOnce(i64) + Send + 'static,
    ) -> Result<Vec<String>, Error> {
        let (user_id, device_ids) = (user_id.to_owned(), list(device_ids));
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                let gone: Vec<(String,)> = fetch_all!(
                    tx,
                    (String,),
                    "DELETE FROM devices WHERE user_id = $1 AND device_id IN {TEXT_LIST $2} RETURNING device_id",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM access_tokens WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM device_keys WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM key_signatures WHERE target_user_id = $1 AND target_key IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM one_time_keys WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM fallback_keys WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM to_device_messages WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                execute!(
                    tx,
                    "DELETE FROM to_device_transactions WHERE user_id = $1 AND device_id IN {TEXT_LIST $2}",
                    &user_id,
                    &device_ids
                )?;
                if !gone.is_empty() {
                    execute!(
                        tx,
                        "INSERT INTO relay_revocations (user_id, until)
                         SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM devices WHERE user_id = $1)
                         ON CONFLICT (user_id) DO UPDATE SET until = excluded.until",
                        &user_id,
                        turn_until
                    )?;
                    record_device_list_change(tx, &user_id, position).await?;
                    noted(position);
                }
                Ok(gone.into_iter().map(|(device_id,)| device_id).collect())
            })
        })
        .await
    }

    /// Writes a batch of sightings in one transaction.
    pub async fn record_last_seen(&self, seen: Vec<LastSeen>) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                for s in &seen {
                    execute!(
                        tx,
                        "UPDATE devices SET last_seen_at = $3, last_seen_ip = COALESCE($4, last_seen_ip)
                         WHERE user_id = $1 AND device_id = $2",
                        &s.user_id,
                        &s.device_id,
                        s.at,
                        &s.ip
                    )?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Users whose keys last changed at a position in `(from, to]`, in order of the change.
    pub async fn device_list_changes(&self, from: i64, to: i64) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rows: Vec<(String,)> = fetch_all!(
            &mut conn,
            (String,),
            "SELECT user_id FROM device_list_changes WHERE position > $1 AND position <= $2 ORDER BY position",
            from,
            to
        )?;
        Ok(rows.into_iter().map(|(user_id,)| user_id).collect())
    }

    /// The position of the latest change of anybody's keys; 0 when there was none.
    pub async fn latest_device_list_change(&self) -> Result<i64, Error> {
        let mut conn = self.read().await?;
        let row: Option<(i64,)> = fetch_optional!(
            &mut conn,
            (i64,),
            "SELECT COALESCE(MAX(position), 0) FROM device_list_changes"
        )?;
        Ok(row.map_or(0, |(position,)| position))
    }
}

/// Notes that this user's keys or devices changed at `position`, inside the transaction that changes them.
pub(crate) async fn record_device_list_change(tx: &mut Conn, user_id: &str, position: i64) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO device_list_changes (user_id, position) VALUES ($1, $2)
         ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        user_id,
        position
    )?;
    Ok(())
}
