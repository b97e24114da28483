//! Registration, login, interactive authentication, sessions and devices.

use homeserver::{
    accounts::{AccountChange, Operation, RegistrationMode, Stage},
    client_api::ApiError,
};
use http::Method;
use serde_json::{Value, json};
use storage::accounts::RegistrationToken;

use crate::harness::{Answer, Server};

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn by_password(name: &str) -> Value {
    json!({
        "type": "m.login.password", "password": format!("password of {name}"),
        "identifier": { "type": "m.id.user", "user": name },
    })
}

impl Server {
    async fn post(&self, path: &str, token: Option<&str>, body: Value) -> Answer {
        self.json(Method::POST, path, token, &body).await
    }

    async fn log_in(&self, name: &str) -> String {
        let answer = self.post(LOGIN, None, by_password(name)).await.ok();
        answer["access_token"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn an_account_is_made_by_stages_and_used() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let body = json!({ "username": "Alice", "password": "secret", "initial_device_display_name": "Laptop" });
        // Never without `auth`, even where nothing is asked.
        let asked = server.post(REGISTER, None, body.clone()).await;
        assert_eq!(asked.status, 401);
        let asked = asked.json();
        assert_eq!(asked["flows"], json!([{ "stages": ["m.login.dummy"] }]));
        let mut with_auth = body.clone();
        with_auth["auth"] = json!({ "type": "m.login.dummy", "session": asked["session"] });
        let made = server.post(REGISTER, None, with_auth.clone()).await.ok();
        assert_eq!(made["user_id"], "@alice:example.org");
        let token = made["access_token"].as_str().unwrap();

        let me = server.get(WHOAMI, Some(token)).await.ok();
        assert_eq!(
            (&me["user_id"], &me["device_id"]),
            (&json!("@alice:example.org"), &made["device_id"])
        );
        server.get(WHOAMI, None).await.is_error(401, "M_MISSING_TOKEN");
        server
            .get(WHOAMI, Some("nonsense"))
            .await
            .is_error(401, "M_UNKNOWN_TOKEN");

        with_auth["auth"] = json!({ "type": "m.login.dummy" });
        server
            .post(REGISTER, None, with_auth)
            .await
            .is_error(400, "M_USER_IN_USE");
        server
            .get("/_matrix/client/v3/register/available?username=alice", None)
            .await
            .is_error(400, "M_USER_IN_USE");
        let free = server
            .get("/_matrix/client/v3/register/available?username=bob", None)
            .await
            .ok();
        assert_eq!(free["available"], true);
        server
            .get("/_matrix/client/v3/register/available?username=b%20b", None)
            .await
            .is_error(400, "M_INVALID_USERNAME");
        server
            .post("/_matrix/client/v3/register?kind=guest", None, json!({}))
            .await
            .is_error(403, "M_GUEST_ACCESS_FORBIDDEN");

        // The body may be left out once the session has it.
        let asked = server
            .post(
                REGISTER,
                None,
                json!({ "username": "bob", "password": "p", "inhibit_login": true }),
            )
            .await;
        let auth = json!({ "auth": { "type": "m.login.dummy", "session": asked.json()["session"] } });
        let made = server.post(REGISTER, None, auth).await.ok();
        assert_eq!(made["user_id"], "@bob:example.org");
        assert!(made.get("access_token").is_none());
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_session_takes_its_body_until_something_is_confirmed() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        // As matrix-js-sdk does it: an empty request for the stages, then everything at once.
        let asked = server.post(REGISTER, None, json!({})).await;
        assert_eq!(asked.status, 401);
        let auth = json!({ "type": "m.login.dummy", "session": asked.json()["session"] });
        let body = json!({ "username": "carol", "password": "p", "auth": auth });
        assert_eq!(
            server.post(REGISTER, None, body).await.ok()["user_id"],
            "@carol:example.org"
        );
        // As others do it: the second request says more than the first.
        let asked = server
            .post(REGISTER, None, json!({ "username": "dora", "password": "p" }))
            .await;
        let auth = json!({ "type": "m.login.dummy", "session": asked.json()["session"] });
        let body = json!({ "username": "dora", "password": "p", "device_id": "D", "auth": auth });
        assert_eq!(server.post(REGISTER, None, body).await.ok()["device_id"], "D");

        // With two stages, the first confirms what was asked for; it cannot be exchanged for the second.
        let token = RegistrationToken {
            token: "t".to_owned(),
            uses_allowed: None,
            uses: 0,
            expires_at: None,
            created_at: 0,
        };
        server.homeserver.store.create_registration_token(token).await.unwrap();
        let accounts = &server.homeserver.accounts;
        let interact = |body: Value| {
            accounts.interact(Operation {
                name: "x",
                user: None,
                body: body.as_object().unwrap().clone(),
                flows: &[&[Stage::RegistrationToken, Stage::Dummy]],
            })
        };
        let session = |e: ApiError| {
            assert_eq!(e.status(), 401);
            e.body()["session"].clone()
        };
        for (first, second, is_taken) in [
            (json!({ "a": 1 }), json!({ "a": 1 }), true),
            (json!({ "a": 1 }), json!({}), true),
            (json!({}), json!({ "a": 1 }), true),
            (json!({ "a": 1 }), json!({ "a": 2 }), false),
        ] {
            let with = |mut body: Value, auth: Value| {
                body["auth"] = auth;
                body
            };
            let auth = json!({ "type": "m.login.registration_token", "token": "t" });
            let begun = session(interact(with(first.clone(), auth)).await.unwrap_err());
            let auth = json!({ "type": "m.login.dummy", "session": begun });
            match interact(with(second.clone(), auth)).await {
                Ok(passed) => {
                    assert!(is_taken, "{first} then {second}");
                    assert_eq!(passed.body["a"], 1);
                }
                Err(e) => {
                    assert!(!is_taken, "{first} then {second}");
                    assert_eq!(e.errcode(), "M_FORBIDDEN");
                }
            }
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn closed_and_token_registration() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.registration.mode = RegistrationMode::Closed).await;
        let body = json!({ "username": "a", "password": "p", "auth": { "type": "m.login.dummy" } });
        server.post(REGISTER, None, body).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.registration.mode = RegistrationMode::Token).await;
        let hs = &server.homeserver;
        let token = hs
            .accounts
            .create_registration_token(None, Some(1), None)
            .await
            .unwrap()
            .token;
        let valid = |token: String| {
            let path = format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}");
            let server = &server;
            async move { server.get(&path, None).await.ok()["valid"].as_bool().unwrap() }
        };
        assert!(valid(token.clone()).await);
        assert!(!valid("other".to_owned()).await);
        let with = |name: &str, auth: Value| json!({ "username": name, "password": "p", "auth": auth });
        let dummy = server
            .post(REGISTER, None, with("a", json!({ "type": "m.login.dummy" })))
            .await;
        assert_eq!(dummy.status, 401);
        let wrong = json!({ "type": "m.login.registration_token", "token": "other" });
        let refused = server.post(REGISTER, None, with("a", wrong)).await;
        refused.is_error(401, "M_FORBIDDEN");
        let right =
            json!({ "type": "m.login.registration_token", "token": token, "session": refused.json()["session"] });
        server.post(REGISTER, None, with("a", right)).await.ok();
        assert!(!valid(token.clone()).await);
        let again = json!({ "type": "m.login.registration_token", "token": token });
        server
            .post(REGISTER, None, with("b", again))
            .await
            .is_error(401, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn logging_in_and_out() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let first = server.register("alice").await;
        let mut changes = server.homeserver.accounts.changes();
        for user in ["alice", "Alice", "@alice:example.org"] {
            let mut body = by_password("alice");
            body["identifier"]["user"] = user.into();
            assert_eq!(
                server.post(LOGIN, None, body).await.ok()["user_id"],
                "@alice:example.org"
            );
        }
        let old = json!({ "type": "m.login.password", "user": "alice", "password": "password of alice" });
        server.post(LOGIN, None, old).await.ok();
        let wrong = json!({ "type": "m.login.password", "user": "alice", "password": "wrong" });
        server.post(LOGIN, None, wrong).await.is_error(403, "M_FORBIDDEN");
        let nobody = json!({ "type": "m.login.password", "user": "nobody", "password": "wrong" });
        server.post(LOGIN, None, nobody).await.is_error(403, "M_FORBIDDEN");
        server
            .post(LOGIN, None, json!({ "type": "m.login.sso" }))
            .await
            .is_error(400, "M_UNKNOWN");
        server.post(LOGIN, None, json!({})).await.is_error(400, "M_BAD_JSON");

        // The same device again: the earlier token ends.
        let mut same = by_password("alice");
        same["device_id"] = "alice-device".into();
        let second = server.post(LOGIN, None, same).await.ok()["access_token"]
            .as_str()
            .unwrap()
            .to_owned();
        server.get(WHOAMI, Some(&first)).await.is_error(401, "M_UNKNOWN_TOKEN");
        server.get(WHOAMI, Some(&second)).await.ok();
        server
            .post("/_matrix/client/v3/logout", Some(&second), json!({}))
            .await
            .ok();
        server.get(WHOAMI, Some(&second)).await.is_error(401, "M_UNKNOWN_TOKEN");
        let (user_id, device_id) = ("@alice:example.org".try_into().unwrap(), "alice-device".into());
        let gone = AccountChange::DeviceGone { user_id, device_id };
        let told: Vec<_> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
        assert_eq!(told.last(), Some(&gone), "{told:?}");

        let third = server.log_in("alice").await;
        let fourth = server.log_in("alice").await;
        server
            .post("/_matrix/client/v3/logout/all", Some(&third), json!({}))
            .await
            .ok();
        for token in [&third, &fourth] {
            server.get(WHOAMI, Some(token)).await.is_error(401, "M_UNKNOWN_TOKEN");
        }
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_login_token_signs_in_once() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let token = server.register("alice").await;
        let path = "/_matrix/client/v1/login/get_token";
        assert_eq!(server.post(path, Some(&token), json!({})).await.status, 401);
        let given = server
            .post(path, Some(&token), json!({ "auth": by_password("alice") }))
            .await
            .ok();
        let body = json!({ "type": "m.login.token", "token": given["login_token"] });
        assert_eq!(
            server.post(LOGIN, None, body.clone()).await.ok()["user_id"],
            "@alice:example.org"
        );
        server.post(LOGIN, None, body).await.is_error(403, "M_FORBIDDEN");
        let given = server
            .post(path, Some(&token), json!({ "auth": by_password("alice") }))
            .await
            .ok();
        server.clock.advance_ms(120_000);
        let late = json!({ "type": "m.login.token", "token": given["login_token"] });
        server.post(LOGIN, None, late).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn devices_are_listed_renamed_and_deleted_by_password() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let token = server.register("alice").await;
        let bob = server.register("bob").await;
        let other = server.log_in("alice").await;
        let me = server.get(WHOAMI, Some(&other)).await.ok();
        let path = format!("/_matrix/client/v3/devices/{}", me["device_id"].as_str().unwrap());
        server
            .json(Method::PUT, &path, Some(&token), &json!({ "display_name": "Phone" }))
            .await
            .ok();
        assert_eq!(server.get(&path, Some(&token)).await.ok()["display_name"], "Phone");
        server.get(&path, Some(&bob)).await.is_error(404, "M_NOT_FOUND");
        server
            .json(Method::PUT, &path, Some(&bob), &json!({ "display_name": "x" }))
            .await
            .is_error(404, "M_NOT_FOUND");
        let listed = server.get("/_matrix/client/v3/devices", Some(&token)).await.ok();
        assert_eq!(listed["devices"].as_array().unwrap().len(), 2);
        assert!(listed["devices"][0]["last_seen_ts"].is_u64());

        let asked = server.json(Method::DELETE, &path, Some(&token), &json!({})).await;
        assert_eq!(asked.status, 401);
        let session = asked.json()["session"].clone();
        let with = |mut auth: Value| {
            auth["session"] = session.clone();
            json!({ "auth": auth })
        };
        let mut wrong = by_password("alice");
        wrong["password"] = "wrong".into();
        server
            .json(Method::DELETE, &path, Some(&token), &with(wrong))
            .await
            .is_error(401, "M_FORBIDDEN");
        // Somebody else's password confirms nothing, and somebody else's session neither.
        server
            .json(Method::DELETE, &path, Some(&token), &with(by_password("bob")))
            .await
            .is_error(401, "M_FORBIDDEN");
        server
            .json(Method::DELETE, &path, Some(&bob), &with(by_password("bob")))
            .await
            .is_error(403, "M_FORBIDDEN");
        // Nor does it confirm another operation.
        let elsewhere = "/_matrix/client/v3/devices/alice-device";
        server
            .json(Method::DELETE, elsewhere, Some(&token), &with(by_password("alice")))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .json(Method::DELETE, &path, Some(&token), &with(by_password("alice")))
            .await
            .ok();
        server.get(WHOAMI, Some(&other)).await.is_error(401, "M_UNKNOWN_TOKEN");
        server.get(&path, Some(&token)).await.is_error(404, "M_NOT_FOUND");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn passwords_change_and_accounts_end() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let token = server.register("alice").await;
        let other = server.log_in("alice").await;
        let path = "/_matrix/client/v3/account/password";
        let change = json!({ "new_password": "new", "auth": by_password("alice") });
        server.post(path, Some(&token), change).await.ok();
        server.get(WHOAMI, Some(&token)).await.ok();
        server.get(WHOAMI, Some(&other)).await.is_error(401, "M_UNKNOWN_TOKEN");
        server
            .post(LOGIN, None, by_password("alice"))
            .await
            .is_error(403, "M_FORBIDDEN");

        let auth = json!({ "type": "m.login.password", "user": "alice", "password": "new" });
        let end = "/_matrix/client/v3/account/deactivate";
        server.post(end, Some(&token), json!({ "auth": auth })).await.ok();
        server.get(WHOAMI, Some(&token)).await.is_error(401, "M_UNKNOWN_TOKEN");
        server.post(LOGIN, None, auth).await.is_error(403, "M_USER_DEACTIVATED");
        let again = json!({ "username": "alice", "password": "p", "auth": { "type": "m.login.dummy" } });
        server.post(REGISTER, None, again).await.is_error(400, "M_USER_IN_USE");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn registration_by_shared_secret() {
    testkit::database::each(|db| async move {
        let path = "/_synapse/admin/v1/register";
        let server = Server::start_with(&db, |c| c.registration.shared_secret = Some("complement".to_owned())).await;
        let nonce = server.get(path, None).await.ok()["nonce"].as_str().unwrap().to_owned();
        let mac = mac("complement", &[&nonce, "root", "pw", "admin"]);
        let body = json!({ "nonce": nonce, "username": "root", "password": "pw", "admin": true, "mac": mac });
        let made = server.post(path, None, body.clone()).await.ok();
        let token = made["access_token"].as_str().unwrap();
        assert!(
            server
                .homeserver
                .accounts
                .authenticate(token, None)
                .await
                .unwrap()
                .is_admin
        );
        server.post(path, None, body).await.is_error(400, "M_UNKNOWN");
        let nonce = server.get(path, None).await.ok()["nonce"].clone();
        let body = json!({ "nonce": nonce, "username": "x", "password": "pw", "mac": "00" });
        server.post(path, None, body).await.is_error(403, "M_FORBIDDEN");
        server.stop().await;
    })
    .await;
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        server
            .get("/_synapse/admin/v1/register", None)
            .await
            .is_error(400, "M_UNKNOWN");
        server.stop().await;
    })
    .await;
}

