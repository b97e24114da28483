//! Rooms whose events fork: what another server's events become, and what the room becomes of them.

use std::collections::BTreeMap;

use homeserver::room::{Error, Membership, Pdu, Proposal, Received};
use http::Method;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use ruma::{MilliSecondsSinceUnixEpoch, RoomVersionId, UInt};
use serde_json::{Value, json};
use testkit::database::{TestDatabase, TestDatabaseUrl};

use crate::{
    harness::Server,
    remote::{Made, Point, Remote, Said},
};

const V3: &str = "/_matrix/client/v3";
const VERSIONS: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

const ALICE: &str = "@alice:example.org";
const DAVE: &str = "@dave:example.org";
const EVE: &str = "@eve:example.org";
/// An administrator elsewhere.
const ROB: &str = "@rob:remote.example";
/// A member elsewhere who may change the topic.
const BOB: &str = "@bob:remote.example";

/// A room of `alice`, with `dave` and `eve` here, `rob` (100) and `bob` (50) there.
struct World {
    server: Server,
    remote: Remote,
    room: String,
    tokens: BTreeMap<&'static str, String>,
}

impl World {
    async fn new(db: &TestDatabaseUrl, version: &RoomVersionId) -> Self {
        let server = Server::start_with(db, |config| config.rate_limits.enabled = false).await;
        let mut tokens = BTreeMap::new();
        for (user, name) in [(ALICE, "alice"), (DAVE, "dave"), (EVE, "eve")] {
            tokens.insert(user, server.register(name).await);
        }
        let mut world = Self {
            remote: Remote::new(version.clone(), "!none"),
            server,
            room: String::new(),
            tokens,
        };
        world.fresh_room(version).await;
        world
    }

    async fn fresh_room(&mut self, version: &RoomVersionId) {
        let body = json!({ "preset": "public_chat", "room_version": version, "topic": "first" });
        let path = format!("{V3}/createRoom");
        let alice = self.tokens[ALICE].clone();
        let answer = self.server.json(Method::POST, &path, Some(&alice), &body).await.ok();
        self.room = answer["room_id"].as_str().expect("a room id").to_owned();
        self.remote = Remote::new(version.clone(), &self.room);
        for user in [DAVE, EVE] {
            self.post(user, "join", json!({})).await;
        }
        for user in [ROB, BOB] {
            self.remote.add(&self.server, &join(user)).await;
        }
        let mut levels = self.get(ALICE, "state/m.room.power_levels").await;
        for (user, level) in [(ROB, 100), (BOB, 50), (DAVE, 50)] {
            levels["users"][user] = json!(level);
        }
        self.put(ALICE, "state/m.room.power_levels", levels).await;
    }

    async fn post(&self, user: &str, what: &str, body: Value) -> Value {
        let path = format!("{V3}/rooms/{}/{what}", self.room);
        let token = &self.tokens[user];
        self.server.json(Method::POST, &path, Some(token), &body).await.ok()
    }

    async fn put(&self, user: &str, what: &str, body: Value) -> String {
        let path = format!("{V3}/rooms/{}/{what}", self.room);
        let token = &self.tokens[user];
        let answer = self.server.json(Method::PUT, &path, Some(token), &body).await.ok();
        answer["event_id"].as_str().expect("an event id").to_owned()
    }

    async fn get(&self, user: &str, what: &str) -> Value {
        let path = format!("{V3}/rooms/{}/{what}", self.room);
        self.server.get(&path, Some(&self.tokens[user])).await.ok()
    }

    async fn say(&self, user: &str, text: &str) -> String {
        let what = format!("send/m.room.message/{text}");
        self.put(user, &what, json!({ "msgtype": "m.text", "body": text }))
            .await
    }

    async fn topic(&self) -> Value {
        self.get(ALICE, "state/m.room.topic").await["topic"].clone()
    }

    async fn sync(&self, user: &str, since: Option<&Value>, parameters: &str) -> Value {
        let since = since.map_or(String::new(), |since| {
            format!("&since={}", since["next_batch"].as_str().expect("a token"))
        });
        let path = format!("{V3}/sync?timeout=0{since}&{parameters}");
        self.server.get(&path, Some(&self.tokens[user])).await.ok()
    }

    async fn here(&self) -> Point {
        self.remote.here(&self.server).await
    }

