//! What [`crate::fuzzing`] reaches of the protocols that stay inside this module.

use super::IceCredentials;
use super::dcep::Dcep;
use super::stun::{Message, clients};

pub(crate) fn stun(bytes: &[u8]) {
    if let Some(message) = Message::parse(bytes) {
        assert!(!message.verify("a password that nobody used"));
    }
}

pub(crate) fn dcep(bytes: &[u8]) {
    if let Some(message) = Dcep::parse(bytes) {
        assert_eq!(
            Dcep::parse(&message.write()),
            Some(message),
            "what was read can be written"
        );
    }
}

/// A check that nominates, from the client of the agent with these credentials.
pub(crate) fn nomination(to: &IceCredentials) -> Vec<u8> {
    clients::request(to, true, false)
}
