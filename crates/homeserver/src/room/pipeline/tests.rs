//! The authorisation rules of each room version, as tables after the specification's text.
//! Spec: rooms/v10, rooms/v11, rooms/v12, "Authorisation rules".

use ruma::{RoomVersionId, events::TimelineEventType, state_res::auth_types_for_event};
use serde_json::{Value, json};
use storage::events::EventRow;

use super::*;
use crate::room::event::redacts_in_content;

const ALL: [RoomVersionId; 3] = [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];
const UP_TO_11: [RoomVersionId; 2] = [RoomVersionId::V10, RoomVersionId::V11];
const ONLY_12: [RoomVersionId; 1] = [RoomVersionId::V12];

const CREATOR: &str = "@creator:a.example";
const CO: &str = "@co:a.example";
const MOD: &str = "@mod:b.example";
const USER: &str = "@user:b.example";
const OTHER: &str = "@other:c.example";
const NEW: &str = "@new:b.example";
const BANNED: &str = "@banned:b.example";
const INVITED: &str = "@invited:b.example";
const KNOCKING: &str = "@knocking:b.example";

/// A room at one moment.
struct Scene {
    version: RoomVersionId,
    state: RoomState,
    events: Vec<Arc<Event>>,
    next: i64,
}

fn room_id(version: &RoomVersionId) -> &'static str {
    match *version {
        RoomVersionId::V12 => "!create",
        _ => "!r:a.example",
    }
}

impl Scene {
    /// A room with the usual people; `join_rule` and `levels` as given.
    fn new(version: &RoomVersionId, join_rule: &str, levels: Value) -> Self {
        let id = room_id(version).try_into().unwrap();
        let mut scene = Self {
            version: version.clone(),
            state: RoomState::before_creation(id, 1, version.clone()).unwrap(),
            events: Vec::new(),
            next: 1,
        };
        let mut create = json!({ "room_version": version });
        match *version {
            RoomVersionId::V10 => create["creator"] = json!(CREATOR),
            RoomVersionId::V12 => create["additional_creators"] = json!([CO]),
            _ => {}
        }
        scene.put(CREATOR, "m.room.create", "", create);
        for user in [CREATOR, CO, MOD, USER, OTHER] {
            scene.put(user, "m.room.member", user, json!({ "membership": "join" }));
        }
        scene.put(CREATOR, "m.room.power_levels", "", levels);
        scene.put(CREATOR, "m.room.join_rules", "", json!({ "join_rule": join_rule }));
        for (user, membership) in [(BANNED, "ban"), (INVITED, "invite")] {
            scene.put(CREATOR, "m.room.member", user, json!({ "membership": membership }));
        }
        scene.put(KNOCKING, "m.room.member", KNOCKING, json!({ "membership": "knock" }));
        scene
    }

    fn put(&mut self, sender: &str, kind: &str, key: &str, content: Value) {
        let event = self.event(&json!({ "sender": sender, "type": kind, "state_key": key, "content": content }));
        let event = Arc::new(event);
        self.next += 1;
        self.state.apply(&event, Some(Arc::default()));
        self.events.retain(|other| other.state_type() != event.state_type());
        self.events.push(event);
    }

    /// Completes an event that says who, what and where, unless it says more.
    fn complete(&self, said: &Value) -> Value {
        let kind = said["type"].as_str().unwrap();
        let is_create = kind == "m.room.create";
        let content = serde_json::value::to_raw_value(&said["content"]).unwrap();
        let sender = ruma::OwnedUserId::try_from(said["sender"].as_str().unwrap()).unwrap();
        let types = auth_types_for_event(
            &TimelineEventType::from(kind),
            &sender,
            said["state_key"].as_str(),
            &content,
            &self.state.rules.authorization,
        );
        let auth: Vec<&str> = types
            .unwrap_or_default()
            .iter()
            .filter_map(|(kind, key)| Some(self.state.map.get(kind, key)?.event_id.as_str()))
            .collect();
        let prev: Vec<String> = self
            .state
            .extremities()
            .iter()
            .map(|end| end.event_id.to_string())
            .collect();
        let mut event = json!({
            "auth_events": auth, "prev_events": prev, "depth": self.next, "origin_server_ts": self.next,
            "hashes": {}, "signatures": {},
        });
        if !(is_create && self.version == RoomVersionId::V12) {
            event["room_id"] = json!(room_id(&self.version));
        }
        for (field, value) in said.as_object().unwrap() {
            event[field] = value.clone();
        }
        event
    }

