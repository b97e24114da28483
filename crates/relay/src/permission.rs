//! Permissions of one allocation: which peer IP addresses may exchange data with the client (RFC 8656 §9).

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::peer_policy::Reach;

/// RFC 8656 §9: fixed.
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);
/// Peers an allocation may have at a time; bounds its memory.
pub(crate) const MAX: usize = 512;

/// The installed permissions.
#[derive(Debug, Default)]
pub(crate) struct Permissions(HashMap<IpAddr, Permission>);

#[derive(Debug, Clone, Copy)]
struct Permission {
    expires: Instant,
    reach: Reach,
}

impl Permissions {
    /// Whether these peers fit beside the live permissions; forgets expired ones if need be.
    pub(crate) fn has_room_for(&mut self, peers: impl Iterator<Item = IpAddr> + Clone, now: Instant) -> bool {
        let fits = |permissions: &HashMap<IpAddr, Permission>| {
            // Repeated peers are counted each: a bound, not a count.
            permissions.len() + peers.clone().filter(|peer| !permissions.contains_key(peer)).count() <= MAX
        };
        fits(&self.0) || {
            self.0.retain(|_, permission| permission.expires > now);
            fits(&self.0)
        }
    }

    /// Installs or refreshes.
    pub(crate) fn install(&mut self, peer: IpAddr, reach: Reach, now: Instant) {
        self.0.insert(
            peer,
            Permission {
                expires: now + LIFETIME,
                reach,
            },
        );
    }

    /// How the peer may be reached, if it has a permission.
    pub(crate) fn reach(&self, peer: IpAddr, now: Instant) -> Option<Reach> {
        self.0
            .get(&peer)
            .filter(|permission| permission.expires > now)
            .map(|permission| permission.reach)
    }

    /// Takes back what needed a socket that cannot be had.
    pub(crate) fn revoke_outside(&mut self) {
        self.0.retain(|_, permission| {
            permission.reach.outside = false;
            permission.reach.inside
        });
    }
}
