//! Server-side backups of room keys: versions of a user's backup, and the encrypted session keys in each.
//! Which of two keys for one session is the better one is decided here, in the statement that stores it, so that two
//! devices that upload at once cannot both believe theirs won.
//! Spec: client-server API, "Server-side key backups".

use crate::{Conn, Error, Store};

/// A version of a user's backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBackup {
    /// Its number, rising from 1 for each user.
    pub version: i64,
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What the algorithm needs, as JSON text.
    pub auth_data: String,
    /// Rises with every change of its keys.
    pub etag: i64,
}
from_row!(KeyBackup {
    version,
    algorithm,
    auth_data,
    etag
});

/// A session key in a backup.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackedUpSession {
    /// The room the session is used in.
    pub room_id: String,
    /// The session.
    pub session_id: String,
    /// The first message the key opens.
    pub first_message_index: i64,
    /// How often the key was forwarded between devices.
    pub forwarded_count: i64,
    /// Whether the device that made the key was verified.
    pub is_verified: bool,
    /// The encrypted key, as JSON text.
    pub session_data: String,
}
from_row!(BackedUpSession {
    room_id,
    session_id,
    first_message_index,
    forwarded_count,
    is_verified,
    session_data
});

/// How many keys a backup has after a change, and its new etag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBackupChange {
    /// Keys in it.
    pub count: i64,
    /// See [`KeyBackup::etag`].
    pub etag: i64,
}

/// How putting keys into a backup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyBackupOutcome {
    /// They are in, where they are better than what was there.
    Stored(KeyBackupChange),
    /// Keys go into the newest backup only, which is this one.
    NotCurrent(i64),
    /// The user has no backup.
    NoBackup,
    /// The backup would have more than the allowed number of keys; nothing was stored.
    Full,
}

/// How making a backup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyBackupCreation {
    /// The version of the new backup.
    Created(i64),
    /// The user has the allowed number of backups already.
    TooMany,
}

/// Which keys of a backup are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBackupScope<'a> {
    /// Those of one room; of all rooms without.
    pub room_id: Option<&'a str>,
    /// That of one session of the room.
    pub session_id: Option<&'a str>,
}

impl Store {
    /// Begins a new version of a user's backup. A version number is never used twice, not even of a deleted backup.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn create_key_backup(
        &self,
        user_id: String,
        algorithm: String,
        auth_data: String,
        max_backups: i64,
    ) -> Result<KeyBackupCreation, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let (last, kept) = fetch_optional!(
                    tx,
                    (i64, i64),
                    "SELECT COALESCE(MAX(version), 0), COUNT(CASE WHEN NOT deleted THEN 1 END)
                     FROM key_backups WHERE user_id = $1",
                    &user_id
                )?
                .unwrap_or((0, 0));
                if kept >= max_backups {
                    return Ok(KeyBackupCreation::TooMany);
                }
                let version = last + 1;
                execute!(
                    tx,
                    "INSERT INTO key_backups (user_id, version, algorithm, auth_data) VALUES ($1, $2, $3, $4)",
                    &user_id,
                    version,
                    &algorithm,
                    &auth_data
                )?;
                Ok(KeyBackupCreation::Created(version))
            })
        })
        .await
    }

    /// A version of a user's backup, or the newest one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_backup(&self, user_id: &str, version: Option<i64>) -> Result<Option<KeyBackup>, Error> {
        key_backup(&mut self.read().await?, user_id, version).await
    }

    /// How many keys a backup has.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_backup_count(&self, user_id: &str, version: i64) -> Result<i64, Error> {
        count(&mut self.read().await?, user_id, version).await
    }

    /// Replaces what a backup's algorithm needs; `false` when there is no such backup.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_key_backup_auth_data(
        &self,
        user_id: String,
        version: i64,
        auth_data: String,
    ) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let changed = execute!(
                    tx,
                    "UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2 AND NOT deleted",
                    &user_id,
                    version,
                    &auth_data
                )?;
                Ok(changed > 0)
            })
        })
        .await
    }

    /// Removes a backup with its keys; `false` when there is no such backup.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_key_backup(&self, user_id: String, version: i64) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                // The row stays, emptied: its number is used up.
                let changed = execute!(
                    tx,
                    "UPDATE key_backups SET deleted = TRUE, auth_data = 'null'
                     WHERE user_id = $1 AND version = $2 AND NOT deleted",
                    &user_id,
                    version
                )?;
                execute!(
                    tx,
                    "DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2",
                    &user_id,
                    version
                )?;
                Ok(changed > 0)
            })
        })
        .await
    }

    /// Puts keys into a user's newest backup, each where it is better than the one that is there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put_key_backup_sessions(
        &self,
        user_id: String,
        version: i64,
        mut sessions: Vec<BackedUpSession>,
        max_sessions: i64,
    ) -> Result<KeyBackupOutcome, Error> {
        // One order for everybody, so that two transactions never wait for each other.
        sessions.sort();
        self.write::<_, Refused, _>(move |tx| {
            Box::pin(async move {
                let Some(backup) = key_backup(tx, &user_id, None).await? else {
                    return Ok(KeyBackupOutcome::NoBackup);
                };
                if backup.version != version {
                    return Ok(KeyBackupOutcome::NotCurrent(backup.version));
                }
                let mut changed = false;
                for session in &sessions {
                    changed |= put_session(tx, &user_id, version, session).await?;
                }
                let etag = if changed {
                    raise_etag(tx, &user_id, version).await?
                } else {
                    backup.etag
                };
                let count = count(tx, &user_id, version).await?;
                if count > max_sessions {
                    return Err(Refused::Full);
                }
                Ok(KeyBackupOutcome::Stored(KeyBackupChange { count, etag }))
            })
        })
        .await
        .or_else(|refused| match refused {
            Refused::Full => Ok(KeyBackupOutcome::Full),
            Refused::Failed(e) => Err(e),
        })
    }

    /// The keys of a backup in the scope, ordered by room and session.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn key_backup_sessions(
        &self,
        user_id: &str,
        version: i64,
        scope: KeyBackupScope<'_>,
    ) -> Result<Vec<BackedUpSession>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            BackedUpSession,
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
             FROM key_backup_sessions
             WHERE user_id = $1 AND version = $2 AND ($3 OR room_id = $4) AND ($5 OR session_id = $6)
             ORDER BY room_id, session_id",
            user_id,
            version,
            scope.room_id.is_none(),
            scope.room_id.unwrap_or_default(),
            scope.session_id.is_none(),
            scope.session_id.unwrap_or_default()
        )
    }

    /// Removes the keys of a backup in the scope; `None` when there is no such backup.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_key_backup_sessions(
        &self,
        user_id: String,
        version: i64,
        room_id: Option<String>,
        session_id: Option<String>,
    ) -> Result<Option<KeyBackupChange>, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let Some(backup) = key_backup(tx, &user_id, Some(version)).await? else {
                    return Ok(None);
                };
                let removed = execute!(
                    tx,
                    "DELETE FROM key_backup_sessions
                     WHERE user_id = $1 AND version = $2 AND ($3 OR room_id = $4) AND ($5 OR session_id = $6)",
                    &user_id,
                    version,
                    room_id.is_none(),
                    room_id.as_deref().unwrap_or_default(),
                    session_id.is_none(),
                    session_id.as_deref().unwrap_or_default()
                )?;
                let etag = if removed > 0 {
                    raise_etag(tx, &user_id, version).await?
                } else {
                    backup.etag
                };
                let count = count(tx, &user_id, version).await?;
                Ok(Some(KeyBackupChange { count, etag }))
            })
        })
        .await
    }
}

