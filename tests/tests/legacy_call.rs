//! 1:1 calls (`m.call.*`) in Chromium with media through the relay only, between two clients of the same relay: the
//! switch inside the process joins them, and no port of the relay range is ever opened.

use serde_json::json;
use system_tests::{Engine, Script, Server, on_both_engines, one_call_at_a_time, udp_ports_bound};

async fn a_video_call_needs_no_relay_port(engine: Engine) {
    let _turn = one_call_at_a_time().await;
    let server = Server::start(engine).await;
    let range = server.relay_ports();
    assert_eq!(
        udp_ports_bound(range.clone()),
        Vec::<u16>::new(),
        "the relay opens its range before anybody asks"
    );

    let mut script = Script::node("legacy_call.mjs", &json!({ "baseUrl": server.base_url() }));
    for _side in ["caller", "callee"] {
        let offered = script.expect("turn-servers").await;
        let port = format!(":{}", server.turn_port());
        let uris = offered["uris"].as_array().expect("the script reports a list");
        assert!(
            uris.iter()
                .any(|uri| uri.as_str().is_some_and(|uri| uri.contains(&port))),
            "{offered}"
        );
    }
    for side in ["caller", "callee"] {
        let media = script.expect("media").await;
        assert_eq!(media["side"], side);
        assert_eq!(
            (&media["local"], &media["remote"]),
            (&json!("relay"), &json!("relay")),
            "{media}"
        );
    }
    script.expect("in-call").await;
    assert_eq!(
        udp_ports_bound(range),
        Vec::<u16>::new(),
        "media between two clients of the relay left the process"
    );
    script.tell("hang-up").await;
    script.expect("ended").await;
    script.finish().await;
}

on_both_engines!(a_video_call_needs_no_relay_port);
