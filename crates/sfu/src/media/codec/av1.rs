//! AV1 in RTP (AV1 RTP specification): the aggregation header and the dependency descriptor.

/// Whether a new coded video sequence begins here: the N bit of the aggregation header, or a dependency descriptor that
/// carries the template structure, which senders attach to keyframes.
pub(super) fn begins_keyframe(payload: &[u8], dependency_descriptor: Option<&[u8]>) -> bool {
    let new_sequence = payload.first().is_some_and(|header| header & 0x08 != 0);
    // Descriptor: start of frame, end of frame, template id (6), frame number (16), then the flag for a structure.
    let structure = dependency_descriptor
        .is_some_and(|d| d.first().is_some_and(|b| b & 0x80 != 0) && d.get(3).is_some_and(|b| b & 0x80 != 0));
    new_sequence || structure
}
