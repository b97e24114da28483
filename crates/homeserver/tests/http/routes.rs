//! What holds for every route: the specification's list is served or said to be missing, the advertised versions follow
//! from it, and everything that writes is limited.

use std::collections::BTreeSet;

use homeserver::{
    client_api::{self, Limit},
    limits::Class,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::database::{TestDatabase, TestDatabaseUrl};

use crate::harness::{Answer, Server};

/// Operations of the client-server API, v1.19: method, path, the version that added it, whether it is deprecated.
const ENDPOINTS: &str = include_str!("client_server_endpoints.csv");

/// Operations that are not built, each with the reason. They answer 404 or 405 `M_UNRECOGNIZED`. `optional` ones are the
/// server's choice by the specification; `deprecated` ones are left out for good; `owed` ones are to come.
const NOT_BUILT: &[(&str, &str)] = &[
    (
        "GET /.well-known/matrix/policy_server",
        "optional: no policy server is set up here",
    ),
    ("GET /.well-known/matrix/support", "optional: no contact is configured"),
    (
        "GET /_matrix/client/v1/auth_metadata",
        "optional: sign-in is not by OAuth 2.0, which this answer says",
    ),
    (
        "GET /_matrix/client/v3/login/sso/redirect",
        "optional: no identity provider, and `/login` offers none",
    ),
    (
        "GET /_matrix/client/v3/login/sso/redirect/{idpId}",
        "optional: the same",
    ),
    (
        "POST /_matrix/client/v3/refresh",
        "optional: access tokens do not expire, so none comes with a refresh token",
    ),
    (
        "GET /_matrix/client/v1/media/preview_url",
        "optional: nothing is fetched from elsewhere",
    ),
    (
        "GET /_matrix/media/v3/preview_url",
        "deprecated: the one at /client/v1 takes its place",
    ),
    (
        "POST /_matrix/client/v1/appservice/{appserviceId}/ping",
        "optional: no application services",
    ),
    (
        "PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}",
        "optional: no application services",
    ),
    (
        "GET /_matrix/client/v1/admin/lock/{userId}",
        "optional: not among the capabilities",
    ),
    (
        "PUT /_matrix/client/v1/admin/lock/{userId}",
        "optional: not among the capabilities",
    ),
    (
        "GET /_matrix/client/v1/admin/suspend/{userId}",
        "optional: not among the capabilities",
    ),
    (
        "PUT /_matrix/client/v1/admin/suspend/{userId}",
        "optional: not among the capabilities",
    ),
    ("GET /_matrix/client/v3/events", "deprecated: /sync"),
    (
        "GET /_matrix/client/v3/events/{eventId}",
        "deprecated: /rooms/{roomId}/event/{eventId}",
    ),
    ("GET /_matrix/client/v3/initialSync", "deprecated: /sync"),
    (
        "GET /_matrix/client/v3/rooms/{roomId}/initialSync",
        "deprecated: /rooms/{roomId}/messages and /state",
    ),
    ("POST /_matrix/client/v3/pushers/set", "owed: push to phones"),
    ("POST /_matrix/client/v3/search", "owed: searching messages"),
];

/// Unstable features in `/versions`, and a route each stands for.
const FEATURES: &[(&str, &str, &str)] = &[
    (
        "org.matrix.msc4140",
        "POST",
        "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/{id}",
    ),
    (
        "org.matrix.msc4143",
        "GET",
        "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports",
    ),
    (
        "org.matrix.msc3967",
        "POST",
        "/_matrix/client/unstable/keys/device_signing/upload",
    ),
    (
        "uk.half-shot.msc2666.query_mutual_rooms",
        "GET",
        "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    ),
    (
        "uk.half-shot.msc2666.query_mutual_rooms.stable",
        "GET",
        "/_matrix/client/v1/mutual_rooms",
    ),
    (
        "uk.tcpip.msc4133",
        "PUT",
        "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{userId}/{keyName}",
    ),
    (
        "uk.tcpip.msc4133.stable",
        "PUT",
        "/_matrix/client/v3/profile/{userId}/{keyName}",
    ),
];

/// A path with something in the place of its arguments.
pub(crate) fn filled(path: &str, argument: impl Fn(&str) -> String) -> String {
    let mut filled = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').expect("a closed argument");
        filled.push_str(before);
        filled.push_str(&argument(name));
        rest = after;
    }
    filled + rest
}

/// Something an endpoint may expect in the place of an argument of this name.
pub(crate) fn plausible(name: &str) -> String {
    match name.replace('_', "").to_lowercase().as_str() {
        "roomid" | "roomidoralias" => "!room:example.org",
        "roomalias" => "%23alias:example.org",
        "userid" => "@alice:example.org",
        "eventid" => "$event:example.org",
        "eventtype" | "type" => "m.room.message",
        "receipttype" => "m.read",
        "kind" => "override",
        "field" | "keyname" => "displayname",
        "servername" => "example.org",
        _ => "x",
    }
    .to_owned()
}

/// Whether anything answers at this method and path. Asked without a session, nothing happens.
pub(crate) async fn is_routed(server: &Server, method: &Method, path: &str) -> bool {
    let answer = server
        .raw(method.clone(), &filled(path, plausible), None, b"{}".to_vec())
        .await;
    let absent = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&answer.status);
    !(absent && answer.json()["errcode"] == "M_UNRECOGNIZED")
}

