//! When the packets of a publisher's connection arrived, for the transport-wide feedback by which its sender estimates
//! its bandwidth. One per publisher connection. Pure; told the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::rtcp::{PacketArrival, RtcpWriter, write_transport_feedback};
use super::rtp::SequenceExtender;

/// How often feedback is sent.
const INTERVAL: Duration = Duration::from_millis(50);
/// Packets between two feedbacks; a connection that sends more in 50 ms loses the oldest.
const MAX_PENDING: usize = 4096;
/// A jump in the numbers beyond this is a new start.
const MAX_GAP: u64 = 2048;

#[derive(Debug)]
pub struct ArrivalRecorder {
    origin: Instant,
    extender: SequenceExtender,
    /// Arrivals from number `base` on; `None` for those that did not come.
    base: u64,
    pending: VecDeque<Option<Instant>>,
    next_feedback: Option<Instant>,
    number: u8,
    /// Any SSRC of the publisher's: the field has to name one.
    media_ssrc: u32,
    scratch: Vec<PacketArrival>,
}

impl ArrivalRecorder {
    /// Arrival times are told relative to `origin`: the start of the connection.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            extender: SequenceExtender::default(),
            base: 0,
            pending: VecDeque::new(),
            next_feedback: None,
            number: 0,
            media_ssrc: 0,
            scratch: Vec::new(),
        }
    }

    /// Notes a packet that carries this transport-wide number.
    pub fn received(&mut self, now: Instant, number: u16, ssrc: u32) {
        self.media_ssrc = ssrc;
        let sequence = self.extender.extend(number);
        if self.base == 0 || sequence > self.base + self.pending.len() as u64 + MAX_GAP {
            self.pending.clear();
            self.base = sequence;
        }
        // What comes before the base was reported as lost already.
        let Some(index) = sequence.checked_sub(self.base) else {
            return;
        };
        let index = index as usize;
        if index >= self.pending.len() {
            self.pending.resize(index + 1, None);
        }
        self.pending[index].get_or_insert(now);
        while self.pending.len() > MAX_PENDING {
            self.pending.pop_front();
            self.base += 1;
        }
        self.next_feedback.get_or_insert(now + INTERVAL);
    }

    /// When [`ArrivalRecorder::write_feedback`] has something to say.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_feedback
    }

    /// Appends the feedback that is due.
    pub fn write_feedback(&mut self, now: Instant, sender_ssrc: u32, writer: &mut RtcpWriter) {
        if self.next_feedback.is_none_or(|at| at > now) {
            return;
        }
        self.next_feedback = None;
        self.scratch.clear();
        for (i, arrival) in self.pending.drain(..).enumerate() {
            self.scratch.push(PacketArrival {
                sequence: (self.base + i as u64) as u16,
                arrival_us: arrival.map(|at| at.saturating_duration_since(self.origin).as_micros() as i64),
            });
        }
        self.base += self.scratch.len() as u64;
        let mut rest = &self.scratch[..];
        while !rest.is_empty() {
            let ssrcs = (sender_ssrc, self.media_ssrc);
            let written = write_transport_feedback(writer, ssrcs, self.number, rest);
            self.number = self.number.wrapping_add(1);
            // A delta that exceeds the format starts a packet of its own, with a reference time of its own.
            rest = &rest[written.max(1)..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::rtcp::{RtcpPacket, parse};
    use crate::media::test_time::start;

    #[test]
    fn every_number_is_reported_once() {
        let (begin, mut recorder) = (start(), ArrivalRecorder::new(start()));
        let mut reported = Vec::new();
        let mut writer = RtcpWriter::default();
        for i in 0..200_u16 {
            let now = begin + Duration::from_millis(5 * u64::from(i));
            if i % 7 != 3 {
                recorder.received(now, 65_500_u16.wrapping_add(i), 1);
            }
            writer.clear();
            recorder.write_feedback(now, 9, &mut writer);
            for packet in parse(writer.as_bytes()) {
                let RtcpPacket::TransportFeedback(feedback) = packet else {
                    panic!("{packet:?}")
                };
                reported.extend(feedback.arrivals().map(|a| (a.sequence, a.arrival_us.is_some())));
            }
        }
        assert!(reported.len() > 180);
        for (i, (sequence, arrived)) in reported.iter().enumerate() {
            assert_eq!(*sequence, 65_500_u16.wrapping_add(i as u16));
            assert_eq!(*arrived, i % 7 != 3);
        }
    }
}
