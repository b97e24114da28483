//! The life of a published track after it was announced: bound to a section of an offer, told to the others, muted,
//! and ended.

use std::time::Instant;

use livekit_protocol::{TrackUnpublishedResponse, signal_response::Message as SignalOut};

use super::{actor::Room, forwarding::payload_formats};
use crate::{
    media::{
        layers::{Layer, Rids},
        streams::Stream,
        up_track::UpTrack,
    },
    sdp::{Section, codecs},
};

impl Room {
    /// Gives a track the section that sends it; false if none of its codecs is forwarded.
    pub(crate) fn bind(&mut self, key: usize, publication: usize, section: &Section) -> bool {
        let Some(peer) = self.participants[key].publisher.as_mut() else {
            return false;
        };
        let Some(slot) = peer.slots.slot(&section.mid) else {
            return false;
        };
        let negotiated = &slot.codecs;
        let entry = &mut self.publications[publication];
        let declared = |candidate: &&codecs::Negotiated| entry.declared.is_none_or(|codec| codec == candidate.codec);
        let Some(chosen) = negotiated.iter().find(declared).or(negotiated.first()) else {
            return false;
        };
        let mime = codecs::mime(chosen.codec).to_owned();
        entry.codec = Some((chosen.codec, chosen.payload.format.clone()));
        entry.info.mime_type.clone_from(&mime);
        entry.info.mid.clone_from(&section.mid);
        if let Some(codec) = entry.info.codecs.first_mut() {
            codec.mime_type = mime;
            codec.mid.clone_from(&section.mid);
            if let Some((_, track)) = section.msid.as_ref().filter(|(_, track)| *track != codec.cid) {
                codec.sdp_cid.clone_from(track);
            }
        }
        let rids = Rids::new(section.send_rids.iter().cloned());
        entry.up = Some(UpTrack::new(chosen.codec, rids.layer_count()));

        let incoming = &mut peer.incoming;
        for (number, format) in payload_formats(negotiated) {
            incoming.payload_types.set(number, format);
        }
        entry.extensions = incoming.extensions.clone();
        incoming.streams.set_section(
            publication,
            &section.mid,
            entry.kind == crate::sdp::Kind::Video,
            rids.clone(),
        );
        // With simulcast the packets tell their layer themselves.
        if rids.is_empty() {
            for ssrc in section.ssrcs.iter().take(4) {
                let is_repair = section.repair.iter().any(|(_, repair)| repair == ssrc);
                incoming.streams.declare(
                    *ssrc,
                    Stream {
                        section: publication,
                        layer: Layer::LOW,
                        is_repair,
                    },
                );
            }
        }
        true
    }

    /// Tells the others of a track that an offer carries, and subscribes them.
    pub(crate) fn announce(&mut self, publication: usize, now: Instant) {
        let owner = self.publications[publication].owner;
        tracing::debug!(room = %self.name, participant = %self.participants[owner].sid,
            track = %self.publications[publication].sid(), mime = %self.publications[publication].info.mime_type,
            "track published");
        // The announcement goes out before the description that delivers the media.
        self.broadcast_update(owner);
        self.subscribe_everybody(publication, now);
    }

    /// Ends a track whose section no longer sends.
    pub(crate) fn unpublish(&mut self, publication: usize, now: Instant) {
        let owner = self.publications[publication].owner;
        let track_sid = self.publications[publication].sid().to_owned();
        self.participants[owner]
            .publications
            .retain(|known| *known != publication);
        let affected = self.drop_publication(publication);
        self.participants[owner].send(SignalOut::TrackUnpublished(TrackUnpublishedResponse { track_sid }));
        self.broadcast_update(owner);
        for key in affected {
            self.offer_or_request(key, now);
        }
    }

    /// Takes a track away from everybody. Returns who received it.
    pub(crate) fn drop_publication(&mut self, publication: usize) -> Vec<usize> {
        let receivers: Vec<usize> = self
            .participants
            .iter()
            .filter(|(_, participant)| participant.subscribed.contains_key(&publication))
            .map(|(key, _)| key)
            .collect();
        for key in &receivers {
            self.unsubscribe(*key, publication);
        }
        for (_, participant) in &mut self.participants {
            participant.wishes.remove(&publication);
        }
        let entry = self.publications.remove(publication);
        self.by_track_sid.remove(entry.sid());
        if let Some(peer) = self
            .participants
            .get_mut(entry.owner)
            .and_then(|owner| owner.publisher.as_mut())
        {
            peer.incoming.streams.remove_section(&entry.info.mid);
        }
        receivers
    }

    pub(crate) fn set_muted(&mut self, publication: usize, muted: bool) {
        let entry = &mut self.publications[publication];
        entry.info.muted = muted;
        entry.info.version = Some(livekit_protocol::TimedVersion {
            unix_micro: crate::clock::unix_millis() * 1000,
            ticks: 0,
        });
    }
}
