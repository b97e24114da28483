//! A room: its participants, what they publish and who receives it. One task owns all of it ([`actor`]); everybody else
//! sends [`Command`]s over a bounded channel.
//!
//! Must not know HTTP or Matrix. Knows wire formats only through `sdp`, `transport`, `media` and `livekit_protocol`.

pub(crate) mod registry;

pub(crate) mod actor;
mod data;
mod demand;
mod departure;
mod dual;
mod forwarding;
mod negotiation;
mod offers;
mod participant;
mod publication;
mod publishing;
pub(crate) mod removals;
mod signalling;
mod subscription;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use credentials::livekit::Claims;
use livekit_protocol::{DisconnectReason, signal_request};
use tokio::sync::oneshot;

pub(crate) use registry::{RoomLink, Rooms};

use crate::{
    ParticipantSummary,
    signal::{join::JoinParameters, outbound::Outbound},
};

/// Names one signalling connection within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A client that was let in by token and now asks the room for its place.
#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) connection: ConnectionId,
    pub(crate) claims: Claims,
    pub(crate) parameters: JoinParameters,
    pub(crate) outbound: Outbound,
}

/// What a room is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// A client asks to join or to resume.
    Join(Box<Join>),
    /// A client's request.
    Signal {
        connection: ConnectionId,
        message: Box<signal_request::Message>,
    },
    /// A signalling connection ended.
    Closed { connection: ConnectionId },
    /// Remove the participant of this connection, which does not keep to the limits.
    Expel { connection: ConnectionId },
    /// Remove the participant of this identity.
    Remove { identity: String, reason: DisconnectReason },
    /// Who is here.
    Participants {
        reply: oneshot::Sender<Vec<ParticipantSummary>>,
    },
    /// End the room, telling everybody the reason.
    Close { reason: DisconnectReason },
}