    async fn deliver(&self, made: &Made) -> Received {
        self.remote.deliver(&self.server, made).await.expect("it is received")
    }

    async fn accepted(&self, made: &Made) {
        let received = self.deliver(made).await;
        assert!(matches!(received, Received::Accepted(_)), "{received:?}");
    }

    async fn ends(&self) -> usize {
        self.remote.room(&self.server).await.state().extremities().len()
    }

    async fn membership(&self, user: &str) -> Membership {
        let state = self.remote.room(&self.server).await.state();
        state.membership(user.try_into().expect("a user id"))
    }
}

/// Runs `test` in a room of each version, on each engine.
async fn each<Fut: Future<Output = World>>(test: impl Fn(World) -> Fut) {
    let test = &test;
    testkit::database::each(|db| async move {
        let mut world = World::new(&db, &VERSIONS[0]).await;
        for (n, version) in VERSIONS.iter().enumerate() {
            if n > 0 {
                world.fresh_room(version).await;
            }
            world = test(world).await;
        }
        world.server.stop().await;
    })
    .await;
}

/// Earlier than everybody's here: of events that else are equal the older one comes first in state resolution.
fn join(user: &str) -> Said<'_> {
    Said {
        ts: NOW - 1_000,
        ..state(user, "m.room.member", user, json!({ "membership": "join" }))
    }
}

/// Made at the moment at which the server's clock stands still.
const NOW: u64 = 1_800_000_000_000;

fn state<'a>(sender: &'a str, kind: &'a str, key: &'a str, content: Value) -> Said<'a> {
    Said {
        sender,
        kind,
        key: Some(key),
        content,
        ts: NOW,
    }
}

fn topic<'a>(sender: &'a str, text: &str, ts: u64) -> Said<'a> {
    Said {
        ts,
        ..state(sender, "m.room.topic", "", json!({ "topic": text }))
    }
}

fn message<'a>(sender: &'a str, text: &str) -> Said<'a> {
    Said {
        sender,
        kind: "m.room.message",
        key: None,
        content: json!({ "msgtype": "m.text", "body": text }),
        ts: NOW,
    }
}

fn ban<'a>(sender: &'a str, whom: &'a str) -> Said<'a> {
    state(sender, "m.room.member", whom, json!({ "membership": "ban" }))
}