fn url_of(db: &TestDatabase) -> TestDatabaseUrl {
    TestDatabaseUrl {
        url: db.url.clone(),
        dir: db.dir.path().to_owned(),
    }
}

struct Endpoint {
    method: Method,
    path: &'static str,
    added_in: &'static str,
    is_deprecated: bool,
}

fn endpoints() -> Vec<Endpoint> {
    ENDPOINTS
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [method, path, added_in, deprecated] = fields[..] else {
                panic!("{line:?} has four fields");
            };
            Endpoint {
                method: method.parse().expect("a method"),
                path,
                added_in,
                is_deprecated: deprecated == "yes",
            }
        })
        .collect()
}

fn why_not_built(endpoint: &Endpoint) -> Option<&'static str> {
    let name = format!("{} {}", endpoint.method, endpoint.path);
    NOT_BUILT
        .iter()
        .find(|(operation, _)| *operation == name)
        .map(|(_, why)| *why)
}

#[tokio::test]
async fn every_operation_of_the_specification_is_served_or_said_to_be_missing() {
    let db = TestDatabase::sqlite();
    let server = Server::start(&url_of(&db)).await;
    let mut wrong = Vec::new();
    let mut listed = BTreeSet::new();
    for endpoint in endpoints() {
        let is_listed = why_not_built(&endpoint).is_some();
        if is_listed {
            listed.insert(format!("{} {}", endpoint.method, endpoint.path));
        }
        if is_routed(&server, &endpoint.method, endpoint.path).await == is_listed {
            let what = if is_listed {
                "is served, and still listed as missing"
            } else {
                "is not served"
            };
            wrong.push(format!("{} {} {what}", endpoint.method, endpoint.path));
        }
    }
    assert_eq!(
        listed.len(),
        NOT_BUILT.len(),
        "the list of missing operations names one that the specification has not"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    server.stop().await;
}

#[tokio::test]
async fn the_advertised_versions_and_features_are_those_that_are_served() {
    let db = TestDatabase::sqlite();
    let server = Server::start(&url_of(&db)).await;
    let advertised = server.get("/_matrix/client/versions", None).await.ok();
    let versions: Vec<&str> = advertised["versions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for endpoint in endpoints() {
        let missing = why_not_built(&endpoint);
        let version = endpoint.added_in;
        // What was there before versions were counted belongs to all of them; what is owed of it is said here.
        let promised = versions.contains(&format!("v{version}").as_str());
        assert!(
            endpoint.is_deprecated || !promised || missing.is_none_or(is_a_choice),
            "{} {} belongs to v{version}, which is advertised",
            endpoint.method,
            endpoint.path
        );
    }
    let features: BTreeSet<&str> = advertised["unstable_features"]
        .as_object()
        .unwrap()
        .keys()
        .map(|k| &**k)
        .collect();
    assert_eq!(features, FEATURES.iter().map(|(feature, _, _)| *feature).collect());
    for (feature, method, path) in FEATURES {
        let method = method.parse().unwrap();
        assert!(is_routed(&server, &method, path).await, "{feature}: {method} {path}");
    }
    server.stop().await;
}

/// Whether the specification leaves it to the server to have such an operation.
fn is_a_choice(why: &str) -> bool {
    !why.starts_with("owed: ")
}

#[tokio::test]
async fn everything_that_writes_is_limited_and_says_so() {
    let db = TestDatabase::sqlite();
    let keys: serde_json::Map<String, Value> = Class::ALL
        .iter()
        .map(|class| {
            let key = class.setting().strip_prefix("rate_limits.").unwrap();
            (key.to_owned(), json!({ "per_second": 0.0, "burst": 1 }))
        })
        .collect();
    let server = Server::start_with(&url_of(&db), |c| {
        c.rate_limits = serde_json::from_value(keys.into()).unwrap()
    })
    .await;
    let token = server.register("alice").await;
    let send = |method: &Method, path: &str| {
        let (method, path) = (method.clone(), filled(path, plausible));
        let (server, token) = (&server, &token);
        async move { server.raw(method, &path, Some(token), b"{}".to_vec()).await }
    };
    let (mut unlimited, mut used_up) = (Vec::new(), BTreeSet::new());
    for path in client_api::paths() {
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
            if !is_routed(&server, &method, &path).await {
                continue;
            }
            match client_api::limit(&method, &path) {
                None if method != Method::GET => unlimited.push(format!("{method} {path}")),
                None | Some(Limit::Exempt(_)) => {}
                Some(Limit::User(class)) => {
                    if used_up.insert(class.setting()) {
                        send(&method, &path).await;
                    }
                    let refused: Answer = send(&method, &path).await;
                    refused.is_error(429, "M_LIMIT_EXCEEDED");
                    let body = refused.json();
                    assert!(
                        body["error"].as_str().unwrap().contains(class.setting()),
                        "{method} {path}: {body}"
                    );
                    assert!(body["retry_after_ms"].as_u64().unwrap() > 0);
                    let seconds = refused.headers["retry-after"].to_str().unwrap();
                    assert!(seconds.parse::<u64>().unwrap() > 0);
                }
            }
        }
    }
    assert!(unlimited.is_empty(), "no limit is said for {unlimited:#?}");
    assert!(used_up.len() > 8, "{used_up:?}");
    // Whoever is over a limit can still read, and leave.
    server.get("/_matrix/client/v3/sync", Some(&token)).await.ok();
    server
        .raw(Method::POST, "/_matrix/client/v3/logout", Some(&token), Vec::new())
        .await
        .ok();
    server.stop().await;
}
