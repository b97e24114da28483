//! The cost of one forwarded packet: 1150 bytes of VP8 to N subscribers, from the decrypted packet to sealed datagrams in
//! runs ready for the socket. Divide the time by the number of elements: packets in a batch times subscribers.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sfu::media::codec::Codec;
use sfu::media::down_track::{DownTrack, DownTrackParams};
use sfu::media::estimate::SendHistory;
use sfu::media::header_extensions::{ExtensionKind, ExtensionMap, Extensions};
use sfu::media::layers::Layer;
use sfu::media::rtp::RtpHeader;
use sfu::media::streams::{PayloadFormat, Stream};
use sfu::media::up_track::UpTrack;
use sfu::transport::{
    Carrier, Certificate, DtlsRole, IceCredentials, IceMode, Path, PeerParams, PeerTransport, RemoteParams,
};

/// What one receive call of a busy publisher brings.
const BATCH: u16 = 8;
const PAYLOAD: usize = 1150;

fn path(port: u16) -> Path {
    Path {
        carrier: Carrier::Udp,
        remote: SocketAddr::from(([192, 0, 2, 1], port)),
        local: None,
    }
}

/// A connectivity check that nominates, as a controlling client sends it.
fn nomination(to: &IceCredentials) -> BytesMut {
    let username = format!("{}:client", to.ufrag);
    let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
    message.extend_from_slice(&[9; 12]);
    for (kind, value) in [(0x06_u16, username.as_bytes()), (0x25, &[]), (0x802A, &[1; 8])] {
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&(value.len() as u16).to_be_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = (message.len() + 4) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, to.pwd.as_bytes());
    let tag = hmac::sign(&key, &message);
    message.extend_from_slice(&[0, 8, 0, 20]);
    message.extend_from_slice(tag.as_ref());
    BytesMut::from(&message[..])
}

/// Our side of a connection that is established with another of our kind.
fn subscriber(now: Instant, certificate: &Certificate) -> PeerTransport {
    let peer = || {
        let local = IceCredentials::random();
        PeerTransport::new(
            PeerParams {
                local,
                ice_mode: IceMode::Lite,
                certificate: certificate.clone(),
            },
            now,
        )
    };
    let mut peers = [peer(), peer()];
    for (side, role) in [(0, DtlsRole::Passive), (1, DtlsRole::Active)] {
        let ice = peers[1 - side].local_credentials().clone();
        let check = nomination(peers[side].local_credentials());
        peers[side].set_remote(
            now,
            RemoteParams {
                ice,
                fingerprint: certificate.fingerprint(),
                role,
            },
        );
        peers[side].handle_datagram(now, path(1), check);
    }
    while !peers.iter().all(PeerTransport::is_connected) {
        for side in [0, 1] {
            let mut datagrams = Vec::new();
            while let Some(transmit) = peers[side].poll_transmit() {
                datagrams.extend(transmit.datagrams().map(BytesMut::from));
            }
            for datagram in datagrams {
                peers[1 - side].handle_datagram(now, path(1), datagram);
            }
        }
    }
    let [ours, _] = peers;
    ours
}

fn packet(sequence: u16) -> Vec<u8> {
    let mut packet = vec![0x80, 0x80 | 96];
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&(u32::from(sequence) * 3000).to_be_bytes());
    packet.extend_from_slice(&7_u32.to_be_bytes());
    // A VP8 descriptor with picture id and TL0 index, then a keyframe's first byte.
    packet.extend_from_slice(&[
        0x90,
        0xE0,
        0x80 | (sequence >> 8) as u8 & 0x7F,
        sequence as u8,
        1,
        0,
        0x10,
    ]);
    packet.resize(12 + PAYLOAD, 0x55);
    packet
}

fn forward(criterion: &mut Criterion) {
    #[expect(clippy::disallowed_methods, reason = "the origin of the bench's own time")]
    let start = Instant::now();
    let certificate = Certificate::generate().expect("the system has randomness");
    let mut extensions = ExtensionMap::default();
    for (id, kind) in [
        (1, ExtensionKind::Mid),
        (2, ExtensionKind::TransportSequence),
        (3, ExtensionKind::AbsSendTime),
    ] {
        extensions.set(kind, id);
    }
    let mut group = criterion.benchmark_group("forward");
    for count in [1_usize, 10, 100] {
        let mut subscribers = (0..count)
            .map(|i| {
                let mut track = DownTrack::new(DownTrackParams {
                    codec: Codec::Vp8,
                    ssrc: i as u32 + 1,
                    payload_type: 96,
                    repair: Some((i as u32 + 1001, 97)),
                    mid: "1".to_owned(),
                    extensions: extensions.clone(),
                    first_sequence: 1,
                });
                track.set_target(Some(Layer::LOW));
                (subscriber(start, &certificate), track, SendHistory::new(start))
            })
            .collect::<Vec<_>>();
        let mut up_track = UpTrack::new(Codec::Vp8, 1);
        let stream = Stream {
            section: (),
            layer: Layer::LOW,
            is_repair: false,
        };
        let (mut sequence, mut now) = (0_u16, start);
        group.throughput(Throughput::Elements(u64::from(BATCH) * count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                now += Duration::from_millis(10);
                for _ in 0..BATCH {
                    sequence = sequence.wrapping_add(1);
                    let packet = packet(sequence);
                    let header = RtpHeader::parse(&packet).expect("well-formed");
                    let format = PayloadFormat::Media(Codec::Vp8);
                    let up = up_track
                        .receive(now, &stream, format, (&header, Extensions::default()), &packet)
                        .expect("a new packet");
                    for (peer, track, history) in &mut subscribers {
                        let down = track.forward(now, &up, history).expect("the layer is forwarded");
                        assert!(peer.send_rtp(&down.outgoing()));
                    }
                }
                for (peer, _, _) in &mut subscribers {
                    while let Some(transmit) = peer.poll_transmit() {
                        black_box(transmit.contents);
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