fn event_ids(section: &Value) -> Vec<String> {
    let events = section["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn what_a_banned_user_does_meanwhile_is_soft_failed() {
    each(|w| async move {
        let fork = w.here().await;
        w.post(ALICE, "ban", json!({ "user_id": BOB })).await;
        let before = w.here().await;
        let late = w.remote.make(&fork, &topic(BOB, "bob was here", NOW + 5));
        assert!(matches!(w.deliver(&late).await, Received::SoftFailed(_)));
        assert_eq!(w.deliver(&late).await, Received::Known);
        assert_eq!(w.here().await.ids, before.ids, "it is no end of the room");
        assert_eq!(w.topic().await, "first");
        let read = w.get(ALICE, "messages?dir=b").await;
        assert!(!read.to_string().contains("bob was here"));
        let path = format!("{V3}/rooms/{}/event/{}", w.room, late.id);
        w.server
            .get(&path, Some(&w.tokens[ALICE]))
            .await
            .is_error(404, "M_NOT_FOUND");
        let row = w.server.homeserver.store.event(&late.id).await.unwrap().unwrap();
        assert!(row.soft_failed && !row.rejected);

        // What others build on it counts, and takes its effect into the resolution: where the ban wins.
        let after = w.remote.make(&late.point, &message(ROB, "on top"));
        w.accepted(&after).await;
        assert_eq!(w.ends().await, 2);
        assert_eq!(w.topic().await, "first");
        assert_eq!(w.membership(BOB).await, Membership::Ban);
        let own = w.say(ALICE, "both").await;
        let row = w.server.homeserver.store.event(&own).await.unwrap().unwrap();
        let event: Value = serde_json::from_str(&row.json).unwrap();
        let mut named: Vec<&str> = event["prev_events"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let mut expected = vec![before.ids[0].as_str(), after.id.as_str()];
        named.sort_unstable();
        expected.sort_unstable();
        assert_eq!(named, expected);
        assert_eq!(w.here().await.ids, [own]);
        w
    })
    .await;
}

#[tokio::test]
async fn an_event_that_was_never_allowed_is_rejected_and_kept() {
    each(|w| async move {
        let here = w.here().await;
        let usurper = "@mallory:remote.example";
        let made = w.remote.make(&here, &topic(usurper, "mine", NOW));
        assert!(matches!(w.deliver(&made).await, Received::Rejected(_)));
        let row = w.server.homeserver.store.event(&made.id).await.unwrap().unwrap();
        assert!(row.soft_failed && row.rejected);
        assert_eq!(
            (w.topic().await, w.here().await.ids),
            (json!("first"), here.ids.clone())
        );

        // Others may go on from there: its state does not count.
        let mut point = made.point.clone();
        point.state = here.state.clone();
        w.accepted(&w.remote.make(&point, &message(ROB, "after the rejected one")))
            .await;
        assert_eq!(w.topic().await, "first");
        // But it authorises nothing.
        let join = w.remote.make(
            &here,
            &state(usurper, "m.room.member", BOB, json!({ "membership": "ban" })),
        );
        assert!(matches!(w.deliver(&join).await, Received::Rejected(_)));
        let mut forged = w.here().await;
        forged
            .state
            .insert(("m.room.member".to_owned(), BOB.to_owned()), join.id.clone());
        let made = w.remote.make(&forged, &message(BOB, "by a rejected event"));
        assert!(matches!(w.deliver(&made).await, Received::Rejected(_)));

        // What comes before its predecessors waits for them.
        let first = w.remote.make(&w.here().await, &message(ROB, "one"));
        let second = w.remote.make(&first.point, &message(ROB, "two"));
        let Received::Missing {
            prev_events,
            auth_events,
        } = w.deliver(&second).await
        else {
            panic!("nothing is missing");
        };
        assert_eq!((prev_events[0].as_str(), auth_events.len()), (first.id.as_str(), 0));
        w.accepted(&first).await;
        w.accepted(&second).await;
        w
    })
    .await;
}

#[tokio::test]
async fn forged_and_malformed_events_are_dropped() {
    each(|w| async move {
        let here = w.here().await;
        let made = w.remote.make(&here, &message(ROB, "true"));
        let deliver = |made: Made| {
            let w = &w;
            async move { w.remote.deliver(&w.server, &made).await }
        };
        // Content that is not what the hash says is pruned; the rest is signed and stands.
        let mut changed = made.clone();
        let content = json!({ "msgtype": "m.text", "body": "false" });
        changed.json.insert("content".to_owned(), content.try_into().unwrap());
        assert!(matches!(deliver(changed).await.unwrap(), Received::Accepted(_)));
        let row = w.server.homeserver.store.event(&made.id).await.unwrap().unwrap();
        assert!(!row.json.contains("false") && !row.json.contains("true"));

        let made = w.remote.make(&here, &topic(ROB, "signed", NOW));
        let mut other = made.clone();
        other
            .json
            .insert("sender".to_owned(), "@alice:example.org".to_owned().into());
        assert!(matches!(deliver(other).await, Err(Error::Forbidden(_))));
        let mut other = made.clone();
        other.json.remove("signatures");
        assert!(deliver(other).await.is_err());
        let mut other = made.clone();
        other.json.insert("state_key".to_owned(), "k".to_owned().into());
        assert!(matches!(deliver(other).await, Err(Error::Forbidden(_))));

        let sign = |change: &dyn Fn(&mut Value)| {
            let mut event = serde_json::to_value(&made.json).unwrap();
            for field in ["hashes", "signatures"] {
                event.as_object_mut().unwrap().remove(field);
            }
            change(&mut event);
            w.remote.sign(&here, event)
        };
        let malformed: [&dyn Fn(&mut Value); 6] = [
            &|event| event["prev_events"] = json!([]),
            &|event| event["prev_events"] = json!(vec!["$x"; 21]),
            &|event| event["auth_events"] = json!(vec!["$x"; 11]),
            &|event| event["depth"] = json!(-1),
            &|event| event["state_key"] = json!("k".repeat(256)),
            &|event| event["state_key"] = json!("\0"),
        ];
        for (n, change) in malformed.into_iter().enumerate() {
            assert!(deliver(sign(change)).await.is_err(), "case {n}");
        }
        // A second beginning.
        let second = sign(&|event| {
            event["type"] = json!("m.room.create");
            event["prev_events"] = json!([]);
            event["auth_events"] = json!([]);
            event["content"] = json!({ "creator": ROB });
        });
        assert!(deliver(second).await.is_err());
        assert_eq!(w.topic().await, "first");
        w
    })
    .await;
}

/// The later of two topics by equals wins on every server, whichever came first; sync says which.
#[tokio::test]
async fn of_two_topics_the_same_one_wins_everywhere() {
    each(|w| async move {
        for (ts, wins) in [(NOW - 1_000, false), (NOW + 1_000, true)] {
            let fork = w.here().await;
            let ours = w
                .put(DAVE, "state/m.room.topic", json!({ "topic": format!("ours {wins}") }))
                .await;
            let since = w.sync(ALICE, None, "use_state_after=true").await;
            let theirs = w.remote.make(&fork, &topic(BOB, "theirs", ts));
            w.accepted(&theirs).await;
            let winner = if wins { &theirs.id } else { &ours };
            assert_eq!(w.topic().await, if wins { "theirs" } else { "ours false" });
            assert_eq!(w.ends().await, 2);

            let after = w.sync(ALICE, Some(&since), "use_state_after=true").await;
            let joined = &after["rooms"]["join"][&w.room];
            assert_eq!(event_ids(&joined["timeline"]), std::slice::from_ref(&theirs.id));
            let expected: Vec<String> = wins.then(|| theirs.id.clone()).into_iter().collect();
            assert_eq!(event_ids(&joined["state_after"]), expected);
            let first = w.sync(ALICE, None, "use_state_after=true").await;
            let all = event_ids(&first["rooms"]["join"][&w.room]["state_after"]);
            assert!(all.contains(winner) && !all.contains(if wins { &ours } else { &theirs.id }));
            w.say(ALICE, &format!("merge{ts}")).await;
            assert_eq!(w.ends().await, 1);
            assert_eq!(w.topic().await, if wins { "theirs" } else { "ours false" });
        }
        w
    })
    .await;
}

/// A ban elsewhere takes back what the banned user did here meanwhile: no event of the timeline says so, the state does.
#[tokio::test]
async fn a_resolution_that_brings_an_old_event_back_is_told_to_clients() {
    each(|w| async move {
        let old = w.remote.held(&w.server, "m.room.topic", "").await.unwrap();
        let fork = w.here().await;
        let kicked_from = w.sync(EVE, None, "").await;
        w.put(DAVE, "state/m.room.topic", json!({ "topic": "dave's" })).await;
        w.post(DAVE, "kick", json!({ "user_id": EVE })).await;
        let eve_out = w.sync(EVE, Some(&kicked_from), "").await;
        assert!(!eve_out["rooms"]["leave"][&w.room].is_null());
        assert_eq!(w.membership(EVE).await, Membership::Leave);
        let classic = w.sync(ALICE, None, "").await;
        let modern = w.sync(ALICE, None, "use_state_after=true").await;

        let banned = w.remote.make(&fork, &ban(ROB, DAVE));
        w.accepted(&banned).await;
        assert_eq!(w.topic().await, "first");
        assert_eq!(
            (w.membership(DAVE).await, w.membership(EVE).await),
            (Membership::Ban, Membership::Join)
        );
        let state = w.remote.room(&w.server).await.state();
        assert_eq!((state.joined, state.reset_at), (4, state.latest));

        let eve_join = w.remote.held(&w.server, "m.room.member", EVE).await.unwrap();
        let returned = [old.event_id.to_string(), eve_join.event_id.to_string()];
        let after = w.sync(ALICE, Some(&modern), "use_state_after=true").await;
        let joined = &after["rooms"]["join"][&w.room];
        let mut told = event_ids(&joined["state_after"]);
        let mut expected: Vec<String> = returned.iter().cloned().chain([banned.id.clone()]).collect();
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
        assert_eq!(joined["summary"]["m.joined_member_count"], 4);
        let after = w.sync(ALICE, Some(&classic), "").await;
        let mut told = event_ids(&after["rooms"]["join"][&w.room]["state"]);
        let mut expected = returned.to_vec();
        told.sort();
        expected.sort();
        assert_eq!(told, expected);

        // Who was put out and never was is in the room again, with everything.
        let back = w.sync(EVE, Some(&eve_out), "use_state_after=true").await;
        let joined = &back["rooms"]["join"][&w.room];
        assert_eq!(joined["timeline"]["limited"], true, "{back}");
        let state = event_ids(&joined["state_after"]);
        assert!(state.contains(&old.event_id.to_string()) && state.contains(&banned.id));
        w.say(EVE, "back").await;
        assert_eq!(w.ends().await, 1);
        // And is notified again; who is out is not.
        w.say(ALICE, "welcome").await;
        let back = w.sync(EVE, Some(&back), "").await;
        let counts = &back["rooms"]["join"][&w.room]["unread_notifications"];
        assert_eq!(counts["notification_count"], 1, "{back}");
        let first = w.sync(EVE, None, "").await;
        let counts = &first["rooms"]["join"][&w.room]["unread_notifications"];
        assert_eq!(counts["notification_count"], 1, "{first}");
        let here = w.sync(DAVE, None, "").await;
        assert!(here["rooms"]["join"][&w.room].is_null());

        // The state at any time is what it was then.
        let then = w
            .get(ALICE, &format!("members?at={}", modern["next_batch"].as_str().unwrap()))
            .await;
        let of = |user: &str| {
            let events = then["chunk"].as_array().unwrap();
            let event = events.iter().find(|event| event["state_key"] == user).unwrap();
            event["content"]["membership"].clone()
        };
        assert_eq!((of(EVE), of(DAVE)), (json!("leave"), json!("join")));
        w
    })
    .await;
}

/// Events of other servers that are committed together with a piece of state made here, and do not know of it.
#[tokio::test]
async fn state_that_shares_its_batch_with_late_events_stays() {
    each(|w| async move {
        let fork = w.here().await;
        let late = |kind, content| w.remote.make(&fork, &state(ROB, kind, "", content));
        let name = late("m.room.name", json!({ "name": "theirs" }));
        let piece = late("org.example.piece", json!({ "n": 1 }));
        let verified = |made: &Made| Pdu::verify(made.json.clone(), &w.remote.version, &w.remote.keys).unwrap();
        let content = serde_json::from_value(json!({ "topic": "ours" })).unwrap();
        let mut ours = Proposal::state(DAVE.try_into().unwrap(), "m.room.topic", "", content);
        // Later than the topic of before, so that it wins against that.
        ours.timestamp = Some(MilliSecondsSinceUnixEpoch(UInt::new_saturating(NOW + 1)));
        let (rooms, room) = (&w.server.homeserver.rooms, w.remote.room(&w.server).await);
        let (ours, name, piece) = tokio::join!(
            rooms.propose(&room, ours),
            rooms.receive(&room, verified(&name)),
            rooms.receive(&room, verified(&piece)),
        );
        let at = ours.unwrap().position.unwrap();
        // Each event of such a batch has three positions.
        assert_eq!(name.unwrap(), Received::Accepted(at + 3), "they are one batch");
        assert_eq!(piece.unwrap(), Received::Accepted(at + 6));
        assert_eq!((w.topic().await, w.ends().await), (json!("ours"), 3));
        assert_eq!(w.get(ALICE, "state/m.room.name").await["name"], "theirs");
        assert_eq!(w.get(ALICE, "state/org.example.piece").await["n"], 1);
        w.say(ALICE, "one").await;
        assert_eq!((w.topic().await, w.ends().await), (json!("ours"), 1));
        w
    })
    .await;
}

/// What a stranger may write and the database cannot keep costs nobody else in the batch their event.
#[tokio::test]
async fn hostile_names_do_not_take_their_batch_with_them() {
    each(|w| async move {
        let here = w.here().await;
        let changed = |said: &Said<'_>, change: &dyn Fn(&mut Value)| {
            let mut event = serde_json::to_value(w.remote.make(&here, said).json).unwrap();
            for field in ["hashes", "signatures"] {
                event.as_object_mut().unwrap().remove(field);
            }
            change(&mut event);
            w.remote.sign(&here, event)
        };
        let mut rng = StdRng::seed_from_u64(1);
        // Long, and not to be compressed.
        let long: String = (0..8_000).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
        let ids = ["$\0".to_owned(), format!("${long}")];
        let mut made = Vec::new();
        for id in &ids {
            for rel_type in ["m.thread", "m.reference"] {
                let relation = json!({ "rel_type": rel_type, "event_id": id });
                made.push(changed(&message(ROB, rel_type), &|event| {
                    event["content"]["m.relates_to"] = relation.clone();
                }));
            }
            let redaction = Said {
                kind: "m.room.redaction",
                ..message(ROB, "")
            };
            made.push(changed(&redaction, &|event| {
                event["redacts"] = json!(id);
                event["content"]["redacts"] = json!(id);
            }));
        }
        for rel_type in ["\0", long.as_str()] {
            let relation = json!({ "rel_type": rel_type, "event_id": here.ids[0] });
            made.push(changed(&message(ROB, "related"), &|event| {
                event["content"]["m.relates_to"] = relation.clone();
            }));
        }
        made.push(changed(&topic(ROB, "doubly authorised", NOW), &|event| {
            let twice = event["auth_events"][0].clone();
            event["auth_events"].as_array_mut().unwrap().push(twice);
        }));
        let good = w.remote.make(&here, &message(ROB, "harmless"));
        let (rooms, room) = (&w.server.homeserver.rooms, w.remote.room(&w.server).await);
        let verified = |made: &Made| Pdu::verify(made.json.clone(), &w.remote.version, &w.remote.keys).unwrap();
        let all = made.iter().chain([&good]);
        let received = futures_util::future::join_all(all.map(|made| rooms.receive(&room, verified(made)))).await;
        for (n, received) in received.iter().enumerate() {
            assert!(received.is_ok(), "{n}: {received:?}");
        }
        assert!(matches!(received.last(), Some(Ok(Received::Accepted(_)))));
        assert!(matches!(received[made.len() - 1], Ok(Received::Rejected(_))));
        assert!(w.get(ALICE, "messages?dir=b").await.to_string().contains("harmless"));
        // No event has such an id, so none can come after one or be authorised by it.
        for id in &ids {
            for field in ["prev_events", "auth_events"] {
                let made = changed(&message(ROB, "after"), &|event| event[field] = json!([id]));
                let refused = Pdu::verify(made.json, &w.remote.version, &w.remote.keys);
                assert!(matches!(refused, Err(Error::BadJson(_))), "{field}: {refused:?}");
            }
        }
        w
    })
    .await;
}

#[tokio::test]
async fn a_demotion_beats_what_the_demoted_did_with_their_power() {
    each(|w| async move {
        let fork = w.here().await;
        let levels = w.get(ALICE, "state/m.room.power_levels").await;
        // Here: dave, a moderator, gives the room a name. There: rob demotes dave.
        w.put(DAVE, "state/m.room.name", json!({ "name": "dave's" })).await;
        let mut theirs = levels;
        theirs["users"][DAVE] = json!(0);
        let demoted = w.remote.make(&fork, &state(ROB, "m.room.power_levels", "", theirs));
        w.accepted(&demoted).await;
        assert_eq!(w.get(ALICE, "state/m.room.power_levels").await["users"][DAVE], 0);
        let path = format!("{V3}/rooms/{}/state/m.room.name", w.room);
        w.server
            .get(&path, Some(&w.tokens[ALICE]))
            .await
            .is_error(404, "M_NOT_FOUND");
        let denied = w
            .server
            .json(Method::PUT, &path, Some(&w.tokens[DAVE]), &json!({ "name": "again" }))
            .await;
        denied.is_error(403, "M_FORBIDDEN");
        w
    })
    .await;
}

/// A room with more ends than an event can name is brought together in steps.
#[tokio::test]
async fn many_ends_are_named_twenty_at_a_time() {
    each(|w| async move {
        let fork = w.here().await;
        for n in 0..30 {
            let key = format!("k{n}");
            let said = state(ROB, "org.example.piece", &key, json!({ "n": n }));
            w.accepted(&w.remote.make(&fork, &said)).await;
        }
        assert_eq!(w.ends().await, 30);
        let own = w.say(ALICE, "one").await;
        let row = w.server.homeserver.store.event(&own).await.unwrap().unwrap();
        let event: Value = serde_json::from_str(&row.json).unwrap();
        assert_eq!(event["prev_events"].as_array().unwrap().len(), 20);
        assert_eq!(w.ends().await, 11);
        w.say(ALICE, "two").await;
        assert_eq!(w.ends().await, 1);
        for n in 0..30 {
            let piece = w.get(ALICE, &format!("state/org.example.piece/k{n}")).await;
            assert_eq!(piece["n"], n);
        }
        w
    })
    .await;
}

#[tokio::test]
async fn redactions_of_other_servers_wait_for_what_they_redact_and_need_the_right() {
    each(|w| async move {
        let said = w.say(EVE, "to-be-redacted").await;
        let redaction = |sender: &'static str, target: &str| {
            let mut content = json!({});
            let mut event = Said {
                kind: "m.room.redaction",
                ..message(sender, "")
            };
            if w.remote.version != RoomVersionId::V10 {
                content["redacts"] = json!(target);
            }
            event.content = content;
            (event, target.to_owned())
        };
        let make = |on: &Point, (said, target): (Said<'_>, String)| {
            let made = w.remote.make(on, &said);
            if w.remote.version != RoomVersionId::V10 {
                return made;
            }
            let mut event = serde_json::to_value(&made.json).unwrap();
            for field in ["hashes", "signatures"] {
                event.as_object_mut().unwrap().remove(field);
            }
            event["redacts"] = json!(target);
            w.remote.sign(on, event)
        };
        let nobody = "@nobody:remote.example";
        w.remote.add(&w.server, &join(nobody)).await;
        let powerless = make(&w.here().await, redaction("@nobody:remote.example", &said));
        assert!(matches!(w.deliver(&powerless).await, Received::SoftFailed(_)));
        let read = w.get(ALICE, "messages?dir=b").await.to_string();
        assert!(read.contains("to-be-redacted") && !read.contains(&powerless.id));
        let allowed = make(&w.here().await, redaction(ROB, &said));
        w.accepted(&allowed).await;
        let read = w.get(ALICE, "messages?dir=b").await.to_string();
        assert!(!read.contains("to-be-redacted") && read.contains(&allowed.id));

        let here = w.here().await;
        let late = w.remote.make(&here, &message(BOB, "comes later"));
        let early = make(&here, redaction(ROB, &late.id));
        assert!(matches!(w.deliver(&early).await, Received::SoftFailed(_)));
        w.accepted(&late).await;
        assert!(!w.get(ALICE, "messages?dir=b").await.to_string().contains("comes later"));
        w
    })
    .await;
}

