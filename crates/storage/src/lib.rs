//! Everything that survives a restart. The only crate that knows SQL.
//!
//! [`Store`] is a cheap handle. Reads borrow a [`Conn`] with [`Store::read`]; writes are closures
//! given to [`Store::write`] or [`Store::write_at`], which answer once the transaction is durable.
//! One SQL text serves SQLite and PostgreSQL (`$1` placeholders, the subset both engines share);
//! what differs is a token that [`Dialect`] expands.
//!
//! What this crate must not know: Matrix rules, HTTP, and the clock.

#[macro_use]
mod macros;

mod config;
mod conn;
mod error;
mod filters;
mod migrate;
mod positions;
mod server_values;
mod store;
mod writer;

pub mod account_data;
pub mod accounts;
pub mod calls;
pub mod devices;
pub mod events;
pub mod key_backups;
pub mod keys;
pub mod media;
pub mod presence;
pub mod push;
pub mod receipts;
pub mod reports;
pub mod rooms;
pub mod state;
pub mod to_device;
pub mod user_directory;

pub use config::Config;
pub use conn::{Conn, Dialect, list};
pub use error::{Error, OpenError};
pub use positions::{Positions, Reservation};
pub use store::Store;

/// What a job given to [`Store::write`] returns.
pub use futures_util::future::BoxFuture;
