//! RTP packets (RFC 3550 §5): a header parsed once, and the writer of outgoing headers. Pure; knows neither encryption
//! nor what the extensions mean.

use super::header_extensions::ExtensionBlock;

/// The fixed part of an RTP header, in bytes.
pub const FIXED_HEADER_LEN: usize = 12;
const VERSION: u8 = 2;

/// The parsed header of an RTP packet. Offsets refer to the packet it was parsed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpHeader {
    pub marker: bool,
    pub payload_type: u8,
    pub sequence_number: u16,
    /// In units of the codec's clock rate.
    pub timestamp: u32,
    pub ssrc: u32,
    /// The packet says that it ends in padding, whose last byte is its length.
    pub has_padding: bool,
    /// The profile field of the header extension, when there is one (RFC 8285: `0xBEDE`, or `0x100?`).
    pub extension_profile: Option<u16>,
    /// Where the extension's elements begin.
    pub extensions_start: usize,
    /// Where the payload begins: the length of the whole header.
    pub payload_start: usize,
}

impl RtpHeader {
    /// Reads the header. `None` if the bytes are not RTP of version 2 or end within the header. Works on encrypted
    /// packets: SRTP leaves the header clear.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; FIXED_HEADER_LEN] = packet.first_chunk()?;
        if fixed[0] >> 6 != VERSION {
            return None;
        }
        let mut at = FIXED_HEADER_LEN + usize::from(fixed[0] & 0x0F) * 4;
        let mut header = Self {
            marker: fixed[1] & 0x80 != 0,
            payload_type: fixed[1] & 0x7F,
            sequence_number: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            has_padding: fixed[0] & 0x20 != 0,
            extension_profile: None,
            extensions_start: at,
            payload_start: at,
        };
        if fixed[0] & 0x10 != 0 {
            let extension: &[u8; 4] = packet.get(at..)?.first_chunk()?;
            header.extension_profile = Some(u16::from_be_bytes([extension[0], extension[1]]));
            at += 4;
            header.extensions_start = at;
            header.payload_start = at + usize::from(u16::from_be_bytes([extension[2], extension[3]])) * 4;
        }
        (header.payload_start <= packet.len()).then_some(header)
    }

    /// The bytes of the extension elements.
    pub fn extension_bytes<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet
            .get(self.extensions_start..self.payload_start)
            .unwrap_or_default()
    }

    /// The range of the payload in a decrypted packet, padding taken off; `None` if the padding length is impossible.
    pub fn payload_range(&self, packet: &[u8]) -> Option<std::ops::Range<usize>> {
        let mut end = packet.len();
        if self.has_padding {
            let padding = usize::from(*packet.last()?);
            if padding == 0 || padding > end.checked_sub(self.payload_start)? {
                return None;
            }
            end -= padding;
        }
        Some(self.payload_start..end)
    }
}

/// An RTP packet to be sent, in pieces that are put together only in the buffer it is sealed in.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingRtp<'a> {
    pub marker: bool,
    pub payload_type: u8,
    /// The extended sequence number: the 16 bits on the wire below the rollover counter that SRTP needs. It starts
    /// below 65 536 for each SSRC and never goes back by more than the receiver's replay window.
    pub sequence: u64,
    /// In units of the codec's clock rate.
    pub timestamp: u32,
    pub ssrc: u32,
    pub extensions: &'a ExtensionBlock,
    /// Written before `payload`: a rewritten payload descriptor, or the original number of a retransmission.
    pub prefix: &'a [u8],
    pub payload: &'a [u8],
    /// Bytes of padding after the payload, for probes. At most 255.
    pub padding: u8,
}

impl OutgoingRtp<'_> {
    /// Appends the packet, unencrypted, to `out`; returns the length of its header.
    pub fn write(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let mut first = VERSION << 6;
        if self.padding > 0 {
            first |= 0x20;
        }
        if !self.extensions.is_empty() {
            first |= 0x10;
        }
        out.extend_from_slice(&[first, (u8::from(self.marker) << 7) | (self.payload_type & 0x7F)]);
        out.extend_from_slice(&(self.sequence as u16).to_be_bytes());
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.ssrc.to_be_bytes());
        self.extensions.write(out);
        let header_len = out.len() - start;
        out.extend_from_slice(self.prefix);
        out.extend_from_slice(self.payload);
        if self.padding > 0 {
            out.resize(out.len() + usize::from(self.padding) - 1, 0);
            out.push(self.padding);
        }
        header_len
    }

    /// Length of the packet on the wire before encryption, in bytes.
    pub fn len(&self) -> usize {
        FIXED_HEADER_LEN
            + self.extensions.wire_len()
            + self.prefix.len()
            + self.payload.len()
            + usize::from(self.padding)
    }

    /// Whether the packet carries nothing at all but its header.
    pub fn is_empty(&self) -> bool {
        self.prefix.is_empty() && self.payload.is_empty() && self.padding == 0
    }
}

/// Recovers the full number from the low bits seen on the wire: the candidate nearest to the highest number so far
/// (RFC 3711 §3.3.1 in one line of arithmetic).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SequenceExtender {
    highest: Option<u64>,
}

impl SequenceExtender {
    /// The extended number of `sequence_number`, without remembering it. The first number of a stream counts as seen
    /// after one full cycle, so that an earlier, reordered packet still gets a number below it.
    pub fn peek(&self, sequence_number: u16) -> u64 {
        match self.highest {
            None => (1 << 16) | u64::from(sequence_number),
            Some(highest) => {
                let forward = sequence_number.wrapping_sub(highest as u16) as i16;
                highest.saturating_add_signed(i64::from(forward))
            }
        }
    }

    /// The extended number, remembered if it is the highest.
    pub fn extend(&mut self, sequence_number: u16) -> u64 {
        let extended = self.peek(sequence_number);
        self.highest = Some(self.highest.map_or(extended, |h| h.max(extended)));
        extended
    }

    /// The highest number so far.
    pub fn highest(&self) -> Option<u64> {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_packets_are_read_back() {
        let mut extensions = ExtensionBlock::default();
        extensions.push(3, &[1, 2]);
        let mut out = Vec::new();
        let packet = OutgoingRtp {
            marker: true,
            payload_type: 96,
            sequence: (7 << 16) | 65_535,
            timestamp: 0xDEAD_BEEF,
            ssrc: 42,
            extensions: &extensions,
            prefix: &[9, 9],
            payload: &[1, 2, 3],
            padding: 5,
        };
        let header_len = packet.write(&mut out);
        assert_eq!(out.len(), packet.len());
        let header = RtpHeader::parse(&out).expect("well-formed");
        assert_eq!(
            (header.sequence_number, header.timestamp, header.ssrc),
            (65_535, 0xDEAD_BEEF, 42)
        );
        assert_eq!(header.payload_start, header_len);
        assert_eq!(header.extension_bytes(&out), [0x31, 1, 2, 0]);
        assert_eq!(&out[header.payload_range(&out).expect("padding fits")], [9, 9, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(header) = RtpHeader::parse(&bytes) {
                header.extension_bytes(&bytes);
                header.payload_range(&bytes);
            }
        }

        #[test]
        fn numbers_extend_across_wraps_and_reordering(start: u16, steps in proptest::collection::vec(-100i64..200, 1..200)) {
            let mut extender = SequenceExtender::default();
            let origin = i64::from(start) + (1 << 16);
            let mut truth = origin;
            prop_assert_eq!(extender.extend(start), origin as u64);
            for step in steps {
                let packet = truth + step;
                prop_assert_eq!(extender.extend(packet as u16) as i64, packet);
                truth = truth.max(packet);
            }
        }
    }
}
