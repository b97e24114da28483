#![no_main]
//! Datagrams of a stranger to the relay.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::fuzzing::server(bytes));
