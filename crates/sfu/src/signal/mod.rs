//! The signalling protocol of one connection: query parameters, message encoding, and the WebSocket task that carries
//! messages between a client and its room.
//!
//! Must not know rooms' inner state: it hands messages over and carries answers back.

mod allowance;
pub mod codec;
pub(crate) mod connection;
pub mod join;
pub(crate) mod outbound;

/// The LiveKit server version whose behaviour clients may expect; an empty or old one makes them work around old faults.
pub const SERVER_VERSION: &str = "1.13.5";
/// The signalling protocol version announced.
pub const PROTOCOL_VERSION: i32 = 17;
