//! The end of devices and accounts, and what else happens in several services at once.

use ruma::{CanonicalJsonObject, DeviceId, OwnedRoomId, UserId};

use crate::{
    Homeserver,
    client_api::ApiError,
    room::{Action, Membership, MembershipChange},
};

impl Homeserver {
    /// Removes devices with everything that is theirs. Unknown ids are no error.
    pub async fn remove_devices(&self, user_id: &UserId, device_ids: &[String]) -> Result<(), ApiError> {
        let note = self
            .devices
            .note_list_change(user_id, self.joined_rooms(user_id).await?);
        let (hs, user, ids) = (self.clone(), user_id.to_owned(), device_ids.to_vec());
        let note = move |position| {
            // Before the change is published: a sync that it wakes must not take its session for open.
            hs.accounts.forget_sessions_of(&user, &ids);
            note(position);
        };
        let turn_until = i64::try_from(self.calls.turn_credentials_end()).unwrap_or(i64::MAX);
        let gone = self
            .store
            .delete_devices(user_id.as_str(), device_ids, turn_until, note)
            .await?;
        self.accounts.devices_gone(user_id, &gone);
        Ok(())
    }

    /// Removes every device of a user, or every other one.
    pub async fn remove_all_devices(&self, user_id: &UserId, except: Option<&DeviceId>) -> Result<(), ApiError> {
        let devices = self.store.devices(user_id.as_str()).await?;
        let ids: Vec<String> = devices
            .into_iter()
            .map(|device| device.device_id)
            .filter(|id| except.is_none_or(|kept| kept != id.as_str()))
            .collect();
        self.remove_devices(user_id, &ids).await
    }

    /// Ends an account and its devices, and takes it out of its rooms.
    pub async fn deactivate_account(&self, user_id: &UserId) -> Result<(), ApiError> {
        self.accounts.deactivate(user_id).await?;
        self.remove_all_devices(user_id, None).await?;
        let rooms = self.rooms.memberships_of(user_id).await?;
        for (room_id, membership) in rooms.iter() {
            if matches!(membership.membership, Membership::Leave | Membership::Ban) {
                continue;
            }
            let Some(room) = self.rooms.find(room_id).await? else {
                continue;
            };
            let leave = MembershipChange {
                sender: user_id.to_owned(),
                target: user_id.to_owned(),
                action: Action::Leave,
                reason: None,
                profile: CanonicalJsonObject::new(),
            };
            // Whatever one room says, the others are left.
            if let Err(error) = self.rooms.change_membership(&room, leave).await {
                tracing::warn!(%user_id, %room_id, %error, "an ended account stays in a room");
            }
        }
        Ok(())
    }

    /// The rooms whose members hear of a user's devices.
    pub(crate) async fn joined_rooms(&self, user_id: &UserId) -> Result<Vec<OwnedRoomId>, ApiError> {
        let rooms = self.rooms.memberships_of(user_id).await?;
        let joined = rooms.iter().filter(|(_, m)| m.membership == Membership::Join);
        Ok(joined.map(|(room_id, _)| room_id.clone()).collect())
    }
}