    fn event(&self, said: &Value) -> Event {
        let json = self.complete(said);
        let kind = json["type"].as_str().unwrap().to_owned();
        let event_id = match (kind.as_str(), self.next) {
            ("m.room.create", 1) => "$create".to_owned(),
            _ => format!("${}", self.next),
        };
        let row = EventRow {
            event_nid: self.next,
            room_nid: 1,
            event_id,
            depth: self.next,
            kind,
            sender: json["sender"].as_str().unwrap().to_owned(),
            state_key: json["state_key"].as_str().map(str::to_owned),
            replaces: None,
            state_group: self.next,
            soft_failed: false,
            redacted_by: None,
            device_id: None,
            txn_id: None,
            room_group: None,
            rejected: false,
            json: json.to_string(),
        };
        Event::from_row(row, &self.state.room_id).unwrap()
    }

    fn judge(&self, said: &Value) -> Verdict {
        let event = self.event(said);
        let json: CanonicalJsonObject = serde_json::from_value(self.complete(said)).unwrap();
        let mut auth: Vec<Arc<Event>> = event
            .auth_events
            .iter()
            .filter_map(|id| self.events.iter().find(|event| event.event_id == *id).cloned())
            .collect();
        if self.version == RoomVersionId::V12 {
            auth.push(self.events[0].clone());
        }
        let context = Context {
            room: &self.state,
            auth_events: &auth,
            state_before: None,
            current: &self.events,
        };
        accept(&event, &json, &context)
    }
}

/// What may be put into a room as it usually is.
fn usual_levels(version: &RoomVersionId) -> Value {
    let mut users = json!({ MOD: 50 });
    if *version != RoomVersionId::V12 {
        users[CREATOR] = json!(100);
        users[CO] = json!(100);
    }
    json!({ "users": users, "events": { "org.example.high": 75 }, "invite": 25 })
}

#[track_caller]
fn check(rule: &str, versions: &[RoomVersionId], join_rule: &str, said: &Value, allowed: bool) {
    for version in versions {
        let scene = Scene::new(version, join_rule, usual_levels(version));
        let verdict = scene.judge(said);
        let accepted = verdict == Verdict::Accepted;
        assert_eq!(accepted, allowed, "rule {rule}, version {version}: {said}: {verdict:?}");
    }
}

fn member(sender: &str, target: &str, membership: &str) -> Value {
    json!({
        "sender": sender, "type": "m.room.member", "state_key": target, "content": { "membership": membership },
    })
}

fn piece(sender: &str, kind: &str, key: &str, content: Value) -> Value {
    json!({ "sender": sender, "type": kind, "state_key": key, "content": content })
}

#[test]
fn create_events() {
    let create = |content: Value| {
        json!({
            "sender": CREATOR, "type": "m.room.create", "state_key": "", "content": content, "prev_events": [],
            "auth_events": [],
        })
    };
    let with = |mut event: Value, field: &str, value: Value| {
        event[field] = value;
        event
    };
    check(
        "1.1",
        &ALL,
        "public",
        &with(create(json!({ "creator": CREATOR })), "prev_events", json!(["$x"])),
        false,
    );
    check(
        "1.2",
        &UP_TO_11,
        "public",
        &with(create(json!({ "creator": CREATOR })), "sender", json!(USER)),
        false,
    );
    check(
        "1.2",
        &ONLY_12,
        "public",
        &with(create(json!({})), "room_id", json!("!create")),
        false,
    );
    check("1.4", &[RoomVersionId::V10], "public", &create(json!({})), false);
    check("1.4", &[RoomVersionId::V11], "public", &create(json!({})), true);
    for creators in [
        json!("@a:b"),
        json!([1]),
        json!(["nobody"]),
        json!(null),
        json!({ "@a:b": 1 }),
    ] {
        let content = json!({ "creator": CREATOR, "additional_creators": creators });
        check("1.4", &ONLY_12, "public", &create(content.clone()), false);
        check("1.4", &UP_TO_11, "public", &create(content), true);
    }
    check(
        "1.5",
        &ONLY_12,
        "public",
        &create(json!({ "additional_creators": [CO, "@x:y.example"] })),
        true,
    );
}

