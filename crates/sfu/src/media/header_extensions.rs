//! RTP header extensions (RFC 8285): which ids were negotiated for which meaning, reading them from a packet, and
//! building the block of an outgoing packet. Pure; a value that is malformed counts as absent.

use super::rtp::RtpHeader;

/// The extensions we know. The order is that of [`ExtensionKind::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtensionKind {
    /// RFC 8843: which m-section a packet belongs to.
    Mid,
    /// RFC 8852: which simulcast layer.
    Rid,
    /// RFC 8852: the layer that a retransmission repairs.
    RepairedRid,
    /// RFC 6464: loudness of the sender's audio.
    AudioLevel,
    /// draft-holmer-rmcat-transport-wide-cc-extensions-01.
    TransportSequence,
    /// Send time in 6.18 fixed point seconds.
    AbsSendTime,
    /// AV1 RTP specification, appendix A.
    DependencyDescriptor,
    /// Capture time of a frame at its origin.
    AbsCaptureTime,
    /// 3GPP TS 26.114: rotation of the picture.
    VideoOrientation,
    /// Wanted bounds of the receiver's buffer.
    PlayoutDelay,
}

impl ExtensionKind {
    pub const ALL: [Self; 10] = [
        Self::Mid,
        Self::Rid,
        Self::RepairedRid,
        Self::AudioLevel,
        Self::TransportSequence,
        Self::AbsSendTime,
        Self::DependencyDescriptor,
        Self::AbsCaptureTime,
        Self::VideoOrientation,
        Self::PlayoutDelay,
    ];

    /// The URI in `a=extmap`.
    pub fn uri(self) -> &'static str {
        match self {
            Self::Mid => "urn:ietf:params:rtp-hdrext:sdes:mid",
            Self::Rid => "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id",
            Self::RepairedRid => "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id",
            Self::AudioLevel => "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
            Self::TransportSequence => "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            Self::AbsSendTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
            Self::DependencyDescriptor => {
                "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
            }
            Self::AbsCaptureTime => "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time",
            Self::VideoOrientation => "urn:3gpp:video-orientation",
            Self::PlayoutDelay => "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        }
    }

    pub fn from_uri(uri: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.uri() == uri)
    }
}

/// The ids negotiated on one connection. With BUNDLE an id means the same in every m-section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtensionMap {
    ids: [Option<u8>; ExtensionKind::ALL.len()],
}

impl ExtensionMap {
    /// Gives `kind` the id `id` (1 to 255, not 15).
    pub fn set(&mut self, kind: ExtensionKind, id: u8) {
        if id != 0 && id != 15 {
            self.ids[kind as usize] = Some(id);
        }
    }

    pub fn id(&self, kind: ExtensionKind) -> Option<u8> {
        self.ids[kind as usize]
    }

    pub fn kind(&self, id: u8) -> Option<ExtensionKind> {
        ExtensionKind::ALL
            .into_iter()
            .find(|kind| self.ids[*kind as usize] == Some(id))
    }

    /// The extensions of a packet.
    pub fn read<'a>(&self, header: &RtpHeader, packet: &'a [u8]) -> Extensions<'a> {
        let mut found = Extensions::default();
        let Some(profile) = header.extension_profile else {
            return found;
        };
        for (id, value) in Elements::new(profile, header.extension_bytes(packet)) {
            let Some(kind) = self.kind(id) else { continue };
            match kind {
                ExtensionKind::Mid => found.mid = std::str::from_utf8(value).ok(),
                ExtensionKind::Rid => found.rid = std::str::from_utf8(value).ok(),
                ExtensionKind::RepairedRid => found.repaired_rid = std::str::from_utf8(value).ok(),
                ExtensionKind::AudioLevel => found.audio_level = value.first().copied().map(AudioLevel::from_byte),
                ExtensionKind::TransportSequence => {
                    found.transport_sequence = value.first_chunk().map(|b| u16::from_be_bytes(*b));
                }
                ExtensionKind::AbsSendTime => {
                    found.abs_send_time = value
                        .first_chunk::<3>()
                        .map(|b| u32::from_be_bytes([0, b[0], b[1], b[2]]));
                }
                ExtensionKind::DependencyDescriptor => found.dependency_descriptor = Some(value),
                ExtensionKind::AbsCaptureTime => found.abs_capture_time = Some(value),
                ExtensionKind::VideoOrientation => found.video_orientation = value.first().copied(),
                ExtensionKind::PlayoutDelay => found.playout_delay = value.first_chunk().copied(),
            }
        }
        found
    }
}

