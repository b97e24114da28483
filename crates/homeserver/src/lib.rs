//! The Matrix homeserver: client API, rooms, sync, media repository and calls.
//!
//! [`Homeserver`] is the handle that every request works on: its services are fields. The process
//! makes one with [`Homeserver::start`] and mounts [`client_api::router`].
//!
//! What this crate must not know: SQL (that is `storage`), sockets and listeners (the process), and
//! how media is carried (it acts on media through traits it owns).

pub mod client_api;

pub mod accounts;
pub mod calls;
pub mod devices;
pub mod limits;
pub mod media;
pub mod presence;
pub mod push;
pub mod room;
pub mod sync;

mod clock;
mod config;
mod keys;
mod server;
mod upkeep;

pub use clock::Clock;
pub use config::{Config, UserDirectory};
pub use keys::Keys;
pub use server::{Homeserver, Services, StartError};
