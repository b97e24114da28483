//! Offers and answers of a participant: takes the client's description in, finds its tracks, fills free sections with what
//! it subscribed to, and writes the answer.

use std::{collections::HashMap, time::Instant};

use livekit_protocol::{SessionDescription, signal_response::Message as SignalOut};

use super::{actor::Room, negotiation::Carries, participant::Peer, publication::Publication};
use crate::{
    clock,
    sdp::{
        self, Description, Direction, Kind, Local, LocalSection, OutgoingMedia, SdpError, Section, Setup,
        codecs::{self, Negotiated},
    },
    transport::{DtlsRole, IceCredentials, IceMode, PeerParams, PeerTransport, RemoteParams},
};

impl Room {
    /// Answers an offer of the client on the connection where clients offer.
    pub(crate) fn take_offer(
        &mut self,
        key: usize,
        message: &SessionDescription,
        now: Instant,
    ) -> Result<(), SdpError> {
        let offer = sdp::parse(&message.sdp)?;
        if self.participants[key].publisher.is_none() {
            let peer = self.new_peer(key, now);
            self.participants[key].publisher = Some(peer);
            self.attach(key, super::actor::Side::Publisher);
        }
        self.set_remote(key, super::actor::Side::Publisher, &offer, now);

        self.unbind_ended(key, &offer, now);
        let peer = self.participants[key].publisher.as_mut().expect("created above");
        let lost = peer.slots.offered(&offer);
        for slot in &offer.sections {
            peer.incoming.learn_extensions(&codecs::extensions(slot));
        }
        peer.remote = Some(offer);
        for subscription in lost {
            self.unbind_subscription(key, subscription);
        }
        let bound = self.bind_publications(key);
        if self.participants[key].single_connection {
            self.assign_sections(key, now);
        }
        let (sdp, mid_to_track_id) = self.write_answer(key);
        let peer = self.participants[key].publisher.as_mut().expect("created above");
        peer.slots.answered();
        self.participants[key].send(SignalOut::Answer(SessionDescription {
            r#type: "answer".to_owned(),
            sdp,
            id: message.id,
            mid_to_track_id,
        }));
        self.touch_all(key);
        for publication in bound {
            self.announce(publication, now);
        }
        self.request_sections(key, now);
        Ok(())
    }

    /// A connection of participant `key` that no description was exchanged for.
    pub(crate) fn new_peer(&mut self, key: usize, now: Instant) -> Peer {
        let participant = &self.participants[key];
        // A lite agent cannot reach a Firefox behind a relay, because Firefox makes no peer-reflexive candidates there.
        let full = participant.is_firefox() || participant.disable_ice_lite || participant.protocol() <= 5;
        let local = IceCredentials::random();
        let params = PeerParams {
            local,
            ice_mode: if full { IceMode::Full } else { IceMode::Lite },
            certificate: self.environment.certificate.clone(),
        };
        Peer::new(PeerTransport::new(params, now), !full, now)
    }

    /// Hands the client's transport parameters to the transport.
    pub(crate) fn set_remote(&mut self, key: usize, side: super::actor::Side, remote: &Description, now: Instant) {
        let Some(peer) = self.participants[key].peer(side) else {
            return;
        };
        let role = match remote.setup {
            Setup::ActPass | Setup::Active => DtlsRole::Passive,
            Setup::Passive => DtlsRole::Active,
        };
        if peer.transport.is_restart(&remote.ice) {
            let local = peer.next_local.take().unwrap_or_else(IceCredentials::random);
            peer.transport.restart_ice(now, local, remote.ice.clone());
            self.attach(key, side);
        } else {
            let (ice, fingerprint) = (remote.ice.clone(), remote.fingerprint);
            peer.transport.set_remote(now, RemoteParams { ice, fingerprint, role });
        }
        for section in &remote.sections {
            for candidate in &section.candidates {
                if let (Some(address), Some(peer)) =
                    (sdp::candidate_address(candidate), self.participants[key].peer(side))
                {
                    peer.transport.add_remote_candidate(now, address);
                }
            }
        }
    }

