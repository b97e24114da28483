//! Switches, losses and retransmissions as a subscriber sees them.

use proptest::prelude::*;

use super::*;
use crate::media::header_extensions::Extensions;
use crate::media::rtp::RtpHeader;
use crate::media::test_time::start;

fn params() -> DownTrackParams {
    DownTrackParams {
        codec: Codec::Vp8,
        ssrc: 1,
        payload_type: 96,
        repair: Some((2, 97)),
        mid: "3".to_owned(),
        extensions: ExtensionMap::default(),
        first_sequence: 32_000,
    }
}

/// A VP8 packet with a 15-bit picture id.
fn vp8(picture_id: u16, tl0: u8, keyframe: bool) -> Vec<u8> {
    vec![
        0x90,
        0xC0,
        0x80 | (picture_id >> 8) as u8,
        picture_id as u8,
        tl0,
        u8::from(!keyframe),
        0xAA,
    ]
}

fn up(layer: Layer, sequence: u64, timestamp: u32, payload: &[u8]) -> UpPacket<'_> {
    UpPacket {
        layer,
        codec: Codec::Vp8,
        sequence,
        timestamp,
        marker: true,
        begins_keyframe: Codec::Vp8.begins_keyframe(payload, None),
        capture_ntp: None,
        extensions: Extensions::default(),
        payload,
    }
}

/// What arrives: sequence, timestamp, picture id, TL0 index.
fn seen(packet: &DownPacket<'_>) -> (u64, u32, u16, u8) {
    let mut bytes = Vec::new();
    let outgoing = packet.outgoing();
    outgoing.write(&mut bytes);
    let header = RtpHeader::parse(&bytes).expect("well-formed");
    let descriptor = Vp8Descriptor::parse(&bytes[header.payload_start..]).expect("well-formed");
    let picture_id = descriptor.picture_id.expect("present");
    (
        outgoing.sequence,
        header.timestamp,
        picture_id,
        descriptor.tl0_picture_index.expect("present"),
    )
}

#[test]
fn a_layer_switch_is_one_continuous_stream() {
    let begin = start();
    let (mut track, mut history) = (DownTrack::new(params()), SendHistory::new(begin));
    let at = |ms| begin + Duration::from_millis(ms);
    let (delta, key) = (vp8(100, 5, false), vp8(101, 6, true));
    assert!(
        track
            .forward(at(0), &up(Layer::LOW, 70_000, 1000, &key), &mut history)
            .is_none(),
        "no target yet"
    );
    track.set_target(Some(Layer::MEDIUM));
    assert_eq!(track.needs_keyframe(), Some(Layer::MEDIUM));
    assert!(
        track
            .forward(at(0), &up(Layer::LOW, 70_000, 1000, &delta), &mut history)
            .is_none(),
        "not a keyframe"
    );
    let first = track
        .forward(at(0), &up(Layer::LOW, 70_001, 1000, &key), &mut history)
        .expect("any picture is better");
    assert_eq!(seen(&first), (32_000, 1000, 101, 6));
    assert_eq!(track.needs_keyframe(), Some(Layer::MEDIUM));
    let delta = vp8(7, 200, false);
    assert!(
        track
            .forward(at(10), &up(Layer::MEDIUM, 80_000, 5, &delta), &mut history)
            .is_none()
    );
    let next = vp8(102, 7, false);
    let second = track
        .forward(at(33), &up(Layer::LOW, 70_002, 1000 + 2970, &next), &mut history)
        .expect("current");
    assert_eq!(seen(&second), (32_001, 3970, 102, 7));
    let key = vp8(8, 201, true);
    let third = track
        .forward(at(66), &up(Layer::MEDIUM, 80_001, 90, &key), &mut history)
        .expect("the target");
    assert_eq!(seen(&third), (32_002, 3970 + 33 * 90, 103, 8));
    assert_eq!(track.needs_keyframe(), None);
    assert!(
        track
            .forward(at(67), &up(Layer::LOW, 70_003, 9000, &next), &mut history)
            .is_none(),
        "the old layer is over"
    );
    let late = vp8(9, 202, false);
    let fourth = track
        .forward(at(99), &up(Layer::MEDIUM, 80_003, 90 + 2970, &late), &mut history)
        .expect("forwarded");
    assert_eq!(
        seen(&fourth),
        (32_004, 3970 + 33 * 90 + 2970, 104, 9),
        "80002 is missing, and its number too"
    );

    let mut resend = Vec::new();
    track.lost(
        at(120),
        [32_001, 32_003, 31_000].map(|n: u16| n).into_iter(),
        &mut resend,
    );
    let wanted = resend.iter().map(|r| (r.layer, r.up_sequence)).collect::<Vec<_>>();
    assert_eq!(wanted, [(Layer::LOW, 70_002), (Layer::MEDIUM, 80_002)]);
    let again = track
        .resend(at(121), &resend[0], &up(Layer::LOW, 70_002, 3970, &next), &mut history)
        .expect("sent");
    let outgoing = again.outgoing();
    assert_eq!(
        (outgoing.ssrc, outgoing.payload_type, outgoing.timestamp),
        (2, 97, 3970)
    );
    assert_eq!(outgoing.prefix[..2], 32_001_u16.to_be_bytes());
    assert_eq!(
        Vp8Descriptor::parse(&outgoing.prefix[2..]).and_then(|d| d.picture_id),
        Some(102)
    );
}

