//! matrix-nio, a Matrix client library in Python that shares no code with the others.

use serde_json::json;
use system_tests::{Engine, Script, Server};

async fn nio_chat(engine: Engine) {
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

#[tokio::test(flavor = "multi_thread")]
async fn nio_talks_on_sqlite() {
    nio_chat(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nio_talks_on_postgres() {
    nio_chat(Engine::Postgres).await;
}
