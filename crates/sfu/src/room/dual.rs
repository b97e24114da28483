//! The second connection of clients with two: the server offers on it what the client receives.
use super::actor::Room;
use std::time::Instant;
impl Room {
    pub(crate) fn answer(&mut self, _key: usize, _answer: livekit_protocol::SessionDescription, _now: Instant) {}
    pub(crate) fn open_subscriber(&mut self, _key: usize, _now: Instant) {}
    pub(crate) fn offer_subscriber(&mut self, _key: usize, _now: Instant) {}
}