#[test]
fn a_pause_leaves_no_gap_and_keeps_the_clock() {
    let begin = start();
    let (mut track, mut history) = (DownTrack::new(params()), SendHistory::new(begin));
    track.set_target(Some(Layer::LOW));
    let key = vp8(1, 1, true);
    track
        .forward(begin, &up(Layer::LOW, 70_000, 0, &key), &mut history)
        .expect("forwarded");
    track.set_target(None);
    assert!(
        track
            .forward(begin, &up(Layer::LOW, 70_001, 3000, &key), &mut history)
            .is_none()
    );
    track.set_target(Some(Layer::LOW));
    let later = begin + Duration::from_secs(7);
    let packet = track
        .forward(later, &up(Layer::LOW, 70_500, 630_000, &key), &mut history)
        .expect("forwarded");
    assert_eq!(seen(&packet), (32_001, 630_000, 2, 2));
}

#[test]
fn probes_of_the_publisher_close_up() {
    let begin = start();
    let (mut track, mut history) = (DownTrack::new(params()), SendHistory::new(begin));
    track.set_target(Some(Layer::LOW));
    let key = vp8(1, 1, true);
    track
        .forward(begin, &up(Layer::LOW, 70_000, 0, &key), &mut history)
        .expect("forwarded");
    assert!(
        track
            .forward(begin, &up(Layer::LOW, 70_001, 0, &[]), &mut history)
            .is_none()
    );
    let packet = track
        .forward(begin, &up(Layer::LOW, 70_002, 9, &key), &mut history)
        .expect("forwarded");
    assert_eq!(packet.outgoing().sequence, 32_001);
}

#[test]
fn reports_run_on_the_publishers_clock_and_measure_the_round_trip() {
    let begin = start();
    let (mut track, mut history) = (DownTrack::new(params()), SendHistory::new(begin));
    let clock = SenderClock {
        ntp: 1000 << 32,
        rtp_timestamp: 500,
        arrived: begin,
    };
    assert_eq!(track.sender_report(begin, Some(clock)), None);
    track.set_target(Some(Layer::LOW));
    let key = vp8(1, 1, true);
    track
        .forward(begin, &up(Layer::LOW, 70_000, 500, &key), &mut history)
        .expect("forwarded");
    let later = begin + Duration::from_secs(2);
    let (ssrc, info) = track.sender_report(later, Some(clock)).expect("all is known");
    assert_eq!(
        (ssrc, info.ntp, info.rtp_timestamp, info.packets),
        (1, 1002 << 32, 500 + 180_000, 1)
    );
    let block = ReportBlock {
        ssrc: 1,
        fraction_lost: 64,
        cumulative_lost: 0,
        highest_sequence: 0,
        jitter: 900,
        last_sender_report: (info.ntp >> 16) as u32,
        delay_since_last_sender_report: 32_768,
    };
    track.receiver_report(later + Duration::from_millis(580), &block);
    let stats = track.stats();
    assert_eq!((stats.fraction_lost, stats.jitter), (0.25, Duration::from_millis(10)));
    assert_eq!(stats.round_trip, Some(Duration::from_millis(80)));
}

proptest! {
    /// Whatever the order of layers, losses, pauses and switches: no number is ever given twice (two packets under one
    /// number would break the encryption), and numbers of packets in order ascend.
    #[test]
    fn numbers_are_never_reused(steps in proptest::collection::vec((0usize..3, any::<bool>(), 0u8..12), 1..300)) {
        let begin = start();
        let (mut track, mut history) = (DownTrack::new(params()), SendHistory::new(begin));
        let mut next = [70_000_u64, 90_000, 110_000];
        let mut given = std::collections::HashSet::new();
        let mut pictures = 0;
        for (i, (layer, keyframe, action)) in steps.into_iter().enumerate() {
            let now = begin + Duration::from_millis(i as u64 * 5);
            let layer = Layer::new(layer).expect("below three");
            match action {
                0 => track.set_target(Some(layer)),
                1 => track.set_target(None),
                2 => next[layer.index()] += 1,
                _ => {}
            }
            pictures += 1;
            let payload = vp8(pictures, 0, keyframe);
            let payload = if action == 3 { &[][..] } else { &payload };
            let packet = up(layer, next[layer.index()], i as u32 * 450, payload);
            next[layer.index()] += 1;
            if let Some(down) = track.forward(now, &packet, &mut history) {
                prop_assert!(given.insert(down.outgoing().sequence));
            }
        }
    }
}
