//! Descriptions as browsers and SDKs write them, and what must not hurt us.

use proptest::prelude::*;

use super::{
    codecs::{self, Codec},
    *,
};

const HEAD: &str = "v=0\r\no=- 5109652380373235383 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n\
    a=group:BUNDLE 0 1 2 3\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS\r\n";
const TRANSPORT: &str = "c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:YlXG\r\n\
    a=ice-pwd:S0n9XsuwuMt/5BG4ilXCgpKX\r\na=ice-options:trickle goog-sped-v1\r\n\
    a=fingerprint:sha-256 9D:A5:62:3B:84:60:91:65:3B:2A:C2:E2:B6:E0:FD:6D:2A:6C:DB:99:D3:BF:87:3C:31:B9:21:A8:2B:E2:9B:AB\r\n\
    a=setup:actpass\r\n";
const AUDIO: &str = "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level\r\n\
    a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
    a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid\r\na=rtcp-mux\r\na=rtcp-rsize\r\na=rtcp-xr:rcvr-rtt=all\r\n\
    a=rtpmap:111 opus/48000/2\r\na=rtcp-fb:111 transport-cc\r\na=rtcp-fb:111 nack\r\n\
    a=fmtp:111 minptime=10;useinbandfec=1\r\na=rtpmap:63 red/48000/2\r\na=fmtp:63 111/111\r\na=rtpmap:0 PCMU/8000\r\n";
const VIDEO: &str = "a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time\r\n\
    a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
    a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid\r\n\
    a=extmap:8 http://www.webrtc.org/experiments/rtp-hdrext/color-space\r\n\
    a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\r\n\
    a=extmap:11 urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id\r\n\
    a=rtcp-mux\r\na=rtcp-rsize\r\na=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 goog-remb\r\na=rtcp-fb:96 transport-cc\r\n\
    a=rtcp-fb:96 ccm fir\r\na=rtcp-fb:96 nack\r\na=rtcp-fb:96 nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n\
    a=rtpmap:102 H264/90000\r\n\
    a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f\r\n\
    a=rtpmap:103 rtx/90000\r\na=fmtp:103 apt=102\r\na=rtpmap:108 H264/90000\r\n\
    a=fmtp:108 level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f\r\n\
    a=rtpmap:98 VP9/90000\r\na=fmtp:98 profile-id=0\r\na=rtpmap:100 VP9/90000\r\na=fmtp:100 profile-id=2\r\n\
    a=rtpmap:116 red/90000\r\na=rtpmap:117 ulpfec/90000\r\n";

/// What a browser offers when it joins and publishes a camera: free sections, data channels, a simulcast camera.
fn chromium() -> String {
    let audio = format!("m=audio 9 UDP/TLS/RTP/SAVPF 111 63 0\r\n{TRANSPORT}a=mid:0\r\na=recvonly\r\n{AUDIO}");
    let formats = "96 97 102 103 108 98 100 116 117";
    let video = format!("m=video 9 UDP/TLS/RTP/SAVPF {formats}\r\n{TRANSPORT}a=mid:1\r\na=recvonly\r\n{VIDEO}");
    let data = format!(
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{TRANSPORT}a=mid:2\r\na=sctp-port:5000\r\n\
        a=max-message-size:262144\r\na=sctp-init:AQID\r\n"
    );
    let camera = format!(
        "m=video 9 UDP/TLS/RTP/SAVPF {formats}\r\n{TRANSPORT}a=mid:3\r\na=sendonly\r\n\
        a=msid:76b47872-9253-41d2-8d0b-14965de461a1 d0fedee1-89de-4030-8e4b-b5ad5f0eec49\r\n{VIDEO}\
        a=rid:q send\r\na=rid:h send\r\na=rid:f send\r\na=simulcast:send q;~h;f\r\n"
    );
    [HEAD, &audio, &video, &data, &camera].concat()
}

#[test]
fn a_browsers_offer_is_understood() {
    let offer = parse(&chromium()).unwrap();
    assert_eq!(
        (offer.ice.ufrag.as_str(), offer.setup, offer.extmap_allow_mixed),
        ("YlXG", Setup::ActPass, true)
    );
    assert_eq!(offer.bundle, ["0", "1", "2", "3"]);
    let kinds: Vec<_> = offer
        .sections
        .iter()
        .map(|section| (section.kind, section.direction))
        .collect();
    let expected = [
        (Kind::Audio, Direction::RecvOnly),
        (Kind::Video, Direction::RecvOnly),
        (Kind::Application, Direction::SendRecv),
        (Kind::Video, Direction::SendOnly),
    ];
    assert_eq!(kinds, expected);
    let camera = offer.section("3").unwrap();
    assert_eq!(camera.send_rids, ["q", "h", "f"]);
    assert_eq!(camera.msid.as_ref().unwrap().1, "d0fedee1-89de-4030-8e4b-b5ad5f0eec49");
    assert_eq!(camera.extension(codecs::RTP_STREAM_ID), Some(10));
    assert_eq!(offer.section("2").unwrap().sctp_port, Some(5000));
}

