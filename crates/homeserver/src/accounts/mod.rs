//! Users, their sessions, and who a request comes from.

use ruma::{OwnedDeviceId, OwnedUserId};
use storage::Store;

use crate::{Clock, client_api::ApiError};

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

/// The accounts of this server.
#[derive(Debug)]
pub struct Accounts {
    _store: Store,
    _clock: Clock,
}

impl Accounts {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self {
            _store: store,
            _clock: clock,
        }
    }

    /// Whose access token this is.
    ///
    /// # Errors
    /// `M_UNKNOWN_TOKEN` when it is nobody's.
    pub async fn authenticate(&self, _token: &str) -> Result<Authenticated, ApiError> {
        Err(ApiError::unknown_token(false))
    }
}