#[tokio::test]
async fn forks_survive_a_restart() {
    testkit::database::each(|db| async move {
        let w = World::new(&db, &RoomVersionId::V12).await;
        let fork = w.here().await;
        w.put(DAVE, "state/m.room.topic", json!({ "topic": "dave's" })).await;
        let since = w.sync(ALICE, None, "").await;
        w.accepted(&w.remote.make(&fork, &ban(ROB, DAVE))).await;
        let (before, ends) = (w.here().await, w.ends().await);
        let (remote, tokens, room) = (w.remote.clone(), w.tokens.clone(), w.room.clone());
        w.server.stop().await;
        let server = Server::start_with(&db, |config| config.rate_limits.enabled = false).await;
        let w = World {
            server,
            remote,
            room,
            tokens,
        };
        assert_eq!((w.here().await.state, w.ends().await), (before.state, ends));
        let state = w.remote.room(&w.server).await.state();
        assert_eq!(state.reset_at, state.latest);
        let told = w.sync(ALICE, Some(&since), "").await;
        assert_eq!(event_ids(&told["rooms"]["join"][&w.room]["state"]).len(), 1);
        assert_eq!(w.topic().await, "first");
        w.say(ALICE, "on").await;
        assert_eq!((w.ends().await, w.topic().await), (1, json!("first")));
        w.server.stop().await;
    })
    .await;
}