#[test]
fn only_what_is_forwarded_is_negotiated() {
    let offer = parse(&chromium()).unwrap();
    let audio = codecs::negotiate(&offer.sections[0]);
    assert_eq!(
        audio.iter().map(|entry| entry.payload.number).collect::<Vec<_>>(),
        [111]
    );
    assert_eq!(audio[0].payload.feedback, ["nack"]);
    let video = codecs::negotiate(&offer.sections[1]);
    let numbers: Vec<_> = video
        .iter()
        .map(|entry| (entry.payload.number, entry.rtx.as_ref().map(|rtx| rtx.number)))
        .collect();
    assert_eq!(
        numbers,
        [(96, Some(97)), (102, Some(103)), (108, None), (98, None), (100, None)]
    );
    assert_eq!(
        video[0].payload.feedback,
        ["transport-cc", "ccm fir", "nack", "nack pli"]
    );
    for (codec, format, expected) in [
        (Codec::Vp8, "", Some(96)),
        (Codec::H264, "packetization-mode=1;profile-level-id=42001f", Some(102)),
        (Codec::H264, "packetization-mode=1;profile-level-id=64001f", Some(102)),
        (Codec::H264, "profile-level-id=42e01f", Some(108)),
        (Codec::Vp9, "profile-id=2", Some(100)),
        (Codec::Vp9, "", Some(98)),
        (Codec::Av1, "", None),
    ] {
        let found = codecs::matching(&video, codec, format).map(|entry| entry.payload.number);
        assert_eq!(found, expected, "{codec:?} {format}");
    }
}

/// Without the stream id extensions in its receive-only sections a browser later refuses its own simulcast offer.
#[test]
fn receive_only_video_sections_accept_the_stream_id_extensions() {
    let offer = parse(&chromium()).unwrap();
    let accepted = codecs::extensions(&offer.sections[1]);
    for uri in [
        codecs::MID,
        codecs::RTP_STREAM_ID,
        codecs::REPAIRED_RTP_STREAM_ID,
        codecs::TRANSPORT_WIDE_CC,
    ] {
        assert!(accepted.iter().any(|extension| extension.uri == uri), "{uri}");
    }
    assert!(!accepted.iter().any(|extension| extension.uri.ends_with("color-space")));
}

fn section(offer: &Description, index: usize) -> LocalSection {
    let section = &offer.sections[index];
    LocalSection {
        kind: section.kind,
        media: section.media.clone(),
        protocol: section.protocol.clone(),
        formats: section.formats.clone(),
        mid: section.mid.clone(),
        rejected: false,
        direction: Direction::Inactive,
        payloads: codecs::negotiate(section),
        opus_format: None,
        extensions: codecs::extensions(section),
        receive_rids: section.send_rids.clone(),
        outgoing: None,
    }
}

#[test]
fn an_answer_reads_back_as_it_was_meant() {
    let offer = parse(&chromium()).unwrap();
    let mut sections: Vec<LocalSection> = (0..4).map(|index| section(&offer, index)).collect();
    sections[0].rejected = true;
    sections[1].direction = Direction::SendOnly;
    sections[1].outgoing = Some(OutgoingMedia {
        stream: "PA_x|camera".into(),
        track: "TR_VCy".into(),
        ssrc: 11,
        rtx_ssrc: Some(12),
    });
    sections[3].direction = Direction::RecvOnly;
    let text = write(&Local {
        session_id: 7,
        version: 1,
        ice: IceCredentials {
            ufrag: "abcd".into(),
            pwd: "abcdefghijklmnopqrstuvwx".into(),
        },
        ice_lite: true,
        fingerprint: offer.fingerprint,
        setup: Setup::Passive,
        candidates: vec!["candidate:1 1 udp 2130706431 192.0.2.1 7882 typ host".into()],
        cname: "PA_self".into(),
        extmap_allow_mixed: true,
        sections,
    });
    assert!(text.contains("a=ice-lite\r\n") && text.contains("a=simulcast:recv q;h;f\r\n"));
    assert_eq!(text.matches("a=candidate:").count(), 1);
    let answer = parse(&text).unwrap();
    assert_eq!(
        (answer.setup, answer.bundle.as_slice()),
        (Setup::Passive, ["1", "2", "3"].map(str::to_owned).as_slice())
    );
    assert!(answer.sections[0].rejected);
    let down = &answer.sections[1];
    assert_eq!(
        down.msid.clone().unwrap(),
        ("PA_x|camera".to_owned(), "TR_VCy".to_owned())
    );
    assert_eq!(
        (down.ssrcs.as_slice(), down.repair.as_slice()),
        ([11, 12].as_slice(), [(11, 12)].as_slice())
    );
    assert_eq!(down.candidates.len(), 1);
    assert_eq!(answer.sections[3].direction, Direction::RecvOnly);
}