#[test]
fn auth_events() {
    let message = |auth: Value| {
        json!({
            "sender": USER, "type": "m.room.message", "content": {}, "auth_events": auth,
        })
    };
    // $create, then members from $2 on, power levels $7, join rules $8.
    check("3", &UP_TO_11, "public", &message(json!(["$create", "$5", "$7"])), true);
    check("3", &ONLY_12, "public", &message(json!(["$5", "$7"])), true);
    check(
        "3.1",
        &UP_TO_11,
        "public",
        &message(json!(["$create", "$5", "$5"])),
        false,
    );
    check(
        "3.2",
        &UP_TO_11,
        "public",
        &message(json!(["$create", "$5", "$7", "$8"])),
        false,
    );
    check("3.2", &ONLY_12, "public", &message(json!(["$5", "$7", "$8"])), false);
    check(
        "3.2",
        &ONLY_12,
        "public",
        &message(json!(["$create", "$5", "$7"])),
        false,
    );
    check("3.4", &UP_TO_11, "public", &message(json!(["$5", "$7"])), false);
    check("3", &ALL, "public", &message(json!(["$unknown"])), false);
    // Without its own membership among them they do not authorise it.
    check("6", &UP_TO_11, "public", &message(json!(["$create", "$7"])), false);
    check("6", &ONLY_12, "public", &message(json!(["$7"])), false);
}

#[test]
fn joins() {
    for (rule, user, join_rule, allowed) in [
        ("join.6", NEW, "public", true),
        ("join.7", NEW, "invite", false),
        ("join.7", NEW, "private", false),
        ("join.7", NEW, "org.example.unknown", false),
        ("join.4", INVITED, "invite", true),
        ("join.4", INVITED, "knock", true),
        ("join.4", KNOCKING, "knock", false),
        ("join.4", USER, "invite", true),
        ("join.3", BANNED, "public", false),
        ("join.5.1", INVITED, "restricted", true),
        ("join.5.1", INVITED, "knock_restricted", true),
        ("join.5.2", NEW, "restricted", false),
        ("join.5.2", NEW, "knock_restricted", false),
    ] {
        check(rule, &ALL, join_rule, &member(user, user, "join"), allowed);
    }
    check("join.2", &ALL, "public", &member(USER, NEW, "join"), false);
    let by = |authoriser: &str| {
        let mut event = member(NEW, NEW, "join");
        event["content"]["join_authorised_via_users_server"] = json!(authoriser);
        event
    };
    for join_rule in ["restricted", "knock_restricted"] {
        check("join.5.3", &ALL, join_rule, &by(MOD), true);
        check("join.5.3", &ALL, join_rule, &by(CREATOR), true);
        check("join.5.2", &ALL, join_rule, &by(USER), false);
        check("join.5.2", &ALL, join_rule, &by(INVITED), false);
        check("join.5.2", &ALL, join_rule, &by("nobody"), false);
    }
    check("join.4", &ALL, "invite", &by(MOD), false);
    check(
        "member.1",
        &ALL,
        "public",
        &json!({ "sender": NEW, "type": "m.room.member", "content": { "membership": "join" } }),
        false,
    );
    check(
        "member.1",
        &ALL,
        "public",
        &piece(NEW, "m.room.member", NEW, json!({})),
        false,
    );
    check("member.8", &ALL, "public", &member(NEW, NEW, "hover"), false);
}

#[test]
fn invitations_and_knocks() {
    for (rule, sender, target, allowed) in [
        ("invite.4", MOD, NEW, true),
        ("invite.4", CREATOR, NEW, true),
        ("invite.5", USER, NEW, false),
        ("invite.2", INVITED, NEW, false),
        ("invite.3", MOD, USER, false),
        ("invite.3", MOD, BANNED, false),
        ("invite.4", MOD, KNOCKING, true),
    ] {
        check(rule, &ALL, "invite", &member(sender, target, "invite"), allowed);
    }
    for (rule, user, join_rule, allowed) in [
        ("knock.3", NEW, "knock", true),
        ("knock.3", NEW, "knock_restricted", true),
        ("knock.1", NEW, "invite", false),
        ("knock.1", NEW, "public", false),
        ("knock.1", NEW, "restricted", false),
        ("knock.4", BANNED, "knock", false),
        ("knock.4", INVITED, "knock", false),
        ("knock.4", USER, "knock", false),
    ] {
        check(rule, &ALL, join_rule, &member(user, user, "knock"), allowed);
    }
    check("knock.2", &ALL, "knock", &member(USER, NEW, "knock"), false);
}