/// The loudness of one audio packet (RFC 6464).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AudioLevel {
    /// The encoder's opinion whether somebody speaks.
    pub voice: bool,
    /// Attenuation in dB below full scale: 0 is loudest, 127 silence.
    pub attenuation_db: u8,
}

impl AudioLevel {
    fn from_byte(byte: u8) -> Self {
        Self {
            voice: byte & 0x80 != 0,
            attenuation_db: byte & 0x7F,
        }
    }

    fn to_byte(self) -> u8 {
        (u8::from(self.voice) << 7) | (self.attenuation_db & 0x7F)
    }
}

/// What a packet's extensions say. Borrowed from the packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    pub mid: Option<&'a str>,
    pub rid: Option<&'a str>,
    pub repaired_rid: Option<&'a str>,
    pub audio_level: Option<AudioLevel>,
    pub transport_sequence: Option<u16>,
    /// 6.18 fixed point seconds, 24 bits.
    pub abs_send_time: Option<u32>,
    pub dependency_descriptor: Option<&'a [u8]>,
    pub abs_capture_time: Option<&'a [u8]>,
    pub video_orientation: Option<u8>,
    pub playout_delay: Option<[u8; 3]>,
}

/// Iterates over the elements of an extension block of either form of RFC 8285.
struct Elements<'a> {
    two_byte: bool,
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    fn new(profile: u16, bytes: &'a [u8]) -> Self {
        match profile {
            0xBEDE => Self {
                two_byte: false,
                rest: bytes,
            },
            profile if profile & 0xFFF0 == 0x1000 => Self {
                two_byte: true,
                rest: bytes,
            },
            _ => Self {
                two_byte: false,
                rest: &[],
            },
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while let [0, rest @ ..] = self.rest {
            self.rest = rest;
        }
        let (id, length, rest) = match (self.two_byte, self.rest) {
            (false, [first, rest @ ..]) => (first >> 4, usize::from(first & 0x0F) + 1, rest),
            (true, [id, length, rest @ ..]) => (*id, usize::from(*length), rest),
            _ => return None,
        };
        // RFC 8285 §4.2: id 15 of the one-byte form ends the processing.
        if !self.two_byte && id == 15 || rest.len() < length {
            self.rest = &[];
            return None;
        }
        let (value, rest) = rest.split_at(length);
        self.rest = rest;
        Some((id, value))
    }
}

/// Room for the elements of one outgoing packet, in bytes: a full dependency descriptor and all the small ones.
const BLOCK_CAPACITY: usize = 320;
const MAX_ELEMENTS: usize = 10;

/// The extensions of one outgoing packet, on the stack. The one-byte form is used when everything fits it.
#[derive(Debug, Clone)]
pub struct ExtensionBlock {
    values: [u8; BLOCK_CAPACITY],
    used: usize,
    elements: [(u8, u8); MAX_ELEMENTS],
    count: usize,
    two_byte: bool,
}

impl Default for ExtensionBlock {
    fn default() -> Self {
        Self {
            values: [0; BLOCK_CAPACITY],
            used: 0,
            elements: [(0, 0); MAX_ELEMENTS],
            count: 0,
            two_byte: false,
        }
    }
}

impl ExtensionBlock {
    /// Adds an element. One that finds no room, or is longer than 255 bytes, is left out.
    pub fn push(&mut self, id: u8, value: &[u8]) {
        let Ok(length) = u8::try_from(value.len()) else { return };
        if id == 0 || self.count == MAX_ELEMENTS || self.used + value.len() > BLOCK_CAPACITY {
            return;
        }
        self.values[self.used..self.used + value.len()].copy_from_slice(value);
        self.used += value.len();
        self.elements[self.count] = (id, length);
        self.count += 1;
        self.two_byte |= id > 14 || value.is_empty() || value.len() > 16;
    }

    /// Adds an element under the id that `map` gives to `kind`, if it was negotiated.
    pub fn push_kind(&mut self, map: &ExtensionMap, kind: ExtensionKind, value: &[u8]) {
        if let Some(id) = map.id(kind) {
            self.push(id, value);
        }
    }

