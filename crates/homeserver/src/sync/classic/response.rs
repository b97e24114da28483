//! The answer of `GET /sync`, put together from JSON that exists already.

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A piece of JSON, possibly shared with other answers.
#[derive(Debug, Clone)]
pub(crate) struct Json(Arc<RawValue>);

impl From<Box<RawValue>> for Json {
    fn from(raw: Box<RawValue>) -> Self {
        Self(raw.into())
    }
}

impl From<Arc<RawValue>> for Json {
    fn from(raw: Arc<RawValue>) -> Self {
        Self(raw)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A list of events.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Events {
    pub(crate) events: Vec<Json>,
}

impl Events {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

impl From<Vec<Json>> for Events {
    fn from(events: Vec<Json>) -> Self {
        Self { events }
    }
}

/// The whole answer.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Response {
    pub(crate) next_batch: String,
    #[serde(skip_serializing_if = "Rooms::is_empty")]
    pub(crate) rooms: Rooms,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) account_data: Events,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) presence: Events,
    #[serde(skip_serializing_if = "Events::is_empty")]
    pub(crate) to_device: Events,
    #[serde(skip_serializing_if = "DeviceLists::is_empty")]
    pub(crate) device_lists: DeviceLists,
    pub(crate) device_one_time_keys_count: BTreeMap<String, u64>,
    pub(crate) device_unused_fallback_key_types: Vec<String>,
}

impl Response {
    /// Whether nothing happened that a sleeping client would have to be woken for.
    pub(crate) fn is_empty(&self) -> bool {
        self.rooms.is_empty()
            && self.account_data.is_empty()
            && self.presence.is_empty()
            && self.to_device.is_empty()
            && self.device_lists.is_empty()
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Rooms {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) join: BTreeMap<OwnedRoomId, JoinedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) invite: BTreeMap<OwnedRoomId, InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) knock: BTreeMap<OwnedRoomId, KnockedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) leave: BTreeMap<OwnedRoomId, LeftRoom>,
}

impl Rooms {
    fn is_empty(&self) -> bool {
        self.join.is_empty() && self.invite.is_empty() && self.knock.is_empty() && self.leave.is_empty()
    }
}

/// Room state, under the name that the request's parameter calls for.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StateSection {
    /// Before the timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Events>,
    /// After the timeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state_after: Option<Events>,
    /// After the timeline, by the name of MSC4222 before it was merged.
    #[serde(rename = "org.matrix.msc4222.state_after", skip_serializing_if = "Option::is_none")]
    pub(crate) unstable_state_after: Option<Events>,
}

impl StateSection {
    fn is_empty(&self) -> bool {
        [&self.state, &self.state_after, &self.unstable_state_after]
            .into_iter()
            .flatten()
            .all(Events::is_empty)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct JoinedRoom {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) summary: Option<Summary>,
    #[serde(flatten)]
    pub(crate) state: StateSection,
    pub(crate) timeline: Timeline,
    pub(crate) ephemeral: Events,
    pub(crate) account_data: Events,
    pub(crate) unread_notifications: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unread_thread_notifications: Option<BTreeMap<String, Counts>>,
}

impl JoinedRoom {
    /// Whether it brings nothing but counts.
    pub(crate) fn is_quiet(&self) -> bool {
        self.summary.is_none()
            && self.state.is_empty()
            && self.timeline.events.is_empty()
            && !self.timeline.limited
            && self.ephemeral.is_empty()
            && self.account_data.is_empty()
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    pub(crate) heroes: Option<Vec<OwnedUserId>>,
    #[serde(rename = "m.joined_member_count")]
    pub(crate) joined: usize,
    #[serde(rename = "m.invited_member_count")]
    pub(crate) invited: usize,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Timeline {
    pub(crate) events: Vec<Json>,
    pub(crate) limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prev_batch: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) highlight_count: i64,
    pub(crate) notification_count: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct InvitedRoom {
    pub(crate) invite_state: Events,
}

#[derive(Debug, Serialize)]
pub(crate) struct KnockedRoom {
    pub(crate) knock_state: Events,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeftRoom {
    #[serde(flatten)]
    pub(crate) state: StateSection,
    pub(crate) timeline: Timeline,
    pub(crate) account_data: Events,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct DeviceLists {
    pub(crate) changed: Vec<OwnedUserId>,
    pub(crate) left: Vec<OwnedUserId>,
}

impl DeviceLists {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// The content of `m.receipt`: event, then type, then user.
pub(crate) type ReceiptContent<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeMap<&'a str, ReceiptInfo<'a>>>>;

#[derive(Debug, Serialize)]
pub(crate) struct ReceiptInfo<'a> {
    pub(crate) ts: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) thread_id: &'a str,
}

/// Ids of member events, for the memory of what a device has been sent.
pub(crate) type SentMember = (OwnedUserId, OwnedEventId);
