#![no_main]
//! Byte streams of STUN messages and ChannelData.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::fuzzing::stream(bytes));
