#![no_main]
//! The framing of ICE-TCP.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::framing(bytes));