    /// Tracks whose section no longer sends are over.
    fn unbind_ended(&mut self, key: usize, offer: &Description, now: Instant) {
        let ended: Vec<usize> = self.participants[key]
            .publications
            .iter()
            .copied()
            .filter(|publication| {
                let publication = &self.publications[*publication];
                publication.is_announced()
                    && offer.section(&publication.info.mid).is_none_or(|section| {
                        let renamed = !publication.is_named_in(section)
                            && section.msid.is_some()
                            && self.names_another(key, publication, section);
                        section.rejected || !section.direction.sends() || renamed
                    })
            })
            .collect();
        for publication in ended {
            self.unpublish(publication, now);
        }
    }

    /// The section was taken over by a track announced later.
    fn names_another(&self, key: usize, bound: &Publication, section: &Section) -> bool {
        self.unbound(key, bound.kind)
            .iter()
            .any(|other| self.publications[*other].is_named_in(section))
    }

    /// Finds the announced tracks in the sections of the last offer. Returns those newly found.
    fn bind_publications(&mut self, key: usize) -> Vec<usize> {
        let Some(offer) = self.participants[key]
            .publisher
            .as_ref()
            .and_then(|peer| peer.remote.clone())
        else {
            return Vec::new();
        };
        let taken = |room: &Self, mid: &str| {
            room.participants[key].publications.iter().any(|publication| {
                room.publications[*publication].is_announced() && room.publications[*publication].info.mid == mid
            })
        };
        let mut bound = Vec::new();
        let sending = |section: &&Section| section.direction.sends() && !section.rejected;
        for section in offer.sections.iter().filter(sending) {
            if taken(self, &section.mid) {
                continue;
            }
            let candidates = self.unbound(key, section.kind);
            let named = candidates
                .iter()
                .copied()
                .find(|publication| self.publications[*publication].is_named_in(section));
            // Firefox may send other names than it announced: the only one of its kind is meant.
            let publication = named.or(match candidates.as_slice() {
                [only] if !self.named_elsewhere(*only, &offer, &section.mid) => Some(*only),
                _ => None,
            });
            let Some(publication) = publication else { continue };
            if named.is_none()
                && let Some((_, track)) = &section.msid
            {
                self.publications[publication].cids.push(track.clone());
            }
            if self.bind(key, publication, section) {
                bound.push(publication);
            }
        }
        bound
    }

    fn named_elsewhere(&self, publication: usize, offer: &Description, mid: &str) -> bool {
        offer
            .sections
            .iter()
            .any(|section| section.mid != mid && self.publications[publication].is_named_in(section))
    }

    /// Tracks announced after the offer that carries them.
    pub(crate) fn bind_offered(&mut self, key: usize, now: Instant) {
        for publication in self.bind_publications(key) {
            self.announce(publication, now);
        }
    }

    fn write_answer(&mut self, key: usize) -> (String, HashMap<String, String>) {
        let mut map = HashMap::new();
        let participant = &self.participants[key];
        let Some((peer, offer)) = participant
            .publisher
            .as_ref()
            .and_then(|peer| Some((peer, peer.remote.as_ref()?)))
        else {
            return (String::new(), map);
        };
        let bundled = |mid: &str| offer.bundle.is_empty() || offer.bundle.iter().any(|name| name == mid);
        let sections = offer
            .sections
            .iter()
            .map(|section| {
                let bound = participant
                    .publications
                    .iter()
                    .map(|publication| &self.publications[*publication])
                    .find(|publication| publication.is_announced() && publication.info.mid == section.mid);
                let outgoing = self.outgoing(key, peer, &section.mid);
                if let Some(outgoing) = &outgoing {
                    map.insert(section.mid.clone(), outgoing.track.clone());
                }
                answer_section(section, bound, outgoing, bundled(&section.mid))
            })
            .collect();
        let local = Local {
            session_id: peer.session_id,
            version: peer.version,
            ice: peer.transport.local_credentials().clone(),
            ice_lite: peer.ice_lite,
            fingerprint: self.environment.certificate.fingerprint(),
            setup: if offer.setup == Setup::Passive {
                Setup::Active
            } else {
                Setup::Passive
            },
            candidates: self.environment.candidates.read().clone(),
            cname: participant.sid.clone(),
            extmap_allow_mixed: offer.extmap_allow_mixed,
            sections,
        };
        let text = sdp::write(&local);
        if let Some(peer) = self.participants[key].publisher.as_mut() {
            peer.version += 1;
        }
        (text, map)
    }

