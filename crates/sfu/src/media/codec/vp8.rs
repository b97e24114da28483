//! The VP8 payload descriptor (RFC 7741 §4.2), the one part of a payload that may be rewritten: picture ids have to run
//! on when a subscriber is moved to another simulcast layer.

/// The longest descriptor, in bytes.
pub const MAX_DESCRIPTOR_LEN: usize = 6;

/// A parsed descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vp8Descriptor {
    /// The packet begins a partition, and it is the first one.
    pub starts_frame: bool,
    /// 7 or 15 bits.
    pub picture_id: Option<u16>,
    long_picture_id: bool,
    pub tl0_picture_index: Option<u8>,
    pub temporal_layer: Option<u8>,
    /// Offsets within the descriptor.
    picture_id_at: usize,
    tl0_at: usize,
    len: usize,
}

impl Vp8Descriptor {
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let first = *payload.first()?;
        let mut descriptor = Self {
            starts_frame: first & 0x10 != 0 && first & 0x07 == 0,
            picture_id: None,
            long_picture_id: false,
            tl0_picture_index: None,
            temporal_layer: None,
            picture_id_at: 0,
            tl0_at: 0,
            len: 1,
        };
        if first & 0x80 == 0 {
            return Some(descriptor);
        }
        let extension = *payload.get(1)?;
        descriptor.len = 2;
        if extension & 0x80 != 0 {
            descriptor.picture_id_at = descriptor.len;
            let high = *payload.get(descriptor.len)?;
            descriptor.len += 1;
            descriptor.picture_id = Some(if high & 0x80 != 0 {
                descriptor.long_picture_id = true;
                let low = *payload.get(descriptor.len)?;
                descriptor.len += 1;
                (u16::from(high & 0x7F) << 8) | u16::from(low)
            } else {
                u16::from(high)
            });
        }
        if extension & 0x40 != 0 {
            descriptor.tl0_at = descriptor.len;
            descriptor.tl0_picture_index = Some(*payload.get(descriptor.len)?);
            descriptor.len += 1;
        }
        if extension & 0x30 != 0 {
            let byte = *payload.get(descriptor.len)?;
            if extension & 0x20 != 0 {
                descriptor.temporal_layer = Some(byte >> 6);
            }
            descriptor.len += 1;
        }
        Some(descriptor)
    }

    /// Length of the descriptor in bytes: the VP8 payload proper begins there.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: the descriptor has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the frame that starts here is a keyframe: the inverse key frame flag of the payload header (RFC 7741
    /// §4.3), clear under end-to-end encryption.
    pub fn begins_keyframe(&self, payload: &[u8]) -> bool {
        self.starts_frame && payload.get(self.len).is_some_and(|byte| byte & 1 == 0)
    }

    /// The modulus of picture ids in this stream.
    pub fn picture_id_modulus(&self) -> u16 {
        if self.long_picture_id { 1 << 15 } else { 1 << 7 }
    }

    /// The descriptor of `payload` with other numbers, and its length. Fields that are absent stay absent.
    pub fn rewrite(&self, payload: &[u8], picture_id: u16, tl0_picture_index: u8) -> ([u8; MAX_DESCRIPTOR_LEN], usize) {
        let mut out = [0; MAX_DESCRIPTOR_LEN];
        let len = self.len.min(MAX_DESCRIPTOR_LEN).min(payload.len());
        out[..len].copy_from_slice(&payload[..len]);
        if self.picture_id.is_some() {
            let id = picture_id % self.picture_id_modulus();
            if self.long_picture_id {
                out[self.picture_id_at] = 0x80 | (id >> 8) as u8;
                out[self.picture_id_at + 1] = id as u8;
            } else {
                out[self.picture_id_at] = id as u8;
            }
        }
        if self.tl0_picture_index.is_some() {
            out[self.tl0_at] = tl0_picture_index;
        }
        (out, len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_fields_are_read_and_rewritten() {
        // X, start; I L T K; picture id 0x1234 in 15 bits; TL0 7; TID 2; then a keyframe's first byte.
        let payload = [0x90, 0xF0, 0x92, 0x34, 7, 0x80, 0x10];
        let descriptor = Vp8Descriptor::parse(&payload).expect("well-formed");
        assert_eq!(descriptor.picture_id, Some(0x1234));
        assert_eq!(
            (descriptor.tl0_picture_index, descriptor.temporal_layer),
            (Some(7), Some(2))
        );
        assert!(descriptor.begins_keyframe(&payload));
        let (out, len) = descriptor.rewrite(&payload, 0x8001, 9);
        assert_eq!(out[..len], [0x90, 0xF0, 0x80, 0x01, 9, 0x80]);
        assert!(
            !Vp8Descriptor::parse(&[0x10, 0x01])
                .expect("short form")
                .begins_keyframe(&[0x10, 0x01])
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..12), id: u16, index: u8) {
            if let Some(descriptor) = Vp8Descriptor::parse(&bytes) {
                descriptor.begins_keyframe(&bytes);
                let (out, len) = descriptor.rewrite(&bytes, id, index);
                prop_assert_eq!(len, descriptor.len());
                let again = Vp8Descriptor::parse(&out[..len]).expect("as well-formed as before");
                prop_assert_eq!(again.picture_id, descriptor.picture_id.map(|_| id % descriptor.picture_id_modulus()));
                prop_assert_eq!(again.temporal_layer, descriptor.temporal_layer);
            }
        }
    }
}
