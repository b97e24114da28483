//! Sessions: logging in and out, and knowing whose token a request carries without asking the database each time.

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use storage::{accounts::NewSession, devices::LastSeen};

use super::{AccountChange, Accounts, Authenticated, digest, secrets};
use crate::client_api::ApiError;

/// Sessions kept in memory; the least recently used one is asked for again.
const CACHED: NonZeroUsize = NonZeroUsize::new(100_000).expect("not zero");
/// Tokens known to be nobody's. A fresh token cannot be among them: it is 256 random bits.
const CACHED_UNKNOWN: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// A device is noted as seen at most this often.
const SEEN_INTERVAL_MS: u64 = 60_000;
/// How long a login token lives. Spec: "POST /login/get_token".
const LOGIN_TOKEN_MS: u64 = 120_000;
const LOGIN_TOKENS: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// Device ids are opaque; a longer one than this is nobody's honest choice.
const MAX_DEVICE_ID: usize = 255;
const MAX_DISPLAY_NAME: usize = 512;

type Digest = [u8; 32];

/// From where and when (Unix milliseconds).
type Sighting = (Option<IpAddr>, u64);

/// Which device a login is for.
#[derive(Debug, Clone, Default)]
pub struct NewDevice {
    /// A known device signs in again; a new id is made when there is none.
    pub device_id: Option<String>,
    /// What a new device is called.
    pub display_name: Option<String>,
}

/// An open session.
#[derive(Clone)]
pub struct Login {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Opens it; shown once.
    pub access_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({} {})", self.user_id, self.device_id)
    }
}

/// The sessions in memory.
#[derive(Debug)]
pub(super) struct Sessions {
    known: Mutex<LruCache<Digest, Arc<Session>>>,
    unknown: Mutex<LruCache<Digest, ()>>,
    /// Rises with every revocation: what was read before one must not be kept after it.
    revocations: AtomicU64,
    /// Sightings not yet written.
    seen: Mutex<HashMap<(OwnedUserId, OwnedDeviceId), Sighting>>,
}

#[derive(Debug)]
struct Session {
    owner: Authenticated,
    /// When the device was last noted as seen, Unix milliseconds.
    noted: AtomicU64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::new(CACHED)),
            unknown: Mutex::new(LruCache::new(CACHED_UNKNOWN)),
            revocations: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }
}

impl Sessions {
    /// Call after a revocation is durable: whatever `gone` matches is asked for again.
    pub(super) fn forget(&self, gone: impl Fn(&Authenticated) -> bool) {
        let mut known = self.known.lock();
        self.revocations.fetch_add(1, Ordering::SeqCst);
        let tokens: Vec<Digest> = known
            .iter()
            .filter(|(_, s)| gone(&s.owner))
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            known.pop(&token);
        }
    }

    fn remember(&self, token: Digest, session: Arc<Session>, read_at: u64) {
        let mut known = self.known.lock();
        if self.revocations.load(Ordering::SeqCst) == read_at {
            known.put(token, session);
        }
    }

    fn note(&self, session: &Session, ip: Option<IpAddr>, now: u64) {
        let noted = session.noted.load(Ordering::Relaxed);
        if now.saturating_sub(noted) < SEEN_INTERVAL_MS {
            return;
        }
        session.noted.store(now, Ordering::Relaxed);
        let device = (session.owner.user_id.clone(), session.owner.device_id.clone());
        self.seen.lock().insert(device, (ip, now));
    }
}

/// Tokens for `m.login.token`: in memory, for two minutes, for one login.
#[derive(Debug)]
pub(super) struct LoginTokens(Mutex<LruCache<Digest, (OwnedUserId, u64)>>);

impl Default for LoginTokens {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(LOGIN_TOKENS)))
    }
}

