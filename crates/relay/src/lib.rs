//! A STUN/TURN relay (RFC 8489, RFC 8656). Knows no Matrix and no database.
//!
//! [`server`] is the protocol: pure, told the time, commands out. [`start`] puts it on sockets. Two allocations of one
//! process, and an allocation and the SFU, meet in the in-process switch of `fabric`: no socket, no open port.

mod config;
#[doc(hidden)]
pub mod fuzzing;
pub mod message;
pub mod server;

mod allocation;
mod channel;
mod nonce;
mod peer_policy;
mod permission;
mod ports;
mod quota;

mod driver;
mod listeners;
mod stream;

pub use config::Config;
pub use listeners::{Protocol, RelayHandle, StartError, Stats, start};
pub use ports::{InvalidPortRange, PortRange};
