//! The entry points of the fuzz targets, with noise and damaged messages, in every test run.

use bytes::BytesMut;
use proptest::prelude::*;
use relay::{
    fuzzing,
    message::{Class, Encoder, Family, Method, TransactionId},
};
use testkit::mutation::hostile;

fn messages() -> Vec<Vec<u8>> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"key");
    let new = |class, method| Encoder::new(class, method, TransactionId([7; 12]));
    let peer = "192.0.2.1:9".parse().expect("literal");
    let peer6 = "[2001:db8::1]:9".parse().expect("literal");
    vec![
        new(Class::Request, Method::Binding).fingerprint().finish(),
        new(Class::Request, Method::Allocate)
            .requested_transport(17)
            .requested_family(Family::V6)
            .additional_family(Family::V6)
            .even_port(true)
            .reservation_token([1; 8])
            .dont_fragment()
            .lifetime(600)
            .username("1800000000:@alice:example.org")
            .realm("realm")
            .nonce(b"nonce")
            .integrity(&key)
            .fingerprint()
            .finish(),
        new(Class::Request, Method::CreatePermission)
            .xor_peer_address(peer)
            .xor_peer_address(peer6)
            .integrity(&key)
            .finish(),
        new(Class::Request, Method::ChannelBind)
            .channel_number(0x4000)
            .xor_peer_address(peer)
            .finish(),
        new(Class::Indication, Method::Send)
            .xor_peer_address(peer)
            .data(&[1; 50])
            .finish(),
        vec![0x40, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0],
    ]
}

/// Several messages, one after the other, each behind `prefix`.
fn streams(prefix: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let whole: Vec<u8> = messages()
        .iter()
        .flat_map(|message| [prefix(message), message.clone()].concat())
        .collect();
    vec![whole]
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut stream = BytesMut::new();
    fabric::framing::encode(message, &mut stream).expect("short");
    stream[..2].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn messages_are_survived(bytes in hostile(messages())) {
        fuzzing::message(&bytes);
    }

    #[test]
    fn streams_are_survived(bytes in hostile(streams(|_| Vec::new()))) {
        fuzzing::stream(&bytes);
    }

    #[test]
    fn strangers_are_survived(bytes in hostile(streams(framed))) {
        fuzzing::server(&bytes);
    }
}
