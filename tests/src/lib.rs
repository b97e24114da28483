//! What the whole-system tests share: the real process on free ports, a fresh database for it, and the client scripts.
//!
//! The tests know the product by its published faces alone (command line, configuration file, sockets); nothing here
//! links against its crates. `./tests/run` prepares what the tests need and runs them.

pub mod environment;

mod calls;
mod database;
mod echo;
mod matrix;
mod ports;
mod script;
mod server;
mod uclient;
mod waiting;

pub use calls::{CallToken, Signalling};
pub use database::{Database, Engine};
pub use echo::UdpEcho;
pub use matrix::{Answer, Client, PASSWORD, SyncedEvent, escape, messages_in};
pub use ports::{free_port, free_ports, udp_ports_bound};
pub use script::{Script, one_call_at_a_time};
pub use server::{Ended, Server, Setup, command_line, program};
pub use uclient::Uclient;
pub use waiting::eventually;

/// Makes a test on each engine of every `async fn(Engine)` named: `sqlite::name` and `postgres::name`.
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::Engine::Sqlite).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::Engine::Postgres).await;
            })+
        }
    };
}
