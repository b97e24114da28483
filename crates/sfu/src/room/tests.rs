//! A room driven by hand: requests in, messages out, no network but the sockets that nobody uses.

use std::{sync::Arc, time::Duration};

use credentials::livekit::{ApiKey, Claims, RoomGrant};
use livekit_protocol::{
    AddTrackRequest, DisconnectReason, LeaveRequest, MuteTrackRequest, ParticipantInfo, SessionDescription,
    TrackSource, TrackType, UpdateParticipantMetadata, UpdateTrackSettings, leave_request::Action, participant_info,
    request_response::Reason, signal_request::Message as SignalIn, signal_response::Message as SignalOut,
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{ConnectionId, Join, actor::Room};
use crate::{
    Config, Environment, LeaveReason, SfuEvent, clock,
    signal::{
        join::JoinParameters,
        outbound::{self, Answers},
    },
    transport::{Certificate, Mux, MuxConfig},
};

const FINGERPRINT: &str =
    "9D:A5:62:3B:84:60:91:65:3B:2A:C2:E2:B6:E0:FD:6D:2A:6C:DB:99:D3:BF:87:3C:31:B9:21:A8:2B:E2:9B:AB";

struct Bench {
    room: Room,
    events: mpsc::Receiver<SfuEvent>,
}

struct Client {
    connection: ConnectionId,
    inbox: Answers,
}

impl Client {
    fn messages(&mut self) -> Vec<SignalOut> {
        std::iter::from_fn(|| self.inbox.try_recv()).collect()
    }
}

/// Surroundings without sockets, and what they are told.
pub(super) async fn environment() -> (Environment, mpsc::Receiver<SfuEvent>) {
    let shutdown = CancellationToken::new();
    let tasks = TaskTracker::new();
    let mux = Mux::start(
        MuxConfig::default(),
        fabric::switch::Switch::new(),
        &tasks,
        shutdown.clone(),
    );
    let (sender, events) = mpsc::channel(64);
    let environment = Environment {
        config: Arc::new(Config::default()),
        key: ApiKey::new("key", "secret"),
        certificate: Certificate::generate().unwrap(),
        mux: mux.await.unwrap(),
        candidates: parking_lot::RwLock::new(vec!["candidate:1 1 udp 1 192.0.2.1 7882 typ host".into()]),
        ice_servers: Arc::new(|_, _| Vec::new()),
        removals: Default::default(),
        events: sender,
        shutdown,
    };
    (environment, events)
}

impl Bench {
    async fn new() -> Self {
        let (environment, events) = environment().await;
        Self {
            room: Room::new("room".into(), Arc::new(environment), Arc::default()),
            events,
        }
    }

    fn join_as(&mut self, identity: &str, grant: RoomGrant, change: impl FnOnce(&mut JoinParameters)) -> Client {
        let (outbound, inbox) = outbound::queue();
        let connection = ConnectionId::next();
        let claims = Claims {
            identity: identity.into(),
            video: grant,
            ..Claims::default()
        };
        let mut parameters = JoinParameters {
            single_connection: true,
            auto_subscribe: true,
            ..JoinParameters::default()
        };
        parameters.client.protocol = 17;
        change(&mut parameters);
        self.room.join(
            Join {
                connection,
                claims,
                parameters,
                outbound,
            },
            clock::now(),
        );
        Client { connection, inbox }
    }

    fn join(&mut self, identity: &str) -> Client {
        self.join_as(identity, RoomGrant::participant("room"), |_| {})
    }

    fn request(&mut self, client: &Client, message: SignalIn) {
        self.room.signal(client.connection, message, clock::now());
    }
}

fn offer(sections: &[&str]) -> SignalIn {
    let mut sdp = format!(
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=ice-ufrag:YlXG\r\na=ice-pwd:S0n9XsuwuMt/5BG4ilXCgpKX\r\n\
        a=fingerprint:sha-256 {FINGERPRINT}\r\na=setup:actpass\r\n"
    );
    for (mid, section) in sections.iter().enumerate() {
        let (kind, rest) = section.split_once(' ').unwrap();
        let (number, codec) = if kind == "audio" {
            (111, "opus/48000/2")
        } else {
            (96, "VP8/90000")
        };
        sdp.push_str(&format!(
            "m={kind} 9 UDP/TLS/RTP/SAVPF {number}\r\na=mid:{mid}\r\na=rtpmap:{number} {codec}\r\n\
            a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\r\n"
        ));
        for line in rest.split(' ').filter(|line| !line.is_empty()) {
            sdp.push_str(&format!("a={}\r\n", line.replace('_', " ")));
        }
    }
    SignalIn::Offer(SessionDescription {
        r#type: "offer".into(),
        sdp,
        id: 3,
        ..SessionDescription::default()
    })
}

fn microphone(cid: &str) -> AddTrackRequest {
    AddTrackRequest {
        cid: cid.into(),
        r#type: TrackType::Audio as i32,
        source: TrackSource::Microphone as i32,
        encryption: 1,
        ..AddTrackRequest::default()
    }
}

fn updates(messages: &[SignalOut]) -> Vec<&ParticipantInfo> {
    let mut infos = Vec::new();
    for message in messages {
        if let SignalOut::Update(update) = message {
            infos.extend(&update.participants);
        }
    }
    infos
}

fn left(messages: &[SignalOut]) -> Option<(i32, i32)> {
    let leave = |message: &SignalOut| match message {
        SignalOut::Leave(LeaveRequest { reason, action, .. }) => Some((*reason, *action)),
        _ => None,
    };
    messages.iter().find_map(leave)
}

#[tokio::test]
async fn the_first_message_tells_all_that_clients_depend_on() {
    let mut bench = Bench::new().await;
    let mut first = bench.join("alice");
    let mut second = bench.join("bob");
    let messages = second.messages();
    let SignalOut::Join(join) = &messages[0] else {
        panic!("{messages:?}")
    };
    assert!(join.ping_interval > 0 && join.ping_timeout > 0 && join.sif_trailer.is_empty());
    assert_eq!(
        join.server_info.as_ref().unwrap().version,
        crate::signal::SERVER_VERSION
    );
    assert_eq!(join.enabled_publish_codecs[0].mime, "video/VP8");
    let me = join.participant.as_ref().unwrap();
    assert!(me.sid.starts_with("PA_") && me.state == participant_info::State::Joined as i32);
    assert!(me.permission.as_ref().unwrap().can_publish && me.permission.as_ref().unwrap().can_publish_data);
    assert_eq!(join.other_participants[0].identity, "alice");
    assert!(
        messages
            .iter()
            .any(|message| matches!(message, SignalOut::RefreshToken(_)))
    );
    let seen = first.messages();
    assert_eq!(updates(&seen).last().unwrap().identity, "bob");
}

#[tokio::test]
async fn an_announced_track_is_found_in_the_offer_and_told_to_others_before_and_after_a_mute() {
    let mut bench = Bench::new().await;
    let (mut alice, mut bob) = (bench.join("alice"), bench.join("bob"));
    alice.messages();
    bob.messages();
    bench.request(&alice, SignalIn::AddTrack(microphone("mic")));
    let published = alice.messages();
    let [SignalOut::TrackPublished(published)] = published.as_slice() else {
        panic!("{published:?}")
    };
    let track = published.track.clone().unwrap();
    assert_eq!(
        (published.cid.as_str(), track.encryption, track.stream.as_str()),
        ("mic", 1, "camera")
    );
    assert!(updates(&bob.messages()).is_empty(), "nothing is sent yet");

    bench.request(&alice, offer(&["video recvonly", "audio sendonly msid:stream_mic"]));
    let answered = alice.messages();
    let [SignalOut::Answer(answer), ..] = answered.as_slice() else {
        panic!("{answered:?}")
    };
    assert_eq!(answer.id, 3, "clients drop answers to other offers");
    let parsed = crate::sdp::parse(&answer.sdp).unwrap();
    assert_eq!(
        parsed
            .section("0")
            .unwrap()
            .extension(crate::sdp::codecs::RTP_STREAM_ID),
        Some(10)
    );
    assert_eq!(parsed.section("1").unwrap().direction, crate::sdp::Direction::RecvOnly);
    assert!(answer.sdp.contains("usedtx=1") && answer.sdp.contains("a=candidate:1 "));
    let seen = bob.messages();
    let before = *updates(&seen).last().unwrap();
    assert_eq!(
        (before.tracks[0].sid.as_str(), before.tracks[0].mid.as_str()),
        (track.sid.as_str(), "1")
    );

    bench.request(
        &alice,
        SignalIn::Mute(MuteTrackRequest {
            sid: track.sid.clone(),
            muted: true,
        }),
    );
    let after = bob.messages();
    assert!(updates(&after)[0].tracks[0].muted && updates(&after)[0].version > before.version);

    bench.request(&alice, offer(&["video recvonly", "audio inactive"]));
    assert!(
        alice
            .messages()
            .iter()
            .any(|message| matches!(message, SignalOut::TrackUnpublished(_)))
    );
    assert!(updates(&bob.messages()).last().unwrap().tracks.is_empty());
}

#[tokio::test]
async fn an_offer_may_come_before_the_announcement_and_under_another_name() {
    let mut bench = Bench::new().await;
    let (mut alice, mut bob) = (bench.join("alice"), bench.join("bob"));
    bench.request(&alice, offer(&["audio sendonly msid:-_{other}"]));
    alice.messages();
    bob.messages();
    bench.request(&alice, SignalIn::AddTrack(microphone("mic")));
    assert_eq!(updates(&bob.messages()).last().unwrap().tracks.len(), 1);
}

#[tokio::test]
async fn what_the_token_does_not_permit_is_refused_with_the_request() {
    let mut bench = Bench::new().await;
    let grant = RoomGrant {
        can_publish: Some(false),
        ..RoomGrant::participant("room")
    };
    let mut viewer = bench.join_as("viewer", grant, |_| {});
    viewer.messages();
    bench.request(&viewer, SignalIn::AddTrack(microphone("mic")));
    let messages = viewer.messages();
    let [SignalOut::RequestResponse(refusal)] = messages.as_slice() else {
        panic!("{messages:?}")
    };
    assert_eq!(refusal.reason, Reason::NotAllowed as i32);
    assert!(refusal.request.is_some());
}

#[tokio::test]
async fn a_second_session_of_an_identity_evicts_the_first() {
    let mut bench = Bench::new().await;
    let (mut old, mut other) = (bench.join("alice"), bench.join("bob"));
    let _new = bench.join("alice");
    let reason = (DisconnectReason::DuplicateIdentity as i32, Action::Disconnect as i32);
    assert_eq!(left(&old.messages()), Some(reason));
    assert!(old.inbox.is_closed(), "its connection is closed");
    let seen = other.messages();
    let states: Vec<_> = updates(&seen)
        .iter()
        .filter(|info| info.identity == "alice")
        .map(|info| info.state)
        .collect();
    assert!(states.ends_with(&[
        participant_info::State::Disconnected as i32,
        participant_info::State::Joined as i32
    ]));
    let told: Vec<_> = std::iter::from_fn(|| bench.events.try_recv().ok()).collect();
    let evicted = SfuEvent::ParticipantLeft {
        room: "room".into(),
        identity: "alice".into(),
        reason: LeaveReason::Duplicate,
    };
    assert!(told.contains(&evicted), "{told:?}");
}

#[tokio::test]
async fn a_lost_connection_may_be_resumed_and_an_unknown_session_begins_anew() {
    let mut bench = Bench::new().await;
    let mut alice = bench.join("alice");
    let messages = alice.messages();
    let SignalOut::Join(join) = &messages[0] else {
        panic!("{messages:?}")
    };
    let sid = join.participant.as_ref().unwrap().sid.clone();
    bench.room.signal_closed(alice.connection, clock::now());
    let grant = || RoomGrant::participant("room");
    let mut back = bench.join_as("alice", grant(), |parameters| parameters.resume = Some(sid));
    assert!(
        matches!(back.messages()[0], SignalOut::Reconnect(_)),
        "clients drop whatever else comes first"
    );
    let mut stranger = bench.join_as("alice", grant(), |parameters| {
        parameters.resume = Some("PA_gone".into())
    });
    let reason = (DisconnectReason::StateMismatch as i32, Action::Reconnect as i32);
    assert_eq!(left(&stranger.messages()), Some(reason));
}

#[tokio::test]
async fn a_resume_with_a_broken_offer_ends_the_session_and_nothing_else() {
    let mut bench = Bench::new().await;
    let mut alice = bench.join("alice");
    alice.messages();
    bench.room.signal_closed(alice.connection, clock::now());
    let mut back = bench.join_as("alice", RoomGrant::participant("room"), |parameters| {
        parameters.resume = Some(String::new());
        parameters.offer = Some(SessionDescription {
            sdp: "v=0\r\nm=audio x".into(),
            ..SessionDescription::default()
        });
    });
    assert_eq!(left(&back.messages()).unwrap().1, Action::Reconnect as i32);
    assert!(bench.room.participants.is_empty());
}

#[tokio::test]
async fn attributes_are_limited_as_a_whole() {
    let mut bench = Bench::new().await;
    let grant = RoomGrant {
        can_update_own_metadata: Some(true),
        ..RoomGrant::participant("room")
    };
    let mut alice = bench.join_as("alice", grant, |_| {});
    let mut reasons = Vec::new();
    for name in ["a", "b", "a"] {
        alice.messages();
        let update = UpdateParticipantMetadata {
            attributes: [(name.to_owned(), "x".repeat(40 * 1024))].into(),
            ..UpdateParticipantMetadata::default()
        };
        bench.request(&alice, SignalIn::UpdateMetadata(update));
        reasons.extend(alice.messages().into_iter().find_map(|message| match message {
            SignalOut::RequestResponse(response) => Some(response.reason),
            _ => None,
        }));
    }
    let (fits, too_much) = (Reason::Ok as i32, Reason::LimitExceeded as i32);
    assert_eq!(reasons, [fits, too_much, fits], "the same attribute again adds nothing");
}

#[tokio::test]
async fn checks_alone_do_not_keep_a_participant() {
    let mut bench = Bench::new().await;
    let alice = bench.join("alice");
    bench.request(&alice, offer(&["audio recvonly"]));
    let start = clock::now();
    bench.room.signal_closed(alice.connection, start);
    let mut sweep = |seconds| {
        let now = start + Duration::from_secs(seconds);
        for (_, participant) in &mut bench.room.participants {
            participant.stage = super::participant::Stage::Active;
            participant.peers().for_each(|peer| peer.heard.1 = now);
        }
        bench.room.sweep(now);
        bench.room.participants.len()
    };
    assert_eq!((sweep(10), sweep(29), sweep(30)), (1, 1, 0));
}

#[tokio::test]
async fn whoever_lost_signalling_and_media_is_gone_within_seconds_and_the_room_ends_after_all_left() {
    let mut bench = Bench::new().await;
    let (alice, mut bob) = (bench.join("alice"), bench.join("bob"));
    let start = clock::now();
    bench.room.signal_closed(alice.connection, start);
    bench.room.sweep(start + Duration::from_secs(4));
    assert_eq!(bench.room.participants.len(), 2, "its media may be alive");
    bob.messages();
    bench.room.sweep(start + Duration::from_secs(6));
    assert_eq!(bench.room.participants.len(), 1);
    assert_eq!(
        updates(&bob.messages()).last().unwrap().state,
        participant_info::State::Disconnected as i32
    );
    let end = start + Duration::from_secs(7);
    bench
        .room
        .signal(bob.connection, SignalIn::Leave(LeaveRequest::default()), end);
    assert!(bench.room.participants.is_empty() && !bench.room.is_over(end + Duration::from_secs(19)));
    assert!(bench.room.is_over(end + Duration::from_secs(20)));
}

#[tokio::test]
async fn a_broken_offer_ends_the_session_and_nothing_else() {
    let mut bench = Bench::new().await;
    let (mut alice, bob) = (bench.join("alice"), bench.join("bob"));
    alice.messages();
    let broken = SessionDescription {
        sdp: "v=0\r\nm=audio x".into(),
        ..SessionDescription::default()
    };
    bench.request(&alice, SignalIn::Offer(broken));
    assert_eq!(left(&alice.messages()).unwrap().1, Action::Reconnect as i32);
    assert_eq!(bench.room.participants.len(), 1);
    bench.request(&bob, SignalIn::Ping(1));
}

/// Alice publishes so many tracks, whose names are returned, and Bob is ready to receive them.
async fn many_tracks(count: usize) -> (Bench, Vec<String>, Client) {
    let mut bench = Bench::new().await;
    let mut alice = bench.join("alice");
    let sections: Vec<String> = (0..count)
        .map(|track| format!("audio sendonly msid:s_mic{track}"))
        .collect();
    bench.request(&alice, offer(&sections.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut sids = Vec::new();
    for track in 0..count {
        alice.messages();
        bench.request(&alice, SignalIn::AddTrack(microphone(&format!("mic{track}"))));
        sids.extend(alice.messages().into_iter().find_map(|message| match message {
            SignalOut::TrackPublished(published) => published.track.map(|track| track.sid),
            _ => None,
        }));
    }
    let bob = bench.join("bob");
    let key = bench.room.by_identity["bob"];
    bench.room.participants[key].stage = super::participant::Stage::Active;
    (bench, sids, bob)
}

#[tokio::test]
async fn a_description_is_negotiated_once_however_many_tracks_it_carries() {
    let mut bench = Bench::new().await;
    let alice = bench.join("alice");
    let mut sections = vec!["video recvonly".to_owned(); 200];
    sections.extend((0..30).map(|track| format!("audio sendonly msid:s_mic{track}")));
    let sections: Vec<&str> = sections.iter().map(String::as_str).collect();
    crate::sdp::codecs::work::take();
    bench.request(&alice, offer(&sections));
    assert_eq!(crate::sdp::codecs::work::take(), 230, "once for each section");
    for track in 0..30 {
        bench.request(&alice, SignalIn::AddTrack(microphone(&format!("mic{track}"))));
    }
    assert_eq!(crate::sdp::codecs::work::take(), 0, "not again for every announcement");
    let key = bench.room.by_identity["alice"];
    assert_eq!(bench.room.participant_info(key).tracks.len(), 30);
    bench.request(&alice, offer(&sections[..1]));
    let slots = &bench.room.participants[key].publisher.as_ref().unwrap().slots;
    assert_eq!(slots.len(), 1, "sections that are gone are forgotten");
}

#[tokio::test]
async fn one_request_or_offer_is_one_pass_of_the_allocator() {
    let (mut bench, sids, mut bob) = many_tracks(30).await;
    bench.request(&bob, offer(&["video recvonly"]));
    bench.room.subscribe_to_all(bench.room.by_identity["bob"], clock::now());
    bench.room.allocations = 0;
    bench.request(&bob, offer(&["audio recvonly"; 30]));
    assert_eq!(bench.room.allocations, 1);
    let answers = bob.messages();
    let map = answers.iter().find_map(|message| match message {
        SignalOut::Answer(answer) if answer.mid_to_track_id.len() == 30 => Some(&answer.mid_to_track_id),
        _ => None,
    });
    assert!(map.is_some(), "every track has its section: {answers:?}");

    let hide = |disabled| {
        SignalIn::TrackSetting(UpdateTrackSettings {
            track_sids: sids.clone(),
            disabled,
            ..UpdateTrackSettings::default()
        })
    };
    bench.request(&bob, hide(true));
    assert_eq!(bench.room.allocations, 2);
    bench.request(&bob, hide(true));
    assert_eq!(bench.room.allocations, 2, "nothing changed");
}

#[tokio::test]
async fn whoever_is_removed_between_the_door_and_the_room_does_not_come_in() {
    let mut bench = Bench::new().await;
    bench.room.environment.removals.note("room", "alice", 1000);
    let mut alice = bench.join("alice");
    let reason = (DisconnectReason::ParticipantRemoved as i32, Action::Disconnect as i32);
    assert_eq!(left(&alice.messages()), Some(reason));
    assert!(alice.inbox.is_closed() && bench.room.participants.is_empty());
}

#[tokio::test]
async fn whoever_does_not_keep_to_the_limits_is_told_and_taken_out() {
    let mut bench = Bench::new().await;
    let (mut alice, _bob) = (bench.join("alice"), bench.join("bob"));
    alice.messages();
    let expel = super::Command::Expel {
        connection: alice.connection,
    };
    assert!(bench.room.command(expel, clock::now()).is_continue());
    let reason = (DisconnectReason::ParticipantRemoved as i32, Action::Disconnect as i32);
    assert_eq!(left(&alice.messages()), Some(reason));
    assert_eq!(bench.room.participants.len(), 1);
}
