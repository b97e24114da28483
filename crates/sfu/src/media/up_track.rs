//! One published track with all its simulcast layers: unwraps retransmissions before anything is counted, numbers the
//! packets, keeps them for retransmission, and decides what to ask the publisher for (lost packets, keyframes). Pure;
//! told the time; knows no subscriber.

use std::time::{Duration, Instant};

use super::codec::Codec;
use super::header_extensions::{ExtensionMap, Extensions};
use super::keyframes::KeyframeRequests;
use super::layers::{Layer, MAX_LAYERS};
use super::nack::{Arrival, NackGenerator};
use super::packet_cache::PacketCache;
use super::receive_stats::{ReceiveStats, SenderClock};
use super::rtcp::{ReportBlock, RtcpWriter, SenderInfo};
use super::rtp::RtpHeader;
use super::streams::{PayloadFormat, Stream};

/// A layer that sent nothing for so long is not offered to subscribers: the publisher switched it off.
const LIVE_FOR: Duration = Duration::from_millis(1500);

/// One packet of a published track, as the forwarding sees it. Borrowed from the received datagram or the cache.
#[derive(Debug, Clone, Copy)]
pub struct UpPacket<'a> {
    pub layer: Layer,
    pub codec: Codec,
    /// Extended number within the layer's stream. A retransmitted packet has its original one.
    pub sequence: u64,
    pub timestamp: u32,
    pub marker: bool,
    /// A decoder can start with the picture that begins here. Always true for audio.
    pub begins_keyframe: bool,
    /// The publisher's wall clock at the capture, NTP 32.32; known after its first sender report.
    pub capture_ntp: Option<u64>,
    pub extensions: Extensions<'a>,
    /// Without padding. Empty in packets that the publisher sent as padding alone.
    pub payload: &'a [u8],
}

/// A published track.
#[derive(Debug)]
pub struct UpTrack {
    codec: Codec,
    layers: Vec<UpLayer>,
    lost: Vec<u16>,
}

#[derive(Debug)]
struct UpLayer {
    ssrc: Option<u32>,
    stats: ReceiveStats,
    nack: NackGenerator,
    cache: PacketCache,
    keyframes: KeyframeRequests,
}

impl UpLayer {
    fn is_live(&self, now: Instant) -> bool {
        self.stats.last_seen.is_some_and(|seen| now < seen + LIVE_FOR)
    }
}

impl UpTrack {
    /// `codec` is what the packets are believed to be until one says otherwise by its payload type.
    pub fn new(codec: Codec, layer_count: usize) -> Self {
        let layer = |_| UpLayer {
            ssrc: None,
            stats: ReceiveStats::new(codec.clock_rate()),
            nack: NackGenerator::default(),
            cache: PacketCache::default(),
            keyframes: KeyframeRequests::default(),
        };
        Self {
            codec,
            layers: (0..layer_count.clamp(1, MAX_LAYERS)).map(layer).collect(),
            lost: Vec::new(),
        }
    }

