//! Joining a room and what clients ask for afterwards, request by request. Replies as LiveKit's server does where clients
//! depend on it; what is not built is answered with the protocol's own refusal.

use std::time::Instant;

use livekit_protocol::{
    AddTrackRequest, Codec as CodecMessage, DisconnectReason, JoinResponse, LeaveRequest, MuteTrackRequest, Pong,
    ReconnectResponse, RequestResponse, Room as RoomInfo, ServerInfo, SessionDescription, SignalTarget,
    TrackPublishedResponse, TrackSource, TrickleRequest, UpdateLocalAudioTrack, UpdateLocalVideoTrack,
    UpdateParticipantMetadata,
    leave_request::Action,
    request_response::{Reason, Request},
    signal_request::Message as SignalIn,
    signal_response::Message as SignalOut,
};
use tracing::{debug, info};

use super::{
    ConnectionId, Join,
    actor::Room,
    participant::{Participant, Signal},
    publication::{MAX_PUBLICATIONS, Publication, Unacceptable},
};
use crate::{
    LeaveReason, SfuEvent, clock,
    sdp::{Kind, codecs},
    signal::{PROTOCOL_VERSION, SERVER_VERSION, join::check_metadata},
};

/// Seconds between the client's pings, and without any message after which it gives up. Zero would switch them off.
const PING_INTERVAL_SECONDS: i32 = 5;
const PING_TIMEOUT_SECONDS: i32 = 15;

pub(crate) fn server_info() -> ServerInfo {
    ServerInfo {
        version: SERVER_VERSION.to_owned(),
        protocol: PROTOCOL_VERSION,
        node_id: "longhouse".to_owned(),
        ..ServerInfo::default()
    }
}

/// A leave message; `can_reconnect` is what clients before protocol 13 read.
pub(crate) fn leave(reason: DisconnectReason, action: Action) -> SignalOut {
    SignalOut::Leave(LeaveRequest {
        can_reconnect: action != Action::Disconnect,
        reason: reason as i32,
        action: action as i32,
        regions: None,
    })
}

impl Room {
    /// A client that its token lets in.
    pub(crate) fn join(&mut self, join: Join, now: Instant) {
        if self.environment.removals.ended(&join.claims) {
            // Removed between the door and here.
            let _ = join
                .outbound
                .try_send(leave(DisconnectReason::ParticipantRemoved, Action::Disconnect));
            return;
        }
        if join.parameters.resume.is_some() {
            self.resume(join, now);
            return;
        }
        let existing = self.by_identity.get(&join.claims.identity).copied();
        let limit = self.environment.config.max_participants_per_room as usize;
        if existing.is_none() && limit > 0 && self.participants.len() >= limit {
            let _ = join
                .outbound
                .try_send(leave(DisconnectReason::JoinFailure, Action::Disconnect));
            return;
        }
        if let Some(existing) = existing {
            // The newer session wins: clients rely on it after a reload.
            let farewell = leave(DisconnectReason::DuplicateIdentity, Action::Disconnect);
            self.remove(existing, LeaveReason::Duplicate, Some(farewell), now);
        }
        let Join {
            connection,
            claims,
            mut parameters,
            outbound,
        } = join;
        let entry = self.participants.vacant_entry();
        let key = entry.key();
        let mut participant = Participant::new(key, claims, &parameters, now);
        participant.signal = Some(Signal { connection, outbound });
        participant.token_due = now + super::departure::TOKEN_INTERVAL;
        info!(room = %self.name, participant = %participant.sid, identity = %participant.identity,
            protocol = participant.protocol(), single_connection = participant.single_connection, "participant joined");
        self.by_connection.insert(connection, key);
        self.by_identity.insert(participant.identity.clone(), key);
        self.members.lock().insert(participant.identity.clone());
        entry.insert(participant);
        self.emptied = None;
        self.ever_joined = true;
        metrics::gauge!("sfu_participants").increment(1.0);
        self.event(SfuEvent::ParticipantJoined {
            room: self.name.clone(),
            identity: self.participants[key].identity.clone(),
        });

        let response = self.join_response(key);
        self.participants[key].send(SignalOut::Join(response));
        self.refresh_token(key, now);
        self.broadcast_update(key);
        if !self.participants[key].single_connection {
            self.open_subscriber(key, now);
        }
        for request in std::mem::take(&mut parameters.add_tracks) {
            self.add_track(key, request, now);
        }
        if let Some(offer) = parameters.offer.take() {
            self.offer(key, offer, now);
        }
    }

