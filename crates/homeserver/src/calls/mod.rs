//! Calls: what a client needs to place one, and what keeps a call's members true.
//!
//! Owns the secrets shared with the media plane, TURN credentials, OpenID tokens, entry to the SFU,
//! delayed events (MSC4140), and the removal of members whose media is gone. How media is carried it
//! does not know: it acts through [`MediaControl`] and is told through [`MediaEvent`]s.

pub mod delayed;
pub mod ghosts;
pub mod media;
pub mod openid;
pub mod sfu_access;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use credentials::{
    livekit::ApiKey,
    turn::{TurnCredentials, TurnSecret},
};
use ruma::{OwnedDeviceId, OwnedUserId, UserId};
use storage::Store;
use tokio::sync::mpsc;

pub use media::{MediaControl, MediaEvent, MediaPlane, PartingReason};

use crate::{Clock, Homeserver, StartError};

/// How long TURN credentials are valid. A call that lasts longer keeps its allocation: only a new one needs new credentials.
pub(crate) const TURN_CREDENTIALS_VALID: Duration = Duration::from_secs(24 * 3600);

/// Events of the media plane that may wait; it waits beyond that.
const MEDIA_EVENTS: usize = 1024;

/// The call service.
#[derive(Debug)]
pub struct Calls {
    clock: Clock,
    turn_secret: TurnSecret,
    sfu_key: ApiKey,
    openid: openid::OpenIdTokens,
    plane: OnceLock<MediaPlane>,
    pub(crate) delayed: delayed::Schedule,
    pub(crate) grants: sfu_access::Grants,
}

impl Calls {
    /// Reads, or makes at the first start, the secrets shared with the media plane.
    pub(crate) async fn open(store: &Store, clock: &Clock) -> Result<Self, StartError> {
        let turn_secret = TurnSecret::new(secret(store, "turn_secret").await?);
        let sfu_key = ApiKey::new("longhouse", secret(store, "sfu_secret").await?);
        let openid = openid::OpenIdTokens::new(&secret(store, "openid_secret").await?);
        Ok(Self {
            clock: clock.clone(),
            turn_secret,
            sfu_key,
            openid,
            plane: OnceLock::new(),
            delayed: delayed::Schedule::open(store.clone(), clock).await?,
            grants: sfu_access::Grants::open(store.clone()).await?,
        })
    }

    /// The secret that the relay checks credentials against.
    pub fn turn_secret(&self) -> &TurnSecret {
        &self.turn_secret
    }

    /// The key that the SFU checks tokens against.
    pub fn sfu_key(&self) -> &ApiKey {
        &self.sfu_key
    }

    /// OpenID tokens of this server's users.
    pub fn openid(&self) -> &openid::OpenIdTokens {
        &self.openid
    }

    /// What carries media, once the process has connected it.
    pub fn plane(&self) -> Option<&MediaPlane> {
        self.plane.get()
    }

    /// Credentials for the relay in this process, and how long they are valid; `None` without a relay.
    pub fn turn_credentials(&self, user_id: &UserId) -> Option<(TurnCredentials, Duration)> {
        self.plane.get().filter(|plane| !plane.turn_uris.is_empty())?;
        Some((
            self.turn_secret.mint(user_id.as_str(), self.turn_credentials_end()),
            TURN_CREDENTIALS_VALID,
        ))
    }

    /// When the relay's credentials that were minted until now are all over, seconds since the Unix epoch.
    pub(crate) fn turn_credentials_end(&self) -> u64 {
        self.clock.now_secs() + TURN_CREDENTIALS_VALID.as_secs()
    }

    /// The same for the user behind a participant of the SFU: what ends the user's allocations ends these too.
    pub fn participant_turn_credentials(&self, sfu_room: &str, identity: &str) -> Option<TurnCredentials> {
        let grant = self.grants.of(sfu_room, identity)?;
        let user_id = <&UserId>::try_from(grant.user_id.as_str()).ok()?;
        self.turn_credentials(user_id).map(|(credentials, _)| credentials)
    }
}

impl Homeserver {
    /// Tells calls what carries media, and starts what keeps calls true: delayed events and the
    /// removal of members without media. Answers where the media plane sends its events.
    ///
    /// # Panics
    /// When called twice.
    pub fn connect_media(&self, plane: MediaPlane) -> mpsc::Sender<MediaEvent> {
        let (send, receive) = mpsc::channel(MEDIA_EVENTS);
        assert!(self.calls.plane.set(plane).is_ok(), "the media plane is connected once");
        self.tasks.spawn(delayed::run(self.clone()));
        self.tasks.spawn(ghosts::run(self.clone(), receive));
        send
    }
}

impl Homeserver {
    /// Whose OpenID token this is, and the device it was given to, while that device is signed in.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn openid_holder(&self, token: &str) -> Result<Option<(OwnedUserId, OwnedDeviceId)>, storage::Error> {
        let Some((user_id, device_id)) = self.calls.openid.verify(token, self.clock.now_secs()) else {
            return Ok(None);
        };
        let alive = self.store.device(user_id.as_str(), device_id.as_str()).await?.is_some();
        Ok(alive.then_some((user_id, device_id)))
    }
}

impl Calls {
    /// The hold on the media plane, once connected.
    pub(crate) fn control(&self) -> Option<Arc<dyn MediaControl>> {
        self.plane.get().map(|plane| plane.control.clone())
    }
}

async fn secret(store: &Store, name: &'static str) -> Result<Vec<u8>, StartError> {
    Ok(match store.server_value(name).await? {
        Some(kept) => kept,
        None => store.server_value_or(name, rand::random::<[u8; 32]>().to_vec()).await?,
    })
}
