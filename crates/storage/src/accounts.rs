//! Users, their tokens, registration tokens and profile fields.
//!
//! Knows neither passwords nor tokens in the clear: both arrive hashed.

use crate::{Conn, Error, Store, list};

/// A user of this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub user_id: String,
    /// PHC string; `None` when no password opens the account.
    pub password_hash: Option<String>,
    pub is_admin: bool,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Unix milliseconds; `None` while the account lives.
    pub deactivated_at: Option<i64>,
}
from_row!(Account {
    user_id,
    password_hash,
    is_admin,
    created_at,
    deactivated_at
});

/// What an account is made of.
#[derive(Debug, Clone)]
pub struct NewAccount {
    pub user_id: String,
    pub password_hash: Option<String>,
    pub is_admin: bool,
    /// Unix milliseconds.
    pub created_at: i64,
    /// Written as profile field `displayname`, JSON text.
    pub display_name: Option<String>,
    pub admission: Admission,
    /// The first session, opened in the same transaction.
    pub session: Option<NewSession>,
}

/// What lets a new account in.
#[derive(Debug, Clone)]
pub enum Admission {
    /// The caller has decided.
    Granted,
    /// One use of a registration token, counted together with the account.
    RegistrationToken(String),
    /// The one link that makes the first administrator; consumed by it.
    FirstAdminLink { token_hash: Vec<u8> },
}

/// A login: a device and the token that opens it.
#[derive(Debug, Clone)]
pub struct NewSession {
    pub user_id: String,
    pub device_id: String,
    /// Kept when `None` and the device exists.
    pub display_name: Option<String>,
    pub token_hash: Vec<u8>,
    /// Unix milliseconds.
    pub created_at: i64,
}

/// How creating an account ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountCreation {
    Created,
    NameTaken,
    /// The registration token or the link is unknown, used up or expired.
    NotAdmitted,
}

/// Whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOwner {
    pub user_id: String,
    pub device_id: String,
    pub is_admin: bool,
    /// Unix milliseconds.
    pub account_created_at: i64,
}
from_row!(TokenOwner {
    user_id,
    device_id,
    is_admin,
    account_created_at
});

/// A registration token as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationToken {
    pub token: String,
    pub uses_allowed: Option<i64>,
    pub uses: i64,
    /// Unix milliseconds.
    pub expires_at: Option<i64>,
    /// Unix milliseconds.
    pub created_at: i64,
}
from_row!(RegistrationToken {
    token,
    uses_allowed,
    uses,
    expires_at,
    created_at
});

impl Store {
    /// Creates an account, counts what admitted it and opens its first session, all or nothing.
    pub async fn create_account(&self, new: NewAccount) -> Result<AccountCreation, Error> {
        self.write(move |tx| Box::pin(async move { create_account(tx, new).await }))
            .await
    }