fn mac(secret: &str, fields: &[&str]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(fields.join("\0").as_bytes());
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test]
async fn the_first_administrators_link() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let accounts = &server.homeserver.accounts;
        let link = accounts
            .first_admin_link()
            .await
            .unwrap()
            .expect("there is no administrator");
        assert!(accounts.first_admin("wrong", "root", "pw").await.is_err());
        let login = accounts.first_admin(&link.0, "root", "pw").await.unwrap();
        assert!(accounts.authenticate(&login.access_token, None).await.unwrap().is_admin);
        assert!(accounts.first_admin(&link.0, "root2", "pw").await.is_err());
        assert!(accounts.first_admin_link().await.unwrap().is_none());
        accounts.set_admin(&login.user_id, false).await.unwrap();
        assert!(!accounts.authenticate(&login.access_token, None).await.unwrap().is_admin);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn logins_of_an_address_are_limited() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.rate_limits.login.burst = 2).await;
        let from_address = || {
            let request = http::Request::post(LOGIN)
                .extension(homeserver::client_api::ClientIp("10.0.0.1".parse().unwrap()))
                .body(axum::body::Body::from(by_password("nobody").to_string()))
                .unwrap();
            tower::ServiceExt::oneshot(server.router.clone(), request)
        };
        for _ in 0..2 {
            assert_eq!(from_address().await.unwrap().status(), 403);
        }
        let refused = from_address().await.unwrap();
        assert_eq!(refused.status(), 429);
        assert!(refused.headers().contains_key("retry-after"));
        let body = axum::body::to_bytes(refused.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(body["error"].as_str().unwrap().contains("rate_limits.login"), "{body}");
        assert!(body["retry_after_ms"].is_u64());
        server.clock.advance_ms(1000);
        assert_eq!(from_address().await.unwrap().status(), 403);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_clients_ask_first() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let versions = server.get("/_matrix/client/versions", None).await.ok();
        assert_eq!(versions["versions"].as_array().unwrap().len(), 20);
        let known = server.get("/.well-known/matrix/client", None).await.ok();
        assert_eq!(known["m.homeserver"]["base_url"], "http://example.org");
        assert_eq!(
            server.get("/.well-known/matrix/server", None).await.ok()["m.server"],
            "example.org:80"
        );
        server
            .get("/_matrix/client/v3/capabilities", None)
            .await
            .is_error(401, "M_MISSING_TOKEN");
        let token = server.register("a").await;
        let capabilities = server.get("/_matrix/client/v3/capabilities", Some(&token)).await.ok();
        assert_eq!(capabilities["capabilities"]["m.change_password"]["enabled"], true);
        server.stop().await;
    })
    .await;
}
