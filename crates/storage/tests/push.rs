//! Whom events notify and what of it is unread, on both engines.

use storage::{
    Config, Error, Store,
    push::{FoldBounds, MemberChange, Notified, NotifyingEvent, Others, Outcome, ReadUpTo, mark_read, record_notified},
    rooms::{RoomRow, insert_room},
};
use testkit::database::TestDatabaseUrl;

const ROOM: i64 = 1;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

/// A store with one room, in which `members` are since position 1.
async fn room_of(db: &TestDatabaseUrl, members: &[&str]) -> Store {
    let store = open(db).await;
    let room = RoomRow {
        room_nid: ROOM,
        room_id: "!r:x".into(),
        version: "11".into(),
        extremities: "[]".into(),
        state_group: 1,
        latest: 1,
        listed: false,
    };
    store
        .write::<_, Error, _>(move |tx| Box::pin(async move { insert_room(tx, &room).await }))
        .await
        .unwrap();
    for member in members {
        change(&store, 1, member, MemberChange::Joined).await;
    }
    store
}

fn event(position: i64, thread: &str, sender: &str) -> NotifyingEvent {
    NotifyingEvent {
        room_nid: ROOM,
        thread_id: thread.into(),
        sender: sender.into(),
        position,
        ts: 1000 + position,
        memberships: Vec::new(),
    }
}

