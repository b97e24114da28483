#![no_main]
//! STUN messages, as ICE reads them.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::stun(bytes));
