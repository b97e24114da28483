//! Published keys: of devices, one-time, fallback, cross-signing, and the signatures others put under them.
//!
//! Keys are opaque JSON text; what they must say is the homeserver's matter.

use crate::devices::record_device_list_change;
use crate::{Conn, Error, Store, list};

/// What one `/keys/upload` brings.
#[derive(Debug, Clone, Default)]
pub struct KeyUpload {
    pub user_id: String,
    pub device_id: String,
    /// JSON text.
    pub device_keys: Option<String>,
    pub one_time_keys: Vec<NewKey>,
    pub fallback_keys: Vec<NewKey>,
    /// Unix milliseconds.
    pub now: i64,
}

/// A one-time or fallback key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub algorithm: String,
    pub key_id: String,
    /// JSON text.
    pub key_json: String,
}

/// How an upload of keys ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyUploadOutcome {
    Stored,
    /// A one-time key of this name exists with another content; nothing was stored.
    Conflict {
        algorithm: String,
        key_id: String,
    },
}

/// Asks for one key of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyClaim {
    pub user_id: String,
    pub device_id: String,
    pub algorithm: String,
}

/// A key that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedKey {
    pub user_id: String,
    pub device_id: String,
    pub algorithm: String,
    pub key_id: String,
    pub key_json: String,
    pub is_fallback: bool,
}

/// A published device as `/keys/query` shows it, before signatures are merged.
#[derive(Debug, Clone)]
pub struct PublishedDevice {
    pub user_id: String,
    pub device_id: String,
    pub keys: String,
    pub display_name: Option<String>,
}
from_row!(PublishedDevice {
    user_id,
    device_id,
    keys,
    display_name
});

/// A cross-signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossSigningKey {
    pub user_id: String,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: String,
    pub key_json: String,
}
from_row!(CrossSigningKey {
    user_id,
    usage,
    key_json
});

/// A signature added to a published key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySignature {
    pub target_user_id: String,
    /// A device id, or the public part of a cross-signing key.
    pub target_key: String,
    pub signer_user_id: String,
    pub signer_key_id: String,
    pub signature: String,
}
from_row!(KeySignature {
    target_user_id,
    target_key,
    signer_user_id,
    signer_key_id,
    signature
});

/// How often two who want the last key at once may miss each other before a claim gives up on one-time keys.
const CLAIM_ATTEMPTS: u32 = 16;

