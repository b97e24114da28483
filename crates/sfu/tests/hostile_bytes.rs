//! The entry points of the fuzz targets, with noise and damaged messages, in every test run.

use bytes::BytesMut;
use livekit_protocol::{AddTrackRequest, SessionDescription, SignalRequest, signal_request};
use proptest::prelude::*;
use prost::Message as _;
use sfu::fuzzing;
use sfu::media::header_extensions::ExtensionBlock;
use sfu::media::rtcp::{ReportBlock, RtcpWriter, SenderInfo};
use sfu::media::rtp::OutgoingRtp;
use testkit::mutation::hostile;

/// RFC 5769 §2.1: the sample request.
const STUN: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
    \x80\x22\x00\x10\x53\x54\x55\x4e\x20\x74\x65\x73\x74\x20\x63\x6c\x69\x65\x6e\x74\
    \x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
    \x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20\
    \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\
    \x80\x28\x00\x04\xe5\x7a\x3b\xcf";

fn stun() -> Vec<Vec<u8>> {
    // The second without FINGERPRINT, which damage would always break.
    let mut bare = STUN[..STUN.len() - 8].to_vec();
    bare[3] -= 8;
    vec![STUN.to_vec(), bare]
}

fn dcep() -> Vec<Vec<u8>> {
    vec![vec![2], b"\x03\x81\0\0\0\0\0\x05\0\x06\0\x03_lossyabc".to_vec()]
}

fn rtp() -> Vec<Vec<u8>> {
    let packet = |extensions: &ExtensionBlock, payload: &[u8], padding| {
        let mut out = Vec::new();
        let packet = OutgoingRtp {
            marker: true,
            payload_type: 96,
            sequence: 65_535,
            timestamp: 1,
            ssrc: 7,
            extensions,
            prefix: &[],
            payload,
            padding,
        };
        packet.write(&mut out);
        out
    };
    let (mut short, mut long) = (ExtensionBlock::default(), ExtensionBlock::default());
    short.push(1, b"1");
    short.push(4, &[0x85]);
    short.push(5, &[0, 9]);
    long.push(1, b"1");
    long.push(7, &[0x80; 40]);
    vec![
        packet(
            &ExtensionBlock::default(),
            &[0x90, 0xE0, 0x85, 5, 1, 0, 0x10, 1, 2, 3],
            0,
        ),
        packet(&short, &[0x10, 0, 0, 0x9D, 1, 0x2A], 9),
        // VP9, H264 (STAP-A and FU-A) and AV1 as they begin.
        packet(&long, &[0x8A, 0x81, 0, 1, 2], 0),
        packet(&long, &[0x78, 0, 4, 0x67, 1, 2, 3, 0, 2, 0x68, 1], 0),
        packet(&short, &[0x7C, 0x85, 1, 2, 3], 0),
        packet(&short, &[0x18, 0x0A, 0x0B, 0, 0, 0], 0),
    ]
}

fn rtcp() -> Vec<Vec<u8>> {
    let block = ReportBlock {
        ssrc: 7,
        fraction_lost: 1,
        cumulative_lost: 2,
        highest_sequence: 3,
        jitter: 4,
        last_sender_report: 5,
        delay_since_last_sender_report: 6,
    };
    let info = SenderInfo {
        ntp: 1 << 32,
        rtp_timestamp: 2,
        packets: 3,
        octets: 4,
    };
    let mut writer = RtcpWriter::default();
    writer.sender_report(1, &info, &[block]);
    writer.cname(1, "name");
    writer.nack(1, 7, &[5, 6, 7, 100]);
    writer.picture_loss_indication(1, 7);
    writer.full_intra_request(1, 7, 3);
    writer.receiver_estimate(1, 1_000_000, &[7, 8]);
    writer.goodbye(1);
    let compound = writer.as_bytes().to_vec();
    writer.clear();
    writer.receiver_report(1, &[block; 3]);
    let report = writer.as_bytes().to_vec();
    // draft-holmer-rmcat-transport-wide-cc-extensions-01: a run, a vector of one bit and one of two bits.
    let feedback =
        b"\x8f\xcd\0\x07\0\0\0\x01\0\0\0\x07\0\x05\0\x20\0\0\x01\x02\x20\x05\xaa\xaa\xd5\x55\x04\x04\x04\x04\x04\x04";
    vec![compound, report, feedback.to_vec()]
}

