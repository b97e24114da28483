//! The in-process switch: delivery between two addresses that both live in this process.
//!
//! Owns the table from public transport address to inbox. Two relay allocations, or an allocation and the SFU, meet here,
//! so that neither a kernel socket, nor an open port, nor a router that can hairpin is needed. Knows nothing of what the
//! datagrams mean and grants nothing: who may send to whom is the caller's policy.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// Shards bound the cost of attaching: one shard's table is copied, not the whole.
const SHARDS: usize = 64;

/// A datagram handed over inside the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's public address: what a kernel socket would have reported as source.
    pub from: SocketAddr,
    /// The attached address it was sent to.
    pub to: SocketAddr,
    pub payload: Bytes,
}

/// What became of a datagram given to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// No such address in this process: send it through a socket.
    NotHere,
    /// In the receiver's inbox.
    Delivered,
    /// The receiver is here but its inbox is full or closed; the datagram is lost, as datagrams may be.
    Dropped,
}

/// The address is already attached to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlreadyAttached(pub SocketAddr);

impl std::fmt::Display for AlreadyAttached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is already attached to the in-process switch", self.0)
    }
}

impl std::error::Error for AlreadyAttached {}

#[derive(Clone)]
struct Port {
    id: u64,
    inbox: mpsc::Sender<Datagram>,
}

type Shard = ArcSwap<HashMap<SocketAddr, Port>>;

struct Table {
    shards: [Shard; SHARDS],
    hasher: RandomState,
    next_id: AtomicU64,
}

impl Table {
    fn shard(&self, addr: &SocketAddr) -> &Shard {
        let hash = self.hasher.hash_one(addr);
        &self.shards[(hash % SHARDS as u64) as usize]
    }
}

/// A handle to the switch; clones share one table. Lookups take no lock.
#[derive(Clone)]
pub struct Switch(Arc<Table>);

impl Switch {
    /// An empty switch. A process has one.
    pub fn new() -> Self {
        Self(Arc::new(Table {
            shards: std::array::from_fn(|_| Shard::default()),
            hasher: RandomState::new(),
            next_id: AtomicU64::new(0),
        }))
    }

    /// Makes `addr` reachable: what is sent to it arrives in `inbox`, whose capacity is the only queue there is.
    /// IPv4-mapped IPv6 addresses are taken as the IPv4 address they stand for.
    ///
    /// # Errors
    /// When the address is attached already; the earlier attachment stays.
    pub fn attach(&self, addr: SocketAddr, inbox: mpsc::Sender<Datagram>) -> Result<Attachment, AlreadyAttached> {
        let addr = canonical(addr);
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let before = self.0.shard(&addr).rcu(|ports| {
            let mut ports = HashMap::clone(ports);
            ports.entry(addr).or_insert_with(|| Port {
                id,
                inbox: inbox.clone(),
            });
            ports
        });
        if before.contains_key(&addr) {
            return Err(AlreadyAttached(addr));
        }
        Ok(Attachment {
            switch: self.clone(),
            addr,
            id,
        })
    }

    /// Copies `payload` and puts it into the inbox of `to`, if that address is here. Never waits.
    pub fn deliver(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Delivery {
        self.deliver_with(from, to, || Bytes::copy_from_slice(payload))
    }

    /// As [`Switch::deliver`], for a payload that is already shared; see [`Arena`] for cheap ones.
    pub fn deliver_bytes(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Delivery {
        self.deliver_with(from, to, || payload)
    }

    /// As [`Switch::deliver`], copying into `arena` instead of allocating for each datagram.
    pub fn deliver_from(&self, arena: &mut Arena, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Delivery {
        self.deliver_with(from, to, || arena.copy(payload))
    }

    /// Whether the address lives in this process.
    pub fn is_here(&self, addr: SocketAddr) -> bool {
        let addr = canonical(addr);
        self.0.shard(&addr).load().contains_key(&addr)
    }

    fn deliver_with(&self, from: SocketAddr, to: SocketAddr, payload: impl FnOnce() -> Bytes) -> Delivery {
        let to = canonical(to);
        let ports = self.0.shard(&to).load();
        let Some(port) = ports.get(&to) else {
            return Delivery::NotHere;
        };
        match port.inbox.try_reserve() {
            Ok(permit) => {
                permit.send(Datagram {
                    from: canonical(from),
                    to,
                    payload: payload(),
                });
                Delivery::Delivered
            }
            Err(_) => Delivery::Dropped,
        }
    }

    fn detach(&self, addr: SocketAddr, id: u64) {
        self.0.shard(&addr).rcu(|ports| {
            let mut ports = HashMap::clone(ports);
            if ports.get(&addr).is_some_and(|port| port.id == id) {
                ports.remove(&addr);
            }
            ports
        });
    }
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let attached: usize = self.0.shards.iter().map(|shard| shard.load().len()).sum();
        f.debug_struct("Switch").field("attached", &attached).finish()
    }
}

/// Keeps an address attached; dropping it makes the address unreachable.
#[derive(Debug)]
#[must_use = "dropping an attachment detaches the address"]
pub struct Attachment {
    switch: Switch,
    addr: SocketAddr,
    id: u64,
}

impl Attachment {
    /// The attached address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.switch.detach(self.addr, self.id);
    }
}

/// Cuts many small shared payloads out of few large blocks, so that handing a datagram over costs a copy but no
/// allocation. One per sending task.
#[derive(Debug, Default)]
pub struct Arena(BytesMut);

impl Arena {
    /// A block lives until its last datagram is consumed; this bounds what a slow receiver can pin per datagram.
    const BLOCK: usize = 32 * 1024;

