//! Counts allocations on the way of a packet: from the sealed datagram of a publisher to the sealed datagrams of all its
//! subscribers. Counting is exact, so the figures are asserted.

#[path = "support/connected.rs"]
mod connected;

use std::time::{Duration, Instant};

use allocation_counter::measure;
use bytes::BytesMut;
use connected::{packet, pair, path};
use sfu::media::codec::Codec;
use sfu::media::down_track::{DownTrack, DownTrackParams};
use sfu::media::estimate::SendHistory;
use sfu::media::header_extensions::{ExtensionBlock, ExtensionKind, ExtensionMap, Extensions};
use sfu::media::layers::Layer;
use sfu::media::packet_cache::CacheBudget;
use sfu::media::rtp::{OutgoingRtp, RtpHeader};
use sfu::media::streams::{PayloadFormat, Stream};
use sfu::media::up_track::UpTrack;
use sfu::transport::{Certificate, PeerEvent, PeerTransport};

const SUBSCRIBERS: u32 = 20;
const PAYLOAD: usize = 1150;
/// Packets that fill caches, histories and buffers to the size they keep.
const WARM_UP: u16 = 4000;
const COUNTED: u16 = 1000;

struct Call {
    now: Instant,
    publisher: PeerTransport,
    /// The publishing client.
    client: PeerTransport,
    up: UpTrack,
    subscribers: Vec<(PeerTransport, DownTrack, SendHistory)>,
}

impl Call {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        let now = Instant::now();
        let certificate = Certificate::generate().expect("the system has randomness");
        let mut extensions = ExtensionMap::default();
        for (id, kind) in [
            (1, ExtensionKind::Mid),
            (2, ExtensionKind::TransportSequence),
            (3, ExtensionKind::AbsSendTime),
        ] {
            extensions.set(kind, id);
        }
        let subscriber = |number: u32| {
            let mut track = DownTrack::new(DownTrackParams {
                codec: Codec::Vp8,
                ssrc: number + 1,
                payload_type: 96,
                repair: Some((number + 1001, 97)),
                mid: "1".to_owned(),
                extensions: extensions.clone(),
                first_sequence: 1,
            });
            track.set_target(Some(Layer::LOW));
            let [peer, _] = pair(now, &certificate);
            (peer, track, SendHistory::new(now))
        };
        let subscribers = (0..SUBSCRIBERS).map(subscriber).collect();
        let [publisher, client] = pair(now, &certificate);
        Self {
            now,
            publisher,
            client,
            up: UpTrack::new(Codec::Vp8, 1, &CacheBudget::new(CacheBudget::ROOM)),
            subscribers,
        }
    }

    /// Datagrams as the client sends them, back to back in one block as the sockets' reader cuts them.
    fn datagrams(&mut self, first: u16, count: u16) -> Vec<BytesMut> {
        let extensions = ExtensionBlock::default();
        let (mut block, mut lengths) = (BytesMut::new(), Vec::new());
        for sequence in first..first + count {
            let plain = packet(sequence, PAYLOAD);
            let sent = self.client.send_rtp(&OutgoingRtp {
                marker: false,
                payload_type: 96,
                sequence: sequence.into(),
                timestamp: u32::from(sequence) * 3000,
                ssrc: 7,
                extensions: &extensions,
                prefix: &[],
                payload: &plain[12..],
                padding: 0,
            });
            assert!(sent);
            while let Some(transmit) = self.client.poll_transmit() {
                for datagram in transmit.datagrams() {
                    block.extend_from_slice(datagram);
                    lengths.push(datagram.len());
                }
            }
        }
        lengths.into_iter().map(|length| block.split_to(length)).collect()
    }

    /// What the room's task does with a datagram of a publisher.
    fn forward(&mut self, datagram: BytesMut) {
        self.now += Duration::from_millis(1);
        let now = self.now;
        self.publisher.handle_datagram(now, path(1), datagram);
        while let Some(event) = self.publisher.poll_event() {
            let PeerEvent::Rtp(packet) = event else {
                panic!("unexpected {event:?}")
            };
            let header = RtpHeader::parse(&packet).expect("well-formed");
            let stream = Stream {
                section: (),
                layer: Layer::LOW,
                is_repair: false,
            };
            let format = PayloadFormat::Media(Codec::Vp8);
            let received = self
                .up
                .receive(now, &stream, format, (&header, Extensions::default()), &packet)
                .expect("a new packet");
            for (peer, track, history) in &mut self.subscribers {
                let down = track.forward(now, &received, history).expect("the layer is forwarded");
                assert!(peer.send_rtp(&down.outgoing()));
            }
        }
        for (peer, _, _) in &mut self.subscribers {
            while let Some(transmit) = peer.poll_transmit() {
                assert!(transmit.contents.len() > PAYLOAD);
            }
        }
    }
}

#[test]
fn a_forwarded_packet_allocates_nothing() {
    let mut call = Call::new();
    for datagram in call.datagrams(1, WARM_UP) {
        call.forward(datagram);
    }
    let datagrams = call.datagrams(1 + WARM_UP, COUNTED);
    let counted = measure(|| {
        for datagram in datagrams {
            call.forward(datagram);
        }
    });
    assert_eq!(
        counted.count_total, 0,
        "allocations for {COUNTED} packets to {SUBSCRIBERS} subscribers: {counted:?}"
    );
}
