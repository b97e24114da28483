//! What one user's devices and deeds make of their presence. Pure: is told the time.
//! Spec: client-server API, "Presence".

use std::collections::HashMap;

use ruma::{DeviceId, OwnedDeviceId};

/// A device that stopped syncing is still there for so long: between two syncs nobody blinks.
pub(super) const LINGER_MS: u64 = 30_000;
/// Who has done nothing for so long is idle.
pub(super) const IDLE_MS: u64 = 5 * 60_000;
/// Who has done something within this time is currently active: nobody is told of every deed.
pub(super) const ACTIVE_MS: u64 = 60_000;

/// A user's or a device's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Not there, or not wanting to be seen.
    #[default]
    Offline,
    /// There, but idle.
    Unavailable,
    /// There.
    Online,
}

impl State {
    /// By its name in the specification.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "offline" => Some(Self::Offline),
            "unavailable" => Some(Self::Unavailable),
            "online" => Some(Self::Online),
            _ => None,
        }
    }

    /// Its name in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Unavailable => "unavailable",
            Self::Online => "online",
        }
    }
}

/// What others are told, but for the time that passes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Shown {
    pub(super) state: State,
    pub(super) currently_active: bool,
    pub(super) status: Option<String>,
}

#[derive(Debug)]
struct Device {
    state: State,
    /// Syncs under way.
    syncing: u32,
    /// When it was last heard of.
    heard_at: u64,
}

impl Device {
    fn is_there(&self, now: u64) -> bool {
        self.syncing > 0 || now < self.heard_at + LINGER_MS
    }
}

/// One user. Times are Unix milliseconds.
#[derive(Debug, Default)]
pub(super) struct User {
    devices: HashMap<OwnedDeviceId, Device>,
    /// When the user last did something themselves.
    pub(super) active_at: Option<u64>,
    pub(super) status: Option<String>,
    /// What was told last, and where in the stream.
    pub(super) told: Shown,
    pub(super) position: i64,
    /// When to look again, as it stands in the schedule.
    pub(super) due: Option<u64>,
}

impl User {
    /// A device says what it is. `online` counts as a deed when the user was not.
    pub(super) fn heard(&mut self, device_id: &DeviceId, state: State, now: u64) {
        let before = self.shown(now).state;
        let device = self.devices.entry(device_id.to_owned()).or_insert(Device {
            state,
            syncing: 0,
            heard_at: now,
        });
        let rises = state == State::Online && device.state != State::Online;
        device.state = state;
        device.heard_at = now;
        if state == State::Online && (rises || before == State::Offline || self.active_at.is_none()) {
            self.active_at = Some(now);
        }
    }

    pub(super) fn sync_began(&mut self, device_id: &DeviceId, state: State, now: u64) {
        self.heard(device_id, state, now);
        if let Some(device) = self.devices.get_mut(device_id) {
            device.syncing += 1;
        }
    }

    pub(super) fn sync_ended(&mut self, device_id: &DeviceId, now: u64) {
        if let Some(device) = self.devices.get_mut(device_id) {
            device.syncing = device.syncing.saturating_sub(1);
            device.heard_at = now;
        }
    }

    pub(super) fn device_gone(&mut self, device_id: &DeviceId) {
        self.devices.remove(device_id);
    }

    /// The user did something: an idle device is idle no longer. One that does not want to be seen stays unseen.
    pub(super) fn acted(&mut self, now: u64) {
        self.active_at = Some(now);
        for device in self.devices.values_mut() {
            if device.state == State::Unavailable {
                device.state = State::Online;
            }
        }
    }

    pub(super) fn shown(&self, now: u64) -> Shown {
        let there = self.devices.values().filter(|device| device.is_there(now));
        let of_devices = there.map(|device| device.state).max_by_key(|state| *state as u8);
        let since = |limit: u64| self.active_at.is_some_and(|at| now < at + limit);
        let state = match of_devices.unwrap_or_default() {
            State::Online if !since(IDLE_MS) => State::Unavailable,
            state => state,
        };
        Shown {
            currently_active: state == State::Online && since(ACTIVE_MS),
            state,
            status: self.status.clone(),
        }
    }

    /// When what is shown may change by the passing of time alone. Forgets devices that have gone.
    pub(super) fn next_change(&mut self, now: u64) -> Option<u64> {
        self.devices.retain(|_, device| device.is_there(now));
        let devices = self.devices.values().filter(|device| device.syncing == 0);
        let leaving = devices.map(|device| device.heard_at + LINGER_MS);
        let shown = self.shown(now);
        let resting = self.active_at.and_then(|at| match shown.state {
            State::Online if shown.currently_active => Some(at + ACTIVE_MS),
            State::Online => Some(at + IDLE_MS),
            _ => None,
        });
        leaving.chain(resting).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use ruma::device_id;

    use super::*;

    #[test]
    fn a_user_is_what_the_most_present_device_is() {
        let (a, b) = (device_id!("A"), device_id!("B"));
        let mut user = User::default();
        assert_eq!(user.shown(0).state, State::Offline);
        user.sync_began(a, State::Unavailable, 1_000);
        assert_eq!(user.shown(1_000).state, State::Unavailable);
        user.sync_began(b, State::Online, 1_000);
        assert_eq!(user.shown(1_000).state, State::Online);
        assert!(user.shown(1_000).currently_active);
        user.sync_ended(b, 2_000);
        assert_eq!(user.shown(2_000 + LINGER_MS - 1).state, State::Online);
        assert_eq!(user.shown(2_000 + LINGER_MS).state, State::Unavailable);
        user.device_gone(a);
        assert_eq!(user.shown(2_000 + LINGER_MS).state, State::Offline);
    }

    #[test]
    fn time_alone_ends_activity_then_presence() {
        let a = device_id!("A");
        let mut user = User::default();
        user.sync_began(a, State::Online, 0);
        assert_eq!(user.next_change(0), Some(ACTIVE_MS));
        assert!(!user.shown(ACTIVE_MS).currently_active);
        assert_eq!(user.next_change(ACTIVE_MS), Some(IDLE_MS));
        assert_eq!(user.shown(IDLE_MS).state, State::Unavailable);
        // Going on to sync is no deed; sending something is.
        user.sync_began(a, State::Online, IDLE_MS);
        assert_eq!(user.shown(IDLE_MS).state, State::Unavailable);
        user.acted(IDLE_MS);
        assert_eq!(user.shown(IDLE_MS).state, State::Online);
        user.sync_ended(a, IDLE_MS);
        user.sync_ended(a, IDLE_MS);
        assert_eq!(user.next_change(IDLE_MS), Some(IDLE_MS + LINGER_MS));
        assert_eq!(user.next_change(IDLE_MS + LINGER_MS), None);
    }
}
