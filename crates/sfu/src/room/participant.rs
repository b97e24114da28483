//! One participant: who it is, what it may do, its connections and what it publishes and receives.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use credentials::livekit::Claims;
use livekit_protocol::{
    ClientInfo, ConnectionQuality, ParticipantInfo, ParticipantPermission, TrackInfo, TrackSource, participant_info,
    signal_response,
};
use slab::Slab;

use super::{
    ConnectionId,
    dual::Offering,
    forwarding::{IncomingMedia, OutgoingMedia},
    negotiation::Slots,
    subscription::Subscription,
};
use crate::{
    clock,
    sdp::Description,
    signal::{join::JoinParameters, outbound::Outbound},
    transport::{ChannelId, ConnectionKey, IceCredentials, PeerTransport, Registration},
};

/// What a client may do, from its token.
#[derive(Clone, Debug)]
pub(crate) struct Permission {
    pub(crate) subscribe: bool,
    pub(crate) publish: bool,
    pub(crate) publish_data: bool,
    /// Empty means every source.
    pub(crate) sources: Vec<TrackSource>,
    pub(crate) update_metadata: bool,
    pub(crate) hidden: bool,
}

impl Permission {
    fn of(claims: &Claims) -> Self {
        let grant = &claims.video;
        Self {
            subscribe: grant.may_subscribe(),
            publish: grant.may_publish(),
            publish_data: grant.may_publish_data(),
            sources: grant
                .can_publish_sources
                .iter()
                .filter_map(|source| TrackSource::from_str_name(&source.to_ascii_uppercase()))
                .collect(),
            update_metadata: grant.may_update_own_metadata(),
            hidden: grant.hidden,
        }
    }

    pub(crate) fn may_publish_source(&self, source: TrackSource) -> bool {
        self.publish && (self.sources.is_empty() || self.sources.contains(&source))
    }

    fn message(&self) -> ParticipantPermission {
        ParticipantPermission {
            can_subscribe: self.subscribe,
            can_publish: self.publish,
            can_publish_data: self.publish_data,
            can_publish_sources: self.sources.iter().map(|source| *source as i32).collect(),
            hidden: self.hidden,
            can_update_metadata: self.update_metadata,
            ..ParticipantPermission::default()
        }
    }
}

/// The signalling connection that speaks for a participant at present.
#[derive(Debug)]
pub(crate) struct Signal {
    pub(crate) connection: ConnectionId,
    pub(crate) outbound: Outbound,
}

/// One WebRTC connection of a participant with what was negotiated on it.
pub(crate) struct Peer {
    pub(crate) transport: PeerTransport,
    pub(crate) incoming: IncomingMedia,
    pub(crate) outgoing: OutgoingMedia,
    /// The number by which the sockets know it.
    pub(crate) number: Option<ConnectionKey>,
    pub(crate) ice_lite: bool,
    /// The last description of the client.
    pub(crate) remote: Option<Description>,
    pub(crate) slots: Slots,
    /// `o=` line of our descriptions.
    pub(crate) session_id: u64,
    pub(crate) version: u64,
    /// Names under which the transport is known to the sockets; more than one after ICE restarts.
    pub(crate) registered: Vec<Registration>,
    /// Offers of ours, where the server offers.
    pub(crate) offering: Offering,
    /// Our credentials of the ICE session that the last offer begins.
    pub(crate) next_local: Option<IceCredentials>,
    /// When the client was last asked for sections.
    pub(crate) asked_at: Option<Instant>,
    pub(crate) reliable: Option<ChannelId>,
    pub(crate) lossy: Option<ChannelId>,
    /// When the transport's timers are due, as noted in the room's queue.
    pub(crate) wake: Option<Instant>,
    /// Noted as having something to send.
    pub(crate) dirty: bool,
    /// Count of datagrams taken as authentic at the last look, and when it last rose.
    pub(crate) heard: (u64, Instant),
}

impl Peer {
    /// Datagrams taken as authentic so far.
    pub(crate) fn authentic(&self) -> u64 {
        let stats = self.transport.stats();
        stats
            .datagrams_in
            .saturating_sub(stats.dropped_in + stats.not_authentic + stats.replayed)
    }
}

/// State of a participant towards the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Answered, the media connection does not stand yet.
    Joined,
    /// The media connection stands.
    Active,
}

