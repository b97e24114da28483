//! The VP9 payload descriptor (RFC 9628 §4.2). Under end-to-end encryption it is all there is to see.

/// Whether a keyframe's base layer begins here: start of a frame, not predicted from others, lowest spatial layer.
pub(super) fn begins_keyframe(payload: &[u8]) -> bool {
    let Some(&first) = payload.first() else { return false };
    let (has_picture_id, predicted, has_layers, starts) = (
        first & 0x80 != 0,
        first & 0x40 != 0,
        first & 0x20 != 0,
        first & 0x08 != 0,
    );
    if predicted || !starts {
        return false;
    }
    let mut at = 1;
    if has_picture_id {
        let Some(&id) = payload.get(at) else { return false };
        at += if id & 0x80 != 0 { 2 } else { 1 };
    }
    // Spatial layer id: three bits after the temporal id and the switching bit.
    !has_layers || payload.get(at).is_some_and(|layers| (layers >> 1) & 7 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_independent_base_layer_counts() {
        for (payload, expected) in [
            (&[0x8C, 0x80, 0x01][..], true),
            (&[0xCC, 0x80, 0x01], false),
            (&[0x84, 0x80, 0x01], false),
            (&[0xAC, 0x80, 0x01, 0x00], true),
            (&[0xAC, 0x80, 0x01, 0x02], false),
            (&[0xAC, 0x80], false),
            (&[], false),
        ] {
            assert_eq!(begins_keyframe(payload), expected, "{payload:02X?}");
        }
    }
}
