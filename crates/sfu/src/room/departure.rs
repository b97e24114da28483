//! How participants leave: by their own wish, by ours, by a newer session, or by silence. Also what is due from time to time:
//! tokens, quality, room end.

use std::time::{Duration, Instant};

use livekit_protocol::{
    ConnectionQuality, ConnectionQualityInfo, ConnectionQualityUpdate, DisconnectReason, ParticipantInfo, RoomUpdate,
    leave_request::Action, participant_info, signal_response::Message as SignalOut,
};
use tracing::info;

use super::{
    ConnectionId,
    actor::{Room, update},
    removals::TOKEN_LIFETIME_SECONDS,
    signalling::leave,
};
use crate::{LeaveReason, SfuEvent, clock};

/// A client gets a new token this often; without one it could not resume after its first has expired.
pub(crate) const TOKEN_INTERVAL: Duration = Duration::from_secs(300);
/// A media connection must stand after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A lost signalling connection must be resumed within this time, whatever the media does: clients come back within
/// seconds or not at all, and connectivity checks alone may go on for ever.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(30);
/// A media connection that was silent for this long while signalling lives is asked to resume.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a client has to resume when asked.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client that closed its media connection may take to say that it leaves.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long those who left are remembered for clients that resume.
const REMEMBER_GONE: Duration = Duration::from_secs(60);
/// How many of them.
const MAX_REMEMBERED: usize = 256;

impl LeaveReason {
    fn disconnect_reason(self) -> DisconnectReason {
        match self {
            Self::Left => DisconnectReason::ClientInitiated,
            Self::MediaGone => DisconnectReason::MediaFailure,
            Self::Removed => DisconnectReason::ParticipantRemoved,
            Self::Duplicate => DisconnectReason::DuplicateIdentity,
            Self::RoomClosed => DisconnectReason::RoomDeleted,
            Self::Shutdown => DisconnectReason::ServerShutdown,
        }
    }
}

impl Room {
    /// A signalling connection ended without a leave: the client may resume as long as its media lives.
    pub(crate) fn signal_closed(&mut self, connection: ConnectionId, now: Instant) {
        let Some(key) = self.by_connection.remove(&connection) else {
            return;
        };
        let participant = &mut self.participants[key];
        if participant
            .signal
            .as_ref()
            .is_none_or(|signal| signal.connection == connection)
        {
            participant.signal = None;
            participant.signal_lost.get_or_insert(now);
        }
    }

    /// Takes a participant out of the room: out of every list, for everybody, at once.
    pub(crate) fn remove(&mut self, key: usize, reason: LeaveReason, farewell: Option<SignalOut>, now: Instant) {
        let published = std::mem::take(&mut self.participants[key].publications);
        let mut affected = Vec::new();
        for publication in published {
            affected.extend(self.drop_publication(publication));
        }
        let receiving: Vec<usize> = self.participants[key].subscribed.keys().copied().collect();
        for publication in receiving {
            self.unsubscribe(key, publication);
        }
        if let Some(farewell) = farewell {
            self.participants[key].send(farewell);
        }
        for peer in self.participants[key].peers() {
            peer.transport.close();
        }
        self.flush_participant(key);
        let mut participant = self.participants.remove(key);
        self.detach(&mut participant);
        self.by_connection.retain(|_, owner| *owner != key);
        if self.by_identity.get(&participant.identity) == Some(&key) {
            self.by_identity.remove(&participant.identity);
            self.members.lock().remove(&participant.identity);
        }
        participant.version += 1;
        let info = ParticipantInfo {
            state: participant_info::State::Disconnected as i32,
            disconnect_reason: reason.disconnect_reason() as i32,
            ..participant.info(Vec::new())
        };
        info!(room = %self.name, participant = %participant.sid, identity = %participant.identity, ?reason, "participant left");
        metrics::gauge!("sfu_participants").decrement(1.0);
        if !participant.permission.hidden {
            self.recently_gone.push_back((now, info.clone()));
            for (_, other) in &mut self.participants {
                other.send(update(vec![info.clone()]));
            }
        }
        affected.sort_unstable();
        affected.dedup();
        for other in affected.into_iter().filter(|other| *other != key) {
            if self.participants.contains(other) {
                self.offer_or_request(other, now);
            }
        }
        if self.participants.is_empty() {
            self.emptied = Some(now);
        }
        self.event(SfuEvent::ParticipantLeft {
            room: self.name.clone(),
            identity: participant.identity,
            reason,
        });
    }

