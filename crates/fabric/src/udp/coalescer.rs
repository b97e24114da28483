//! Fewer system calls out: datagrams of one length to one destination leave together.
//!
//! Owns the copies until they are sent. Delays nothing by itself: push what one received batch produced, then flush.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{MAX_COALESCED_LEN, Transmit, UdpSocket};

/// Largest datagram that is merged: the kernel refuses runs of segments above the path MTU, and 1400 passes nearly every
/// path.
const MAX_COALESCED_SEGMENT: usize = 1400;
/// Destinations collected at a time; bounds memory and the search.
const MAX_RUNS: usize = 16;

/// Merges datagrams of one length from one socket to one destination into single segmentation-offload sends.
///
/// Order is kept for each destination. Memory is bounded by 16 runs of 64 KiB.
#[derive(Debug, Default)]
pub struct Coalescer {
    /// Those before `open` hold datagrams; the rest keep their buffers for the next time.
    runs: Vec<Run>,
    open: usize,
}

#[derive(Debug)]
struct Run {
    /// Absent when the run is empty, so that a closed socket is not kept.
    socket: Option<Arc<UdpSocket>>,
    to: SocketAddr,
    source: Option<IpAddr>,
    contents: Vec<u8>,
    /// Length in bytes of each datagram but the last.
    segment: usize,
    count: u64,
}

/// Datagrams that left and that were lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub datagrams: u64,
    pub lost: u64,
}

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.lost += other.lost;
    }
}

impl Coalescer {
    /// Queues a datagram made of `parts`; sends earlier ones where it cannot join them. `source` as in
    /// [`Transmit::source`].
    pub fn push(&mut self, socket: &Arc<UdpSocket>, to: SocketAddr, source: Option<IpAddr>, parts: &[&[u8]]) -> Sent {
        let mut sent = Sent::default();
        let same = |run: &&mut Run| {
            run.to == to && run.source == source && run.socket.as_ref().is_some_and(|own| Arc::ptr_eq(own, socket))
        };
        if let Some(run) = self.runs[..self.open].iter_mut().rev().find(same) {
            if !run.admits(parts) {
                sent = run.send();
                run.socket = Some(Arc::clone(socket));
            }
            run.append(parts);
            return sent;
        }
        if self.open == MAX_RUNS {
            sent = self.flush();
        }
        if self.open == self.runs.len() {
            self.runs.push(Run {
                socket: None,
                to,
                source,
                contents: Vec::new(),
                segment: 0,
                count: 0,
            });
        }
        let run = &mut self.runs[self.open];
        (run.socket, run.to, run.source) = (Some(Arc::clone(socket)), to, source);
        run.append(parts);
        self.open += 1;
        sent
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Sent {
        let mut sent = Sent::default();
        for run in &mut self.runs[..self.open] {
            sent += run.send();
        }
        self.open = 0;
        sent
    }
}

impl Run {
    /// Whether the datagram may join: no longer than the others, none of them shorter, and room for it.
    fn admits(&self, parts: &[&[u8]]) -> bool {
        let length = length(parts);
        (1..=self.segment).contains(&length)
            && self.segment <= MAX_COALESCED_SEGMENT
            && self.contents.len() == self.segment * self.count as usize
            && self.contents.len() + length <= MAX_COALESCED_LEN
    }

    fn append(&mut self, parts: &[&[u8]]) {
        if self.count == 0 {
            self.segment = length(parts);
        }
        for part in parts {
            self.contents.extend_from_slice(part);
        }
        self.count += 1;
    }

    fn send(&mut self) -> Sent {
        let Some(socket) = self.socket.take() else {
            return Sent::default();
        };
        let segment_size = (self.count > 1).then_some(self.segment);
        let transmit = Transmit {
            to: self.to,
            contents: &self.contents,
            segment_size,
            source: self.source,
        };
        let result = socket.try_send(transmit);
        let count = std::mem::take(&mut self.count);
        self.contents.clear();
        match result {
            Ok(()) => Sent {
                datagrams: count,
                lost: 0,
            },
            Err(_) => Sent {
                datagrams: 0,
                lost: count,
            },
        }
    }
}

fn length(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}