    /// Copies what a subscriber should see of a publisher's extensions, under the subscriber's ids: everything that
    /// describes the media. What describes the transport (mid, rid, sequence, send time) is the subscriber
    /// connection's own.
    pub fn copy_media(&mut self, map: &ExtensionMap, from: &Extensions<'_>) {
        if let Some(level) = from.audio_level {
            self.push_kind(map, ExtensionKind::AudioLevel, &[level.to_byte()]);
        }
        if let Some(descriptor) = from.dependency_descriptor {
            self.push_kind(map, ExtensionKind::DependencyDescriptor, descriptor);
        }
        if let Some(time) = from.abs_capture_time {
            self.push_kind(map, ExtensionKind::AbsCaptureTime, time);
        }
        if let Some(orientation) = from.video_orientation {
            self.push_kind(map, ExtensionKind::VideoOrientation, &[orientation]);
        }
        if let Some(delay) = from.playout_delay {
            self.push_kind(map, ExtensionKind::PlayoutDelay, &delay);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that [`ExtensionBlock::write`] appends.
    pub fn wire_len(&self) -> usize {
        if self.is_empty() {
            0
        } else {
            4 + self.body_len().next_multiple_of(4)
        }
    }

    fn body_len(&self) -> usize {
        self.used + self.count * if self.two_byte { 2 } else { 1 }
    }

    /// Appends the block with its four-byte header; nothing when it is empty.
    pub fn write(&self, out: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        let length = self.body_len().next_multiple_of(4);
        let profile: u16 = if self.two_byte { 0x1000 } else { 0xBEDE };
        out.extend_from_slice(&profile.to_be_bytes());
        out.extend_from_slice(&((length / 4) as u16).to_be_bytes());
        let end = out.len() + length;
        let mut value_at = 0;
        for &(id, length) in &self.elements[..self.count] {
            if self.two_byte {
                out.extend_from_slice(&[id, length]);
            } else {
                out.push((id << 4) | (length - 1));
            }
            out.extend_from_slice(&self.values[value_at..value_at + usize::from(length)]);
            value_at += usize::from(length);
        }
        out.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map() -> ExtensionMap {
        let mut map = ExtensionMap::default();
        for (i, kind) in ExtensionKind::ALL.into_iter().enumerate() {
            map.set(kind, i as u8 + 1);
        }
        map
    }

    fn packet(block: &ExtensionBlock) -> Vec<u8> {
        let mut packet = vec![0x90, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
        block.write(&mut packet);
        packet
    }

    #[test]
    fn both_forms_are_written_and_read() {
        for descriptor in [&[1u8; 3][..], &[2; 100]] {
            let mut block = ExtensionBlock::default();
            let map = map();
            block.push_kind(&map, ExtensionKind::Mid, b"0");
            block.push_kind(&map, ExtensionKind::TransportSequence, &[1, 2]);
            block.copy_media(
                &map,
                &Extensions {
                    audio_level: Some(AudioLevel {
                        voice: true,
                        attenuation_db: 30,
                    }),
                    dependency_descriptor: Some(descriptor),
                    ..Extensions::default()
                },
            );
            let packet = packet(&block);
            assert_eq!(packet.len(), 12 + block.wire_len());
            let header = RtpHeader::parse(&packet).expect("well-formed");
            let read = map.read(&header, &packet);
            assert_eq!(read.mid, Some("0"));
            assert_eq!(read.transport_sequence, Some(258));
            assert_eq!(
                read.audio_level,
                Some(AudioLevel {
                    voice: true,
                    attenuation_db: 30
                })
            );
            assert_eq!(read.dependency_descriptor, Some(descriptor));
        }
    }

    #[test]
    fn uris_name_their_kinds() {
        for kind in ExtensionKind::ALL {
            assert_eq!(ExtensionKind::from_uri(kind.uri()), Some(kind));
        }
        assert_eq!(ExtensionKind::from_uri("urn:unknown"), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), two_byte: bool) {
            let mut packet = vec![0x90, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
            packet.extend_from_slice(if two_byte { &[0x10, 0] } else { &[0xBE, 0xDE] });
            packet.extend_from_slice(&((bytes.len() / 4) as u16).to_be_bytes());
            packet.extend_from_slice(&bytes);
            let header = RtpHeader::parse(&packet).expect("the header is sound");
            map().read(&header, &packet);
        }

        #[test]
        fn blocks_survive_anything_pushed(values in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut block = ExtensionBlock::default();
            for (id, value) in &values {
                block.push(*id, value);
            }
            let packet = packet(&block);
            prop_assert_eq!(packet.len(), 12 + block.wire_len());
        }
    }
}
