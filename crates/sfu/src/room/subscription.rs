//! Who receives what: creates and ends subscriptions, gives them sections of the client, and takes in what clients say
//! about the size in which they show a picture.

use std::time::Instant;

use livekit_protocol::{
    SubscriptionError, SubscriptionResponse, SyncState, TrackSubscribed, UpdateSubscription, UpdateTrackSettings,
    VideoQuality, signal_response::Message as SignalOut,
};

use super::{actor::Room, participant::Stage};
use crate::{
    clock,
    media::down_track::DownTrack,
    sdp::{Kind, codecs},
};

/// Most tracks taken from one request.
const MAX_NAMED: usize = 1024;

/// How a client shows a track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Not shown at all: nothing is sent.
    pub(crate) disabled: bool,
    /// Wanted quality, where no size is told.
    pub(crate) quality: Option<VideoQuality>,
    /// Size of the picture in pixels; 0 when not told.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Greater is served first.
    pub(crate) priority: u32,
}

/// One track on its way to one participant.
pub(crate) struct Subscription {
    pub(crate) publication: usize,
    pub(crate) kind: Kind,
    /// Section that carries it, once there is one.
    pub(crate) mid: Option<String>,
    pub(crate) ssrc: u32,
    pub(crate) rtx_ssrc: u32,
    pub(crate) settings: Settings,
    /// Present while a section carries it.
    pub(crate) down: Option<DownTrack>,
    /// What the client was last told about the stream's state: paused or not.
    pub(crate) told_paused: bool,
    /// The client cannot decode it.
    pub(crate) unsupported: bool,
}

impl Room {
    /// Creates the subscriptions of a participant whose media connection stands.
    pub(crate) fn subscribe_to_all(&mut self, key: usize, now: Instant) {
        let announced: Vec<usize> = self
            .publications
            .iter()
            .filter(|(_, p)| p.is_announced())
            .map(|(publication, _)| publication)
            .collect();
        for publication in announced {
            self.subscribe_if_wanted(key, publication);
        }
        self.offer_or_request(key, now);
    }

