//! Session descriptions (RFC 8866, RFC 8829): reads what clients offer into types, writes our answers and offers.
//!
//! Owns the text format, the codec and header extension choice. Must not know participants, rooms or sockets: which track
//! goes into which section is told from outside.

pub mod codecs;
mod parse;
mod write;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, net::SocketAddr};

pub use crate::transport::{Fingerprint, IceCredentials};
pub use parse::parse;
pub use write::{Local, LocalSection, OutgoingMedia, write};

/// Longest session description read, in bytes. A browser in a call of fifty with everything open sends about 700 kB.
pub const MAX_LENGTH: usize = 2 * 1024 * 1024;
/// Most media sections read.
pub const MAX_SECTIONS: usize = 1024;
/// Longest single line.
pub const MAX_LINE: usize = 8 * 1024;

/// What a media section carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// RTP audio.
    Audio,
    /// RTP video.
    Video,
    /// Data channels over SCTP (RFC 8841).
    Application,
    /// Anything else: answered with port 0.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Application => "application",
            Self::Other => "other",
        })
    }
}

/// The direction attribute, from the point of view of the side that wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Sends and receives: what an absent attribute means.
    #[default]
    SendRecv,
    /// Sends only.
    SendOnly,
    /// Receives only.
    RecvOnly,
    /// Neither.
    Inactive,
}

impl Direction {
    /// The direction of one who does what is said.
    pub fn new(sends: bool, receives: bool) -> Self {
        match (sends, receives) {
            (true, true) => Self::SendRecv,
            (true, false) => Self::SendOnly,
            (false, true) => Self::RecvOnly,
            (false, false) => Self::Inactive,
        }
    }

    /// Whether the writer sends.
    pub fn sends(self) -> bool {
        matches!(self, Self::SendRecv | Self::SendOnly)
    }

    /// Whether the writer receives.
    pub fn receives(self) -> bool {
        matches!(self, Self::SendRecv | Self::RecvOnly)
    }

    fn name(self) -> &'static str {
        match self {
            Self::SendRecv => "sendrecv",
            Self::SendOnly => "sendonly",
            Self::RecvOnly => "recvonly",
            Self::Inactive => "inactive",
        }
    }
}

/// The DTLS role attribute (RFC 8842 §5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Setup {
    /// Either role.
    #[default]
    ActPass,
    /// The writer is the DTLS client.
    Active,
    /// The writer is the DTLS server.
    Passive,
}

impl Setup {
    fn name(self) -> &'static str {
        match self {
            Self::ActPass => "actpass",
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// One RTP payload type of a section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Payload type number.
    pub number: u8,
    /// Encoding name as written (`VP8`, `opus`, `rtx`).
    pub name: String,
    /// Clock rate in hertz.
    pub clock_rate: u32,
    /// Channels; 0 when not written.
    pub channels: u8,
    /// Format parameters as written, empty if none.
    pub format: String,
    /// Feedback messages (`nack pli`, `transport-cc`).
    pub feedback: Vec<String>,
}

impl Payload {
    /// The value of one `key=value` format parameter.
    pub fn parameter(&self, key: &str) -> Option<&str> {
        self.format.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim())
        })
    }
}

/// One RTP header extension of a section (RFC 8285).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Local identifier, 1 to 255.
    pub id: u8,
    /// What it carries.
    pub uri: String,
}

/// One media section as read.
#[derive(Clone, Debug)]
pub struct Section {
    /// What it carries.
    pub kind: Kind,
    /// The media word of the `m=` line, repeated in the answer.
    pub media: String,
    /// The protocol word of the `m=` line.
    pub protocol: String,
    /// Formats of the `m=` line as written.
    pub formats: Vec<String>,
    /// Port 0 without `bundle-only`: the section is switched off.
    pub rejected: bool,
    /// Media identification (RFC 5888).
    pub mid: String,
    /// Direction of the writer.
    pub direction: Direction,
    /// Payload types in order of preference.
    pub payloads: Vec<Payload>,
    /// Header extensions.
    pub extensions: Vec<Extension>,
    /// Stream and track name of what the writer sends (RFC 8830).
    pub msid: Option<(String, String)>,
    /// Simulcast stream names the writer sends, lowest first (RFC 8853).
    pub send_rids: Vec<String>,
    /// Every SSRC named, in order.
    pub ssrcs: Vec<u32>,
    /// Pairs of media and retransmission SSRC (`ssrc-group:FID`).
    pub repair: Vec<(u32, u32)>,
    /// `sctp-port`.
    pub sctp_port: Option<u16>,
    /// Candidate lines, without `a=`.
    pub candidates: Vec<String>,
}

impl Section {
    /// The local identifier of a header extension.
    pub fn extension(&self, uri: &str) -> Option<u8> {
        self.extensions
            .iter()
            .find(|extension| extension.uri == uri)
            .map(|extension| extension.id)
    }
}

/// A session description as read. Transport attributes are those of the first section that has them: everything is bundled.
#[derive(Clone, Debug)]
pub struct Description {
    /// ICE credentials of the writer.
    pub ice: IceCredentials,
    /// SHA-256 fingerprint of the writer's certificate.
    pub fingerprint: Fingerprint,
    /// DTLS role of the writer.
    pub setup: Setup,
    /// Media identifications of the BUNDLE group, in order.
    pub bundle: Vec<String>,
    /// `extmap-allow-mixed` at session level.
    pub extmap_allow_mixed: bool,
    /// Media sections in order.
    pub sections: Vec<Section>,
}

impl Description {
    /// The section with this media identification. For all of them, see [`by_mid`].
    pub fn section(&self, mid: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.mid == mid)
    }
}

/// The sections by media identification.
pub(crate) fn by_mid(description: &Description) -> HashMap<&str, &Section> {
    let sections = description.sections.iter();
    sections.map(|section| (section.mid.as_str(), section)).collect()
}

/// The address of a candidate line (RFC 8839 §5.1), with or without `a=`; `None` for names (mDNS) and rubbish. TCP candidates
/// of clients are active and are never called.
pub fn candidate_address(line: &str) -> Option<SocketAddr> {
    let line = line.strip_prefix("a=").unwrap_or(line);
    let mut words = line.strip_prefix("candidate:")?.split_ascii_whitespace();
    let protocol = words.nth(2)?;
    let address = words.nth(1)?.parse().ok()?;
    let port = words.next()?.parse().ok()?;
    (protocol.eq_ignore_ascii_case("udp") && port != 0).then(|| SocketAddr::new(address, port))
}

/// Why a session description is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SdpError {
    /// Longer than [`MAX_LENGTH`], a line longer than [`MAX_LINE`], or more than [`MAX_SECTIONS`] sections.
    #[error("session description exceeds a limit: {0}")]
    TooLarge(&'static str),
    /// A line that cannot be read.
    #[error("line {line}: {cause}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        cause: &'static str,
    },
    /// Something a WebRTC description cannot do without.
    #[error("session description lacks {0}")]
    Missing(&'static str),
}