    /// Removes everybody whose media is gone, once a second.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let media_timeout = self.environment.config.media_timeout();
        let mut gone = Vec::new();
        let mut ask = Vec::new();
        for (key, participant) in &mut self.participants {
            let mut silence = now.duration_since(participant.joined_at);
            for peer in participant.peers() {
                let heard = peer.authentic();
                if heard != peer.heard.0 {
                    peer.heard = (heard, now);
                }
                silence = silence.min(now.duration_since(peer.heard.1));
            }
            let alone = participant.signal.is_none();
            if alone && participant.signal_lost.is_none() {
                participant.signal_lost = Some(now);
            }
            let lost_for = participant.signal_lost.map(|lost| now.duration_since(lost));
            // A client with two connections that may not subscribe has nothing to connect before it publishes.
            let idle =
                !participant.single_connection && !participant.permission.subscribe && participant.publisher.is_none();
            let connecting = participant.stage == super::participant::Stage::Joined && !idle;
            if participant
                .media_failed
                .is_some_and(|failed| now.duration_since(failed) >= FAREWELL)
            {
                // While signalling lives the client is told to begin anew.
                gone.push((key, DisconnectReason::MediaFailure, Action::Reconnect));
            } else if alone
                && lost_for.is_some_and(|lost| {
                    lost >= SIGNAL_TIMEOUT || (silence >= media_timeout && lost >= Duration::from_secs(1))
                })
            {
                gone.push((key, DisconnectReason::ConnectionTimeout, Action::Disconnect));
            } else if connecting && now.duration_since(participant.joined_at) >= CONNECT_TIMEOUT {
                gone.push((key, DisconnectReason::JoinFailure, Action::Disconnect));
            } else if !connecting && !alone && silence >= SILENCE {
                match participant.resume_asked {
                    None => ask.push(key),
                    Some(asked) if now.duration_since(asked) >= RESUME_TIMEOUT => {
                        gone.push((key, DisconnectReason::MediaFailure, Action::Disconnect));
                    }
                    Some(_) => {}
                }
            }
        }
        for key in ask {
            let participant = &mut self.participants[key];
            participant.resume_asked = Some(now);
            participant.send(leave(DisconnectReason::MediaFailure, Action::Resume));
            // Closing the connection makes the client come back.
            if let Some(signal) = participant.signal.take() {
                self.by_connection.remove(&signal.connection);
                self.participants[key].signal_lost = Some(now);
            }
        }
        for (key, told, action) in gone {
            self.remove(key, LeaveReason::MediaGone, Some(leave(told, action)), now);
        }
        let forgotten = |left: Instant| now.duration_since(left) > REMEMBER_GONE;
        while self.recently_gone.len() > MAX_REMEMBERED
            || self.recently_gone.front().is_some_and(|(left, _)| forgotten(*left))
        {
            self.recently_gone.pop_front();
        }
        let due: Vec<usize> = self
            .participants
            .iter()
            .filter(|(_, p)| p.token_due <= now)
            .map(|(key, _)| key)
            .collect();
        for key in due {
            self.refresh_token(key, now);
        }
        self.repeat_requests(now);
    }

    /// A client that did not react to a request for sections is asked again.
    fn repeat_requests(&mut self, now: Instant) {
        let mut again = Vec::new();
        for (key, participant) in &mut self.participants {
            if let Some(peer) = participant.publisher.as_mut()
                && peer.slots.is_outstanding()
                && peer
                    .asked_at
                    .is_some_and(|asked| now.duration_since(asked) >= Duration::from_secs(5))
            {
                peer.slots.forget_requests();
                again.push(key);
            }
        }
        for key in again {
            self.request_sections(key, now);
        }
    }

    /// Sends a token that lives on, so that the client may resume later.
    pub(crate) fn refresh_token(&mut self, key: usize, now: Instant) {
        let issued = clock::unix_seconds();
        let participant = &mut self.participants[key];
        participant.token_due = now + TOKEN_INTERVAL;
        let mut claims = participant.claims.clone();
        claims.not_before = issued;
        claims.expires_at = claims.expires_at.max(issued + TOKEN_LIFETIME_SECONDS);
        claims.name = participant.name.clone();
        // A refreshed token must not outlive the room it was given for by opening it again.
        claims.video.room_create = false;
        let token = self.environment.key.mint_claims(&claims);
        participant.send(SignalOut::RefreshToken(token));
    }

    /// Whether the room has been empty for long enough to end.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let config = &self.environment.config;
        let allowed = if self.ever_joined {
            config.departure_timeout()
        } else {
            config.empty_timeout()
        };
        self.emptied.is_some_and(|since| now.duration_since(since) >= allowed)
    }

    /// Tells everybody how many are here, if that changed.
    pub(crate) fn tell_counts(&mut self) {
        let info = self.info();
        let counts = (info.num_participants, info.num_publishers);
        if std::mem::replace(&mut self.told_counts, counts) != counts {
            for (_, participant) in &mut self.participants {
                participant.send(SignalOut::RoomUpdate(RoomUpdate {
                    room: Some(info.clone()),
                }));
            }
        }
    }

    /// Tells everybody whose quality changed, every five seconds.
    pub(crate) fn tell_quality(&mut self) {
        let mut changed = Vec::new();
        let keys: Vec<usize> = self.participants.iter().map(|(key, _)| key).collect();
        for key in keys {
            let quality = self.quality(key);
            let participant = &mut self.participants[key];
            if participant.quality != Some(quality) {
                participant.quality = Some(quality);
                changed.push(ConnectionQualityInfo {
                    participant_sid: participant.sid.clone(),
                    quality: quality as i32,
                    score: match quality {
                        ConnectionQuality::Excellent => 5.0,
                        ConnectionQuality::Good => 4.0,
                        ConnectionQuality::Poor => 2.5,
                        ConnectionQuality::Lost => 1.0,
                    },
                });
            }
        }
        if changed.is_empty() {
            return;
        }
        for (_, participant) in &mut self.participants {
            participant.send(SignalOut::ConnectionQuality(ConnectionQualityUpdate {
                updates: changed.clone(),
            }));
        }
    }
}
