//! Writing compound RTCP packets into one reused buffer.

use super::{
    APPLICATION_LAYER, FIR, GOODBYE, NACK, PAYLOAD_FEEDBACK, PLI, RECEIVER_REPORT, ReportBlock, SENDER_REPORT,
    SOURCE_DESCRIPTION, SenderInfo, TRANSPORT_LAYER_FEEDBACK,
};

/// Report blocks in one packet: a five-bit count.
const MAX_BLOCKS: usize = 31;

/// A compound packet under construction. Clear it and use it again.
#[derive(Debug, Default)]
pub struct RtcpWriter {
    buffer: Vec<u8>,
}

impl RtcpWriter {
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// Blocks beyond the 31st are left out.
    pub fn sender_report(&mut self, ssrc: u32, info: &SenderInfo, blocks: &[ReportBlock]) {
        let blocks = &blocks[..blocks.len().min(MAX_BLOCKS)];
        self.packet(blocks.len() as u8, SENDER_REPORT, |out| {
            out.extend_from_slice(&ssrc.to_be_bytes());
            out.extend_from_slice(&info.ntp.to_be_bytes());
            out.extend_from_slice(&info.rtp_timestamp.to_be_bytes());
            out.extend_from_slice(&info.packets.to_be_bytes());
            out.extend_from_slice(&info.octets.to_be_bytes());
            write_blocks(out, blocks);
        });
    }

    /// As many packets as the blocks need; one empty packet without blocks.
    pub fn receiver_report(&mut self, ssrc: u32, blocks: &[ReportBlock]) {
        let mut rest = blocks;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_BLOCKS));
            self.packet(now.len() as u8, RECEIVER_REPORT, |out| {
                out.extend_from_slice(&ssrc.to_be_bytes());
                write_blocks(out, now);
            });
            rest = later;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// The canonical name of a source (RFC 3550 §6.5.1), which every compound with a report carries. Cut at 255 bytes.
    pub fn cname(&mut self, ssrc: u32, name: &str) {
        let name = &name.as_bytes()[..name.len().min(255)];
        self.packet(1, SOURCE_DESCRIPTION, |out| {
            let start = out.len();
            out.extend_from_slice(&ssrc.to_be_bytes());
            out.extend_from_slice(&[1, name.len() as u8]);
            out.extend_from_slice(name);
            // At least one null ends the chunk.
            out.resize(start + (out.len() - start + 1).next_multiple_of(4), 0);
        });
    }

    /// Asks for the given numbers, which must ascend (modulo 2^16). Nothing is written for none.
    pub fn nack(&mut self, sender_ssrc: u32, media_ssrc: u32, lost: &[u16]) {
        if lost.is_empty() {
            return;
        }
        self.packet(NACK, TRANSPORT_LAYER_FEEDBACK, |out| {
            out.extend_from_slice(&sender_ssrc.to_be_bytes());
            out.extend_from_slice(&media_ssrc.to_be_bytes());
            let mut rest = lost;
            while let [first, following @ ..] = rest {
                let mut bits = 0_u16;
                let mut used = 0;
                for number in following {
                    let distance = number.wrapping_sub(*first);
                    if !(1..=16).contains(&distance) {
                        break;
                    }
                    bits |= 1 << (distance - 1);
                    used += 1;
                }
                out.extend_from_slice(&first.to_be_bytes());
                out.extend_from_slice(&bits.to_be_bytes());
                rest = &following[used..];
            }
        });
    }

    pub fn picture_loss_indication(&mut self, sender_ssrc: u32, media_ssrc: u32) {
        self.packet(PLI, PAYLOAD_FEEDBACK, |out| {
            out.extend_from_slice(&sender_ssrc.to_be_bytes());
            out.extend_from_slice(&media_ssrc.to_be_bytes());
        });
    }

    /// `command` counts up with every new request for this stream.
    pub fn full_intra_request(&mut self, sender_ssrc: u32, media_ssrc: u32, command: u8) {
        self.packet(FIR, PAYLOAD_FEEDBACK, |out| {
            out.extend_from_slice(&sender_ssrc.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&media_ssrc.to_be_bytes());
            out.extend_from_slice(&[command, 0, 0, 0]);
        });
    }

    /// REMB. The value is rounded down to 18 significant bits.
    pub fn receiver_estimate(&mut self, sender_ssrc: u32, bits_per_second: u64, ssrcs: &[u32]) {
        let exponent = (64 - bits_per_second.leading_zeros()).saturating_sub(18);
        let mantissa = (bits_per_second >> exponent) as u32;
        let ssrcs = &ssrcs[..ssrcs.len().min(255)];
        self.packet(APPLICATION_LAYER, PAYLOAD_FEEDBACK, |out| {
            out.extend_from_slice(&sender_ssrc.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(b"REMB");
            out.extend_from_slice(&[
                ssrcs.len() as u8,
                ((exponent as u8) << 2) | (mantissa >> 16) as u8,
                (mantissa >> 8) as u8,
                mantissa as u8,
            ]);
            for ssrc in ssrcs {
                out.extend_from_slice(&ssrc.to_be_bytes());
            }
        });
    }

    pub fn goodbye(&mut self, ssrc: u32) {
        self.packet(1, GOODBYE, |out| out.extend_from_slice(&ssrc.to_be_bytes()));
    }

    /// A packet whose body `write` appends in whole words.
    pub(super) fn packet(&mut self, count: u8, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0x80 | count, kind, 0, 0]);
        write(&mut self.buffer);
        let words = (self.buffer.len() - start) / 4 - 1;
        self.buffer[start + 2..start + 4].copy_from_slice(&(words as u16).to_be_bytes());
    }
}

fn write_blocks(out: &mut Vec<u8>, blocks: &[ReportBlock]) {
    for block in blocks {
        out.extend_from_slice(&block.ssrc.to_be_bytes());
        out.push(block.fraction_lost);
        let lost = block.cumulative_lost.clamp(-0x80_0000, 0x7F_FFFF);
        out.extend_from_slice(&lost.to_be_bytes()[1..]);
        out.extend_from_slice(&block.highest_sequence.to_be_bytes());
        out.extend_from_slice(&block.jitter.to_be_bytes());
        out.extend_from_slice(&block.last_sender_report.to_be_bytes());
        out.extend_from_slice(&block.delay_since_last_sender_report.to_be_bytes());
    }
}
