//! How accounts come to be: by themselves, by a shared secret, by an administrator, by the first administrator's link.

use std::num::NonZeroUsize;

use hmac::{Hmac, KeyInit as _, Mac as _};
use lru::LruCache;
use parking_lot::Mutex;
use ruma::OwnedUserId;
use sha1::Sha1;
use storage::accounts::{AccountCreation, Admission, NewAccount};

use super::{Accounts, Flow, Login, NewDevice, RegistrationMode, Stage, digest, random_text};
use crate::client_api::ApiError;

const NONCES: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");
const NONCE_MS: u64 = 60_000;

/// What a new account is made of.
#[derive(Clone)]
pub struct NewUser {
    /// From [`Accounts::new_user_id`]; a name is made up when there is none.
    pub user_id: Option<OwnedUserId>,
    /// Without one nobody can sign in by password.
    pub password: Option<String>,
    /// The name others see; the localpart by default.
    pub display_name: Option<String>,
    /// Whether the user administers this server.
    pub is_admin: bool,
    /// What lets the account in.
    pub by: RegistrationBy,
    /// The first session, if one is to be opened.
    pub device: Option<NewDevice>,
}

impl std::fmt::Debug for NewUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewUser({:?}, by {:?})", self.user_id, self.by)
    }
}

/// What lets an account in.
#[derive(Clone)]
pub enum RegistrationBy {
    /// An open server, an administrator, or a shared secret: already decided.
    Decided,
    /// A registration token, one use of which is counted.
    Token(String),
    /// The one link for the first administrator.
    FirstAdminLink(String),
}

impl std::fmt::Debug for RegistrationBy {
    /// Tokens are never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Decided => "decision",
            Self::Token(_) => "registration token",
            Self::FirstAdminLink(_) => "first administrator's link",
        })
    }
}

#[derive(Debug)]
pub(super) struct Nonces(Mutex<LruCache<String, u64>>);

impl Default for Nonces {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(NONCES)))
    }
}

impl Accounts {
    /// The flows that make an account here; none when registration is closed.
    pub fn registration_flows(&self) -> &'static [Flow] {
        match self.registration.mode {
            RegistrationMode::Closed => &[],
            RegistrationMode::Open => &[&[Stage::Dummy]],
            RegistrationMode::Token => &[&[Stage::RegistrationToken]],
        }
    }

    /// Is the name free?
    ///
    /// # Errors
    /// `M_USER_IN_USE` when it is or was somebody's.
    pub async fn check_name_is_free(&self, user_id: &ruma::UserId) -> Result<(), ApiError> {
        match self.store.account(user_id.as_str()).await? {
            None => Ok(()),
            Some(_) => Err(name_taken()),
        }
    }

    /// Makes an account, and a session where one is asked for.
    ///
    /// # Errors
    /// `M_USER_IN_USE`, `M_WEAK_PASSWORD`, or `M_FORBIDDEN` when the token or the link lets nobody in.
    pub async fn create_user(&self, user: NewUser) -> Result<(OwnedUserId, Option<Login>), ApiError> {
        let NewUser {
            user_id,
            password,
            display_name,
            is_admin,
            by,
            device,
        } = user;
        let user_id = user_id.unwrap_or_else(|| self.generated_user_id());
        let password_hash = match &password {
            Some(password) => Some(self.passwords.hash(password).await?),
            None => None,
        };
        let (session, login) = match device {
            Some(device) => {
                let (session, login) = self.new_session(user_id.clone(), device)?;
                (Some(session), Some(login))
            }
            None => (None, None),
        };
        let display_name = display_name.unwrap_or_else(|| user_id.localpart().to_owned());
        let outcome = self
            .store
            .create_account(NewAccount {
                user_id: user_id.to_string(),
                password_hash,
                is_admin,
                created_at: self.now(),
                display_name: Some(serde_json::Value::String(display_name).to_string()),
                admission: match &by {
                    RegistrationBy::Decided => Admission::Granted,
                    RegistrationBy::Token(token) => Admission::RegistrationToken(token.clone()),
                    RegistrationBy::FirstAdminLink(token) => Admission::FirstAdminLink {
                        token_hash: digest(token).to_vec(),
                    },
                },
                session,
            })
            .await?;
        match outcome {
            AccountCreation::Created => {
                tracing::info!(%user_id, is_admin, ?by, "account created");
                Ok((user_id, login))
            }
            AccountCreation::NameTaken => Err(name_taken()),
            AccountCreation::NotAdmitted => Err(ApiError::forbidden(match by {
                RegistrationBy::FirstAdminLink(_) => "This link has been used or replaced.",
                _ => "This registration token is unknown, used up or expired.",
            })),
        }
    }

    /// A nonce for one registration by shared secret, good for a minute.
    pub fn new_registration_nonce(&self) -> String {
        let nonce = random_text();
        self.nonces.0.lock().put(nonce.clone(), self.clock.now_ms() + NONCE_MS);
        nonce
    }

    /// Takes the nonce and checks that `mac` (hexadecimal) is the HMAC-SHA1 of `fields`, joined by NUL, under the
    /// shared secret.
    ///
    /// # Errors
    /// When there is no shared secret, the nonce is unknown, or the MAC is another.
    pub fn check_shared_secret(&self, nonce: &str, fields: &[&str], mac: &str) -> Result<(), ApiError> {
        self.check_shared_secret_enabled()?;
        let Some(secret) = &self.registration.shared_secret else {
            return Err(no_shared_secret());
        };
        let now = self.clock.now_ms();
        if self.nonces.0.lock().pop(nonce).is_none_or(|until| until <= now) {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "This nonce is unknown, used or too old.",
            ));
        }
        let mut expected = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
        for (n, field) in std::iter::once(&nonce).chain(fields).enumerate() {
            if n > 0 {
                expected.update(&[0]);
            }
            expected.update(field.as_bytes());
        }
        let given = from_hex(mac).unwrap_or_default();
        // Compares in constant time.
        expected
            .verify_slice(&given)
            .map_err(|_| ApiError::forbidden("The MAC is wrong."))
    }

    /// Is registration by shared secret set up?
    ///
    /// # Errors
    /// When it is not.
    pub fn check_shared_secret_enabled(&self) -> Result<(), ApiError> {
        self.registration
            .shared_secret
            .as_ref()
            // An empty file is no secret: anybody could sign with it.
            .filter(|secret| !secret.is_empty())
            .map(|_| ())
            .ok_or_else(no_shared_secret)
    }
}

fn name_taken() -> ApiError {
    ApiError::new(
        http::StatusCode::BAD_REQUEST,
        "M_USER_IN_USE",
        "This username is taken.",
    )
}

fn no_shared_secret() -> ApiError {
    ApiError::new(
        http::StatusCode::BAD_REQUEST,
        "M_UNKNOWN",
        "Registration by shared secret is not set up: `registration.shared_secret` is not set.",
    )
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_or_refused() {
        assert_eq!(from_hex("00ff1A"), Some(vec![0, 255, 26]));
        assert_eq!(from_hex(""), Some(vec![]));
        for bad in ["0", "zz", "äé"] {
            assert_eq!(from_hex(bad), None, "{bad}");
        }
    }
}