fn notifies(highlight: bool) -> Outcome {
    Outcome {
        notify: true,
        highlight,
        actions: format!(r#"["notify",{highlight}]"#),
    }
}

fn everybody() -> Notified {
    Notified {
        base: notifies(false),
        ..Notified::nobody()
    }
}

async fn record(store: &Store, event: NotifyingEvent, notified: Notified) {
    store
        .write::<_, Error, _>(move |tx| Box::pin(async move { record_notified(tx, &event, &notified).await }))
        .await
        .unwrap();
}

async fn say(store: &Store, position: i64, thread: &str) {
    record(store, event(position, thread, "@s:x"), everybody()).await;
}

async fn change(store: &Store, position: i64, user: &str, change: MemberChange) {
    let mut event = event(position, "", user);
    event.memberships = vec![(user.to_owned(), change)];
    record(store, event, Notified::nobody()).await;
}

async fn read_up_to(store: &Store, user: &'static str, thread: Option<&'static str>, event_position: i64) -> bool {
    store
        .write::<_, Error, _>(move |tx| {
            Box::pin(async move {
                let read = ReadUpTo {
                    room_nid: ROOM,
                    user_id: user,
                    thread_id: thread,
                    event_position,
                };
                mark_read(tx, &read).await
            })
        })
        .await
        .unwrap()
}

async fn counts_until(store: &Store, user_id: &str, until: i64) -> Vec<(String, i64, i64)> {
    let counts = store.unread_counts(user_id, &[ROOM, 2], until).await.unwrap();
    let mut counts: Vec<_> = counts
        .into_iter()
        .map(|c| (c.thread_id, c.notify, c.highlight))
        .collect();
    counts.sort();
    counts
}

async fn counts(store: &Store, user_id: &str) -> Vec<(String, i64, i64)> {
    counts_until(store, user_id, i64::MAX).await
}

fn of(thread: &str, notify: i64, highlight: i64) -> (String, i64, i64) {
    (thread.into(), notify, highlight)
}

#[tokio::test]
async fn counts_follow_events_and_receipts() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@a:x", "@b:x"]).await;
        say(&store, 10, "").await;
        let mut mention = everybody();
        mention.personal = vec![("@a:x".into(), notifies(true))];
        record(&store, event(11, "", "@s:x"), mention).await;
        say(&store, 12, "$10").await;
        assert_eq!(counts(&store, "@a:x").await, [of("", 2, 1), of("$10", 1, 0)]);
        assert_eq!(counts(&store, "@b:x").await, [of("", 2, 0), of("$10", 1, 0)]);
        assert_eq!(counts_until(&store, "@b:x", 10).await, [of("", 1, 0)]);
        assert_eq!(counts(&store, "@nobody:x").await, []);

        // A receipt in the middle leaves what is above it, in its own thread.
        assert!(read_up_to(&store, "@a:x", Some(""), 10).await);
        assert_eq!(counts(&store, "@a:x").await, [of("", 1, 1), of("$10", 1, 0)]);
        assert!(!read_up_to(&store, "@a:x", Some(""), 9).await, "earlier");
        assert!(!read_up_to(&store, "@a:x", Some(""), 10).await, "the same");
        assert!(read_up_to(&store, "@a:x", None, 12).await);
        assert_eq!(counts(&store, "@a:x").await, []);
        assert!(!read_up_to(&store, "@a:x", None, 13).await, "nothing to lower");
        assert!(!read_up_to(&store, "@a:x", Some("$10"), 13).await, "nothing to lower");

        // Sending is reading, in the same thread.
        record(&store, event(16, "", "@b:x"), everybody()).await;
        assert_eq!(counts(&store, "@b:x").await, [of("$10", 1, 0)]);
        assert_eq!(counts(&store, "@a:x").await, [of("", 1, 0)]);

        // Leaving the room forgets, and coming back does not remember.
        change(&store, 17, "@a:x", MemberChange::Gone).await;
        assert_eq!(counts(&store, "@a:x").await, []);
        assert_eq!(
            store.notifications("@a:x", i64::MAX, false, 10).await.unwrap(),
            storage::push::NotificationPage::default()
        );
        say(&store, 18, "").await;
        change(&store, 19, "@a:x", MemberChange::Joined).await;
        assert_eq!(counts(&store, "@a:x").await, []);
        say(&store, 20, "").await;
        // Another name or picture is no new beginning.
        let mut renamed = event(21, "", "@c:x");
        renamed.memberships = vec![("@a:x".to_owned(), MemberChange::Joined)];
        record(&store, renamed, Notified::nobody()).await;
        assert_eq!(counts(&store, "@a:x").await, [of("", 1, 0)]);
        // One event may change the memberships of several who did not send it.
        let mut resolved = event(22, "", "@elsewhere:y");
        resolved.memberships = vec![
            ("@d:x".to_owned(), MemberChange::Joined),
            ("@b:x".to_owned(), MemberChange::Gone),
        ];
        record(&store, resolved, Notified::nobody()).await;
        say(&store, 23, "").await;
        assert_eq!(counts(&store, "@d:x").await, [of("", 1, 0)]);
        assert_eq!(counts(&store, "@b:x").await, []);
        assert_eq!(counts(&store, "@a:x").await, [of("", 2, 0)]);
        store.close().await;
        let store = open(&db).await;
        assert_eq!(counts(&store, "@a:x").await, [of("", 2, 0)]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn members_with_rules_of_their_own_are_kept_with_the_event() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@a:x", "@b:x", "@c:x"]).await;
        let nids = store.push_user_nids(&["@a:x", "@b:x"]).await.unwrap();
        assert_eq!(
            store.push_user_nids(&["@b:x", "@a:x"]).await.unwrap(),
            [nids[1], nids[0]]
        );
        let notified = Notified {
            others: Others::new([(Outcome::silent(), vec![nids[0]]), (notifies(true), vec![nids[1]])]),
            ..everybody()
        };
        record(&store, event(10, "", "@s:x"), notified).await;
        store.close().await;
        let store = open(&db).await;
        assert_eq!(store.push_user_nid("@b:x").await.unwrap(), Some(nids[1]));
        assert_eq!(store.push_user_nid("@c:x").await.unwrap(), None);
        assert_eq!(counts(&store, "@a:x").await, []);
        assert_eq!(counts(&store, "@b:x").await, [of("", 1, 1)]);
        assert_eq!(counts(&store, "@c:x").await, [of("", 1, 0)]);
        assert!(!store.push_user_nids(&["@d:x"]).await.unwrap().contains(&nids[0]));
        let listed = store
            .notifications("@b:x", i64::MAX, true, 10)
            .await
            .unwrap()
            .notifications;
        assert_eq!(listed[0].actions, notifies(true).actions);
        assert!(
            store
                .notifications("@c:x", i64::MAX, true, 10)
                .await
                .unwrap()
                .notifications
                .is_empty()
        );
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn notifications_are_listed_newest_first_and_know_what_was_read() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@a:x"]).await;
        for position in 2..=5 {
            let mut notified = everybody();
            if position == 3 {
                notified.personal = vec![("@a:x".into(), notifies(true)), ("@invited:x".into(), notifies(false))];
            }
            record(&store, event(position, "", "@s:x"), notified).await;
        }
        record(&store, event(6, "", "@a:x"), everybody()).await;
        record(&store, event(7, "", "@s:x"), everybody()).await;
        let listed = async |user, before, only, limit| {
            let page = store.notifications(user, before, only, limit).await.unwrap();
            let rows = page.notifications.into_iter().map(|n| (n.position, n.read));
            (rows.collect::<Vec<(i64, bool)>>(), page.next)
        };
        assert_eq!(
            listed("@a:x", i64::MAX, false, 10).await,
            (vec![(7, false), (5, true), (4, true), (3, true), (2, true)], None)
        );
        assert_eq!(
            listed("@a:x", i64::MAX, false, 2).await,
            (vec![(7, false), (5, true)], Some(5))
        );
        assert_eq!(listed("@a:x", 5, false, 2).await, (vec![(4, true), (3, true)], Some(3)));
        assert_eq!(listed("@a:x", 3, false, 2).await, (vec![(2, true)], None));
        assert_eq!(listed("@a:x", i64::MAX, true, 10).await, (vec![(3, true)], None));
        assert_eq!(listed("@invited:x", i64::MAX, false, 10).await, (vec![(3, true)], None));
        read_up_to(&store, "@a:x", None, 7).await;
        assert_eq!(listed("@a:x", i64::MAX, false, 1).await, (vec![(7, true)], Some(7)));
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_quiet_users_list_is_paged_over_what_others_got() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@a:x"]).await;
        say(&store, 2, "").await;
        // Another room, of others.
        store
            .write::<_, Error, _>(|tx| {
                Box::pin(async move {
                    for position in 3..4_600 {
                        let mut event = event(position, "", "@s:x");
                        event.room_nid = 2;
                        record_notified(tx, &event, &everybody()).await?;
                    }
                    Ok(())
                })
            })
            .await
            .unwrap();
        let first = store.notifications("@a:x", i64::MAX, false, 10).await.unwrap();
        assert_eq!(first.notifications, []);
        let second = store
            .notifications("@a:x", first.next.unwrap(), false, 10)
            .await
            .unwrap();
        assert_eq!(second.notifications.len(), 1);
        assert_eq!(second.next, None);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn old_events_are_folded_into_what_is_unread() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@behind:x", "@half:x", "@done:x", "@muted:x"]).await;
        let muted = store.push_user_nids(&["@muted:x"]).await.unwrap();
        for position in 10..30 {
            let mut notified = everybody();
            notified.others = Others::new([(Outcome::silent(), muted.clone())]);
            if position == 12 {
                notified.personal = vec![("@behind:x".into(), notifies(true))];
            }
            let thread = if position % 2 == 0 { "" } else { "$t" };
            record(&store, event(position, thread, "@s:x"), notified).await;
        }
        read_up_to(&store, "@half:x", Some("$t"), 15).await;
        read_up_to(&store, "@half:x", None, 11).await;
        read_up_to(&store, "@done:x", None, 29).await;
        let all = async || {
            let mut all = Vec::new();
            for user in ["@behind:x", "@half:x", "@done:x", "@muted:x"] {
                all.push(counts(&store, user).await);
            }
            all
        };
        let before = all().await;
        assert_eq!(before[0], [of("", 10, 1), of("$t", 10, 0)]);
        assert_eq!(before[1], [of("", 9, 0), of("$t", 7, 0)]);
        let bounds = FoldBounds {
            keep: 5,
            received_after: 0,
            at_once: 4,
        };
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [ROOM]);
        let mut gone = 0;
        loop {
            let folded = store.fold_notifications(ROOM, bounds).await.unwrap();
            assert_eq!(all().await, before, "after {gone} rows");
            gone += folded;
            if folded == 0 {
                break;
            }
        }
        assert_eq!(gone, 16, "fifteen events and one row of a user");
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [0i64; 0]);

        // A receipt below the fold lowers nothing of it; one above it removes it.
        read_up_to(&store, "@behind:x", None, 20).await;
        assert_eq!(counts(&store, "@behind:x").await, before[0]);
        assert!(read_up_to(&store, "@behind:x", Some(""), 26).await);
        assert_eq!(counts(&store, "@behind:x").await, [of("", 1, 0), of("$t", 10, 0)]);
        assert!(read_up_to(&store, "@behind:x", None, 28).await);
        assert_eq!(counts(&store, "@behind:x").await, [of("$t", 1, 0)]);

        // What is too old goes in any case.
        let bounds = FoldBounds {
            keep: 100,
            received_after: 1029,
            at_once: 100,
        };
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [ROOM]);
        assert_eq!(store.fold_notifications(ROOM, bounds).await.unwrap(), 4);
        assert_eq!(counts(&store, "@half:x").await, before[1]);
        assert_eq!(
            store
                .notifications("@half:x", i64::MAX, false, 10)
                .await
                .unwrap()
                .notifications
                .len(),
            1
        );
        store.close().await;
    })
    .await;
}

