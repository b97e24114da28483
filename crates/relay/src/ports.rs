//! Relayed port numbers: which are free, which are reserved for a later request (EVEN-PORT), which a socket may use.
//!
//! A port is a number first: allocations whose peers all live in this process never bind it. Those inside the configured
//! range may be bound when a peer outside is granted.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::message::Family;

/// RFC 8656 §7.2: a reserved port is kept for at least 30 seconds.
const RESERVATION: Duration = Duration::from_secs(30);
/// Reservations at a time; a client that wants more is told that there is no capacity.
const MAX_RESERVATIONS: usize = 256;
/// The dynamic range (RFC 6335 §6), from which RFC 8656 §7.2 wants relayed ports.
const DYNAMIC: RangeInclusive<u16> = 49152..=65535;
/// Random picks before the range is searched in order.
const RANDOM_PICKS: usize = 16;

/// An inclusive range of ports, written `49160-49200`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange(RangeInclusive<u16>);

/// Not a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of ports; write it like `49160-49200`, lowest first, ports above 1023")]
pub struct InvalidPortRange(String);

impl PortRange {
    /// # Errors
    /// When empty or reaching into the well-known ports.
    pub fn new(first: u16, last: u16) -> Result<Self, InvalidPortRange> {
        if first < 1024 || last < first {
            return Err(InvalidPortRange(format!("{first}-{last}")));
        }
        Ok(Self(first..=last))
    }

    pub fn first(&self) -> u16 {
        *self.0.start()
    }

    pub fn last(&self) -> u16 {
        *self.0.end()
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self(49160..=49200)
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |text: &str| text.trim().parse().ok();
        text.split_once('-')
            .and_then(|(first, last)| Self::new(parse(first)?, parse(last)?).ok())
            .ok_or_else(|| InvalidPortRange(text.to_owned()))
    }
}

impl TryFrom<String> for PortRange {
    type Error = InvalidPortRange;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first(), self.last())
    }
}

/// What an Allocate asks of its port (RFC 8656 §18.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parity {
    Any,
    Even,
    /// Even, with the next higher port reserved.
    EvenWithNext,
}

/// The port numbers in use.
#[derive(Debug, Clone)]
pub(crate) struct Ports(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    taken: HashSet<(Family, u16)>,
    reservations: HashMap<[u8; 8], Reservation>,
    /// Those a socket may be bound to.
    bindable: RangeInclusive<u16>,
    /// Whether a peer outside is possible at all; if not, the whole dynamic range is as good.
    prefers_bindable: bool,
}

#[derive(Debug)]
struct Reservation {
    ip: IpAddr,
    lease: PortLease,
    expires: Instant,
}

/// A port number that is nobody else's until this is dropped.
#[derive(Debug)]
pub(crate) struct PortLease {
    table: Arc<Mutex<Table>>,
    family: Family,
    port: u16,
    bindable: bool,
}

impl PortLease {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether a socket may be bound to it.
    pub(crate) fn is_bindable(&self) -> bool {
        self.bindable
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.table.lock().taken.remove(&(self.family, self.port));
    }
}

impl Ports {
    pub(crate) fn new(bindable: &PortRange, reaches_outside: bool) -> Self {
        Self(Arc::new(Mutex::new(Table {
            taken: HashSet::new(),
            reservations: HashMap::new(),
            bindable: bindable.0.clone(),
            prefers_bindable: reaches_outside,
        })))
    }

    /// Takes a free port that also satisfies `usable`, at random so that it cannot be foreseen.
    pub(crate) fn lease(
        &self,
        family: Family,
        parity: Parity,
        rng: &mut impl Rng,
        mut usable: impl FnMut(u16) -> bool,
    ) -> Option<PortLease> {
        let mut table = self.0.lock();
        let mut ranges = [
            Some(table.bindable.clone()).filter(|_| table.prefers_bindable),
            Some(DYNAMIC),
        ];
        if !table.prefers_bindable {
            ranges.swap(0, 1);
        }
        let port = ranges.into_iter().flatten().find_map(|range| {
            let mut fits = |port: u16| {
                (parity == Parity::Any || port.is_multiple_of(2))
                    && !table.taken.contains(&(family, port))
                    && (parity != Parity::EvenWithNext || table.next_is_free(family, port, &range))
                    && usable(port)
            };
            for _ in 0..RANDOM_PICKS {
                let port = rng.random_range(range.clone());
                if fits(port) {
                    return Some(port);
                }
            }
            let start = rng.random_range(range.clone());
            (start..=*range.end())
                .chain(*range.start()..start)
                .find(|&port| fits(port))
        })?;
        Some(self.take(&mut table, family, port))
    }

