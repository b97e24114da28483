//! The second connection of clients that have two (`/rtc`, LiveKit's protocol before the single connection): on it the
//! server offers what the client receives, and the client answers.

use std::{collections::HashMap, time::Instant};

use livekit_protocol::{SessionDescription, signal_response::Message as SignalOut};

use super::{
    actor::{Room, Side},
    negotiation::{Carries, Slot},
};
use crate::{
    media::codec::Codec,
    room::data,
    sdp::{
        self, Direction, Extension, Kind, Local, LocalSection, Payload, SdpError, Setup,
        codecs::{self, Negotiated},
    },
    transport::{ChannelOptions, IceCredentials, Reliability},
};

/// Section of the data channels.
const DATA_MID: &str = "data";

/// State of the offers on a connection where the server offers.
#[derive(Debug, Default)]
pub(crate) struct Offering {
    /// Identifier of the last offer; the answer repeats it.
    id: u32,
    /// An answer is awaited.
    waiting: bool,
    /// Something changed meanwhile.
    again: bool,
}

impl Room {
    /// Opens the connection on which the server offers, with its data channels.
    pub(crate) fn open_subscriber(&mut self, key: usize, now: Instant) {
        if !self.participants[key].permission.subscribe {
            return;
        }
        let mut peer = self.new_peer(key, now);
        for (label, ordered, reliability) in [
            (data::RELIABLE, true, Reliability::Reliable),
            (data::LOSSY, false, Reliability::MaxRetransmits(0)),
        ] {
            peer.transport.open_channel(
                now,
                ChannelOptions {
                    label: label.to_owned(),
                    ordered,
                    reliability,
                },
            );
        }
        self.participants[key].subscriber = Some(peer);
        self.attach(key, Side::Subscriber);
        self.touch(key, Side::Subscriber);
        // The client counts as connected only when this connection stands, so it is offered at once.
        self.offer_subscriber(key, now);
    }

    /// Begins a new ICE session on it, because the client resumes.
    pub(crate) fn restart_subscriber(&mut self, key: usize, now: Instant) {
        if let Some(peer) = self.participants[key].subscriber.as_mut() {
            peer.next_local = Some(IceCredentials::random());
            peer.offering = Offering {
                id: peer.offering.id,
                ..Offering::default()
            };
            self.offer_subscriber(key, now);
        }
    }

    /// Offers what the client is to receive; once more later if it still has an offer to answer.
    pub(crate) fn offer_subscriber(&mut self, key: usize, _now: Instant) {
        let waiting = self.waiting(key);
        let Some(peer) = self.participants[key].subscriber.as_mut() else {
            return;
        };
        if peer.offering.waiting {
            peer.offering.again = true;
            return;
        }
        for subscription in waiting {
            let kind = self.participants[key].subscriptions[subscription].kind;
            let Some(peer) = self.participants[key].subscriber.as_mut() else {
                return;
            };
            let full = peer.slots.len() + 1 >= sdp::MAX_SECTIONS;
            let mid = match peer.slots.assign(kind, subscription, |_| true) {
                Some(slot) => slot.mid.clone(),
                // What finds no place waits for one that becomes free.
                None if full => continue,
                None => peer
                    .slots
                    .add(kind, subscription, payloads(kind), extensions(kind))
                    .mid
                    .clone(),
            };
            self.participants[key].subscriptions[subscription].mid = Some(mid);
        }
        let (sdp, mid_to_track_id) = self.write_offer(key);
        let participant = &mut self.participants[key];
        let Some(peer) = participant.subscriber.as_mut() else {
            return;
        };
        peer.version += 1;
        peer.offering.id += 1;
        (peer.offering.waiting, peer.offering.again) = (true, false);
        let id = peer.offering.id;
        participant.send(SignalOut::Offer(SessionDescription {
            r#type: "offer".to_owned(),
            sdp,
            id,
            mid_to_track_id,
        }));
    }

    fn write_offer(&self, key: usize) -> (String, HashMap<String, String>) {
        let mut map = HashMap::new();
        let participant = &self.participants[key];
        let Some(peer) = participant.subscriber.as_ref() else {
            return (String::new(), map);
        };
        let section = |kind: Kind, mid: &str| LocalSection {
            kind,
            media: kind.to_string(),
            protocol: if kind == Kind::Application {
                "UDP/DTLS/SCTP"
            } else {
                "UDP/TLS/RTP/SAVPF"
            }
            .to_owned(),
            formats: Vec::new(),
            mid: mid.to_owned(),
            rejected: false,
            direction: Direction::Inactive,
            payloads: Vec::new(),
            opus_format: None,
            extensions: Vec::new(),
            receive_rids: Vec::new(),
            outgoing: None,
        };
        let mut sections = vec![section(Kind::Application, DATA_MID)];
        for slot in peer.slots.iter() {
            let outgoing = self.outgoing(key, slot);
            if let Some(outgoing) = &outgoing {
                map.insert(slot.mid.clone(), outgoing.track.clone());
            }
            sections.push(LocalSection {
                direction: Direction::new(outgoing.is_some(), false),
                payloads: payloads(slot.kind),
                extensions: extensions(slot.kind),
                outgoing,
                ..section(slot.kind, &slot.mid)
            });
        }
        let local = Local {
            session_id: peer.session_id,
            version: peer.version,
            ice: peer
                .next_local
                .clone()
                .unwrap_or_else(|| peer.transport.local_credentials().clone()),
            ice_lite: peer.ice_lite,
            fingerprint: self.environment.certificate.fingerprint(),
            setup: Setup::ActPass,
            candidates: self.environment.candidates.read().clone(),
            cname: participant.sid.clone(),
            extmap_allow_mixed: true,
            sections,
        };
        (sdp::write(&local), map)
    }

