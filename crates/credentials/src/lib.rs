//! Short-lived proofs that the homeserver mints and the media plane verifies: TURN REST credentials and LiveKit access tokens.
pub mod livekit;
pub mod turn;
