//! Rooms in the answer of `/sync`: joined, invited, knocked and left.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedRoomId, RoomId, UserId, events::StateEventType};
use serde::Deserialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{
    Reader,
    response::{
        Counts, Events, InvitedRoom, JoinedRoom, Json, KnockedRoom, LeftRoom, ReceiptContent, ReceiptInfo, Response,
        Summary, Timeline,
    },
    state::{Fork, Span, StateRange},
};
use crate::{
    client_api::ApiError,
    room::{Event, Format, Membership, RoomMembership, RoomState, StateMap, UserRooms, Visibility},
    sync::{
        position::SyncToken,
        streams::{News, RoomNews},
    },
};

/// Pages read to fill a timeline whose events are mostly filtered out.
const MAX_TIMELINE_PAGES: usize = 8;

/// The shown part of a room's history.
pub(super) struct Slice {
    /// All events that were looked at, oldest first, wanted or not.
    pub(super) all: Vec<Arc<Event>>,
    /// The wanted ones.
    pub(super) shown: Vec<Arc<Event>>,
    /// Whether older events are wanted too.
    pub(super) limited: bool,
    /// The position before the first shown event; the end of the range when none is.
    pub(super) start: i64,
}

impl Slice {
    /// Whether everything of the range is shown.
    pub(super) fn is_complete(&self) -> bool {
        !self.limited && self.shown.len() == self.all.len()
    }
}

