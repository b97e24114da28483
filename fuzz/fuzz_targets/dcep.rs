#![no_main]
//! Openings of data channels.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::dcep(bytes));
