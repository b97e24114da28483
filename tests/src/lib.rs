//! What the whole-system tests share: the real process on free ports, a fresh database for it, and the client scripts.
//!
//! The tests know the product by its published faces alone (command line, configuration file, sockets); nothing here
//! links against its crates. `./tests/run` prepares what the tests need and runs them.

pub mod environment;

mod database;
mod echo;
mod matrix;
mod ports;
mod script;
mod server;
mod waiting;

pub use database::{Database, Engine};
pub use echo::UdpEcho;
pub use matrix::{Answer, Client, PASSWORD, SyncedEvent, messages_in};
pub use ports::{free_port, udp_ports_bound};
pub use script::Script;
pub use server::{Ended, Server, Setup, command_line, program};
pub use waiting::eventually;
