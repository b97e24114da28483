//! Connections that stand, and packets for them: what the benchmark and the count of allocations share.

use std::net::SocketAddr;
use std::time::Instant;

use aws_lc_rs::hmac;
use bytes::BytesMut;
use sfu::transport::{
    Carrier, Certificate, DtlsRole, IceCredentials, IceMode, Path, PeerParams, PeerTransport, RemoteParams,
};

pub(crate) fn path(port: u16) -> Path {
    Path {
        carrier: Carrier::Udp,
        remote: SocketAddr::from(([192, 0, 2, 1], port)),
        local: None,
    }
}

/// A connectivity check that nominates, as a controlling client sends it.
fn nomination(to: &IceCredentials) -> BytesMut {
    let username = format!("{}:client", to.ufrag);
    let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42];
    message.extend_from_slice(&[9; 12]);
    for (kind, value) in [(0x06_u16, username.as_bytes()), (0x25, &[]), (0x802A, &[1; 8])] {
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&(value.len() as u16).to_be_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = (message.len() + 4) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, to.pwd.as_bytes());
    let tag = hmac::sign(&key, &message);
    message.extend_from_slice(&[0, 8, 0, 20]);
    message.extend_from_slice(tag.as_ref());
    BytesMut::from(&message[..])
}

/// The two sides of an established connection: ours, and a client that is one of our kind.
pub(crate) fn pair(now: Instant, certificate: &Certificate) -> [PeerTransport; 2] {
    let peer = || {
        let local = IceCredentials::random();
        PeerTransport::new(
            PeerParams {
                local,
                ice_mode: IceMode::Lite,
                certificate: certificate.clone(),
            },
            now,
        )
    };
    let mut peers = [peer(), peer()];
    for (side, role) in [(0, DtlsRole::Passive), (1, DtlsRole::Active)] {
        let ice = peers[1 - side].local_credentials().clone();
        let check = nomination(peers[side].local_credentials());
        peers[side].set_remote(
            now,
            RemoteParams {
                ice,
                fingerprint: certificate.fingerprint(),
                role,
            },
        );
        peers[side].handle_datagram(now, path(1), check);
    }
    while !peers.iter().all(PeerTransport::is_connected) {
        for side in [0, 1] {
            let mut datagrams = Vec::new();
            while let Some(transmit) = peers[side].poll_transmit() {
                datagrams.extend(transmit.datagrams().map(BytesMut::from));
            }
            for datagram in datagrams {
                peers[1 - side].handle_datagram(now, path(1), datagram);
            }
        }
    }
    for peer in &mut peers {
        while peer.poll_event().is_some() {}
        while peer.poll_transmit().is_some() {}
    }
    peers
}

/// A packet of a VP8 keyframe, unencrypted, with `payload` bytes in all after its header.
pub(crate) fn packet(sequence: u16, payload: usize) -> Vec<u8> {
    let mut packet = vec![0x80, 0x80 | 96];
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&(u32::from(sequence) * 3000).to_be_bytes());
    packet.extend_from_slice(&7_u32.to_be_bytes());
    // A VP8 descriptor with picture id and TL0 index, then a keyframe's first byte.
    packet.extend_from_slice(&[
        0x90,
        0xE0,
        0x80 | (sequence >> 8) as u8 & 0x7F,
        sequence as u8,
        1,
        0,
        0x10,
    ]);
    packet.resize(12 + payload, 0x55);
    packet
}
