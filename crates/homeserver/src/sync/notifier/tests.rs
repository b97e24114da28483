use std::collections::BTreeSet;

use futures_util::FutureExt as _;
use proptest::prelude::*;
use ruma::{owned_room_id, owned_user_id, room_id, user_id};

use super::*;

fn watching(notifier: &Notifier, rooms: &[OwnedRoomId]) -> Arc<Session> {
    let session = notifier.session(user_id!("@a:x"), 0);
    notifier.watch(&session, rooms.iter().cloned());
    session
}

#[test]
fn a_new_session_knows_nothing_of_the_past() {
    let notifier = Notifier::new(10);
    let session = notifier.session(user_id!("@a:x"), 0);
    assert_eq!(session.changes(10), None);
    notifier.watch(&session, [owned_room_id!("!r:x")]);
    assert_eq!(session.changes(9), None);
    assert_eq!(session.changes(10), Some(vec![]));
}

#[test]
fn marks_wait_for_publication() {
    let notifier = Notifier::new(0);
    let session = watching(&notifier, &[owned_room_id!("!r:x")]);
    notifier.mark_room(room_id!("!r:x"), RoomStream::Events, 2);
    assert_eq!(notifier.advance(1), 1);
    assert_eq!(session.changes(0), Some(vec![]));
    assert_eq!(notifier.room_positions(room_id!("!r:x")).events, 2);
    assert_eq!(notifier.advance(2), 2);
    assert_eq!(session.changes(0), Some(vec![Change::Events(owned_room_id!("!r:x"))]));
    assert_eq!(session.changes(2), Some(vec![]));
}

#[test]
fn a_late_mark_below_the_published_position_is_still_delivered() {
    let notifier = Notifier::new(0);
    let session = watching(&notifier, &[]);
    notifier.advance(5);
    notifier.mark_user(user_id!("@a:x"), Change::AccountData, 5);
    assert_eq!(notifier.advance(5), 5);
    assert_eq!(session.changes(4), Some(vec![Change::AccountData]));
}

#[test]
fn a_wake_between_looking_and_sleeping_is_not_lost() {
    let notifier = Notifier::new(0);
    let session = watching(&notifier, &[owned_room_id!("!r:x")]);
    let woken = session.woken();
    let mut woken = std::pin::pin!(woken);
    woken.as_mut().enable();
    assert_eq!(session.changes(0), Some(vec![]));
    notifier.mark_room(room_id!("!r:x"), RoomStream::Typing, 1);
    notifier.advance(1);
    assert!(woken.now_or_never().is_some());
}

#[test]
fn membership_starts_and_ends_watching() {
    let notifier = Notifier::new(0);
    let session = watching(&notifier, &[]);
    let room = room_id!("!r:x");
    notifier.mark_room(room, RoomStream::Events, 1);
    notifier.mark_membership(user_id!("@a:x"), room, true, 1);
    notifier.mark_room(room, RoomStream::Events, 2);
    notifier.mark_membership(user_id!("@a:x"), room, false, 3);
    notifier.mark_room(room, RoomStream::Events, 4);
    notifier.advance(4);
    let mut changes = session.changes(0).unwrap();
    changes.sort();
    assert_eq!(
        changes,
        [Change::Events(room.to_owned()), Change::Membership(room.to_owned())]
    );
    assert_eq!(session.changes(3), Some(vec![]));
}

#[test]
fn recent_events_are_all_remembered_or_not_known() {
    let notifier = Notifier::new(10);
    let room = room_id!("!r:x");
    assert_eq!(notifier.recent_events(room, 10, 99), None);
    for position in [12, 14, 15] {
        notifier.mark_room(room, RoomStream::Events, position);
    }
    assert_eq!(notifier.recent_events(room, 9, 99), None);
    assert_eq!(notifier.recent_events(room, 10, 14), Some(vec![12, 14]));
    assert_eq!(notifier.recent_events(room, 14, 99), Some(vec![15]));
    for position in 16..=16 + i64::try_from(RECENT_EVENTS).unwrap() {
        notifier.mark_room(room, RoomStream::Events, position);
    }
    assert_eq!(notifier.recent_events(room, 14, 99), None);
    assert!(notifier.recent_events(room, 20, 99).is_some());
}

#[test]
fn idle_sessions_are_forgotten_and_say_so() {
    let notifier = Notifier::new(0);
    let session = watching(&notifier, &[owned_room_id!("!r:x")]);
    assert_eq!(notifier.forget_idle(0), 0);
    assert_eq!(notifier.forget_idle(1), 1);
    assert_eq!(session.changes(0), None);
    let again = notifier.session(user_id!("@a:x"), 2);
    assert!(!again.is_complete());
}

/// One step of a history in which writers finish out of order.
#[derive(Debug, Clone)]
enum Step {
    /// A writer takes the next position and will write to this room.
    Begin(u8),
    /// The n-th unfinished writer commits.
    Commit(usize),
    /// The user's membership of the room changes.
    Join(u8),
    Leave(u8),
    /// The user syncs from where they stopped.
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3u8).prop_map(Step::Begin),
        4 => (0..6usize).prop_map(Step::Commit),
        1 => (0..3u8).prop_map(Step::Join),
        1 => (0..3u8).prop_map(Step::Leave),
        3 => Just(Step::Sync),
    ]
}

fn room(n: u8) -> OwnedRoomId {
    RoomId::parse(format!("!{n}:x")).unwrap()
}

proptest! {
    /// Whatever the order in which writers finish, a sync from `since` to "now" is told of every room that has an event
    /// in between while the user was joined.
    #[test]
    fn no_position_is_ever_skipped(steps in prop::collection::vec(step(), 1..80), watched in 0..3u8) {
        let notifier = Notifier::new(0);
        let user = owned_user_id!("@a:x");
        let session = notifier.session(&user, 0);
        notifier.watch(&session, (0..watched).map(room));
        let mut joined: BTreeSet<u8> = (0..watched).collect();
        let mut next = 1;
        let mut open: Vec<i64> = Vec::new();
        let mut expected: Vec<(i64, u8)> = Vec::new();
        let mut since = 0;
        for step in steps.into_iter().chain([Step::Sync]) {
            match step {
                Step::Begin(n) => {
                    notifier.mark_room(&room(n), RoomStream::Events, next);
                    if joined.contains(&n) {
                        expected.push((next, n));
                    }
                    open.push(next);
                    next += 1;
                }
                Step::Commit(n) if !open.is_empty() => {
                    open.remove(n % open.len());
                }
                Step::Commit(_) => {}
                Step::Join(n) => {
                    notifier.mark_membership(&user, &room(n), true, next);
                    joined.insert(n);
                    next += 1;
                }
                Step::Leave(n) => {
                    notifier.mark_membership(&user, &room(n), false, next);
                    joined.remove(&n);
                    next += 1;
                }
                Step::Sync => {
                    // Largest position below which nothing is unfinished.
                    let published = open.iter().min().map_or(next - 1, |first| first - 1);
                    let now = notifier.advance(published);
                    prop_assert!(now >= since && now <= published);
                    let changes = session.changes(since).unwrap();
                    for (position, n) in &expected {
                        if *position > since && *position <= now {
                            prop_assert!(changes.contains(&Change::Events(room(*n))), "lost {position} of room {n}");
                        }
                    }
                    since = now;
                }
            }
        }
    }
}
