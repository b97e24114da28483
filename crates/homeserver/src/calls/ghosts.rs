//! No ghosts: who has no media is no member of the call.
//!
//! The SFU says who is gone; here their delegated leave is sent, or, where there is none, the leave
//! is written for them. The other way round, who leaves or is banned from the room, or whose device
//! signs out, is taken off the SFU and the relay.

use std::{collections::HashMap, time::Duration};

use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId, events::StateEventType};
use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use super::{MediaEvent, PartingReason, delayed};
use crate::{
    Homeserver,
    accounts::AccountChange,
    client_api::ApiError,
    room::{Membership, Proposal, RoomChange},
};

/// State events that say "this device is in the call".
pub const MEMBER_TYPES: [&str; 2] = ["org.matrix.msc3401.call.member", "m.call.member"];

/// A participant may come back with a new session (a full reconnect) or send their own leave within this time.
const GRACE: Duration = Duration::from_secs(2);

/// After a start, participants of running calls have this long to come back: clients try again every seven seconds at most.
const GRACE_AFTER_START: Duration = Duration::from_secs(15);

/// Follows the media plane, the rooms and the accounts, until the process stops.
pub(super) async fn run(hs: Homeserver, mut events: mpsc::Receiver<MediaEvent>) {
    let mut room_changes = hs.rooms.changes();
    let mut account_changes = hs.accounts.changes();
    let mut gone: HashMap<(String, String), Instant> = HashMap::new();
    let started = tokio::time::sleep(GRACE_AFTER_START);
    tokio::pin!(started);
    let mut swept = false;
    loop {
        let next = gone.values().min().copied();
        tokio::select! {
            () = hs.shutdown.cancelled() => return,
            event = events.recv() => match event {
                None => return,
                Some(MediaEvent::Joined { sfu_room, identity }) => {
                    if let Err(e) = check_entry(&hs, &sfu_room, &identity).await {
                        warn!(error = %e, "a participant's right to be in the call could not be checked");
                    }
                    gone.remove(&(sfu_room, identity));
                }
                Some(MediaEvent::Left { sfu_room, identity, reason }) => match reason {
                    // The one identity is still there, or all come back after the restart.
                    PartingReason::Replaced | PartingReason::Shutdown => {}
                    PartingReason::Left | PartingReason::MediaGone | PartingReason::Removed => {
                        gone.insert((sfu_room, identity), due_after(GRACE));
                    }
                },
            },
            () = tokio::time::sleep_until(next.unwrap_or_else(|| due_after(Duration::from_secs(3600)))) => {
                let now = due_after(Duration::ZERO);
                let due: Vec<_> = gone.iter().filter(|(_, at)| **at <= now).map(|(who, _)| who.clone()).collect();
                for who in due {
                    gone.remove(&who);
                    if let Err(e) = remove_ghost(&hs, &who.0, &who.1).await {
                        warn!(error = %e, "a participant without media could not be taken out of the call; tried again");
                        gone.insert(who, due_after(GRACE));
                    }
                }
            }
            () = &mut started, if !swept => {
                swept = true;
                if let Err(e) = sweep(&hs).await {
                    warn!(error = %e, "the calls of before the restart could not be cleared of absent members");
                }
            }
            change = room_changes.recv() => {
                // A receiver that lags misses changes; those participants go when their token is refused.
                if let Ok(RoomChange::Membership { room_id, user_id, membership, .. }) = change
                    && membership != Membership::Join
                {
                    expel(&hs, &user_id, Some(&room_id), None).await;
                }
            }
            change = account_changes.recv() => match change {
                Ok(AccountChange::DeviceGone { user_id, device_id }) => {
                    expel(&hs, &user_id, None, Some(device_id.as_str())).await;
                    end_delayed(&hs, &user_id, Some(device_id.as_str())).await;
                }
                Ok(AccountChange::UserGone { user_id }) => {
                    expel(&hs, &user_id, None, None).await;
                    end_delayed(&hs, &user_id, None).await;
                }
                Ok(AccountChange::DeviceSignedIn { .. }) | Err(_) => {}
            },
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "tokio's timer is set by its own clock; nothing here reads the time of day"
)]
fn due_after(wait: Duration) -> Instant {
    Instant::now() + wait
}

/// A token opens the SFU for an hour, and the SFU renews it: who has left the room or signed out since it was given is
/// turned away at the door.
async fn check_entry(hs: &Homeserver, sfu_room: &str, identity: &str) -> Result<(), ApiError> {
    let (Some(control), Some(grant)) = (hs.calls.control(), hs.calls.grants.of(sfu_room, identity)) else {
        return Ok(());
    };
    let room = match <&RoomId>::try_from(grant.room_id.as_str()) {
        Ok(room_id) => hs.rooms.find(room_id).await?,
        Err(_) => None,
    };
    let joined = <&UserId>::try_from(grant.user_id.as_str())
        .is_ok_and(|user_id| room.is_some_and(|room| room.state().is_joined(user_id)));
    if joined && hs.store.device(&grant.user_id, &grant.device_id).await?.is_some() {
        return hs
            .calls
            .grants
            .renew(grant, hs.clock.now_ms())
            .await
            .map_err(ApiError::from);
    }
    info!(
        user_id = grant.user_id,
        room_id = grant.room_id,
        "turned away from a call of a room they are not in"
    );
    control.remove_participant(sfu_room, identity).await;
    Ok(())
}

/// A device that is gone sends nothing later: its place in a call ends now, everything else is cancelled.
async fn end_delayed(hs: &Homeserver, user_id: &UserId, device_id: Option<&str>) {
    for event in hs.calls.delayed.of_device(user_id, device_id) {
        let is_leave = event.state_key.is_some() && MEMBER_TYPES.contains(&event.event_type.as_str());
        let action = if is_leave {
            delayed::Action::Send
        } else {
            delayed::Action::Cancel
        };
        if let Err(e) = hs.manage_delayed_event(&event.delay_id, action).await {
            warn!(%user_id, error = %e, "a delayed event of a device that is gone could not be ended");
        }
    }
}

/// A participant has been gone for the grace: send their leave.
async fn remove_ghost(hs: &Homeserver, sfu_room: &str, identity: &str) -> Result<(), ApiError> {
    let Some(control) = hs.calls.control() else {
        return Ok(());
    };
    if control.is_present(sfu_room, identity) {
        return Ok(());
    }
    for event in hs.calls.delayed.delegated_to(sfu_room, identity) {
        delayed::finish(hs, &event, "delay").await?;
    }
    let Some(grant) = hs.calls.grants.of(sfu_room, identity) else {
        return Ok(());
    };
    let (Ok(room_id), Ok(user_id)) = (
        OwnedRoomId::try_from(grant.room_id.as_str()),
        OwnedUserId::try_from(grant.user_id.as_str()),
    ) else {
        return Ok(());
    };
    // The device may be there under its other identity.
    if hs
        .calls
        .grants
        .device_is_present(&*control, &room_id, &user_id, &grant.device_id)
    {
        return Ok(());
    }
    leave_for(hs, &room_id, |member| {
        member.user_id == user_id && member.device_id == grant.device_id
    })
    .await
}

/// After a restart: every member of a call on our SFU who has not come back leaves.
async fn sweep(hs: &Homeserver) -> Result<(), ApiError> {
    let Some(control) = hs.calls.control() else {
        return Ok(());
    };
    for room_id in hs.calls.grants.rooms() {
        leave_for(hs, &room_id, |member| {
            // Only who was let in here: a member whose media is on another server's SFU is not ours to judge.
            let granted = hs.calls.grants.of_user(member.user_id, Some(&room_id));
            granted.iter().any(|g| g.device_id == member.device_id)
                && !hs
                    .calls
                    .grants
                    .device_is_present(&*control, &room_id, member.user_id, member.device_id)
        })
        .await?;
    }
    Ok(())
}

/// One device's membership of a room's call.
struct Member<'a> {
    user_id: &'a UserId,
    device_id: &'a str,
}

