//! What is new, by stream: the first question of every reader. From a session's memory where it reaches back far
//! enough; otherwise (a first sync, or the first after a restart) from a few queries over all of the user's rooms.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedRoomId, UserId};

use super::{Change, notifier::Session};
use crate::{
    Homeserver,
    room::{self, Membership, UserRooms},
};

/// What may have changed in one room.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomNews {
    pub(crate) events: bool,
    pub(crate) receipts: bool,
    pub(crate) typing: bool,
    pub(crate) counts: bool,
}

/// What may have changed for a user since a position.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) rooms: BTreeMap<OwnedRoomId, RoomNews>,
    /// Rooms in which the user's own membership changed.
    pub(crate) memberships: BTreeSet<OwnedRoomId>,
    pub(crate) account_data: bool,
    pub(crate) to_device: bool,
    pub(crate) device_lists: bool,
    pub(crate) presence: bool,
}

impl News {
    fn of_changes(changes: Vec<Change>) -> Self {
        let mut news = Self::default();
        for change in changes {
            match change {
                Change::Events(room_id) => news.rooms.entry(room_id).or_default().events = true,
                Change::Receipts(room_id) => news.rooms.entry(room_id).or_default().receipts = true,
                Change::Typing(room_id) => news.rooms.entry(room_id).or_default().typing = true,
                Change::Counts(room_id) => news.rooms.entry(room_id).or_default().counts = true,
                Change::RoomAccountData(room_id) => {
                    news.rooms.entry(room_id).or_default();
                    news.account_data = true;
                }
                Change::Membership(room_id) => {
                    news.rooms.entry(room_id.clone()).or_default().events = true;
                    news.memberships.insert(room_id);
                }
                Change::AccountData => news.account_data = true,
                Change::ToDevice => news.to_device = true,
                Change::DeviceLists => news.device_lists = true,
                Change::Presence => news.presence = true,
                Change::DeviceKeys => {}
            }
        }
        news
    }
}

impl Homeserver {
    /// What changed for the user in (`since`, `now`]. A stream may be named without need; none is left out.
    pub(crate) async fn news(
        &self,
        user_id: &UserId,
        session: &Session,
        rooms: &UserRooms,
        (since, now): (i64, i64),
    ) -> Result<News, room::Error> {
        if let Some(changes) = session.changes(since) {
            let mut news = News::of_changes(changes);
            if news
                .memberships
                .iter()
                .any(|room_id| rooms.get(room_id).is_some_and(|m| m.position > since))
            {
                // Whose devices are to be watched, and who is seen, changes with who shares a room.
                news.device_lists = true;
                news.presence = true;
            }
            return Ok(news);
        }
        let mut news = News {
            account_data: true,
            to_device: true,
            device_lists: true,
            presence: true,
            ..News::default()
        };
        let joined: Vec<(&OwnedRoomId, i64)> = rooms
            .iter()
            .filter(|(_, m)| m.membership == Membership::Join)
            .map(|(room_id, m)| (room_id, m.room_nid))
            .collect();
        let nids: Vec<i64> = joined.iter().map(|(_, nid)| *nid).collect();
        let changed: BTreeSet<i64> = self.rooms.changed_after(&nids, since).await?.into_iter().collect();
        for (room_id, nid) in &joined {
            if changed.contains(nid) {
                news.rooms.entry((*room_id).clone()).or_default().events = true;
            }
            if !self.sync.typing.users(room_id).is_empty() {
                news.rooms.entry((*room_id).clone()).or_default().typing = true;
            }
        }
        let ids: Vec<&str> = joined.iter().map(|(room_id, _)| room_id.as_str()).collect();
        for room_id in self.store.rooms_with_receipts(&ids, since, now).await? {
            if let Ok(room_id) = OwnedRoomId::try_from(room_id) {
                let room = news.rooms.entry(room_id).or_default();
                (room.receipts, room.counts) = (true, true);
            }
        }
        for (room_id, membership) in rooms {
            if membership.position > since {
                news.memberships.insert(room_id.clone());
                news.rooms.entry(room_id.clone()).or_default().events = true;
            }
        }
        tracing::debug!(user_id = %user_id, since, now, rooms = news.rooms.len(), "news looked up");
        Ok(news)
    }
}