#[test]
fn refusals_name_their_cause() {
    let good = chromium();
    let many = format!(
        "{HEAD}{}",
        (0..=MAX_SECTIONS)
            .map(|mid| format!("m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:{mid}\r\n"))
            .collect::<String>()
    );
    for (text, expected) in [
        (String::new(), SdpError::Missing("media sections")),
        (
            "hello".into(),
            SdpError::Line {
                line: 1,
                cause: "no '='",
            },
        ),
        (
            "v=1\r\n".into(),
            SdpError::Line {
                line: 1,
                cause: "not version 0",
            },
        ),
        (
            good.replace("a=mid:1\r\n", ""),
            SdpError::Missing("a mid in a media section"),
        ),
        (
            good.replace("a=mid:1\r\n", "a=mid:0\r\n"),
            SdpError::Missing("distinct mids"),
        ),
        (
            good.replace("a=ice-ufrag:YlXG\r\n", ""),
            SdpError::Missing("ICE credentials"),
        ),
        (
            good.replace("sha-256", "sha-1"),
            SdpError::Missing("a SHA-256 certificate fingerprint"),
        ),
        (
            good.replace("a=ice-ufrag:YlXG", "a=ice-ufrag:a b"),
            SdpError::Line {
                line: 11,
                cause: "ice-ufrag",
            },
        ),
        (
            good.replace("a=ice-ufrag:YlXG", "a=x:y\ra=candidate:1"),
            SdpError::Line {
                line: 11,
                cause: "carriage return within a line",
            },
        ),
        (
            good.replace("111 63 0\r\n", "111 opus\r\n"),
            SdpError::Line {
                line: 8,
                cause: "media line",
            },
        ),
        (
            format!("{good}a=x:{}\r\n", "y".repeat(MAX_LINE)),
            SdpError::TooLarge("line"),
        ),
        (many, SdpError::TooLarge("sections")),
        ("v=0\n".repeat(MAX_LENGTH / 4 + 1), SdpError::TooLarge("length")),
    ] {
        assert_eq!(parse(&text).unwrap_err(), expected, "{}", &text[..text.len().min(200)]);
    }
}

#[test]
fn repeated_payload_types_and_feedback_are_kept_once_and_bounded() {
    let numbers = "96 ".repeat(256);
    let feedback = "a=rtcp-fb:* nack\r\n".repeat(1000);
    let text = format!(
        "{HEAD}m=video 9 UDP/TLS/RTP/SAVPF {numbers}\r\n{TRANSPORT}a=mid:0\r\na=rtpmap:96 VP8/90000\r\n{feedback}"
    );
    let offer = parse(&text).unwrap();
    let [payload] = offer.sections[0].payloads.as_slice() else {
        panic!("{:?}", offer.sections[0].payloads)
    };
    assert_eq!(payload.feedback.len(), 32);
}

#[test]
fn candidate_addresses_are_read_from_udp_candidates_alone() {
    for (line, expected) in [
        (
            "candidate:1 1 udp 2113937151 192.168.1.4 54400 typ host generation 0",
            Some("192.168.1.4:54400"),
        ),
        (
            "a=candidate:1 1 UDP 1 2001:db8::1 5 typ srflx raddr 0.0.0.0 rport 0",
            Some("[2001:db8::1]:5"),
        ),
        ("candidate:1 1 udp 1 5c3b.local 54400 typ host", None),
        ("candidate:1 1 tcp 1 192.168.1.4 9 typ host tcptype active", None),
        ("candidate:", None),
        ("", None),
    ] {
        assert_eq!(
            candidate_address(line),
            expected.map(|text| text.parse().unwrap()),
            "{line}"
        );
    }
}

proptest! {
    #[test]
    fn rubbish_never_panics(text in "\\PC{0,400}") {
        let _ = parse(&text);
        let _ = candidate_address(&text);
    }

    #[test]
    fn damaged_offers_never_panic(cuts in proptest::collection::vec((0usize..6000, "[ -~\\r\\n]{0,6}"), 1..8)) {
        let mut text = chromium();
        for (at, insert) in cuts {
            let at = at.min(text.len());
            let until = (at + insert.len()).min(text.len());
            text.replace_range(at..until, &insert);
        }
        if let Ok(offer) = parse(&text) {
            for section in &offer.sections {
                let negotiated = codecs::negotiate(section);
                let _ = codecs::matching(&negotiated, Codec::H264, "profile-level-id=4");
            }
        }
    }
}
