#![no_main]
//! Datagrams to a connection: ICE, DTLS, SRTP.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sfu::fuzzing::datagrams(bytes));
