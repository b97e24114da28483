#![no_main]
//! The decoders that see bytes before anyone is authenticated: STUN messages and RFC 4571 frames.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = relay::message::Message::decode(data) {
        assert!(message.peers.len() <= data.len() / 12, "each peer took at least twelve bytes");
    }
    let mut stream = bytes::BytesMut::from(data);
    while let Ok(Some(payload)) = fabric::framing::decode(&mut stream, 1500) {
        assert!(payload.len() <= 1500);
    }
});
