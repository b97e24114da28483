//! What the server has answered with success, and must therefore keep.

use std::collections::{BTreeMap, BTreeSet};

use system_tests::Client;

/// The memory of the clients.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Room, text and event id of each message.
    pub(crate) messages: BTreeMap<(String, String), String>,
    /// Messages to the reader's device.
    pub(crate) to_device: BTreeSet<String>,
    /// The last number written under each type of the reader's account data.
    pub(crate) account_data: BTreeMap<String, u64>,
    /// The event up to which each user said to have read each room.
    pub(crate) receipts: BTreeMap<(String, String), String>,
    /// Files by their address.
    pub(crate) media: BTreeMap<String, Vec<u8>>,
    /// Sessions of the keyholder.
    pub(crate) sessions: Vec<Client>,
    /// The identity key of each of the keyholder's devices.
    pub(crate) device_keys: BTreeMap<String, String>,
    /// One-time keys published: device and key id.
    pub(crate) published: BTreeSet<(String, String)>,
    /// One-time keys handed out: device and key id, as often as they were.
    pub(crate) claimed: Vec<(String, String)>,
    /// Claims without an answer, each of which may have used up one key.
    pub(crate) unanswered_claims: usize,
}

impl Ledger {
    /// Adds what another client was answered later.
    pub(crate) fn add(&mut self, other: Self) {
        self.messages.extend(other.messages);
        self.to_device.extend(other.to_device);
        self.account_data.extend(other.account_data);
        self.receipts.extend(other.receipts);
        self.media.extend(other.media);
        self.sessions.extend(other.sessions);
        self.device_keys.extend(other.device_keys);
        self.published.extend(other.published);
        self.claimed.extend(other.claimed);
        self.unanswered_claims += other.unanswered_claims;
    }
}
