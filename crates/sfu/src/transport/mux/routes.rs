//! Which connection a datagram belongs to. The table of user name fragments is shared and locked, but asked only for
//! STUN; the table of addresses belongs to one receiving task and needs no lock.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{ConnectionKey, Incoming};
use crate::transport::stun;

/// Addresses one receiving task remembers; the oldest is forgotten beyond it and learned again from the next check.
const MAX_ADDRESSES: usize = 16_384;

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
    routes: HashMap<SocketAddr, Route>,
    order: VecDeque<SocketAddr>,
}

impl AddressTable {
    /// The connection that a datagram from `remote` belongs to. A connectivity check names it, and thereby teaches the
    /// address; the connection itself checks the password before it believes any of it.
    pub(super) fn find(&mut self, routes: &Routes, remote: SocketAddr, datagram: &[u8]) -> Option<&Route> {
        if stun::is_stun(datagram)
            && let Some(ufrag) = stun::local_ufrag(datagram)
        {
            let route = routes.find(ufrag)?;
            match self.routes.insert(remote, route) {
                None => self.remember(remote),
                Some(_before) => {}
            }
        }
        self.routes.get(&remote)
    }

    fn remember(&mut self, remote: SocketAddr) {
        self.order.push_back(remote);
        if self.order.len() > MAX_ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.routes.remove(&oldest);
        }
    }
}
