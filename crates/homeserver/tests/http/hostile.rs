//! Bodies nobody honest sends: each is answered by an error of the specification, and nothing breaks.

use homeserver::client_api;
use http::{Method, Request, header};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    harness::{Answer, Server},
    routes::{filled, is_routed, plausible},
};

/// Endpoints that read a body.
const PATHS: &[(Method, &str)] = &[
    (Method::POST, "/_matrix/client/v3/register"),
    (Method::POST, "/_matrix/client/v3/login"),
    (Method::POST, "/_synapse/admin/v1/register"),
    (Method::POST, "/_matrix/client/v3/account/password"),
    (Method::POST, "/_matrix/client/v3/account/deactivate"),
    (Method::POST, "/_matrix/client/v3/delete_devices"),
    (Method::PUT, "/_matrix/client/v3/devices/x"),
    (Method::DELETE, "/_matrix/client/v3/devices/x"),
    (Method::POST, "/_matrix/client/v3/keys/upload"),
    (Method::POST, "/_matrix/client/v3/keys/query"),
    (Method::POST, "/_matrix/client/v3/keys/claim"),
    (Method::POST, "/_matrix/client/v3/keys/device_signing/upload"),
    (Method::POST, "/_matrix/client/v3/keys/signatures/upload"),
    (Method::PUT, "/_matrix/client/v3/sendToDevice/m.x/t"),
    (Method::PUT, "/_matrix/client/v3/profile/@alice:example.org/displayname"),
    (Method::POST, "/_matrix/client/v1/login/get_token"),
];

fn any_json() -> impl Strategy<Value = Value> {
    // Keys the endpoints look for, so that the bodies get past the first check.
    let key = prop_oneof![
        Just("type".to_owned()),
        Just("auth".to_owned()),
        Just("session".to_owned()),
        Just("username".to_owned()),
        Just("password".to_owned()),
        Just("identifier".to_owned()),
        Just("user".to_owned()),
        Just("device_keys".to_owned()),
        Just("one_time_keys".to_owned()),
        Just("fallback_keys".to_owned()),
        Just("master_key".to_owned()),
        Just("keys".to_owned()),
        Just("signatures".to_owned()),
        Just("messages".to_owned()),
        Just("devices".to_owned()),
        Just("displayname".to_owned()),
        Just("@alice:example.org".to_owned()),
        Just("signed_curve25519:A".to_owned()),
        ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!("m.login.password")),
        Just(json!("m.login.dummy")),
        Just(json!("alice")),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

#[test]
fn no_body_breaks_an_endpoint() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let db = testkit::database::TestDatabase::sqlite();
    let url = testkit::database::TestDatabaseUrl {
        url: db.url.clone(),
        dir: db.dir.path().to_owned(),
    };
    let (server, token) = runtime.block_on(async {
        let server = Server::start_with(&url, |c| {
            c.rate_limits.enabled = false;
            c.registration.shared_secret = Some("secret".to_owned());
        })
        .await;
        let token = server.register("alice").await;
        (server, token)
    });
    let send = |(method, path): &(Method, &str), body: Vec<u8>| {
        let answer = runtime.block_on(server.raw(method.clone(), path, Some(&token), body.clone()));
        assert!(
            answer.status.as_u16() < 500,
            "{method} {path} {}: {answer:?}",
            String::from_utf8_lossy(&body)
        );
        answer
    };
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        ..ProptestConfig::default()
    });
    runner
        .run(&any_json(), |body| {
            for path in PATHS {
                send(path, serde_json::to_vec(&body).unwrap());
            }
            Ok(())
        })
        .unwrap();
    let deep = "[".repeat(100_000);
    for path in PATHS {
        send(path, b"{\"a\": ".to_vec()).is_error(400, "M_NOT_JSON");
        send(path, b"{\"a\": \"\xff\"}".to_vec()).is_error(400, "M_NOT_JSON");
        send(path, deep.clone().into_bytes()).is_error(400, "M_NOT_JSON");
        send(path, b"[]".to_vec()).is_error(400, "M_BAD_JSON");
        send(path, vec![b' '; 5 * 1024 * 1024]).is_error(413, "M_TOO_LARGE");
    }
    // The account is still whole.
    let me = runtime
        .block_on(server.get("/_matrix/client/v3/account/whoami", Some(&token)))
        .ok();
    assert_eq!(me["user_id"], "@alice:example.org");
    runtime.block_on(server.stop());
}

