//! What the public room directory shows, in memory: read when it is first asked for, kept up with the rooms' state from
//! then on, in the order in which it is shown.
//! Spec: client-server API, "Listing rooms".

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use parking_lot::Mutex;
use ruma::{
    OwnedRoomId, RoomId,
    directory::{PublicRoomsChunk, PublicRoomsChunkInit, RoomTypeFilter},
    events::{StateEventType, room::history_visibility::HistoryVisibility},
};

use super::{Event, RoomState};

/// The directory of this server.
#[derive(Debug, Default)]
pub(super) struct PublicRooms {
    pub(super) entries: Mutex<Entries>,
    /// One change of what is listed, or the first reading of it, at a time.
    pub(super) listing: tokio::sync::Mutex<()>,
}

/// A place in the directory: the largest rooms first.
pub(super) type Place = (Reverse<u64>, OwnedRoomId);

#[derive(Debug, Default)]
pub(super) struct Entries {
    /// Whether every listed room is here.
    pub(super) loaded: bool,
    places: HashMap<OwnedRoomId, Place>,
    shown: BTreeMap<Place, Shown>,
}

#[derive(Debug)]
struct Shown {
    chunk: PublicRoomsChunk,
    /// Name, topic and alias in small letters.
    text: String,
}

/// What part of the directory is asked for.
#[derive(Debug, Clone, Default)]
pub struct DirectoryQuery<'a> {
    /// Only rooms whose name, topic or alias has this in it, whatever the case.
    pub term: Option<&'a str>,
    /// Only rooms of these types, if any is named.
    pub room_types: &'a [RoomTypeFilter],
    /// Where the page begins; at the largest room without it.
    pub from: Option<PageStart>,
    /// Rooms in the page, at most.
    pub limit: usize,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageStart {
    /// After this place.
    After(Place),
    /// So that it ends before this place.
    Before(Place),
}

/// Part of the directory.
#[derive(Debug, Default)]
pub struct DirectoryPage {
    /// The rooms.
    pub rooms: Vec<PublicRoomsChunk>,
    /// The last one's place, if more follow.
    pub next: Option<Place>,
    /// The first one's place, if some come before it.
    pub previous: Option<Place>,
    /// How many rooms there are in all pages.
    pub total: usize,
}

impl Entries {
    /// Shows a listed room as it is now.
    pub(super) fn set(&mut self, state: &RoomState) {
        self.remove(&state.room_id);
        let chunk = public_chunk(state);
        let place = (Reverse(chunk.num_joined_members.into()), state.room_id.clone());
        let alias = chunk.canonical_alias.as_ref().map(|alias| alias.as_str());
        let texts = [chunk.name.as_deref(), chunk.topic.as_deref(), alias];
        // A line for each: no term reaches over two of them.
        let text = texts
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
            .to_lowercase();
        self.places.insert(state.room_id.clone(), place.clone());
        self.shown.insert(place, Shown { chunk, text });
    }

    /// Brings the entry of a room up to date, if it has one.
    pub(super) fn update(&mut self, state: &RoomState) {
        if self.places.contains_key(&state.room_id) {
            self.set(state);
        }
    }

    pub(super) fn remove(&mut self, room_id: &RoomId) {
        if let Some(place) = self.places.remove(room_id) {
            self.shown.remove(&place);
        }
    }

    pub(super) fn page(&self, query: &DirectoryQuery<'_>) -> DirectoryPage {
        let term = query.term.map(str::to_lowercase).filter(|term| !term.is_empty());
        let wanted = |shown: &Shown| {
            let of_type = query.room_types.is_empty() || query.room_types.contains(&type_of(&shown.chunk));
            of_type && term.as_ref().is_none_or(|term| shown.text.contains(term))
        };
        let all = query.room_types.is_empty() && term.is_none();
        let total = match all {
            true => self.shown.len(),
            false => self.shown.values().filter(|shown| wanted(shown)).count(),
        };
        let within = |from: Bound<&Place>, to: Bound<&Place>| {
            let range = self.shown.range::<Place, _>((from, to));
            range.filter(|(_, shown)| wanted(shown))
        };
        let found: Vec<(&Place, &Shown)> = match &query.from {
            None => within(Bound::Unbounded, Bound::Unbounded).take(query.limit).collect(),
            Some(PageStart::After(place)) => within(Bound::Excluded(place), Bound::Unbounded)
                .take(query.limit)
                .collect(),
            Some(PageStart::Before(place)) => {
                let before = within(Bound::Unbounded, Bound::Excluded(place));
                let mut found: Vec<_> = before.rev().take(query.limit).collect();
                found.reverse();
                found
            }
        };
        let next = found
            .last()
            .filter(|(last, _)| within(Bound::Excluded(last), Bound::Unbounded).next().is_some());
        let previous = found
            .first()
            .filter(|(first, _)| within(Bound::Unbounded, Bound::Excluded(first)).next_back().is_some());
        DirectoryPage {
            next: next.map(|(place, _)| (*place).clone()),
            previous: previous.map(|(place, _)| (*place).clone()),
            rooms: found.iter().map(|(_, shown)| shown.chunk.clone()).collect(),
            total,
        }
    }
}

fn type_of(chunk: &PublicRoomsChunk) -> RoomTypeFilter {
    RoomTypeFilter::from(chunk.room_type.as_ref().map(|room_type| room_type.as_str()))
}

/// What the directory says of a room.
pub(super) fn public_chunk(state: &RoomState) -> PublicRoomsChunk {
    let joined = ruma::UInt::try_from(state.joined).unwrap_or(ruma::UInt::MAX);
    let world_readable = state.history_visibility() == HistoryVisibility::WorldReadable;
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: joined,
        room_id: state.room_id.clone(),
        world_readable,
        guest_can_join: false,
    });
    chunk.join_rule = state.join_rule().as_str().into();
    let pinned = |kind: StateEventType| state.pinned(&kind).cloned();
    let text = |event: Option<Arc<Event>>, field: &str| event?.content_field::<String>(field).filter(|t| !t.is_empty());
    chunk.name = text(pinned(StateEventType::RoomName), "name");
    chunk.topic = text(pinned(StateEventType::RoomTopic), "topic");
    chunk.avatar_url = text(pinned(StateEventType::RoomAvatar), "url").map(Into::into);
    chunk.canonical_alias =
        text(pinned(StateEventType::RoomCanonicalAlias), "alias").and_then(|alias| alias.try_into().ok());
    chunk.room_type = pinned(StateEventType::RoomCreate).and_then(|create| create.content_field("type"));
    chunk
}
