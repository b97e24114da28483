//! TURN credentials, transports, OpenID, entry to the SFU, delayed events, ghosts.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use futures_util::future::BoxFuture;
use homeserver::calls::{MediaControl, MediaEvent, MediaPlane, PartingReason, media::SfuUrls};
use http::Method;
use serde_json::{Value, json};
use testkit::database::TestDatabaseUrl;
use tokio::sync::mpsc;

use crate::harness::Server;

const MEMBER: &str = "org.matrix.msc3401.call.member";

/// The media plane as the homeserver sees it, with participants set by the test.
#[derive(Default)]
struct Plane {
    opened: Mutex<HashSet<String>>,
    present: Mutex<HashSet<(String, String)>>,
    closed_allocations: Mutex<Vec<String>>,
    revoked: Mutex<Vec<(String, u64)>>,
}

impl MediaControl for Plane {
    fn open_room(&self, sfu_room: &str) {
        self.opened.lock().unwrap().insert(sfu_room.to_owned());
    }

    fn is_present(&self, sfu_room: &str, identity: &str) -> bool {
        self.present
            .lock()
            .unwrap()
            .contains(&(sfu_room.to_owned(), identity.to_owned()))
    }

    fn remove_participant<'a>(&'a self, sfu_room: &'a str, identity: &'a str) -> BoxFuture<'a, ()> {
        self.present
            .lock()
            .unwrap()
            .remove(&(sfu_room.to_owned(), identity.to_owned()));
        Box::pin(async {})
    }

    fn allocation_holders(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async { Vec::new() })
    }

    fn revoke_relay<'a>(&'a self, user_id: &'a str, until: u64) -> BoxFuture<'a, ()> {
        self.revoked.lock().unwrap().push((user_id.to_owned(), until));
        Box::pin(async {})
    }

    fn close_allocations<'a>(&'a self, user_id: &'a str) -> BoxFuture<'a, ()> {
        self.closed_allocations.lock().unwrap().push(user_id.to_owned());
        Box::pin(async {})
    }
}

struct Call {
    server: Server,
    plane: Arc<Plane>,
    events: mpsc::Sender<MediaEvent>,
    user: Value,
    room: String,
}

impl Call {
    async fn start(db: &TestDatabaseUrl) -> Self {
        Self::start_with(db, |_| {}).await
    }

    async fn start_with(db: &TestDatabaseUrl, change: impl FnOnce(&mut homeserver::Config)) -> Self {
        let server = Server::start_with(db, change).await;
        let plane = Arc::new(Plane::default());
        let events = server.homeserver.connect_media(MediaPlane {
            control: plane.clone(),
            turn_uris: vec!["turn:example.org:3478?transport=udp".to_owned()],
            sfu: Some(SfuUrls {
                service_url: "http://example.org/livekit/jwt".to_owned(),
                websocket_url: "ws://example.org/livekit/sfu".to_owned(),
            }),
        });
        let user = register(&server, "alice").await;
        let created = server
            .json(
                Method::POST,
                "/_matrix/client/v3/createRoom",
                token(&user),
                &json!({ "preset": "public_chat" }),
            )
            .await
            .ok();
        let room = created["room_id"].as_str().unwrap().to_owned();
        Self {
            server,
            plane,
            events,
            user,
            room,
        }
    }

    fn token(&self) -> Option<&str> {
        token(&self.user)
    }

    fn state_path(&self) -> String {
        let device = self.user["device_id"].as_str().unwrap();
        format!(
            "/_matrix/client/v3/rooms/{}/state/{MEMBER}/_@alice:example.org_{device}_m.call",
            self.room
        )
    }

    async fn openid(&self) -> Value {
        let path = "/_matrix/client/v3/user/@alice:example.org/openid/request_token";
        self.server
            .json(Method::POST, path, self.token(), &json!({}))
            .await
            .ok()
    }

