//! The way of a packet from its publisher to the subscribers, and of feedback the other way. Everything here runs in the
//! room's own task: nothing is locked, and nothing is allocated per packet and subscriber.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use livekit_protocol::{
    ConnectionQuality, SpeakerInfo, SpeakersChanged, StreamState, StreamStateInfo, StreamStateUpdate, TrackSource,
    VideoQuality, signal_response::Message as SignalOut,
};
use slab::Slab;

use super::{
    actor::{Room, Side},
    negotiation::Slot,
    participant::{Participant, Peer},
    publication::Publication,
    subscription::Subscription,
};
use crate::{
    clock,
    media::{
        allocate::{VideoWish, allocate},
        arrivals::ArrivalRecorder,
        down_track::{DownTrack, DownTrackParams, Resend},
        estimate::{BandwidthEstimate, SendHistory},
        header_extensions::{ExtensionKind, ExtensionMap},
        layers::{Dimensions, Layer, layer_for},
        rtcp::{self, ReportBlock, ReportBlocks, RtcpPacket, RtcpWriter},
        rtp::RtpHeader,
        streams::{PayloadFormat, PayloadTypes, StreamTable},
    },
    sdp::{Extension, Kind, codecs},
};

/// The round trip to a publisher that told none yet.
const ASSUMED_ROUND_TRIP: Duration = Duration::from_millis(100);
/// Bits per second set aside for each audio track.
const AUDIO_RESERVE: u64 = 50_000;
/// Levels are told in this many steps, so that small wavering is no change.
const LEVEL_STEPS: f32 = 8.0;
/// Report blocks of one RTCP packet (RFC 3550 §6.4.1: a five bit count).
const MAX_REPORT_BLOCKS: usize = 31;
/// Transport feedbacks taken from one compound packet; clients send one.
const MAX_FEEDBACKS: usize = 4;

/// What is known of the packets that a client sends over one connection.
pub(crate) struct IncomingMedia {
    pub(crate) extensions: ExtensionMap,
    pub(crate) payload_types: PayloadTypes,
    /// Which publication an SSRC belongs to.
    pub(crate) streams: StreamTable<usize>,
    arrivals: ArrivalRecorder,
    /// Under which we send reports and feedback to the client.
    ssrc: u32,
}

impl IncomingMedia {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            extensions: ExtensionMap::default(),
            payload_types: PayloadTypes::default(),
            streams: StreamTable::default(),
            arrivals: ArrivalRecorder::new(now),
            ssrc: u32::from_be_bytes(clock::random()).max(1),
        }
    }

    /// Takes in the header extensions of a section.
    pub(crate) fn learn_extensions(&mut self, extensions: &[Extension]) {
        for extension in extensions {
            if let Some(kind) = ExtensionKind::from_uri(&extension.uri) {
                self.extensions.set(kind, extension.id);
            }
        }
    }
}

/// What is known of the packets that go to a client over one connection.
pub(crate) struct OutgoingMedia {
    history: SendHistory,
    estimate: BandwidthEstimate,
    /// Which subscription an SSRC of ours belongs to.
    subscriptions: HashMap<u32, usize>,
}

impl OutgoingMedia {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            history: SendHistory::new(now),
            estimate: BandwidthEstimate::default(),
            subscriptions: HashMap::new(),
        }
    }
}

/// The parts of a participant that forwarding touches, borrowed apart.
fn receiving_parts(participant: &mut Participant) -> Option<(&mut Peer, &mut Slab<Subscription>, Side)> {
    let Participant {
        publisher,
        subscriber,
        subscriptions,
        single_connection,
        ..
    } = participant;
    let (peer, side) = if *single_connection {
        (publisher, Side::Publisher)
    } else {
        (subscriber, Side::Subscriber)
    };
    Some((peer.as_mut()?, subscriptions, side))
}

