//! One track as one subscriber receives it: which layer is forwarded, with which numbers and timestamps, what is sent
//! again, and the sender reports. Pure; told the time; knows neither the publisher's connection nor encryption.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::codec::Codec;
use super::codec::vp8::Vp8Descriptor;
use super::estimate::SendHistory;
use super::header_extensions::{ExtensionBlock, ExtensionKind, ExtensionMap};
use super::layers::Layer;
use super::receive_stats::SenderClock;
use super::rtcp::{ReportBlock, SenderInfo};
use super::rtp::OutgoingRtp;
use super::sequence_map::SequenceMap;
use super::up_track::UpPacket;

/// Sources remembered after switches, for retransmission of their last packets.
const MAX_SOURCES: usize = 4;
/// Retransmissions in one interval: a broken or hostile subscriber must not make us flood it.
const MAX_RESENT: u32 = 200;
const RESENT_INTERVAL: Duration = Duration::from_millis(100);
/// A difference of capture times beyond this means that a publisher's clock jumped: arrival decides then.
const MAX_CAPTURE_GAP: f64 = 10.0;
/// Number of a retransmission's original, and a VP8 descriptor.
const MAX_PREFIX: usize = 8;

/// What was negotiated for a track towards one subscriber.
#[derive(Debug, Clone)]
pub struct DownTrackParams {
    pub codec: Codec,
    pub ssrc: u32,
    pub payload_type: u8,
    /// SSRC and payload type of the retransmissions (RFC 4588). Without them nothing is sent again: a second packet
    /// under one SRTP index would break the encryption.
    pub repair: Option<(u32, u8)>,
    /// The m-section, for the extension that names it.
    pub mid: String,
    /// The subscriber's extension ids.
    pub extensions: ExtensionMap,
    /// Where the packet numbers begin; random, below 2^15.
    pub first_sequence: u16,
}

/// A packet on its way to the subscriber.
#[derive(Debug, Clone)]
pub struct DownPacket<'a> {
    ssrc: u32,
    payload_type: u8,
    marker: bool,
    sequence: u64,
    timestamp: u32,
    extensions: ExtensionBlock,
    prefix: [u8; MAX_PREFIX],
    prefix_len: usize,
    payload: &'a [u8],
}

impl DownPacket<'_> {
    /// For [`crate::transport::PeerTransport::send_rtp`].
    pub fn outgoing(&self) -> OutgoingRtp<'_> {
        OutgoingRtp {
            marker: self.marker,
            payload_type: self.payload_type,
            sequence: self.sequence,
            timestamp: self.timestamp,
            ssrc: self.ssrc,
            extensions: &self.extensions,
            prefix: &self.prefix[..self.prefix_len],
            payload: self.payload,
            padding: 0,
        }
    }
}

/// A packet that the subscriber asked for again: fetch it with [`super::up_track::UpTrack::cached`] and hand it to
/// [`DownTrack::resend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    pub layer: Layer,
    pub up_sequence: u64,
    down_sequence: u64,
}

/// A track towards one subscriber.
#[derive(Debug)]
pub struct DownTrack {
    params: DownTrackParams,
    /// The layer the subscriber is to have; `None` while paused or muted.
    target: Option<Layer>,
    /// What is forwarded at present.
    current: Option<Layer>,
    /// The newest last.
    sources: VecDeque<Source>,
    last: Option<LastSent>,
    next_sequence: u64,
    next_repair_sequence: u64,
    resent: (Option<Instant>, u32),
    last_report: Option<(u32, Instant)>,
    stats: DownStats,
}

/// The translation of one source stream.
#[derive(Debug)]
struct Source {
    layer: Layer,
    map: SequenceMap,
    timestamp_offset: u32,
    picture_id_offset: u16,
    tl0_offset: u8,
    first_down: u64,
}

/// The newest packet sent, by its number.
#[derive(Debug, Clone, Copy)]
struct LastSent {
    sequence: u64,
    timestamp: u32,
    at: Instant,
    capture_ntp: Option<u64>,
    picture_id: u16,
    tl0: u8,
}

/// Counts and the subscriber's view of the track.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DownStats {
    pub packets: u32,
    pub octets: u32,
    pub resent: u32,
    /// Lost since the subscriber's previous report, 0 to 1.
    pub fraction_lost: f64,
    pub jitter: Duration,
    pub round_trip: Option<Duration>,
}