    async fn enter(&self, more: Value) -> Value {
        let mut body = json!({
            "room": self.room, "openid_token": self.openid().await, "device_id": self.user["device_id"],
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.server
            .json(Method::POST, "/livekit/jwt/sfu/get", None, &body)
            .await
            .ok()
    }

    /// Where the participant is, by the token.
    fn whereabouts(&self, admission: &Value) -> (String, String) {
        let key = self.server.homeserver.calls.sfu_key();
        let claims = key
            .verify(admission["jwt"].as_str().unwrap(), self.server.clock.now_ms() / 1000)
            .unwrap();
        (claims.video.room, claims.identity)
    }

    async fn become_member(&self) {
        let content = json!({ "application": "m.call", "device_id": self.user["device_id"], "expires": 14_400_000 });
        self.server
            .json(Method::PUT, &self.state_path(), self.token(), &content)
            .await
            .ok();
    }

    /// Schedules a leave in eight seconds; answers its `delay_id`.
    async fn schedule_leave(&self) -> String {
        let schedule = format!("{}?org.matrix.msc4140.delay=8000", self.state_path());
        let answer = self
            .server
            .json(Method::PUT, &schedule, self.token(), &json!({}))
            .await
            .ok();
        answer["delay_id"].as_str().unwrap().to_owned()
    }

    async fn delayed_event(&self, delay_id: &str) -> Value {
        let path = format!("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}");
        self.server.get(&path, self.token()).await.ok()
    }

    async fn member_content(&self) -> Value {
        self.server.get(&self.state_path(), self.token()).await.ok()
    }

    /// Waits until the membership is `{}`.
    async fn until_left(&self) {
        tokio::time::timeout(std::time::Duration::from_secs(20), async {
            while self.member_content().await != json!({}) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("the member leaves the call");
    }
}

async fn register(server: &Server, name: &str) -> Value {
    let body = json!({ "username": name, "password": "correct horse", "auth": { "type": "m.login.dummy" } });
    server
        .json(Method::POST, "/_matrix/client/v3/register", None, &body)
        .await
        .ok()
}

fn token(user: &Value) -> Option<&str> {
    user["access_token"].as_str()
}

#[tokio::test]
async fn turn_credentials_are_what_the_relay_accepts() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        call.server
            .get("/_matrix/client/v3/voip/turnServer", None)
            .await
            .is_error(401, "M_MISSING_TOKEN");
        let answer = call
            .server
            .get("/_matrix/client/v3/voip/turnServer", call.token())
            .await
            .ok();
        assert_eq!(answer["uris"], json!(["turn:example.org:3478?transport=udp"]));
        let username = answer["username"].as_str().unwrap();
        assert!(username.ends_with(":@alice:example.org"), "{username}");
        let expires = call.server.clock.now_ms() / 1000 + answer["ttl"].as_u64().unwrap();
        let minted = call
            .server
            .homeserver
            .calls
            .turn_secret()
            .mint("@alice:example.org", expires);
        assert_eq!(
            (minted.username.as_str(), &minted.password),
            (username, &answer["password"].as_str().unwrap().to_owned())
        );
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn transports_stand_in_all_three_places() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let expected = json!([{ "type": "livekit", "livekit_service_url": "http://example.org/livekit/jwt" }]);
        for path in [
            "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
            "/_matrix/client/v1/rtc/transports",
        ] {
            call.server.get(path, None).await.is_error(401, "M_MISSING_TOKEN");
            assert_eq!(
                call.server.get(path, call.token()).await.ok()["rtc_transports"],
                expected
            );
        }
        let well_known = call.server.get("/.well-known/matrix/client", None).await.ok();
        assert_eq!(well_known["org.matrix.msc4143.rtc_foci"], expected);
        let versions = call.server.get("/_matrix/client/versions", None).await.ok();
        assert_eq!(versions["unstable_features"]["org.matrix.msc4140"], json!(true));
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_openid_token_names_its_user_to_anybody_who_holds_it() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let token = call.openid().await;
        assert_eq!(token["matrix_server_name"], "example.org");
        let info = |t: &str| format!("/_matrix/federation/v1/openid/userinfo?access_token={t}");
        let answer = call
            .server
            .get(&info(token["access_token"].as_str().unwrap()), None)
            .await
            .ok();
        assert_eq!(answer, json!({ "sub": "@alice:example.org" }));
        call.server
            .get(&info("forged"), None)
            .await
            .is_error(401, "M_UNKNOWN_TOKEN");
        let missing = call.server.get("/_matrix/federation/v1/openid/userinfo", None).await;
        missing.is_error(401, "M_MISSING_TOKEN");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn only_joined_members_enter_the_sfu() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let admission = call.enter(json!({})).await;
        assert_eq!(admission["url"], "ws://example.org/livekit/sfu");
        let (sfu_room, identity) = call.whereabouts(&admission);
        assert_eq!(sfu_room, credentials::livekit::room_alias(&call.room, "m.call#ROOM"));
        assert_eq!(
            identity,
            format!("@alice:example.org:{}", call.user["device_id"].as_str().unwrap())
        );
        assert!(call.plane.opened.lock().unwrap().contains(&sfu_room));

        let bob = register(&call.server, "bob").await;
        let path = "/_matrix/client/v3/user/@bob:example.org/openid/request_token";
        let openid = call.server.json(Method::POST, path, token(&bob), &json!({})).await.ok();
        let body = json!({ "room": call.room, "openid_token": openid, "device_id": bob["device_id"] });
        call.server
            .json(Method::POST, "/livekit/jwt/sfu/get", None, &body)
            .await
            .is_error(403, "M_FORBIDDEN");
        let claim = json!({ "id": "m", "claimed_user_id": "@alice:example.org", "claimed_device_id": "X" });
        let body = json!({ "room_id": call.room, "slot_id": "m.call#ROOM", "openid_token": openid, "member": claim });
        call.server
            .json(Method::POST, "/livekit/jwt/get_token", None, &body)
            .await
            .is_error(401, "M_UNAUTHORIZED");
        let get = call.server.get("/livekit/jwt/sfu/get", None).await;
        assert_eq!(get.status, 405);
        assert_eq!(get.headers["access-control-allow-origin"], "*");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_delayed_leave_is_sent_unless_it_is_restarted_or_cancelled() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        call.become_member().await;
        let schedule = format!("{}?org.matrix.msc4140.delay=8000", call.state_path());
        let answer = call
            .server
            .json(Method::PUT, &schedule, call.token(), &json!({}))
            .await
            .ok();
        let id = answer["delay_id"].as_str().unwrap().to_owned();
        let manage = |action: &str| format!("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/{action}");

        call.server.clock.advance_ms(7000);
        // Without a token: the id is the permission.
        call.server
            .json(Method::POST, &manage("restart"), None, &json!({}))
            .await
            .ok();
        call.server.clock.advance_ms(7000);
        assert_ne!(call.member_content().await, json!({}), "it was restarted");
        call.server.clock.advance_ms(2000);
        call.until_left().await;
        call.server
            .json(Method::POST, &manage("restart"), None, &json!({}))
            .await
            .is_error(404, "M_NOT_FOUND");
        call.server
            .json(Method::POST, &manage("send"), None, &json!({}))
            .await
            .ok();
        assert_eq!(
            call.server
                .json(Method::POST, &manage("cancel"), None, &json!({}))
                .await
                .status,
            409
        );
        call.server
            .json(Method::POST, &manage("explode"), None, &json!({}))
            .await
            .is_error(404, "M_UNRECOGNIZED");

        call.become_member().await;
        let answer = call
            .server
            .json(Method::PUT, &schedule, call.token(), &json!({}))
            .await
            .ok();
        let id = answer["delay_id"].as_str().unwrap();
        let path = format!("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}");
        let shown = call.server.get(&path, call.token()).await.ok();
        assert_eq!((&shown["type"], &shown["delay"]), (&json!(MEMBER), &json!(8000)));
        call.server
            .json(Method::POST, &path, None, &json!({ "action": "cancel" }))
            .await
            .ok();
        call.server.clock.advance_ms(60_000);
        assert_ne!(call.member_content().await, json!({}), "it was cancelled");
        let too_long = format!("{}?org.matrix.msc4140.delay=86400001", call.state_path());
        let refused = call.server.json(Method::PUT, &too_long, call.token(), &json!({})).await;
        assert_eq!(refused.json()["org.matrix.msc4140.errcode"], "M_MAX_DELAY_EXCEEDED");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_participant_without_media_leaves_the_call() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let (sfu_room, identity) = call.whereabouts(&call.enter(json!({})).await);
        call.plane
            .present
            .lock()
            .unwrap()
            .insert((sfu_room.clone(), identity.clone()));
        call.become_member().await;
        call.plane.present.lock().unwrap().clear();
        let gone = MediaEvent::Left {
            sfu_room,
            identity,
            reason: PartingReason::MediaGone,
        };
        call.events.send(gone).await.unwrap();
        call.until_left().await;
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_delegated_leave_waits_for_the_participant_and_follows_them() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        call.become_member().await;
        let schedule = format!("{}?org.matrix.msc4140.delay=3600000", call.state_path());
        let answer = call
            .server
            .json(Method::PUT, &schedule, call.token(), &json!({}))
            .await
            .ok();
        let leave = json!({ "delay_id": answer["delay_id"], "delay_timeout": 3_600_000 });
        let (sfu_room, identity) = call.whereabouts(&call.enter(leave).await);
        call.plane
            .present
            .lock()
            .unwrap()
            .insert((sfu_room.clone(), identity.clone()));
        call.server.clock.advance_ms(3_700_000);
        // Waiting for something not to happen: long enough for the schedule to notice the new time.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        assert_ne!(call.member_content().await, json!({}), "the participant is there");
        call.plane.present.lock().unwrap().clear();
        call.events
            .send(MediaEvent::Left {
                sfu_room,
                identity,
                reason: PartingReason::MediaGone,
            })
            .await
            .unwrap();
        call.until_left().await;
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_leaves_the_room_or_signs_out_leaves_the_sfu() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let whereabouts = call.whereabouts(&call.enter(json!({})).await);
        call.plane.present.lock().unwrap().insert(whereabouts.clone());
        let path = format!("/_matrix/client/v3/rooms/{}/leave", call.room);
        call.server
            .json(Method::POST, &path, call.token(), &json!({}))
            .await
            .ok();
        let until_gone = || async {
            while call.plane.present.lock().unwrap().contains(&whereabouts) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), until_gone())
            .await
            .expect("taken off the SFU");

        call.plane.present.lock().unwrap().insert(whereabouts.clone());
        call.server
            .json(Method::POST, "/_matrix/client/v3/logout", call.token(), &json!({}))
            .await
            .ok();
        tokio::time::timeout(std::time::Duration::from_secs(10), until_gone())
            .await
            .expect("taken off the SFU");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_delayed_canonical_alias_is_checked_like_any_other() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.canonical_alias", call.room);
        let delayed = format!("{path}?org.matrix.msc4140.delay=60000");
        let content = json!({ "alias": "#nowhere:example.org" });
        let put = |path: String, content: Value| {
            let call = &call;
            async move { call.server.json(Method::PUT, &path, call.token(), &content).await }
        };
        put(path.clone(), content.clone()).await.is_error(400, "M_BAD_ALIAS");
        let id = put(delayed, content).await.ok()["delay_id"]
            .as_str()
            .unwrap()
            .to_owned();
        let send = format!("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/send");
        call.server.json(Method::POST, &send, None, &json!({})).await.ok();
        assert_eq!(call.delayed_event(&id).await["error"]["errcode"], "M_BAD_ALIAS");
        call.server.get(&path, call.token()).await.is_error(404, "M_NOT_FOUND");

        let create = |body: Value| {
            let call = &call;
            async move {
                call.server
                    .json(Method::POST, "/_matrix/client/v3/createRoom", call.token(), &body)
                    .await
            }
        };
        let with_state = |alias: &str| json!([{ "type": "m.room.canonical_alias", "content": { "alias": alias } }]);
        create(json!({ "initial_state": with_state("#nowhere:example.org") }))
            .await
            .is_error(400, "M_BAD_ALIAS");
        create(json!({ "room_alias_name": "here", "initial_state": with_state("#here:example.org") }))
            .await
            .ok();
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn only_another_users_write_cancels_a_delayed_state_event() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let path = |kind: &str| format!("/_matrix/client/v3/rooms/{}/state/{kind}", call.room);
        let put = |path: String, user: Value, content: Value| {
            let call = &call;
            async move {
                let answer = call.server.json(Method::PUT, &path, token(&user), &content).await;
                answer.ok()
            }
        };
        let delayed = format!("{}?org.matrix.msc4140.delay=60000", path("m.room.topic"));
        let answer = put(delayed, call.user.clone(), json!({ "topic": "later" })).await;
        let id = answer["delay_id"].as_str().unwrap().to_owned();
        put(path("m.room.topic"), call.user.clone(), json!({ "topic": "now" })).await;

        let bob = register(&call.server, "bob").await;
        let join = format!("/_matrix/client/v3/rooms/{}/join", call.room);
        call.server
            .json(Method::POST, &join, token(&bob), &json!({}))
            .await
            .ok();
        let power = json!({ "users": { "@bob:example.org": 50 } });
        put(path("m.room.power_levels"), call.user.clone(), power).await;
        assert!(call.delayed_event(&id).await["outcome"].is_null(), "her own write");
        put(path("m.room.topic"), bob, json!({ "topic": "Bob's" })).await;
        let cancelled = async {
            loop {
                let shown = call.delayed_event(&id).await;
                if !shown["outcome"].is_null() {
                    return shown;
                }
                tokio::task::yield_now().await;
            }
        };
        let shown = tokio::time::timeout(std::time::Duration::from_secs(20), cancelled)
            .await
            .expect("cancelled");
        assert_eq!(
            (&shown["outcome"], &shown["error"]["errcode"]),
            (&json!("cancel"), &json!("M_CANCELLED_BY_STATE_UPDATE"))
        );
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_sender_of_a_delayed_event_recognises_it() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let id = call.schedule_leave().await;
        let send = format!("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}/send");
        call.server.json(Method::POST, &send, None, &json!({})).await.ok();
        let event_id = call.delayed_event(&id).await["event_id"].as_str().unwrap().to_owned();
        let path = format!("/_matrix/client/v3/rooms/{}/event/{event_id}", call.room);
        let event = call.server.get(&path, call.token()).await.ok();
        assert_eq!(event["unsigned"]["org.matrix.msc4140.delay_id"], id);
        assert!(event["unsigned"]["transaction_id"].is_null());

        let bob = register(&call.server, "bob").await;
        let join = format!("/_matrix/client/v3/rooms/{}/join", call.room);
        call.server
            .json(Method::POST, &join, token(&bob), &json!({}))
            .await
            .ok();
        let seen = call.server.get(&path, token(&bob)).await.ok();
        assert!(!seen.to_string().contains(&id), "the id is the sender's alone: {seen}");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn requests_about_delayed_events_without_a_token_are_limited_per_address() {
    testkit::database::each(|db| async move {
        let call = Call::start_with(&db, |c| c.rate_limits.delayed_events.burst = 2).await;
        let from = |address: &str| {
            let request = http::Request::post("/_matrix/client/unstable/org.matrix.msc4140/delayed_events/any/restart")
                .extension(homeserver::client_api::ClientIp(address.parse().unwrap()))
                .body(axum::body::Body::empty())
                .unwrap();
            let answer = tower::ServiceExt::oneshot(call.server.router.clone(), request);
            async move { answer.await.unwrap().status().as_u16() }
        };
        for expected in [404, 404, 429] {
            assert_eq!(from("10.0.0.1").await, expected);
        }
        assert_eq!(from("10.0.0.2").await, 404, "another address");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_participant_is_given_is_the_users() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let (sfu_room, identity) = call.whereabouts(&call.enter(json!({})).await);
        let hs = call.server.homeserver.clone();
        let credentials = hs.calls.participant_turn_credentials(&sfu_room, &identity).unwrap();
        // The very name that ends with the user, as the relay knows it.
        assert!(
            credentials.username.ends_with(":@alice:example.org"),
            "{}",
            credentials.username
        );
        assert!(
            hs.calls
                .participant_turn_credentials(&sfu_room, "@bob:example.org:X")
                .is_none()
        );

        call.plane.opened.lock().unwrap().clear();
        assert!(hs.admit_participant(&sfu_room, &identity).await.unwrap());
        assert!(call.plane.opened.lock().unwrap().contains(&sfu_room), "opened again");
        assert!(!hs.admit_participant(&sfu_room, "@bob:example.org:X").await.unwrap());
        let membership = |action: &str| format!("/_matrix/client/v3/rooms/{}/{action}", call.room);
        for (action, expected) in [("leave", false), ("join", true)] {
            let path = membership(action);
            call.server
                .json(Method::POST, &path, call.token(), &json!({}))
                .await
                .ok();
            assert_eq!(
                hs.admit_participant(&sfu_room, &identity).await.unwrap(),
                expected,
                "{action}"
            );
        }
        call.server
            .json(Method::POST, "/_matrix/client/v3/logout", call.token(), &json!({}))
            .await
            .ok();
        assert!(!hs.admit_participant(&sfu_room, &identity).await.unwrap(), "signed out");
        let revoked = async {
            while call.plane.revoked.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), revoked)
            .await
            .expect("credentials end with the last device");
        let expires: u64 = credentials.username.split_once(':').unwrap().0.parse().unwrap();
        let (user, until) = call.plane.revoked.lock().unwrap()[0].clone();
        assert!(user == "@alice:example.org" && until >= expires, "{user} {until}");
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn ids_that_are_too_long_are_refused() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let member = |id: String| {
            json!({ "id": id, "claimed_user_id": "@alice:example.org", "claimed_device_id": call.user["device_id"] })
        };
        for (slot, id, status) in [
            ("m.call#ROOM".to_owned(), "m".to_owned(), 200),
            ("s".repeat(256), "m".to_owned(), 400),
            ("m.call#ROOM".to_owned(), "m".repeat(256), 400),
        ] {
            let body = json!({
                "room_id": call.room, "slot_id": slot, "openid_token": call.openid().await, "member": member(id),
            });
            let answer = call.server.json(Method::POST, "/livekit/jwt/get_token", None, &body).await;
            assert_eq!(answer.status, status);
        }
        call.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_can_never_be_sent_is_not_scheduled() {
    testkit::database::each(|db| async move {
        let call = Call::start(&db).await;
        let schedule = |kind: &str, body: Value| {
            let path = format!(
                "/_matrix/client/v3/rooms/{}/state/{kind}/key?org.matrix.msc4140.delay=8000",
                call.room
            );
            let call = &call;
            async move { call.server.json(Method::PUT, &path, call.token(), &body).await }
        };
        schedule("m.test", json!({ "text": "x".repeat(65_536) }))
            .await
            .is_error(413, "M_TOO_LARGE");
        schedule("m.%00", json!({})).await.is_error(400, "M_INVALID_PARAM");
        schedule(&"m".repeat(256), json!({}))
            .await
            .is_error(400, "M_INVALID_PARAM");
        schedule("m.test", json!({ "text": "x".repeat(60_000) })).await.ok();
        call.server.stop().await;
    })
    .await;
}