    pub async fn account(&self, user_id: &str) -> Result<Option<Account>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            Account,
            "SELECT user_id, password_hash, is_admin, created_at, deactivated_at FROM users WHERE user_id = $1",
            user_id
        )
    }

    /// Up to `limit` accounts whose id follows `after`, in order of their ids.
    pub async fn accounts(&self, after: &str, limit: i64) -> Result<Vec<Account>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            Account,
            "SELECT user_id, password_hash, is_admin, created_at, deactivated_at FROM users
             WHERE user_id > $1 ORDER BY user_id LIMIT $2",
            after,
            limit
        )
    }

    /// Is there an administrator who can sign in?
    pub async fn admin_exists(&self) -> Result<bool, Error> {
        let mut conn = self.read().await?;
        let found: Option<(i64,)> = fetch_optional!(
            &mut conn,
            (i64,),
            "SELECT created_at FROM users WHERE is_admin AND deactivated_at IS NULL LIMIT 1"
        )?;
        Ok(found.is_some())
    }

    /// Replaces the password. False when there is no such living account.
    pub async fn set_password_hash(&self, user_id: &str, hash: Option<String>) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.write(move |tx| {
            Box::pin(async move {
                let changed = execute!(
                    tx,
                    "UPDATE users SET password_hash = $2 WHERE user_id = $1 AND deactivated_at IS NULL",
                    &user_id,
                    &hash
                )?;
                Ok(changed == 1)
            })
        })
        .await
    }

    /// False when there is no such living account.
    pub async fn set_admin(&self, user_id: &str, is_admin: bool) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.write(move |tx| {
            Box::pin(async move {
                let changed = execute!(
                    tx,
                    "UPDATE users SET is_admin = $2 WHERE user_id = $1 AND deactivated_at IS NULL",
                    &user_id,
                    is_admin
                )?;
                Ok(changed == 1)
            })
        })
        .await
    }

    /// Ends the account: no password, no administrator, no profile, nothing that it kept for itself. Its devices end
    /// through `delete_devices`.
    /// False when there was no such living account.
    pub async fn deactivate_account(&self, user_id: &str, now: i64) -> Result<bool, Error> {
        let user_id = user_id.to_owned();
        self.write(move |tx| {
            Box::pin(async move {
                let changed = execute!(
                    tx,
                    "UPDATE users SET password_hash = NULL, is_admin = FALSE, deactivated_at = $2
                     WHERE user_id = $1 AND deactivated_at IS NULL",
                    &user_id,
                    now
                )?;
                execute!(tx, "DELETE FROM profile_fields WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM access_tokens WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM account_data WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM filters WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM presence_statuses WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM key_backup_sessions WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM key_backups WHERE user_id = $1", &user_id)?;
                execute!(tx, "DELETE FROM cross_signing_keys WHERE user_id = $1", &user_id)?;
                Ok(changed == 1)
            })
        })
        .await
    }

    /// Opens a session. An earlier session of the same device ends: its token is gone afterwards.
    pub async fn open_session(&self, session: NewSession) -> Result<(), Error> {
        self.write(move |tx| Box::pin(async move { open_session(tx, &session).await }))
            .await
    }

    /// Whose token this is, if it opens a session of a living account.
    pub async fn token_owner(&self, token_hash: &[u8]) -> Result<Option<TokenOwner>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            TokenOwner,
            "SELECT t.user_id, t.device_id, u.is_admin, u.created_at AS account_created_at
             FROM access_tokens t JOIN users u ON u.user_id = t.user_id
             WHERE t.token_hash = $1 AND u.deactivated_at IS NULL",
            token_hash
        )
    }

    /// Puts the one link that makes the first administrator in place of an earlier one.
    pub async fn set_first_admin_link(&self, token_hash: Vec<u8>, now: i64) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO first_admin_link (only_row, token_hash, created_at) VALUES (1, $1, $2)
                     ON CONFLICT (only_row) DO UPDATE SET token_hash = excluded.token_hash, created_at = excluded.created_at",
                    &token_hash,
                    now
                )?;
                Ok(())
            })
        })
        .await
    }

    /// The hash of the first administrator's link, while it waits to be used.
    pub async fn first_admin_link(&self) -> Result<Option<Vec<u8>>, Error> {
        let mut conn = self.read().await?;
        let row: Option<(Vec<u8>,)> = fetch_optional!(
            &mut conn,
            (Vec<u8>,),
            "SELECT token_hash FROM first_admin_link WHERE only_row = 1"
        )?;
        Ok(row.map(|(hash,)| hash))
    }

    /// False when the token exists already.
    pub async fn create_registration_token(&self, token: RegistrationToken) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let created = execute!(
                    tx,
                    "INSERT INTO registration_tokens (token, uses_allowed, uses, expires_at, created_at)
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (token) DO NOTHING",
                    &token.token,
                    token.uses_allowed,
                    token.uses,
                    token.expires_at,
                    token.created_at
                )?;
                Ok(created == 1)
            })
        })
        .await
    }

    pub async fn registration_tokens(&self) -> Result<Vec<RegistrationToken>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            RegistrationToken,
            "SELECT token, uses_allowed, uses, expires_at, created_at FROM registration_tokens ORDER BY created_at, token"
        )
    }

    /// Would this token admit an account at `now`?
    pub async fn registration_token_is_valid(&self, token: &str, now: i64) -> Result<bool, Error> {
        let mut conn = self.read().await?;
        let found: Option<(String,)> = fetch_optional!(
            &mut conn,
            (String,),
            "SELECT token FROM registration_tokens
             WHERE token = $1 AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_at IS NULL OR expires_at > $2)",
            token,
            now
        )?;
        Ok(found.is_some())
    }

    /// False when there was no such token.
    pub async fn revoke_registration_token(&self, token: &str) -> Result<bool, Error> {
        let token = token.to_owned();
        self.write(move |tx| {
            Box::pin(async move { Ok(execute!(tx, "DELETE FROM registration_tokens WHERE token = $1", &token)? == 1) })
        })
        .await
    }

    /// All profile fields of a user: name and JSON text, in order of their names.
    pub async fn profile_fields(&self, user_id: &str) -> Result<Vec<(String, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String),
            "SELECT field, value FROM profile_fields WHERE user_id = $1 ORDER BY field",
            user_id
        )
    }

    /// Profile fields of several users at once: user, name, JSON text. `user_ids` is a JSON array.
    pub async fn profile_fields_of(&self, user_ids: &[String]) -> Result<Vec<(String, String, String)>, Error> {
        let user_ids = list(user_ids);
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String, String),
            "SELECT user_id, field, value FROM profile_fields WHERE user_id IN {TEXT_LIST $1} ORDER BY user_id, field",
            &user_ids
        )
    }

    /// Sets a profile field to a JSON text, or removes it.
    pub async fn set_profile_field(&self, user_id: &str, field: &str, value: Option<String>) -> Result<(), Error> {
        let (user_id, field) = (user_id.to_owned(), field.to_owned());
        self.write(move |tx| {
            Box::pin(async move {
                match &value {
                    Some(value) => execute!(
                        tx,
                        "INSERT INTO profile_fields (user_id, field, value) VALUES ($1, $2, $3)
                         ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value",
                        &user_id,
                        &field,
                        value
                    )?,
                    None => execute!(
                        tx,
                        "DELETE FROM profile_fields WHERE user_id = $1 AND field = $2",
                        &user_id,
                        &field
                    )?,
                };
                Ok(())
            })
        })
        .await
    }
}

