//! A selective forwarding unit that speaks LiveKit's client protocol. Knows no Matrix and no database.

pub mod media;
pub mod transport;
