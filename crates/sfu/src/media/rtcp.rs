//! RTCP packets (RFC 3550 §6, RFC 4585, RFC 5104, REMB, transport-wide feedback): reading a compound packet without
//! allocating, and writing one. A pure codec; knows no stream and no time.

mod transport_feedback;
mod write;

pub use transport_feedback::{PacketArrival, TransportFeedback, write_transport_feedback};
pub use write::RtcpWriter;

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
const GOODBYE: u8 = 203;
const TRANSPORT_LAYER_FEEDBACK: u8 = 205;
const PAYLOAD_FEEDBACK: u8 = 206;

const NACK: u8 = 1;
const TRANSPORT_CC: u8 = 15;
const PLI: u8 = 1;
const FIR: u8 = 4;
const APPLICATION_LAYER: u8 = 15;

const REPORT_BLOCK_LEN: usize = 24;

/// One packet of a compound. What is not listed here is skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RtcpPacket<'a> {
    SenderReport {
        ssrc: u32,
        info: SenderInfo,
        reports: ReportBlocks<'a>,
    },
    ReceiverReport {
        ssrc: u32,
        reports: ReportBlocks<'a>,
    },
    /// The receiver misses packets of `media_ssrc` (RFC 4585 §6.2.1).
    Nack {
        media_ssrc: u32,
        lost: LostNumbers<'a>,
    },
    /// The receiver needs a keyframe (RFC 4585 §6.3.1).
    PictureLossIndication {
        media_ssrc: u32,
    },
    /// The same, said differently (RFC 5104 §4.3.1); one per requested SSRC.
    FullIntraRequest {
        media_ssrc: u32,
    },
    /// The receiver's estimate of its bandwidth (draft-alvestrand-rmcat-remb).
    ReceiverEstimate {
        bits_per_second: u64,
    },
    TransportFeedback(TransportFeedback<'a>),
    Goodbye {
        ssrc: u32,
    },
}

/// The sender's part of a sender report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderInfo {
    /// Wall clock of the sender, NTP 32.32 fixed point seconds.
    pub ntp: u64,
    /// The same moment on the stream's clock.
    pub rtp_timestamp: u32,
    pub packets: u32,
    pub octets: u32,
}

/// What one receiver says of one stream (RFC 3550 §6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    pub ssrc: u32,
    /// Lost since the previous report, in 1/256.
    pub fraction_lost: u8,
    /// 24 bits, signed.
    pub cumulative_lost: i32,
    pub highest_sequence: u32,
    /// In units of the stream's clock.
    pub jitter: u32,
    /// The middle 32 bits of the NTP time of the last sender report; 0 for none.
    pub last_sender_report: u32,
    /// Time since then, in 1/65536 s.
    pub delay_since_last_sender_report: u32,
}

/// The packets of a compound; ends at the first malformed one.
pub fn parse(compound: &[u8]) -> impl Iterator<Item = RtcpPacket<'_>> {
    let mut rest = compound;
    let raw = std::iter::from_fn(move || {
        let header: &[u8; 4] = rest.first_chunk()?;
        if header[0] >> 6 != 2 {
            return None;
        }
        let length = 4 + usize::from(u16::from_be_bytes([header[2], header[3]])) * 4;
        let packet = rest.get(..length)?;
        rest = &rest[length..];
        // Padding may only end the last packet; its length is in its last byte (RFC 3550 §6.4.1).
        let padding = if header[0] & 0x20 != 0 {
            usize::from(*packet.last()?)
        } else {
            0
        };
        let body = packet.get(4..length.checked_sub(padding)?)?;
        Some((header[0] & 0x1F, header[1], body))
    });
    raw.flat_map(|(count, kind, body)| Packets::new(count, kind, body))
}

