//! The state of a room after its newest events, as an immutable snapshot that readers share. Only
//! the room's worker makes new ones.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId, ServerName, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{history_visibility::HistoryVisibility, power_levels::UserPowerLevel},
    },
    room_version_rules::RoomVersionRules,
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};
use storage::state::StateGroup;

use super::{Error, Event, Membership, StateEntry, StateMap, visibility::VisibilityChanges};

/// An event no other event names as its predecessor.
#[derive(Debug, Clone)]
pub struct Extremity {
    /// Its key.
    pub nid: i64,
    /// Its id.
    pub event_id: OwnedEventId,
    /// Its depth.
    pub depth: i64,
    /// Key of the state after it.
    pub(super) group: i64,
}

impl Extremity {
    pub(super) fn of(event: &Event) -> Self {
        Self {
            nid: event.nid,
            event_id: event.event_id.clone(),
            depth: event.depth,
            group: event.state_group,
        }
    }
}

/// A state of the room and the chain of state groups it is kept as, the newest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) map: StateMap,
    pub(super) chain: Arc<Vec<StateGroup>>,
}

impl Snapshot {
    /// Key of its newest group; 0 for no state.
    pub(super) fn group(&self) -> i64 {
        self.chain.first().map_or(0, |group| group.state_group)
    }

    /// The same state with `group` on top.
    pub(super) fn grow(&mut self, group: StateGroup) {
        grow(&mut self.chain, group);
    }
}

/// Puts `group` on top of the chain that [`next_group`] made it for.
fn grow(chain: &mut Arc<Vec<StateGroup>>, group: StateGroup) {
    let chain = Arc::make_mut(chain);
    chain.retain(|ancestor| group.parent.is_some() && ancestor.generation <= group.generation & (group.generation - 1));
    chain.insert(0, group);
}

/// The place of the state group that comes after a chain in its line, named `state_group`, and the groups it has to
/// fold in.
pub(super) fn next_group(chain: &[StateGroup], state_group: i64) -> (StateGroup, Vec<i64>) {
    let Some(newest) = chain.first() else {
        let group = StateGroup {
            state_group,
            generation: 0,
            parent: None,
        };
        return (group, Vec::new());
    };
    let generation = newest.generation + 1;
    // The parent's number is this one's without its lowest bit: the ancestors in between are folded in.
    let parent_generation = generation & (generation - 1);
    let mut folded = Vec::new();
    for ancestor in chain {
        if ancestor.generation <= parent_generation {
            let group = StateGroup {
                state_group,
                generation,
                parent: Some(ancestor.state_group),
            };
            return (group, folded);
        }
        folded.push(ancestor.state_group);
    }
    let group = StateGroup {
        state_group,
        generation,
        parent: None,
    };
    (group, folded)
}

/// A piece of the current state that became another, or went away.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) kind: StateEventType,
    pub(super) key: Box<str>,
    /// The event that holds the piece from here on.
    pub(super) event: Option<Arc<Event>>,
}

/// A room at one moment.
#[derive(Debug, Clone)]
pub struct RoomState {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its key.
    pub room_nid: i64,
    /// Its version.
    pub version: RoomVersionId,
    /// The rules of that version.
    pub rules: Arc<RoomVersionRules>,
    /// Which event holds which piece of state.
    pub map: StateMap,
    /// The chain of state groups that `map` is kept as, the newest first.
    pub(super) chain: Arc<Vec<StateGroup>>,
    /// The events without successor.
    pub(super) extremities: Vec<Extremity>,
    /// Position of the newest event.
    pub latest: i64,
    /// Where state resolution last changed the state in another way than by the event at that position; 0 for never.
    pub reset_at: i64,
    /// How many users are joined.
    pub joined: usize,
    /// How many users are invited.
    pub invited: usize,
    /// The small state events that many questions are about.
    pub(super) pinned: Arc<HashMap<StateEventType, Arc<Event>>>,
    /// How the history visibility changed.
    pub(super) visibility_changes: VisibilityChanges,
    /// See [`RoomState::local_members`]; made when first asked for, kept while memberships stay.
    pub(super) local: Arc<OnceLock<Arc<[OwnedUserId]>>>,
}

/// State that is kept parsed while its room is in memory.
pub(super) const PINNED: [StateEventType; 9] = [
    StateEventType::RoomCreate,
    StateEventType::RoomPowerLevels,
    StateEventType::RoomJoinRules,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
];

impl RoomState {
    /// A room before its first event.
    pub(super) fn before_creation(room_id: OwnedRoomId, room_nid: i64, version: RoomVersionId) -> Result<Self, Error> {
        let rules = version
            .rules()
            .ok_or_else(|| Error::UnsupportedVersion(version.to_string()))?;
        Ok(Self {
            room_id,
            room_nid,
            version,
            rules: Arc::new(rules),
            map: StateMap::default(),
            chain: Arc::default(),
            extremities: Vec::new(),
            latest: 0,
            reset_at: 0,
            joined: 0,
            invited: 0,
            pinned: Arc::default(),
            visibility_changes: Arc::default(),
            local: Arc::default(),
        })
    }

