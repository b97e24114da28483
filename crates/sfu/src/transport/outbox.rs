//! The queue of datagrams that a connection wants to send: one reused buffer in which packets are written and sealed
//! in place, taken out in runs of equal length so that the kernel segments them. Knows no protocol.

use std::collections::VecDeque;

use super::path::{Path, Transmit};

/// Datagrams of one send call: more brings nothing (measured), and the kernel's limit is 64.
const MAX_SEGMENTS: usize = 32;
/// The kernel's limit for one segmented send, in bytes.
const MAX_RUN: usize = 65_000;
/// What a connection may queue between two drains, in bytes; beyond it datagrams are dropped as a full socket would.
const MAX_QUEUED: usize = 2 * 1024 * 1024;

#[derive(Default)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    /// Start of the first datagram that was not taken yet.
    head: usize,
    segments: VecDeque<(Path, usize)>,
    dropped: u64,
}

impl Outbox {
    /// Appends one datagram that `write` puts at the end of the buffer. `write` returns whether the datagram is
    /// complete; if it is not, the buffer is as before.
    pub(super) fn push_with(&mut self, path: Path, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        if self.segments.is_empty() {
            self.buffer.clear();
            self.head = 0;
        }
        let start = self.buffer.len();
        if start - self.head > MAX_QUEUED {
            self.dropped += 1;
            return false;
        }
        if write(&mut self.buffer) && self.buffer.len() > start {
            self.segments.push_back((path, self.buffer.len() - start));
            true
        } else {
            self.buffer.truncate(start);
            false
        }
    }

    pub(super) fn push(&mut self, path: Path, datagram: &[u8]) {
        self.push_with(path, |buffer| {
            buffer.extend_from_slice(datagram);
            true
        });
    }

    /// The next run: consecutive datagrams of one path and length, the last of which may be shorter.
    pub(super) fn pop(&mut self) -> Option<Transmit<'_>> {
        let (path, size) = self.segments.pop_front()?;
        let (mut count, mut length) = (1, size);
        while count < MAX_SEGMENTS && length + size <= MAX_RUN {
            match self.segments.front() {
                Some(&(next_path, next_size)) if next_path == path && next_size <= size => {
                    self.segments.pop_front();
                    count += 1;
                    length += next_size;
                    if next_size < size {
                        break;
                    }
                }
                _ => break,
            }
        }
        let start = self.head;
        self.head += length;
        Some(Transmit {
            path,
            contents: &self.buffer[start..start + length],
            segment_size: (count > 1).then_some(size),
        })
    }

    /// Datagrams dropped because nobody drained the queue.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::path::Carrier;

    fn path(port: u16) -> Path {
        Path {
            carrier: Carrier::Udp,
            remote: ([127, 0, 0, 1], port).into(),
            local: None,
        }
    }

    #[test]
    fn runs_join_equal_lengths_and_end_with_a_shorter_one() {
        let mut outbox = Outbox::default();
        for (port, length) in [(1, 10), (1, 10), (1, 4), (1, 10), (2, 10), (2, 12)] {
            outbox.push(path(port), &vec![length as u8; length]);
        }
        assert!(!outbox.push_with(path(3), |b| {
            b.push(1);
            false
        }));
        let mut seen = Vec::new();
        while let Some(t) = outbox.pop() {
            seen.push((t.path.remote.port(), t.datagrams().map(<[u8]>::len).collect::<Vec<_>>()));
        }
        assert_eq!(
            seen,
            [(1, vec![10, 10, 4]), (1, vec![10]), (2, vec![10]), (2, vec![12])]
        );
        assert_eq!(outbox.dropped(), 0);
    }
}
