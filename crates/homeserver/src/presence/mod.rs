//! Who is there: what devices say of themselves and what users do, told to those who share a room with them.
//!
//! Lives in memory; a restart begins with nobody there, and only what users say of themselves in words is kept. A change
//! takes a position of the stream, is announced, and is then visible to every reader beyond it.
//! Spec: client-server API, "Presence".

mod state;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use storage::Store;
use tokio::sync::Notify;

pub use state::State;
use state::User;

use crate::{
    Clock, Homeserver,
    accounts::AccountChange,
    client_api::ApiError,
    room::{Membership, RoomChange, UserRooms},
    sync::{Change, RoomStream},
};

/// `[presence]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether users see of each other who is there.
    pub enabled: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The content of `m.presence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Content {
    /// `offline`, `unavailable` or `online`.
    pub presence: &'static str,
    /// Milliseconds since the user did something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active_ago: Option<u64>,
    /// Whether that was just now, and will go without saying until told otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currently_active: Option<bool>,
    /// What the user says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_msg: Option<String>,
}

/// The presence of this server's users.
#[derive(Debug)]
pub struct Presence {
    enabled: bool,
    clock: Clock,
    users: Mutex<Users>,
    /// Wakes the task that lets time pass.
    scheduled: Notify,
}

#[derive(Debug, Default)]
struct Users {
    users: HashMap<OwnedUserId, User>,
    /// Who was told of last, by position.
    told: BTreeMap<i64, OwnedUserId>,
    /// Whom to look at again, and when.
    due: BTreeSet<(u64, OwnedUserId)>,
}

impl Users {
    fn schedule(&mut self, user_id: &UserId, now: u64) {
        let Some(user) = self.users.get_mut(user_id) else {
            return;
        };
        if let Some(before) = user.due.take() {
            self.due.remove(&(before, user_id.to_owned()));
        }
        user.due = user.next_change(now);
        if let Some(at) = user.due {
            self.due.insert((at, user_id.to_owned()));
        }
    }

    fn tell(&mut self, user_id: &UserId, now: u64, position: i64) {
        let user = self.users.entry(user_id.to_owned()).or_default();
        self.told.remove(&user.position);
        user.told = user.shown(now);
        user.position = position;
        self.told.insert(position, user_id.to_owned());
    }
}

impl Presence {
    /// Reads what users say of themselves.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn open(config: &Config, store: &Store, clock: Clock) -> Result<Self, storage::Error> {
        let mut users = Users::default();
        if config.enabled {
            for (user_id, status) in store.presence_statuses().await? {
                if let Ok(user_id) = OwnedUserId::try_from(user_id) {
                    let user = users.users.entry(user_id).or_default();
                    user.status = Some(status);
                    user.told = user.shown(0);
                }
            }
        }
        Ok(Self {
            enabled: config.enabled,
            clock,
            users: Mutex::new(users),
            scheduled: Notify::new(),
        })
    }

    /// Whether users see of each other who is there.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// What a user is now.
    pub fn of(&self, user_id: &UserId) -> Content {
        let now = self.clock.now_ms();
        match self.users.lock().users.get(user_id) {
            Some(user) => content(user, now),
            None => content(&User::default(), now),
        }
    }

    /// Who was told of in (`since`, `now`], with what they are now; everybody who is not offline without `since`.
    pub(crate) fn changes(&self, since: Option<i64>, now: i64) -> Vec<(OwnedUserId, Content)> {
        let time = self.clock.now_ms();
        let users = self.users.lock();
        let told = users
            .told
            .range(since.map_or(i64::MIN, |since| since + 1)..=now.max(since.unwrap_or(0)));
        told.filter_map(|(_, user_id)| Some((user_id, users.users.get(user_id)?)))
            .filter(|(_, user)| since.is_some() || user.told.state != State::Offline)
            .map(|(user_id, user)| (user_id.clone(), content(user, time)))
            .collect()
    }
}

fn content(user: &User, now: u64) -> Content {
    let shown = user.shown(now);
    Content {
        presence: shown.state.name(),
        last_active_ago: user.active_at.map(|at| now.saturating_sub(at)),
        currently_active: (shown.state == State::Online).then_some(shown.currently_active),
        status_msg: shown.status,
    }
}

/// A sync under way: its device is there until this is dropped, and a little longer.
pub(crate) struct Connected {
    hs: Homeserver,
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let presence = &self.hs.presence;
        let now = presence.clock.now_ms();
        let mut users = presence.users.lock();
        if let Some(user) = users.users.get_mut(&self.user_id) {
            user.sync_ended(&self.device_id, now);
        }
        users.schedule(&self.user_id, now);
        presence.scheduled.notify_one();
    }
}

impl Homeserver {
    /// A device begins to sync. `None` when presence is switched off.
    pub(crate) async fn connect_presence(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        state: State,
    ) -> Result<Option<Connected>, ApiError> {
        if !self.presence.enabled {
            return Ok(None);
        }
        self.change_presence(user_id, |user, now| user.sync_began(device_id, state, now))
            .await?;
        Ok(Some(Connected {
            hs: self.clone(),
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
        }))
    }

    /// A user does something themselves.
    pub(crate) async fn note_activity(&self, user_id: &UserId) -> Result<(), ApiError> {
        self.change_presence(user_id, User::acted).await
    }

    /// A user says what they are, and with `status` also something in words (nothing, where that is empty).
    pub(crate) async fn set_presence(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        state: State,
        status: Option<String>,
    ) -> Result<(), ApiError> {
        if let Some(status) = status.clone() {
            self.store.set_presence_status(user_id.to_string(), status).await?;
        }
        self.change_presence(user_id, move |user, now| {
            if let Some(status) = status {
                user.status = Some(status).filter(|status| !status.is_empty());
            }
            user.heard(device_id, state, now);
            if state == State::Online {
                user.acted(now);
            }
        })
        .await
    }

    /// Whether `viewer` shares a room with `user_id`.
    pub(crate) async fn shares_room(&self, viewer: &UserId, user_id: &UserId) -> Result<bool, ApiError> {
        let rooms = self.rooms.memberships_of(viewer).await?;
        Ok(viewer == user_id || shared(&rooms, &*self.rooms.memberships_of(user_id).await?))
    }

    /// What a reader who is joined to `rooms` hears: everybody who is there without `since`, otherwise who changed.
    pub(crate) async fn presence_news(
        &self,
        reader: &UserId,
        rooms: &UserRooms,
        since: Option<i64>,
        now: i64,
    ) -> Result<Vec<(OwnedUserId, Content)>, ApiError> {
        if !self.presence.enabled {
            return Ok(Vec::new());
        }
        let mut changes = self.presence.changes(since, now);
        let joined_since = |m: &crate::room::RoomMembership| {
            m.membership == Membership::Join && since.is_some_and(|since| m.position > since && m.position <= now)
        };
        let entered: UserRooms = rooms
            .iter()
            .filter(|(_, m)| joined_since(m))
            .map(|(room_id, m)| (room_id.clone(), m.clone()))
            .collect();
        if !entered.is_empty() {
            // Who is in a room that the reader has just entered did not change, but is new to the reader.
            for (user_id, content) in self.presence.changes(None, now) {
                if !changes.iter().any(|(known, _)| *known == user_id)
                    && shared(&entered, &*self.rooms.memberships_of(&user_id).await?)
                {
                    changes.push((user_id, content));
                }
            }
        }
        let mut heard = Vec::with_capacity(changes.len());
        for (user_id, content) in changes {
            if user_id == reader || shared(rooms, &*self.rooms.memberships_of(&user_id).await?) {
                heard.push((user_id, content));
            }
        }
        Ok(heard)
    }

    /// Changes a user, and tells of it when what others see is another.
    async fn change_presence(&self, user_id: &UserId, change: impl FnOnce(&mut User, u64)) -> Result<(), ApiError> {
        let presence = &self.presence;
        if !presence.enabled {
            return Ok(());
        }
        let now = presence.clock.now_ms();
        let differs = {
            let mut users = presence.users.lock();
            let user = users.users.entry(user_id.to_owned()).or_default();
            change(user, now);
            let differs = user.shown(now) != user.told;
            users.schedule(user_id, now);
            differs
        };
        presence.scheduled.notify_one();
        if differs {
            self.tell_presence(user_id).await?;
        }
        Ok(())
    }

    async fn tell_presence(&self, user_id: &UserId) -> Result<(), ApiError> {
        let rooms = self.joined_rooms(user_id).await?;
        let reservation = self.store.reserve(1).await?;
        let position = reservation.first();
        let now = self.presence.clock.now_ms();
        self.presence.users.lock().tell(user_id, now, position);
        self.announce_presence(user_id, &rooms, position);
        Ok(())
    }

    fn announce_presence(&self, user_id: &UserId, rooms: &[OwnedRoomId], position: i64) {
        self.sync.notifier.mark_user(user_id, Change::Presence, position);
        for room_id in rooms {
            self.sync.notifier.mark_room(room_id, RoomStream::Presence, position);
        }
    }

    /// Tells of everybody whose presence has changed by the passing of time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expire_presence(&self) -> Result<(), ApiError> {
        let presence = &self.presence;
        let now = presence.clock.now_ms();
        let changed: Vec<OwnedUserId> = {
            let mut users = presence.users.lock();
            let due: Vec<OwnedUserId> = users
                .due
                .iter()
                .take_while(|(at, _)| *at <= now)
                .map(|(_, user_id)| user_id.clone())
                .collect();
            for user_id in &due {
                users.schedule(user_id, now);
            }
            let differs = |user_id: &OwnedUserId| {
                users
                    .users
                    .get(user_id)
                    .is_some_and(|user| user.shown(now) != user.told)
            };
            due.into_iter().filter(differs).collect()
        };
        for user_id in changed {
            self.tell_presence(&user_id).await?;
        }
        Ok(())
    }

    /// Lets time pass, and shows new members of rooms to those who are in them, until the process stops.
    pub(crate) async fn keep_presence(self) {
        let (mut rooms, mut accounts) = (self.rooms.changes(), self.accounts.changes());
        loop {
            let scheduled = self.presence.scheduled.notified();
            let next = self.presence.users.lock().due.first().map(|(at, _)| *at);
            let wait = next.map(|at| Duration::from_millis(at.saturating_sub(self.presence.clock.now_ms()).max(1)));
            let result = tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = scheduled => Ok(()),
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => self.expire_presence().await,
                change = rooms.recv() => match change {
                    Ok(RoomChange::Membership { user_id, membership: Membership::Join, .. })
                        if self.presence.of(&user_id).presence != State::Offline.name() =>
                    {
                        self.tell_presence(&user_id).await
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                    // Who missed some sees a new member's presence at their next change.
                    _ => Ok(()),
                },
                change = accounts.recv() => match change {
                    Ok(AccountChange::DeviceGone { user_id, device_id }) => {
                        self.change_presence(&user_id, |user, _| user.device_gone(&device_id)).await
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                    _ => Ok(()),
                },
            };
            if let Err(error) = result {
                tracing::warn!(%error, "a change of presence could not be told");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn shared(a: &UserRooms, b: &UserRooms) -> bool {
    let (few, many) = if a.len() < b.len() { (a, b) } else { (b, a) };
    let is_joined = |m: &crate::room::RoomMembership| m.membership == Membership::Join;
    few.iter()
        .any(|(room_id, m)| is_joined(m) && many.get(room_id).is_some_and(is_joined))
}