    /// Creates the subscriptions to a track that was just announced.
    pub(crate) fn subscribe_everybody(&mut self, publication: usize, now: Instant) {
        let keys: Vec<usize> = self.participants.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.subscribe_if_wanted(key, publication) {
                self.offer_or_request(key, now);
            }
        }
    }

    fn subscribe_if_wanted(&mut self, key: usize, publication: usize) -> bool {
        let participant = &self.participants[key];
        let wanted = participant
            .wishes
            .get(&publication)
            .copied()
            .unwrap_or(participant.auto_subscribe);
        let possible = participant.stage == Stage::Active
            && participant.permission.subscribe
            && self.publications[publication].owner != key
            && self.publications[publication].is_announced()
            && !participant.subscribed.contains_key(&publication);
        if !wanted || !possible {
            return false;
        }
        let kind = self.publications[publication].kind;
        let participant = &mut self.participants[key];
        let subscription = participant.subscriptions.insert(Subscription {
            publication,
            kind,
            mid: None,
            ssrc: ssrc(),
            rtx_ssrc: ssrc(),
            settings: Settings::default(),
            down: None,
            told_paused: false,
            unsupported: false,
        });
        participant.subscribed.insert(publication, subscription);
        true
    }

    /// Ends a subscription; the caller asks for a new offer.
    pub(crate) fn unsubscribe(&mut self, key: usize, publication: usize) -> bool {
        let participant = &mut self.participants[key];
        let Some(subscription) = participant.subscribed.remove(&publication) else {
            return false;
        };
        if let Some(peer) = participant.receiving() {
            peer.slots.release(subscription);
        }
        self.stop_down_track(key, subscription);
        self.participants[key].subscriptions.remove(subscription);
        if let Some(publication) = self.publications.get_mut(publication) {
            publication.subscribers.retain(|entry| *entry != (key, subscription));
        }
        true
    }

    /// The section of a subscription is gone: it waits for another.
    pub(crate) fn unbind_subscription(&mut self, key: usize, subscription: usize) {
        let Some(entry) = self.participants[key].subscriptions.get_mut(subscription) else {
            return;
        };
        entry.mid = None;
        let publication = entry.publication;
        self.stop_down_track(key, subscription);
        if let Some(publication) = self.publications.get_mut(publication) {
            publication.subscribers.retain(|entry| *entry != (key, subscription));
        }
    }

    /// Gives free sections to waiting subscriptions.
    pub(crate) fn assign_sections(&mut self, key: usize, now: Instant) {
        let mut started = false;
        for subscription in self.waiting(key) {
            let entry = &self.participants[key].subscriptions[subscription];
            let (publication, kind) = (entry.publication, entry.kind);
            let Some((codec, format)) = self.publications[publication].codec.clone() else {
                continue;
            };
            let Some(peer) = self.participants[key].receiving() else {
                break;
            };
            let fits = |slot: &super::negotiation::Slot| codecs::matching(&slot.codecs, codec, &format).is_some();
            if let Some(slot) = peer.slots.assign(kind, subscription, fits).cloned() {
                self.participants[key].subscriptions[subscription].mid = Some(slot.mid.clone());
                started |= self.start_down_track(key, subscription, &slot);
                self.tell_subscribed(publication);
            } else if peer.slots.cannot_carry(kind, fits) {
                self.tell_unsupported(key, subscription);
            }
        }
        if started {
            self.allocate(key, now);
        }
    }

    /// The client cannot decode the track, and learns so.
    pub(crate) fn tell_unsupported(&mut self, key: usize, subscription: usize) {
        let participant = &mut self.participants[key];
        if let Some(peer) = participant.receiving() {
            peer.slots.release(subscription);
        }
        let entry = &mut participant.subscriptions[subscription];
        (entry.unsupported, entry.mid) = (true, None);
        let track_sid = self.publications[entry.publication].sid().to_owned();
        let err = SubscriptionError::SeCodecUnsupported as i32;
        participant.send(SignalOut::SubscriptionResponse(SubscriptionResponse { track_sid, err }));
    }

    /// Subscriptions without a section, oldest first.
    pub(crate) fn waiting(&self, key: usize) -> Vec<usize> {
        let subscriptions = self.participants[key].subscriptions.iter();
        subscriptions
            .filter(|(_, entry)| entry.mid.is_none() && !entry.unsupported)
            .map(|(subscription, _)| subscription)
            .collect()
    }

    /// The publisher learns once that somebody receives its track.
    pub(crate) fn tell_subscribed(&mut self, publication: usize) {
        let publication = &mut self.publications[publication];
        if !std::mem::replace(&mut publication.subscription_told, true) {
            let track_sid = publication.sid().to_owned();
            self.participants[publication.owner].send(SignalOut::TrackSubscribed(TrackSubscribed { track_sid }));
        }
    }

    /// Brings the client's sections in line with its subscriptions.
    pub(crate) fn offer_or_request(&mut self, key: usize, now: Instant) {
        if self.participants[key].single_connection {
            self.request_sections(key, now);
        } else {
            self.offer_subscriber(key, now);
        }
    }

    /// Asks a client that offers for the sections it lacks.
    pub(crate) fn request_sections(&mut self, key: usize, now: Instant) {
        if !self.participants[key].single_connection {
            return;
        }
        let waiting = self.waiting(key);
        let audio = waiting
            .iter()
            .filter(|s| self.participants[key].subscriptions[**s].kind == Kind::Audio)
            .count();
        let participant = &mut self.participants[key];
        if participant.signal.is_none() {
            return;
        }
        let Some(peer) = participant.publisher.as_mut() else {
            return;
        };
        if let Some(requirement) = peer.slots.requirement(audio, waiting.len() - audio) {
            peer.asked_at = Some(now);
            participant.send(SignalOut::MediaSectionsRequirement(requirement));
        }
    }

    /// `subscription`: what the client wants to receive, apart from the automatic choice.
    pub(crate) fn change_subscriptions(&mut self, key: usize, request: &UpdateSubscription, now: Instant) {
        let sids = request.track_sids.iter().chain(
            request
                .participant_tracks
                .iter()
                .flat_map(|participant| &participant.track_sids),
        );
        let publications: Vec<usize> = sids
            .take(MAX_NAMED)
            .filter_map(|sid| self.by_track_sid.get(sid).copied())
            .collect();
        for publication in publications {
            self.participants[key].wishes.insert(publication, request.subscribe);
            if request.subscribe {
                self.subscribe_if_wanted(key, publication);
            } else {
                self.unsubscribe(key, publication);
            }
        }
        self.offer_or_request(key, now);
    }

    /// `track_setting`: the size in which the client shows a track.
    pub(crate) fn track_settings(&mut self, key: usize, request: &UpdateTrackSettings, now: Instant) {
        let settings = Settings {
            disabled: request.disabled,
            quality: VideoQuality::try_from(request.quality).ok(),
            width: request.width,
            height: request.height,
            priority: request.priority,
        };
        let mut changed = false;
        for sid in request.track_sids.iter().take(MAX_NAMED) {
            if let Some(entry) = self.subscription_to(key, sid) {
                changed |= std::mem::replace(&mut entry.settings, settings) != settings;
            }
        }
        if changed {
            self.allocate(key, now);
        }
    }

    /// What participant `key` receives of the track named `sid`.
    fn subscription_to(&mut self, key: usize, sid: &str) -> Option<&mut Subscription> {
        let publication = self.by_track_sid.get(sid)?;
        let participant = &mut self.participants[key];
        let subscription = *participant.subscribed.get(publication)?;
        participant.subscriptions.get_mut(subscription)
    }

    /// `sync_state`: what a client that resumed believes.
    pub(crate) fn sync_state(&mut self, key: usize, state: &SyncState, now: Instant) {
        let mut changed = false;
        for sid in state.track_sids_disabled.iter().take(MAX_NAMED) {
            if let Some(entry) = self.subscription_to(key, sid) {
                changed |= !std::mem::replace(&mut entry.settings.disabled, true);
            }
        }
        if changed {
            self.allocate(key, now);
        }
    }
}

fn ssrc() -> u32 {
    // Zero means "none" in some clients.
    u32::from_be_bytes(clock::random()).max(1)
}
