//! Who may enter the SFU: the decision, the token, and the memory of it that makes an SFU
//! participant a Matrix device again (`CallMember` of a room).

use std::{collections::HashMap, time::Duration};

use credentials::livekit::{self, RoomGrant};
use parking_lot::RwLock;
use ruma::{DeviceId, OwnedRoomId, RoomId, UserId};
use storage::{Store, calls::SfuGrant};

use super::MediaControl;
use crate::{Homeserver, client_api::ApiError};

/// The slot of a room's one call, as Element Call names it.
pub const ROOM_CALL_SLOT: &str = "m.call#ROOM";

/// How long a token lets a client enter; the SFU refreshes it during the session.
const TOKEN_VALID: Duration = Duration::from_secs(3600);

/// How long a grant is remembered: a session may outlast its token by far.
const GRANT_REMEMBERED_MS: u64 = 24 * 3600 * 1000;

/// Grants of one user that are remembered at once: two for each device and call they enter in a day.
const MAX_GRANTS_PER_USER: usize = 1000;

/// Longest slot id and member id, in bytes: what state keys may have.
const MAX_ID: usize = 255;

/// Who asks to enter, and how they will be named there.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The user, proven.
    pub user_id: &'a UserId,
    /// The device, as claimed by the user.
    pub device_id: &'a str,
    /// The Matrix room.
    pub room_id: &'a RoomId,
    /// The call in the room.
    pub slot_id: &'a str,
    /// The name in the SFU.
    pub identity: Identity<'a>,
    /// A delayed event of the user that is to be sent when the participant is gone.
    pub delayed_leave: Option<&'a str>,
}

/// The two ways to name a participant in use.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// `@user:server:DEVICE`.
    Legacy,
    /// A hash over user, device and the id of the member event.
    Hashed {
        /// `member.id`.
        member_id: &'a str,
    },
}

/// What lets a client into the SFU.
#[derive(Debug)]
pub struct Admission {
    /// Where to connect.
    pub url: String,
    /// The token.
    pub jwt: String,
}

impl Homeserver {
    /// Lets a joined member of the room into the room's call.
    ///
    /// # Errors
    /// 403 when the user is not joined; 400 when an id is too long or the delayed leave is not theirs; 404 when the SFU
    /// is off; 429 when the user entered too many calls lately.
    pub async fn admit_to_sfu(&self, entry: &Entry<'_>) -> Result<Admission, ApiError> {
        let plane = self
            .calls
            .plane()
            .and_then(|plane| Some((plane.control.clone(), plane.sfu.clone()?)));
        let Some((control, urls)) = plane else {
            return Err(ApiError::not_found("This server has no SFU: `sfu.enabled` is off."));
        };
        let member_id = match entry.identity {
            Identity::Legacy => "",
            Identity::Hashed { member_id } => member_id,
        };
        if entry.slot_id.len() > MAX_ID || member_id.len() > MAX_ID {
            return Err(ApiError::invalid_param(format!(
                "A slot id and a member id have at most {MAX_ID} bytes."
            )));
        }
        let room = self.rooms.find(entry.room_id).await?;
        if !room.is_some_and(|room| room.state().is_joined(entry.user_id)) {
            return Err(ApiError::forbidden(
                "Only joined members of the room may enter its call.",
            ));
        }
        let sfu_room = livekit::room_alias(entry.room_id.as_str(), entry.slot_id);
        let identity = match entry.identity {
            Identity::Legacy => livekit::legacy_identity(entry.user_id.as_str(), entry.device_id),
            Identity::Hashed { member_id } => {
                livekit::hashed_identity(entry.user_id.as_str(), entry.device_id, member_id)
            }
        };
        let now = self.clock.now_ms();
        if !self.calls.grants.has_room_for(entry.user_id, &sfu_room, &identity) {
            return Err(ApiError::limit_exceeded("calls entered in a day", 3_600_000));
        }
        self.calls
            .grants
            .keep(SfuGrant {
                sfu_room: sfu_room.clone(),
                identity: identity.clone(),
                room_id: entry.room_id.to_string(),
                user_id: entry.user_id.to_string(),
                device_id: entry.device_id.to_owned(),
                expires_at: i64::try_from(now + GRANT_REMEMBERED_MS).unwrap_or(i64::MAX),
            })
            .await?;
        if let Some(delay_id) = entry.delayed_leave {
            self.calls
                .delayed
                .delegate(delay_id, entry.user_id, &sfu_room, &identity)
                .await?;
        }
        control.open_room(&sfu_room);
        let jwt = self.calls.sfu_key.mint(
            &identity,
            RoomGrant::participant(sfu_room),
            now / 1000,
            TOKEN_VALID.as_secs(),
        );
        Ok(Admission {
            url: urls.websocket_url,
            jwt,
        })
    }

