//! Which published track and layer a packet belongs to, by SSRC, once its first packets have told (RFC 8843 §9.2,
//! RFC 8853). One table per publisher connection. Pure; entries are made for authenticated packets only, and bounded.

use std::collections::HashMap;

use super::codec::Codec;
use super::header_extensions::Extensions;
use super::layers::{Layer, Rids};
use super::rtp::RtpHeader;

/// SSRCs learned from packets on one connection. SSRCs named in the SDP do not count.
const MAX_LEARNED: usize = 128;

/// What a payload type means on a connection. With BUNDLE it means the same in every m-section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadFormat {
    Media(Codec),
    /// Retransmissions of packets of this payload type (RFC 4588, `apt`).
    Retransmission {
        of: u8,
    },
}

/// The negotiated payload types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PayloadTypes(HashMap<u8, PayloadFormat>);

impl PayloadTypes {
    pub fn set(&mut self, payload_type: u8, format: PayloadFormat) {
        self.0.insert(payload_type, format);
    }

    pub fn get(&self, payload_type: u8) -> Option<PayloadFormat> {
        self.0.get(&payload_type).copied()
    }

    /// The payload type of a codec, and the one that retransmits it. Of several the lowest number is taken.
    pub fn of_codec(&self, codec: Codec) -> Option<(u8, Option<u8>)> {
        let media = self
            .0
            .iter()
            .filter(|(_, f)| **f == PayloadFormat::Media(codec))
            .map(|(pt, _)| *pt)
            .min()?;
        let repair = self
            .0
            .iter()
            .find(|(_, f)| **f == PayloadFormat::Retransmission { of: media })
            .map(|(pt, _)| *pt);
        Some((media, repair))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u8, PayloadFormat)> {
        self.0.iter().map(|(pt, format)| (*pt, *format))
    }
}

/// The sections of a publisher's SDP that send, named by the caller's own key.
#[derive(Debug)]
pub struct StreamTable<K> {
    sections: Vec<Section<K>>,
    by_ssrc: HashMap<u32, Stream<K>>,
    learned: usize,
}

#[derive(Debug)]
struct Section<K> {
    key: K,
    mid: String,
    is_video: bool,
    rids: Rids,
}

/// The stream that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream<K> {
    /// The caller's key of the m-section.
    pub section: K,
    pub layer: Layer,
    /// The stream repairs another: its packets are retransmissions, or padding.
    pub is_repair: bool,
}

impl<K> Default for StreamTable<K> {
    fn default() -> Self {
        Self {
            sections: Vec::new(),
            by_ssrc: HashMap::new(),
            learned: 0,
        }
    }
}

impl<K: Copy + PartialEq> StreamTable<K> {
    /// Adds a sending section, or replaces the one with this mid; its SSRCs are learned anew.
    pub fn set_section(&mut self, key: K, mid: &str, is_video: bool, rids: Rids) {
        let unchanged = self
            .sections
            .iter()
            .any(|s| s.key == key && s.mid == mid && s.rids == rids);
        if unchanged {
            return;
        }
        self.remove_section(mid);
        self.sections.push(Section {
            key,
            mid: mid.to_owned(),
            is_video,
            rids,
        });
    }

    /// Removes the section that no longer sends, and its streams.
    pub fn remove_section(&mut self, mid: &str) {
        if let Some(at) = self.sections.iter().position(|s| s.mid == mid) {
            let removed = self.sections.swap_remove(at).key;
            let before = self.by_ssrc.len();
            self.by_ssrc.retain(|_, stream| stream.section != removed);
            self.learned = self.learned.saturating_sub(before - self.by_ssrc.len());
        }
    }

    /// An SSRC that the SDP names (`a=ssrc`; `a=ssrc-group:FID` tells the repairing one).
    pub fn declare(&mut self, ssrc: u32, stream: Stream<K>) {
        self.by_ssrc.insert(ssrc, stream);
    }

    /// The stream of an authenticated packet, learned if it is new; `None` if nothing tells.
    pub fn resolve(
        &mut self,
        header: &RtpHeader,
        extensions: &Extensions<'_>,
        format: PayloadFormat,
    ) -> Option<Stream<K>> {
        if let Some(stream) = self.by_ssrc.get(&header.ssrc) {
            return Some(*stream);
        }
        let stream = self.identify(extensions, format)?;
        if self.learned >= MAX_LEARNED {
            return None;
        }
        self.learned += 1;
        self.by_ssrc.insert(header.ssrc, stream);
        Some(stream)
    }