impl DownTrack {
    /// A track that forwards nothing until [`DownTrack::set_target`].
    pub fn new(params: DownTrackParams) -> Self {
        let first = u64::from(params.first_sequence & 0x7FFF);
        Self {
            params,
            target: None,
            current: None,
            sources: VecDeque::new(),
            last: None,
            next_sequence: first,
            next_repair_sequence: first,
            resent: (None, 0),
            last_report: None,
            stats: DownStats::default(),
        }
    }

    /// Which layer to forward from the next keyframe on; `None` stops at once.
    pub fn set_target(&mut self, target: Option<Layer>) {
        self.target = target;
        if target.is_none() {
            self.current = None;
        }
    }

    pub fn target(&self) -> Option<Layer> {
        self.target
    }

    /// The layer that is forwarded at present.
    pub fn current(&self) -> Option<Layer> {
        self.current
    }

    pub fn ssrc(&self) -> u32 {
        self.params.ssrc
    }

    /// The SSRC of retransmissions.
    pub fn repair_ssrc(&self) -> Option<u32> {
        self.params.repair.map(|(ssrc, _)| ssrc)
    }

    /// The section or the extension ids changed in a new negotiation.
    pub fn renegotiated(&mut self, mid: String, extensions: ExtensionMap) {
        self.params.mid = mid;
        self.params.extensions = extensions;
    }

    /// The layer of which a keyframe is needed to get where the track should be.
    pub fn needs_keyframe(&self) -> Option<Layer> {
        self.target
            .filter(|target| self.current != Some(*target) && self.params.codec.is_video())
    }

    /// The subscriber lost its picture: the layer of which it needs a keyframe.
    pub fn keyframe_requested(&self) -> Option<Layer> {
        self.current.or(self.target).filter(|_| self.params.codec.is_video())
    }

