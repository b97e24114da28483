//! Ranges of UDP ports that nobody else takes while a test runs.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

/// Where blocks lie where the kernel does not say which ports it gives out by itself.
const USUAL_EPHEMERAL: u16 = 32_768;
/// Below are the ports of well-known services.
const LOWEST: u16 = 10_000;
/// Ports of one block, the one that marks it as taken included.
const BLOCK: u16 = 100;

/// A range of UDP ports below those that the kernel gives out by itself, held against every other test of this machine
/// until dropped.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    /// Bound to the port before the range: whoever cannot bind it looks elsewhere.
    _claim: UdpSocket,
}

impl PortBlock {
    /// Claims a free block.
    ///
    /// # Panics
    /// When no block is free.
    pub fn claim() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let blocks = (first_ephemeral() - LOWEST) / BLOCK;
        // Processes begin at different places, so that they rarely meet.
        let start = (std::process::id() as u16).wrapping_mul(31);
        for _ in 0..blocks {
            let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % blocks;
            let mark = LOWEST + number * BLOCK;
            let Ok(claim) = bind(mark) else { continue };
            if (mark + 1..mark + BLOCK).all(|port| bind(port).is_ok()) {
                return Self {
                    first: mark + 1,
                    _claim: claim,
                };
            }
        }
        panic!("no block of {BLOCK} UDP ports is free");
    }

    /// The lowest port of the range.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The highest port of the range.
    pub fn last(&self) -> u16 {
        self.first + BLOCK - 2
    }
}

/// Written as the configuration wants it: `10001-10099`.
impl std::fmt::Display for PortBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first(), self.last())
    }
}

fn bind(port: u16) -> std::io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
}

/// The lowest port that the kernel gives to sockets that ask for none.
fn first_ephemeral() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|first| *first > LOWEST + BLOCK)
        .unwrap_or(USUAL_EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap_and_lie_below_what_the_kernel_gives_out() {
        let blocks: Vec<PortBlock> = (0..3).map(|_| PortBlock::claim()).collect();
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.last() < first_ephemeral());
            for other in &blocks[..index] {
                assert!(block.last() < other.first() || other.last() < block.first());
            }
        }
    }
}
