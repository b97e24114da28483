//! Rooms, events and state groups, on both engines.

use storage::{
    Config, Error, Store,
    events::{
        AggregatedRelation, Direction, EventRow, insert_event, insert_relation, insert_waiting_redaction, redact_event,
    },
    rooms::{RoomRow, add_alias, advance_room, insert_room, set_membership},
    state::{StateGroup, StateReset, insert_auth_events, insert_state_group, insert_state_reset},
};
use testkit::database::TestDatabaseUrl;

async fn open(db: &TestDatabaseUrl) -> Store {
    let config = Config {
        url: Some(db.url.clone()),
        ..Config::default()
    };
    Store::open(&config, &db.dir).await.expect("the store opens")
}

fn event(nid: i64, kind: &str, state_key: Option<&str>) -> EventRow {
    EventRow {
        event_nid: nid,
        room_nid: 1,
        event_id: format!("${nid}"),
        depth: nid,
        kind: kind.to_owned(),
        sender: "@a:x".to_owned(),
        state_key: state_key.map(str::to_owned),
        replaces: None,
        state_group: 1,
        soft_failed: false,
        redacted_by: None,
        device_id: None,
        txn_id: None,
        room_group: None,
        rejected: false,
        json: "{}".to_owned(),
    }
}

fn room() -> RoomRow {
    RoomRow {
        room_nid: 1,
        room_id: "!r:x".to_owned(),
        version: "11".to_owned(),
        extremities: "[1]".to_owned(),
        state_group: 1,
        latest: 1,
        listed: false,
    }
}

async fn write_events(store: &Store, events: Vec<EventRow>) {
    store
        .write::<_, Error, _>(move |tx| {
            Box::pin(async move {
                for event in &events {
                    insert_event(tx, event).await?;
                }
                Ok(())
            })
        })
        .await
        .expect("events are kept");
}

