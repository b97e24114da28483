//! `GET /sync`: waits until a stream has something for the device, then reads what is new of each.

mod devices;
mod response;
mod room;
mod state;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use ruma::{OwnedDeviceId, OwnedUserId};

pub(crate) use response::Response;
use response::{Events, Json};

use super::{
    filter::SyncFilter,
    position::SyncToken,
    streams::{News, RoomNews},
};
use crate::{
    Homeserver,
    accounts::Authenticated,
    client_api::{AccessToken, ApiError},
    push::PUSH_RULES,
    room::{Membership, UserRooms, Viewer},
};

/// The longest a request is held.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// Messages to a device in one answer.
const TO_DEVICE_LIMIT: i64 = 100;

/// Under which name room state is sent, and of which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateAfter {
    /// `state`: before the timeline.
    No,
    /// `state_after`: after the timeline.
    Stable,
    /// `org.matrix.msc4222.state_after`: after the timeline.
    Unstable,
}

/// A `/sync` request, taken apart.
#[derive(Debug)]
pub(crate) struct SyncRequest {
    pub(crate) sender: Authenticated,
    pub(crate) token: AccessToken,
    pub(crate) since: Option<SyncToken>,
    pub(crate) filter: Arc<SyncFilter>,
    pub(crate) full_state: bool,
    pub(crate) state_after: StateAfter,
    pub(crate) timeout: Duration,
}

/// One reading of the streams for one device.
struct Reader<'a> {
    hs: &'a Homeserver,
    user_id: OwnedUserId,
    device: (OwnedUserId, OwnedDeviceId),
    viewer: Viewer,
    filter: &'a SyncFilter,
    state_after: StateAfter,
    full_state: bool,
    /// What the device has; `None` for nothing.
    since: Option<i64>,
    now: i64,
    sharing: Mutex<devices::Sharing>,
}

impl Homeserver {
    /// Answers a `/sync` request, at the latest when its timeout is over.
    pub(crate) async fn sync(&self, request: SyncRequest) -> Result<Response, ApiError> {
        let sender = &request.sender;
        let deadline = tokio::time::sleep(request.timeout.min(MAX_TIMEOUT));
        tokio::pin!(deadline);
        let device = (sender.user_id.clone(), sender.device_id.clone());
        if request.since.is_none() {
            // The device begins with nothing, so it has no members either.
            self.sync.lazy_members.forget_device(&device);
        }
        loop {
            // Looked up anew each time: an idle session may have been forgotten meanwhile.
            let session = self.sync.notifier.session(&sender.user_id, self.clock.now_ms());
            let woken = session.woken();
            tokio::pin!(woken);
            woken.as_mut().enable();
            // Whoever is woken because their session ended is told so, and not "nothing new".
            self.accounts.check_still_open(&request.token.0).await?;
            if !session.is_complete() {
                let published = self.sync.now();
                let rooms = self.rooms.memberships_of(&sender.user_id).await?;
                // A membership that is not published yet may end one whose last messages are still to be heard of.
                let joined = rooms
                    .iter()
                    .filter(|(_, m)| m.membership == Membership::Join || m.position > published);
                self.sync
                    .notifier
                    .watch(&session, joined.map(|(room_id, _)| room_id.clone()));
            }
            let now = self.sync.now();
            let reader = Reader {
                hs: self,
                user_id: sender.user_id.clone(),
                viewer: Viewer {
                    user_id: sender.user_id.clone(),
                    device_id: Some(sender.device_id.clone()),
                },
                device: device.clone(),
                filter: &request.filter,
                state_after: request.state_after,
                full_state: request.full_state,
                // A token from beyond the end (of a restored backup) stands for now.
                since: request.since.map(|since| since.position().min(now)),
                now,
                sharing: Mutex::default(),
            };
            let to_device_since = request.since.map_or(0, |since| since.to_device().min(now));
            let mut response = reader.read(&session, to_device_since).await?;
            let wait = request.since.is_some() && !request.full_state && response.is_empty();
            if !wait || request.timeout.is_zero() {
                reader.add_key_counts(&mut response).await?;
                return Ok(response);
            }
            tokio::select! {
                () = &mut woken => {}
                () = &mut deadline => {
                    reader.add_key_counts(&mut response).await?;
                    return Ok(response);
                }
                () = self.shutdown.cancelled() => {
                    reader.add_key_counts(&mut response).await?;
                    return Ok(response);
                }
            }
        }
    }
}