impl Room {
    /// One RTP packet of participant `key`.
    pub(crate) fn rtp(&mut self, key: usize, packet: &[u8], now: Instant) {
        let Self {
            participants,
            publications,
            dirty,
            ..
        } = self;
        let Some(peer) = participants[key].publisher.as_mut() else {
            return;
        };
        let Some(header) = RtpHeader::parse(packet) else { return };
        let incoming = &mut peer.incoming;
        let extensions = incoming.extensions.read(&header, packet);
        if let Some(number) = extensions.transport_sequence {
            incoming.arrivals.received(now, number, header.ssrc);
        }
        let Some(format) = incoming.payload_types.get(header.payload_type) else {
            return;
        };
        let Some(stream) = incoming.streams.resolve(&header, &extensions, format) else {
            return;
        };
        let Some(publication) = publications.get_mut(stream.section) else {
            return;
        };
        let Publication {
            up,
            subscribers,
            meter,
            info,
            ..
        } = publication;
        if let Some(level) = extensions.audio_level
            && !info.muted
        {
            meter.observe(level);
        }
        let Some(up) = up.as_mut() else { return };
        let Some(received) = up.receive(now, &stream, format, (&header, extensions), packet) else {
            return;
        };
        for &(subscriber, subscription) in subscribers.iter() {
            let Some(participant) = participants.get_mut(subscriber) else {
                continue;
            };
            let Some((peer, subscriptions, side)) = receiving_parts(participant) else {
                continue;
            };
            let Some(down) = subscriptions
                .get_mut(subscription)
                .and_then(|entry| entry.down.as_mut())
            else {
                continue;
            };
            if let Some(outgoing) = down.forward(now, &received, &mut peer.outgoing.history) {
                peer.transport.send_rtp(&outgoing.outgoing());
                if !std::mem::replace(&mut peer.dirty, true) {
                    dirty.push((subscriber, side));
                }
            }
        }
    }

    /// One compound RTCP packet of participant `key`. Packets and report blocks are taken one by one: a compound speaks
    /// of many streams.
    pub(crate) fn rtcp(&mut self, key: usize, side: Side, compound: &[u8], now: Instant) {
        let mut feedbacks = 0;
        for packet in rtcp::parse(compound) {
            match packet {
                RtcpPacket::SenderReport { ssrc, info, reports } => {
                    let Some(peer) = self.participants[key].peer(side) else {
                        return;
                    };
                    if let Some(stream) = peer.incoming.streams.get(ssrc).filter(|stream| !stream.is_repair)
                        && let Some(up) = self
                            .publications
                            .get_mut(stream.section)
                            .and_then(|entry| entry.up.as_mut())
                    {
                        up.sender_report(now, stream.layer, &info);
                    }
                    self.receiver_reports(key, side, &reports, now);
                }
                RtcpPacket::ReceiverReport { reports, .. } => self.receiver_reports(key, side, &reports, now),
                RtcpPacket::Nack { media_ssrc, lost } => self.resend(key, media_ssrc, lost.iter(), now),
                RtcpPacket::PictureLossIndication { media_ssrc } | RtcpPacket::FullIntraRequest { media_ssrc } => {
                    self.keyframe_requested(key, media_ssrc);
                }
                RtcpPacket::ReceiverEstimate { bits_per_second } => {
                    if let Some(peer) = self.participants[key].peer(side) {
                        peer.outgoing.estimate.receiver_estimate(bits_per_second);
                    }
                }
                RtcpPacket::TransportFeedback(feedback) => {
                    feedbacks += 1;
                    if feedbacks > MAX_FEEDBACKS {
                        continue;
                    }
                    if let Some(peer) = self.participants[key].peer(side) {
                        let OutgoingMedia { history, estimate, .. } = &mut peer.outgoing;
                        estimate.transport_feedback(now, &feedback, history);
                    }
                }
                RtcpPacket::Goodbye { .. } => {}
            }
        }
    }

    fn receiver_reports(&mut self, key: usize, side: Side, reports: &ReportBlocks<'_>, now: Instant) {
        let participant = &mut self.participants[key];
        for block in reports.iter() {
            let Some(peer) = participant.peer(side) else { return };
            let Some(&subscription) = peer.outgoing.subscriptions.get(&block.ssrc) else {
                continue;
            };
            peer.outgoing
                .estimate
                .receiver_report(now, f64::from(block.fraction_lost) / 256.0);
            if let Some(down) = participant
                .subscriptions
                .get_mut(subscription)
                .and_then(|entry| entry.down.as_mut())
                && down.ssrc() == block.ssrc
            {
                down.receiver_report(now, &block);
            }
        }
    }