/// What a store is told, kept as it is told, and counted event by event.
#[derive(Default)]
struct Told {
    /// Position, thread, sender, what it means to each of [`READERS`].
    events: Vec<(i64, &'static str, &'static str, [Outcome; 4])>,
    read: [std::collections::BTreeMap<Option<&'static str>, i64>; 4],
}

const READERS: [&str; 4] = ["@a:x", "@b:x", "@c:x", "@d:x"];
const THREADS: [&str; 3] = ["", "$t", "$u"];

impl Told {
    fn counts(&self, reader: usize) -> Vec<(String, i64, i64)> {
        let mut counts = Vec::new();
        for thread in THREADS {
            let read = [None, Some(thread)].map(|t| self.read[reader].get(&t).copied().unwrap_or(1));
            let unread = self
                .events
                .iter()
                .filter(|(position, of, sender, _)| {
                    *of == thread && *position > read[0].max(read[1]) && *sender != READERS[reader]
                })
                .map(|(.., outcomes)| &outcomes[reader]);
            let (notify, highlight) = unread.fold((0, 0), |(notify, highlight), outcome| {
                (
                    notify + i64::from(outcome.notify),
                    highlight + i64::from(outcome.highlight),
                )
            });
            if notify > 0 || highlight > 0 {
                counts.push(of(thread, notify, highlight));
            }
        }
        counts
    }