#[test]
fn third_party_invitations() {
    let token = |key: &str| {
        piece(
            MOD,
            "m.room.third_party_invite",
            key,
            json!({ "public_key": "", "display_name": "n" }),
        )
    };
    check("7.1", &ALL, "invite", &token("t"), true);
    check(
        "7.1",
        &ALL,
        "invite",
        &{
            let mut event = token("t");
            event["sender"] = json!(USER);
            event
        },
        false,
    );
    let invite = |third: Value| {
        let mut event = member(MOD, NEW, "invite");
        event["content"]["third_party_invite"] = third;
        event
    };
    for third in [
        json!({}),
        json!({ "signed": {} }),
        json!({ "signed": { "mxid": NEW } }),
        json!({ "signed": { "mxid": NEW, "token": "t" } }),
        json!({ "signed": { "mxid": USER, "token": "t", "signatures": {} } }),
        json!("t"),
    ] {
        check("invite.1", &ALL, "invite", &invite(third), false);
    }
}

#[test]
fn leaving_kicks_and_bans() {
    for (rule, sender, target, membership, allowed) in [
        ("leave.1", USER, USER, "leave", true),
        ("leave.1", INVITED, INVITED, "leave", true),
        ("leave.1", KNOCKING, KNOCKING, "leave", true),
        ("leave.1", NEW, NEW, "leave", false),
        ("leave.1", BANNED, BANNED, "leave", false),
        ("leave.2", NEW, USER, "leave", false),
        ("leave.3", USER, BANNED, "leave", false),
        ("leave.4", MOD, BANNED, "leave", true),
        ("leave.4", MOD, USER, "leave", true),
        ("leave.5", USER, OTHER, "leave", false),
        ("leave.5", MOD, CREATOR, "leave", false),
        ("ban.1", INVITED, USER, "ban", false),
        ("ban.2", MOD, USER, "ban", true),
        ("ban.2", MOD, NEW, "ban", true),
        ("ban.3", USER, OTHER, "ban", false),
        ("ban.3", MOD, CREATOR, "ban", false),
        ("ban.3", MOD, CO, "ban", false),
        ("ban.3", CREATOR, CO, "ban", false),
        ("ban.3", MOD, MOD, "ban", false),
    ] {
        check(rule, &ALL, "public", &member(sender, target, membership), allowed);
    }
}

#[test]
fn what_power_is_needed_for() {
    let message = |sender: &str, kind: &str| json!({ "sender": sender, "type": kind, "content": {} });
    check("6", &ALL, "public", &message(NEW, "m.room.message"), false);
    check("6", &ALL, "public", &message(INVITED, "m.room.message"), false);
    check("8", &ALL, "public", &message(USER, "m.room.message"), true);
    check("8", &ALL, "public", &message(MOD, "org.example.high"), false);
    check("8", &ALL, "public", &message(CREATOR, "org.example.high"), true);
    check("8", &ALL, "public", &piece(USER, "m.room.topic", "", json!({})), false);
    check("8", &ALL, "public", &piece(MOD, "m.room.topic", "", json!({})), true);
    check(
        "9",
        &ALL,
        "public",
        &piece(MOD, "org.example.own", USER, json!({})),
        false,
    );
    check(
        "9",
        &ALL,
        "public",
        &piece(MOD, "org.example.own", MOD, json!({})),
        true,
    );
    check(
        "9",
        &ALL,
        "public",
        &piece(MOD, "org.example.own", "@", json!({})),
        false,
    );
    // Redactions need no redact level to be events: that is asked when they are applied.
    check("11", &ALL, "public", &message(USER, "m.room.redaction"), true);
}