impl Accounts {
    /// Whose access token this is. Costs no query while the session is in memory.
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN` when it is nobody's.
    pub async fn authenticate(&self, token: &str, ip: Option<IpAddr>) -> Result<Authenticated, ApiError> {
        let now = self.clock.now_ms();
        let token = digest(token);
        if let Some(session) = self.sessions.known.lock().get(&token).cloned() {
            self.sessions.note(&session, ip, now);
            return Ok(session.owner.clone());
        }
        if self.sessions.unknown.lock().get(&token).is_some() {
            return Err(ApiError::unknown_token(false));
        }
        let read_at = self.sessions.revocations.load(Ordering::SeqCst);
        let Some(owner) = self.store.token_owner(&token).await? else {
            self.sessions.unknown.lock().put(token, ());
            return Err(ApiError::unknown_token(false));
        };
        let user_id = UserId::parse(owner.user_id.as_str())
            .map_err(|e| storage::Error::corrupt("access_tokens", format!("user_id: {e}")))?;
        let session = Arc::new(Session {
            owner: Authenticated {
                user_id,
                device_id: owner.device_id.into(),
                is_admin: owner.is_admin,
            },
            noted: AtomicU64::new(0),
        });
        self.sessions.note(&session, ip, now);
        self.sessions.remember(token, session.clone(), read_at);
        Ok(session.owner.clone())
    }

    /// For requests that last: that the access token they came with still opens its session. Unlike
    /// [`Accounts::authenticate`] it is no sign of life.
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN` when it does not.
    pub async fn check_still_open(&self, token: &str) -> Result<(), ApiError> {
        let token = digest(token);
        if self.sessions.known.lock().peek(&token).is_some() || self.store.token_owner(&token).await?.is_some() {
            return Ok(());
        }
        Err(ApiError::unknown_token(false))
    }

    /// The user whose name and password these are.
    ///
    /// # Errors
    /// `M_FORBIDDEN` for a wrong name or password alike, `M_USER_DEACTIVATED` when the account has ended.
    pub async fn check_password(&self, user: &str, password: &str) -> Result<OwnedUserId, ApiError> {
        let user_id = self.local_user(user);
        let account = match &user_id {
            Some(user_id) => match self.store.account(user_id.as_str()).await? {
                // Names are registered in small letters; old clients send what was typed.
                None => self.store.account(&user_id.as_str().to_lowercase()).await?,
                found => found,
            },
            None => None,
        };
        if account.as_ref().is_some_and(|account| account.deactivated_at.is_some()) {
            return Err(ApiError::new(
                http::StatusCode::FORBIDDEN,
                "M_USER_DEACTIVATED",
                "This account has been deactivated.",
            ));
        }
        let hash = account.as_ref().and_then(|account| account.password_hash.as_deref());
        let matches = self.passwords.verify(password, hash).await?;
        match account.filter(|_| matches) {
            Some(account) => UserId::parse(account.user_id)
                .map_err(|e| storage::Error::corrupt("users", format!("user_id: {e}")).into()),
            None => Err(ApiError::forbidden("The user name or the password is wrong.")),
        }
    }

    /// Opens a session of a user who has proven who they are.
    pub async fn log_in(&self, user_id: OwnedUserId, device: NewDevice) -> Result<Login, ApiError> {
        let (session, login) = self.new_session(user_id, device)?;
        self.store.open_session(session).await?;
        // An earlier session of the same device has ended.
        self.sessions
            .forget(|s| s.user_id == login.user_id && s.device_id == login.device_id);
        self.announce(AccountChange::DeviceSignedIn {
            user_id: login.user_id.clone(),
            device_id: login.device_id.clone(),
        });
        Ok(login)
    }