impl Store {
    /// Stores uploaded keys. `noted` hears, before the commit, the position and whether the device's own keys changed.
    pub async fn upload_keys(
        &self,
        upload: KeyUpload,
        noted: impl FnOnce(i64, bool) + Send + 'static,
    ) -> Result<KeyUploadOutcome, Error> {
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                if let Some(conflict) = conflicting_key(tx, &upload).await? {
                    return Ok(conflict);
                }
                let changed = upload.device_keys.is_some() && store_device_keys(tx, &upload).await?;
                if changed {
                    record_device_list_change(tx, &upload.user_id, position).await?;
                }
                store_other_keys(tx, &upload).await?;
                noted(position, changed);
                Ok(KeyUploadOutcome::Stored)
            })
        })
        .await
    }

    /// How many one-time keys a device has left, by algorithm.
    pub async fn one_time_key_counts(&self, user_id: &str, device_id: &str) -> Result<Vec<(String, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, i64),
            "SELECT algorithm, COUNT(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm",
            user_id,
            device_id
        )
    }

    /// Algorithms for which a device has a fallback key that nobody was given.
    pub async fn unused_fallback_key_types(&self, user_id: &str, device_id: &str) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rows: Vec<(String,)> = fetch_all!(
            &mut conn,
            (String,),
            "SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used ORDER BY algorithm",
            user_id,
            device_id
        )?;
        Ok(rows.into_iter().map(|(algorithm,)| algorithm).collect())
    }

    /// Hands out one key for each claim, in one transaction: a one-time key to one claimant only, oldest upload
    /// first, and the fallback key when none is left. `noted` hears, before the commit, the position and what was taken.
    pub async fn claim_keys(
        &self,
        mut claims: Vec<KeyClaim>,
        noted: impl FnOnce(i64, &[ClaimedKey]) + Send + 'static,
    ) -> Result<Vec<ClaimedKey>, Error> {
        // One order for everybody, so that two transactions never wait for each other.
        claims.sort();
        claims.dedup();
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                let mut claimed = Vec::with_capacity(claims.len());
                for claim in &claims {
                    claimed.extend(claim_key(tx, claim).await?);
                }
                noted(position, &claimed);
                Ok(claimed)
            })
        })
        .await
    }

    /// The published devices of users.
    pub async fn published_devices(&self, user_ids: &[String]) -> Result<Vec<PublishedDevice>, Error> {
        let user_ids = list(user_ids);
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            PublishedDevice,
            "SELECT k.user_id, k.device_id, k.keys, d.display_name
             FROM device_keys k JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id
             WHERE k.user_id IN {TEXT_LIST $1} ORDER BY k.user_id, k.device_id",
            &user_ids
        )
    }

    pub async fn cross_signing_keys(&self, user_ids: &[String]) -> Result<Vec<CrossSigningKey>, Error> {
        let user_ids = list(user_ids);
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            CrossSigningKey,
            "SELECT user_id, usage, key_json FROM cross_signing_keys WHERE user_id IN {TEXT_LIST $1} ORDER BY user_id, usage",
            &user_ids
        )
    }

    /// Signatures under the keys of `user_ids` that `viewer` may see: the owners' own, and the viewer's.
    pub async fn key_signatures(&self, user_ids: &[String], viewer: &str) -> Result<Vec<KeySignature>, Error> {
        let user_ids = list(user_ids);
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            KeySignature,
            "SELECT target_user_id, target_key, signer_user_id, signer_key_id, signature FROM key_signatures
             WHERE target_user_id IN {TEXT_LIST $1} AND (signer_user_id = target_user_id OR signer_user_id = $2)
             ORDER BY target_user_id, target_key, signer_user_id, signer_key_id",
            &user_ids,
            viewer
        )
    }

    /// Publishes cross-signing keys in place of earlier ones of the same usage.
    pub async fn set_cross_signing_keys(
        &self,
        user_id: &str,
        keys: Vec<CrossSigningKey>,
        noted: impl FnOnce(i64) + Send + 'static,
    ) -> Result<(), Error> {
        let user_id = user_id.to_owned();
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                for key in &keys {
                    execute!(
                        tx,
                        "INSERT INTO cross_signing_keys (user_id, usage, key_json) VALUES ($1, $2, $3)
                         ON CONFLICT (user_id, usage) DO UPDATE SET key_json = excluded.key_json",
                        &user_id,
                        &key.usage,
                        &key.key_json
                    )?;
                }
                record_device_list_change(tx, &user_id, position).await?;
                noted(position);
                Ok(())
            })
        })
        .await
    }

    /// Adds signatures to published keys. `noted` hears the position at which the targets changed.
    pub async fn add_key_signatures(
        &self,
        signatures: Vec<KeySignature>,
        noted: impl FnOnce(i64) + Send + 'static,
    ) -> Result<(), Error> {
        self.write_at(1, move |tx, position| {
            Box::pin(async move {
                let mut changed: Vec<&str> = Vec::new();
                for s in &signatures {
                    execute!(
                        tx,
                        "INSERT INTO key_signatures (target_user_id, target_key, signer_user_id, signer_key_id, signature)
                         VALUES ($1, $2, $3, $4, $5)
                         ON CONFLICT (target_user_id, target_key, signer_user_id, signer_key_id)
                         DO UPDATE SET signature = excluded.signature",
                        &s.target_user_id,
                        &s.target_key,
                        &s.signer_user_id,
                        &s.signer_key_id,
                        &s.signature
                    )?;
                    // A signature under somebody else's key is seen by the signer alone, whose own other devices
                    // learn of it as a change of the signer.
                    changed.push(&s.target_user_id);
                    changed.push(&s.signer_user_id);
                }
                changed.sort_unstable();
                changed.dedup();
                for user_id in changed {
                    record_device_list_change(tx, user_id, position).await?;
                }
                noted(position);
                Ok(())
            })
        })
        .await
    }
}