async fn leave_for(hs: &Homeserver, room_id: &RoomId, is_gone: impl Fn(&Member<'_>) -> bool) -> Result<(), ApiError> {
    let Some(room) = hs.rooms.find(room_id).await? else {
        return Ok(());
    };
    let state = room.state();
    let is_member_type = |kind: &StateEventType| MEMBER_TYPES.contains(&kind.to_string().as_str());
    for event in hs
        .rooms
        .state_events(room_id, &state.map, |kind, _, _| is_member_type(kind))
        .await?
    {
        let content: MemberContent = serde_json::from_str(event.content.get()).unwrap_or_default();
        let (Some(device_id), Some(state_key)) = (content.device_id, event.state_key.as_deref()) else {
            continue;
        };
        if !is_gone(&Member {
            user_id: &event.sender,
            device_id: &device_id,
        }) {
            continue;
        }
        let event_type = event.kind.to_string();
        // What was scheduled to do the same has nothing left to do, and must not end a later call.
        for scheduled in hs.calls.delayed.for_state(room_id, &event_type, state_key) {
            hs.manage_delayed_event(&scheduled.delay_id, delayed::Action::Cancel)
                .await
                .or_else(refusal_is_fine)?;
        }
        let leave = Proposal::state(&event.sender, event.kind.clone(), state_key, CanonicalJsonObject::new());
        match hs.rooms.propose(&room, leave).await.map_err(ApiError::from) {
            Ok(_) => info!(%room_id, user_id = %event.sender, device_id, "left the call for a device without media"),
            // Who may no longer write in the room is no member of its call either: clients ignore them.
            Err(e) if e.status().is_client_error() => {
                info!(%room_id, user_id = %event.sender, error = %e, "the leave for a device without media was refused");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn refusal_is_fine(e: ApiError) -> Result<(), ApiError> {
    if e.status().is_client_error() { Ok(()) } else { Err(e) }
}

#[derive(Debug, Default, serde::Deserialize)]
struct MemberContent {
    device_id: Option<String>,
}

/// Takes a user (or one device) off the SFU in a room (or in all), and off the relay when it is in all.
async fn expel(hs: &Homeserver, user_id: &UserId, room_id: Option<&RoomId>, device_id: Option<&str>) {
    let Some(control) = hs.calls.control() else { return };
    for grant in hs.calls.grants.of_user(user_id, room_id) {
        if device_id.is_none_or(|device| grant.device_id == device) {
            control.remove_participant(&grant.sfu_room, &grant.identity).await;
        }
    }
    if room_id.is_none() {
        control.close_allocations(user_id.as_str()).await;
    }
}
