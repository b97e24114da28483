#![no_main]
//! STUN and TURN messages, as the relay reads them.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::fuzzing::message(bytes));
