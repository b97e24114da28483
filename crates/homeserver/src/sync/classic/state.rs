//! Which state events go with a timeline. All from one snapshot at the end of the timeline: a state event's key is its
//! position, so what changed since is what lies above, and what stood before the timeline is what the timeline's own
//! state events replaced.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedUserId, RoomId, UserId, events::StateEventType};

use super::{
    Reader, StateAfter,
    response::{Events, Json, SentMember, StateSection},
    room::Slice,
};
use crate::{
    client_api::ApiError,
    room::{Event, StateMap},
};

/// What part of the state is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    /// All of it.
    All,
    /// What changed after the position.
    Since(i64),
    /// None of it.
    Nothing,
}

/// State around a timeline.
pub(super) struct StateRange<'a> {
    /// The state after the timeline.
    pub(super) end: &'a StateMap,
    pub(super) slice: &'a Slice,
    pub(super) span: Span,
    /// Where positions do not tell what changed.
    pub(super) fork: Option<&'a Fork>,
}

/// States to compare with the one after the timeline, where state resolution changed it on the way: an old event may
/// hold its place again, and an event of the timeline may never have had one.
pub(super) struct Fork {
    /// What the device knows; nothing if it is to get all.
    pub(super) known: StateMap,
    /// The state before the timeline.
    pub(super) start: StateMap,
}

impl StateRange<'_> {
    /// The positions of the wanted state events: of the state after the timeline, or before it. Members only if
    /// `members`, or if they changed.
    fn positions(&self, after_timeline: bool, members: bool) -> BTreeSet<i64> {
        if let Some(fork) = self.fork {
            return self.compared(fork, after_timeline, members);
        }
        let start = self.slice.start;
        let complete = self.slice.is_complete();
        let mut positions = BTreeSet::new();
        match self.span {
            Span::Nothing => return positions,
            // Everything that changed since is in the timeline.
            Span::Since(_) if complete && !after_timeline => return positions,
            Span::Since(_) if !self.slice.limited && after_timeline => {
                positions.extend(
                    self.slice
                        .all
                        .iter()
                        .filter(|event| self.stands_at_end(event))
                        .map(|event| event.nid),
                );
                return positions;
            }
            Span::All | Span::Since(_) => {}
        }
        let since = match self.span {
            Span::Since(since) => since,
            _ => 0,
        };
        // Spec: GET /sync: members that changed in a gap are sent even if lazy loading calls them redundant.
        let wanted = |kind: &StateEventType| members || self.span != Span::All || *kind != StateEventType::RoomMember;
        for (kind, _, entry) in self.end.iter() {
            if entry.nid > since && (after_timeline || entry.nid <= start) && wanted(kind) {
                positions.insert(entry.nid);
            }
        }
        if !after_timeline {
            for (event, replaced) in self.first_replaced() {
                if replaced > since && event.state_type().is_some_and(|(kind, _)| wanted(&kind)) {
                    positions.insert(replaced);
                }
            }
            // What the filter kept out of the middle of the timeline is told here or nowhere.
            let shown: HashSet<i64> = self.slice.shown.iter().map(|event| event.nid).collect();
            let hidden = self
                .window()
                .filter(|event| !shown.contains(&event.nid) && self.stands_at_end(event));
            positions.extend(hidden.map(|event| event.nid));
        }
        positions
    }

    /// The same by comparing states. Before the timeline goes what that changes as it was, and all else as it is after it:
    /// a client that knows no other way is told of a resolution there.
    fn compared(&self, fork: &Fork, after_timeline: bool, members: bool) -> BTreeSet<i64> {
        let wanted = |kind: &StateEventType| members || self.span != Span::All || *kind != StateEventType::RoomMember;
        let mut target = self.end.clone();
        if !after_timeline {
            for (kind, key) in self.slice.shown.iter().filter_map(|event| event.state_type()) {
                match fork.start.get(&kind, key) {
                    Some(entry) => drop(target.insert(kind, key, entry.clone())),
                    None => drop(target.remove(&kind, key)),
                }
            }
        }
        let changed = fork.known.differences(&target).into_iter();
        changed
            .filter(|(kind, ..)| wanted(kind))
            .filter_map(|(_, _, entry)| Some(entry?.nid))
            .collect()
    }

    /// For each piece of state that the timeline changes: its first change and what that replaced.
    fn first_replaced(&self) -> impl Iterator<Item = (&Arc<Event>, i64)> {
        let start = self.slice.start;
        self.window().filter_map(move |event| {
            let replaced = event.replaces.filter(|replaced| *replaced <= start)?;
            Some((event, replaced))
        })
    }

    /// The events from the first shown one on.
    fn window(&self) -> impl Iterator<Item = &Arc<Event>> {
        let start = self.slice.start;
        self.slice.all.iter().filter(move |event| event.nid > start)
    }

    fn stands_at_end(&self, event: &Event) -> bool {
        event
            .state_type()
            .and_then(|(kind, key)| self.end.get(&kind, key))
            .is_some_and(|entry| entry.nid == event.nid)
    }

    /// The position of a user's member event after or before the timeline.
    fn member(&self, user_id: &UserId, after_timeline: bool) -> Option<i64> {
        if let Some(fork) = self.fork {
            let map = if after_timeline { self.end } else { &fork.start };
            let entry = map.get(&StateEventType::RoomMember, user_id.as_str())?;
            return Some(entry.nid);
        }
        let entry = self.end.get(&StateEventType::RoomMember, user_id.as_str())?;
        if after_timeline || entry.nid <= self.slice.start {
            return Some(entry.nid);
        }
        self.first_replaced()
            .find(|(event, _)| event.membership().is_some() && event.state_key.as_deref() == Some(user_id.as_str()))
            .map(|(_, replaced)| replaced)
    }
}