    /// Takes in a decrypted packet that [`super::streams::StreamTable`] assigned to this track. `None` if there is
    /// nothing to forward: a duplicate, a probe, or a malformed packet.
    pub fn receive<'a, K>(
        &mut self,
        now: Instant,
        stream: &Stream<K>,
        format: PayloadFormat,
        (header, extensions): (&RtpHeader, Extensions<'a>),
        packet: &'a [u8],
    ) -> Option<UpPacket<'a>> {
        let layer = self.layers.get_mut(stream.layer.index())?;
        let payload = packet.get(header.payload_range(packet)?)?;
        let (sequence, payload) = match format {
            PayloadFormat::Media(codec) => {
                self.codec = codec;
                layer.ssrc = Some(header.ssrc);
                (
                    layer
                        .stats
                        .received(now, header.sequence_number, header.timestamp, packet.len()),
                    payload,
                )
            }
            PayloadFormat::Retransmission { .. } => {
                // RFC 4588 §4: the original number comes first. Before the stream itself was seen it means nothing,
                // and a probe carries no number at all.
                layer.ssrc?;
                let (original, payload) = payload.split_first_chunk()?;
                let sequence = layer.stats.repaired(u16::from_be_bytes(*original));
                if layer.cache.get(sequence).is_some() {
                    return None;
                }
                (sequence, payload)
            }
        };
        if layer.nack.received(now, sequence) == Arrival::TooManyLost && self.codec.is_video() {
            layer.keyframes.want();
        }
        let begins_keyframe = self.codec.begins_keyframe(payload, extensions.dependency_descriptor);
        if self.codec.is_video() {
            layer
                .cache
                .insert(now, sequence, [&packet[..header.payload_start], payload]);
            if begins_keyframe {
                layer.keyframes.arrived();
            }
        }
        Some(UpPacket {
            layer: stream.layer,
            codec: self.codec,
            sequence,
            timestamp: header.timestamp,
            marker: header.marker,
            begins_keyframe,
            capture_ntp: layer
                .stats
                .sender_clock()
                .map(|c| c.ntp_of(header.timestamp, self.codec.clock_rate())),
            extensions,
            payload,
        })
    }

    /// A packet of the last second, for a subscriber that lost it. `map` is the publisher's.
    pub fn cached<'a>(&'a self, layer: Layer, sequence: u64, map: &ExtensionMap) -> Option<UpPacket<'a>> {
        let packet = self.layers.get(layer.index())?.cache.get(sequence)?;
        let header = RtpHeader::parse(packet)?;
        Some(UpPacket {
            layer,
            codec: self.codec,
            sequence,
            timestamp: header.timestamp,
            marker: header.marker,
            begins_keyframe: false,
            capture_ntp: None,
            extensions: map.read(&header, packet),
            // Padding was taken off before the packet was kept.
            payload: packet.get(header.payload_start..)?,
        })
    }

    /// Notes the publisher's sender report for a layer.
    pub fn sender_report(&mut self, now: Instant, layer: Layer, info: &SenderInfo) {
        if let Some(layer) = self.layers.get_mut(layer.index()) {
            layer.stats.sender_report(now, info);
        }
    }

    /// A subscriber needs a keyframe of this layer. Requests are throttled, and repeated until a keyframe comes.
    pub fn request_keyframe(&mut self, layer: Layer) {
        if self.codec.is_video()
            && let Some(layer) = self.layers.get_mut(layer.index())
        {
            layer.keyframes.want();
        }
    }

    /// Appends what the publisher has to be asked now: lost packets and keyframes.
    pub fn write_requests(&mut self, now: Instant, round_trip: Duration, sender_ssrc: u32, writer: &mut RtcpWriter) {
        for layer in &mut self.layers {
            let Some(ssrc) = layer.ssrc else { continue };
            if self.codec.is_video() {
                self.lost.clear();
                layer.nack.due(now, round_trip, &mut self.lost);
                writer.nack(sender_ssrc, ssrc, &self.lost);
                // A layer that is off (muted, or paused by its sender) begins with a keyframe by itself.
                if layer.is_live(now) && layer.keyframes.take_due(now) {
                    writer.picture_loss_indication(sender_ssrc, ssrc);
                }
            }
        }
    }

    /// Appends the report blocks of all layers; begins a new reporting interval.
    pub fn report(&mut self, now: Instant, blocks: &mut Vec<ReportBlock>) {
        for layer in &mut self.layers {
            blocks.extend(layer.ssrc.and_then(|ssrc| layer.stats.report(now, ssrc)));
        }
    }

    /// When [`UpTrack::write_requests`] has something to say. The owner may round it up to 10 ms.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        if !self.codec.is_video() {
            return None;
        }
        let due = |l: &UpLayer| {
            l.ssrc?;
            let keyframe = l.keyframes.poll_timeout(now).filter(|_| l.is_live(now));
            [l.nack.poll_timeout(), keyframe].into_iter().flatten().min()
        };
        self.layers.iter().filter_map(due).min()
    }

    /// Whether the publisher sends this layer at present.
    pub fn is_live(&self, now: Instant, layer: Layer) -> bool {
        self.layers.get(layer.index()).is_some_and(|layer| layer.is_live(now))
    }

    /// Bits per second of each layer; 0 for one that is not live.
    pub fn bit_rates(&self, now: Instant) -> [u64; MAX_LAYERS] {
        let mut rates = [0; MAX_LAYERS];
        for (rate, layer) in rates.iter_mut().zip(&self.layers) {
            *rate = layer.stats.bit_rate(now);
        }
        rates
    }

    /// The publisher's clock of a layer, for the sender reports to subscribers.
    pub fn sender_clock(&self, layer: Layer) -> Option<SenderClock> {
        self.layers.get(layer.index())?.stats.sender_clock()
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The SSRC that a layer was last seen with.
    pub fn ssrc(&self, layer: Layer) -> Option<u32> {
        self.layers.get(layer.index())?.ssrc
    }

    /// Bytes received on all layers.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.stats.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_time::start;

    const MEDIA: PayloadFormat = PayloadFormat::Media(Codec::Vp8);
    const REPAIR: PayloadFormat = PayloadFormat::Retransmission { of: 96 };

    fn packet(ssrc: u32, sequence: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x80, 96];
        packet.extend_from_slice(&sequence.to_be_bytes());
        packet.extend_from_slice(&1000_u32.to_be_bytes());
        packet.extend_from_slice(&ssrc.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    fn receive(track: &mut UpTrack, now: Instant, format: PayloadFormat, packet: &[u8]) -> Option<(u64, Vec<u8>)> {
        let header = RtpHeader::parse(packet).expect("well-formed");
        let stream = Stream {
            section: (),
            layer: Layer::LOW,
            is_repair: format == REPAIR,
        };
        track
            .receive(now, &stream, format, (&header, Extensions::default()), packet)
            .map(|p| (p.sequence, p.payload.to_vec()))
    }

    #[test]
    fn a_retransmission_counts_as_the_packet_it_repairs() {
        let (now, mut track) = (start(), UpTrack::new(Codec::Vp8, 1));
        assert_eq!(
            receive(&mut track, now, REPAIR, &packet(2, 1, &[0, 9, 5])),
            None,
            "nothing to repair yet"
        );
        let (first, _) = receive(&mut track, now, MEDIA, &packet(1, 8, &[0x10, 1])).expect("forwarded");
        receive(&mut track, now, MEDIA, &packet(1, 10, &[0x10, 1])).expect("forwarded");
        let mut writer = RtcpWriter::default();
        let later = now + Duration::from_millis(20);
        let repaired = receive(&mut track, later, REPAIR, &packet(2, 1, &[0, 9, 0x10, 7]));
        assert_eq!(repaired, Some((first + 1, vec![0x10, 7])));
        track.write_requests(later, Duration::ZERO, 99, &mut writer);
        assert!(writer.is_empty(), "nothing is missing any more");
        assert_eq!(
            receive(&mut track, later, REPAIR, &packet(2, 2, &[0, 9, 0x10, 7])),
            None,
            "a duplicate"
        );
        assert_eq!(receive(&mut track, later, REPAIR, &packet(2, 3, &[])), None, "a probe");
        let mut blocks = Vec::new();
        track.report(later, &mut blocks);
        assert_eq!(
            (blocks.len(), blocks[0].ssrc, blocks[0].cumulative_lost),
            (1, 1, 1),
            "the loss did happen"
        );
        let cached = track
            .cached(Layer::LOW, first + 1, &ExtensionMap::default())
            .expect("kept");
        assert_eq!((cached.payload, cached.timestamp), (&[0x10, 7][..], 1000));
    }

    #[test]
    fn keyframes_are_asked_for_until_one_begins() {
        let (now, mut track) = (start(), UpTrack::new(Codec::Vp8, 1));
        track.request_keyframe(Layer::LOW);
        assert_eq!(track.poll_timeout(now), None, "nobody to ask yet");
        receive(&mut track, now, MEDIA, &packet(1, 1, &[0x10, 1]));
        assert_eq!(track.poll_timeout(now), Some(now));
        let mut writer = RtcpWriter::default();
        track.write_requests(now, Duration::ZERO, 99, &mut writer);
        assert!(!writer.is_empty());
        receive(&mut track, now, MEDIA, &packet(1, 2, &[0x10, 0]));
        assert_eq!(track.poll_timeout(now), None);
        assert!(track.is_live(now, Layer::LOW) && !track.is_live(now + LIVE_FOR, Layer::LOW));
        assert!(!track.is_live(now, Layer::HIGH));
    }
}
