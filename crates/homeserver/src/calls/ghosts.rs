//! No ghosts: who has no media is no member of the call.
//!
//! The SFU says who is gone; here their delegated leave is sent, or, where there is none, the leave
//! is written for them. The other way round, who leaves or is banned from the room, or whose device
//! signs out, is taken off the SFU and the relay.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId, events::StateEventType};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    time::Instant,
};
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
    if let Err(e) = revoke_again(&hs).await {
        warn!(error = %e, "credentials of users who were signed out lately could not be ended");
    }
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
            change = room_changes.recv() => match change {
                Ok(RoomChange::Membership { room_id, user_id, membership, .. }) => {
                    if membership != Membership::Join {
                        expel(&hs, &user_id, Some(&room_id), None).await;
                    }
                }
                Ok(RoomChange::Event { room_id, event }) => delayed::overwritten(&hs, &room_id, &event).await,
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "changes of rooms were missed: every participant of a call is checked");
                    recheck(&hs).await;
                }
                Err(RecvError::Closed) => return,
            },
            change = account_changes.recv() => match change {
                Ok(AccountChange::DeviceGone { user_id, device_id }) => {
                    expel(&hs, &user_id, None, Some(device_id.as_str())).await;
                    end_delayed(&hs, &user_id, Some(device_id.as_str())).await;
                }
                Ok(AccountChange::UserGone { user_id }) => {
                    expel(&hs, &user_id, None, None).await;
                    end_delayed(&hs, &user_id, None).await;
                }
                Ok(AccountChange::DeviceSignedIn { .. }) => {}
                Err(RecvError::Lagged(missed)) => {
                    warn!(missed, "changes of accounts were missed: every participant of a call is checked");
                    recheck(&hs).await;
                    recheck_devices(&hs).await;
                }
                Err(RecvError::Closed) => return,
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

/// The SFU asked at the door; who lost the right between the question and the entry is taken out again.
async fn check_entry(hs: &Homeserver, sfu_room: &str, identity: &str) -> Result<(), ApiError> {
    let Some(control) = hs.calls.control() else {
        return Ok(());
    };
    let grant = hs.calls.grants.of(sfu_room, identity);
    if hs.may_be_in_call(sfu_room, identity).await?
        && let Some(grant) = grant
    {
        return hs
            .calls
            .grants
            .renew(grant, hs.clock.now_ms())
            .await
            .map_err(ApiError::from);
    }
    info!(
        user_id = grant.as_ref().map(|grant| &grant.user_id),
        room_id = grant.as_ref().map(|grant| &grant.room_id),
        "turned away from a call of a room they are not in"
    );
    control.remove_participant(sfu_room, identity).await;
    Ok(())
}

/// After changes were missed: everybody present is checked as if they came in now.
async fn recheck(hs: &Homeserver) {
    let Some(control) = hs.calls.control() else { return };
    for grant in hs.calls.grants.all() {
        if control.is_present(&grant.sfu_room, &grant.identity)
            && let Err(e) = check_entry(hs, &grant.sfu_room, &grant.identity).await
        {
            warn!(error = %e, "a participant's right to be in the call could not be checked");
        }
    }
    delayed::recheck_overwritten(hs).await;
}

/// After changes were missed: whoever still holds something of a device that is gone loses it.
async fn recheck_devices(hs: &Homeserver) {
    let Some(control) = hs.calls.control() else { return };
    let mut holders: BTreeSet<(String, String)> = hs.calls.delayed.devices();
    holders.extend(hs.calls.grants.all().into_iter().map(|g| (g.user_id, g.device_id)));
    let mut users: BTreeSet<String> = control.allocation_holders().await.into_iter().collect();
    for (user, device_id) in holders {
        let Ok(user_id) = OwnedUserId::try_from(user.as_str()) else {
            continue;
        };
        match hs.store.device(&user, &device_id).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                users.insert(user);
                end_delayed(hs, &user_id, Some(&device_id)).await;
            }
            Err(e) => warn!(%user_id, error = %e, "whether a device is still signed in could not be checked"),
        }
    }
    for user in users {
        match hs.store.devices(&user).await {
            Ok(devices) if devices.is_empty() => end_relay(hs, &user).await,
            Ok(_) => {}
            Err(e) => warn!(user_id = user, error = %e, "whether a user is still signed in could not be checked"),
        }
    }
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
        end_relay(hs, user_id.as_str()).await;
    }
}