impl Reader<'_> {
    /// The state events to send with a timeline, in stream order.
    pub(super) async fn state_events(
        &self,
        room_id: &RoomId,
        range: &StateRange<'_>,
        heroes: &[OwnedUserId],
    ) -> Result<Vec<Arc<Event>>, ApiError> {
        let filter = &self.filter.room.state;
        if range.span == Span::Nothing || filter.is_closed() || !filter.admits_room(room_id) {
            return Ok(Vec::new());
        }
        let after_timeline = self.state_after != StateAfter::No;
        let lazy = self.filter.room.lazy_load();
        let mut positions = range.positions(after_timeline, lazy.is_none());
        let mut lazily = HashSet::new();
        if lazy.is_some() {
            let mut users: HashSet<&UserId> = range.slice.shown.iter().map(|event| &*event.sender).collect();
            users.extend(heroes.iter().map(|hero| &**hero));
            if range.span == Span::All {
                users.insert(&self.user_id);
            }
            for nid in users
                .into_iter()
                .filter_map(|user_id| range.member(user_id, after_timeline))
            {
                if positions.insert(nid) {
                    lazily.insert(nid);
                }
            }
        }
        let positions: Vec<i64> = positions.into_iter().collect();
        let mut events = self.hs.rooms.events(room_id, &positions).await?;
        if let Some(lazy) = lazy {
            if !lazy.include_redundant_members {
                self.drop_redundant(room_id, &mut events, &lazily);
            }
            let shown = range.slice.shown.iter().filter_map(|event| sent_member(event));
            let sent: HashMap<_, _> = events
                .iter()
                .filter_map(|event| sent_member(event))
                .chain(shown)
                .collect();
            let sent = sent.iter().map(|(user_id, event_id)| (&**user_id, event_id.clone()));
            self.hs.sync.lazy_members.note_sent(&self.device, room_id, sent);
        }
        if !filter.is_open() {
            events.retain(|event| {
                filter.admits(&event.kind.to_string(), &event.sender, || {
                    event.content_field::<String>("url").is_some()
                })
            });
        }
        Ok(events)
    }

    /// Leaves out the members that were added for their messages alone and that the device has already.
    fn drop_redundant(&self, room_id: &RoomId, events: &mut Vec<Arc<Event>>, lazily: &HashSet<i64>) {
        let candidates: Vec<SentMember> = events
            .iter()
            .filter(|event| lazily.contains(&event.nid))
            .filter_map(|event| sent_member(event))
            .collect();
        let unsent: HashSet<SentMember> = self
            .hs
            .sync
            .lazy_members
            .take_unsent(&self.device, room_id, candidates)
            .into_iter()
            .collect();
        events.retain(|event| {
            !lazily.contains(&event.nid) || sent_member(event).is_some_and(|member| unsent.contains(&member))
        });
    }

    /// State events under the name the request asks for.
    pub(super) fn state_section(&self, events: Vec<Json>) -> StateSection {
        let events = Some(Events::from(events));
        match self.state_after {
            StateAfter::No => StateSection {
                state: events,
                ..StateSection::default()
            },
            StateAfter::Stable => StateSection {
                state_after: events,
                ..StateSection::default()
            },
            StateAfter::Unstable => StateSection {
                unstable_state_after: events,
                ..StateSection::default()
            },
        }
    }
}

fn sent_member(event: &Event) -> Option<SentMember> {
    event.membership()?;
    let user_id = OwnedUserId::try_from(event.state_key.as_deref()?).ok()?;
    Some((user_id, event.event_id.clone()))
}
