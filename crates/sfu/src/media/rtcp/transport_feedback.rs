//! Transport-wide congestion control feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01 §3.1): which packets
//! of a connection arrived, and when.

use super::{RtcpWriter, TRANSPORT_CC, TRANSPORT_LAYER_FEEDBACK};

/// Most packets one feedback may speak of: seconds of the fastest stream. A few run-length chunks can claim 65,535.
const MAX_COUNT: u16 = 4096;
/// Unit of the reference time.
const REFERENCE_US: i64 = 64_000;
/// Unit of the receive deltas.
const DELTA_US: i64 = 250;
/// Symbols: not received, small delta (8 bits, unsigned), large delta (16 bits, signed).
const NOT_RECEIVED: u8 = 0;
const SMALL: u8 = 1;
const LARGE: u8 = 2;

/// One packet's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketArrival {
    /// The transport-wide sequence number.
    pub sequence: u16,
    /// Arrival on the receiver's clock in microseconds, with an origin of its own; `None` if it did not arrive.
    pub arrival_us: Option<i64>,
}

/// A feedback packet; its lists are read as they are iterated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportFeedback<'a> {
    base: u16,
    count: u16,
    reference_us: i64,
    /// Counts the feedback packets of one receiver.
    pub number: u8,
    chunks: &'a [u8],
}

impl<'a> TransportFeedback<'a> {
    pub(super) fn new(body: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; 8] = body.first_chunk()?;
        let count = u16::from_be_bytes([fixed[2], fixed[3]]);
        if count > MAX_COUNT {
            return None;
        }
        // 24 bits, signed.
        let reference = i32::from_be_bytes([fixed[4], fixed[5], fixed[6], 0]) >> 8;
        Some(Self {
            base: u16::from_be_bytes([fixed[0], fixed[1]]),
            count,
            reference_us: i64::from(reference) * REFERENCE_US,
            number: fixed[7],
            chunks: &body[8..],
        })
    }

    /// The packets in order of their numbers; ends early where the packet is malformed.
    pub fn arrivals(&self) -> impl Iterator<Item = PacketArrival> + 'a {
        let mut deltas_at = 0;
        let mut symbols = 0;
        // The deltas follow the status chunks, whose number is only known by walking them.
        while symbols < usize::from(self.count) {
            let Some(chunk) = chunk_at(self.chunks, deltas_at) else {
                break;
            };
            symbols += chunk_len(chunk);
            deltas_at += 2;
        }
        let (chunks, mut deltas) = self.chunks.split_at(deltas_at.min(self.chunks.len()));
        let (mut clock, base) = (self.reference_us, self.base);
        let statuses = chunks.chunks_exact(2).flat_map(|c| {
            let chunk = u16::from_be_bytes([c[0], c[1]]);
            (0..chunk_len(chunk)).map(move |i| symbol(chunk, i))
        });
        statuses
            .take(usize::from(self.count))
            .enumerate()
            .map_while(move |(i, status)| {
                let delta = match status {
                    NOT_RECEIVED => None,
                    SMALL => {
                        let (delta, rest) = deltas.split_first()?;
                        deltas = rest;
                        Some(i64::from(*delta))
                    }
                    _ => {
                        let (delta, rest) = deltas.split_first_chunk()?;
                        deltas = rest;
                        Some(i64::from(i16::from_be_bytes(*delta)))
                    }
                };
                let arrival_us = delta.map(|delta| {
                    clock += delta * DELTA_US;
                    clock
                });
                Some(PacketArrival {
                    sequence: base.wrapping_add(i as u16),
                    arrival_us,
                })
            })
    }
}