#[tokio::test]
async fn rooms_members_and_aliases() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        assert_eq!(store.room("!r:x").await.unwrap(), None);
        write_events(&store, vec![event(1, "m.room.member", Some("@a:x"))]).await;
        store
            .write::<_, Error, _>(|tx| {
                Box::pin(async move {
                    insert_room(tx, &room()).await?;
                    set_membership(tx, 1, "@a:x", "join", 1, 1).await?;
                    assert!(add_alias(tx, "#a:x", 1, "@a:x").await?);
                    assert!(!add_alias(tx, "#a:x", 1, "@b:x").await?);
                    Ok(())
                })
            })
            .await
            .unwrap();
        assert_eq!(store.room("!r:x").await.unwrap(), Some(room()));
        let memberships = store.memberships_of("@a:x").await.unwrap();
        assert_eq!(memberships.len(), 1);
        assert_eq!(
            (memberships[0].membership.as_str(), memberships[0].forgotten),
            ("join", false)
        );
        store.forget_room(1, "@a:x".to_owned()).await.unwrap();
        assert!(store.memberships_of("@a:x").await.unwrap()[0].forgotten);
        store
            .write::<_, Error, _>(|tx| {
                Box::pin(async move {
                    set_membership(tx, 1, "@a:x", "leave", 1, 4).await?;
                    advance_room(tx, 1, "[9]", 5, 9).await
                })
            })
            .await
            .unwrap();
        let gone = &store.memberships_of("@a:x").await.unwrap()[0];
        assert_eq!((gone.event_nid, gone.position, gone.forgotten), (1, 4, true));
        let expected = [("@a:x".to_owned(), "leave".to_owned(), 1)];
        assert_eq!(store.members_of(1).await.unwrap(), expected);
        let moved = store.room("!r:x").await.unwrap().unwrap();
        assert_eq!(
            (moved.extremities.as_str(), moved.state_group, moved.latest),
            ("[9]", 5, 9)
        );
        assert_eq!(store.rooms_with_events_after(&[1, 2], 8).await.unwrap(), [1]);
        assert!(store.rooms_with_events_after(&[1], 9).await.unwrap().is_empty());

        let owner = store.room_alias("#a:x").await.unwrap();
        assert_eq!(owner, Some(("!r:x".to_owned(), "@a:x".to_owned())));
        assert!(store.add_alias("#b:x".to_owned(), 1, "@a:x".to_owned()).await.unwrap());
        assert_eq!(store.aliases_of(1).await.unwrap(), ["#a:x", "#b:x"]);
        assert!(store.remove_alias("#a:x".to_owned()).await.unwrap());
        assert!(!store.remove_alias("#a:x".to_owned()).await.unwrap());
        store.set_listed(1, true).await.unwrap();
        assert_eq!(store.listed_rooms().await.unwrap(), ["!r:x"]);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn timelines_transactions_relations_and_redaction() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let mut events: Vec<_> = (1..=6).map(|nid| event(nid, "m.room.message", None)).collect();
        events[2].soft_failed = true;
        events[4] = event(5, "m.room.name", Some(""));
        events[5].device_id = Some("D".to_owned());
        events[5].txn_id = Some("t".to_owned());
        let mut twice = events[5].clone();
        write_events(&store, events.clone()).await;
        twice.event_nid = 7;
        twice.event_id = "$7".to_owned();
        let repeated: Result<(), Error> = store
            .write(move |tx| Box::pin(async move { insert_event(tx, &twice).await }))
            .await;
        assert!(repeated.unwrap_err().is_unique_violation());

        let nids = |rows: Vec<EventRow>| rows.into_iter().map(|row| row.event_nid).collect::<Vec<_>>();
        assert_eq!(store.event("$6").await.unwrap().as_ref(), Some(&events[5]));
        let backward = store.timeline(1, 1, 6, Direction::Backward, 3).await.unwrap();
        assert_eq!(nids(backward), [6, 5, 4]);
        let forward = store.timeline(1, 1, 6, Direction::Forward, 3).await.unwrap();
        assert_eq!(nids(forward), [2, 4, 5]);
        assert_eq!(nids(store.state_history(1, "m.room.name", "").await.unwrap()), [5]);
        assert_eq!(nids(store.state_events_between(1, 0, 9).await.unwrap()), [5]);
        assert_eq!(store.event_before(1, 3).await.unwrap(), Some((2, 1)));
        let mut some = nids(store.events_by_nid(&[2, 4, 99]).await.unwrap());
        some.sort_unstable();
        assert_eq!(some, [2, 4]);
        let found = store.transaction("@a:x", "D", "t", 1, "m.room.message").await.unwrap();
        assert_eq!(found.as_deref(), Some("$6"));
        assert_eq!(
            store.transaction("@a:x", "D", "t", 2, "m.room.message").await.unwrap(),
            None
        );
        assert_eq!(store.transactions_of("@a:x", "D", 10).await.unwrap().len(), 1);

        store
            .write::<_, Error, _>(|tx| {
                Box::pin(async move {
                    insert_relation(tx, 1, "$1", 2, "m.thread").await?;
                    insert_relation(tx, 1, "$1", 4, "m.replace").await?;
                    insert_relation(tx, 1, "$2", 5, "m.annotation").await?;
                    insert_relation(tx, 1, "$5", 6, "m.reference").await?;
                    redact_event(tx, 4, 6, "{\"pruned\":true}").await
                })
            })
            .await
            .unwrap();
        let related = store.relations(1, "$1", (0, 9), Direction::Backward, 10).await.unwrap();
        assert_eq!(related, [(2, "m.thread".to_owned())]);
        let aggregated = store
            .aggregated_relations(1, &["$1".to_owned(), "$2".to_owned()])
            .await
            .unwrap();
        let expected = AggregatedRelation {
            target: "$1".to_owned(),
            event_nid: 2,
            rel_type: "m.thread".to_owned(),
            sender: "@a:x".to_owned(),
            kind: "m.room.message".to_owned(),
        };
        assert_eq!(aggregated, [expected], "reactions are not summed up");
        let below = |levels| {
            let store = &store;
            async move {
                let found = store.relations_below(1, "$1", (0, 9), Direction::Forward, levels).await;
                found.unwrap().into_iter().map(|(nid, _)| nid).collect::<Vec<_>>()
            }
        };
        assert_eq!(below(1).await, [2]);
        assert_eq!(below(2).await, [2, 5]);
        assert_eq!(below(3).await, [2, 5, 6]);
        let newest = store
            .relations_below(1, "$1", (0, 5), Direction::Backward, 3)
            .await
            .unwrap();
        assert_eq!(newest, [(5, "m.annotation".to_owned()), (2, "m.thread".to_owned())]);
        assert_eq!(store.threads(1, (i64::MAX, 9), None, 9).await.unwrap(), [(1, 2)]);
        assert_eq!(
            store.threads(1, (i64::MAX, 9), Some("@a:x"), 9).await.unwrap(),
            [(1, 2)]
        );
        assert_eq!(store.threads(1, (i64::MAX, 9), Some("@b:x"), 9).await.unwrap(), []);
        assert_eq!(store.threads(1, (2, 9), None, 9).await.unwrap(), []);
        assert_eq!(store.threads(1, (i64::MAX, 1), None, 9).await.unwrap(), []);
        assert_eq!(store.threads(2, (i64::MAX, 9), None, 9).await.unwrap(), []);
        assert_eq!(
            store.relations(2, "$1", (0, 9), Direction::Backward, 10).await.unwrap(),
            []
        );
        assert_eq!(store.aggregated_relations(2, &["$1".to_owned()]).await.unwrap(), []);
        let redacted = store.event("$4").await.unwrap().unwrap();
        assert_eq!(
            (redacted.redacted_by, redacted.json.as_str()),
            (Some(6), "{\"pruned\":true}")
        );
        store.close().await;
    })
    .await;
}

