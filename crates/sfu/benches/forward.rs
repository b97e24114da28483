//! The cost of one forwarded packet: 1150 bytes of VP8 to N subscribers, from the decrypted packet to sealed datagrams in
//! runs ready for the socket. Divide the time by the number of elements: packets in a batch times subscribers.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sfu::media::codec::Codec;
use sfu::media::down_track::{DownTrack, DownTrackParams};
use sfu::media::estimate::SendHistory;
use sfu::media::header_extensions::{ExtensionKind, ExtensionMap, Extensions};
use sfu::media::layers::Layer;
use sfu::media::packet_cache::CacheBudget;
use sfu::media::rtp::RtpHeader;
use sfu::media::streams::{PayloadFormat, Stream};
use sfu::media::up_track::UpTrack;
use sfu::transport::Certificate;

#[path = "../tests/support/connected.rs"]
mod connected;

use connected::{packet, pair};

/// What one receive call of a busy publisher brings.
const BATCH: u16 = 8;
const PAYLOAD: usize = 1150;

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
                {
                    let [peer, _] = pair(start, &certificate);
                    (peer, track, SendHistory::new(start))
                }
            })
            .collect::<Vec<_>>();
        let mut up_track = UpTrack::new(Codec::Vp8, 1, &CacheBudget::new(CacheBudget::ROOM));
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
                    let packet = packet(sequence, PAYLOAD);
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