    /// The SSRCs known for a stream of a section.
    pub fn ssrcs(&self) -> impl Iterator<Item = (u32, Stream<K>)> {
        self.by_ssrc.iter().map(|(ssrc, stream)| (*ssrc, *stream))
    }

    /// The stream of this SSRC, for RTCP.
    pub fn get(&self, ssrc: u32) -> Option<Stream<K>> {
        self.by_ssrc.get(&ssrc).copied()
    }

    fn identify(&self, extensions: &Extensions<'_>, format: PayloadFormat) -> Option<Stream<K>> {
        let is_repair = matches!(format, PayloadFormat::Retransmission { .. });
        let is_video = match format {
            PayloadFormat::Media(codec) => codec.is_video(),
            PayloadFormat::Retransmission { .. } => true,
        };
        let section = match extensions.mid {
            Some(mid) => self.sections.iter().find(|s| s.mid == mid)?,
            // Without a mid the kind may tell, if there is one section of that kind alone.
            None => {
                let mut candidates = self.sections.iter().filter(|s| s.is_video == is_video);
                let only = candidates.next()?;
                candidates.next().is_none().then_some(only)?
            }
        };
        let rid = if is_repair {
            extensions.repaired_rid.or(extensions.rid)
        } else {
            extensions.rid
        };
        let layer = match rid {
            _ if section.rids.is_empty() => Layer::LOW,
            Some(rid) => section.rids.layer(rid)?,
            None => return None,
        };
        Some(Stream {
            section: section.key,
            layer,
            is_repair,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(ssrc: u32) -> RtpHeader {
        RtpHeader::parse(&[&[0x80, 96, 0, 0, 0, 0, 0, 0][..], &ssrc.to_be_bytes()].concat()).expect("a fixed header")
    }

    fn extensions<'a>(mid: Option<&'a str>, rid: Option<&'a str>, repaired_rid: Option<&'a str>) -> Extensions<'a> {
        Extensions {
            mid,
            rid,
            repaired_rid,
            ..Extensions::default()
        }
    }

    #[test]
    fn first_packets_teach_and_later_ones_need_no_extensions() {
        let mut table = StreamTable::default();
        let (media, repair) = (
            PayloadFormat::Media(Codec::Vp8),
            PayloadFormat::Retransmission { of: 96 },
        );
        table.set_section(7, "1", true, Rids::new(["q", "h", "f"].map(str::to_owned)));
        table.set_section(8, "2", false, Rids::default());
        let none = extensions(None, None, None);
        assert_eq!(
            table.resolve(&header(1), &none, media),
            None,
            "a simulcast section needs the rid"
        );
        let half = Stream {
            section: 7,
            layer: Layer::MEDIUM,
            is_repair: false,
        };
        assert_eq!(
            table.resolve(&header(1), &extensions(Some("1"), Some("h"), None), media),
            Some(half)
        );
        assert_eq!(table.resolve(&header(1), &none, media), Some(half));
        let repairing = Stream {
            is_repair: true,
            ..half
        };
        assert_eq!(
            table.resolve(&header(2), &extensions(Some("1"), None, Some("h")), repair),
            Some(repairing)
        );
        let audio = Stream {
            section: 8,
            layer: Layer::LOW,
            is_repair: false,
        };
        assert_eq!(
            table.resolve(&header(3), &none, PayloadFormat::Media(Codec::Opus)),
            Some(audio)
        );
        assert_eq!(
            table.resolve(&header(4), &extensions(Some("9"), None, None), media),
            None
        );
        table.remove_section("1");
        assert_eq!(table.get(1), None);
        assert_eq!(table.get(3), Some(audio));
    }

    #[test]
    fn a_client_cannot_make_it_learn_without_end() {
        let mut table = StreamTable::default();
        table.set_section(1, "0", false, Rids::default());
        let learned = (0..1000)
            .filter(|ssrc| {
                let format = PayloadFormat::Media(Codec::Opus);
                table
                    .resolve(&header(*ssrc), &extensions(Some("0"), None, None), format)
                    .is_some()
            })
            .count();
        assert_eq!(learned, MAX_LEARNED);
    }
}