impl Reader<'_> {
    async fn read(&self, session: &super::notifier::Session, to_device_since: i64) -> Result<Response, ApiError> {
        let mut response = Response {
            next_batch: SyncToken::at(self.now).to_string(),
            ..Response::default()
        };
        if self.since.is_some() {
            // Spec: client-server API §Send-to-Device messaging: what an answer delivered is gone once the client comes
            // back with its token.
            let devices = &self.hs.devices;
            devices
                .delete_to_device(&self.user_id, &self.device.1, to_device_since)
                .await?;
        }
        let to_device_behind = self.since.is_some_and(|since| to_device_since < since);
        let rooms;
        let news = match self.since {
            Some(since) if !self.full_state => {
                let quiet = session.changes(since).is_some_and(|changes| changes.is_empty());
                if quiet && !to_device_behind && self.hs.devices.list_changes(since, self.now).await?.is_empty() {
                    return Ok(response);
                }
                rooms = self.hs.memberships_at(&self.user_id, self.now).await?;
                self.hs.news(&self.user_id, session, &rooms, (since, self.now)).await?
            }
            _ => {
                rooms = self.hs.memberships_at(&self.user_id, self.now).await?;
                self.everything(&rooms)
            }
        };
        self.read_account_data_and_rooms(&news, &rooms, &mut response).await?;
        if news.to_device || to_device_behind {
            let delivered = self.read_to_device(to_device_since, &mut response).await?;
            response.next_batch = SyncToken::at(self.now).with_to_device(delivered).to_string();
        }
        if news.presence {
            self.read_presence(&rooms, &mut response).await?;
        }
        if let Some(since) = self.since {
            self.read_device_lists(since, &rooms, &mut response).await?;
        }
        Ok(response)
    }

    /// A first sync, and one that asks for all state, look at every room.
    fn everything(&self, rooms: &UserRooms) -> News {
        let since = self.since.unwrap_or(0);
        let all = RoomNews {
            events: true,
            receipts: true,
            typing: true,
            counts: true,
        };
        let in_room = rooms.iter().filter(|(_, m)| m.membership == Membership::Join);
        News {
            rooms: in_room.map(|(room_id, _)| (room_id.clone(), all)).collect(),
            memberships: rooms
                .iter()
                .filter(|(_, m)| match m.membership {
                    Membership::Invite | Membership::Knock => true,
                    Membership::Leave | Membership::Ban => {
                        self.filter.room.include_leave || (self.since.is_some() && m.position > since)
                    }
                    Membership::Join => m.position > since,
                })
                .map(|(room_id, _)| room_id.clone())
                .collect(),
            account_data: true,
            to_device: true,
            device_lists: self.since.is_some(),
            presence: true,
        }
    }

    async fn read_account_data_and_rooms(
        &self,
        news: &News,
        rooms: &UserRooms,
        response: &mut Response,
    ) -> Result<(), ApiError> {
        let mut of_rooms = std::collections::HashMap::<String, Vec<Json>>::new();
        if news.account_data {
            let after = if self.full_state { 0 } else { self.since.unwrap_or(0) };
            let entries = self
                .hs
                .store
                .account_data_changes(self.user_id.as_str(), after, self.now)
                .await?;
            let mut push_rules = self.since.is_none() || self.full_state;
            for entry in entries {
                if entry.room_id.is_empty() && entry.r#type == PUSH_RULES {
                    push_rules = true;
                } else if entry.room_id.is_empty() {
                    if self.filter.account_data.admits_type(&entry.r#type) {
                        response
                            .account_data
                            .events
                            .push(account_data_event(&entry.r#type, &entry.content)?);
                    }
                } else if self.filter.room.account_data.admits_type(&entry.r#type) {
                    let event = account_data_event(&entry.r#type, &entry.content)?;
                    of_rooms.entry(entry.room_id).or_default().push(event);
                }
            }
            if push_rules && self.filter.account_data.admits_type(PUSH_RULES) {
                // Sent with today's defaults, also to users who never changed a rule.
                let content = self.hs.push_rules_content(&self.user_id).await?;
                response
                    .account_data
                    .events
                    .push(account_data_event(PUSH_RULES, content.get())?);
            }
            if self.filter.account_data.is_closed() {
                response.account_data.events.clear();
            }
        }
        self.read_rooms(news, rooms, &mut of_rooms, response).await
    }

    async fn read_presence(&self, rooms: &UserRooms, response: &mut Response) -> Result<(), ApiError> {
        const TYPE: &str = "m.presence";
        let filter = &self.filter.presence;
        if filter.is_closed() || !filter.admits_type(TYPE) {
            return Ok(());
        }
        let since = self.since.filter(|_| !self.full_state);
        let mut heard = self.hs.presence_news(&self.user_id, rooms, since, self.now).await?;
        heard.retain(|(user_id, _)| filter.admits_sender(user_id));
        for (sender, content) in heard {
            let event = serde_json::json!({ "type": TYPE, "sender": sender, "content": content });
            let event = serde_json::value::to_raw_value(&event).map_err(ApiError::internal)?;
            response.presence.events.push(event.into());
        }
        Ok(())
    }

    /// Adds the messages for the device; answers the position up to which they are delivered with this answer.
    async fn read_to_device(&self, since: i64, response: &mut Response) -> Result<i64, ApiError> {
        let messages = self
            .hs
            .devices
            .to_device(&self.user_id, &self.device.1, since, self.now, TO_DEVICE_LIMIT)
            .await?;
        let full = messages.len() >= usize::try_from(TO_DEVICE_LIMIT).unwrap_or(usize::MAX);
        let delivered = match messages.last() {
            Some((position, _)) if full => *position,
            _ => self.now,
        };
        for (_, event) in messages {
            let event = super::account_data::raw(event)?;
            response.to_device.events.push(event.into());
        }
        Ok(delivered)
    }
}

fn account_data_event(event_type: &str, content: &str) -> Result<Json, ApiError> {
    let event_type = serde_json::to_string(event_type).map_err(ApiError::internal)?;
    let event = format!(r#"{{"type":{event_type},"content":{content}}}"#);
    Ok(super::account_data::raw(event)?.into())
}

impl From<Vec<Box<serde_json::value::RawValue>>> for Events {
    fn from(events: Vec<Box<serde_json::value::RawValue>>) -> Self {
        events.into_iter().map(Json::from).collect::<Vec<_>>().into()
    }
}
