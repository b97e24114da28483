//! matrix-js-sdk, the code of Element Web, with its Rust cryptography.

use serde_json::json;
use system_tests::{Engine, Script, Server, on_both_engines};

/// Two users talk in an encrypted room; each reads the other decrypted, after a restart of the server too.
async fn two_users_chat_encrypted(engine: Engine) {
    let mut server = Server::start(engine).await;
    let mut script = Script::node("chat.mjs", &json!({ "baseUrl": server.base_url() }));
    assert_eq!(script.expect("syncing").await["user"], "@alice:longhouse.test");
    assert_eq!(script.expect("syncing").await["user"], "@bob:longhouse.test");
    for (text, sender) in [("the longhouse is warm", "alice"), ("and the door is open", "bob")] {
        let read = script.expect("read").await;
        assert_eq!(read["body"], text);
        assert_eq!(read["sender"], format!("@{sender}:longhouse.test"));
        assert_eq!(read["encrypted"], true);
    }

    script.expect("before-restart").await;
    server.restart().await;
    script.tell("restarted").await;

    let read = script.expect("read").await;
    assert_eq!(read["body"], "after the restart");
    assert_eq!(read["encrypted"], true);
    let history = script.expect("history").await;
    assert_eq!(
        history["decrypted"],
        json!(["after the restart", "and the door is open", "the longhouse is warm"]),
        "the newest first"
    );
    script.finish().await;
}

on_both_engines!(two_users_chat_encrypted);
