//! Which connection a datagram belongs to. The table of user name fragments is shared and locked, but asked only for
//! connectivity checks; the table of addresses belongs to one receiving task and needs no lock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::{ConnectionKey, Incoming};
use crate::transport::IceCredentials;
use crate::transport::stun::{Class, Message};

/// Addresses one receiving task remembers of one connection; the one unchecked for longest is forgotten beyond it. A
/// client has a few per network it is in.
const MAX_ADDRESSES: usize = 16;
/// An address belongs to its connection for this long after a check: when consent to send there ends (RFC 7675 §5.1).
const IN_USE_FOR: Duration = Duration::from_secs(30);
/// Addresses learned before the table first looks for those whose connections have ended.
const FIRST_SWEEP: usize = 64;

/// Where the datagrams of a connection go.
pub(super) struct Route {
    pub(super) connection: ConnectionKey,
    pub(super) inbox: mpsc::Sender<Incoming>,
}

/// One registered fragment.
struct Registered {
    route: Route,
    /// Proves that a check comes from the client that signalling told our credentials.
    password: String,
    ended: AtomicBool,
}

impl Registered {
    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

type Table = Arc<Mutex<HashMap<String, Arc<Registered>>>>;

/// All registered fragments.
#[derive(Default)]
pub(super) struct Routes(Table);

impl Routes {
    pub(super) fn register(
        &self,
        local: &IceCredentials,
        connection: ConnectionKey,
        inbox: mpsc::Sender<Incoming>,
    ) -> Registration {
        let registered = Arc::new(Registered {
            route: Route { connection, inbox },
            password: local.pwd.clone(),
            ended: AtomicBool::new(false),
        });
        self.0.lock().insert(local.ufrag.clone(), Arc::clone(&registered));
        Registration {
            ufrag: local.ufrag.clone(),
            registered,
            table: self.0.clone(),
        }
    }

    /// The connection that a check names, if its MESSAGE-INTEGRITY is right.
    fn verify(&self, check: &Message<'_>) -> Option<Arc<Registered>> {
        let (ufrag, _) = check.username?;
        let registered = self.0.lock().get(ufrag).map(Arc::clone)?;
        check.verify(&registered.password).then_some(registered)
    }
}

/// Keeps a connection reachable under one ICE user name fragment; ends when dropped.
pub struct Registration {
    ufrag: String,
    registered: Arc<Registered>,
    table: Table,
}

impl Registration {
    pub fn ufrag(&self) -> &str {
        &self.ufrag
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registered.ended.store(true, Ordering::Relaxed);
        let mut table = self.table.lock();
        if table
            .get(&self.ufrag)
            .is_some_and(|present| Arc::ptr_eq(present, &self.registered))
        {
            table.remove(&self.ufrag);
        }
    }
}

/// What one receiving task has learned: the addresses behind which connections are.
pub(super) struct AddressTable {
    learned: HashMap<SocketAddr, Learned>,
    /// The addresses of each connection, the one checked last at the end.
    by_connection: HashMap<ConnectionKey, SmallVec<[SocketAddr; 4]>>,
    /// The connection that the last connectivity check named, where that is not the one its address belongs to.
    named: Option<Arc<Registered>>,
    /// How many addresses may be there before the ended are looked for.
    sweep_beyond: usize,
}

struct Learned {
    registered: Arc<Registered>,
    last_check: Instant,
}

/// A datagram whose connection is known.
pub(super) struct Routed<'a> {
    pub(super) route: &'a Route,
    /// The datagram is a connectivity check whose integrity was verified.
    pub(super) is_check: bool,
}

impl Default for AddressTable {
    fn default() -> Self {
        Self {
            learned: HashMap::new(),
            by_connection: HashMap::new(),
            named: None,
            sweep_beyond: FIRST_SWEEP,
        }
    }
}

impl AddressTable {
    /// The connection that a datagram from `remote` belongs to. A connectivity check names it, and once its integrity is
    /// found right teaches the address. An address in use is not taken over by a check for another connection: whoever
    /// has a connection could send one with a forged source.
    pub(super) fn find(
        &mut self,
        routes: &Routes,
        now: Instant,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Option<Routed<'_>> {
        let Some(check) = Message::parse(datagram).filter(|message| message.class == Class::Request) else {
            return self.learned.get(&remote).map(|learned| Routed {
                route: &learned.registered.route,
                is_check: false,
            });
        };
        let registered = routes.verify(&check)?;
        let connection = registered.route.connection;
        match self.learned.get_mut(&remote) {
            Some(known) if known.registered.route.connection == connection => {
                known.last_check = now;
                known.registered = registered;
                self.checked_last(connection, remote);
            }
            Some(known) if !known.registered.is_ended() && now < known.last_check + IN_USE_FOR => {
                let named = self.named.insert(registered);
                return Some(Routed {
                    route: &named.route,
                    is_check: true,
                });
            }
            _ => self.learn(remote, registered, now),
        }
        self.learned.get(&remote).map(|learned| Routed {
            route: &learned.registered.route,
            is_check: true,
        })
    }

    fn learn(&mut self, remote: SocketAddr, registered: Arc<Registered>, now: Instant) {
        self.forget(remote);
        if self.learned.len() >= self.sweep_beyond {
            self.sweep();
        }
        let connection = registered.route.connection;
        let addresses = self.by_connection.entry(connection).or_default();
        let oldest = (addresses.len() >= MAX_ADDRESSES).then(|| addresses.remove(0));
        addresses.push(remote);
        if let Some(oldest) = oldest {
            self.learned.remove(&oldest);
        }
        let last_check = now;
        self.learned.insert(remote, Learned { registered, last_check });
    }

