//! The STUN/TURN relay under coturn's own client, with credentials that the homeserver hands to a signed-in user.

use std::net::Ipv4Addr;

use system_tests::{Engine, Server, Setup, Uclient, UdpEcho, on_both_engines};

/// Relays to an echo peer on loopback, which the setting permits.
async fn relays(engine: Engine, options: &[&str]) {
    let server = Setup::new(engine)
        .set("turn", "allow_peers", "[\"127.0.0.0/8\"]")
        .start()
        .await;
    let user = server.client().register("turner").await;
    let peer = UdpEcho::start().await;
    let uclient = Uclient::with_credentials_of(&user, server.turn_port()).await;
    uclient.towards(&peer).loses_nothing(options).await;
    // Two clients of the relay need no peer.
    assert_eq!(
        peer.heard() > 0,
        !options.contains(&"-y"),
        "the peer heard {}",
        peer.heard()
    );
}

async fn relays_over_udp(engine: Engine) {
    relays(engine, &[]).await;
}

async fn relays_over_udp_by_send_indications(engine: Engine) {
    relays(engine, &["-s"]).await;
}

async fn relays_over_tcp(engine: Engine) {
    relays(engine, &["-t"]).await;
}

async fn two_clients_of_the_relay_reach_each_other(engine: Engine) {
    relays(engine, &["-y"]).await;
}

/// Without the setting, loopback and private networks are out of reach for the relay's users: they get an allocation, and
/// no permission to send from it.
async fn a_relay_without_permission_reaches_no_loopback_peer(engine: Engine) {
    let server = Server::start(engine).await;
    let user = server.client().register("turner").await;
    let peer = UdpEcho::start_at(Ipv4Addr::new(127, 0, 0, 2)).await;
    let uclient = Uclient::with_credentials_of(&user, server.turn_port()).await;
    uclient
        .towards(&peer)
        .prints(&[], &["Received relay addr", "channel bind: error 403 (Forbidden)"])
        .await;
    assert_eq!(peer.heard(), 0, "the relay sent to a peer that no setting allows");
}

/// The relay's own address is permitted, for the other allocations there: nothing else on it hears anything.
async fn the_relays_own_address_leads_to_allocations_alone(engine: Engine) {
    let server = Server::start(engine).await;
    let user = server.client().register("turner").await;
    let peer = UdpEcho::start().await;
    let uclient = Uclient::with_credentials_of(&user, server.turn_port()).await;
    uclient
        .towards(&peer)
        .prints(
            &[],
            &[
                "Received relay addr",
                "cb response received",
                "success",
                "tot_send_msgs=1",
            ],
        )
        .await;
    assert_eq!(peer.heard(), 0, "the relay sent to a peer that no setting allows");
}

on_both_engines!(
    relays_over_udp,
    relays_over_udp_by_send_indications,
    relays_over_tcp,
    two_clients_of_the_relay_reach_each_other,
    a_relay_without_permission_reaches_no_loopback_peer,
    the_relays_own_address_leads_to_allocations_alone,
);