#[test]
fn power_levels() {
    let levels = |version: &RoomVersionId, change: &dyn Fn(&mut Value)| {
        let mut content = usual_levels(version);
        change(&mut content);
        content
    };
    let check = |rule: &str, versions: &[RoomVersionId], sender: &str, change: &dyn Fn(&mut Value), allowed: bool| {
        for version in versions {
            let content = levels(version, change);
            check(
                rule,
                std::slice::from_ref(version),
                "public",
                &piece(sender, "m.room.power_levels", "", content),
                allowed,
            );
        }
    };
    for field in [
        "users_default",
        "events_default",
        "state_default",
        "ban",
        "redact",
        "kick",
        "invite",
    ] {
        for value in [json!("10"), json!(null), json!([1]), json!({}), json!(true)] {
            check("10.1", &ALL, CREATOR, &|content| content[field] = value.clone(), false);
        }
        check("10.6", &ALL, CREATOR, &|content| content[field] = json!(10), true);
        check("10.6.2", &ALL, MOD, &|content| content[field] = json!(51), false);
    }
    for field in ["events", "notifications"] {
        for value in [
            json!("x"),
            json!([]),
            json!({ "k": "1" }),
            json!({ "k": null }),
            json!(null),
        ] {
            check("10.2", &ALL, CREATOR, &|content| content[field] = value.clone(), false);
        }
        check("10.8", &ALL, MOD, &|content| content[field]["k"] = json!(50), true);
        check("10.8", &ALL, MOD, &|content| content[field]["k"] = json!(51), false);
    }
    for value in [json!("x"), json!({ "nobody": 1 }), json!({ USER: "1" }), json!(null)] {
        check(
            "10.3",
            &ALL,
            CREATOR,
            &|content| content["users"] = value.clone(),
            false,
        );
    }
    for creator in [CREATOR, CO] {
        check(
            "10.4",
            &ONLY_12,
            CREATOR,
            &|content| content["users"][creator] = json!(100),
            false,
        );
        check(
            "10.4",
            &UP_TO_11,
            CREATOR,
            &|content| content["users"][creator] = json!(100),
            true,
        );
    }
    check("10.7", &ALL, MOD, &|content| content["events"] = json!({}), false);
    check("10.9", &ALL, MOD, &|content| content["users"][USER] = json!(50), true);
    check(
        "10.9",
        &ALL,
        MOD,
        &|content| drop(content["users"].as_object_mut().unwrap().remove(MOD)),
        true,
    );
    check("10.10", &ALL, MOD, &|content| content["users"][USER] = json!(51), false);
    check(
        "10.9",
        &UP_TO_11,
        MOD,
        &|content| content["users"][CREATOR] = json!(50),
        false,
    );
    check("8", &ALL, USER, &|content| content["ban"] = json!(10), false);
    // Infinite power is more than any number.
    let most = json!(9_007_199_254_740_991_i64);
    check(
        "10.10",
        &ONLY_12,
        CO,
        &|content| content["users"][USER] = most.clone(),
        true,
    );
    check(
        "10.10",
        &UP_TO_11,
        CO,
        &|content| content["users"][USER] = most.clone(),
        false,
    );
}

#[test]
fn creators_of_version_12_have_power_that_nobody_gave() {
    for version in ALL {
        let scene = Scene::new(&version, "public", json!({ "state_default": 100, "users": {} }));
        for creator in [CREATOR, CO] {
            let verdict = scene.judge(&piece(creator, "m.room.topic", "", json!({})));
            assert_eq!(
                verdict == Verdict::Accepted,
                version == RoomVersionId::V12,
                "{version}: {verdict:?}"
            );
        }
    }
}

/// Spec: client-server API, "Size limits": counted in bytes of UTF-8, the whole in canonical JSON with signatures.
#[test]
fn sizes() {
    for version in ALL {
        let scene = Scene::new(&version, "public", usual_levels(&version));
        let padded = |bytes: usize| {
            let mut event = json!({ "sender": USER, "type": "m.room.message", "content": { "body": "" } });
            let without = scene.complete(&event).to_string().len();
            event["content"]["body"] = json!("x".repeat(bytes - without));
            assert_eq!(scene.complete(&event).to_string().len(), bytes);
            event
        };
        assert_eq!(scene.judge(&padded(65_536)), Verdict::Accepted);
        assert!(matches!(scene.judge(&padded(65_537)), Verdict::TooLarge(_)));
        // 85 characters of three bytes are 255.
        for (length, fits) in [(85, true), (86, false)] {
            let name = "\u{20ac}".repeat(length);
            for event in [
                json!({ "sender": USER, "type": name, "content": {} }),
                piece(MOD, "org.example.piece", &name, json!({})),
            ] {
                let verdict = scene.judge(&event);
                assert_eq!(verdict == Verdict::Accepted, fits, "{length}: {verdict:?}");
            }
        }
    }
}