    fn resend(&mut self, key: usize, ssrc: u32, lost: impl Iterator<Item = u16>, now: Instant) {
        let Self {
            participants,
            publications,
            resends,
            ..
        } = self;
        let Some((peer, subscriptions, side)) = receiving_parts(&mut participants[key]) else {
            return;
        };
        let Some(entry) = peer
            .outgoing
            .subscriptions
            .get(&ssrc)
            .and_then(|key| subscriptions.get_mut(*key))
        else {
            return;
        };
        let (Some(down), Some(publication)) = (entry.down.as_mut(), publications.get(entry.publication)) else {
            return;
        };
        let Some(up) = publication.up.as_ref() else { return };
        resends.clear();
        down.lost(now, lost, resends);
        for resend in resends.iter() {
            if let Some(cached) = up.cached(resend.layer, resend.up_sequence, &publication.extensions)
                && let Some(outgoing) = down.resend(now, resend, &cached, &mut peer.outgoing.history)
            {
                peer.transport.send_rtp(&outgoing.outgoing());
            }
        }
        self.touch(key, side);
    }

    fn keyframe_requested(&mut self, key: usize, ssrc: u32) {
        let Some((peer, subscriptions, _)) = receiving_parts(&mut self.participants[key]) else {
            return;
        };
        let Some(entry) = peer
            .outgoing
            .subscriptions
            .get(&ssrc)
            .and_then(|key| subscriptions.get(*key))
        else {
            return;
        };
        let layer = entry.down.as_ref().and_then(DownTrack::keyframe_requested);
        if let Some(layer) = layer
            && let Some(up) = self
                .publications
                .get_mut(entry.publication)
                .and_then(|entry| entry.up.as_mut())
        {
            up.request_keyframe(layer);
        }
    }

    /// A section carries the subscription from here on; false if it cannot. The caller allocates, once for all it starts.
    pub(crate) fn start_down_track(&mut self, key: usize, subscription: usize, slot: &Slot) -> bool {
        let Self {
            participants,
            publications,
            ..
        } = self;
        let Some((peer, subscriptions, _)) = receiving_parts(&mut participants[key]) else {
            return false;
        };
        let Some(entry) = subscriptions.get_mut(subscription) else {
            return false;
        };
        let Some(publication) = publications.get_mut(entry.publication) else {
            return false;
        };
        let Some((codec, format)) = &publication.codec else {
            return false;
        };
        let Some(negotiated) = codecs::matching(&slot.codecs, *codec, format) else {
            return false;
        };
        let mut extensions = ExtensionMap::default();
        for extension in &slot.extensions {
            if let Some(kind) = ExtensionKind::from_uri(&extension.uri) {
                extensions.set(kind, extension.id);
            }
        }
        entry.down = Some(DownTrack::new(DownTrackParams {
            codec: *codec,
            ssrc: entry.ssrc,
            payload_type: negotiated.payload.number,
            repair: negotiated.rtx.as_ref().map(|rtx| (entry.rtx_ssrc, rtx.number)),
            mid: slot.mid.clone(),
            extensions,
            first_sequence: u16::from_be_bytes(clock::random()) >> 1,
        }));
        peer.outgoing.subscriptions.insert(entry.ssrc, subscription);
        peer.outgoing.subscriptions.insert(entry.rtx_ssrc, subscription);
        publication.subscribers.push((key, subscription));
        true
    }

    /// Forgets the SSRCs of a subscription that ends or lost its section.
    pub(crate) fn stop_down_track(&mut self, key: usize, subscription: usize) {
        let Some((peer, subscriptions, _)) = receiving_parts(&mut self.participants[key]) else {
            return;
        };
        if let Some(entry) = subscriptions.get_mut(subscription) {
            entry.down = None;
            peer.outgoing.subscriptions.remove(&entry.ssrc);
            peer.outgoing.subscriptions.remove(&entry.rtx_ssrc);
        }
    }