    fn join_response(&self, key: usize) -> JoinResponse {
        let participant = &self.participants[key];
        let others = self.participants.iter().filter(|(other, _)| *other != key);
        JoinResponse {
            room: Some(self.info()),
            participant: Some(self.participant_info(key)),
            other_participants: others
                .filter(|(_, other)| !other.permission.hidden)
                .map(|(other, _)| self.participant_info(other))
                .collect(),
            server_version: SERVER_VERSION.to_owned(),
            ice_servers: self.ice_servers(&participant.identity),
            subscriber_primary: !participant.single_connection && participant.permission.subscribe,
            ping_timeout: PING_TIMEOUT_SECONDS,
            ping_interval: PING_INTERVAL_SECONDS,
            server_info: Some(server_info()),
            // Nothing is ever injected into a track, so no trailer marks it.
            sif_trailer: Vec::new(),
            // Non-empty lets clients add a track and negotiate at once; the first is their fallback.
            enabled_publish_codecs: codecs::CODECS
                .iter()
                .map(|(_, mime)| CodecMessage {
                    mime: (*mime).to_owned(),
                    ..CodecMessage::default()
                })
                .collect(),
            ..JoinResponse::default()
        }
    }

    pub(crate) fn info(&self) -> RoomInfo {
        let config = &self.environment.config;
        RoomInfo {
            sid: self.sid.clone(),
            name: self.name.clone(),
            empty_timeout: config.empty_timeout_seconds,
            departure_timeout: config.departure_timeout_seconds,
            max_participants: config.max_participants_per_room,
            creation_time: self.created_ms / 1000,
            creation_time_ms: self.created_ms,
            enabled_codecs: codecs::CODECS
                .iter()
                .map(|(_, mime)| CodecMessage {
                    mime: (*mime).to_owned(),
                    ..CodecMessage::default()
                })
                .collect(),
            num_participants: self.participants.len() as u32,
            num_publishers: self
                .participants
                .iter()
                .filter(|(_, p)| !p.publications.is_empty())
                .count() as u32,
            ..RoomInfo::default()
        }
    }

    /// A client that lost its signalling connection and wants to go on with the same media connection.
    fn resume(&mut self, join: Join, now: Instant) {
        let sid = join.parameters.resume.as_deref().unwrap_or_default();
        let found = self.by_identity.get(&join.claims.identity).copied();
        // Clients from protocol 11 on may name no session and are found by identity.
        let found = found.filter(|key| sid.is_empty() || self.participants[*key].sid == sid);
        let Some(key) = found else {
            // The first message must be this or `reconnect`; clients drop everything else.
            let _ = join
                .outbound
                .try_send(leave(DisconnectReason::StateMismatch, Action::Reconnect));
            return;
        };
        debug!(room = %self.name, participant = %self.participants[key].sid, "participant resumes");
        metrics::counter!("sfu_resumes_total").increment(1);
        let connection = join.connection;
        let ice_servers = self.ice_servers(&join.claims.identity);
        let participant = &mut self.participants[key];
        if let Some(old) = participant.signal.take() {
            self.by_connection.remove(&old.connection);
        }
        self.by_connection.insert(join.connection, key);
        participant.signal = Some(Signal {
            connection: join.connection,
            outbound: join.outbound,
        });
        participant.signal_lost = None;
        participant.resume_asked = None;
        let last_message_seq = participant.last_reliable;
        for peer in participant.peers() {
            peer.heard.1 = now;
            peer.slots.forget_requests();
        }
        participant.send(SignalOut::Reconnect(ReconnectResponse {
            ice_servers,
            client_configuration: None,
            server_info: Some(server_info()),
            last_message_seq,
        }));
        // What happened meanwhile: everybody's present state, and those who are gone.
        let present: Vec<_> = self
            .participants
            .iter()
            .filter(|(_, other)| !other.permission.hidden)
            .map(|(other, _)| self.participant_info(other))
            .collect();
        let gone = self
            .recently_gone
            .iter()
            .map(|(_, info)| info.clone())
            .collect::<Vec<_>>();
        self.participants[key].send(super::actor::update(present.into_iter().chain(gone).collect()));
        self.refresh_token(key, now);
        if let Some(state) = join.parameters.sync_state {
            self.sync_state(key, &state, now);
        }
        if let Some(offer) = join.parameters.offer {
            self.offer(key, offer, now);
            // An offer that cannot be taken ends the stay.
            if self.by_connection.get(&connection) != Some(&key) {
                return;
            }
        }
        self.restart_subscriber(key, now);
        self.request_sections(key, now);
    }