/// The packets within one RTCP packet: several for FIR and BYE, which name several streams.
enum Packets<'a> {
    One(Option<RtcpPacket<'a>>),
    Fir(std::slice::ChunksExact<'a, u8>),
    Bye(std::slice::ChunksExact<'a, u8>),
}

impl<'a> Packets<'a> {
    fn new(count: u8, kind: u8, body: &'a [u8]) -> Self {
        match (kind, count) {
            (GOODBYE, count) => {
                let end = (usize::from(count) * 4).min(body.len());
                Self::Bye(body[..end].chunks_exact(4))
            }
            (PAYLOAD_FEEDBACK, FIR) => Self::Fir(body.get(8..).unwrap_or_default().chunks_exact(8)),
            _ => Self::One(one(count, kind, body)),
        }
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = RtcpPacket<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::One(packet) => packet.take(),
            Self::Fir(entries) => Some(RtcpPacket::FullIntraRequest {
                media_ssrc: u32_at(entries.next()?, 0)?,
            }),
            Self::Bye(ssrcs) => Some(RtcpPacket::Goodbye {
                ssrc: u32_at(ssrcs.next()?, 0)?,
            }),
        }
    }
}

fn one(count: u8, kind: u8, body: &[u8]) -> Option<RtcpPacket<'_>> {
    let ssrc = u32_at(body, 0)?;
    match (kind, count) {
        (SENDER_REPORT, _) => Some(RtcpPacket::SenderReport {
            ssrc,
            info: SenderInfo {
                ntp: (u64::from(u32_at(body, 4)?) << 32) | u64::from(u32_at(body, 8)?),
                rtp_timestamp: u32_at(body, 12)?,
                packets: u32_at(body, 16)?,
                octets: u32_at(body, 20)?,
            },
            reports: ReportBlocks::new(count, body.get(24..)?),
        }),
        (RECEIVER_REPORT, _) => Some(RtcpPacket::ReceiverReport {
            ssrc,
            reports: ReportBlocks::new(count, body.get(4..)?),
        }),
        (TRANSPORT_LAYER_FEEDBACK, NACK) => Some(RtcpPacket::Nack {
            media_ssrc: u32_at(body, 4)?,
            lost: LostNumbers(body.get(8..)?),
        }),
        (TRANSPORT_LAYER_FEEDBACK, TRANSPORT_CC) => {
            Some(RtcpPacket::TransportFeedback(TransportFeedback::new(body.get(8..)?)?))
        }
        (PAYLOAD_FEEDBACK, PLI) => Some(RtcpPacket::PictureLossIndication {
            media_ssrc: u32_at(body, 4)?,
        }),
        (PAYLOAD_FEEDBACK, APPLICATION_LAYER) if body.get(8..12)? == b"REMB" => {
            let exponent = *body.get(13)? >> 2;
            let mantissa =
                (u64::from(body[13] & 3) << 16) | u64::from(u16::from_be_bytes([*body.get(14)?, *body.get(15)?]));
            // 18 bits shifted by up to 63 may leave 64 bits: such an estimate is as good as infinite.
            let bits = u64::try_from(u128::from(mantissa) << exponent).unwrap_or(u64::MAX);
            Some(RtcpPacket::ReceiverEstimate { bits_per_second: bits })
        }
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// The report blocks of one report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlocks<'a>(&'a [u8]);

impl<'a> ReportBlocks<'a> {
    fn new(count: u8, bytes: &'a [u8]) -> Self {
        let end = (usize::from(count) * REPORT_BLOCK_LEN).min(bytes.len());
        Self(&bytes[..end])
    }

    pub fn iter(&self) -> impl Iterator<Item = ReportBlock> + 'a {
        self.0.chunks_exact(REPORT_BLOCK_LEN).filter_map(|b| {
            Some(ReportBlock {
                ssrc: u32_at(b, 0)?,
                fraction_lost: b[4],
                // The 24 bits are moved up and down again to extend their sign.
                cumulative_lost: i32::from_be_bytes([b[5], b[6], b[7], 0]) >> 8,
                highest_sequence: u32_at(b, 8)?,
                jitter: u32_at(b, 12)?,
                last_sender_report: u32_at(b, 16)?,
                delay_since_last_sender_report: u32_at(b, 20)?,
            })
        })
    }
}

/// The sequence numbers that a NACK asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostNumbers<'a>(&'a [u8]);

impl<'a> LostNumbers<'a> {
    pub fn iter(&self) -> impl Iterator<Item = u16> + 'a {
        self.0.chunks_exact(4).flat_map(|item| {
            let first = u16::from_be_bytes([item[0], item[1]]);
            let following = u16::from_be_bytes([item[2], item[3]]);
            let rest = (0..16)
                .filter(move |bit| following & (1 << bit) != 0)
                .map(move |bit| first.wrapping_add(bit + 1));
            std::iter::once(first).chain(rest)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let info = SenderInfo {
            ntp: 0x0123_4567_89AB_CDEF,
            rtp_timestamp: 7,
            packets: 8,
            octets: 9,
        };
        let block = ReportBlock {
            ssrc: 11,
            fraction_lost: 12,
            cumulative_lost: -13,
            highest_sequence: 14,
            jitter: 15,
            last_sender_report: 16,
            delay_since_last_sender_report: 17,
        };
        let mut writer = RtcpWriter::default();
        writer.sender_report(1, &info, &[block]);
        writer.receiver_report(2, &[block, block]);
        writer.cname(1, "cname");
        writer.nack(3, 4, &[65_530, 65_531, 65_535, 3, 400]);
        writer.picture_loss_indication(5, 6);
        writer.full_intra_request(5, 60, 1);
        writer.receiver_estimate(7, 2_500_000, &[8, 9]);
        writer.goodbye(10);
        let packets = parse(writer.as_bytes()).collect::<Vec<_>>();
        assert_eq!(packets.len(), 7, "the source description is skipped");
        let RtcpPacket::SenderReport {
            ssrc: 1,
            info: read,
            reports,
        } = packets[0]
        else {
            panic!("{packets:?}")
        };
        assert_eq!((read, reports.iter().collect::<Vec<_>>()), (info, vec![block]));
        let RtcpPacket::ReceiverReport { ssrc: 2, reports } = packets[1] else {
            panic!("{packets:?}")
        };
        assert_eq!(reports.iter().count(), 2);
        let RtcpPacket::Nack { media_ssrc: 4, lost } = packets[2] else {
            panic!("{packets:?}")
        };
        assert_eq!(lost.iter().collect::<Vec<_>>(), [65_530, 65_531, 65_535, 3, 400]);
        assert_eq!(packets[3], RtcpPacket::PictureLossIndication { media_ssrc: 6 });
        assert_eq!(packets[4], RtcpPacket::FullIntraRequest { media_ssrc: 60 });
        let RtcpPacket::ReceiverEstimate { bits_per_second } = packets[5] else {
            panic!("{packets:?}")
        };
        assert!((2_499_000..=2_500_000).contains(&bits_per_second));
        assert_eq!(packets[6], RtcpPacket::Goodbye { ssrc: 10 });
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 199u8..208) {
            if bytes.len() >= 4 {
                let words = (bytes.len() / 4 - 1) as u16;
                bytes[0] = 0x80 | (bytes[0] & 0x3F);
                bytes[1] = kind;
                bytes[2..4].copy_from_slice(&words.to_be_bytes());
            }
            for packet in parse(&bytes) {
                match packet {
                    RtcpPacket::SenderReport { reports, .. } | RtcpPacket::ReceiverReport { reports, .. } => {
                        reports.iter().count();
                    }
                    RtcpPacket::Nack { lost, .. } => {
                        lost.iter().count();
                    }
                    RtcpPacket::TransportFeedback(feedback) => {
                        prop_assert!(feedback.arrivals().count() <= usize::from(u16::MAX));
                    }
                    _ => {}
                }
            }
        }
    }
}