    /// The events that no event here comes after: what a new event is built on.
    pub fn extremities(&self) -> &[Extremity] {
        &self.extremities
    }

    /// Key of the state group that `map` is kept as; 0 before the first event.
    pub fn group(&self) -> i64 {
        self.chain.first().map_or(0, |group| group.state_group)
    }

    /// The current state as a value of its own.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            map: self.map.clone(),
            chain: self.chain.clone(),
        }
    }

    /// Takes `event` in as the newest one and the only extremity; a state event takes its place in the state, which is
    /// kept as `chain` from then on.
    pub(super) fn apply(&mut self, event: &Arc<Event>, chain: Option<Arc<Vec<StateGroup>>>) {
        self.latest = event.nid;
        self.extremities = vec![Extremity::of(event)];
        let (Some(chain), Some((kind, key))) = (chain, event.state_type()) else {
            return;
        };
        self.chain = chain;
        let membership = event.membership();
        let entry = StateEntry::of(event);
        self.pin(&kind, key, Some(event), event.nid);
        let before = self.map.insert(kind, key, entry).and_then(|entry| entry.membership);
        self.count(before, membership);
    }

    /// Takes in what the state has become at `position`, where it is not simply one event more.
    pub(super) fn replace(&mut self, state: Snapshot, changes: &[Change], position: i64) {
        for change in changes {
            self.pin(&change.kind, &change.key, change.event.as_ref(), position);
            let before = self
                .map
                .get(&change.kind, &change.key)
                .and_then(|entry| entry.membership);
            let after = change.event.as_ref().and_then(|event| event.membership());
            self.count(before, after);
        }
        self.map = state.map;
        self.chain = state.chain;
    }

    /// Keeps the small state events that questions are about.
    fn pin(&mut self, kind: &StateEventType, key: &str, event: Option<&Arc<Event>>, position: i64) {
        if !key.is_empty() || !PINNED.contains(kind) {
            return;
        }
        let pinned = Arc::make_mut(&mut self.pinned);
        match event {
            Some(event) => pinned.insert(kind.clone(), event.clone()),
            None => pinned.remove(kind),
        };
        if *kind == StateEventType::RoomHistoryVisibility {
            let visibility = history_visibility_at(event.map(|event| &**event));
            Arc::make_mut(&mut self.visibility_changes).push((position, visibility));
        }
    }

    /// Puts the pruned form of a redacted event into the place of its full form.
    pub(super) fn replace_pinned(&mut self, pruned: &Arc<Event>) {
        let Some((kind, "")) = pruned.state_type() else { return };
        if self.pinned.get(&kind).is_some_and(|event| event.nid == pruned.nid) {
            Arc::make_mut(&mut self.pinned).insert(kind, pruned.clone());
        }
    }

    fn count(&mut self, before: Option<Membership>, after: Option<Membership>) {
        let is = |membership, what| usize::from(membership == Some(what));
        self.joined = self.joined + is(after, Membership::Join) - is(before, Membership::Join);
        self.invited = self.invited + is(after, Membership::Invite) - is(before, Membership::Invite);
        if (before == Some(Membership::Join)) != (after == Some(Membership::Join)) {
            self.local = Arc::default();
        }
    }

    /// Counts members from nothing, after the map was filled.
    pub(super) fn recount(&mut self) {
        let is = |what| self.map.members().filter(|(_, e)| e.membership == Some(what)).count();
        (self.joined, self.invited) = (is(Membership::Join), is(Membership::Invite));
    }

    /// What `user` is in the room.
    pub fn membership(&self, user: &UserId) -> Membership {
        self.map
            .get(&StateEventType::RoomMember, user.as_str())
            .and_then(|entry| entry.membership)
            .unwrap_or(Membership::Leave)
    }

    /// Whether `user` is joined.
    pub fn is_joined(&self, user: &UserId) -> bool {
        self.membership(user) == Membership::Join
    }

    /// The joined users of this server, shared between snapshots while nobody comes or goes.
    pub fn local_members(&self, server_name: &ServerName) -> Arc<[OwnedUserId]> {
        let members = || {
            self.map
                .members()
                .filter(|(_, entry)| entry.membership == Some(Membership::Join))
                .filter_map(|(user, _)| OwnedUserId::try_from(user).ok())
                .filter(|user| user.server_name() == server_name)
                .collect()
        };
        self.local.get_or_init(members).clone()
    }

    /// One of the small state events that are kept parsed: create, power levels, join rules, history
    /// visibility, name, topic, avatar, canonical alias, encryption.
    pub fn pinned(&self, kind: &StateEventType) -> Option<&Arc<Event>> {
        self.pinned.get(kind)
    }

    /// The join rule; `invite` when there is none.
    pub fn join_rule(&self) -> String {
        self.pinned(&StateEventType::RoomJoinRules)
            .and_then(|event| event.content_field("join_rule"))
            .unwrap_or_else(|| "invite".to_owned())
    }

    /// Who may read the history; `shared` when it is not said.
    pub fn history_visibility(&self) -> HistoryVisibility {
        history_visibility_at(
            self.pinned(&StateEventType::RoomHistoryVisibility)
                .map(|event| &**event),
        )
    }

    /// The users who have all power for having made the room.
    pub fn creators(&self) -> std::collections::HashSet<OwnedUserId> {
        self.pinned(&StateEventType::RoomCreate)
            .and_then(|create| RoomCreateEvent::new(&**create).creators(&self.rules.authorization).ok())
            .unwrap_or_default()
    }

    /// The power level of `user`.
    pub fn power_level(&self, user: &UserId) -> UserPowerLevel {
        let levels = self.pinned(&StateEventType::RoomPowerLevels);
        self.power_level_under(levels.map(|event| &**event), user)
    }

    /// The power level of `user` under the power levels event `levels`, or without any.
    fn power_level_under(&self, levels: Option<&Event>, user: &UserId) -> UserPowerLevel {
        let creators = self.creators();
        let rules = &self.rules.authorization;
        if rules.explicitly_privilege_room_creators && creators.contains(user) {
            return UserPowerLevel::Infinite;
        }
        match levels.map(RoomPowerLevelsEvent::new) {
            Some(levels) => UserPowerLevel::Int(levels.user_power_level(user, rules).unwrap_or(0.into())),
            None if creators.contains(user) => UserPowerLevel::Int(100.into()),
            None => UserPowerLevel::Int(0.into()),
        }
    }

    /// Whether `user` has the redact level under the power levels event `levels`, or without any.
    pub(super) fn may_redact(&self, levels: Option<&Event>, user: &UserId) -> bool {
        let rules = &self.rules.authorization;
        let action = RoomPowerLevelsIntField::Redact;
        let needed = levels.and_then(|event| {
            RoomPowerLevelsEvent::new(event)
                .get_as_int_or_default(action, rules)
                .ok()
        });
        self.power_level_under(levels, user) >= needed.unwrap_or(action.default_value())
    }

    /// The level that one of the room's general actions needs.
    pub fn action_level(&self, action: RoomPowerLevelsIntField) -> ruma::Int {
        self.power_levels()
            .and_then(|levels| levels.get_as_int_or_default(action, &self.rules.authorization).ok())
            .unwrap_or_else(|| match action {
                // Without a power levels event every state event may be sent by anyone who may send events.
                RoomPowerLevelsIntField::StateDefault => 0.into(),
                other => other.default_value(),
            })
    }

    /// Whether `user` is joined and has the power to send state events of a type.
    pub fn may_send_state(&self, user: &UserId, kind: &StateEventType) -> bool {
        let needed = match self.power_levels() {
            Some(levels) => levels
                .event_power_level(
                    &TimelineEventType::from(kind.clone()),
                    Some(""),
                    &self.rules.authorization,
                )
                .unwrap_or(50.into()),
            None => 0.into(),
        };
        self.is_joined(user) && self.power_level(user) >= needed
    }

    /// The parsed power levels, for push conditions and moderation.
    pub fn power_levels(&self) -> Option<RoomPowerLevelsEvent<&Event>> {
        self.pinned(&StateEventType::RoomPowerLevels)
            .map(|event| RoomPowerLevelsEvent::new(&**event))
    }
}