    pub(crate) fn allocate_everybody(&mut self, now: Instant) {
        let keys: Vec<usize> = self.participants.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.allocate(key, now);
        }
    }

    /// Spreads what a client's connection carries over the videos it shows.
    pub(crate) fn allocate(&mut self, key: usize, now: Instant) {
        #[cfg(test)]
        {
            self.allocations += 1;
        }
        let Self {
            participants,
            publications,
            ..
        } = self;
        let allow_pause = participants[key].allow_pause;
        let Some((peer, subscriptions, _)) = receiving_parts(&mut participants[key]) else {
            return;
        };
        let mut reserved = 0;
        let mut videos = Vec::new();
        for (subscription, entry) in subscriptions.iter_mut() {
            let Some(publication) = publications.get(entry.publication) else {
                continue;
            };
            let wanted = publication
                .up
                .as_ref()
                .map(|up| wanted_layer(entry, publication, up.layer_count()));
            let Some(down) = entry.down.as_mut() else { continue };
            if entry.settings.disabled {
                down.set_target(None);
            } else if entry.kind == Kind::Audio {
                reserved += AUDIO_RESERVE;
                down.set_target(Some(Layer::LOW));
            } else if let (Some(up), Some(wanted)) = (publication.up.as_ref(), wanted) {
                let screen = publication.info.source == TrackSource::ScreenShare as i32;
                let wish = VideoWish {
                    wanted,
                    bit_rates: up.bit_rates(now),
                    current: down.current(),
                    priority: if entry.settings.priority == 0 {
                        u32::from(screen)
                    } else {
                        entry.settings.priority + 1
                    },
                };
                videos.push((subscription, wish));
            }
        }
        let wishes: Vec<VideoWish> = videos.iter().map(|(_, wish)| *wish).collect();
        let given = allocate(peer.outgoing.estimate.bits_per_second(), reserved, &wishes);
        let mut changed = Vec::new();
        for ((subscription, _), layer) in videos.into_iter().zip(given) {
            let entry = &mut subscriptions[subscription];
            let Some(down) = entry.down.as_mut() else { continue };
            let layer = layer.or((!allow_pause).then_some(Layer::LOW));
            down.set_target(layer);
            let publication = &mut publications[entry.publication];
            if std::mem::replace(&mut entry.told_paused, layer.is_none()) != layer.is_none() {
                changed.push((publication.owner, publication.sid().to_owned(), layer.is_none()));
            }
            if let (Some(layer), Some(up)) = (down.needs_keyframe(), publication.up.as_mut())
                && !publication.info.muted
            {
                up.request_keyframe(layer);
            }
        }
        if !changed.is_empty() {
            let stream_states = changed
                .into_iter()
                .map(|(owner, track_sid, paused)| StreamStateInfo {
                    participant_sid: self.participants[owner].sid.clone(),
                    track_sid,
                    state: if paused {
                        StreamState::Paused
                    } else {
                        StreamState::Active
                    } as i32,
                })
                .collect();
            self.participants[key].send(SignalOut::StreamStateUpdate(StreamStateUpdate { stream_states }));
        }
    }

    /// Asks publishers for lost packets and keyframes, and tells them what arrived.
    pub(crate) fn ask_publishers(&mut self, now: Instant) {
        let Self {
            participants,
            publications,
            dirty,
            writer,
            ..
        } = self;
        for (key, participant) in participants.iter_mut() {
            let Some(peer) = participant
                .publisher
                .as_mut()
                .filter(|peer| peer.transport.is_connected())
            else {
                continue;
            };
            let round_trip = participant.round_trip.unwrap_or(ASSUMED_ROUND_TRIP);
            writer.clear();
            for publication in &participant.publications {
                if let Some(up) = publications[*publication].up.as_mut()
                    && up.poll_timeout(now).is_some_and(|due| due <= now)
                {
                    up.write_requests(now, round_trip, peer.incoming.ssrc, writer);
                }
            }
            peer.incoming.arrivals.write_feedback(now, peer.incoming.ssrc, writer);
            if !writer.is_empty() {
                peer.transport.send_rtcp(writer.as_bytes());
                if !std::mem::replace(&mut peer.dirty, true) {
                    dirty.push((key, Side::Publisher));
                }
            }
        }
    }

    /// Receiver reports to publishers and sender reports to subscribers, every second.
    pub(crate) fn write_reports(&mut self, now: Instant) {
        let Self {
            participants,
            publications,
            writer,
            ..
        } = self;
        let mut touched = Vec::new();
        let mut blocks: Vec<ReportBlock> = Vec::new();
        for (key, participant) in participants.iter_mut() {
            if let Some(peer) = participant
                .publisher
                .as_mut()
                .filter(|peer| peer.transport.is_connected())
            {
                blocks.clear();
                for publication in &participant.publications {
                    if let Some(up) = publications[*publication].up.as_mut() {
                        up.report(now, &mut blocks);
                    }
                }
                let worst = blocks.iter().map(|block| block.fraction_lost).max().unwrap_or(0);
                participant.uplink_loss = f64::from(worst) / 256.0;
                for part in blocks.chunks(MAX_REPORT_BLOCKS) {
                    writer.clear();
                    writer.receiver_report(peer.incoming.ssrc, part);
                    writer.cname(peer.incoming.ssrc, &participant.sid);
                    peer.transport.send_rtcp(writer.as_bytes());
                    touched.push((key, Side::Publisher));
                }
            }
            let cname = participant.sid.clone();
            let Some((peer, subscriptions, side)) = receiving_parts(participant) else {
                continue;
            };
            if !peer.transport.is_connected() {
                continue;
            }
            let mut round_trip = None;
            for (_, entry) in subscriptions.iter_mut() {
                let (Some(down), Some(publication)) = (entry.down.as_mut(), publications.get(entry.publication)) else {
                    continue;
                };
                round_trip = round_trip.or(down.stats().round_trip);
                let clock = down
                    .current()
                    .and_then(|layer| publication.up.as_ref()?.sender_clock(layer));
                if let Some((ssrc, info)) = down.sender_report(now, clock) {
                    writer.clear();
                    writer.sender_report(ssrc, &info, &[]);
                    writer.cname(ssrc, &cname);
                    peer.transport.send_rtcp(writer.as_bytes());
                    touched.push((key, side));
                }
            }
            participant.round_trip = round_trip.or(participant.round_trip);
        }
        for (key, side) in touched {
            self.touch(key, side);
        }
    }

    /// Tells everybody whose loudness changed.
    pub(crate) fn tell_speakers(&mut self) {
        let Self {
            participants,
            publications,
            ..
        } = self;
        let mut speakers = Vec::new();
        for (_, participant) in participants.iter_mut() {
            let mut loudest: f32 = 0.0;
            for publication in &participant.publications {
                let publication = &mut publications[*publication];
                let level = publication.meter.sample();
                if publication.kind == Kind::Audio && !publication.info.muted {
                    loudest = loudest.max(level);
                }
            }
            let level = (loudest * LEVEL_STEPS).ceil() / LEVEL_STEPS;
            if level != participant.told_level {
                participant.told_level = level;
                speakers.push(SpeakerInfo {
                    sid: participant.sid.clone(),
                    level,
                    active: level > 0.0,
                });
            }
        }
        if speakers.is_empty() {
            return;
        }
        for (_, participant) in participants.iter_mut() {
            participant.send(SignalOut::SpeakersChanged(SpeakersChanged {
                speakers: speakers.clone(),
            }));
        }
    }

    /// How good a participant's connection is. A connection that is alive is never called lost: clients would begin anew.
    pub(crate) fn quality(&mut self, key: usize) -> ConnectionQuality {
        let participant = &mut self.participants[key];
        let paused = participant.subscriptions.iter().any(|(_, entry)| entry.told_paused);
        let uplink = participant.uplink_loss;
        let downlink = participant
            .receiving()
            .map_or(0.0, |peer| peer.outgoing.estimate.loss());
        let loss = uplink.max(downlink);
        if paused || loss > 0.10 {
            ConnectionQuality::Poor
        } else if loss > 0.03 {
            ConnectionQuality::Good
        } else {
            ConnectionQuality::Excellent
        }
    }
}