async fn conflicting_key(tx: &mut Conn, upload: &KeyUpload) -> Result<Option<KeyUploadOutcome>, Error> {
    for key in &upload.one_time_keys {
        let known: Option<(String,)> = fetch_optional!(
            tx,
            (String,),
            "SELECT key_json FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4",
            &upload.user_id,
            &upload.device_id,
            &key.algorithm,
            &key.key_id
        )?;
        if known.is_some_and(|(json,)| json != key.key_json) {
            return Ok(Some(KeyUploadOutcome::Conflict {
                algorithm: key.algorithm.clone(),
                key_id: key.key_id.clone(),
            }));
        }
    }
    Ok(None)
}

/// True when the keys differ from what was published.
async fn store_device_keys(tx: &mut Conn, upload: &KeyUpload) -> Result<bool, Error> {
    let changed = execute!(
        tx,
        "INSERT INTO device_keys (user_id, device_id, keys) VALUES ($1, $2, $3)
         ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys WHERE device_keys.keys <> excluded.keys",
        &upload.user_id,
        &upload.device_id,
        &upload.device_keys
    )?;
    Ok(changed > 0)
}

async fn store_other_keys(tx: &mut Conn, upload: &KeyUpload) -> Result<(), Error> {
    for key in &upload.one_time_keys {
        execute!(
            tx,
            "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, key_json, uploaded_at)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (user_id, device_id, algorithm, key_id) DO NOTHING",
            &upload.user_id,
            &upload.device_id,
            &key.algorithm,
            &key.key_id,
            &key.key_json,
            upload.now
        )?;
    }
    for key in &upload.fallback_keys {
        // The same key again stays used: only a new one can be unused.
        execute!(
            tx,
            "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key_json, used)
             VALUES ($1, $2, $3, $4, $5, FALSE)
             ON CONFLICT (user_id, device_id, algorithm)
             DO UPDATE SET key_id = excluded.key_id, key_json = excluded.key_json, used = FALSE
             WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.key_json <> excluded.key_json",
            &upload.user_id,
            &upload.device_id,
            &key.algorithm,
            &key.key_id,
            &key.key_json
        )?;
    }
    Ok(())
}

async fn claim_key(tx: &mut Conn, claim: &KeyClaim) -> Result<Option<ClaimedKey>, Error> {
    let mut taken = take_one_time_key(tx, claim).await?;
    // PostgreSQL: somebody else may take the chosen row between the choice and the removal; then another is chosen.
    let mut attempts = 0;
    while taken.is_none() && attempts < CLAIM_ATTEMPTS && has_one_time_key(tx, claim).await? {
        taken = take_one_time_key(tx, claim).await?;
        attempts += 1;
    }
    if let Some((key_id, key_json)) = taken {
        return Ok(Some(claimed(claim, key_id, key_json, false)));
    }
    let fallback: Option<(String, String)> = fetch_optional!(
        tx,
        (String, String),
        "UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3
         RETURNING key_id, key_json",
        &claim.user_id,
        &claim.device_id,
        &claim.algorithm
    )?;
    Ok(fallback.map(|(key_id, key_json)| claimed(claim, key_id, key_json, true)))
}

fn claimed(claim: &KeyClaim, key_id: String, key_json: String, is_fallback: bool) -> ClaimedKey {
    ClaimedKey {
        user_id: claim.user_id.clone(),
        device_id: claim.device_id.clone(),
        algorithm: claim.algorithm.clone(),
        key_id,
        key_json,
        is_fallback,
    }
}

async fn take_one_time_key(tx: &mut Conn, claim: &KeyClaim) -> Result<Option<(String, String)>, Error> {
    fetch_optional!(
        tx,
        (String, String),
        "DELETE FROM one_time_keys
         WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (
            SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3
            ORDER BY uploaded_at, key_id LIMIT 1)
         RETURNING key_id, key_json",
        &claim.user_id,
        &claim.device_id,
        &claim.algorithm
    )
}

async fn has_one_time_key(tx: &mut Conn, claim: &KeyClaim) -> Result<bool, Error> {
    let found: Option<(String,)> = fetch_optional!(
        tx,
        (String,),
        "SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 LIMIT 1",
        &claim.user_id,
        &claim.device_id,
        &claim.algorithm
    )?;
    Ok(found.is_some())
}
