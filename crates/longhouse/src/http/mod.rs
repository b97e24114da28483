//! HTTP of the process: sockets and connections, the span and the client address of each request, health, and the order
//! in which the routers of the subsystems are asked. Knows no endpoint of theirs.

pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod probe;
pub(crate) mod request;
pub(crate) mod status;
pub(crate) mod tls;
