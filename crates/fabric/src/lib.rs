//! Datagram and stream sockets for media, and the in-process switch between addresses that live in this process.
//!
//! Owns batched socket IO, framing for datagrams on streams, the checksum they share, and delivery between two parts of the process that both
//! have a public address. Knows no protocol above UDP: neither STUN, TURN, ICE nor RTP.

pub mod checksum;
pub mod framing;
pub mod switch;
pub mod udp;