impl Reader<'_> {
    pub(super) async fn read_rooms(
        &self,
        news: &News,
        rooms: &UserRooms,
        of_rooms: &mut HashMap<String, Vec<Json>>,
        response: &mut Response,
    ) -> Result<(), ApiError> {
        let ignored = self.hs.push.ignored.of(&self.user_id);
        let ignores = |user_id: &UserId| ignored.as_ref().is_some_and(|ignored| ignored.contains(user_id));
        let counts = match self.since {
            None => Some(self.counts_of_all_rooms(rooms).await?),
            Some(_) => None,
        };
        for (room_id, room_news) in &news.rooms {
            let Some(membership) = rooms.get(room_id).filter(|m| m.membership == Membership::Join) else {
                continue;
            };
            if !self.filter.room.admits_room(room_id) {
                continue;
            }
            let account_data = of_rooms.remove(room_id.as_str()).unwrap_or_default();
            let joined = self
                .joined_room(
                    (room_id, membership),
                    *room_news,
                    account_data,
                    ignored.as_deref(),
                    counts.as_ref(),
                )
                .await?;
            if let Some(joined) = joined {
                response.rooms.join.insert(room_id.clone(), joined);
            }
        }
        for room_id in &news.memberships {
            let Some(membership) = rooms.get(room_id) else { continue };
            if !self.filter.room.admits_room(room_id) {
                continue;
            }
            match membership.membership {
                Membership::Join => {}
                Membership::Invite if ignores(&membership.sender) => {}
                Membership::Invite => {
                    let invite_state = self.stripped(room_id).await?;
                    response
                        .rooms
                        .invite
                        .insert(room_id.clone(), InvitedRoom { invite_state });
                }
                Membership::Knock => {
                    let knock_state = self.stripped(room_id).await?;
                    response
                        .rooms
                        .knock
                        .insert(room_id.clone(), KnockedRoom { knock_state });
                }
                Membership::Leave | Membership::Ban if membership.forgotten => {}
                Membership::Leave | Membership::Ban => {
                    let account_data = of_rooms.remove(room_id.as_str()).unwrap_or_default();
                    if let Some(left) = self.left_room(room_id, membership, account_data).await? {
                        response.rooms.leave.insert(room_id.clone(), left);
                    }
                }
            }
        }
        Ok(())
    }

    async fn stripped(&self, room_id: &RoomId) -> Result<Events, ApiError> {
        let room = self.hs.rooms.get(room_id).await?;
        Ok(self.hs.rooms.stripped_state(&room.state(), &self.user_id).await?.into())
    }

    async fn joined_room(
        &self,
        (room_id, membership): (&OwnedRoomId, &RoomMembership),
        news: RoomNews,
        account_data: Vec<Json>,
        ignored: Option<&HashSet<ruma::OwnedUserId>>,
        all_counts: Option<&CountsByRoom>,
    ) -> Result<Option<JoinedRoom>, ApiError> {
        let room = self.hs.rooms.get(room_id).await?.state();
        let newly_joined = match self.since {
            Some(since) if membership.position > since => !self.joined_since(&room, since).await?,
            _ => false,
        };
        let known_since = self.since.filter(|_| !newly_joined);
        let mut joined = JoinedRoom {
            summary: None,
            state: self.state_section(Vec::new()),
            timeline: Timeline::default(),
            ephemeral: Events::default(),
            account_data: account_data.into(),
            unread_notifications: Counts::default(),
            unread_thread_notifications: None,
        };
        if newly_joined {
            // What was set for the room while the user was not in it has not been sent either.
            let entries = self
                .hs
                .store
                .account_data_of_room(self.user_id.as_str(), room_id.as_str())
                .await?;
            let wanted = entries
                .iter()
                .filter(|e| self.filter.room.account_data.admits_type(&e.r#type));
            joined.account_data = wanted
                .map(|entry| super::account_data_event(&entry.r#type, &entry.content))
                .collect::<Result<Vec<_>, _>>()?
                .into();
        }
        if self.filter.room.account_data.is_closed() || !self.filter.room.account_data.admits_room(room_id) {
            joined.account_data.events.clear();
        }
        let whole = known_since.is_none() || self.full_state;
        if news.events || whole {
            let visibility = self.hs.rooms.visibility(&room, &self.user_id).await?;
            let slice = self
                .slice(&room, known_since.unwrap_or(0), self.now, &visibility, ignored)
                .await?;
            let end = self.hs.rooms.state_at(&room, self.now).await?;
            let span = if whole {
                Span::All
            } else {
                Span::Since(known_since.unwrap_or(0))
            };
            let fork = self.fork(&room, &slice, span).await?;
            let members_changed = fork.is_some() || slice.all.iter().any(|event| event.membership().is_some());
            let mut heroes = Vec::new();
            if whole || members_changed || slice.limited {
                let summary = self.summary(&room);
                heroes = summary.heroes.clone().unwrap_or_default();
                joined.summary = Some(summary);
            }
            let range = StateRange {
                end: &end,
                slice: &slice,
                span,
                fork: fork.as_ref(),
            };
            self.note_sharing(&room, &range);
            let events = self.state_events(room_id, &range, &heroes).await?;
            joined.state = self.state_section(self.client_json(&events, None).await?);
            joined.timeline = self.timeline(slice, newly_joined, &visibility).await?;
        }
        if !self.filter.room.ephemeral.is_closed() && self.filter.room.ephemeral.admits_room(room_id) {
            joined.ephemeral = self.ephemeral(room_id, news, known_since, ignored).await?.into();
        }
        self.add_counts(membership.room_nid, all_counts, &mut joined).await?;
        let wanted = self.since.is_none() || self.full_state || newly_joined || news.counts || !joined.is_quiet();
        Ok(wanted.then_some(joined))
    }

    /// Whether the user has been joined without a break since a position, as far as is published.
    async fn joined_since(&self, room: &RoomState, since: i64) -> Result<bool, ApiError> {
        let mut history = self.hs.rooms.membership_history(room, &self.user_id).await?;
        history.retain(|(position, _)| *position <= self.now);
        let before = history.iter().rposition(|(position, _)| *position <= since);
        Ok(before.is_some_and(|before| {
            history[before..]
                .iter()
                .all(|(_, membership)| *membership == Membership::Join)
        }))
    }

    /// The states to compare where state resolution changed the state in the range: a timeline does not show that.
    async fn fork(&self, room: &RoomState, slice: &Slice, span: Span) -> Result<Option<Fork>, ApiError> {
        let since = match span {
            Span::Nothing => return Ok(None),
            Span::All => slice.start,
            Span::Since(since) => since.min(slice.start),
        };
        if room.reset_at <= since {
            return Ok(None);
        }
        let known = match span {
            Span::Since(since) => self.hs.rooms.state_at(room, since).await?,
            _ => StateMap::default(),
        };
        let start = self.hs.rooms.state_at(room, slice.start).await?;
        Ok(Some(Fork { known, start }))
    }

    /// The newest wanted events in (`after`, `up_to`], as many as the filter's limit.
    async fn slice(
        &self,
        room: &RoomState,
        after: i64,
        up_to: i64,
        visibility: &Visibility,
        ignored: Option<&HashSet<ruma::OwnedUserId>>,
    ) -> Result<Slice, ApiError> {
        let filter = &self.filter.room.timeline;
        let limit = self.filter.room.timeline_limit();
        let wanted = |event: &Event| {
            visibility.allows(event)
                && !(event.state_key.is_none() && ignored.is_some_and(|ignored| ignored.contains(&event.sender)))
                && (filter.is_open()
                    || (filter.admits_room(&room.room_id)
                        && filter.admits(&event.kind.to_string(), &event.sender, || has_url(event))))
        };
        let mut slice = Slice {
            all: Vec::new(),
            shown: Vec::new(),
            limited: false,
            start: up_to,
        };
        for page in 0.. {
            let part = self.page(room, after, slice.start, limit.max(1)).await?;
            // Newest first, so that the page can stop where the timeline is full.
            for event in part.events.iter().rev() {
                if wanted(event) {
                    if slice.shown.len() == limit {
                        slice.limited = true;
                        break;
                    }
                    slice.shown.push(event.clone());
                }
                slice.start = event.nid - 1;
                slice.all.push(event.clone());
            }
            if slice.limited {
                break;
            }
            if !part.limited {
                break;
            }
            if page + 1 == MAX_TIMELINE_PAGES {
                slice.limited = true;
                break;
            }
        }
        slice.all.reverse();
        slice.shown.reverse();
        slice.start = match slice.shown.first() {
            _ if slice.is_complete() => after,
            // State that the filter keeps out of the timeline still belongs to what comes before it.
            Some(first) => first.nid - 1,
            None => up_to,
        };
        Ok(slice)
    }

    /// The newest events in (`after`, `up_to`]: from memory if they are all recent.
    async fn page(&self, room: &RoomState, after: i64, up_to: i64, limit: usize) -> Result<Page, ApiError> {
        let rooms = &self.hs.rooms;
        if let Some(mut recent) = self.hs.sync.notifier.recent_events(&room.room_id, after, up_to) {
            let older = recent.len().saturating_sub(limit);
            recent.drain(..older);
            let events = rooms.events(&room.room_id, &recent).await?;
            return Ok(Page {
                events,
                limited: older > 0,
            });
        }
        let page = rooms.timeline(room, after, up_to, limit).await?;
        Ok(Page {
            events: page.events,
            limited: page.limited,
        })
    }

    async fn timeline(&self, slice: Slice, newly_joined: bool, visibility: &Visibility) -> Result<Timeline, ApiError> {
        let events = self.client_json(&slice.shown, Some(visibility)).await?;
        Ok(Timeline {
            limited: slice.limited || newly_joined,
            prev_batch: Some(SyncToken::at(slice.start).to_string()),
            events,
        })
    }

    /// Events as this device gets them.
    pub(super) async fn client_json(
        &self,
        events: &[Arc<Event>],
        visibility: Option<&Visibility>,
    ) -> Result<Vec<Json>, ApiError> {
        let raw = match self.filter.federation_format {
            true => self.federation_json(events).await?,
            false => {
                let rooms = &self.hs.rooms;
                rooms
                    .client_events(events, &self.viewer, Format::Sync, visibility)
                    .await?
            }
        };
        if self.filter.keeps_events_whole() {
            return Ok(raw.into_iter().map(Json::from).collect());
        }
        Ok(raw
            .into_iter()
            .map(|event| self.filter.reduce(&event).unwrap_or(event).into())
            .collect())
    }

    /// Events as they are kept and exchanged between servers.
    async fn federation_json(&self, events: &[Arc<Event>]) -> Result<Vec<Box<RawValue>>, ApiError> {
        let positions: Vec<i64> = events.iter().map(|event| event.nid).collect();
        let rows = self.hs.store.events_by_nid(&positions).await?;
        let mut by_position: HashMap<i64, String> = rows.into_iter().map(|row| (row.event_nid, row.json)).collect();
        let texts = positions.iter().filter_map(|position| by_position.remove(position));
        texts
            .map(|text| RawValue::from_string(text).map_err(ApiError::internal))
            .collect()
    }

    fn summary(&self, room: &RoomState) -> Summary {
        let field = |kind: &StateEventType, name: &str| {
            room.pinned(kind)
                .and_then(|event| event.content_field::<String>(name))
                .filter(|text| !text.is_empty())
        };
        let named = field(&StateEventType::RoomName, "name").is_some()
            || field(&StateEventType::RoomCanonicalAlias, "alias").is_some();
        let heroes = (!named).then(|| self.hs.rooms.summary(room, &self.user_id).heroes);
        Summary {
            heroes,
            joined: room.joined,
            invited: room.invited,
        }
    }

    async fn ephemeral(
        &self,
        room_id: &RoomId,
        news: RoomNews,
        known_since: Option<i64>,
        ignored: Option<&HashSet<ruma::OwnedUserId>>,
    ) -> Result<Vec<Json>, ApiError> {
        let filter = &self.filter.room.ephemeral;
        let mut events = Vec::new();
        let known_since = if self.full_state { None } else { known_since };
        if (news.receipts || known_since.is_none()) && filter.admits_type("m.receipt") {
            let changed = self.hs.sync.notifier.room_positions(room_id).receipts;
            let user = self.user_id.as_str();
            let since = known_since.unwrap_or(0);
            let look = |receipts: &crate::sync::room_cache::RoomReceipts| {
                let visible = receipts.after(since).filter(|receipt| {
                    // Spec: §Private read receipts: never to any other user.
                    (receipt.r#type != "m.read.private" || receipt.user_id == user)
                        && !ignored.is_some_and(|i| i.iter().any(|ignored| *ignored == receipt.user_id))
                });
                receipt_events(visible)
            };
            let cache = &self.hs.sync.receipts;
            events.extend(cache.with(&self.hs.store, room_id, (changed, self.now), look).await??);
        }
        if filter.admits_type("m.typing") {
            let mut users = self.hs.sync.typing.users(room_id);
            if let Some(ignored) = ignored {
                users.retain(|user_id| !ignored.contains(user_id));
            }
            if news.typing && known_since.is_some() || !users.is_empty() && (news.typing || known_since.is_none()) {
                let event = json!({"type": "m.typing", "content": {"user_ids": users}});
                events.push(to_raw_value(&event).map_err(ApiError::internal)?.into());
            }
        }
        Ok(events)
    }

    async fn counts_of_all_rooms(&self, rooms: &UserRooms) -> Result<CountsByRoom, ApiError> {
        let joined = rooms.values().filter(|m| m.membership == Membership::Join);
        let joined: Vec<i64> = joined.map(|m| m.room_nid).collect();
        let counts = &self.hs.push.counts;
        let mut by_room = CountsByRoom::new();
        for count in counts.of_rooms(&self.user_id, &joined, self.now).await? {
            by_room.entry(count.room_nid).or_default().push(count);
        }
        Ok(by_room)
    }

    async fn add_counts(
        &self,
        room_nid: i64,
        all: Option<&CountsByRoom>,
        joined: &mut JoinedRoom,
    ) -> Result<(), ApiError> {
        let threads = match all {
            Some(all) => all.get(&room_nid).cloned().unwrap_or_default(),
            None => self.hs.push.counts.of(&self.user_id, room_nid, self.now).await?,
        };
        let per_thread = self.filter.room.counts_per_thread();
        let mut by_thread = BTreeMap::new();
        for count in threads {
            if per_thread && !count.thread_id.is_empty() {
                let counts = Counts {
                    highlight_count: count.highlight,
                    notification_count: count.notify,
                };
                by_thread.insert(count.thread_id, counts);
            } else {
                joined.unread_notifications.highlight_count += count.highlight;
                joined.unread_notifications.notification_count += count.notify;
            }
        }
        joined.unread_thread_notifications = (per_thread && !by_thread.is_empty()).then_some(by_thread);
        Ok(())
    }

    async fn left_room(
        &self,
        room_id: &OwnedRoomId,
        membership: &RoomMembership,
        account_data: Vec<Json>,
    ) -> Result<Option<LeftRoom>, ApiError> {
        let Some(room) = self.hs.rooms.find(room_id).await? else {
            return Ok(None);
        };
        let room = room.state();
        let left_at = membership.position;
        let before = self.before_leaving(&room, left_at).await?;
        let visibility = self.hs.rooms.visibility(&room, &self.user_id).await?;
        // Who was never in it sees their own part alone: the withdrawn invite, the ban.
        let (after, span) = match before {
            Before::Joined => (self.since.unwrap_or(0), Span::Since(self.since.unwrap_or(0))),
            Before::JoinedBetween => (0, Span::All),
            Before::NeverJoined => (left_at - 1, Span::Nothing),
        };
        let span = if (self.since.is_none() || self.full_state) && span != Span::Nothing {
            Span::All
        } else {
            span
        };
        let slice = self.slice(&room, after, left_at, &visibility, None).await?;
        let end = self.hs.rooms.state_at(&room, left_at).await?;
        let fork = self.fork(&room, &slice, span).await?;
        let range = StateRange {
            end: &end,
            slice: &slice,
            span,
            fork: fork.as_ref(),
        };
        if span != Span::Nothing {
            self.note_parting(&room, &end);
        }
        let events = self.state_events(room_id, &range, &[]).await?;
        let state = self.state_section(self.client_json(&events, None).await?);
        let timeline = self.timeline(slice, false, &visibility).await?;
        Ok(Some(LeftRoom {
            state,
            timeline,
            account_data: account_data.into(),
        }))
    }

    async fn before_leaving(&self, room: &RoomState, left_at: i64) -> Result<Before, ApiError> {
        let since = self.since.unwrap_or(0);
        let mut history = self.hs.rooms.membership_history(room, &self.user_id).await?;
        history.retain(|(position, _)| *position <= left_at);
        let known = history.iter().rposition(|(position, _)| *position <= since);
        let joined = |(_, membership): &(i64, Membership)| *membership == Membership::Join;
        Ok(if known.is_some_and(|known| joined(&history[known])) {
            Before::Joined
        } else if history[known.map_or(0, |known| known + 1)..].iter().any(joined) {
            Before::JoinedBetween
        } else {
            Before::NeverJoined
        })
    }
}

/// A part of a room's timeline.
struct Page {
    /// Oldest first.
    events: Vec<Arc<Event>>,
    /// Whether the range has older ones.
    limited: bool,
}

/// What a user who left was to the room before, as far as this device knows.
#[derive(Debug, PartialEq, Eq)]
enum Before {
    /// Joined when the device last looked.
    Joined,
    /// Joined some time since.
    JoinedBetween,
    /// Not joined.
    NeverJoined,
}

type CountsByRoom = HashMap<i64, Vec<storage::push::UnreadCount>>;

fn has_url(event: &Event) -> bool {
    #[derive(Deserialize)]
    struct Content {
        url: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Content>(event.content.get()).is_ok_and(|content| content.url.is_some())
}

/// Receipts as `m.receipt` events. One event cannot say two things of the same user, event and type, so receipts of
/// several threads may need several.
fn receipt_events<'a>(receipts: impl Iterator<Item = &'a storage::receipts::Receipt>) -> Result<Vec<Json>, ApiError> {
    let mut contents: Vec<ReceiptContent<'a>> = Vec::new();
    for receipt in receipts {
        let taken = |content: &ReceiptContent<'a>| {
            content
                .get(receipt.event_id.as_str())
                .and_then(|types| types.get(receipt.r#type.as_str()))
                .is_some_and(|users| users.contains_key(receipt.user_id.as_str()))
        };
        let at = match contents.iter().position(|content| !taken(content)) {
            Some(at) => at,
            None => {
                contents.push(ReceiptContent::new());
                contents.len() - 1
            }
        };
        let users = contents[at]
            .entry(&receipt.event_id)
            .or_default()
            .entry(&receipt.r#type)
            .or_default();
        users.insert(
            &receipt.user_id,
            ReceiptInfo {
                ts: receipt.ts,
                thread_id: &receipt.thread_id,
            },
        );
    }
    contents
        .iter()
        .map(|content| {
            let event = to_raw_value(&json!({"type": "m.receipt", "content": content}));
            event.map(Json::from).map_err(ApiError::internal)
        })
        .collect()
}
