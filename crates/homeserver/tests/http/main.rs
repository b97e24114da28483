//! The client API through its public face: HTTP requests into the router, on both engines.

mod harness;
mod remote;

mod accounts;
mod calls;
mod counts;
mod directory;
mod forks;
mod hostile;
mod key_backup;
mod keys;
mod media;
mod presence;
mod previews;
mod push_rules;
mod relations;
mod rooms;
mod router;
mod routes;
mod sync;
mod sync_moments;
mod upkeep;
mod user_directory;
