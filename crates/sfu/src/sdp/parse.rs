//! Reads a session description. Bounded in length, lines and sections; unknown attributes are passed over, because
//! clients add new ones with every release.

use std::collections::HashSet;

use super::{
    Description, Direction, Extension, Fingerprint, IceCredentials, Kind, MAX_LENGTH, MAX_LINE, MAX_SECTIONS, Payload,
    SdpError, Section, Setup,
};

/// Most entries kept of any one list of a section.
const MAX_LIST: usize = 256;
/// Most feedback messages kept of one payload type.
const MAX_FEEDBACK: usize = 32;

#[derive(Default)]
struct Transport {
    ufrag: Option<String>,
    pwd: Option<String>,
    fingerprint: Option<Fingerprint>,
    setup: Option<Setup>,
}

/// Reads `text` (RFC 8866 grammar as far as RFC 8829 uses it).
pub fn parse(text: &str) -> Result<Description, SdpError> {
    if text.len() > MAX_LENGTH {
        return Err(SdpError::TooLarge("length"));
    }
    let mut transport = Transport::default();
    let mut bundle = Vec::new();
    let mut extmap_allow_mixed = false;
    let mut session_direction = None;
    let mut sections: Vec<Section> = Vec::new();
    // Port 0 is a rejection only if `bundle-only` does not follow.
    let mut bundle_only = false;
    let mut zero_port = false;

    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        let fault = |cause| SdpError::Line { line: index + 1, cause };
        // What others are told of this description must not begin a line of theirs.
        if line.contains('\r') {
            return Err(fault("carriage return within a line"));
        }
        if line.is_empty() {
            continue;
        }
        if line.len() > MAX_LINE {
            return Err(SdpError::TooLarge("line"));
        }
        let (key, value) = line.split_once('=').ok_or(fault("no '='"))?;
        if index == 0 && (key, value) != ("v", "0") {
            return Err(fault("not version 0"));
        }
        match key {
            "m" => {
                close(sections.last_mut(), zero_port, bundle_only);
                if sections.len() == MAX_SECTIONS {
                    return Err(SdpError::TooLarge("sections"));
                }
                let mut section = media_line(value).ok_or(fault("media line"))?;
                section.direction = session_direction.unwrap_or_default();
                zero_port = value.split(' ').nth(1) == Some("0");
                bundle_only = false;
                sections.push(section);
            }
            "a" => {
                let (name, value) = value.split_once(':').unwrap_or((value, ""));
                if read_transport(&mut transport, name, value).map_err(fault)? {
                    continue;
                }
                match sections.last_mut() {
                    None => match name {
                        "group" => {
                            let mut words = value.split_ascii_whitespace();
                            if words.next() == Some("BUNDLE") {
                                bundle = words.take(MAX_SECTIONS).map(str::to_owned).collect();
                            }
                        }
                        "extmap-allow-mixed" => extmap_allow_mixed = true,
                        _ => session_direction = direction(name).or(session_direction),
                    },
                    Some(_) if name == "bundle-only" => bundle_only = true,
                    Some(section) => read_attribute(section, name, value).map_err(fault)?,
                }
            }
            _ => {}
        }
    }
    close(sections.last_mut(), zero_port, bundle_only);

    let mut mids = HashSet::with_capacity(sections.len());
    for section in &sections {
        if section.mid.is_empty() {
            return Err(SdpError::Missing("a mid in a media section"));
        }
        if !mids.insert(section.mid.as_str()) {
            return Err(SdpError::Missing("distinct mids"));
        }
    }
    if sections.is_empty() {
        return Err(SdpError::Missing("media sections"));
    }
    let (Some(ufrag), Some(pwd)) = (transport.ufrag, transport.pwd) else {
        return Err(SdpError::Missing("ICE credentials"));
    };
    let Some(fingerprint) = transport.fingerprint else {
        return Err(SdpError::Missing("a SHA-256 certificate fingerprint"));
    };
    Ok(Description {
        ice: IceCredentials { ufrag, pwd },
        fingerprint,
        setup: transport.setup.unwrap_or_default(),
        bundle,
        extmap_allow_mixed,
        sections,
    })
}