    /// A shared copy of `payload`.
    pub fn copy(&mut self, payload: &[u8]) -> Bytes {
        if payload.len() > Self::BLOCK / 4 {
            return Bytes::copy_from_slice(payload);
        }
        if self.0.capacity() < payload.len() {
            self.0 = BytesMut::with_capacity(Self::BLOCK);
        }
        self.0.extend_from_slice(payload);
        self.0.split().freeze()
    }
}

/// Sockets of either family and configuration may spell one IPv4 address in two ways; the table knows one.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("a literal address")
    }

    #[test]
    fn delivers_only_to_attached_addresses_and_detaches_on_drop() {
        let switch = Switch::new();
        let (tx, mut rx) = mpsc::channel(1);
        let (a, b) = (addr("192.0.2.1:1000"), addr("[::ffff:192.0.2.2]:2000"));
        assert_eq!(switch.deliver(a, b, b"early"), Delivery::NotHere);

        let attachment = switch.attach(b, tx.clone()).expect("free");
        assert_eq!(
            switch.attach(addr("192.0.2.2:2000"), tx).err(),
            Some(AlreadyAttached(addr("192.0.2.2:2000")))
        );
        assert!(switch.is_here(addr("192.0.2.2:2000")));
        assert_eq!(switch.deliver(a, b, b"one"), Delivery::Delivered);
        assert_eq!(
            switch.deliver(a, b, b"two"),
            Delivery::Dropped,
            "a full inbox drops, it never waits"
        );
        let got = rx.try_recv().expect("delivered");
        assert_eq!(
            got,
            Datagram {
                from: a,
                to: addr("192.0.2.2:2000"),
                payload: Bytes::from_static(b"one")
            }
        );

        drop(rx);
        assert_eq!(switch.deliver(a, b, b"three"), Delivery::Dropped);
        drop(attachment);
        assert_eq!(switch.deliver(a, b, b"four"), Delivery::NotHere);
    }

    #[test]
    fn a_thousand_addresses_come_and_go_concurrently() {
        let switch = Switch::new();
        std::thread::scope(|scope| {
            for thread in 0_u8..4 {
                let switch = switch.clone();
                scope.spawn(move || {
                    let (tx, mut rx) = mpsc::channel(8);
                    let attachments: Vec<_> = (1..=250)
                        .map(|port| switch.attach(SocketAddr::from(([10, 0, 0, thread], port)), tx.clone()))
                        .map(|attached| attached.expect("distinct addresses"))
                        .collect();
                    for attachment in &attachments {
                        assert_eq!(
                            switch.deliver(addr("10.9.9.9:9"), attachment.addr(), b"x"),
                            Delivery::Delivered
                        );
                        assert_eq!(rx.try_recv().expect("own inbox").to, attachment.addr());
                    }
                });
            }
        });
        assert_eq!(format!("{switch:?}"), "Switch { attached: 0 }");
    }

    #[test]
    fn arena_copies_are_independent() {
        let mut arena = Arena::default();
        let copies: Vec<Bytes> = (0_u32..5_000).map(|n| arena.copy(&n.to_be_bytes())).collect();
        for (n, copy) in (0_u32..).zip(&copies) {
            assert_eq!(copy[..], n.to_be_bytes());
        }
        assert_eq!(arena.copy(&[7; 60_000]).len(), 60_000);
    }
}
