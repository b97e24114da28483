//! Every parser of the SFU that sees bytes of strangers or of clients, one function each. What runs them is the fuzz targets
//! in `fuzz/` and the property tests, so that both always mean the same code.

use std::net::SocketAddr;
use std::sync::OnceLock;

use bytes::BytesMut;

use crate::clock;
use crate::media::codec::Codec;
use crate::media::codec::vp8::Vp8Descriptor;
use crate::media::header_extensions::{ExtensionKind, ExtensionMap};
use crate::media::layers::Rids;
use crate::media::packet_cache::CacheBudget;
use crate::media::rtcp::{self, RtcpPacket};
use crate::media::rtp::RtpHeader;
use crate::media::streams::{PayloadFormat, StreamTable};
use crate::media::up_track::UpTrack;
use crate::sdp::{self, codecs};
use crate::signal::codec;
use crate::transport::{
    self, Carrier, Certificate, DtlsRole, IceCredentials, IceMode, Path, PeerParams, PeerTransport, RemoteParams,
};

const CODECS: [Codec; 6] = [Codec::Opus, Codec::Red, Codec::Vp8, Codec::Vp9, Codec::H264, Codec::Av1];

/// One STUN message, as ICE reads it.
pub fn stun(bytes: &[u8]) {
    transport::fuzzing::stun(bytes);
}

/// One message of the Data Channel Establishment Protocol.
pub fn dcep(bytes: &[u8]) {
    transport::fuzzing::dcep(bytes);
}

/// The framing of ICE-TCP.
pub fn framing(bytes: &[u8]) {
    let mut stream = BytesMut::from(bytes);
    while let Ok(Some(payload)) = fabric::framing::decode(&mut stream, 1500) {
        assert!((1..=1500).contains(&payload.len()));
    }
}

/// One decrypted RTP packet, with its header extensions and payload descriptors.
pub fn rtp(bytes: &[u8]) {
    let Some(header) = RtpHeader::parse(bytes) else { return };
    assert!(header.payload_start <= bytes.len());
    let mut map = ExtensionMap::default();
    for (kind, id) in ExtensionKind::ALL.into_iter().zip(1..) {
        map.set(kind, id);
    }
    let extensions = map.read(&header, bytes);
    let payload = header
        .payload_range(bytes)
        .map(|range| &bytes[range])
        .unwrap_or_default();
    for codec in CODECS {
        codec.begins_keyframe(payload, extensions.dependency_descriptor);
    }
    if let Some(descriptor) = Vp8Descriptor::parse(payload) {
        let (_, length) = descriptor.rewrite(payload, 0x7FFF, 0xFF);
        assert!(length <= payload.len() && descriptor.len() <= payload.len());
    }
    let mut streams = StreamTable::default();
    streams.set_section((), "1", true, Rids::default());
    let mut track = UpTrack::new(Codec::Vp8, 1, &CacheBudget::new(64 * 1024));
    for format in [
        PayloadFormat::Media(Codec::Vp8),
        PayloadFormat::Retransmission { of: 96 },
    ] {
        if let Some(stream) = streams.resolve(&header, &extensions, format)
            && let Some(packet) = track.receive(clock::now(), &stream, format, (&header, extensions), bytes)
        {
            assert!(packet.payload.len() <= bytes.len());
            track.cached(packet.layer, packet.sequence, &map);
        }
    }
}

/// One decrypted compound RTCP packet.
pub fn rtcp(bytes: &[u8]) {
    let mut packets = 0;
    for packet in rtcp::parse(bytes) {
        packets += 1;
        match packet {
            RtcpPacket::SenderReport { reports, .. } | RtcpPacket::ReceiverReport { reports, .. } => {
                assert!(reports.iter().count() <= 31);
            }
            RtcpPacket::Nack { lost, .. } => assert!(lost.iter().count() <= bytes.len() / 4 * 17),
            RtcpPacket::TransportFeedback(feedback) => assert!(feedback.arrivals().count() <= 65_536),
            _ => {}
        }
    }
    assert!(packets <= bytes.len() / 4, "each packet took at least four bytes");
}

/// A session description.
pub fn sdp(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(description) = sdp::parse(text) {
        for section in &description.sections {
            let negotiated = codecs::negotiate(section);
            for codec in CODECS {
                codecs::matching(&negotiated, codec, "");
            }
            codecs::extensions(section);
        }
    }
}

/// One signalling message in either form.
pub fn signalling(bytes: &[u8]) {
    let _ = codec::decode_binary(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = codec::decode_json(text);
    }
}

/// Datagrams to a connection that waits for its client's handshake, each two bytes of length and the content.
pub fn datagrams(bytes: &[u8]) {
    static CERTIFICATE: OnceLock<Option<Certificate>> = OnceLock::new();
    let Some(certificate) = CERTIFICATE.get_or_init(|| Certificate::generate().ok()) else {
        return;
    };
    let now = clock::now();
    let local = IceCredentials {
        ufrag: "local".to_owned(),
        pwd: "password".to_owned(),
    };
    let params = PeerParams {
        local: local.clone(),
        ice_mode: IceMode::Full,
        certificate: certificate.clone(),
    };
    let mut peer = PeerTransport::new(params, now);
    let remote = RemoteParams {
        ice: local.clone(),
        fingerprint: certificate.fingerprint(),
        role: DtlsRole::Passive,
    };
    peer.set_remote(now, remote);
    let path = Path {
        carrier: Carrier::Udp,
        remote: SocketAddr::from(([192, 0, 2, 1], 4000)),
        local: None,
    };
    peer.handle_datagram(now, path, BytesMut::from(&transport::fuzzing::nomination(&local)[..]));
    let mut stream = BytesMut::from(bytes);
    while let Ok(Some(datagram)) = fabric::framing::decode(&mut stream, 2048) {
        peer.handle_datagram(now, path, datagram);
        while peer.poll_event().is_some() {}
        while peer.poll_transmit().is_some() {}
    }
    assert!(!peer.is_connected(), "no handshake was completed");
}