    /// The client's answer to our offer.
    pub(crate) fn take_answer(
        &mut self,
        key: usize,
        message: &SessionDescription,
        now: Instant,
    ) -> Result<(), SdpError> {
        let Some(peer) = self.participants[key].subscriber.as_mut() else {
            return Ok(());
        };
        // Older clients send no identifier.
        if !peer.offering.waiting || (message.id != 0 && message.id != peer.offering.id) {
            return Ok(());
        }
        let answer = sdp::parse(&message.sdp)?;
        peer.offering.waiting = false;
        let again = std::mem::take(&mut peer.offering.again);
        self.set_remote(key, Side::Subscriber, &answer, now);
        let Some(peer) = self.participants[key].subscriber.as_mut() else {
            return Ok(());
        };
        peer.slots.answered();
        let participant = &self.participants[key];
        let slots = participant.subscriber.iter().flat_map(|peer| peer.slots.iter());
        let started: Vec<(usize, Slot)> = slots
            .filter_map(|slot| match slot.carries {
                Carries::Subscription(subscription) => Some((subscription, slot)),
                Carries::Nothing | Carries::Clearing => None,
            })
            .filter(|(subscription, _)| {
                let entry = participant.subscriptions.get(*subscription);
                entry.is_some_and(|entry| entry.down.is_none() && !entry.unsupported)
            })
            .map(|(subscription, slot)| (subscription, slot.clone()))
            .collect();
        let sections = sdp::by_mid(&answer);
        for (subscription, mut slot) in started {
            // A section that the client rejected carries nothing.
            let section = sections.get(slot.mid.as_str()).filter(|section| !section.rejected);
            slot.codecs = section.map(|section| codecs::negotiate(section)).unwrap_or_default();
            slot.extensions = section.map(|section| codecs::extensions(section)).unwrap_or_default();
            let publication = self.participants[key].subscriptions[subscription].publication;
            if self.start_down_track(key, subscription, &slot) {
                self.tell_subscribed(publication);
            } else {
                self.tell_unsupported(key, subscription);
            }
        }
        self.allocate(key, now);
        self.touch(key, Side::Subscriber);
        if again {
            self.offer_subscriber(key, now);
        }
        Ok(())
    }
}

/// What we offer to send, with payload types of our own choice.
fn payloads(kind: Kind) -> Vec<Negotiated> {
    const VIDEO: &[(Codec, u8, &str)] = &[
        (Codec::Vp8, 96, ""),
        (Codec::Vp9, 98, "profile-id=0"),
        (
            Codec::H264,
            102,
            "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
        ),
        (
            Codec::H264,
            108,
            "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f",
        ),
        (
            Codec::H264,
            123,
            "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=640032",
        ),
        (Codec::Av1, 45, ""),
    ];
    let payload = |codec: Codec, number, channels, format: &str, feedback: &[&str]| Payload {
        number,
        name: codec.name().to_owned(),
        clock_rate: codec.clock_rate(),
        channels,
        format: format.to_owned(),
        feedback: feedback.iter().map(|feedback| (*feedback).to_owned()).collect(),
    };
    if kind == Kind::Audio {
        let payload = payload(Codec::Opus, 111, 2, "minptime=10;useinbandfec=1", &["nack"]);
        return vec![Negotiated {
            codec: Codec::Opus,
            payload,
            rtx: None,
        }];
    }
    VIDEO
        .iter()
        .map(|(codec, number, format)| Negotiated {
            codec: *codec,
            payload: payload(*codec, *number, 0, format, codecs::VIDEO_FEEDBACK),
            rtx: Some(Payload {
                number: number + 1,
                name: "rtx".to_owned(),
                clock_rate: 90_000,
                format: format!("apt={number}"),
                ..Payload::default()
            }),
        })
        .collect()
}

fn extensions(kind: Kind) -> Vec<Extension> {
    let audio: &[_] = &[
        (1, codecs::AUDIO_LEVEL),
        (4, codecs::MID),
        (7, codecs::ABS_CAPTURE_TIME),
    ];
    let video: &[_] = &[
        (2, codecs::ABS_SEND_TIME),
        (3, codecs::TRANSPORT_WIDE_CC),
        (4, codecs::MID),
        (7, codecs::ABS_CAPTURE_TIME),
        (8, codecs::DEPENDENCY_DESCRIPTOR),
        (9, codecs::VIDEO_ORIENTATION),
    ];
    let known = if kind == Kind::Audio { audio } else { video };
    known
        .iter()
        .map(|(id, uri)| Extension {
            id: *id,
            uri: (*uri).to_owned(),
        })
        .collect()
}