pub(crate) struct Participant {
    pub(crate) key: usize,
    pub(crate) sid: String,
    pub(crate) identity: String,
    pub(crate) name: String,
    pub(crate) metadata: String,
    pub(crate) attributes: HashMap<String, String>,
    pub(crate) permission: Permission,
    pub(crate) claims: Claims,
    pub(crate) client: ClientInfo,
    pub(crate) single_connection: bool,
    pub(crate) auto_subscribe: bool,
    pub(crate) allow_pause: bool,
    pub(crate) disable_ice_lite: bool,
    pub(crate) joined_at_ms: i64,
    pub(crate) joined_at: Instant,
    pub(crate) stage: Stage,
    /// Rises with every change that others are told.
    pub(crate) version: u32,
    pub(crate) signal: Option<Signal>,
    /// When the signalling connection was lost without a leave.
    pub(crate) signal_lost: Option<Instant>,
    /// When a media connection ended, by the client's wish or by a fault.
    pub(crate) media_failed: Option<Instant>,
    /// When the media connection was found dead while signalling lived and a resume was asked for.
    pub(crate) resume_asked: Option<Instant>,
    /// The connection on which the client offers.
    pub(crate) publisher: Option<Peer>,
    /// The connection on which the server offers, where the client has two.
    pub(crate) subscriber: Option<Peer>,
    /// Keys of what it publishes, announced or not.
    pub(crate) publications: Vec<usize>,
    pub(crate) subscriptions: Slab<Subscription>,
    /// Subscription by publication.
    pub(crate) subscribed: HashMap<usize, usize>,
    /// Publications the client said it does not want, or does want, apart from the automatic choice.
    pub(crate) wishes: HashMap<usize, bool>,
    pub(crate) quality: Option<ConnectionQuality>,
    /// Share of its packets that did not reach us in the last report, 0 to 1.
    pub(crate) uplink_loss: f64,
    /// Round trip to the client, where its reports told.
    pub(crate) round_trip: Option<Duration>,
    /// The loudness others were told, 0 for silence.
    pub(crate) told_level: f32,
    /// Sequence number of the last reliable data packet taken from it.
    pub(crate) last_reliable: u32,
    /// When the next token is due.
    pub(crate) token_due: Instant,
}

impl Participant {
    pub(crate) fn new(key: usize, claims: Claims, parameters: &JoinParameters, now: Instant) -> Self {
        let permission = Permission::of(&claims);
        let may_update = permission.update_metadata;
        let mut attributes: HashMap<String, String> = claims.attributes.clone().into_iter().collect();
        if may_update {
            attributes.extend(parameters.attributes.clone());
        }
        let metadata = if may_update && !parameters.metadata.is_empty() {
            parameters.metadata.clone()
        } else {
            claims.metadata.clone()
        };
        Self {
            key,
            sid: clock::sid("PA_"),
            identity: claims.identity.clone(),
            name: claims.name.clone(),
            metadata,
            attributes,
            permission,
            claims,
            client: parameters.client.clone(),
            single_connection: parameters.single_connection,
            auto_subscribe: parameters.auto_subscribe,
            allow_pause: parameters.allow_pause,
            disable_ice_lite: parameters.disable_ice_lite,
            joined_at_ms: clock::unix_millis(),
            joined_at: now,
            stage: Stage::Joined,
            version: 1,
            signal: None,
            signal_lost: None,
            media_failed: None,
            resume_asked: None,
            publisher: None,
            subscriber: None,
            publications: Vec::new(),
            subscriptions: Slab::new(),
            subscribed: HashMap::new(),
            wishes: HashMap::new(),
            quality: None,
            uplink_loss: 0.0,
            round_trip: None,
            told_level: 0.0,
            last_reliable: 0,
            token_due: now,
        }
    }

    /// Sends a message to the client, if its signalling lives. A client that does not take them is cut off, and may resume.
    pub(crate) fn send(&mut self, message: signal_response::Message) {
        if let Some(signal) = &self.signal
            && signal.outbound.try_send(message).is_err()
        {
            metrics::counter!("sfu_signal_overrun_total").increment(1);
            tracing::debug!(participant = %self.sid, "signalling connection does not keep up or is gone");
            self.signal = None;
        }
    }

    /// The connection on which the client receives.
    pub(crate) fn receiving(&mut self) -> Option<&mut Peer> {
        if self.single_connection {
            self.publisher.as_mut()
        } else {
            self.subscriber.as_mut()
        }
    }

    /// Every connection.
    pub(crate) fn peers(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.publisher.iter_mut().chain(&mut self.subscriber)
    }

    /// LiveKit's protocol version of the client.
    pub(crate) fn protocol(&self) -> i32 {
        self.client.protocol
    }

    pub(crate) fn is_firefox(&self) -> bool {
        self.client.browser.eq_ignore_ascii_case("firefox")
    }

    /// What others are told of it, with the tracks given.
    pub(crate) fn info(&self, tracks: Vec<TrackInfo>) -> ParticipantInfo {
        ParticipantInfo {
            sid: self.sid.clone(),
            identity: self.identity.clone(),
            state: match self.stage {
                Stage::Joined => participant_info::State::Joined,
                Stage::Active => participant_info::State::Active,
            } as i32,
            is_publisher: !tracks.is_empty(),
            tracks,
            metadata: self.metadata.clone(),
            joined_at: self.joined_at_ms / 1000,
            joined_at_ms: self.joined_at_ms,
            name: self.name.clone(),
            version: self.version,
            permission: Some(self.permission.message()),
            kind: participant_info::Kind::Standard as i32,
            attributes: self.attributes.clone(),
            client_protocol: self.client.client_protocol,
            capabilities: self.client.capabilities.clone(),
            ..ParticipantInfo::default()
        }
    }
}