    fn checked_last(&mut self, connection: ConnectionKey, remote: SocketAddr) {
        if let Some(addresses) = self.by_connection.get_mut(&connection)
            && let Some(at) = addresses.iter().position(|address| *address == remote)
        {
            addresses[at..].rotate_left(1);
        }
    }

    fn forget(&mut self, remote: SocketAddr) {
        let Some(learned) = self.learned.remove(&remote) else {
            return;
        };
        let connection = learned.registered.route.connection;
        if let Some(addresses) = self.by_connection.get_mut(&connection) {
            addresses.retain(|address| *address != remote);
            if addresses.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
    }

    /// Forgets the addresses of connections that have ended; their number doubles at most until the next time.
    fn sweep(&mut self) {
        let ended: Vec<SocketAddr> = self
            .learned
            .iter()
            .filter(|(_, learned)| learned.registered.is_ended())
            .map(|(address, _)| *address)
            .collect();
        for address in ended {
            self.forget(address);
        }
        self.sweep_beyond = FIRST_SWEEP.max(self.learned.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::stun::clients::request;

    const INBOX: usize = 1;

    fn credentials(ufrag: &str) -> IceCredentials {
        IceCredentials {
            ufrag: ufrag.to_owned(),
            pwd: format!("password of {ufrag}"),
        }
    }

    fn check(ufrag: &str) -> Vec<u8> {
        request(&credentials(ufrag), false, false)
    }

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        Instant::now()
    }

    struct Fixture {
        routes: Routes,
        table: AddressTable,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                routes: Routes::default(),
                table: AddressTable::default(),
            }
        }

        fn register(&self, ufrag: &str, connection: u64) -> Registration {
            let (inbox, _) = mpsc::channel(INBOX);
            self.routes
                .register(&credentials(ufrag), ConnectionKey(connection), inbox)
        }

        fn find(&mut self, now: Instant, port: u16, datagram: &[u8]) -> Option<u64> {
            let found = self.table.find(&self.routes, now, address(port), datagram)?;
            Some(found.route.connection.0)
        }
    }

    #[test]
    fn an_address_in_use_is_not_taken_over() {
        let (now, mut fixture) = (start(), Fixture::new());
        let victim = fixture.register("victim", 1);
        let _other = fixture.register("other", 2);
        let mut find = |now, datagram: &[u8]| fixture.find(now, 5000, datagram);
        assert_eq!(find(now, b"\x80 media"), None);
        assert_eq!(find(now, &check("victim")), Some(1));
        assert_eq!(
            find(now, &check("other")),
            Some(2),
            "the check itself goes where it says"
        );
        assert_eq!(find(now, b"\x80 media"), Some(1), "the media does not");
        let later = now + IN_USE_FOR;
        assert_eq!(find(later, &check("other")), Some(2));
        assert_eq!(find(later, b"\x80 media"), Some(2), "the former owner was silent");
        let later = later + IN_USE_FOR;
        assert_eq!(find(later, &check("victim")), Some(1));
        drop(victim);
        assert_eq!(find(later, &check("other")), Some(2));
        assert_eq!(find(later, b"\x80 media"), Some(2), "the former owner is gone");
    }

    #[test]
    fn a_check_without_the_password_teaches_nothing() {
        let (now, mut fixture) = (start(), Fixture::new());
        let _registration = fixture.register("victim", 1);
        let forged = request(
            &IceCredentials {
                pwd: "a guess".to_owned(),
                ..credentials("victim")
            },
            true,
            false,
        );
        assert_eq!(fixture.find(now, 1, &forged), None);
        assert_eq!(fixture.find(now, 1, b"\x80 media"), None);
        assert!(fixture.table.learned.is_empty());
        assert_eq!(fixture.find(now, 2, &check("victim")), Some(1));
        assert_eq!(fixture.find(now, 2, &forged), None, "nor does it reach anybody");
        assert_eq!(fixture.find(now, 2, b"\x80 media"), Some(1));
    }

    #[test]
    fn a_connection_pushes_out_its_own_addresses_alone() {
        let (now, mut fixture) = (start(), Fixture::new());
        let _victim = fixture.register("victim", 1);
        let hostile = fixture.register("hostile", 2);
        assert_eq!(fixture.find(now, 1, &check("victim")), Some(1));
        for port in 1000..21_000 {
            assert_eq!(fixture.find(now, port, &check("hostile")), Some(2));
            // The first is in use all the time, and stays.
            assert_eq!(fixture.find(now, 1000, &check("hostile")), Some(2));
        }
        assert_eq!(fixture.find(now, 1, b"\x80 media"), Some(1));
        assert_eq!(fixture.table.learned.len(), 1 + MAX_ADDRESSES);
        assert_eq!(fixture.find(now, 1000, b"\x80 media"), Some(2));
        assert_eq!(fixture.find(now, 1001, b"\x80 media"), None);
        drop(hostile);
        // Others come and go; what they leave behind does not add up.
        for connection in 3..1000_u16 {
            let registration = fixture.register("passer-by", connection.into());
            assert_eq!(
                fixture.find(now, 21_000 + connection, &check("passer-by")),
                Some(connection.into())
            );
            drop(registration);
        }
        assert!(fixture.table.learned.len() <= 2 * FIRST_SWEEP);
        let listed: usize = fixture
            .table
            .by_connection
            .values()
            .map(|addresses| addresses.len())
            .sum();
        assert_eq!(fixture.table.learned.len(), listed);
        assert_eq!(fixture.find(now, 1, b"\x80 media"), Some(1));
    }
}
