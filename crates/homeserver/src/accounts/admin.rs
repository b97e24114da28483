//! What an administrator does with accounts: used by the command line and by administration endpoints.

use ruma::{OwnedUserId, UserId};
use storage::accounts::{Account, RegistrationToken};

use super::{Accounts, Login, NewDevice, NewUser, RegistrationBy, digest, random_text, secrets};
use crate::client_api::ApiError;

/// Why an account could not be administered.
pub type AccountError = ApiError;

/// The secret part of the link that makes the first administrator.
#[derive(Clone)]
pub struct FirstAdminLink(pub String);

impl std::fmt::Debug for FirstAdminLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FirstAdminLink(…)")
    }
}

/// Accounts read at a time.
const PAGE: i64 = 1000;

impl Accounts {
    /// A new link for the first administrator, in place of an earlier one; `None` when there is an administrator.
    pub async fn first_admin_link(&self) -> Result<Option<FirstAdminLink>, AccountError> {
        if self.store.admin_exists().await? {
            return Ok(None);
        }
        let token = random_text();
        self.store
            .set_first_admin_link(digest(&token).to_vec(), self.now())
            .await?;
        Ok(Some(FirstAdminLink(token)))
    }

    /// Makes the first administrator by the one-time link, and signs them in.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the link was used or replaced; else as [`Accounts::create_user`].
    pub async fn first_admin(&self, token: &str, name: &str, password: &str) -> Result<Login, AccountError> {
        let user = NewUser {
            user_id: Some(self.new_user_id(name)?),
            password: Some(password.to_owned()),
            display_name: Some(name.to_owned()),
            is_admin: true,
            by: RegistrationBy::FirstAdminLink(token.to_owned()),
            device: Some(NewDevice::default()),
        };
        let (_, login) = self.create_user(user).await?;
        login.ok_or_else(|| ApiError::internal("an account was made without the session that was asked for"))
    }

    /// Adds an account on an administrator's word.
    pub async fn add_user(&self, name: &str, password: &str, is_admin: bool) -> Result<OwnedUserId, AccountError> {
        let user = NewUser {
            user_id: Some(self.new_user_id(name)?),
            password: Some(password.to_owned()),
            display_name: Some(name.to_owned()),
            is_admin,
            by: RegistrationBy::Decided,
            device: None,
        };
        Ok(self.create_user(user).await?.0)
    }

    /// Every account, deactivated ones too, in order of their ids.
    pub async fn users(&self) -> Result<Vec<Account>, AccountError> {
        let mut users: Vec<Account> = Vec::new();
        loop {
            let after = users.last().map_or_else(String::new, |last| last.user_id.clone());
            let page = self.store.accounts(&after, PAGE).await?;
            let done = page.len() < PAGE as usize;
            users.extend(page);
            if done {
                return Ok(users);
            }
        }
    }

    /// Sets a password. Sessions stay open unless `log_out`.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is no such living account.
    pub async fn set_password(&self, user_id: &UserId, password: &str) -> Result<(), AccountError> {
        let hash = self.passwords.hash(password).await?;
        found(self.store.set_password_hash(user_id.as_str(), Some(hash)).await?)?;
        tracing::info!(%user_id, "password changed");
        Ok(())
    }

    /// Makes somebody an administrator, or takes it away.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is no such living account.
    pub async fn set_admin(&self, user_id: &UserId, is_admin: bool) -> Result<(), AccountError> {
        found(self.store.set_admin(user_id.as_str(), is_admin).await?)?;
        self.sessions.forget(|s| s.user_id == user_id);
        tracing::info!(%user_id, is_admin, "administrator changed");
        Ok(())
    }

    /// Ends an account for good: no login, no session, no profile. Its name stays taken. Its devices are removed by
    /// [`Homeserver::deactivate_account`](crate::Homeserver::deactivate_account), which everybody calls.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is no such living account.
    pub(crate) async fn deactivate(&self, user_id: &UserId) -> Result<(), AccountError> {
        found(self.store.deactivate_account(user_id.as_str(), self.now()).await?)?;
        self.user_gone(user_id);
        tracing::info!(%user_id, "account deactivated");
        Ok(())
    }

    /// Makes a registration token; a random one when `token` is `None`.
    ///
    /// # Errors
    /// `M_INVALID_PARAM` when the token is taken or does not follow the grammar.
    pub async fn create_registration_token(
        &self,
        token: Option<String>,
        uses_allowed: Option<u32>,
        expires_at: Option<u64>,
    ) -> Result<RegistrationToken, AccountError> {
        let token = token.unwrap_or_else(|| {
            secrets::random_of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", 24)
        });
        // Spec: "Token-authenticated registration": the opaque identifier grammar.
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
        if token.is_empty() || token.len() > 64 || !token.chars().all(valid) {
            return Err(ApiError::invalid_param(
                "A token has 1 to 64 of the characters A-Z a-z 0-9 . _ ~ -",
            ));
        }
        let token = RegistrationToken {
            token,
            uses_allowed: uses_allowed.map(i64::from),
            uses: 0,
            expires_at: expires_at.map(|at| i64::try_from(at).unwrap_or(i64::MAX)),
            created_at: self.now(),
        };
        match self.store.create_registration_token(token.clone()).await? {
            true => Ok(token),
            false => Err(ApiError::invalid_param("This registration token exists already.")),
        }
    }

    /// Every registration token, used-up ones too.
    pub async fn registration_tokens(&self) -> Result<Vec<RegistrationToken>, AccountError> {
        Ok(self.store.registration_tokens().await?)
    }

    /// Ends a registration token.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is none.
    pub async fn revoke_registration_token(&self, token: &str) -> Result<(), AccountError> {
        match self.store.revoke_registration_token(token).await? {
            true => Ok(()),
            false => Err(ApiError::not_found("There is no such registration token.")),
        }
    }

    /// Would this token admit an account now?
    pub async fn registration_token_is_valid(&self, token: &str) -> Result<bool, AccountError> {
        Ok(self.store.registration_token_is_valid(token, self.now()).await?)
    }
}

fn found(found: bool) -> Result<(), AccountError> {
    if found {
        Ok(())
    } else {
        Err(ApiError::not_found("There is no such account."))
    }
}
