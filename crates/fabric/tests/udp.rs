//! Real sockets on loopback: batches, offload runs, both families.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fabric::udp::{Coalescer, RecvBatch, Sent, Transmit, UdpSocket};

fn loopback() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback binds")
}

async fn receive(socket: &UdpSocket, expected: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new();
    let mut seen = Vec::new();
    while seen.len() < expected {
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut batch))
            .await
            .expect("loopback does not lose datagrams")
            .expect("socket works");
        seen.extend(
            batch
                .datagrams()
                .map(|datagram| (datagram.from, datagram.data.to_vec())),
        );
    }
    seen
}

#[tokio::test]
async fn a_run_arrives_as_the_datagrams_it_was_made_of() {
    let (sender, receiver) = (loopback(), loopback());
    let contents: Vec<u8> = (0..100_u8).flat_map(|n| vec![n; 1000]).chain([255; 10]).collect();
    let run = Transmit {
        to: receiver.local_addr(),
        contents: &contents,
        segment_size: Some(1000),
        source: None,
    };
    sender.send(run).await.expect("sent");
    let seen = receive(&receiver, 101).await;
    assert_eq!(seen.len(), 101);
    for (index, (from, data)) in seen.iter().enumerate().take(100) {
        assert_eq!(
            (*from, data),
            (
                sender.local_addr(),
                &vec![u8::try_from(index).expect("below 100"); 1000]
            )
        );
    }
    assert_eq!(seen[100].1, [255; 10]);
}

#[tokio::test]
async fn the_coalescer_keeps_order_lengths_and_destinations() {
    let sender = Arc::new(loopback());
    let receivers: Vec<UdpSocket> = (0..20).map(|_| loopback()).collect();
    let lengths = [100_usize, 100, 100, 40, 100, 200, 200, 1, 0, 0, 3, 1500, 1500];
    let mut coalescer = Coalescer::default();
    let mut sent = Sent::default();
    for (index, length) in lengths.into_iter().enumerate() {
        let tag = [u8::try_from(index).expect("few")];
        for receiver in &receivers {
            sent += coalescer.push(&sender, receiver.local_addr(), None, &[&tag, &vec![9; length]]);
        }
    }
    let source = Some(Ipv4Addr::LOCALHOST.into());
    sent += coalescer.push(&sender, receivers[0].local_addr(), source, &[b"explicit source"]);
    sent += coalescer.flush();
    assert_eq!(
        sent,
        Sent {
            datagrams: 20 * 13 + 1,
            lost: 0
        }
    );
    assert_eq!(
        (coalescer.flush(), Arc::strong_count(&sender)),
        (Sent::default(), 1),
        "nothing is kept"
    );
    let expected: Vec<(usize, usize)> = lengths.into_iter().enumerate().collect();
    for (index, receiver) in receivers.iter().enumerate() {
        let mut seen = receive(receiver, lengths.len() + usize::from(index == 0)).await;
        if index == 0 {
            assert_eq!(seen.pop().expect("the last").1, b"explicit source");
        }
        let shape: Vec<(usize, usize)> = seen
            .iter()
            .map(|(_, data)| (usize::from(data[0]), data.len() - 1))
            .collect();
        assert_eq!(shape, expected);
    }
}

#[tokio::test]
async fn both_wildcards_bind_the_same_port_and_tell_the_local_address() {
    let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into()).expect("binds");
    let port = four.local_addr().port();
    let six = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(six) => six,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => panic!("the families collide: {error}"),
        Err(_) => return, // no IPv6 on this machine
    };
    assert_eq!(six.local_addr().port(), port);
    let client = loopback();
    let hello = Transmit {
        to: (Ipv4Addr::LOCALHOST, port).into(),
        contents: b"hello",
        segment_size: None,
        source: None,
    };
    client.send(hello).await.expect("sent");
    let mut batch = RecvBatch::new();
    four.recv(&mut batch).await.expect("received");
    let datagram = batch.datagrams().next().expect("one");
    assert_eq!(datagram.local_ip, Some(Ipv4Addr::LOCALHOST.into()));
}

#[tokio::test]
async fn an_unreachable_peer_does_not_disturb_the_socket() {
    let socket = loopback();
    let gone = loopback().local_addr();
    for _ in 0..3 {
        let _ = socket.try_send(Transmit {
            to: gone,
            contents: b"anyone?",
            segment_size: None,
            source: None,
        });
    }
    let own = Transmit {
        to: socket.local_addr(),
        contents: b"still here",
        segment_size: None,
        source: None,
    };
    socket.send(own).await.expect("sent");
    assert_eq!(receive(&socket, 1).await[0].1, b"still here");
}