    /// Whether a participant who comes with a token may enter at this moment. If so the call is open to them: it may have
    /// ended since they were let in, or the process been restarted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn admit_participant(&self, sfu_room: &str, identity: &str) -> Result<bool, ApiError> {
        let admitted = self.may_be_in_call(sfu_room, identity).await?;
        if let Some(control) = self.calls.control().filter(|_| admitted) {
            control.open_room(sfu_room);
        }
        Ok(admitted)
    }

    /// Whether this participant may be in the call at this moment: let in here, joined to the room, the device signed in.
    /// A token outlives all three by up to an hour.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn may_be_in_call(&self, sfu_room: &str, identity: &str) -> Result<bool, ApiError> {
        let Some(grant) = self.calls.grants.of(sfu_room, identity) else {
            return Ok(false);
        };
        let (Ok(room_id), Ok(user_id)) = (
            <&RoomId>::try_from(grant.room_id.as_str()),
            <&UserId>::try_from(grant.user_id.as_str()),
        ) else {
            return Ok(false);
        };
        let room = self.rooms.find(room_id).await?;
        Ok(room.is_some_and(|room| room.state().is_joined(user_id))
            && self.store.device(&grant.user_id, &grant.device_id).await?.is_some())
    }
}

/// The grants that are remembered, by SFU room and identity.
#[derive(Debug)]
pub struct Grants {
    store: Store,
    known: RwLock<HashMap<(String, String), SfuGrant>>,
}

impl Grants {
    pub(crate) async fn open(store: Store) -> Result<Self, storage::Error> {
        let kept = store.sfu_grants().await?;
        let known = kept
            .into_iter()
            .map(|g| ((g.sfu_room.clone(), g.identity.clone()), g))
            .collect();
        Ok(Self {
            store,
            known: RwLock::new(known),
        })
    }

    async fn keep(&self, grant: SfuGrant) -> Result<(), storage::Error> {
        let key = (grant.sfu_room.clone(), grant.identity.clone());
        self.store.keep_sfu_grant(grant.clone()).await?;
        self.known.write().insert(key, grant);
        Ok(())
    }

    /// Remembers a grant from now on: its participant is there.
    pub(crate) async fn renew(&self, mut grant: SfuGrant, now_ms: u64) -> Result<(), storage::Error> {
        grant.expires_at = i64::try_from(now_ms + GRANT_REMEMBERED_MS).unwrap_or(i64::MAX);
        self.keep(grant).await
    }

    /// Renews what half of its time has passed of, where the participant is there: a session outlasts its grant, and who
    /// stands behind it must be known to its end.
    pub(crate) async fn renew_present(&self, control: &dyn MediaControl, now_ms: u64) -> Result<(), storage::Error> {
        let ageing = i64::try_from(now_ms + GRANT_REMEMBERED_MS / 2).unwrap_or(i64::MAX);
        for grant in self.all() {
            if grant.expires_at < ageing && control.is_present(&grant.sfu_room, &grant.identity) {
                self.renew(grant, now_ms).await?;
            }
        }
        Ok(())
    }

    /// Every grant that is remembered.
    pub(crate) fn all(&self) -> Vec<SfuGrant> {
        self.known.read().values().cloned().collect()
    }

    /// Whether the user may be given this grant besides those they have.
    fn has_room_for(&self, user_id: &UserId, sfu_room: &str, identity: &str) -> bool {
        let known = self.known.read();
        let key = (sfu_room.to_owned(), identity.to_owned());
        known.contains_key(&key)
            || known.values().filter(|g| g.user_id == user_id.as_str()).count() < MAX_GRANTS_PER_USER
    }

    /// Whom this participant stands for.
    pub(crate) fn of(&self, sfu_room: &str, identity: &str) -> Option<SfuGrant> {
        self.known
            .read()
            .get(&(sfu_room.to_owned(), identity.to_owned()))
            .cloned()
    }

    /// The grants of a user: in one room, or in all.
    pub(crate) fn of_user(&self, user_id: &UserId, room_id: Option<&RoomId>) -> Vec<SfuGrant> {
        let known = self.known.read();
        let of_user = known.values().filter(|g| g.user_id == user_id.as_str());
        of_user
            .filter(|g| room_id.is_none_or(|room| g.room_id == room.as_str()))
            .cloned()
            .collect()
    }

    /// Whether any identity of this device is in the SFU room.
    pub(crate) fn device_is_present(
        &self,
        control: &dyn MediaControl,
        room_id: &RoomId,
        user_id: &UserId,
        device_id: &str,
    ) -> bool {
        self.of_user(user_id, Some(room_id))
            .iter()
            .any(|grant| grant.device_id == device_id && control.is_present(&grant.sfu_room, &grant.identity))
    }

    /// Drops what has expired.
    pub(crate) fn forget_expired(&self, now_ms: u64) {
        self.known
            .write()
            .retain(|_, g| u64::try_from(g.expires_at).is_ok_and(|ends| ends > now_ms));
    }

    /// The rooms that grants were given for.
    pub(crate) fn rooms(&self) -> Vec<OwnedRoomId> {
        let mut rooms: Vec<_> = self
            .known
            .read()
            .values()
            .filter_map(|g| OwnedRoomId::try_from(g.room_id.as_str()).ok())
            .collect();
        rooms.sort();
        rooms.dedup();
        rooms
    }
}

/// Whether a device id is one that may stand in an identity: bounded, and without the separator that would let one
/// device pass for another user's.
pub fn is_plausible_device(device_id: &str) -> bool {
    let id: &DeviceId = device_id.into();
    !id.as_str().is_empty() && id.as_str().len() <= 255
}