    /// What is sent to the client in the section `mid`.
    pub(crate) fn outgoing(&self, key: usize, peer: &Peer, mid: &str) -> Option<OutgoingMedia> {
        let slot = peer.slots.slot(mid)?;
        let Carries::Subscription(subscription) = slot.carries else {
            return None;
        };
        let subscription = self.participants[key].subscriptions.get(subscription)?;
        let publication = self.publications.get(subscription.publication)?;
        let publisher = self.participants.get(publication.owner)?;
        // Clients of the older protocol know a track by its name, which does not change with the section's next track;
        // the stream's name then says which track it is, at the price of playing it out of step.
        let renamed = slot.reused && !self.participants[key].single_connection;
        let stream = if renamed {
            publication.sid()
        } else {
            publication.stream()
        };
        Some(OutgoingMedia {
            stream: format!("{}|{stream}", publisher.sid),
            track: publication.sid().to_owned(),
            ssrc: subscription.ssrc,
            rtx_ssrc: (slot.kind == Kind::Video).then_some(subscription.rtx_ssrc),
        })
    }
}

fn answer_section(
    section: &Section,
    bound: Option<&Publication>,
    outgoing: Option<OutgoingMedia>,
    bundled: bool,
) -> LocalSection {
    let mut payloads = codecs::negotiate(section);
    if let Some((codec, format)) = bound.and_then(|publication| publication.codec.as_ref()) {
        // A published track uses one codec, so that receivers know it.
        payloads = codecs::matching(&payloads, *codec, format)
            .cloned()
            .into_iter()
            .collect();
    }
    let usable = match section.kind {
        Kind::Application => section.protocol.contains("SCTP"),
        Kind::Audio | Kind::Video => !payloads.is_empty(),
        Kind::Other => false,
    };
    let opus = payloads
        .first()
        .map(|first: &Negotiated| first.payload.format.clone())
        .unwrap_or_default();
    LocalSection {
        kind: section.kind,
        media: section.media.clone(),
        protocol: section.protocol.clone(),
        formats: section.formats.clone(),
        mid: section.mid.clone(),
        rejected: section.rejected || !usable || !bundled,
        // A track that was not announced yet is received as well: its announcement is on the way.
        direction: Direction::new(outgoing.is_some(), section.direction.sends()),
        opus_format: bound
            .filter(|p| p.kind == Kind::Audio)
            .map(|publication| publication.opus_format(&opus)),
        payloads,
        extensions: codecs::extensions(section),
        receive_rids: if section.direction.sends() {
            section.send_rids.clone()
        } else {
            Vec::new()
        },
        outgoing,
    }
}

impl Peer {
    fn new(transport: PeerTransport, ice_lite: bool, now: Instant) -> Self {
        Self {
            transport,
            incoming: super::forwarding::IncomingMedia::new(now),
            outgoing: super::forwarding::OutgoingMedia::new(now),
            number: None,
            ice_lite,
            remote: None,
            slots: super::negotiation::Slots::default(),
            session_id: u64::from_be_bytes(clock::random()) >> 2,
            version: 1,
            registered: Vec::new(),
            offering: super::dual::Offering::default(),
            next_local: None,
            asked_at: None,
            reliable: None,
            lossy: None,
            wake: None,
            dirty: false,
            heard: (0, now),
        }
    }
}