/// Ends what a user has on the relay. Credentials name the user alone, so they end with the last device: those of another
/// would end as well.
async fn end_relay(hs: &Homeserver, user_id: &str) {
    let Some(control) = hs.calls.control() else { return };
    match hs.store.devices(user_id).await {
        Ok(devices) if !devices.is_empty() => control.close_allocations(user_id).await,
        Ok(_) => control.revoke_relay(user_id, hs.calls.turn_credentials_end()).await,
        Err(e) => {
            warn!(user_id, error = %e, "whether a user is still signed in could not be checked");
            control.close_allocations(user_id).await;
        }
    }
}

/// After a start: the relay has forgotten whose credentials are over.
async fn revoke_again(hs: &Homeserver) -> Result<(), ApiError> {
    let Some(control) = hs.calls.control() else {
        return Ok(());
    };
    let now = i64::try_from(hs.clock.now_secs()).unwrap_or(i64::MAX);
    for (user_id, until) in hs.store.relay_revocations(now).await? {
        control
            .revoke_relay(&user_id, u64::try_from(until).unwrap_or_default())
            .await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use futures_util::future::BoxFuture;
    use parking_lot::Mutex;
    use storage::Store;
    use testkit::{clock::ManualClock, database::TestDatabaseUrl};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        Clock, Config,
        accounts::{NewDevice, PasswordHash},
        calls::{
            MediaControl, MediaPlane,
            media::SfuUrls,
            sfu_access::{Entry, Identity, ROOM_CALL_SLOT},
        },
        room::{NewRoom, Preset},
    };

    #[derive(Default)]
    struct Plane {
        present: Mutex<HashSet<(String, String)>>,
        revoked: Mutex<Vec<(String, u64)>>,
    }

    impl MediaControl for Plane {
        fn open_room(&self, _: &str) {}

        fn is_present(&self, sfu_room: &str, identity: &str) -> bool {
            self.present
                .lock()
                .contains(&(sfu_room.to_owned(), identity.to_owned()))
        }

        fn remove_participant<'a>(&'a self, sfu_room: &'a str, identity: &'a str) -> BoxFuture<'a, ()> {
            self.present.lock().remove(&(sfu_room.to_owned(), identity.to_owned()));
            Box::pin(async {})
        }

        fn allocation_holders(&self) -> BoxFuture<'_, Vec<String>> {
            Box::pin(async { vec!["@alice:example.org".to_owned(), "@bob:example.org".to_owned()] })
        }

        fn revoke_relay<'a>(&'a self, user_id: &'a str, until: u64) -> BoxFuture<'a, ()> {
            self.revoked.lock().push((user_id.to_owned(), until));
            Box::pin(async {})
        }

        fn close_allocations<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
            Box::pin(async {})
        }
    }

    async fn start(db: &TestDatabaseUrl) -> Homeserver {
        let database = storage::Config {
            url: Some(db.url.clone()),
            ..storage::Config::default()
        };
        let store = Store::open(&database, &db.dir).await.unwrap();
        let mut config = Config::new(
            "example.org".try_into().unwrap(),
            db.dir.clone(),
            "http://example.org".to_owned(),
        );
        config.auth.password_hash = PasswordHash::Fast;
        let clock = Clock::new(ManualClock::at(1_800_000_000_000).reader());
        Homeserver::start(config, store, clock, CancellationToken::new())
            .await
            .unwrap()
    }

    async fn sign_in(hs: &Homeserver, name: &str) -> OwnedUserId {
        let user_id = hs.accounts.add_user(name, "correct horse", false).await.unwrap();
        let device = NewDevice {
            device_id: Some("DEVICE".to_owned()),
            display_name: None,
        };
        hs.accounts.log_in(user_id.clone(), device).await.unwrap();
        user_id
    }

    fn room(creator: &UserId) -> NewRoom {
        NewRoom {
            creator: creator.to_owned(),
            creator_profile: CanonicalJsonObject::new(),
            version: None,
            creation_content: CanonicalJsonObject::new(),
            preset: Preset::PublicChat,
            listed: false,
            alias: None,
            name: None,
            topic: None,
            invites: Vec::new(),
            is_direct: false,
            initial_state: Vec::new(),
            power_levels: CanonicalJsonObject::new(),
        }
    }

    #[tokio::test]
    async fn changes_that_were_missed_are_made_up_for() {
        testkit::database::each(|db| async move {
            let hs = start(&db).await;
            let plane = Arc::new(Plane::default());
            let _events = hs.connect_media(MediaPlane {
                control: plane.clone(),
                turn_uris: Vec::new(),
                sfu: Some(SfuUrls {
                    service_url: String::new(),
                    websocket_url: String::new(),
                }),
            });
            let mut identities = Vec::new();
            for name in ["alice", "bob"] {
                let user_id = sign_in(&hs, name).await;
                let room_id = hs.rooms.create(room(&user_id)).await.unwrap();
                let entry = Entry {
                    user_id: &user_id,
                    device_id: "DEVICE",
                    room_id: &room_id,
                    slot_id: ROOM_CALL_SLOT,
                    identity: Identity::Legacy,
                    delayed_leave: None,
                };
                hs.admit_to_sfu(&entry).await.unwrap();
                let grant = hs.calls.grants.of_user(&user_id, None).remove(0);
                plane
                    .present
                    .lock()
                    .insert((grant.sfu_room.clone(), grant.identity.clone()));
                identities.push((grant.sfu_room, grant.identity));
            }
            // Alice's device goes, and word of it is lost among that of many others: nobody is woken between here and
            // the last of them, so the listener misses the first.
            let (alice, gone) = ("@alice:example.org", ["DEVICE".to_owned()]);
            hs.store.delete_devices(alice, &gone, 0, |_| {}).await.unwrap();
            let others: Vec<String> = (0..5000).map(|number| format!("OTHER{number}")).collect();
            hs.accounts
                .devices_gone(<&UserId>::try_from("@nobody:example.org").unwrap(), &others);

            let taken_out = async {
                while plane.revoked.lock().iter().all(|(user, _)| user != alice) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), taken_out)
                .await
                .expect("what Alice has on the relay is ended");
            assert_eq!(
                identities
                    .iter()
                    .map(|(room, identity)| plane.is_present(room, identity))
                    .collect::<Vec<_>>(),
                [false, true]
            );
            let revoked = plane.revoked.lock().clone();
            assert!(
                revoked.iter().all(|(user, _)| user != "@bob:example.org"),
                "{revoked:?}"
            );
            stop(hs).await;
        })
        .await;
    }
    #[tokio::test]
    async fn whose_last_device_is_gone_stays_off_the_relay_over_a_restart() {
        testkit::database::each(|db| async move {
            let hs = start(&db).await;
            let (alice, bob) = (sign_in(&hs, "alice").await, sign_in(&hs, "bob").await);
            let second = NewDevice {
                device_id: Some("SECOND".to_owned()),
                display_name: None,
            };
            hs.accounts.log_in(bob.clone(), second).await.unwrap();
            for user_id in [&alice, &bob] {
                hs.remove_devices(user_id, &["DEVICE".to_owned()]).await.unwrap();
            }
            let end = hs.calls.turn_credentials_end();
            stop(hs).await;

            let hs = start(&db).await;
            let plane = Arc::new(Plane::default());
            let _events = hs.connect_media(MediaPlane {
                control: plane.clone(),
                turn_uris: Vec::new(),
                sfu: None,
            });
            let revoked = async {
                while plane.revoked.lock().is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), revoked)
                .await
                .expect("Alice's credentials are ended again");
            assert_eq!(*plane.revoked.lock(), [(alice.to_string(), end)]);
            stop(hs).await;
        })
        .await;
    }

    async fn stop(hs: Homeserver) {
        hs.shutdown.cancel();
        hs.tasks.close();
        hs.tasks.wait().await;
        hs.store.close().await;
    }
}
