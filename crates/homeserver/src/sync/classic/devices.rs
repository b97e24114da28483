//! What `/sync` says of devices and keys.

use std::collections::BTreeSet;

use ruma::{OwnedUserId, RoomId, UserId, events::StateEventType};

use super::{
    Reader,
    response::Response,
    state::{Span, StateRange},
};
use crate::{
    client_api::ApiError,
    room::{Membership, RoomState, StateMap, UserRooms},
};

/// Users whose sharing of an encrypted room with the reader may have begun or ended.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    met: BTreeSet<OwnedUserId>,
    parted: BTreeSet<OwnedUserId>,
}

fn is_encrypted(room: &RoomState) -> bool {
    room.pinned(&StateEventType::RoomEncryption).is_some()
}

fn is_member(kind: &StateEventType) -> bool {
    *kind == StateEventType::RoomMember
}

impl Reader<'_> {
    /// Notes who came to share a joined room with the reader, or ceased to.
    pub(super) fn note_sharing(&self, room: &RoomState, range: &StateRange<'_>) {
        let (Some(_), true) = (self.since, is_encrypted(room)) else {
            return;
        };
        let StateRange { end, slice, span, fork } = *range;
        if let Some(fork) = fork.filter(|_| span != Span::All) {
            for (_, user_id, entry) in fork
                .known
                .differences(end)
                .into_iter()
                .filter(|(kind, ..)| is_member(kind))
            {
                let membership = entry.and_then(|entry| entry.membership);
                self.note_member(user_id, membership.unwrap_or(Membership::Leave));
            }
        }
        let began = |event: &crate::room::Event| {
            event
                .state_type()
                .is_some_and(|(kind, _)| kind == StateEventType::RoomEncryption)
        };
        let after = match span {
            Span::Since(since) if !slice.all.iter().any(|event| began(event)) => since,
            _ => 0,
        };
        if after > 0 && !slice.limited {
            for event in &slice.all {
                if let (Some(membership), Some(user_id)) = (event.membership(), event.state_key.as_deref()) {
                    self.note_member(user_id, membership);
                }
            }
            return;
        }
        for (user_id, entry) in end.members().filter(|(_, entry)| entry.nid > after) {
            // Who left before the reader began to share the room was never shared with.
            if let Some(membership) = entry.membership.filter(|m| after > 0 || *m == Membership::Join) {
                self.note_member(user_id, membership);
            }
        }
    }

    /// Notes whom the reader no longer shares a room with, having left it.
    pub(super) fn note_parting(&self, room: &RoomState, end: &StateMap) {
        if self.since.is_some() && is_encrypted(room) {
            for (user_id, entry) in end.members() {
                if entry.membership == Some(Membership::Join) {
                    self.note_member(user_id, Membership::Leave);
                }
            }
        }
    }

    fn note_member(&self, user_id: &str, membership: Membership) {
        let Ok(user_id) = OwnedUserId::try_from(user_id) else {
            return;
        };
        let mut sharing = self.sharing.lock();
        match membership {
            Membership::Join => drop(sharing.met.insert(user_id)),
            Membership::Leave | Membership::Ban => drop(sharing.parted.insert(user_id)),
            Membership::Invite | Membership::Knock => {}
        }
    }

    /// Spec: client-server API §Tracking the device list for a user: those who share an encrypted room and whose keys
    /// changed, or who began or ceased to share one.
    pub(super) async fn read_device_lists(
        &self,
        since: i64,
        rooms: &UserRooms,
        response: &mut Response,
    ) -> Result<(), ApiError> {
        let sharing = std::mem::take(&mut *self.sharing.lock());
        let mut candidates = sharing.met;
        for user_id in self.hs.devices.list_changes(since, self.now).await? {
            candidates.extend(UserId::parse(user_id));
        }
        for user_id in candidates {
            if user_id == self.user_id || self.shares_encrypted_room(&user_id, rooms).await? {
                response.device_lists.changed.push(user_id);
            }
        }
        for user_id in sharing.parted {
            if user_id != self.user_id && !self.shares_encrypted_room(&user_id, rooms).await? {
                response.device_lists.left.push(user_id);
            }
        }
        Ok(())
    }

    async fn shares_encrypted_room(&self, user_id: &UserId, rooms: &UserRooms) -> Result<bool, ApiError> {
        let joined = rooms.iter().filter(|(_, m)| m.membership == Membership::Join);
        for room_id in joined.map(|(room_id, _)| -> &RoomId { room_id }) {
            if let Some(room) = self.hs.rooms.find(room_id).await? {
                let state = room.state();
                if is_encrypted(&state) && state.is_joined(user_id) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Adds the counts that every answer has (spec: §Extensions to /sync).
    pub(super) async fn add_key_counts(&self, response: &mut Response) -> Result<(), ApiError> {
        let counts = self.hs.devices.key_counts(&self.user_id, &self.device.1).await?;
        for (algorithm, count) in &counts.one_time {
            let count = u64::try_from(*count).unwrap_or(0);
            response.device_one_time_keys_count.insert(algorithm.clone(), count);
        }
        // Clients that count only what they are told of must learn that there is none left.
        response
            .device_one_time_keys_count
            .entry("signed_curve25519".to_owned())
            .or_default();
        response.device_unused_fallback_key_types = counts.unused_fallback.clone();
        Ok(())
    }
}
