#![no_main]
//! RTP packets: header, extensions, payload descriptors.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::rtp(bytes));
