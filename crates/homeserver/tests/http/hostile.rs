//! Bodies nobody honest sends: each is answered by an error of the specification, and nothing breaks.

use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::Server;

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