/// The best layer that is of use to the subscriber.
pub(crate) fn wanted_layer(entry: &Subscription, publication: &Publication, layer_count: usize) -> Layer {
    let best = Layer::new(layer_count.saturating_sub(1)).unwrap_or_default();
    let settings = &entry.settings;
    if settings.width > 0 && settings.height > 0 {
        let mut sizes: Vec<Dimensions> = publication
            .layers()
            .iter()
            .map(|layer| Dimensions {
                width: layer.width,
                height: layer.height,
            })
            .collect();
        sizes.sort_by_key(|size| u64::from(size.width) * u64::from(size.height));
        if sizes.len() == layer_count {
            return layer_for(
                &sizes,
                Dimensions {
                    width: settings.width,
                    height: settings.height,
                },
            )
            .min(best);
        }
    }
    match settings.quality {
        Some(VideoQuality::Low) if settings.width == 0 => Layer::LOW,
        Some(VideoQuality::Medium) => Layer::MEDIUM.min(best),
        _ => best,
    }
}

/// What the payload types of a section mean.
pub(crate) fn payload_formats(negotiated: &[codecs::Negotiated]) -> impl Iterator<Item = (u8, PayloadFormat)> {
    negotiated.iter().flat_map(|entry| {
        let media = (entry.payload.number, PayloadFormat::Media(entry.codec));
        let rtx = entry.rtx.as_ref().map(|rtx| {
            (
                rtx.number,
                PayloadFormat::Retransmission {
                    of: entry.payload.number,
                },
            )
        });
        [Some(media), rtx].into_iter().flatten()
    })
}

/// Reused between retransmission requests.
pub(crate) type Resends = Vec<Resend>;
/// Reused between RTCP packets.
pub(crate) type Writer = RtcpWriter;
