//! Channels of one allocation: 16-bit names for peer transport addresses (RFC 8656 §12).

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use crate::peer_policy::Reach;

/// RFC 8656 §12: fixed.
pub(crate) const LIFETIME: Duration = Duration::from_secs(600);
/// RFC 8656 narrowed the range to 0x4FFF; clients of RFC 5766 bind up to here, and nothing else arrives on this port.
pub(crate) const NUMBERS: RangeInclusive<u16> = 0x4000..=0x7FFF;
/// Channels an allocation may have at a time; bounds its memory.
pub(crate) const MAX: usize = 512;

/// The bound channels, findable from both ends.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    by_number: HashMap<u16, Binding>,
    by_peer: HashMap<SocketAddr, u16>,
}

#[derive(Debug, Clone, Copy)]
struct Binding {
    peer: SocketAddr,
    reach: Reach,
    expires: Instant,
}

/// Why a channel cannot be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The number stands for another peer, or the peer has another number.
    BoundOtherwise,
    TooMany,
}

impl Channels {
    /// Whether [`Channels::bind`] may be called.
    pub(crate) fn check(&mut self, number: u16, peer: SocketAddr, now: Instant) -> Result<(), Refused> {
        self.forget_if_expired(number, now);
        if let Some(&other) = self.by_peer.get(&peer) {
            self.forget_if_expired(other, now);
        }
        match (self.by_number.get(&number), self.by_peer.get(&peer)) {
            (Some(binding), Some(&bound)) if binding.peer == peer && bound == number => Ok(()),
            (None, None) if self.by_number.len() < MAX => Ok(()),
            (None, None) => {
                self.by_number.retain(|_, binding| binding.expires > now);
                self.by_peer.retain(|_, number| self.by_number.contains_key(number));
                if self.by_number.len() < MAX {
                    Ok(())
                } else {
                    Err(Refused::TooMany)
                }
            }
            _ => Err(Refused::BoundOtherwise),
        }
    }

    /// Binds or refreshes what [`Channels::check`] accepted.
    pub(crate) fn bind(&mut self, number: u16, peer: SocketAddr, reach: Reach, now: Instant) {
        self.by_number.insert(
            number,
            Binding {
                peer,
                reach,
                expires: now + LIFETIME,
            },
        );
        self.by_peer.insert(peer, number);
    }

    /// The peer this number stands for, and how it is reached.
    pub(crate) fn peer(&self, number: u16, now: Instant) -> Option<(SocketAddr, Reach)> {
        let binding = self.by_number.get(&number).filter(|binding| binding.expires > now)?;
        Some((binding.peer, binding.reach))
    }

    /// The number of this peer.
    pub(crate) fn number(&self, peer: SocketAddr, now: Instant) -> Option<u16> {
        self.by_peer
            .get(&peer)
            .copied()
            .filter(|&number| self.peer(number, now).is_some())
    }

    /// Takes back what needed a socket that cannot be had.
    pub(crate) fn revoke_outside(&mut self) {
        self.by_number.retain(|_, binding| {
            binding.reach.outside = false;
            binding.reach.inside
        });
        self.by_peer.retain(|_, number| self.by_number.contains_key(number));
    }

    fn forget_if_expired(&mut self, number: u16, now: Instant) {
        if let Some(binding) = self
            .by_number
            .get(&number)
            .copied()
            .filter(|binding| binding.expires <= now)
        {
            self.by_number.remove(&number);
            self.by_peer.remove(&binding.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Reach = Reach {
        inside: true,
        outside: false,
    };

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin for a test of elapsed time"
    )]
    fn a_number_and_a_peer_belong_together_until_they_expire() {
        let now = Instant::now();
        let mut channels = Channels::default();
        assert_eq!(channels.check(0x4000, peer(1), now), Ok(()));
        channels.bind(0x4000, peer(1), INSIDE, now);
        assert_eq!(channels.check(0x4000, peer(1), now), Ok(()), "a refresh");
        assert_eq!(channels.check(0x4000, peer(2), now), Err(Refused::BoundOtherwise));
        assert_eq!(channels.check(0x4001, peer(1), now), Err(Refused::BoundOtherwise));
        assert_eq!(
            (channels.peer(0x4000, now), channels.number(peer(1), now)),
            (Some((peer(1), INSIDE)), Some(0x4000))
        );
        let later = now + LIFETIME;
        assert_eq!(
            (channels.peer(0x4000, later), channels.number(peer(1), later)),
            (None, None)
        );
        assert_eq!(channels.check(0x4001, peer(1), later), Ok(()));
        channels.bind(0x4001, peer(1), INSIDE, later);
        assert_eq!(channels.peer(0x4000, later), None);
        assert_eq!(channels.number(peer(1), later), Some(0x4001));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "an arbitrary origin for a test of elapsed time"
    )]
    fn are_bounded() {
        let now = Instant::now();
        let mut channels = Channels::default();
        for index in 0..MAX as u16 {
            assert_eq!(channels.check(0x4000 + index, peer(index), now), Ok(()));
            channels.bind(0x4000 + index, peer(index), INSIDE, now);
        }
        assert_eq!(channels.check(0x7000, peer(60_000), now), Err(Refused::TooMany));
        assert_eq!(channels.check(0x4000, peer(0), now), Ok(()));
        assert_eq!(channels.check(0x7000, peer(60_000), now + LIFETIME), Ok(()));
    }
}