/// What an `m.room.history_visibility` event says; `shared` when it says nothing, or when there is none.
pub(super) fn history_visibility_at(event: Option<&Event>) -> HistoryVisibility {
    event
        .and_then(|event| event.content_field("history_visibility"))
        .unwrap_or(HistoryVisibility::Shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a line of groups and reads each back through its chain, as storage does.
    #[test]
    fn chains_of_state_groups_stay_short_and_lose_nothing() {
        let mut state =
            RoomState::before_creation("!r:example.org".try_into().unwrap(), 1, RoomVersionId::V11).unwrap();
        let mut parents = HashMap::new();
        let mut own: HashMap<i64, Vec<i64>> = HashMap::new();
        for n in 1..=1000i64 {
            let (group, folded) = next_group(&state.chain, n);
            let mut entries = vec![n];
            for folded in folded {
                entries.extend(own[&folded].clone());
            }
            own.insert(n, entries);
            parents.insert(n, group.parent);
            grow(&mut state.chain, group);
            let mut read = Vec::new();
            let mut at = Some(n);
            let mut links = 0;
            while let Some(group) = at {
                read.extend(own[&group].clone());
                at = parents[&group];
                links += 1;
            }
            read.sort_unstable();
            assert_eq!(read, (1..=n).collect::<Vec<_>>(), "state after {n} changes");
            assert!(links <= 11, "{links} links after {n} changes");
        }
        let copies: usize = own.values().map(Vec::len).sum();
        assert!(copies < 7_000, "{copies} entries for 1000 changes");
    }
}
