//! Counts allocations on the relay's data path. Counting is exact, so the figures are asserted.

#[path = "support/prepared.rs"]
mod prepared;

use std::net::SocketAddr;

use allocation_counter::measure;
use prepared::{client, prepared};
use relay::{
    message::{Class, Encoder, Method, TransactionId},
    server::Outcome,
};

const PACKETS: usize = 1000;

/// What is counted: `PACKETS` times the same.
fn allocations(mut handle: impl FnMut()) -> u64 {
    handle();
    measure(|| (0..PACKETS).for_each(|_| handle())).count_total
}

#[test]
fn a_relayed_packet_allocates_nothing() {
    let mut bench = prepared();
    let outside: SocketAddr = ([192, 0, 2, 5], 2000).into();
    let other: SocketAddr = ([192, 0, 2, 6], 2000).into();
    let relayed = bench.allocate(client(0));
    bench.bind(client(0), outside);
    bench.permit(client(0), other);
    let second = bench.allocate(client(1));
    bench.bind(client(1), relayed);
    bench.permit(client(0), second);
    let payload = [7; 1200];
    let channel_data = [&[0x40, 0, 0x04, 0xB0][..], &payload].concat();
    let send = |peer| {
        Encoder::new(Class::Indication, Method::Send, TransactionId([3; 12]))
            .xor_peer_address(peer)
            .data(&payload)
            .finish()
    };
    let (to_peer, to_client) = (send(other), send(second));
    let (server, now) = (&mut bench.server, bench.now);

    let counted = [
        (
            "ChannelData to a peer",
            allocations(|| {
                let outcome = server.handle_client(now, client(0), &channel_data);
                assert!(matches!(outcome, Outcome::ToPeer(_)));
            }),
        ),
        (
            "a peer's datagram as ChannelData",
            allocations(|| {
                let outcome = server.handle_peer(now, relayed, outside, &payload);
                assert!(matches!(outcome, Outcome::ToClient(_)));
            }),
        ),
        (
            "Send to a peer",
            allocations(|| {
                let outcome = server.handle_client(now, client(0), &to_peer);
                assert!(matches!(outcome, Outcome::ToPeer(_)));
            }),
        ),
        (
            "a peer's datagram as Data",
            allocations(|| {
                let outcome = server.handle_peer(now, relayed, other, &payload);
                assert!(matches!(outcome, Outcome::ToClient(_)));
            }),
        ),
        (
            "ChannelData to another client",
            allocations(|| {
                let outcome = server.handle_client(now, client(1), &channel_data);
                assert!(matches!(outcome, Outcome::ToClient(_)));
            }),
        ),
        (
            "Send to another client",
            allocations(|| {
                let _ = server.handle_client(now, client(0), &to_client);
            }),
        ),
        (
            "a packet that is dropped",
            allocations(|| {
                let outcome = server.handle_client(now, client(2), &channel_data);
                assert!(matches!(outcome, Outcome::Dropped(_)));
            }),
        ),
    ];
    for (what, count) in counted {
        assert_eq!(count, 0, "allocations for {PACKETS} times {what}");
    }
}
