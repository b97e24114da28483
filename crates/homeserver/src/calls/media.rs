//! The boundary to the media plane: what the homeserver asks of it, and what it hears.

use std::sync::Arc;

use futures_util::future::BoxFuture;

/// What the homeserver asks of the media plane. A fact of another crate and a function call, where
/// others have a network, a token and a webhook.
pub trait MediaControl: Send + Sync {
    /// Opens the SFU room, so that participants with a token may enter it.
    fn open_room(&self, sfu_room: &str);

    /// Whether this participant is in the SFU room at this moment.
    fn is_present(&self, sfu_room: &str, identity: &str) -> bool;

    /// Ends a participant's session.
    fn remove_participant<'a>(&'a self, sfu_room: &'a str, identity: &'a str) -> BoxFuture<'a, ()>;

    /// The users who have allocations on the relay at this moment.
    fn allocation_holders(&self) -> BoxFuture<'_, Vec<String>>;

    /// Ends every allocation of a user on the relay, and the credentials that expire at `until` (seconds since the Unix
    /// epoch) or earlier.
    fn revoke_relay<'a>(&'a self, user_id: &'a str, until: u64) -> BoxFuture<'a, ()>;

    /// Ends every allocation of a user on the relay.
    fn close_allocations<'a>(&'a self, user_id: &'a str) -> BoxFuture<'a, ()>;
}

/// What carries media in this process, and where clients find it.
#[derive(Clone)]
pub struct MediaPlane {
    /// The hold on it.
    pub control: Arc<dyn MediaControl>,
    /// `turn:` URIs of the relay; empty when it is off.
    pub turn_uris: Vec<String>,
    /// The SFU; `None` when it is off.
    pub sfu: Option<SfuUrls>,
}

/// Where clients find the SFU.
#[derive(Debug, Clone)]
pub struct SfuUrls {
    /// The authorisation service: published in room events, so it must stay the same. No trailing slash.
    pub service_url: String,
    /// The signalling address, `ws://` or `wss://`.
    pub websocket_url: String,
}

impl std::fmt::Debug for MediaPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MediaPlane")
            .field("turn_uris", &self.turn_uris)
            .field("sfu", &self.sfu)
            .finish_non_exhaustive()
    }
}

/// What the media plane says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaEvent {
    /// A participant's media is connected.
    Joined {
        /// The SFU's name of the call.
        sfu_room: String,
        /// The participant's identity there.
        identity: String,
    },
    /// A participant is gone.
    Left {
        /// The SFU's name of the call.
        sfu_room: String,
        /// The participant's identity there.
        identity: String,
        /// Why.
        reason: PartingReason,
    },
}

/// Why a participant left the SFU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartingReason {
    /// The client said so.
    Left,
    /// Its media and its signalling went silent.
    MediaGone,
    /// It was removed.
    Removed,
    /// The same identity came in anew and took its place.
    Replaced,
    /// The process stops.
    Shutdown,
}
