//! The client API through its public face: HTTP requests into the router, on both engines.

mod harness;
mod remote;

mod accounts;
mod calls;
mod counts;
mod directory;
mod forks;
mod hostile;
mod keys;
mod media;
mod push_rules;
mod rooms;
mod router;
mod sync;
mod sync_moments;
mod upkeep;