/// Bodies that are broken as text or as JSON; each is refused as such wherever a JSON body is read.
fn broken_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let nested = |open: &str, close: &str| [open.repeat(5_000), "1".to_owned(), close.repeat(5_000)].concat();
    vec![
        ("cut off", b"{\"a\": ".to_vec()),
        ("not UTF-8", b"{\"a\": \"\xff\xfe\"}".to_vec()),
        ("a lone surrogate", b"{\"a\": \"\xed\xa0\x80\"}".to_vec()),
        ("a NUL in the text", b"{\"a\": \"\0\"}".to_vec()),
        ("deep lists", nested("[", "]").into_bytes()),
        ("deep objects", nested("{\"a\":", "}").into_bytes()),
        ("two values", b"{} {}".to_vec()),
    ]
}

/// Bodies that are JSON and strange; any answer but an error of the server is right.
fn strange_bodies() -> Vec<Vec<u8>> {
    // What endpoints look for, with values that fit nowhere.
    const KEYS: [&str; 40] = [
        "algorithm",
        "auth_data",
        "auth",
        "avatar_url",
        "content",
        "device_keys",
        "devices",
        "displayname",
        "event_id",
        "fallback_keys",
        "filter",
        "identifier",
        "initial_state",
        "invite",
        "invite_3pid",
        "limit",
        "m.fully_read",
        "m.relates_to",
        "master_key",
        "membership",
        "messages",
        "name",
        "new_password",
        "new_version",
        "one_time_keys",
        "password",
        "power_level_content_override",
        "presence",
        "reason",
        "redacts",
        "room_alias_name",
        "room_id",
        "room_version",
        "rooms",
        "search_term",
        "sessions",
        "status_msg",
        "timeout",
        "typing",
        "user_id",
    ];
    let values = [
        "null",
        "true",
        "-1",
        "0.5",
        "1e308",
        "1e999",
        "9007199254740993",
        "99999999999999999999999999999999",
        "\"\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "[]",
        "[null]",
        "{}",
        "{\"\":{\"\\u0000\":[]}}",
        "\"@\\u0000:\"",
    ];
    let mut bodies: Vec<Vec<u8>> = [
        "null",
        "true",
        "1",
        "\"text\"",
        "[]",
        "{\"a\":1,\"a\":2}",
        "{\"\\u0000\":\"\\u0000\"}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    for value in values {
        let all: Vec<String> = KEYS.iter().map(|key| format!("\"{key}\":{value}")).collect();
        bodies.push(format!("{{{}}}", all.join(",")).into_bytes());
    }
    // The same key twice, first right and then wrong, and the other way round.
    let twice = |a: &str, b: &str| {
        let all: Vec<String> = KEYS.iter().map(|key| format!("\"{key}\":{a},\"{key}\":{b}")).collect();
        format!("{{{}}}", all.join(",")).into_bytes()
    };
    bodies.extend([twice("\"x\"", "[]"), twice("{}", "\"x\""), twice("1", "1")]);
    bodies
}

