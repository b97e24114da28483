//! The STUN/TURN relay under coturn's own client, with credentials that the homeserver hands to a signed-in user.

use std::time::Duration;

use reqwest::Method;
use system_tests::{Engine, Server, Setup, UdpEcho};
use tokio::{process::Command, time::timeout};

/// A server whose relay may reach loopback, where the echo peer lives.
async fn server() -> Server {
    Setup::new(Engine::Sqlite)
        .set("turn", "allow_peers", "[\"127.0.0.0/8\"]")
        .start()
        .await
}

/// Two relays at once would fight for the ports of the one range: a test holds this until its server has stopped.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs `turnutils_uclient` with the credentials of a fresh user and asserts that nothing was lost.
async fn uclient(server: &Server, options: &[&str]) {
    let user = server.client().register("turner").await;
    let offered = user.ask(Method::GET, "/_matrix/client/v3/voip/turnServer", None).await;
    let field = |name: &str| {
        offered[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {offered}"))
            .to_owned()
    };
    let peer = UdpEcho::start().await;
    let run = Command::new("turnutils_uclient")
        .args(["-u", &field("username"), "-w", &field("password")])
        .args(["-p", &server.turn_port().to_string()])
        .args(["-e", "127.0.0.1", "-r", &peer.port().to_string()])
        .args(["-n", "50", "-m", "4", "-l", "400", "-z", "10"])
        .args(options)
        .arg("127.0.0.1")
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), run)
        .await
        .expect("turnutils_uclient ends within a minute");
    let output = output.expect("turnutils_uclient (package coturn) can be started");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "turnutils_uclient {options:?} failed:\n{text}");
    assert!(
        text.contains("Total lost packets 0 (0.000000%)"),
        "turnutils_uclient {options:?} lost packets:\n{text}"
    );
    let last = text
        .lines()
        .rfind(|line| line.contains("tot_recv_msgs="))
        .expect("the client counts its messages");
    assert!(
        !last.ends_with("tot_recv_msgs=0"),
        "turnutils_uclient {options:?} received nothing:\n{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_over_udp() {
    let _alone = ONE_AT_A_TIME.lock().await;
    uclient(&server().await, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_over_udp_by_send_indications() {
    let _alone = ONE_AT_A_TIME.lock().await;
    uclient(&server().await, &["-s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_over_tcp() {
    let _alone = ONE_AT_A_TIME.lock().await;
    uclient(&server().await, &["-t"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_the_relay_reach_each_other() {
    let _alone = ONE_AT_A_TIME.lock().await;
    uclient(&server().await, &["-y"]).await;
}

/// Without the setting, loopback and private networks are out of reach for the relay's users.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_permission_reaches_no_loopback_peer() {
    let server = Server::start(Engine::Sqlite).await;
    let user = server.client().register("turner").await;
    let offered = user.ask(Method::GET, "/_matrix/client/v3/voip/turnServer", None).await;
    let field = |name: &str| {
        offered[name]
            .as_str()
            .unwrap_or_else(|| panic!("no {name} in {offered}"))
            .to_owned()
    };
    let peer = UdpEcho::start().await;
    let run = Command::new("turnutils_uclient")
        .args(["-u", &field("username"), "-w", &field("password")])
        .args(["-p", &server.turn_port().to_string()])
        .args(["-e", "127.0.0.1", "-r", &peer.port().to_string()])
        .args(["-n", "1", "-m", "1", "-c"])
        .arg("127.0.0.1")
        .kill_on_drop(true)
        .output();
    // The client tries for as long as it is let; what counts is that nothing reached the peer.
    let _ = timeout(Duration::from_secs(10), run).await;
    assert_eq!(
        peer.heard(),
        0,
        "the relay sent to a loopback peer that no setting allows"
    );
}
