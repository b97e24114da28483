#![no_main]
//! Compound RTCP packets.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::rtcp(bytes));