/// Arguments nobody honest has in a path.
fn strange_arguments() -> Vec<String> {
    let mut arguments: Vec<String> = [
        "%00",
        "%FF",
        "%ED%A0%80",
        "%2F..%2F",
        "-1",
        "%F0%9F%98%80",
        "%25",
        "'%22%3B--",
        "!%00:x",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push("x".repeat(5_000));
    arguments.push(format!("@{}:example.org", "x".repeat(300)));
    arguments
}

/// Says what is wrong with an answer, if something is.
fn fault(answer: &Answer, what: &str) -> Option<String> {
    let explains = || answer.json()["errcode"].is_string() || answer.json()["flows"].is_array();
    let is_wrong = answer.status.is_server_error() || (answer.status.is_client_error() && !explains());
    is_wrong.then(|| format!("{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.bytes)))
}

/// Every route with everything strange, on both engines: they differ in the text they take.
#[tokio::test]
async fn no_request_breaks_a_route() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| {
            c.rate_limits.enabled = false;
            c.registration.shared_secret = Some("secret".to_owned());
        })
        .await;
        let token = server.register("alice").await;
        let mut faults = Vec::new();
        let (broken, strange, arguments) = (broken_bodies(), strange_bodies(), strange_arguments());
        for path in client_api::paths() {
            // The generations of a path share their handler.
            if path.starts_with("/_matrix/client/r0/") || path.starts_with("/_matrix/media/r0/") {
                continue;
            }
            for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
                if !is_routed(&server, &method, &path).await {
                    continue;
                }
                // Whoever logs out does it with a session of their own.
                let own = if path.ends_with("/logout") || path.ends_with("/logout/all") {
                    None
                } else {
                    Some(token.as_str())
                };
                let uri = filled(&path, plausible);
                for (what, body) in &broken {
                    let answer = server.raw(method.clone(), &uri, own, body.clone()).await;
                    faults.extend(fault(&answer, &format!("{method} {path}, {what}")));
                }
                for body in &strange {
                    let answer = server.raw(method.clone(), &uri, own, body.clone()).await;
                    faults.extend(fault(
                        &answer,
                        &format!("{method} {path}, {}", String::from_utf8_lossy(body)),
                    ));
                }
                for argument in &arguments {
                    let uri = filled(&path, |_| argument.clone());
                    let answer = server.raw(method.clone(), &uri, own, b"{}".to_vec()).await;
                    faults.extend(fault(&answer, &format!("{method} {path}, argument {argument}")));
                    let names = [
                        "from",
                        "to",
                        "since",
                        "limit",
                        "dir",
                        "filter",
                        "version",
                        "ts",
                        "user_id",
                        "set_presence",
                    ];
                    let query: Vec<String> = names.iter().map(|name| format!("{name}={argument}")).collect();
                    let uri = format!("{}?{}", filled(&path, plausible), query.join("&"));
                    let answer = server.raw(method.clone(), &uri, own, b"{}".to_vec()).await;
                    faults.extend(fault(&answer, &format!("{method} {path}, query {argument}")));
                }
                if method != Method::GET {
                    let large = vec![b' '; 5 * 1024 * 1024];
                    let answer = server.raw(method.clone(), &uri, own, large).await;
                    faults.extend(fault(&answer, &format!("{method} {path}, large")));
                }
                let request = Request::builder()
                    .method(method.clone())
                    .uri(&uri)
                    .header(header::AUTHORIZATION, format!("Bearer {}", "x".repeat(100_000)))
                    .header(header::CONTENT_TYPE, "x".repeat(100_000))
                    .header(header::RANGE, "bytes=99999999999999999999-")
                    .body(axum::body::Body::from("{}"));
                let answered = server.router.clone().oneshot(request.unwrap()).await.unwrap();
                assert!(answered.status().as_u16() < 500, "{method} {path} with large headers");
            }
        }
        assert!(
            faults.is_empty(),
            "{} faults: {:#?}",
            faults.len(),
            &faults[..faults.len().min(40)]
        );
        // The account is still whole.
        let me = server.get("/_matrix/client/v3/account/whoami", Some(&token)).await.ok();
        assert_eq!(me["user_id"], "@alice:example.org");
        server.get("/_matrix/client/v3/sync", Some(&token)).await.ok();
        server.stop().await;
    })
    .await;
}