    /// Reserves the port after `lease` for whoever presents the token it returns.
    pub(crate) fn reserve_next(
        &self,
        ip: IpAddr,
        lease: &PortLease,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<[u8; 8]> {
        let mut table = self.0.lock();
        let port = lease.port.checked_add(1)?;
        if table.reservations.len() >= MAX_RESERVATIONS || table.taken.contains(&(lease.family, port)) {
            return None;
        }
        let token: [u8; 8] = rng.random();
        let lease = self.take(&mut table, lease.family, port);
        let previous = table.reservations.insert(
            token,
            Reservation {
                ip,
                lease,
                expires: now + RESERVATION,
            },
        );
        drop(table);
        // A lease locks the table to return its port: never drop one while it is locked.
        drop(previous);
        Some(token)
    }

    /// The reserved port this token stands for, once.
    pub(crate) fn redeem(&self, token: [u8; 8], now: Instant) -> Option<(IpAddr, PortLease)> {
        let reservation = self.0.lock().reservations.remove(&token)?;
        (reservation.expires > now).then_some((reservation.ip, reservation.lease))
    }

    /// Returns reserved ports nobody came for.
    pub(crate) fn expire(&self, now: Instant) {
        let expired: Vec<Reservation> = self
            .0
            .lock()
            .reservations
            .extract_if(|_, reservation| reservation.expires <= now)
            .map(|(_, v)| v)
            .collect();
        drop(expired);
    }

    /// When [`Ports::expire`] next has something to do.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.0
            .lock()
            .reservations
            .values()
            .map(|reservation| reservation.expires)
            .min()
    }

    fn take(&self, table: &mut Table, family: Family, port: u16) -> PortLease {
        table.taken.insert((family, port));
        let bindable = table.prefers_bindable && table.bindable.contains(&port);
        PortLease {
            table: Arc::clone(&self.0),
            family,
            port,
            bindable,
        }
    }
}

impl Table {
    fn next_is_free(&self, family: Family, port: u16, range: &RangeInclusive<u16>) -> bool {
        port.checked_add(1)
            .is_some_and(|next| range.contains(&next) && !self.taken.contains(&(family, next)))
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin for tests of elapsed time")]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn range(text: &str) -> PortRange {
        text.parse().expect("literal")
    }

    #[test]
    fn ranges_parse_or_say_how_to_write_them() {
        assert_eq!(range("49160-49200"), PortRange::default());
        assert_eq!(range(" 2000 - 2000 ").to_string(), "2000-2000");
        for text in ["", "5", "9-8", "2001-2000", "80-90", "1-70000", "a-b", "2000-3000-4000"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn prefers_the_range_then_hands_out_unbindable_numbers() {
        let ports = Ports::new(&range("2000-2003"), true);
        let mut rng = StdRng::seed_from_u64(7);
        let leases: Vec<PortLease> = (0..4)
            .map(|_| ports.lease(Family::V4, Parity::Any, &mut rng, |_| true).expect("free"))
            .collect();
        let mut seen: Vec<u16> = leases.iter().map(PortLease::port).collect();
        seen.sort_unstable();
        assert_eq!(seen, [2000, 2001, 2002, 2003]);
        assert!(leases.iter().all(PortLease::is_bindable));
        let beyond = ports
            .lease(Family::V4, Parity::Any, &mut rng, |_| true)
            .expect("numbers abound");
        assert!(!beyond.is_bindable() && beyond.port() >= 49152);
        assert!(
            ports
                .lease(Family::V6, Parity::Any, &mut rng, |_| true)
                .expect("own space")
                .is_bindable()
        );
        drop(leases);
        assert!(
            ports
                .lease(Family::V4, Parity::Any, &mut rng, |_| true)
                .expect("returned")
                .is_bindable()
        );
    }

    #[test]
    fn where_nothing_outside_is_allowed_no_port_is_bindable() {
        let ports = Ports::new(&range("49160-49200"), false);
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..200 {
            assert!(
                !ports
                    .lease(Family::V4, Parity::Any, &mut rng, |_| true)
                    .expect("free")
                    .is_bindable()
            );
        }
    }

    #[test]
    fn even_ports_and_reservations() {
        let ports = Ports::new(&range("2000-2003"), true);
        let mut rng = StdRng::seed_from_u64(3);
        let now = Instant::now();
        let ip: IpAddr = "192.0.2.1".parse().expect("literal");
        let even = ports
            .lease(Family::V4, Parity::EvenWithNext, &mut rng, |_| true)
            .expect("free");
        assert!(even.port().is_multiple_of(2));
        let token = ports.reserve_next(ip, &even, now, &mut rng).expect("next is free");
        assert_eq!(ports.redeem([0; 8], now).map(|(ip, _)| ip), None);
        let (redeemed_ip, next) = ports.redeem(token, now).expect("reserved");
        assert_eq!((redeemed_ip, next.port()), (ip, even.port() + 1));
        assert!(ports.redeem(token, now).is_none(), "a token is good once");

        let other = ports
            .lease(Family::V4, Parity::EvenWithNext, &mut rng, |_| true)
            .expect("free");
        let token = ports.reserve_next(ip, &other, now, &mut rng).expect("next is free");
        assert_eq!(ports.next_expiry(), Some(now + RESERVATION));
        ports.expire(now + RESERVATION);
        assert!(ports.redeem(token, now).is_none());
        assert_eq!(ports.next_expiry(), None);
    }
}