/// Every state of a line of changes is read back whole through its chain of groups.
#[tokio::test]
async fn state_groups_hold_every_state() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let key = |nid: i64| format!("{}", nid * nid % 11);
        write_events(&store, (1..=40).map(|nid| event(nid, "x", Some(&key(nid)))).collect()).await;
        let mut chain: Vec<StateGroup> = Vec::new();
        for nid in 1..=40i64 {
            let generation = nid - 1;
            let parent_generation = generation & (generation - 1);
            let folded: Vec<i64> = chain
                .iter()
                .filter(|group| group.generation > parent_generation)
                .map(|group| group.state_group)
                .collect();
            chain.retain(|group| generation > 0 && group.generation <= parent_generation);
            let group = StateGroup {
                state_group: nid,
                generation,
                parent: chain.first().map(|group| group.state_group),
            };
            chain.insert(0, group);
            store
                .write::<_, Error, _>(move |tx| {
                    Box::pin(async move { insert_state_group(tx, 1, group, &[nid], &folded).await })
                })
                .await
                .unwrap();
            assert_eq!(store.state_chain(nid).await.unwrap(), chain);
            let mut expected = std::collections::BTreeMap::new();
            for before in 1..=nid {
                expected.insert(key(before), before);
            }
            let found: std::collections::BTreeMap<_, _> = store
                .state(nid)
                .await
                .unwrap()
                .into_iter()
                .map(|row| (row.state_key, row.event_nid))
                .collect();
            assert_eq!(found, expected, "state {nid}");
        }
        store.close().await;
    })
    .await;
}

/// Who was put out of a room they forgot stays out of their sight; who comes back, or is asked to, sees it again.
#[tokio::test]
async fn a_forgotten_room_is_remembered_by_those_who_come_back() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        write_events(&store, vec![event(1, "m.room.member", Some("@a:x"))]).await;
        store
            .write::<_, Error, _>(|tx| Box::pin(async move { insert_room(tx, &room()).await }))
            .await
            .unwrap();
        for (membership, forgotten) in [("ban", true), ("leave", true), ("invite", false), ("knock", false)] {
            let forgotten_before = [("leave", false)];
            for (membership, expected) in forgotten_before.into_iter().chain([(membership, forgotten)]) {
                store
                    .write::<_, Error, _>(move |tx| {
                        Box::pin(async move { set_membership(tx, 1, "@a:x", membership, 1, 1).await })
                    })
                    .await
                    .unwrap();
                let row = &store.memberships_of("@a:x").await.unwrap()[0];
                assert_eq!(row.forgotten, expected, "{membership}");
                store.forget_room(1, "@a:x".to_owned()).await.unwrap();
            }
            store
                .write::<_, Error, _>(|tx| Box::pin(async move { set_membership(tx, 1, "@a:x", "join", 1, 1).await }))
                .await
                .unwrap();
        }
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn auth_graphs_resets_and_refused_events() {
    testkit::database::each(|db| async move {
        let store = open(&db).await;
        let mut events: Vec<_> = (1..=6).map(|nid| event(nid, "x", Some(&nid.to_string()))).collect();
        events[3].room_group = Some(9);
        (events[4].soft_failed, events[4].rejected) = (true, true);
        write_events(&store, events.clone()).await;
        store
            .write::<_, Error, _>(|tx| {
                Box::pin(async move {
                    for (event, auth) in [(2, &[1][..]), (3, &[1, 2]), (4, &[1]), (6, &[3, 4]), (5, &[])] {
                        insert_auth_events(tx, event, auth).await?;
                    }
                    for (position, event_nid) in [(4, None), (6, Some(2))] {
                        let reset = StateReset {
                            position,
                            kind: "x".to_owned(),
                            state_key: "k".to_owned(),
                            event_nid,
                        };
                        insert_state_reset(tx, 1, &reset).await?;
                    }
                    insert_waiting_redaction(tx, "$7", 6).await?;
                    insert_waiting_redaction(tx, "$7", 6).await
                })
            })
            .await
            .unwrap();
        let mut graph = store.auth_graph(&[3, 4]).await.unwrap();
        graph.sort_unstable();
        assert_eq!(graph, [(2, 1), (3, 1), (3, 2), (4, 1)]);
        let mut chain = store.auth_chain_after(&[6], 2).await.unwrap();
        chain.sort_unstable();
        assert_eq!(chain, [2, 3, 4]);
        assert!(store.auth_chain_after(&[6], 5).await.unwrap().is_empty());

        let resets = store.state_resets(1, "x", "k").await.unwrap();
        let resets: Vec<_> = resets.iter().map(|r| (r.position, r.event_nid)).collect();
        assert_eq!(resets, [(4, None), (6, Some(2))]);
        assert!(store.state_resets(1, "x", "other").await.unwrap().is_empty());
        assert_eq!(store.last_state_reset(1).await.unwrap(), 6);
        assert_eq!(store.last_state_reset(2).await.unwrap(), 0);

        assert_eq!(store.event_before(1, 4).await.unwrap(), Some((4, 9)));
        assert_eq!(store.event_before(1, 5).await.unwrap(), Some((4, 9)), "refused");
        let mut found = store.events_by_id(&["$4", "$5", "$none"]).await.unwrap();
        found.sort_by_key(|row| row.event_nid);
        assert_eq!(found, events[3..5]);
        assert_eq!(store.waiting_redactions("$7").await.unwrap(), [6]);
        assert!(store.waiting_redactions("$6").await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}