    pub(super) fn new_session(&self, user_id: OwnedUserId, device: NewDevice) -> Result<(NewSession, Login), ApiError> {
        let device_id: OwnedDeviceId = match device.device_id.filter(|id| !id.is_empty()) {
            Some(id) if id.len() > MAX_DEVICE_ID => {
                return Err(ApiError::invalid_param("A device id may have at most 255 bytes."));
            }
            Some(id) => id.into(),
            None => secrets::random_of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 10).into(),
        };
        if device
            .display_name
            .as_ref()
            .is_some_and(|name| name.len() > MAX_DISPLAY_NAME)
        {
            return Err(ApiError::invalid_param("A device's name may have at most 512 bytes."));
        }
        let access_token = secrets::access_token();
        let session = NewSession {
            user_id: user_id.to_string(),
            device_id: device_id.to_string(),
            display_name: device.display_name,
            token_hash: digest(&access_token).to_vec(),
            created_at: self.now(),
        };
        Ok((
            session,
            Login {
                user_id,
                device_id,
                access_token,
            },
        ))
    }

    /// A token that lets another client of the same user log in once, and how long it lives in milliseconds.
    pub fn new_login_token(&self, user_id: OwnedUserId) -> (String, u64) {
        let token = super::random_text();
        let until = self.clock.now_ms() + LOGIN_TOKEN_MS;
        self.login_tokens.0.lock().put(digest(&token), (user_id, until));
        (token, LOGIN_TOKEN_MS)
    }

    /// The user a login token is for; it is used up.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when it is unknown, used or too old.
    pub fn redeem_login_token(&self, token: &str) -> Result<OwnedUserId, ApiError> {
        let now = self.clock.now_ms();
        match self.login_tokens.0.lock().pop(&digest(token)) {
            Some((user_id, until)) if now < until => Ok(user_id),
            _ => Err(ApiError::forbidden("This login token is unknown, used or too old.")),
        }
    }

    /// Whether these devices' tokens are valid is asked of the database again.
    pub(crate) fn forget_sessions_of(&self, user_id: &UserId, device_ids: &[String]) {
        self.sessions
            .forget(|s| s.user_id == user_id && device_ids.iter().any(|id| s.device_id == id.as_str()));
    }

    /// Call after devices and their tokens are gone from the database.
    pub(crate) fn devices_gone(&self, user_id: &UserId, device_ids: &[String]) {
        self.forget_sessions_of(user_id, device_ids);
        for device_id in device_ids {
            self.announce(AccountChange::DeviceGone {
                user_id: user_id.to_owned(),
                device_id: device_id.as_str().into(),
            });
        }
    }

    pub(super) fn user_gone(&self, user_id: &UserId) {
        self.sessions.forget(|s| s.user_id == user_id);
        self.announce(AccountChange::UserGone {
            user_id: user_id.to_owned(),
        });
    }

    /// When and from where a device was last seen, where that is newer than what is stored.
    pub(crate) fn last_seen(&self, user_id: &UserId, device_id: &DeviceId) -> Option<Sighting> {
        self.sessions
            .seen
            .lock()
            .get(&(user_id.to_owned(), device_id.to_owned()))
            .copied()
    }

    /// Writes the sightings that have gathered, in one transaction.
    pub async fn flush_last_seen(&self) -> Result<(), storage::Error> {
        let seen = std::mem::take(&mut *self.sessions.seen.lock());
        if seen.is_empty() {
            return Ok(());
        }
        let seen = seen
            .into_iter()
            .map(|((user_id, device_id), (ip, at))| LastSeen {
                user_id: user_id.into(),
                device_id: device_id.into(),
                ip: ip.map(|ip| ip.to_string()),
                at: i64::try_from(at).unwrap_or(i64::MAX),
            })
            .collect();
        self.store.record_last_seen(seen).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_revocation_is_not_kept_after_it() {
        let sessions = Sessions::default();
        let owner = Authenticated {
            user_id: "@a:test".try_into().unwrap(),
            device_id: "D".into(),
            is_admin: false,
        };
        let session = Arc::new(Session {
            owner,
            noted: AtomicU64::new(0),
        });
        let read_at = sessions.revocations.load(Ordering::SeqCst);
        sessions.forget(|_| true);
        sessions.remember([1; 32], session.clone(), read_at);
        assert!(sessions.known.lock().is_empty());
        let read_at = sessions.revocations.load(Ordering::SeqCst);
        sessions.remember([1; 32], session, read_at);
        assert_eq!(sessions.known.lock().len(), 1);
        sessions.forget(|s| s.device_id == "D");
        assert!(sessions.known.lock().is_empty());
    }
}