/// Events that two servers' users make without seeing each other's, in a graph that chance makes.
fn random_events(remote: &Remote, root: &Point, rng: &mut StdRng) -> (Vec<Made>, Made) {
    let actors = [ROB, BOB];
    let mut made: Vec<Made> = Vec::new();
    let mut heads: Vec<Point> = vec![root.clone(); 3];
    for n in 0..24_u64 {
        let at = rng.random_range(0..heads.len());
        let on = heads[at].clone();
        let actor = actors[rng.random_range(0..actors.len())];
        let ts = NOW + rng.random_range(0..50);
        let content = match rng.random_range(0..6) {
            0 => topic(actor, &format!("topic {n}"), ts),
            1 => Said {
                ts,
                ..ban(actor, [DAVE, EVE, BOB][rng.random_range(0..3)])
            },
            2 => Said {
                ts,
                ..state(actor, "m.room.member", EVE, json!({ "membership": "leave" }))
            },
            3 => {
                let level = [0, 50, 100][rng.random_range(0..3)];
                let mut users = json!({ ROB: 100, BOB: level, DAVE: 50 });
                if remote.version != RoomVersionId::V12 {
                    users[ALICE] = json!(100);
                }
                let needed = [0, 50][rng.random_range(0..2)];
                let levels = json!({ "users": users, "events": { "m.room.topic": needed } });
                Said {
                    ts,
                    ..state(actor, "m.room.power_levels", "", levels)
                }
            }
            4 => {
                let rule = ["public", "invite"][rng.random_range(0..2)];
                Said {
                    ts,
                    ..state(actor, "m.room.join_rules", "", json!({ "join_rule": rule }))
                }
            }
            _ => Said {
                ts,
                ..state(actor, "m.room.name", "", json!({ "name": format!("name {n}") }))
            },
        };
        let next = remote.make(&on, &content);
        heads[at] = next.point.clone();
        made.push(next);
    }
    let mut ids: Vec<String> = heads.iter().flat_map(|head| head.ids.clone()).collect();
    ids.sort();
    ids.dedup();
    let merge = Point {
        ids,
        state: root.state.clone(),
        depth: heads.iter().map(|head| head.depth).max().unwrap_or(0),
    };
    let last = remote.make(&merge, &message(ROB, "the end"));
    (made, last)
}