    /// Translates a packet for the subscriber; `None` if it is not for it. `history` is that of the subscriber's
    /// connection.
    pub fn forward<'a>(
        &mut self,
        now: Instant,
        packet: &UpPacket<'a>,
        history: &mut SendHistory,
    ) -> Option<DownPacket<'a>> {
        let target = self.target?;
        if packet.codec != self.params.codec {
            return None;
        }
        if self.current != Some(packet.layer) {
            // Any lower layer is better than no picture at first.
            let wanted = packet.layer == target || (self.current.is_none() && packet.layer < target);
            if !wanted || !packet.begins_keyframe || packet.payload.is_empty() {
                return None;
            }
            self.switch_to(now, packet);
        }
        let source = self.sources.back_mut()?;
        if packet.payload.is_empty() {
            source.map.skip(packet.sequence);
            return None;
        }
        let sequence = source.map.map(packet.sequence)?;
        let mut down = translate(&self.params, source, sequence, packet)?;
        self.next_sequence = self.next_sequence.max(sequence + 1);
        self.note_sent(now, packet, &down);
        self.stats.packets = self.stats.packets.wrapping_add(1);
        self.stats.octets = self
            .stats
            .octets
            .wrapping_add((down.prefix_len + packet.payload.len()) as u32);
        self.finish_extensions(now, packet, &mut down, history);
        Some(down)
    }

    /// The retransmissions that a NACK asks for.
    pub fn lost(&mut self, now: Instant, numbers: impl Iterator<Item = u16>, resend: &mut Vec<Resend>) {
        let Some(last) = self.last.filter(|_| self.params.repair.is_some()) else {
            return;
        };
        if self.resent.0.is_none_or(|at| now >= at + RESENT_INTERVAL) {
            self.resent = (Some(now), 0);
        }
        for number in numbers {
            // The most recent packet with these low bits.
            let behind = (last.sequence as u16).wrapping_sub(number);
            let Some(down_sequence) = last.sequence.checked_sub(u64::from(behind)) else {
                continue;
            };
            let Some(source) = self.sources.iter().rev().find(|s| down_sequence >= s.first_down) else {
                continue;
            };
            if self.resent.1 >= MAX_RESENT {
                return;
            }
            if let Some(up_sequence) = source.map.unmap(down_sequence) {
                self.resent.1 += 1;
                resend.push(Resend {
                    layer: source.layer,
                    up_sequence,
                    down_sequence,
                });
            }
        }
    }

    /// The retransmission of a packet.
    pub fn resend<'a>(
        &mut self,
        now: Instant,
        resend: &Resend,
        packet: &UpPacket<'a>,
        history: &mut SendHistory,
    ) -> Option<DownPacket<'a>> {
        let (ssrc, payload_type) = self.params.repair?;
        let source = self
            .sources
            .iter()
            .rev()
            .find(|s| resend.down_sequence >= s.first_down)?;
        let mut down = translate(&self.params, source, resend.down_sequence, packet)?;
        // RFC 4588 §4: the original number in front of the payload.
        let mut prefix = [0; MAX_PREFIX];
        prefix[..2].copy_from_slice(&(resend.down_sequence as u16).to_be_bytes());
        prefix[2..2 + down.prefix_len].copy_from_slice(&down.prefix[..down.prefix_len]);
        (down.prefix, down.prefix_len) = (prefix, down.prefix_len + 2);
        (down.ssrc, down.payload_type) = (ssrc, payload_type);
        down.sequence = self.next_repair_sequence;
        self.next_repair_sequence += 1;
        self.stats.resent += 1;
        self.finish_extensions(now, packet, &mut down, history);
        Some(down)
    }

    /// The sender report for now, on the publisher's wall clock so that its tracks stay in step with each other.
    /// `clock` is that of the forwarded layer. `None` until both sides have something to say.
    pub fn sender_report(&mut self, now: Instant, clock: Option<SenderClock>) -> Option<(u32, SenderInfo)> {
        let (clock, source) = (clock?, self.sources.back()?);
        if self.current != Some(source.layer) {
            return None;
        }
        let elapsed = now.saturating_duration_since(clock.arrived).as_secs_f64();
        let ntp = clock.ntp.wrapping_add((elapsed * 4_294_967_296.0) as u64);
        let ticks = (elapsed * f64::from(self.params.codec.clock_rate())) as u32;
        self.last_report = Some(((ntp >> 16) as u32, now));
        let rtp_timestamp = clock
            .rtp_timestamp
            .wrapping_add(ticks)
            .wrapping_add(source.timestamp_offset);
        let (packets, octets) = (self.stats.packets, self.stats.octets);
        Some((
            self.params.ssrc,
            SenderInfo {
                ntp,
                rtp_timestamp,
                packets,
                octets,
            },
        ))
    }

    /// The subscriber's report on this track.
    pub fn receiver_report(&mut self, now: Instant, block: &ReportBlock) {
        self.stats.fraction_lost = f64::from(block.fraction_lost) / 256.0;
        self.stats.jitter =
            Duration::from_secs_f64(f64::from(block.jitter) / f64::from(self.params.codec.clock_rate()));
        if let Some((report, sent)) = self
            .last_report
            .filter(|(report, _)| *report == block.last_sender_report)
            && report != 0
        {
            let held = Duration::from_secs_f64(f64::from(block.delay_since_last_sender_report) / 65_536.0);
            self.stats.round_trip = now.saturating_duration_since(sent).checked_sub(held);
        }
    }

    pub fn stats(&self) -> DownStats {
        self.stats
    }

    fn switch_to(&mut self, now: Instant, packet: &UpPacket<'_>) {
        self.current = Some(packet.layer);
        let descriptor = vp8_descriptor(packet);
        let picture_id = descriptor.and_then(|d| d.picture_id).unwrap_or(0);
        let tl0 = descriptor.and_then(|d| d.tl0_picture_index).unwrap_or(0);
        // The same stream after a pause keeps its clock.
        let same_stream = self
            .sources
            .back()
            .filter(|s| s.layer == packet.layer)
            .map(|s| s.timestamp_offset);
        let (timestamp_offset, picture_id_offset, tl0_offset) = match &self.last {
            None => (0, 0, 0),
            Some(last) => {
                let expected = last.timestamp.wrapping_add(self.elapsed_ticks(now, last, packet));
                (
                    same_stream.unwrap_or_else(|| expected.wrapping_sub(packet.timestamp)),
                    last.picture_id.wrapping_add(1).wrapping_sub(picture_id),
                    last.tl0.wrapping_add(1).wrapping_sub(tl0),
                )
            }
        };
        self.sources.push_back(Source {
            layer: packet.layer,
            map: SequenceMap::starting(packet.sequence, self.next_sequence),
            timestamp_offset,
            picture_id_offset,
            tl0_offset,
            first_down: self.next_sequence,
        });
        if self.sources.len() > MAX_SOURCES {
            self.sources.pop_front();
        }
    }

    /// Clock ticks between the last packet sent and this one of another stream: by capture times where both are known,
    /// by arrival otherwise. At least one, so that the pictures differ.
    fn elapsed_ticks(&self, now: Instant, last: &LastSent, packet: &UpPacket<'_>) -> u32 {
        let rate = f64::from(self.params.codec.clock_rate());
        let by_capture = last
            .capture_ntp
            .zip(packet.capture_ntp)
            .map(|(before, after)| after.wrapping_sub(before) as i64 as f64 / 4_294_967_296.0);
        let by_arrival = now.saturating_duration_since(last.at).as_secs_f64();
        let seconds = by_capture
            .filter(|s| (s - by_arrival).abs() < MAX_CAPTURE_GAP)
            .unwrap_or(by_arrival);
        ((seconds * rate) as i64).clamp(1, i64::from(u32::MAX / 2)) as u32
    }

    fn note_sent(&mut self, now: Instant, packet: &UpPacket<'_>, down: &DownPacket<'_>) {
        if self.last.is_some_and(|last| last.sequence >= down.sequence) {
            return;
        }
        let Some(source) = self.sources.back() else { return };
        let descriptor = vp8_descriptor(packet);
        let before = self.last;
        self.last = Some(LastSent {
            sequence: down.sequence,
            timestamp: down.timestamp,
            at: now,
            capture_ntp: packet.capture_ntp,
            picture_id: descriptor
                .and_then(|d| d.picture_id)
                .map(|id| id.wrapping_add(source.picture_id_offset))
                .or(before.map(|l| l.picture_id))
                .unwrap_or(0),
            tl0: descriptor
                .and_then(|d| d.tl0_picture_index)
                .map(|tl0| tl0.wrapping_add(source.tl0_offset))
                .or(before.map(|l| l.tl0))
                .unwrap_or(0),
        });
    }

    fn finish_extensions(
        &self,
        now: Instant,
        packet: &UpPacket<'_>,
        down: &mut DownPacket<'_>,
        history: &mut SendHistory,
    ) {
        let map = &self.params.extensions;
        down.extensions
            .push_kind(map, ExtensionKind::Mid, self.params.mid.as_bytes());
        down.extensions.copy_media(map, &packet.extensions);
        if map.id(ExtensionKind::AbsSendTime).is_some() {
            let time = history.abs_send_time(now).to_be_bytes();
            down.extensions.push_kind(map, ExtensionKind::AbsSendTime, &time[1..]);
        }
        if map.id(ExtensionKind::TransportSequence).is_some() {
            let number = history.sent(now, down.outgoing().len());
            down.extensions
                .push_kind(map, ExtensionKind::TransportSequence, &number.to_be_bytes());
        }
    }
}

