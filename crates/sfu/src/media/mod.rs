//! What RTP packets mean and what is done to them on the way from a publisher to its subscribers. Pure: no async
//! runtime, no clock, no socket, no encryption.

pub mod header_extensions;
pub mod rtp;