fn sdp() -> Vec<Vec<u8>> {
    let text = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\na=extmap-allow-mixed\r\n\
        a=ice-ufrag:YlXG\r\na=ice-pwd:S0n9XsuwuMt/5BG4ilXCgpKX\r\na=ice-options:trickle renomination\r\n\
        a=fingerprint:sha-256 9D:A5:62:3B:84:60:91:65:3B:2A:C2:E2:B6:E0:FD:6D:2A:6C:DB:99:D3:BF:87:3C:31:B9:21:A8:2B:E2:9B:AB\r\n\
        a=setup:actpass\r\n\
        m=audio 9 UDP/TLS/RTP/SAVPF 111 63\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=sendonly\r\na=msid:s t\r\na=rtcp-mux\r\n\
        a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\na=rtcp-fb:111 transport-cc\r\n\
        a=rtpmap:63 red/48000/2\r\na=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level\r\na=ssrc:5 cname:x\r\n\
        m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\na=mid:1\r\na=sendonly\r\na=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack pli\r\n\
        a=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\na=rid:q send\r\na=rid:h send\r\na=simulcast:send q;h\r\n\
        a=ssrc-group:FID 8 9\r\na=candidate:1 1 udp 2113937151 192.168.1.4 54400 typ host\r\n\
        m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\na=sctp-port:5000\r\n";
    vec![text.as_bytes().to_vec()]
}

fn signalling() -> Vec<Vec<u8>> {
    let requests = [
        signal_request::Message::Offer(SessionDescription {
            r#type: "offer".to_owned(),
            sdp: "v=0\r\n".to_owned(),
            ..SessionDescription::default()
        }),
        signal_request::Message::AddTrack(AddTrackRequest {
            cid: "cid".to_owned(),
            ..AddTrackRequest::default()
        }),
    ];
    let mut samples = Vec::new();
    for message in requests {
        let request = SignalRequest { message: Some(message) };
        samples.push(request.encode_to_vec());
        samples.push(serde_json::to_vec(&request).expect("has a JSON form"));
    }
    samples
}

/// Datagrams one after the other, framed as the entry point wants them.
fn framed(datagrams: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut stream = BytesMut::new();
    for datagram in datagrams {
        fabric::framing::encode(datagram, &mut stream).expect("short");
    }
    vec![stream.to_vec()]
}

/// A ClientHello's record and handshake headers, an alert and application data, as far as they are clear.
fn datagrams() -> Vec<Vec<u8>> {
    let mut hello = b"\x16\xfe\xfd\0\0\0\0\0\0\0\0\0\x42\x01\0\0\x36\0\0\0\0\0\0\0\x36\xfe\xfd".to_vec();
    hello.resize(13 + 0x42, 0);
    let alert = b"\x15\xfe\xfd\0\0\0\0\0\0\0\x01\0\x02\x02\x28";
    let data = b"\x17\xfe\xfd\0\x01\0\0\0\0\0\x01\0\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let media = rtp().concat();
    framed(&[STUN, &hello, alert, data, &media, &hello])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn stun_is_survived(bytes in hostile(stun())) {
        fuzzing::stun(&bytes);
    }

    #[test]
    fn data_channel_openings_are_survived(bytes in hostile(dcep())) {
        fuzzing::dcep(&bytes);
    }

    #[test]
    fn framing_is_survived(bytes in hostile(framed(&[b"one", b"another", &[7; 1000]]))) {
        fuzzing::framing(&bytes);
    }

    #[test]
    fn rtp_is_survived(bytes in hostile(rtp())) {
        fuzzing::rtp(&bytes);
    }

    #[test]
    fn rtcp_is_survived(bytes in hostile(rtcp())) {
        fuzzing::rtcp(&bytes);
    }

    #[test]
    fn descriptions_are_survived(bytes in hostile(sdp())) {
        fuzzing::sdp(&bytes);
    }

    #[test]
    fn signalling_is_survived(bytes in hostile(signalling())) {
        fuzzing::signalling(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn datagrams_are_survived(bytes in hostile(datagrams())) {
        fuzzing::datagrams(&bytes);
    }
}

/// The samples are taken, so that damage goes deep.
#[test]
fn the_samples_are_well_formed() {
    for (parse, samples) in [
        (fuzzing::stun as fn(&[u8]), stun()),
        (fuzzing::dcep, dcep()),
        (fuzzing::rtp, rtp()),
        (fuzzing::rtcp, rtcp()),
        (fuzzing::sdp, sdp()),
        (fuzzing::signalling, signalling()),
        (fuzzing::datagrams, datagrams()),
    ] {
        samples.iter().for_each(|sample| parse(sample));
    }
    let kinds = rtcp()
        .iter()
        .map(|compound| sfu::media::rtcp::parse(compound).count())
        .collect::<Vec<_>>();
    assert_eq!(kinds.len(), 3);
    assert!(kinds.iter().all(|packets| *packets > 0), "{kinds:?}");
    let text = String::from_utf8(sdp().remove(0)).expect("text");
    assert_eq!(sfu::sdp::parse(&text).expect("a description").sections.len(), 3);
}