fn close(section: Option<&mut Section>, zero_port: bool, bundle_only: bool) {
    if let Some(section) = section {
        section.rejected = zero_port && !bundle_only;
        // A rid without a=simulcast is one stream and needs no name (RFC 8853 §5.3).
        section.payloads.retain(|payload| !payload.name.is_empty());
    }
}

fn media_line(value: &str) -> Option<Section> {
    let mut words = value.split_ascii_whitespace();
    let media = words.next()?;
    let _port: u16 = words.next()?.split('/').next()?.parse().ok()?;
    let protocol = words.next()?;
    let formats: Vec<String> = words.take(MAX_LIST).map(str::to_owned).collect();
    let kind = match media {
        "audio" => Kind::Audio,
        "video" => Kind::Video,
        "application" => Kind::Application,
        _ => Kind::Other,
    };
    let payloads = match kind {
        Kind::Audio | Kind::Video => payload_types(&formats)?,
        Kind::Application | Kind::Other => Vec::new(),
    };
    Some(Section {
        kind,
        media: media.to_owned(),
        protocol: protocol.to_owned(),
        formats,
        rejected: false,
        mid: String::new(),
        direction: Direction::default(),
        payloads,
        extensions: Vec::new(),
        msid: None,
        send_rids: Vec::new(),
        ssrcs: Vec::new(),
        repair: Vec::new(),
        sctp_port: None,
        candidates: Vec::new(),
    })
}

/// The payload types of a media line, each once.
fn payload_types(formats: &[String]) -> Option<Vec<Payload>> {
    let mut known = [false; 256];
    let mut payloads = Vec::with_capacity(formats.len());
    for format in formats {
        let number: u8 = format.parse().ok()?;
        if !std::mem::replace(&mut known[usize::from(number)], true) {
            payloads.push(Payload {
                number,
                ..Payload::default()
            });
        }
    }
    Some(payloads)
}

/// Takes the transport attributes; the first section that has them speaks for the bundle. True if the attribute was one.
fn read_transport(transport: &mut Transport, name: &str, value: &str) -> Result<bool, &'static str> {
    match name {
        // RFC 8839 §5.4: 4 to 256 and 22 to 256 ICE characters.
        "ice-ufrag" => {
            ice_text(value, 4).ok_or("ice-ufrag")?;
            transport.ufrag.get_or_insert_with(|| value.to_owned());
        }
        "ice-pwd" => {
            ice_text(value, 22).ok_or("ice-pwd")?;
            transport.pwd.get_or_insert_with(|| value.to_owned());
        }
        "fingerprint" => {
            // Other hash functions may stand beside SHA-256.
            transport.fingerprint = transport.fingerprint.or_else(|| Fingerprint::parse(value));
        }
        "setup" => {
            let setup = match value {
                "actpass" => Setup::ActPass,
                "active" => Setup::Active,
                "passive" => Setup::Passive,
                _ => return Err("setup"),
            };
            transport.setup.get_or_insert(setup);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn ice_text(value: &str, shortest: usize) -> Option<()> {
    let valid = (shortest..=256).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'='));
    valid.then_some(())
}

fn direction(name: &str) -> Option<Direction> {
    Some(match name {
        "sendrecv" => Direction::SendRecv,
        "sendonly" => Direction::SendOnly,
        "recvonly" => Direction::RecvOnly,
        "inactive" => Direction::Inactive,
        _ => return None,
    })
}

