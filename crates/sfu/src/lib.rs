//! A selective forwarding unit that speaks LiveKit's client protocol. Knows no Matrix and no database.
//!
//! [`start`] opens the media sockets and returns a [`SfuHandle`]: the router for the signalling paths, and what a process
//! may ask of calls. What happens in calls is told through [`SfuEvent`]s.

mod candidates;
mod clock;
mod config;
mod handle;
mod http;
pub mod media;
mod probe;
mod room;
pub mod sdp;
pub mod signal;
pub mod transport;

use std::{fmt, sync::Arc};

use credentials::livekit::ApiKey;
use fabric::switch::Switch;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use handle::{MediaAddresses, SfuHandle, StartError, start};
pub use probe::{Probed, Protocol};

/// A STUN or TURN server offered to a client.
#[derive(Clone, PartialEq, Eq)]
pub struct IceServer {
    /// `stun:`, `turn:` and `turns:` addresses.
    pub urls: Vec<String>,
    /// TURN user name.
    pub username: String,
    /// TURN password.
    pub credential: String,
}

impl fmt::Debug for IceServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IceServer")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// Mints the ICE servers of one participant: room and identity.
pub type IceServers = Arc<dyn Fn(&str, &str) -> Vec<IceServer> + Send + Sync>;

/// Whether the holder of a valid token may enter at this moment: room and identity. A token says what was true when it
/// was issued.
pub type Admission = Arc<dyn Fn(String, String) -> BoxFuture<'static, Admitted> + Send + Sync>;

/// The answer of an [`Admission`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Let in.
    Yes,
    /// Turned away.
    No,
    /// Cannot be told now: the client is asked to try again.
    Unknown,
}

/// What the SFU is given by the process besides its configuration.
#[derive(Clone)]
pub struct Surroundings {
    /// Verifies and refreshes access tokens.
    pub key: ApiKey,
    /// Reaches the clients of the relay in the same process.
    pub switch: Switch,
    /// Hears what happens.
    pub events: mpsc::Sender<SfuEvent>,
    /// Mints TURN credentials for clients.
    pub ice_servers: IceServers,
    /// Asked about everybody who comes with a valid token.
    pub admission: Admission,
    /// Ends everything.
    pub shutdown: CancellationToken,
}

/// Why a participant is no longer in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// The client said so.
    Left,
    /// The media connection died, or never came to stand, or the client broke the protocol.
    MediaGone,
    /// Removed through [`SfuHandle::remove_participant`].
    Removed,
    /// The same identity joined anew.
    Duplicate,
    /// The room was closed through [`SfuHandle::close_room`].
    RoomClosed,
    /// The process stops.
    Shutdown,
}

/// What happened in a call. Per participant in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SfuEvent {
    /// A participant was let in.
    ParticipantJoined {
        /// Room name (alias).
        room: String,
        /// Participant identity.
        identity: String,
    },
    /// A participant is gone for everybody.
    ParticipantLeft {
        /// Room name (alias).
        room: String,
        /// Participant identity.
        identity: String,
        /// Why.
        reason: LeaveReason,
    },
}

/// A participant as the process may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantSummary {
    /// Identity from the token.
    pub identity: String,
    /// Session identifier, `PA_…`.
    pub sid: String,
    /// Whether the media connection stands.
    pub active: bool,
    /// Milliseconds since the epoch.
    pub joined_at_ms: i64,
    /// Identifiers of the published tracks.
    pub tracks: Vec<String>,
}

/// What every room works with.
pub(crate) struct Environment {
    pub(crate) config: Arc<Config>,
    pub(crate) key: ApiKey,
    pub(crate) certificate: transport::Certificate,
    pub(crate) mux: transport::Mux,
    pub(crate) candidates: RwLock<Vec<String>>,
    pub(crate) ice_servers: IceServers,
    /// Whose tokens are over.
    pub(crate) removals: room::removals::Removals,
    pub(crate) events: mpsc::Sender<SfuEvent>,
    pub(crate) shutdown: CancellationToken,
}
