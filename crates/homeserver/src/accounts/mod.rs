//! Users, their sessions, and who a request comes from.
//!
//! Owns passwords, access tokens, registration, interactive authentication and profiles. Knows nothing of rooms, and of
//! devices only that a session has one.

mod admin;
mod config;
mod names;
mod passwords;
mod profile;
mod registration;
mod secrets;
mod sessions;
mod uiaa;
mod upkeep;

use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, UserId};
use storage::Store;
use tokio::sync::broadcast;

use crate::Clock;

pub use admin::{AccountError, FirstAdminLink};
pub use config::{Auth as AuthConfig, PasswordHash, Registration as RegistrationConfig, RegistrationMode};
pub use registration::{NewUser, RegistrationBy};
pub use sessions::{Login, NewDevice};
pub use uiaa::{Flow, Operation, Passed, Stage};

pub(crate) use secrets::{digest, random_text};

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// The user.
    pub user_id: OwnedUserId,
    /// The session the token belongs to.
    pub device_id: OwnedDeviceId,
    /// Whether the user administers this server.
    pub is_admin: bool,
}

/// What others must hear of at once: whoever acts for these is no longer allowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountChange {
    /// A device logged out or was removed.
    DeviceGone {
        /// Its user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
    /// A device signed in: if it had a session before, that has ended.
    DeviceSignedIn {
        /// Its user.
        user_id: OwnedUserId,
        /// The device.
        device_id: OwnedDeviceId,
    },
    /// An account was deactivated.
    UserGone {
        /// The user.
        user_id: OwnedUserId,
    },
}

/// How many changes a slow listener may fall behind before it misses some.
const CHANGES_KEPT: usize = 1024;

/// The accounts of this server.
#[derive(Debug)]
pub struct Accounts {
    store: Store,
    clock: Clock,
    server_name: OwnedServerName,
    registration: RegistrationConfig,
    passwords: passwords::Passwords,
    sessions: sessions::Sessions,
    login_tokens: sessions::LoginTokens,
    interactive: uiaa::Interactive,
    nonces: registration::Nonces,
    changes: broadcast::Sender<AccountChange>,
    /// Held while changed profiles are written into rooms.
    pub(crate) showing_profiles: tokio::sync::Mutex<()>,
}

impl Accounts {
    pub(crate) fn new(store: Store, clock: Clock, config: &crate::Config) -> Self {
        Self {
            store,
            clock,
            server_name: config.server_name.clone(),
            registration: config.registration.clone(),
            passwords: passwords::Passwords::new(config.auth.password_hash),
            sessions: sessions::Sessions::default(),
            login_tokens: sessions::LoginTokens::default(),
            interactive: uiaa::Interactive::default(),
            nonces: registration::Nonces::default(),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            showing_profiles: tokio::sync::Mutex::default(),
        }
    }

    /// Hears of every device and user that goes.
    pub fn changes(&self) -> broadcast::Receiver<AccountChange> {
        self.changes.subscribe()
    }

    /// How accounts come to be here.
    pub fn registration(&self) -> &RegistrationConfig {
        &self.registration
    }

    /// Is this an id of this server? (Not: does the account exist.)
    pub fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.server_name
    }

    /// Does this id name a living account of this server?
    pub async fn exists(&self, user_id: &UserId) -> Result<bool, storage::Error> {
        if !self.is_local(user_id) {
            return Ok(false);
        }
        let account = self.store.account(user_id.as_str()).await?;
        Ok(account.is_some_and(|account| account.deactivated_at.is_none()))
    }

    fn now(&self) -> i64 {
        unix_ms(&self.clock)
    }

    fn announce(&self, change: AccountChange) {
        // Nobody listening is fine.
        self.changes.send(change).ok();
    }
}

/// The time as the database writes it.
pub(crate) fn unix_ms(clock: &Clock) -> i64 {
    i64::try_from(clock.now_ms()).unwrap_or(i64::MAX)
}
