//! Writes our session descriptions: answers, and offers on the connections where the server offers.

use std::fmt::Write as _;

use super::{Direction, Extension, Fingerprint, IceCredentials, Kind, Setup, codecs::Negotiated};

use crate::transport::MAX_MESSAGE_SIZE;

/// What one sending section carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingMedia {
    /// Stream part of the msid.
    pub stream: String,
    /// Track part of the msid.
    pub track: String,
    /// Media SSRC.
    pub ssrc: u32,
    /// Retransmission SSRC.
    pub rtx_ssrc: Option<u32>,
}

/// One section of our description.
#[derive(Clone, Debug)]
pub struct LocalSection {
    /// What it carries.
    pub kind: Kind,
    /// Media word, protocol and formats as the other side wrote them.
    pub media: String,
    /// Protocol word.
    pub protocol: String,
    /// Formats for a rejected section.
    pub formats: Vec<String>,
    /// Media identification.
    pub mid: String,
    /// Answer with port 0.
    pub rejected: bool,
    /// Our direction.
    pub direction: Direction,
    /// Payload types in order of preference.
    pub payloads: Vec<Negotiated>,
    /// Format parameters to write for Opus in place of the offered ones.
    pub opus_format: Option<String>,
    /// Header extensions.
    pub extensions: Vec<Extension>,
    /// Simulcast streams we receive.
    pub receive_rids: Vec<String>,
    /// What we send.
    pub outgoing: Option<OutgoingMedia>,
}

/// Our side of a session.
#[derive(Clone, Debug)]
pub struct Local {
    /// `o=` session identifier.
    pub session_id: u64,
    /// `o=` version, rising with every description.
    pub version: u64,
    /// Our ICE credentials.
    pub ice: IceCredentials,
    /// Whether we only answer checks (RFC 8445 §2.5).
    pub ice_lite: bool,
    /// Our certificate.
    pub fingerprint: Fingerprint,
    /// Our DTLS role.
    pub setup: Setup,
    /// Candidate lines, without `a=`.
    pub candidates: Vec<String>,
    /// RTCP canonical name.
    pub cname: String,
    /// `extmap-allow-mixed` at session level.
    pub extmap_allow_mixed: bool,
    /// Sections in the order of the offer.
    pub sections: Vec<LocalSection>,
}

/// The text of `local`.
pub fn write(local: &Local) -> String {
    let mut text = String::with_capacity(512 + local.sections.len() * 1536);
    write_into(&mut text, local).expect("writing to a string does not fail");
    text
}

fn write_into(out: &mut String, local: &Local) -> std::fmt::Result {
    write!(
        out,
        "v=0\r\no=- {} {} IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n",
        local.session_id, local.version
    )?;
    if local.ice_lite {
        out.push_str("a=ice-lite\r\n");
    }
    out.push_str("a=group:BUNDLE");
    for section in local.sections.iter().filter(|section| !section.rejected) {
        write!(out, " {}", section.mid)?;
    }
    out.push_str("\r\n");
    if local.extmap_allow_mixed {
        out.push_str("a=extmap-allow-mixed\r\n");
    }
    out.push_str("a=msid-semantic: WMS *\r\n");
    let mut tagged = true;
    for section in &local.sections {
        if section.rejected {
            let formats = if section.formats.is_empty() {
                "0".to_owned()
            } else {
                section.formats.join(" ")
            };
            write!(
                out,
                "m={} 0 {} {formats}\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\n",
                section.media, section.protocol
            )?;
            write!(out, "a=mid:{}\r\n", section.mid)?;
            continue;
        }
        match section.kind {
            Kind::Application => {
                write!(out, "m=application 9 {} webrtc-datachannel\r\n", section.protocol)?;
                transport(out, local, section)?;
                write!(out, "a=sctp-port:5000\r\na=max-message-size:{MAX_MESSAGE_SIZE}\r\n")?;
            }
            _ => media(out, local, section)?,
        }
        // RFC 9143 §7.1.3: candidates belong to the tagged section alone.
        if tagged {
            for candidate in &local.candidates {
                write!(out, "a={candidate}\r\n")?;
            }
            tagged = false;
        }
    }
    Ok(())
}

fn transport(out: &mut String, local: &Local, section: &LocalSection) -> std::fmt::Result {
    write!(out, "c=IN IP4 0.0.0.0\r\na=mid:{}\r\n", section.mid)?;
    write!(
        out,
        "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\na=ice-options:trickle\r\n",
        local.ice.ufrag, local.ice.pwd
    )?;
    write!(
        out,
        "a=fingerprint:sha-256 {}\r\na=setup:{}\r\n",
        local.fingerprint,
        local.setup.name()
    )
}

fn media(out: &mut String, local: &Local, section: &LocalSection) -> std::fmt::Result {
    write!(out, "m={} 9 {}", section.media, section.protocol)?;
    for entry in &section.payloads {
        write!(out, " {}", entry.payload.number)?;
        if let Some(rtx) = &entry.rtx {
            write!(out, " {}", rtx.number)?;
        }
    }
    out.push_str("\r\n");
    transport(out, local, section)?;
    out.push_str("a=rtcp-mux\r\na=rtcp-rsize\r\n");
    for extension in &section.extensions {
        write!(out, "a=extmap:{} {}\r\n", extension.id, extension.uri)?;
    }
    write!(out, "a={}\r\n", section.direction.name())?;
    for entry in &section.payloads {
        let payload = &entry.payload;
        write!(
            out,
            "a=rtpmap:{} {}/{}",
            payload.number, payload.name, payload.clock_rate
        )?;
        if payload.channels > 1 {
            write!(out, "/{}", payload.channels)?;
        }
        out.push_str("\r\n");
        for feedback in &payload.feedback {
            write!(out, "a=rtcp-fb:{} {feedback}\r\n", payload.number)?;
        }
        let format = section.opus_format.as_deref().unwrap_or(&payload.format);
        if !format.is_empty() {
            write!(out, "a=fmtp:{} {format}\r\n", payload.number)?;
        }
        if let Some(rtx) = &entry.rtx {
            write!(out, "a=rtpmap:{} rtx/{}\r\n", rtx.number, rtx.clock_rate)?;
            write!(out, "a=fmtp:{} {}\r\n", rtx.number, rtx.format)?;
        }
    }
    if !section.receive_rids.is_empty() {
        for rid in &section.receive_rids {
            write!(out, "a=rid:{rid} recv\r\n")?;
        }
        write!(out, "a=simulcast:recv {}\r\n", section.receive_rids.join(";"))?;
    }
    if let Some(outgoing) = &section.outgoing {
        let OutgoingMedia {
            stream,
            track,
            ssrc,
            rtx_ssrc,
        } = outgoing;
        write!(out, "a=msid:{stream} {track}\r\n")?;
        if let Some(rtx) = rtx_ssrc {
            write!(out, "a=ssrc-group:FID {ssrc} {rtx}\r\n")?;
        }
        for ssrc in [Some(*ssrc), *rtx_ssrc].into_iter().flatten() {
            write!(
                out,
                "a=ssrc:{ssrc} cname:{}\r\na=ssrc:{ssrc} msid:{stream} {track}\r\n",
                local.cname
            )?;
        }
    }
    Ok(())
}