    /// One request of a client.
    pub(crate) fn signal(&mut self, connection: ConnectionId, message: SignalIn, now: Instant) {
        let Some(&key) = self.by_connection.get(&connection) else {
            return;
        };
        match message {
            SignalIn::Offer(offer) => self.offer(key, offer, now),
            SignalIn::Answer(answer) => self.answer(key, &answer, now),
            SignalIn::Trickle(trickle) => self.trickle(key, &trickle, now),
            SignalIn::AddTrack(request) => self.add_track(key, request, now),
            SignalIn::Mute(request) => self.mute(key, &request),
            SignalIn::Subscription(request) => self.change_subscriptions(key, &request, now),
            SignalIn::TrackSetting(settings) => self.track_settings(key, &settings, now),
            SignalIn::Leave(_) => self.remove(key, LeaveReason::Left, None, now),
            SignalIn::SyncState(state) => self.sync_state(key, &state, now),
            SignalIn::Ping(_) => self.participants[key].send(SignalOut::Pong(clock::unix_millis())),
            SignalIn::PingReq(ping) => self.participants[key].send(SignalOut::PongResp(Pong {
                last_ping_timestamp: ping.timestamp,
                timestamp: clock::unix_millis(),
            })),
            SignalIn::UpdateMetadata(update) => self.update_metadata(key, update),
            SignalIn::UpdateAudioTrack(update) => self.update_audio_track(key, update),
            SignalIn::UpdateVideoTrack(update) => self.update_video_track(key, &update),
            SignalIn::PublishDataTrackRequest(_)
            | SignalIn::UnpublishDataTrackRequest(_)
            | SignalIn::StoreDataBlobRequest(_)
            | SignalIn::GetDataBlobRequest(_) => {
                self.refuse(key, 0, Reason::UnsupportedType, "data tracks are not supported", None);
            }
            // Every participant may receive everything; what the client prefers to allow is its own matter.
            _ => debug!(participant = %self.participants[key].sid, "request without effect"),
        }
    }

    fn refuse(&mut self, key: usize, request_id: u32, reason: Reason, message: &str, request: Option<Request>) {
        self.participants[key].send(SignalOut::RequestResponse(RequestResponse {
            request_id,
            reason: reason as i32,
            message: message.to_owned(),
            request,
        }));
    }

    fn trickle(&mut self, key: usize, trickle: &TrickleRequest, now: Instant) {
        #[derive(serde::Deserialize)]
        struct CandidateInit {
            candidate: String,
        }
        if trickle.candidate_init.len() > 4096 {
            return;
        }
        let Ok(init) = serde_json::from_str::<CandidateInit>(&trickle.candidate_init) else {
            return;
        };
        let Some(address) = crate::sdp::candidate_address(&init.candidate) else {
            return;
        };
        let participant = &mut self.participants[key];
        let peer = if trickle.target == SignalTarget::Subscriber as i32 && !participant.single_connection {
            participant.subscriber.as_mut()
        } else {
            participant.publisher.as_mut()
        };
        if let Some(peer) = peer {
            peer.transport.add_remote_candidate(now, address);
            self.touch_all(key);
        }
    }

    pub(crate) fn add_track(&mut self, key: usize, request: AddTrackRequest, now: Instant) {
        let source = TrackSource::try_from(request.source).unwrap_or(TrackSource::Unknown);
        let participant = &self.participants[key];
        let refusal = if !participant.permission.may_publish_source(source) {
            Some((Reason::NotAllowed, "publishing this source is not permitted"))
        } else if participant.publications.len() >= MAX_PUBLICATIONS {
            Some((Reason::LimitExceeded, "too many tracks"))
        } else if !request.sid.is_empty() {
            // A second codec for an existing track: one codec per track is forwarded.
            Some((Reason::UnsupportedType, "backup codecs are not supported"))
        } else {
            None
        };
        let refused = |room: &mut Self, reason, message| {
            room.refuse(key, 0, reason, message, Some(Request::AddTrack(request.clone())));
        };
        if let Some((reason, message)) = refusal {
            refused(self, reason, message);
            return;
        }
        // The same track announced twice is answered twice with the same identifier.
        let known = participant.publications.iter().copied().find(|publication| {
            let publication = &self.publications[*publication];
            !publication.is_announced() && publication.cids.first() == Some(&request.cid)
        });
        let publication = match known {
            Some(known) => known,
            None => match Publication::new(key, &request) {
                Ok(publication) => {
                    let sid = publication.sid().to_owned();
                    let publication = self.publications.insert(publication);
                    self.by_track_sid.insert(sid, publication);
                    self.participants[key].publications.push(publication);
                    publication
                }
                Err(Unacceptable::Type) => return refused(self, Reason::UnsupportedType, "neither audio nor video"),
                Err(Unacceptable::Text) => {
                    return refused(self, Reason::LimitExceeded, "description too long or malformed");
                }
            },
        };
        let track = Some(self.publications[publication].info.clone());
        let cid = request.cid.clone();
        self.participants[key].send(SignalOut::TrackPublished(TrackPublishedResponse { cid, track }));
        // The offer may have come first.
        self.bind_offered(key, now);
    }

