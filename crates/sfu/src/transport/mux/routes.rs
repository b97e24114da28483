//! Which connection a datagram belongs to. The table of user name fragments is shared and locked, but asked only for
//! STUN; the table of addresses belongs to one receiving task and needs no lock.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{ConnectionKey, Incoming};
use crate::transport::stun;

/// Addresses one receiving task remembers; the oldest is forgotten beyond it and learned again from the next check.
const MAX_ADDRESSES: usize = 16_384;
/// An address belongs to its connection for this long after a check: clients check every 2.5 s or more often.
const IN_USE_FOR: Duration = Duration::from_secs(6);

#[derive(Clone)]
pub(super) struct Route {
    pub(super) connection: ConnectionKey,
    pub(super) inbox: mpsc::Sender<Incoming>,
}

type Table = Arc<Mutex<HashMap<String, Route>>>;

/// All registered fragments.
#[derive(Default)]
pub(super) struct Routes(Table);

impl Routes {
    pub(super) fn register(
        &self,
        ufrag: &str,
        connection: ConnectionKey,
        inbox: mpsc::Sender<Incoming>,
    ) -> Registration {
        self.0.lock().insert(ufrag.to_owned(), Route { connection, inbox });
        Registration {
            ufrag: ufrag.to_owned(),
            connection,
            table: self.0.clone(),
        }
    }

    pub(super) fn find(&self, ufrag: &str) -> Option<Route> {
        self.0.lock().get(ufrag).cloned()
    }
}

/// Keeps a connection reachable under one ICE user name fragment; ends when dropped.
pub struct Registration {
    ufrag: String,
    connection: ConnectionKey,
    table: Table,
}

impl Registration {
    pub fn ufrag(&self) -> &str {
        &self.ufrag
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        if table
            .get(&self.ufrag)
            .is_some_and(|route| route.connection == self.connection)
        {
            table.remove(&self.ufrag);
        }
    }
}

/// What one receiving task has learned: the addresses behind which connections are.
#[derive(Default)]
pub(super) struct AddressTable {
    learned: HashMap<SocketAddr, Learned>,
    order: VecDeque<SocketAddr>,
    /// The connection that the last connectivity check named, where that is not the one its address belongs to.
    named: Option<Route>,
}

struct Learned {
    route: Route,
    ufrag: String,
    last_check: Instant,
}

impl AddressTable {
    /// The connection that a datagram from `remote` belongs to. A connectivity check names it, and thereby teaches the
    /// address; the connection itself checks the password before it believes any of it. An address in use is not taken
    /// over by a check for another connection: anybody could send one with a forged source.
    pub(super) fn find(
        &mut self,
        routes: &Routes,
        now: Instant,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Option<&Route> {
        let Some(ufrag) = stun::is_stun(datagram).then(|| stun::local_ufrag(datagram)).flatten() else {
            return self.learned.get(&remote).map(|learned| &learned.route);
        };
        let route = routes.find(ufrag)?;
        let is_free = self.learned.get(&remote).is_none_or(|known| {
            known.route.connection == route.connection
                || now >= known.last_check + IN_USE_FOR
                || routes.find(&known.ufrag).is_none()
        });
        if !is_free {
            self.named = Some(route);
            return self.named.as_ref();
        }
        let learned = Learned {
            route,
            ufrag: ufrag.to_owned(),
            last_check: now,
        };
        if self.learned.insert(remote, learned).is_none() {
            self.remember(remote);
        }
        self.learned.get(&remote).map(|learned| &learned.route)
    }

    fn remember(&mut self, remote: SocketAddr) {
        self.order.push_back(remote);
        if self.order.len() > MAX_ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.learned.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::IceCredentials;
    use crate::transport::stun::testing::request;

    fn check(ufrag: &str) -> Vec<u8> {
        request(
            &IceCredentials {
                ufrag: ufrag.to_owned(),
                pwd: String::new(),
            },
            false,
            false,
        )
    }

    #[test]
    fn an_address_in_use_is_not_taken_over() {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        let now = Instant::now();
        let (routes, mut table) = (Routes::default(), AddressTable::default());
        let (inbox, _received) = mpsc::channel(1);
        let victim = routes.register("victim", ConnectionKey(1), inbox.clone());
        let _other = routes.register("other", ConnectionKey(2), inbox);
        let remote: SocketAddr = ([192, 0, 2, 1], 5000).into();
        let mut find = |now, datagram: &[u8]| {
            let route = table.find(&routes, now, remote, datagram)?;
            Some(route.connection.0)
        };
        assert_eq!(find(now, b"\x80 media"), None);
        assert_eq!(find(now, &check("victim")), Some(1));
        assert_eq!(
            find(now, &check("other")),
            Some(2),
            "the check itself goes where it says"
        );
        assert_eq!(find(now, b"\x80 media"), Some(1), "the media does not");
        assert_eq!(find(now + IN_USE_FOR, &check("other")), Some(2));
        assert_eq!(
            find(now + IN_USE_FOR, b"\x80 media"),
            Some(2),
            "the former owner was silent"
        );
        assert_eq!(find(now + IN_USE_FOR * 2, &check("victim")), Some(1));
        drop(victim);
        assert_eq!(find(now + IN_USE_FOR * 2, &check("other")), Some(2));
        assert_eq!(
            find(now + IN_USE_FOR * 2, b"\x80 media"),
            Some(2),
            "the former owner is gone"
        );
    }
}
