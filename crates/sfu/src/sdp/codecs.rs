//! Which codecs, feedback messages and header extensions are accepted out of an offer, and how a payload type of one client
//! is found again at another.

pub use crate::media::codec::Codec;

use super::{Extension, Kind, Payload, Section};

/// Media identification of RTP packets (RFC 9143).
pub const MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
/// Name of a simulcast stream (RFC 8852).
pub const RTP_STREAM_ID: &str = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id";
/// Name of the simulcast stream that a retransmission repairs (RFC 8852).
pub const REPAIRED_RTP_STREAM_ID: &str = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id";
/// Loudness of audio packets (RFC 6464).
pub const AUDIO_LEVEL: &str = "urn:ietf:params:rtp-hdrext:ssrc-audio-level";
/// Transport-wide sequence numbers (draft-holmer-rmcat-transport-wide-cc-extensions).
pub const TRANSPORT_WIDE_CC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
/// Sending time of the packet.
pub const ABS_SEND_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time";
/// Capture time of the frame.
pub const ABS_CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
/// AV1's dependency descriptor, used with every scalable codec.
pub const DEPENDENCY_DESCRIPTOR: &str =
    "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension";
/// Rotation of the picture (3GPP TS 26.114).
pub const VIDEO_ORIENTATION: &str = "urn:3gpp:video-orientation";

const AUDIO_EXTENSIONS: &[&str] = &[MID, RTP_STREAM_ID, AUDIO_LEVEL, ABS_CAPTURE_TIME];
const VIDEO_EXTENSIONS: &[&str] = &[
    MID,
    RTP_STREAM_ID,
    REPAIRED_RTP_STREAM_ID,
    TRANSPORT_WIDE_CC,
    ABS_SEND_TIME,
    DEPENDENCY_DESCRIPTOR,
    ABS_CAPTURE_TIME,
    VIDEO_ORIENTATION,
];
const AUDIO_FEEDBACK: &[&str] = &["nack"];
pub(crate) const VIDEO_FEEDBACK: &[&str] = &["transport-cc", "ccm fir", "nack", "nack pli"];

/// The codecs that are negotiated with their MIME types, the first being what clients fall back to.
pub const CODECS: &[(Codec, &str)] = &[
    (Codec::Vp8, "video/VP8"),
    (Codec::H264, "video/H264"),
    (Codec::Vp9, "video/VP9"),
    (Codec::Av1, "video/AV1"),
    (Codec::Opus, "audio/opus"),
];

/// The MIME type of a codec.
pub fn mime(codec: Codec) -> &'static str {
    CODECS
        .iter()
        .find(|(known, _)| *known == codec)
        .map_or("", |(_, mime)| mime)
}

/// The codec of an encoding name or MIME type, without regard to case.
pub fn named(name: &str) -> Option<Codec> {
    let name = name.rsplit('/').next().unwrap_or(name);
    CODECS
        .iter()
        .find(|(_, mime)| {
            mime.rsplit('/')
                .next()
                .is_some_and(|known| known.eq_ignore_ascii_case(name))
        })
        .map(|(codec, _)| *codec)
}

/// What a codec carries.
pub fn kind(codec: Codec) -> Kind {
    if codec.is_video() { Kind::Video } else { Kind::Audio }
}

/// A payload type both sides know, with its retransmission payload type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The codec.
    pub codec: Codec,
    /// As offered, feedback cut down to what is supported.
    pub payload: Payload,
    /// The `rtx` payload type for it (RFC 4588).
    pub rtx: Option<Payload>,
}

/// The payload types of `section` that are forwarded, in the order offered. Looks at each payload type twice, however many
/// there are.
pub fn negotiate(section: &Section) -> Vec<Negotiated> {
    #[cfg(test)]
    work::count();
    // Which payload type repairs which (RFC 4588 §8.6), by the number of the repaired.
    let mut repairs: [Option<&Payload>; 256] = [None; 256];
    for payload in section
        .payloads
        .iter()
        .filter(|payload| payload.name.eq_ignore_ascii_case("rtx"))
    {
        if let Some(number) = payload.parameter("apt").and_then(|apt| apt.parse::<u8>().ok()) {
            repairs[usize::from(number)].get_or_insert(payload);
        }
    }
    let known = if section.kind == Kind::Audio {
        AUDIO_FEEDBACK
    } else {
        VIDEO_FEEDBACK
    };
    section
        .payloads
        .iter()
        .filter_map(|offered| {
            let codec = named(&offered.name).filter(|codec| kind(*codec) == section.kind)?;
            let mut payload = offered.clone();
            payload.feedback.retain(|feedback| known.contains(&feedback.as_str()));
            let rtx = repairs[usize::from(offered.number)].cloned();
            Some(Negotiated { codec, payload, rtx })
        })
        .collect()
}

/// Moves the payload types of `first` to the front.
pub fn prefer(negotiated: &mut [Negotiated], first: Codec) {
    negotiated.sort_by_key(|entry| entry.codec != first);
}

/// The payload type among `candidates` that carries what a publisher sends as `codec` with `format`.
pub fn matching<'a>(candidates: &'a [Negotiated], codec: Codec, format: &str) -> Option<&'a Negotiated> {
    let wanted = Payload {
        format: format.to_owned(),
        ..Payload::default()
    };
    let same = |candidate: &&Negotiated, key: &str, default: &str| {
        let value = |payload: &Payload| payload.parameter(key).unwrap_or(default).to_ascii_lowercase();
        value(&candidate.payload) == value(&wanted)
    };
    let of_codec = || candidates.iter().filter(|candidate| candidate.codec == codec);
    match codec {
        Codec::Opus | Codec::Red | Codec::Vp8 => of_codec().next(),
        Codec::Vp9 => of_codec().find(|candidate| same(candidate, "profile-id", "0")),
        Codec::Av1 => of_codec().find(|candidate| same(candidate, "profile", "0")),
        // RFC 6184 §8.1: the profile is the first two octets; the level may differ, the packetisation may not.
        Codec::H264 => {
            let profile = |payload: &Payload| {
                payload
                    .parameter("profile-level-id")
                    .unwrap_or("42e01f")
                    .get(..2)
                    .unwrap_or_default()
                    .to_ascii_lowercase()
            };
            of_codec()
                .filter(|candidate| same(candidate, "packetization-mode", "0"))
                .find(|candidate| profile(&candidate.payload) == profile(&wanted))
                .or_else(|| of_codec().find(|candidate| same(candidate, "packetization-mode", "0")))
        }
    }
}

/// The header extensions of `section` that are accepted, with the identifiers offered.
pub fn extensions(section: &Section) -> Vec<Extension> {
    let known = match section.kind {
        Kind::Audio => AUDIO_EXTENSIONS,
        Kind::Video => VIDEO_EXTENSIONS,
        Kind::Application | Kind::Other => &[],
    };
    section
        .extensions
        .iter()
        .filter(|extension| known.contains(&extension.uri.as_str()))
        .cloned()
        .collect()
}

/// How often this thread negotiated: tests count work instead of time.
#[cfg(test)]
pub(crate) mod work {
    use std::cell::Cell;

    thread_local! {
        static NEGOTIATIONS: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        NEGOTIATIONS.set(NEGOTIATIONS.get() + 1);
    }

    /// The count since the last call.
    pub(crate) fn take() -> usize {
        NEGOTIATIONS.replace(0)
    }
}
