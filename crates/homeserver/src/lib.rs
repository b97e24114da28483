//! The Matrix homeserver: client API, rooms, sync, media repository and calls.