/// Spec: rooms/v10 and rooms/v11, "Redactions": what each version keeps.
#[test]
fn redactions_keep_what_their_version_protects() {
    let event = |kind: &str, content: Value| {
        json!({
            "type": kind, "content": content, "sender": USER, "room_id": "!r:a.example", "event_id": "$e",
            "state_key": "", "origin": "b.example", "prev_state": [], "membership": "join", "hashes": {}, "signatures": {},
            "depth": 1, "prev_events": [], "auth_events": [], "origin_server_ts": 1, "unsigned": { "age": 1 },
            "redacts": "$x", "extra": 1,
        })
    };
    let kept = |version: &RoomVersionId, event: &Value| {
        let rules = version.rules().unwrap();
        let object: CanonicalJsonObject = serde_json::from_value(event.clone()).unwrap();
        serde_json::to_value(ruma::canonical_json::redact(object, &rules.redaction, None).unwrap()).unwrap()
    };
    let fields = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut top = vec![
        "auth_events",
        "content",
        "depth",
        "event_id",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "signatures",
        "state_key",
        "type",
    ];
    let found = kept(&RoomVersionId::V11, &event("m.room.message", json!({ "body": "x" })));
    assert_eq!(
        (fields(&found), found["content"].clone()),
        (top.iter().map(|f| (*f).to_owned()).collect(), json!({}))
    );
    top.extend(["origin", "prev_state", "membership"]);
    top.sort_unstable();
    let found = kept(&RoomVersionId::V10, &event("m.room.message", json!({ "body": "x" })));
    assert_eq!(fields(&found), top);

    let third = json!({ "signed": { "mxid": USER }, "display_name": "x" });
    let levels = json!({
        "ban": 1, "events": {}, "events_default": 1, "kick": 1, "redact": 1, "state_default": 1, "users": {},
        "users_default": 1, "invite": 1, "notifications": {},
    });
    let cases: [(&str, Value, &[&str], &[&str]); 8] = [
        (
            "m.room.member",
            json!({ "membership": "join", "join_authorised_via_users_server": USER, "displayname": "x",
                    "third_party_invite": third }),
            &["join_authorised_via_users_server", "membership"],
            &["join_authorised_via_users_server", "membership", "third_party_invite"],
        ),
        (
            "m.room.create",
            json!({ "creator": USER, "m.federate": true }),
            &["creator"],
            &["creator", "m.federate"],
        ),
        (
            "m.room.join_rules",
            json!({ "join_rule": "x", "allow": [], "y": 1 }),
            &["allow", "join_rule"],
            &["allow", "join_rule"],
        ),
        (
            "m.room.power_levels",
            levels,
            &[
                "ban",
                "events",
                "events_default",
                "kick",
                "redact",
                "state_default",
                "users",
                "users_default",
            ],
            &[
                "ban",
                "events",
                "events_default",
                "invite",
                "kick",
                "redact",
                "state_default",
                "users",
                "users_default",
            ],
        ),
        (
            "m.room.history_visibility",
            json!({ "history_visibility": "x", "y": 1 }),
            &["history_visibility"],
            &["history_visibility"],
        ),
        (
            "m.room.redaction",
            json!({ "redacts": "$x", "reason": "y" }),
            &[],
            &["redacts"],
        ),
        ("m.room.aliases", json!({ "aliases": [] }), &[], &[]),
        ("m.room.topic", json!({ "topic": "x" }), &[], &[]),
    ];
    for (kind, content, in_10, in_11) in cases {
        for (version, expected) in [
            (RoomVersionId::V10, in_10),
            (RoomVersionId::V11, in_11),
            (RoomVersionId::V12, in_11),
        ] {
            let found = kept(&version, &event(kind, content.clone()));
            assert_eq!(fields(&found["content"]), expected, "{kind} in {version}");
            if kind == "m.room.member" && version != RoomVersionId::V10 {
                assert_eq!(
                    found["content"]["third_party_invite"],
                    json!({ "signed": { "mxid": USER } })
                );
            }
        }
    }
    for version in ALL {
        let rules = version.rules().unwrap();
        assert_eq!(redacts_in_content(&rules), version != RoomVersionId::V10);
    }
}

/// Spec: appendices, "Canonical JSON": no floats, and integers that every implementation can hold.
#[test]
fn numbers_are_integers_of_53_bits() {
    for (text, valid) in [
        (r#"{"n":9007199254740991}"#, true),
        (r#"{"n":-9007199254740991}"#, true),
        (r#"{"n":9007199254740992}"#, false),
        (r#"{"n":-9007199254740992}"#, false),
        (r#"{"n":1.5}"#, false),
        (r#"{"n":1.0}"#, false),
        (r#"{"n":1e3}"#, false),
        (r#"{"n":[{"m":0.1}]}"#, false),
    ] {
        assert_eq!(
            serde_json::from_str::<CanonicalJsonObject>(text).is_ok(),
            valid,
            "{text}"
        );
    }
}
