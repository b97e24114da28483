//! Reading rooms: events, timelines, state at a time, memberships, summaries. What sync and the
//! reading endpoints are made of. Nothing here changes anything.

use std::{collections::HashMap, sync::Arc};

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
};
use serde_json::value::RawValue;
use storage::events::Direction;

use super::{
    Error, Event, Membership, Room, RoomMembership, RoomState, Rooms, StateEntry, StateMap, Transaction, UserRooms,
    cache::{Known, TRANSACTIONS},
    client_format::stripped,
};

/// A stretch of a room's timeline.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// The events, oldest first.
    pub events: Vec<Arc<Event>>,
    /// Whether there are older ones in the range that was asked for.
    pub limited: bool,
    /// The position before the first of `events`: reading backwards goes on from here.
    pub start: i64,
}

/// How a room without a name is called, and how many are in it.
/// Spec: client-server API, `RoomSummary` of `/sync`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomSummary {
    /// Up to five other members, the first to join first.
    pub heroes: Vec<OwnedUserId>,
    /// Joined users.
    pub joined: usize,
    /// Invited users.
    pub invited: usize,
}

impl Rooms {
    /// Every room `user` has to do with, forgotten ones too. From memory after the first time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn memberships_of(&self, user: &UserId) -> Result<Arc<UserRooms>, Error> {
        let generation = match self.inner.members.get(user) {
            Ok(rooms) => return Ok(rooms),
            Err(generation) => generation,
        };
        let mut rooms = UserRooms::new();
        for row in self.inner.store.memberships_of(user.as_str()).await? {
            let corrupt = |e: ruma::IdParseError| storage::Error::corrupt("memberships", e);
            let room_id = OwnedRoomId::try_from(row.room_id).map_err(corrupt)?;
            let membership = RoomMembership {
                room_nid: row.room_nid,
                membership: Membership::parse(&row.membership),
                position: row.position,
                sender: OwnedUserId::try_from(row.sender).map_err(corrupt)?,
                forgotten: row.forgotten,
            };
            rooms.insert(room_id, membership);
        }
        let rooms = Arc::new(rooms);
        self.inner.members.loaded(user, rooms.clone(), generation);
        Ok(rooms)
    }

    /// Which of the rooms (by key) have an event after a position. From memory for anything since the start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn changed_after(&self, rooms: &[i64], after: i64) -> Result<Vec<i64>, Error> {
        match self.inner.recent.after(rooms, after) {
            Some(changed) => Ok(changed),
            None => Ok(self.inner.store.rooms_with_events_after(rooms, after).await?),
        }
    }

    /// The newest at most `limit` events with `after < position <= up_to`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn timeline(&self, room: &RoomState, after: i64, up_to: i64, limit: usize) -> Result<Timeline, Error> {
        if room.latest <= after {
            return Ok(Timeline {
                events: Vec::new(),
                limited: false,
                start: after,
            });
        }
        let mut events = self
            .page(room, after, up_to, Direction::Backward, limit.saturating_add(1))
            .await?;
        let limited = events.len() > limit;
        events.truncate(limit);
        events.reverse();
        let start = match events.first() {
            Some(first) if limited => first.nid - 1,
            None if limited => up_to,
            _ => after,
        };
        Ok(Timeline { events, limited, start })
    }

    /// At most `limit` events with `after < position <= up_to` in the order of `direction`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn page(
        &self,
        room: &RoomState,
        after: i64,
        up_to: i64,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<Arc<Event>>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self
            .inner
            .store
            .timeline(room.room_nid, after, up_to, direction, limit)
            .await?;
        rows.into_iter().map(|row| self.read_row(row, &room.room_id)).collect()
    }

    /// The event `event_id`, if it is in the room.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event(&self, room: &RoomState, event_id: &EventId) -> Result<Option<Arc<Event>>, Error> {
        let row = self.inner.store.event(event_id.as_str()).await?;
        row.filter(|row| row.room_nid == room.room_nid && !row.soft_failed)
            .map(|row| self.read_row(row, &room.room_id))
            .transpose()
    }

    /// The events of one room with these keys, in this order; unknown keys are left out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events(&self, room_id: &RoomId, nids: &[i64]) -> Result<Vec<Arc<Event>>, Error> {
        let mut found: HashMap<i64, Arc<Event>> = HashMap::with_capacity(nids.len());
        let mut missing = Vec::new();
        for nid in nids {
            match self.inner.events.get(*nid) {
                Some(event) => {
                    found.insert(*nid, event);
                }
                None => missing.push(*nid),
            }
        }
        for row in self.inner.store.events_by_nid(&missing).await? {
            let event = self.read_row(row, room_id)?;
            found.insert(event.nid, event);
        }
        Ok(nids.iter().filter_map(|nid| found.get(nid).cloned()).collect())
    }

    pub(super) fn read_row(&self, row: storage::events::EventRow, room_id: &RoomId) -> Result<Arc<Event>, Error> {
        if let Some(event) = self.inner.events.get(row.event_nid) {
            return Ok(event);
        }
        let event = Event::from_row(row, room_id)?;
        Ok(self.inner.events.insert_read(Arc::new(event)))
    }

    /// The event that holds a piece of `state`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_event_of(
        &self,
        state: &RoomState,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<Arc<Event>>, Error> {
        if key.is_empty()
            && let Some(pinned) = state.pinned(kind)
        {
            return Ok(Some(pinned.clone()));
        }
        let Some(entry) = state.map.get(kind, key) else {
            return Ok(None);
        };
        let events = self.events(&state.room_id, &[entry.nid]).await?;
        Ok(events.into_iter().next())
    }

    /// The events of the entries of `map` that `wanted` picks, in stream order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_events(
        &self,
        room_id: &RoomId,
        map: &StateMap,
        wanted: impl Fn(&StateEventType, &str, &StateEntry) -> bool + Send,
    ) -> Result<Vec<Arc<Event>>, Error> {
        let mut nids: Vec<i64> = map
            .iter()
            .filter(|(kind, key, entry)| wanted(kind, key, entry))
            .map(|(_, _, entry)| entry.nid)
            .collect();
        nids.sort_unstable();
        self.events(room_id, &nids).await
    }

    /// The state after the newest event at or before a position.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_at(&self, room: &RoomState, position: i64) -> Result<StateMap, Error> {
        if position >= room.latest {
            return Ok(room.map.clone());
        }
        let Some((_, group)) = self.inner.store.event_before(room.room_nid, position).await? else {
            return Ok(StateMap::default());
        };
        self.state_of_group(room, group).await
    }

    /// The state that a state group is.
    pub(super) async fn state_of_group(&self, room: &RoomState, group: i64) -> Result<StateMap, Error> {
        if group == room.group() {
            return Ok(room.map.clone());
        }
        if let Some(kept) = self.inner.snapshots.get(group) {
            return Ok(kept.map);
        }
        let mut map = StateMap::default();
        let mut members = Vec::new();
        for row in self.inner.store.state(group).await? {
            let kind = StateEventType::from(row.kind);
            let event_id = OwnedEventId::try_from(row.event_id).map_err(|e| storage::Error::corrupt("events", e))?;
            // Entries that still stand know what the member is; the others are read.
            let standing = room.map.get(&kind, &row.state_key).filter(|e| e.nid == row.event_nid);
            let membership = standing.and_then(|e| e.membership);
            if kind == StateEventType::RoomMember && membership.is_none() {
                members.push(row.event_nid);
            }
            let entry = StateEntry {
                nid: row.event_nid,
                event_id,
                membership,
            };
            map.insert(kind, &row.state_key, entry);
        }
        for event in self.events(&room.room_id, &members).await? {
            let Some((kind, key)) = event.state_type() else {
                continue;
            };
            map.insert(kind, key, StateEntry::of(&event));
        }
        Ok(map)
    }

    /// What held one piece of the room's current state, and since which position each, oldest first; no event where state
    /// resolution took the piece away.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) async fn state_history(
        &self,
        room: &RoomState,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Vec<(i64, Option<Arc<Event>>)>, Error> {
        let (store, kind) = (&self.inner.store, kind.to_string());
        let mut history = std::collections::BTreeMap::new();
        for row in store.state_history(room.room_nid, &kind, key).await? {
            history.insert(row.event_nid, Some(self.read_row(row, &room.room_id)?));
        }
        if room.reset_at > 0 {
            let resets = store.state_resets(room.room_nid, &kind, key).await?;
            let holders: Vec<i64> = resets.iter().filter_map(|reset| reset.event_nid).collect();
            let holders = self.events(&room.room_id, &holders).await?;
            for reset in resets {
                let holder = reset
                    .event_nid
                    .and_then(|nid| holders.iter().find(|event| event.nid == nid));
                history.insert(reset.position, holder.cloned());
            }
        }
        Ok(history.into_iter().collect())
    }

    /// What `user` was in the room, and since which position each, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn membership_history(&self, room: &RoomState, user: &UserId) -> Result<Vec<(i64, Membership)>, Error> {
        let history = self
            .state_history(room, &StateEventType::RoomMember, user.as_str())
            .await?;
        let membership = |event: Option<Arc<Event>>| event.and_then(|event| event.membership());
        Ok(history
            .into_iter()
            .map(|(position, event)| (position, membership(event).unwrap_or(Membership::Leave)))
            .collect())
    }

    /// How the state at `up_to` differs from the state at `after`: the events that hold the pieces that became others.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_changes(&self, room: &RoomState, after: i64, up_to: i64) -> Result<Vec<Arc<Event>>, Error> {
        if room.latest <= after || up_to <= after {
            return Ok(Vec::new());
        }
        if room.reset_at > after {
            let (before, now) = (self.state_at(room, after).await?, self.state_at(room, up_to).await?);
            let changed = before.differences(&now).into_iter();
            let mut nids: Vec<i64> = changed.filter_map(|(_, _, entry)| Some(entry?.nid)).collect();
            nids.sort_unstable();
            return self.events(&room.room_id, &nids).await;
        }
        let rows = self
            .inner
            .store
            .state_events_between(room.room_nid, after, up_to)
            .await?;
        let mut newest: HashMap<(String, String), i64> = HashMap::new();
        for row in &rows {
            let key = (row.kind.clone(), row.state_key.clone().unwrap_or_default());
            newest.insert(key, row.event_nid);
        }
        rows.into_iter()
            .filter(|row| {
                let key = (row.kind.clone(), row.state_key.clone().unwrap_or_default());
                newest.get(&key) == Some(&row.event_nid)
            })
            .map(|row| self.read_row(row, &room.room_id))
            .collect()
    }

    /// How the room is called for `user` when it has no name, and how many are in it.
    pub fn summary(&self, state: &RoomState, user: &UserId) -> RoomSummary {
        let heroes_of = |present: bool| {
            let mut heroes: Vec<(i64, &str)> = state
                .map
                .members()
                .filter(|(member, entry)| {
                    let here = matches!(entry.membership, Some(Membership::Join | Membership::Invite));
                    *member != user.as_str() && here == present
                })
                .map(|(member, entry)| (entry.nid, member))
                .collect();
            // The five who are longest in the room.
            heroes.sort_unstable();
            heroes.truncate(5);
            heroes
                .into_iter()
                .filter_map(|(_, member)| OwnedUserId::try_from(member).ok())
                .collect::<Vec<_>>()
        };
        let mut heroes = heroes_of(true);
        if heroes.is_empty() {
            heroes = heroes_of(false);
        }
        RoomSummary {
            heroes,
            joined: state.joined,
            invited: state.invited,
        }
    }

    /// What an invited or knocking user learns of the room, their own member event included.
    /// Spec: client-server API, "Stripped state".
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stripped_state(&self, state: &RoomState, user: &UserId) -> Result<Vec<Box<RawValue>>, Error> {
        const SHOWN: [StateEventType; 7] = [
            StateEventType::RoomCreate,
            StateEventType::RoomName,
            StateEventType::RoomAvatar,
            StateEventType::RoomTopic,
            StateEventType::RoomJoinRules,
            StateEventType::RoomCanonicalAlias,
            StateEventType::RoomEncryption,
        ];
        let mut events = Vec::with_capacity(SHOWN.len() + 2);
        for kind in SHOWN {
            events.extend(state.pinned(&kind).map(|event| stripped(event)).transpose()?);
        }
        if let Some(own) = self
            .state_event_of(state, &StateEventType::RoomMember, user.as_str())
            .await?
        {
            // Who invites is shown with name and picture.
            let inviter = own.sender.as_str();
            if inviter != user.as_str()
                && let Some(inviter) = self.state_event_of(state, &StateEventType::RoomMember, inviter).await?
            {
                events.push(stripped(&inviter)?);
            }
            events.push(stripped(&own)?);
        }
        Ok(events)
    }

    /// What `user` may read of a room: the state up to now for members, up to the end of their last stay for former
    /// ones, whatever they became since, and everything for everybody where the history is world-readable.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when the user may read nothing, or when the database fails.
    pub async fn readable(&self, room: &Room, user: &UserId) -> Result<(Arc<RoomState>, Option<i64>), Error> {
        let state = room.state();
        if state.is_joined(user)
            || state.history_visibility() == ruma::events::room::history_visibility::HistoryVisibility::WorldReadable
        {
            return Ok((state, None));
        }
        if state.map.get(&StateEventType::RoomMember, user.as_str()).is_some() {
            let memberships = self.memberships_of(user).await?;
            let forgotten = memberships.get(&state.room_id).is_none_or(|m| m.forgotten);
            let history = self.membership_history(&state, user).await?;
            if let Some(until) = end_of_last_join(&history).filter(|_| !forgotten) {
                return Ok((state, Some(until)));
            }
        }
        Err(Error::Forbidden("You are not a member of this room.".to_owned()))
    }

    pub(super) async fn transaction(
        &self,
        sender: &UserId,
        transaction: &Transaction,
        room_nid: i64,
        kind: &TimelineEventType,
    ) -> Result<Option<OwnedEventId>, Error> {
        let cache = &self.inner.transactions;
        let mut known = cache.get(sender, transaction, room_nid, kind);
        if matches!(known, Known::AskDevice) {
            let limit = i64::try_from(TRANSACTIONS).unwrap_or(i64::MAX);
            let rows = self
                .inner
                .store
                .transactions_of(sender.as_str(), &transaction.device_id, limit)
                .await?;
            cache.loaded(sender, &transaction.device_id, rows);
            known = cache.get(sender, transaction, room_nid, kind);
        }
        match known {
            Known::Event(event_id) => Ok(Some(event_id)),
            Known::No => Ok(None),
            Known::AskOne | Known::AskDevice => {
                let found = self
                    .inner
                    .store
                    .transaction(
                        sender.as_str(),
                        &transaction.device_id,
                        &transaction.txn_id,
                        room_nid,
                        &kind.to_string(),
                    )
                    .await?;
                Ok(found.and_then(|id| OwnedEventId::try_from(id).ok()))
            }
        }
    }
}

/// The position at which a user who is not joined ceased to be; `None` for one who never was.
fn end_of_last_join(history: &[(i64, Membership)]) -> Option<i64> {
    let last = history
        .iter()
        .rposition(|(_, membership)| *membership == Membership::Join)?;
    history.get(last + 1).map(|(position, _)| *position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_where_the_last_stay_did() {
        use Membership::{Ban, Invite, Join, Leave};
        type Case<'a> = (&'a [(i64, Membership)], Option<i64>);
        let cases: [Case<'_>; 5] = [
            (&[(1, Invite), (2, Leave)], None),
            (&[(1, Join), (2, Leave), (3, Ban), (4, Leave)], Some(2)),
            (&[(1, Join), (2, Leave), (3, Join), (4, Ban), (5, Leave)], Some(4)),
            (&[(1, Join), (2, Leave), (3, Invite)], Some(2)),
            (&[], None),
        ];
        for (history, end) in cases {
            assert_eq!(end_of_last_join(history), end, "{history:?}");
        }
    }
}