async fn create_account(tx: &mut Conn, new: NewAccount) -> Result<AccountCreation, Error> {
    if !admit(tx, &new.admission, new.created_at).await? {
        return Ok(AccountCreation::NotAdmitted);
    }
    let created = execute!(
        tx,
        "INSERT INTO users (user_id, password_hash, is_admin, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (user_id) DO NOTHING",
        &new.user_id,
        &new.password_hash,
        new.is_admin,
        new.created_at
    )?;
    if created == 0 {
        give_back(tx, &new.admission).await?;
        return Ok(AccountCreation::NameTaken);
    }
    if let Admission::FirstAdminLink { .. } = new.admission {
        execute!(tx, "DELETE FROM first_admin_link WHERE only_row = 1")?;
    }
    if let Some(display_name) = &new.display_name {
        execute!(
            tx,
            "INSERT INTO profile_fields (user_id, field, value) VALUES ($1, 'displayname', $2)",
            &new.user_id,
            display_name
        )?;
    }
    if let Some(session) = &new.session {
        open_session(tx, session).await?;
    }
    Ok(AccountCreation::Created)
}

/// Takes one use of what admits the account; false when nothing is left to take.
async fn admit(tx: &mut Conn, admission: &Admission, now: i64) -> Result<bool, Error> {
    match admission {
        Admission::Granted => Ok(true),
        Admission::RegistrationToken(token) => {
            let taken = execute!(
                tx,
                "UPDATE registration_tokens SET uses = uses + 1
                 WHERE token = $1 AND (uses_allowed IS NULL OR uses < uses_allowed) AND (expires_at IS NULL OR expires_at > $2)",
                token,
                now
            )?;
            Ok(taken == 1)
        }
        // An update of the row itself, so that of two who come at once the second waits and finds it gone.
        Admission::FirstAdminLink { token_hash } => {
            let taken = execute!(
                tx,
                "UPDATE first_admin_link SET created_at = $2 WHERE token_hash = $1",
                token_hash,
                now
            )?;
            Ok(taken == 1)
        }
    }
}

async fn give_back(tx: &mut Conn, admission: &Admission) -> Result<(), Error> {
    if let Admission::RegistrationToken(token) = admission {
        execute!(
            tx,
            "UPDATE registration_tokens SET uses = uses - 1 WHERE token = $1",
            token
        )?;
    }
    Ok(())
}

async fn open_session(tx: &mut Conn, session: &NewSession) -> Result<(), Error> {
    execute!(
        tx,
        "DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2",
        &session.user_id,
        &session.device_id
    )?;
    execute!(
        tx,
        "INSERT INTO devices (user_id, device_id, display_name, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (user_id, device_id) DO UPDATE SET display_name = COALESCE(excluded.display_name, devices.display_name)",
        &session.user_id,
        &session.device_id,
        &session.display_name,
        session.created_at
    )?;
    execute!(
        tx,
        "INSERT INTO access_tokens (token_hash, user_id, device_id, created_at) VALUES ($1, $2, $3, $4)",
        &session.token_hash,
        &session.user_id,
        &session.device_id,
        session.created_at
    )?;
    Ok(())
}
