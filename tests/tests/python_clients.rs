//! matrix-nio and mautrix, two Matrix client libraries in Python that share no code with each other or the rest.

use serde_json::json;
use system_tests::{Engine, PASSWORD, Script, Server, on_both_engines};

async fn nio_talks(engine: Engine) {
    let server = Server::start(engine).await;
    let mut script = Script::python("nio_chat.py", &json!({ "baseUrl": server.base_url() }));
    for name in ["carol", "dave"] {
        assert_eq!(
            script.expect("signed-in").await["user"],
            format!("@{name}:{}", server.name())
        );
    }
    let room = script.expect("room").await;
    assert_eq!(
        (&room["name"], &room["topic"], &room["members"]),
        (&json!("Hearth"), &json!("warm"), &json!(2))
    );
    assert_eq!(script.expect("heard").await["body"], "soup is ready");
    assert_eq!(script.expect("heard").await["body"], "coming");
    let history = script.expect("history").await;
    assert!(
        history["bodies"]
            .as_array()
            .is_some_and(|bodies| bodies.contains(&json!("soup is ready"))),
        "{history}"
    );
    let media = script.expect("media").await;
    assert_eq!(
        (&media["same"], &media["type"]),
        (&json!(true), &json!("application/octet-stream"))
    );
    script.finish().await;
}

async fn mautrix_talks(engine: Engine) {
    let server = Server::start(engine).await;
    for name in ["erin", "frank"] {
        server.client().register(name).await;
    }
    let parameters = json!({ "baseUrl": server.base_url(), "password": PASSWORD });
    let mut script = Script::python("mautrix_chat.py", &parameters);
    let user = |name: &str| format!("@{name}:{}", server.name());
    for name in ["erin", "frank"] {
        let signed_in = script.expect("signed-in").await;
        assert_eq!(signed_in["user"], user(name));
        assert_eq!(signed_in["device"], true);
    }
    let room = script.expect("room").await;
    assert_eq!(room["name"], "Workshop");
    assert_eq!(room["members"], json!([user("erin"), user("frank")]));
    assert_eq!(script.expect("heard").await["body"], "pass the plane");
    assert_eq!(script.expect("heard").await["reply_to"], true);
    assert_eq!(script.expect("redacted").await["body"], json!(null));
    assert_eq!(script.expect("account-data").await["kept"], json!({ "plane": 1 }));
    assert_eq!(script.expect("media").await["same"], true);
    script.finish().await;
}

on_both_engines!(nio_talks, mautrix_talks);
