//! Account data as a stream: what a user sets is kept, announced to their own devices, and acted on where the server
//! itself is meant (ignored users).

use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use storage::account_data::{account_data, set_account_data};

use super::{Change, Streams};
use crate::{
    Homeserver,
    push::{IGNORED_USERS, PUSH_RULES, ruleset_json},
};

/// The largest content, in bytes.
const MAX_CONTENT_BYTES: usize = 1024 * 1024;
/// The most tags a room can have.
const MAX_TAGS: usize = 100;
/// The type of the read marker; set through its own endpoint only.
pub(crate) const FULLY_READ: &str = "m.fully_read";
/// The type that holds a room's tags.
pub(crate) const TAGS: &str = "m.tag";

/// Why account data was not set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountDataError {
    #[error("The type {0} is set through an endpoint of its own.")]
    Controlled(String),
    #[error("The content must be a JSON object.")]
    NotAnObject,
    #[error("The content is larger than {MAX_CONTENT_BYTES} bytes.")]
    TooLarge,
    #[error("A room can have {MAX_TAGS} tags.")]
    TooManyTags,
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Homeserver {
    /// Sets account data of a user, global or of a room.
    pub(crate) async fn set_account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
        content: &RawValue,
    ) -> Result<(), AccountDataError> {
        if event_type == FULLY_READ || (event_type == PUSH_RULES && room_id.is_none()) {
            return Err(AccountDataError::Controlled(event_type.to_owned()));
        }
        if content.get().len() > MAX_CONTENT_BYTES {
            return Err(AccountDataError::TooLarge);
        }
        if !content.get().trim_start().starts_with('{') {
            return Err(AccountDataError::NotAnObject);
        }
        self.sync
            .write_account_data(user_id, room_id, event_type, content.get().to_owned())
            .await?;
        if event_type == IGNORED_USERS && room_id.is_none() {
            self.push.ignored.set(user_id, content.get());
        }
        Ok(())
    }

    /// The content of a user's account data.
    pub(crate) async fn account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
    ) -> Result<Option<Box<RawValue>>, AccountDataError> {
        if event_type == PUSH_RULES && room_id.is_none() {
            return Ok(Some(self.push_rules_content(user_id).await?));
        }
        let room = room_id.map_or("", RoomId::as_str);
        let text = self.store.account_data(user_id.as_str(), room, event_type).await?;
        text.map(raw).transpose().map_err(AccountDataError::Storage)
    }

    /// The content of `m.push_rules`: kept rules over today's defaults.
    pub(crate) async fn push_rules_content(&self, user_id: &UserId) -> Result<Box<RawValue>, storage::Error> {
        let rules = self.push.ruleset(user_id).await?;
        let content = ruleset_json(&rules).map(|global| json!({ "global": global }).to_string());
        raw(content.map_err(|e| storage::Error::corrupt("account_data", e))?)
    }
}

/// Kept text as JSON.
pub(super) fn raw(text: String) -> Result<Box<RawValue>, storage::Error> {
    RawValue::from_string(text).map_err(|e| storage::Error::corrupt("account_data", e))
}

/// The content of `m.tag`.
#[derive(Debug, Default, Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Map<String, Value>,
}

impl Streams {
    /// Keeps and announces account data, whatever its type.
    pub(super) async fn write_account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
        content: String,
    ) -> Result<(), storage::Error> {
        let (user_id, event_type, notifier) = (user_id.to_owned(), event_type.to_owned(), self.notifier.clone());
        let room_id = room_id.map(ToOwned::to_owned);
        self.store
            .write_at(1, move |tx, position| {
                Box::pin(async move {
                    let room = room_id.as_ref().map_or("", |room_id| room_id.as_str());
                    set_account_data(tx, (user_id.as_str(), room, &event_type), &content, position).await?;
                    notifier.mark_user(
                        &user_id,
                        room_id.map_or(Change::AccountData, Change::RoomAccountData),
                        position,
                    );
                    Ok(())
                })
            })
            .await
    }

    /// The tags of a room.
    pub(crate) async fn tags(&self, user_id: &UserId, room_id: &RoomId) -> Result<Map<String, Value>, storage::Error> {
        let content = self
            .store
            .account_data(user_id.as_str(), room_id.as_str(), TAGS)
            .await?;
        Ok(read_tags(content.as_deref()))
    }

    /// Sets a tag (`Some`) or removes it (`None`).
    pub(crate) async fn set_tag(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        tag: &str,
        info: Option<Map<String, Value>>,
    ) -> Result<(), AccountDataError> {
        let _one = self.editing.lock().await;
        let (user, room, tag) = (user_id.to_owned(), room_id.to_owned(), tag.to_owned());
        let notifier = self.notifier.clone();
        self.store
            .write_at::<_, AccountDataError, _>(1, move |tx, position| {
                Box::pin(async move {
                    let key = (user.as_str(), room.as_str(), TAGS);
                    let mut tags = read_tags(account_data(tx, key).await?.as_deref());
                    match info {
                        Some(info) => drop(tags.insert(tag, Value::Object(info))),
                        None if tags.remove(&tag).is_none() => return Ok(()),
                        None => {}
                    }
                    if tags.len() > MAX_TAGS {
                        return Err(AccountDataError::TooManyTags);
                    }
                    let content = json!({ "tags": tags }).to_string();
                    if content.len() > MAX_CONTENT_BYTES {
                        return Err(AccountDataError::TooLarge);
                    }
                    set_account_data(tx, key, &content, position).await?;
                    notifier.mark_user(&user, Change::RoomAccountData(room), position);
                    Ok(())
                })
            })
            .await
    }
}

fn read_tags(content: Option<&str>) -> Map<String, Value> {
    content
        .and_then(|text| serde_json::from_str::<Tags>(text).ok())
        .unwrap_or_default()
        .tags
}