fn vp8_descriptor(packet: &UpPacket<'_>) -> Option<Vp8Descriptor> {
    if packet.codec == Codec::Vp8 {
        Vp8Descriptor::parse(packet.payload)
    } else {
        None
    }
}

fn translate<'a>(
    params: &DownTrackParams,
    source: &Source,
    sequence: u64,
    packet: &UpPacket<'a>,
) -> Option<DownPacket<'a>> {
    let mut down = DownPacket {
        ssrc: params.ssrc,
        payload_type: params.payload_type,
        marker: packet.marker,
        sequence,
        timestamp: packet.timestamp.wrapping_add(source.timestamp_offset),
        extensions: ExtensionBlock::default(),
        prefix: [0; MAX_PREFIX],
        prefix_len: 0,
        payload: packet.payload,
    };
    if packet.codec == Codec::Vp8 {
        let descriptor = Vp8Descriptor::parse(packet.payload)?;
        let picture_id = descriptor
            .picture_id
            .unwrap_or(0)
            .wrapping_add(source.picture_id_offset);
        let tl0 = descriptor
            .tl0_picture_index
            .unwrap_or(0)
            .wrapping_add(source.tl0_offset);
        let (rewritten, len) = descriptor.rewrite(packet.payload, picture_id, tl0);
        down.prefix[..len].copy_from_slice(&rewritten[..len]);
        down.prefix_len = len;
        down.payload = packet.payload.get(len..)?;
    }
    Some(down)
}

#[cfg(test)]
mod tests;