/// Why a transaction that puts keys is undone.
enum Refused {
    Full,
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

async fn key_backup(conn: &mut Conn, user_id: &str, version: Option<i64>) -> Result<Option<KeyBackup>, Error> {
    fetch_optional!(
        conn,
        KeyBackup,
        "SELECT version, algorithm, auth_data, etag FROM key_backups
         WHERE user_id = $1 AND NOT deleted AND ($2 OR version = $3) ORDER BY version DESC LIMIT 1",
        user_id,
        version.is_none(),
        version.unwrap_or_default()
    )
}

async fn count(conn: &mut Conn, user_id: &str, version: i64) -> Result<i64, Error> {
    let row = fetch_optional!(
        conn,
        (i64,),
        "SELECT COUNT(*) FROM key_backup_sessions WHERE user_id = $1 AND version = $2",
        user_id,
        version
    )?;
    Ok(row.map_or(0, |(count,)| count))
}

async fn raise_etag(conn: &mut Conn, user_id: &str, version: i64) -> Result<i64, Error> {
    let row = fetch_optional!(
        conn,
        (i64,),
        "UPDATE key_backups SET etag = etag + 1 WHERE user_id = $1 AND version = $2 RETURNING etag",
        user_id,
        version
    )?;
    Ok(row.map_or(0, |(etag,)| etag))
}

/// Spec: PUT /room_keys/keys/{roomId}/{sessionId}: a verified key is better than one that is not; then the lower first
/// message index, then the lower forwarded count. Answers whether the key was stored.
async fn put_session(conn: &mut Conn, user_id: &str, version: i64, session: &BackedUpSession) -> Result<bool, Error> {
    let stored = execute!(
        conn,
        "INSERT INTO key_backup_sessions AS kept
             (user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET
             first_message_index = excluded.first_message_index,
             forwarded_count = excluded.forwarded_count,
             is_verified = excluded.is_verified,
             session_data = excluded.session_data
         WHERE (excluded.is_verified AND NOT kept.is_verified)
            OR (excluded.is_verified = kept.is_verified
                AND (excluded.first_message_index < kept.first_message_index
                     OR (excluded.first_message_index = kept.first_message_index
                         AND excluded.forwarded_count < kept.forwarded_count)))",
        user_id,
        version,
        &session.room_id,
        &session.session_id,
        session.first_message_index,
        session.forwarded_count,
        session.is_verified,
        &session.session_data
    )?;
    Ok(stored > 0)
}
