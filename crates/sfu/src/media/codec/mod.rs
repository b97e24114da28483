//! What can be told about a media payload without decoding it, which under end-to-end encryption is also all that is
//! legible: payload descriptors and the first clear bytes. Pure.

mod av1;
mod h264;
mod vp9;

pub mod vp8;

/// The codecs that are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    Opus,
    /// Redundant audio (RFC 2198); forwarded as it is.
    Red,
    Vp8,
    Vp9,
    H264,
    Av1,
}

impl Codec {
    /// From the encoding name of `a=rtpmap`, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Opus, Self::Red, Self::Vp8, Self::Vp9, Self::H264, Self::Av1]
            .into_iter()
            .find(|codec| codec.name().eq_ignore_ascii_case(name))
    }

    /// The encoding name in `a=rtpmap`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opus => "opus",
            Self::Red => "red",
            Self::Vp8 => "VP8",
            Self::Vp9 => "VP9",
            Self::H264 => "H264",
            Self::Av1 => "AV1",
        }
    }

    /// Ticks of the RTP timestamp per second.
    pub fn clock_rate(self) -> u32 {
        if self.is_video() { 90_000 } else { 48_000 }
    }

    pub fn is_video(self) -> bool {
        matches!(self, Self::Vp8 | Self::Vp9 | Self::H264 | Self::Av1)
    }

    /// Whether the packet begins a picture from which a decoder can start. Always true for audio.
    /// `dependency_descriptor` is the header extension, where the sender puts it.
    pub fn begins_keyframe(self, payload: &[u8], dependency_descriptor: Option<&[u8]>) -> bool {
        match self {
            Self::Opus | Self::Red => true,
            Self::Vp8 => vp8::Vp8Descriptor::parse(payload).is_some_and(|d| d.begins_keyframe(payload)),
            Self::Vp9 => vp9::begins_keyframe(payload),
            Self::H264 => h264::begins_keyframe(payload),
            Self::Av1 => av1::begins_keyframe(payload, dependency_descriptor),
        }
    }
}
