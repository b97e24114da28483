//! Offers and answers of a participant: takes the client's description in, finds its tracks, fills free sections with what
//! it subscribed to, and writes the answer.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use livekit_protocol::{SessionDescription, signal_response::Message as SignalOut};

use super::{
    actor::Room,
    negotiation::{Carries, Slot},
    participant::Peer,
    publication::Publication,
};
use crate::{
    clock,
    sdp::{
        self, Description, Direction, Kind, Local, LocalSection, OutgoingMedia, SdpError, Section, Setup, by_mid,
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
        for slot in peer.slots.iter() {
            peer.incoming.learn_extensions(&slot.extensions);
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
        let sections = by_mid(offer);
        let ended: Vec<usize> = self.participants[key]
            .publications
            .iter()
            .copied()
            .filter(|publication| {
                let publication = &self.publications[*publication];
                publication.is_announced()
                    && sections.get(publication.info.mid.as_str()).is_none_or(|section| {
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
        // Out of its place while it is read: binding changes what stands beside it.
        let Some(offer) = self.participants[key]
            .publisher
            .as_mut()
            .and_then(|peer| peer.remote.take())
        else {
            return Vec::new();
        };
        let bound = self.bind_in(key, &offer);
        if let Some(peer) = self.participants[key].publisher.as_mut() {
            peer.remote = Some(offer);
        }
        bound
    }

    fn bind_in(&mut self, key: usize, offer: &Description) -> Vec<usize> {
        let mut unbound = [Kind::Audio, Kind::Video].map(|kind| self.unbound(key, kind));
        let mut bound = Vec::new();
        if unbound.iter().all(Vec::is_empty) {
            return bound;
        }
        let taken: HashSet<String> = self.participants[key]
            .publications
            .iter()
            .map(|publication| &self.publications[*publication])
            .filter(|publication| publication.is_announced())
            .map(|publication| publication.info.mid.clone())
            .collect();
        let named: HashSet<(Kind, &str)> = offer
            .sections
            .iter()
            .filter_map(|section| Some((section.kind, section.msid.as_ref()?.1.as_str())))
            .collect();
        let sending = |section: &&Section| section.direction.sends() && !section.rejected;
        for section in offer.sections.iter().filter(sending) {
            let candidates = match section.kind {
                Kind::Audio => &mut unbound[0],
                Kind::Video => &mut unbound[1],
                Kind::Application | Kind::Other => continue,
            };
            if candidates.is_empty() || taken.contains(&section.mid) {
                continue;
            }
            let by_name = candidates
                .iter()
                .position(|publication| self.publications[*publication].is_named_in(section));
            // Firefox may send other names than it announced: the only one of its kind is meant, unless a section has
            // its name.
            let found = by_name.or_else(|| match candidates.as_slice() {
                [only] if !self.publications[*only].is_named_among(&named) => Some(0),
                _ => None,
            });
            let Some(found) = found else { continue };
            let publication = candidates[found];
            if by_name.is_none()
                && let Some((_, track)) = &section.msid
            {
                self.publications[publication].cids.push(track.clone());
            }
            if self.bind(key, publication, section) {
                candidates.remove(found);
                bound.push(publication);
            }
        }
        bound
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
        let bundle: HashSet<&str> = offer.bundle.iter().map(String::as_str).collect();
        let bundled = |mid: &str| bundle.is_empty() || bundle.contains(mid);
        let published: HashMap<&str, &Publication> = participant
            .publications
            .iter()
            .map(|publication| &self.publications[*publication])
            .filter(|publication| publication.is_announced())
            .map(|publication| (publication.info.mid.as_str(), publication))
            .collect();
        let sections = offer
            .sections
            .iter()
            .map(|section| {
                let slot = peer.slots.slot(&section.mid);
                let outgoing = slot.and_then(|slot| self.outgoing(key, slot));
                if let Some(outgoing) = &outgoing {
                    map.insert(section.mid.clone(), outgoing.track.clone());
                }
                let bound = published.get(section.mid.as_str()).copied();
                answer_section(section, slot, bound, outgoing, bundled(&section.mid))
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

    /// What is sent to the client in a section.
    pub(crate) fn outgoing(&self, key: usize, slot: &Slot) -> Option<OutgoingMedia> {
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
    slot: Option<&Slot>,
    bound: Option<&Publication>,
    outgoing: Option<OutgoingMedia>,
    bundled: bool,
) -> LocalSection {
    let negotiated = slot.map_or(&[][..], |slot| &slot.codecs);
    let payloads = match bound.and_then(|publication| publication.codec.as_ref()) {
        // A published track uses one codec, so that receivers know it.
        Some((codec, format)) => codecs::matching(negotiated, *codec, format)
            .cloned()
            .into_iter()
            .collect(),
        None => negotiated.to_vec(),
    };
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
        extensions: slot.map(|slot| slot.extensions.clone()).unwrap_or_default(),
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
