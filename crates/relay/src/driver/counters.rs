//! What the relay counts: added up in plain integers per packet, published once per turn.

use std::sync::{Arc, atomic::Ordering};

use fabric::udp::Sent;
use metrics::{Counter, Gauge, counter, gauge};

use crate::{listeners::SharedStats, server::Dropped};

pub(super) struct Counters {
    stats: Arc<SharedStats>,
    turn: Turn,
    metrics: Metrics,
}

/// Since the last publication.
#[derive(Default)]
struct Turn {
    received_packets: u64,
    received_bytes: u64,
    sent_packets: u64,
    switched_packets: u64,
    relayed_bytes: u64,
    dropped: [u64; REASONS.len()],
}

/// Reasons in the order of [`Turn::dropped`].
const REASONS: [&str; 8] = [
    "malformed",
    "no_allocation",
    "no_permission",
    "no_channel",
    "bandwidth",
    "queue_full",
    "peer_gone",
    "send_failed",
];
const QUEUE_FULL: usize = 5;
const PEER_GONE: usize = 6;
const SEND_FAILED: usize = 7;

/// Handles, so that counting looks nothing up.
struct Metrics {
    received_packets: Counter,
    received_bytes: Counter,
    sent_packets: Counter,
    switched_packets: Counter,
    relayed_bytes: Counter,
    dropped: [Counter; REASONS.len()],
    allocations: Gauge,
    sockets: Gauge,
}

impl Counters {
    pub(super) fn new(stats: Arc<SharedStats>) -> Self {
        let metrics = Metrics {
            received_packets: counter!("relay_received_packets_total"),
            received_bytes: counter!("relay_received_bytes_total"),
            sent_packets: counter!("relay_sent_packets_total"),
            switched_packets: counter!("relay_switched_packets_total"),
            relayed_bytes: counter!("relay_relayed_bytes_total"),
            dropped: REASONS.map(|reason| counter!("relay_dropped_packets_total", "reason" => reason)),
            allocations: gauge!("relay_allocations"),
            sockets: gauge!("relay_open_sockets"),
        };
        Self {
            stats,
            turn: Turn::default(),
            metrics,
        }
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.turn.received_packets += 1;
        self.turn.received_bytes += bytes as u64;
    }

    /// `sent` left or were lost; a payload of this many bytes was given on.
    pub(super) fn sent(&mut self, sent: Sent, payload_bytes: usize) {
        self.turn.sent_packets += sent.datagrams;
        self.turn.dropped[SEND_FAILED] += sent.lost;
        self.turn.relayed_bytes += payload_bytes as u64;
    }

    pub(super) fn switched(&mut self, payload_bytes: usize) {
        self.turn.switched_packets += 1;
        self.turn.relayed_bytes += payload_bytes as u64;
    }

    pub(super) fn dropped(&mut self, reason: Dropped) {
        let index = match reason {
            Dropped::Malformed => 0,
            Dropped::NoAllocation => 1,
            Dropped::NoPermission => 2,
            Dropped::NoChannel => 3,
            Dropped::Bandwidth => 4,
        };
        self.turn.dropped[index] += 1;
    }

    pub(super) fn queue_full(&mut self) {
        self.turn.dropped[QUEUE_FULL] += 1;
    }

    /// The peer may be reached, but is not there.
    pub(super) fn peer_gone(&mut self) {
        self.turn.dropped[PEER_GONE] += 1;
    }

    pub(super) fn publish(&mut self, allocations: usize, sockets: usize) {
        let turn = std::mem::take(&mut self.turn);
        let dropped: u64 = turn.dropped.iter().sum();
        for (total, count) in [
            (&self.stats.received_packets, turn.received_packets),
            (&self.stats.sent_packets, turn.sent_packets),
            (&self.stats.switched_packets, turn.switched_packets),
            (&self.stats.relayed_bytes, turn.relayed_bytes),
            (&self.stats.dropped_packets, dropped),
        ] {
            total.fetch_add(count, Ordering::Relaxed);
        }
        self.stats.allocations.store(allocations as u64, Ordering::Relaxed);
        self.stats.open_sockets.store(sockets as u64, Ordering::Relaxed);
        self.metrics.received_packets.increment(turn.received_packets);
        self.metrics.received_bytes.increment(turn.received_bytes);
        self.metrics.sent_packets.increment(turn.sent_packets);
        self.metrics.switched_packets.increment(turn.switched_packets);
        self.metrics.relayed_bytes.increment(turn.relayed_bytes);
        if dropped > 0 {
            for (counter, count) in self.metrics.dropped.iter().zip(turn.dropped) {
                counter.increment(count);
            }
        }
        self.metrics.allocations.set(allocations as f64);
        self.metrics.sockets.set(sockets as f64);
    }
}
