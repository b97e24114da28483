//! One allocation (RFC 8656 §2.2): a client's 5-tuple, its relayed addresses, permissions and channels.

use std::{net::SocketAddr, time::Instant};

use fabric::switch::Attachment;

use crate::{
    channel::Channels,
    message::{ErrorCode, Family, TransactionId},
    permission::Permissions,
    ports::PortLease,
    quota::{Bandwidth, QuotaLease},
    server::FiveTuple,
};

#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) client: FiveTuple,
    /// Of the Allocate that made it: a retransmission gets the same answer (RFC 8656 §7.2).
    pub(crate) transaction_id: TransactionId,
    pub(crate) quota: QuotaLease,
    /// At most one per family.
    pub(crate) relays: Relays,
    /// The token for the reserved next port, repeated to a retransmission.
    pub(crate) reservation: Option<[u8; 8]>,
    /// Why there is no additional family, repeated to a retransmission.
    pub(crate) additional_error: Option<(Family, ErrorCode)>,
    pub(crate) permissions: Permissions,
    pub(crate) channels: Channels,
    pub(crate) bandwidth: Bandwidth,
}

/// A relayed transport address.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) expires: Instant,
    pub(crate) port: PortLease,
    /// Whether a socket for peers outside is open (or being opened).
    pub(crate) socket_open: bool,
    /// Makes the address reachable inside the process; dropped with the relay.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) attachment: Attachment,
}

#[derive(Debug, Default)]
pub(crate) struct Relays {
    v4: Option<Relay>,
    v6: Option<Relay>,
}

impl Relays {
    pub(crate) fn get(&self, family: Family) -> Option<&Relay> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    pub(crate) fn slot(&mut self, family: Family) -> &mut Option<Relay> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Relay> {
        self.v4.iter().chain(&self.v6)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Relay> {
        self.v4.iter_mut().chain(&mut self.v6)
    }

    /// When the first of them expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.iter().map(|relay| relay.expires).min()
    }
}