/// Whatever the order in which a set of events arrives, predecessors first: the state they resolve to is one.
#[tokio::test]
async fn the_order_of_arrival_does_not_change_the_state() {
    const SETS: u64 = 6;
    const ORDERS: u64 = 4;
    for version in VERSIONS {
        let original = TestDatabase::sqlite();
        let db = TestDatabaseUrl {
            url: original.url.clone(),
            dir: original.dir.path().to_owned(),
        };
        let w = World::new(&db, &version).await;
        let root = w.here().await;
        let remote = w.remote.clone();
        w.server.stop().await;
        for set in 0..SETS {
            let mut rng = StdRng::seed_from_u64(set);
            let (events, last) = random_events(&remote, &root, &mut rng);
            let mut outcome: Option<(BTreeMap<_, _>, bool)> = None;
            for order in 0..ORDERS {
                let copy = TestDatabase::sqlite();
                for file in std::fs::read_dir(&db.dir).unwrap().map(Result::unwrap) {
                    if file.file_type().unwrap().is_file() {
                        std::fs::copy(file.path(), copy.dir.path().join(file.file_name())).unwrap();
                    }
                }
                let copied = TestDatabaseUrl {
                    url: copy.url.clone(),
                    dir: copy.dir.path().to_owned(),
                };
                let server = Server::start_with(&copied, |config| config.rate_limits.enabled = false).await;
                let mut waiting = events.clone();
                waiting.shuffle(&mut StdRng::seed_from_u64(order));
                while !waiting.is_empty() {
                    let mut later = Vec::new();
                    for made in waiting {
                        if matches!(remote.deliver(&server, &made).await.unwrap(), Received::Missing { .. }) {
                            later.push(made);
                        }
                    }
                    waiting = later;
                }
                let received = remote.deliver(&server, &last).await.unwrap();
                let accepted = matches!(received, Received::Accepted(_));
                // What is soft-failed, and so the room's other ends, is the order's to decide; the state is not.
                let group = server
                    .homeserver
                    .store
                    .event(&last.id)
                    .await
                    .unwrap()
                    .unwrap()
                    .state_group;
                let rows = server.homeserver.store.state(group).await.unwrap();
                let state: BTreeMap<_, _> = rows
                    .into_iter()
                    .map(|row| ((row.kind, row.state_key), row.event_id))
                    .collect();
                match &outcome {
                    None => outcome = Some((state, accepted)),
                    Some(expected) => {
                        assert_eq!(
                            &(state, accepted),
                            expected,
                            "version {version}, set {set}, order {order}"
                        );
                    }
                }
                server.stop().await;
            }
        }
    }
}
