//! The per-packet path without a socket: ChannelData in, where it goes out.

#[path = "../tests/support/prepared.rs"]
#[expect(dead_code, reason = "the count of allocations needs more of it")]
mod prepared;

use std::{hint::black_box, net::SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use prepared::{client, prepared};
use relay::server::Outcome;

const CLIENTS: u16 = 200;

fn packet_path(criterion: &mut Criterion) {
    let mut bench = prepared();
    let relayed: Vec<SocketAddr> = (0..CLIENTS).map(|port| bench.allocate(client(port))).collect();
    let outside = |port: u16| SocketAddr::from(([192, 0, 2, 5], 2000 + port));
    let half = usize::from(CLIENTS / 2);
    for port in 0..CLIENTS / 2 {
        bench.bind(client(port), outside(port));
    }
    for port in CLIENTS / 2..CLIENTS {
        bench.bind(client(port), relayed[half + (usize::from(port) + 1) % half]);
    }
    let packet = [&[0x40, 0, 0x04, 0xB0][..], &[7; 1200]].concat();
    let (server, now) = (&mut bench.server, bench.now);

    let mut next = 0;
    criterion.bench_function("client to peer, ChannelData", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % (CLIENTS / 2);
            let outcome = server.handle_client(now, client(next), black_box(&packet));
            assert!(matches!(black_box(outcome), Outcome::ToPeer(_)));
        });
    });
    criterion.bench_function("peer to client, ChannelData", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % (CLIENTS / 2);
            let outcome = server.handle_peer(now, relayed[usize::from(next)], outside(next), black_box(&packet[4..]));
            assert!(matches!(black_box(outcome), Outcome::ToClient(_)));
        });
    });
    criterion.bench_function("client to client, ChannelData", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % (CLIENTS / 2);
            let outcome = server.handle_client(now, client(CLIENTS / 2 + next), black_box(&packet));
            assert!(matches!(black_box(outcome), Outcome::ToClient(_)));
        });
    });
}

criterion_group!(benches, packet_path);
criterion_main!(benches);