fn read_attribute(section: &mut Section, name: &str, value: &str) -> Result<(), &'static str> {
    match name {
        "mid" => {
            let token = !value.is_empty() && value.len() <= 64 && value.bytes().all(|byte| byte.is_ascii_graphic());
            if !token {
                return Err("mid");
            }
            section.mid = value.to_owned();
        }
        "rtpmap" => {
            let (number, encoding) = value.split_once(' ').ok_or("rtpmap")?;
            let mut parts = encoding.trim().split('/');
            let (name, clock_rate) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let clock_rate = clock_rate.parse().map_err(|_| "rtpmap")?;
            if let Some(payload) = payload(section, number)? {
                payload.name = name.to_owned();
                payload.clock_rate = clock_rate;
                payload.channels = parts.next().and_then(|channels| channels.parse().ok()).unwrap_or(0);
            }
        }
        "fmtp" => {
            let (number, format) = value.split_once(' ').ok_or("fmtp")?;
            if let Some(payload) = payload(section, number)? {
                payload.format = format.trim().to_owned();
            }
        }
        "rtcp-fb" => {
            let (number, feedback) = value.split_once(' ').ok_or("rtcp-fb")?;
            let feedback = feedback.trim();
            if number == "*" {
                for payload in &mut section.payloads {
                    add_feedback(payload, feedback);
                }
            } else if let Some(payload) = payload(section, number)? {
                add_feedback(payload, feedback);
            }
        }
        "extmap" => {
            let (id, rest) = value.split_once(' ').ok_or("extmap")?;
            let id = id.split('/').next().unwrap_or_default().parse().map_err(|_| "extmap")?;
            let uri = rest.split(' ').next().unwrap_or_default();
            if id == 0 {
                return Err("extmap");
            }
            push(
                &mut section.extensions,
                Extension {
                    id,
                    uri: uri.to_owned(),
                },
            );
        }
        "msid" => {
            let (stream, track) = value.split_once(' ').unwrap_or((value, ""));
            section
                .msid
                .get_or_insert_with(|| (stream.to_owned(), track.to_owned()));
        }
        "simulcast" => read_simulcast(section, value),
        "ssrc" => {
            let (ssrc, attribute) = value.split_once(' ').unwrap_or((value, ""));
            let ssrc = ssrc.parse().map_err(|_| "ssrc")?;
            if !section.ssrcs.contains(&ssrc) {
                push(&mut section.ssrcs, ssrc);
            }
            // Plan-B style names: older SDKs have no a=msid line.
            if let Some(msid) = attribute.strip_prefix("msid:") {
                let (stream, track) = msid.split_once(' ').unwrap_or((msid, ""));
                section
                    .msid
                    .get_or_insert_with(|| (stream.to_owned(), track.to_owned()));
            }
        }
        "ssrc-group" => {
            let mut words = value.split_ascii_whitespace();
            if words.next() == Some("FID")
                && let (Some(media), Some(repair)) = (words.next(), words.next())
            {
                let pair = (
                    media.parse().map_err(|_| "ssrc-group")?,
                    repair.parse().map_err(|_| "ssrc-group")?,
                );
                push(&mut section.repair, pair);
            }
        }
        "sctp-port" => section.sctp_port = Some(value.trim().parse().map_err(|_| "sctp-port")?),
        "candidate" => push(&mut section.candidates, format!("candidate:{value}")),
        _ => {
            if let Some(direction) = direction(name) {
                section.direction = direction;
            }
        }
    }
    Ok(())
}

/// `a=simulcast:send q;h;f recv …`: alternatives separated by commas count as their first; `~` marks a paused stream.
fn read_simulcast(section: &mut Section, value: &str) {
    let mut words = value.split_ascii_whitespace();
    while let (Some(way), Some(list)) = (words.next(), words.next()) {
        if way == "send" {
            section.send_rids = list
                .split(';')
                .filter_map(|alternatives| alternatives.split(',').next())
                .map(|rid| rid.trim_start_matches('~'))
                .filter(|rid| {
                    !rid.is_empty() && rid.len() <= 16 && rid.bytes().all(|byte| byte.is_ascii_alphanumeric())
                })
                .take(8)
                .map(str::to_owned)
                .collect();
        }
    }
}

fn payload<'a>(section: &'a mut Section, number: &str) -> Result<Option<&'a mut Payload>, &'static str> {
    if !matches!(section.kind, Kind::Audio | Kind::Video) {
        return Ok(None);
    }
    let number: u8 = number.parse().map_err(|_| "payload type")?;
    Ok(section.payloads.iter_mut().find(|payload| payload.number == number))
}

fn add_feedback(payload: &mut Payload, feedback: &str) {
    if payload.feedback.len() < MAX_FEEDBACK {
        payload.feedback.push(feedback.to_owned());
    }
}

fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() < MAX_LIST {
        list.push(item);
    }
}