    /// Answers whether something unread was passed.
    fn read(&mut self, reader: usize, thread: Option<&'static str>, position: i64) -> bool {
        let before = self.counts(reader);
        let read = self.read[reader].entry(thread).or_default();
        *read = position.max(*read);
        self.counts(reader) != before
    }
}

#[tokio::test]
async fn counts_are_those_of_looking_at_every_event() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &READERS).await;
        let nids = store.push_user_nids(&["@a:x", "@b:x"]).await.unwrap();
        let mut told = Told::default();
        let mut random = 7u64;
        let mut dice = move |sides: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((random >> 33) % sides).unwrap()
        };
        for position in 10..130 {
            let thread = THREADS[dice(3)];
            let sender = ["@s:x", "@s:x", READERS[dice(4)]][dice(3)];
            let base = [notifies(false), notifies(true), Outcome::silent()][dice(3)].clone();
            let mut outcomes = [0; 4].map(|_| base.clone());
            let mut notified = Notified {
                base,
                ..Notified::nobody()
            };
            if dice(2) == 0 {
                notified.others = Others::new([(Outcome::silent(), vec![nids[0]]), (notifies(true), vec![nids[1]])]);
                (outcomes[0], outcomes[1]) = (Outcome::silent(), notifies(true));
            }
            if dice(3) == 0 {
                let reader = dice(3);
                if READERS[reader] != sender {
                    notified.personal = vec![(READERS[reader].to_owned(), notifies(true))];
                    outcomes[reader] = notifies(true);
                }
            }
            record(&store, event(position, thread, sender), notified).await;
            told.events.push((position, thread, sender, outcomes));
            if let Some(reader) = READERS.iter().position(|reader| *reader == sender) {
                told.read(reader, Some(thread), position);
            }
            if dice(3) == 0 {
                let reader = dice(4);
                let thread = [None, Some(THREADS[0]), Some(THREADS[0]), Some(THREADS[dice(3)])][dice(4)];
                let upto = position - i64::try_from(dice(20)).unwrap();
                let lowered = told.read(reader, thread, upto);
                let answer = read_up_to(&store, READERS[reader], thread, upto).await;
                assert!(answer || !lowered, "{reader} {thread:?} {upto}");
            }
            for (reader, user) in READERS.iter().enumerate() {
                assert_eq!(counts(&store, user).await, told.counts(reader), "{user} at {position}");
            }
        }
        let bounds = FoldBounds {
            keep: 10,
            received_after: 0,
            at_once: 7,
        };
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [ROOM]);
        while store.fold_notifications(ROOM, bounds).await.unwrap() > 0 {
            for (reader, user) in READERS.iter().enumerate() {
                assert_eq!(counts(&store, user).await, told.counts(reader), "{user} folded");
            }
        }
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [0i64; 0]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn rows_of_users_are_folded_a_few_at_once() {
    testkit::database::each(|db| async move {
        let store = room_of(&db, &["@a:x"]).await;
        for position in 10..40 {
            let mut notified = Notified::nobody();
            notified.personal = vec![("@a:x".into(), notifies(true))];
            record(&store, event(position, "", "@s:x"), notified).await;
        }
        let bounds = FoldBounds {
            keep: 100,
            received_after: 1035,
            at_once: 10,
        };
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [ROOM]);
        for folded in [10, 10, 5, 0] {
            assert_eq!(store.fold_notifications(ROOM, bounds).await.unwrap(), folded);
            assert_eq!(counts(&store, "@a:x").await, [of("", 30, 30)]);
        }
        // What came since is counted with what was there.
        let bounds = FoldBounds {
            keep: 3,
            received_after: 0,
            at_once: 2,
        };
        for position in 40..46 {
            assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [0i64; 0]);
            say(&store, position, "").await;
        }
        assert_eq!(store.rooms_to_fold(bounds, 10).await.unwrap(), [ROOM]);
        store.close().await;
    })
    .await;
}