fn chunk_at(chunks: &[u8], at: usize) -> Option<u16> {
    chunks.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

fn chunk_len(chunk: u16) -> usize {
    match (chunk & 0x8000 != 0, chunk & 0x4000 != 0) {
        (false, _) => usize::from(chunk & 0x1FFF),
        (true, false) => 14,
        (true, true) => 7,
    }
}

fn symbol(chunk: u16, index: usize) -> u8 {
    match (chunk & 0x8000 != 0, chunk & 0x4000 != 0) {
        (false, _) => ((chunk >> 13) & 3) as u8,
        (true, false) => ((chunk >> (13 - index)) & 1) as u8,
        (true, true) => ((chunk >> (12 - 2 * index)) & 3) as u8,
    }
}

/// Appends feedback about packets in order of their numbers, without gaps: a number that did not arrive is listed so.
/// Returns how many of them fitted: fewer than given when a delta exceeds the format or the packet is full; put the rest
/// into the next. `number` counts the feedback packets.
pub fn write_transport_feedback(
    writer: &mut RtcpWriter,
    (sender_ssrc, media_ssrc): (u32, u32),
    number: u8,
    packets: &[PacketArrival],
) -> usize {
    /// Keeps the packet within one datagram: 7 symbols per two bytes, two bytes per delta.
    const MAX_PACKETS: usize = 400;
    let Some(first_arrival) = packets.iter().find_map(|p| p.arrival_us) else {
        return packets.len();
    };
    let reference = first_arrival.div_euclid(REFERENCE_US);
    let mut clock = reference * REFERENCE_US;
    let mut symbols = Vec::with_capacity(packets.len().min(MAX_PACKETS));
    let mut deltas = Vec::with_capacity(packets.len().min(MAX_PACKETS) * 2);
    for packet in packets.iter().take(MAX_PACKETS) {
        let Some(arrival) = packet.arrival_us else {
            symbols.push(NOT_RECEIVED);
            continue;
        };
        // Rounded against the running clock, so that errors do not add up.
        let delta = (arrival - clock + DELTA_US / 2).div_euclid(DELTA_US);
        if let Ok(small) = u8::try_from(delta) {
            symbols.push(SMALL);
            deltas.push(small);
        } else if let Ok(large) = i16::try_from(delta) {
            symbols.push(LARGE);
            deltas.extend_from_slice(&large.to_be_bytes());
        } else {
            break;
        }
        clock += delta * DELTA_US;
    }
    let Some(first) = packets.first().filter(|_| !symbols.is_empty()) else {
        return 0;
    };
    writer.packet(TRANSPORT_CC, TRANSPORT_LAYER_FEEDBACK, |out| {
        let start = out.len();
        out.extend_from_slice(&sender_ssrc.to_be_bytes());
        out.extend_from_slice(&media_ssrc.to_be_bytes());
        out.extend_from_slice(&first.sequence.to_be_bytes());
        out.extend_from_slice(&(symbols.len() as u16).to_be_bytes());
        out.extend_from_slice(&(reference as i32).to_be_bytes()[1..]);
        out.push(number);
        write_chunks(out, &symbols);
        out.extend_from_slice(&deltas);
        out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    });
    symbols.len()
}

/// Run-length chunks for runs of seven and more, two-bit vectors otherwise.
fn write_chunks(out: &mut Vec<u8>, symbols: &[u8]) {
    let mut rest = symbols;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|s| *s == first).count();
        if run >= 7 || run == rest.len() {
            let run = run.min(0x1FFF);
            out.extend_from_slice(&((u16::from(*first) << 13) | run as u16).to_be_bytes());
            rest = &rest[run..];
        } else {
            let taken = rest.len().min(7);
            let vector = rest[..taken]
                .iter()
                .enumerate()
                .fold(0xC000_u16, |v, (i, s)| v | (u16::from(*s) << (12 - 2 * i)));
            out.extend_from_slice(&vector.to_be_bytes());
            rest = &rest[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::media::rtcp::{RtcpPacket, parse};

    #[test]
    fn a_feedback_that_claims_too_much_is_refused() {
        let body = |count: u16| {
            let mut body = vec![0; 2];
            body.extend_from_slice(&count.to_be_bytes());
            body.extend_from_slice(&[0, 0, 0, 0, 0x1F, 0xFF]);
            body
        };
        let read = |count| TransportFeedback::new(&body(count)).map(|feedback| feedback.arrivals().count());
        assert_eq!(read(MAX_COUNT), Some(usize::from(MAX_COUNT)));
        assert_eq!(read(MAX_COUNT + 1), None);
    }

    proptest! {
        #[test]
        fn feedback_round_trips(base: u16, start in -1_000_000i64..1_000_000_000, steps in proptest::collection::vec(proptest::option::of(-20_000i64..100_000), 1..300)) {
            let mut clock = start;
            let packets = steps.iter().enumerate().map(|(i, step)| PacketArrival {
                sequence: base.wrapping_add(i as u16),
                arrival_us: step.map(|step| { clock += step; clock }),
            }).collect::<Vec<_>>();
            let mut writer = RtcpWriter::default();
            let written = write_transport_feedback(&mut writer, (1, 2), 3, &packets);
            prop_assert_eq!(written, packets.len());
            if packets.iter().all(|p| p.arrival_us.is_none()) {
                prop_assert!(writer.is_empty());
                return Ok(());
            }
            let Some(RtcpPacket::TransportFeedback(feedback)) = parse(writer.as_bytes()).next() else {
                return Err(TestCaseError::fail("not feedback"));
            };
            let read = feedback.arrivals().collect::<Vec<_>>();
            prop_assert_eq!(read.len(), packets.len());
            for (read, packet) in read.iter().zip(&packets) {
                prop_assert_eq!(read.sequence, packet.sequence);
                prop_assert_eq!(read.arrival_us.is_some(), packet.arrival_us.is_some());
                if let (Some(a), Some(b)) = (read.arrival_us, packet.arrival_us) {
                    prop_assert!((a - b).abs() <= DELTA_US, "{} {}", a, b);
                }
            }
        }
    }
}
