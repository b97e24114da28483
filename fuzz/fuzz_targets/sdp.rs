#![no_main]
//! Session descriptions.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::sdp(bytes));