    fn mute(&mut self, key: usize, request: &MuteTrackRequest) {
        let Some(&publication) = self.by_track_sid.get(&request.sid) else {
            return;
        };
        if self.publications[publication].owner != key || self.publications[publication].info.muted == request.muted {
            return;
        }
        self.set_muted(publication, request.muted);
        self.broadcast_update(key);
    }

    fn update_metadata(&mut self, key: usize, update: UpdateParticipantMetadata) {
        if !self.participants[key].permission.update_metadata {
            let id = update.request_id;
            return self.refuse(
                key,
                id,
                Reason::NotAllowed,
                "the token does not permit changing own metadata",
                None,
            );
        }
        // What counts is the outcome: many small updates must not add up to more than one may hold.
        let mut attributes = self.participants[key].attributes.clone();
        for (name, value) in update.attributes {
            if value.is_empty() {
                attributes.remove(&name);
            } else {
                attributes.insert(name, value);
            }
        }
        if check_metadata(&update.metadata, &attributes).is_err() || update.name.len() > 1024 {
            return self.refuse(
                key,
                update.request_id,
                Reason::LimitExceeded,
                "metadata too large",
                None,
            );
        }
        let participant = &mut self.participants[key];
        if !update.name.is_empty() {
            participant.name = update.name;
        }
        if !update.metadata.is_empty() {
            participant.metadata = update.metadata;
        }
        participant.attributes = attributes;
        if participant.protocol() >= 15 {
            self.refuse(key, update.request_id, Reason::Ok, "", None);
        }
        self.broadcast_update(key);
        // The client learns its own new state the same way.
        let own = self.participant_info(key);
        self.participants[key].send(super::actor::update(vec![own]));
    }

    fn update_audio_track(&mut self, key: usize, update: UpdateLocalAudioTrack) {
        let Some(&publication) = self.by_track_sid.get(&update.track_sid) else {
            return;
        };
        if self.publications[publication].owner == key && update.features.len() <= 32 {
            self.publications[publication].info.audio_features = update.features;
            self.broadcast_update(key);
        }
    }

    fn update_video_track(&mut self, key: usize, update: &UpdateLocalVideoTrack) {
        let Some(&publication) = self.by_track_sid.get(&update.track_sid) else {
            return;
        };
        if self.publications[publication].owner == key {
            let info = &mut self.publications[publication].info;
            (info.width, info.height) = (update.width, update.height);
            self.broadcast_update(key);
        }
    }

    pub(crate) fn offer(&mut self, key: usize, offer: SessionDescription, now: Instant) {
        if let Err(error) = self.take_offer(key, &offer, now) {
            info!(room = %self.name, participant = %self.participants[key].sid, %error, "offer refused");
            metrics::counter!("sfu_offers_refused_total").increment(1);
            let farewell = leave(DisconnectReason::StateMismatch, Action::Reconnect);
            self.remove(key, LeaveReason::MediaGone, Some(farewell), now);
        }
    }

    fn answer(&mut self, key: usize, answer: &SessionDescription, now: Instant) {
        if let Err(error) = self.take_answer(key, answer, now) {
            info!(room = %self.name, participant = %self.participants[key].sid, %error, "answer refused");
            let farewell = leave(DisconnectReason::StateMismatch, Action::Reconnect);
            self.remove(key, LeaveReason::MediaGone, Some(farewell), now);
        }
    }

    /// Tracks of one kind that were announced and found no section yet.
    pub(crate) fn unbound(&self, key: usize, kind: Kind) -> Vec<usize> {
        let announced = self.participants[key].publications.iter().copied();
        announced
            .filter(|p| self.publications[*p].up.is_none() && self.publications[*p].kind == kind)
            .collect()
    }
}
