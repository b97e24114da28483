#![no_main]
//! Signalling messages, protobuf and JSON.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::signalling(bytes));
