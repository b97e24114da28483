//! H.264 NAL unit types in RTP payloads (RFC 6184 §5). They stay clear under end-to-end encryption.

const IDR: u8 = 5;
const SPS: u8 = 7;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

/// Whether an IDR picture, or the parameter sets before it, begin in this packet.
pub(super) fn begins_keyframe(payload: &[u8]) -> bool {
    let Some(&first) = payload.first() else { return false };
    match first & 0x1F {
        IDR | SPS => true,
        STAP_A => {
            let mut rest = &payload[1..];
            while let Some((length, tail)) = rest.split_first_chunk::<2>() {
                if tail.first().is_some_and(|nal| matches!(nal & 0x1F, IDR | SPS)) {
                    return true;
                }
                rest = tail.get(usize::from(u16::from_be_bytes(*length))..).unwrap_or_default();
            }
            false
        }
        FU_A => payload
            .get(1)
            .is_some_and(|header| header & 0x80 != 0 && matches!(header & 0x1F, IDR | SPS)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keyframes_are_found_in_all_packetisations() {
        for (payload, expected) in [
            (&[0x65, 1][..], true),
            (&[0x67, 1], true),
            (&[0x61, 1], false),
            (&[0x78, 0, 1, 0x06, 0, 2, 0x67, 0x42], true),
            (&[0x78, 0, 2, 0x61, 0x00, 0, 1, 0x61], false),
            (&[0x7C, 0x85], true),
            (&[0x7C, 0x05], false),
            (&[0x7C], false),
            (&[], false),
        ] {
            assert_eq!(begins_keyframe(payload), expected, "{payload:02X?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            begins_keyframe(&bytes);
        }
    }
}
