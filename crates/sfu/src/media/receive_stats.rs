//! What is known of one received stream: counts, loss and jitter for receiver reports (RFC 3550 §6.4.1, §A.3, §A.8),
//! bit rate for the allocation, and the publisher's clock. Pure; told the time.

use std::time::{Duration, Instant};

use super::rtcp::{ReportBlock, SenderInfo};
use super::rtp::SequenceExtender;

/// Window of the bit rate.
const RATE_WINDOW: Duration = Duration::from_millis(1000);

/// The publisher's own mapping between wall clock and stream clock, from its last sender report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderClock {
    /// NTP 32.32 of the publisher's wall clock.
    pub ntp: u64,
    pub rtp_timestamp: u32,
    pub arrived: Instant,
}

impl SenderClock {
    /// The publisher's wall clock when a packet with this timestamp was captured, NTP 32.32.
    pub fn ntp_of(&self, timestamp: u32, clock_rate: u32) -> u64 {
        let ticks = i64::from(timestamp.wrapping_sub(self.rtp_timestamp) as i32);
        let offset = (i128::from(ticks) << 32) / i128::from(clock_rate.max(1));
        self.ntp.wrapping_add_signed(offset as i64)
    }
}

#[derive(Debug)]
pub struct ReceiveStats {
    clock_rate: u32,
    extender: SequenceExtender,
    first: Option<u64>,
    received: u64,
    reported_expected: u64,
    reported_received: u64,
    /// In 1/16 of a timestamp unit, as the RFC's integer form.
    jitter_16: u32,
    last_arrival: Option<(Instant, u32)>,
    rate: RateMeter,
    sender_clock: Option<SenderClock>,
    pub bytes: u64,
    /// The last packet.
    pub last_seen: Option<Instant>,
}

impl ReceiveStats {
    pub fn new(clock_rate: u32) -> Self {
        Self {
            clock_rate,
            extender: SequenceExtender::default(),
            first: None,
            received: 0,
            reported_expected: 0,
            reported_received: 0,
            jitter_16: 0,
            last_arrival: None,
            rate: RateMeter::default(),
            sender_clock: None,
            bytes: 0,
            last_seen: None,
        }
    }

    /// Notes a packet of the stream itself (not of its repair stream); its extended number.
    pub fn received(&mut self, now: Instant, sequence_number: u16, timestamp: u32, length: usize) -> u64 {
        let sequence = self.extender.extend(sequence_number);
        self.first = Some(self.first.map_or(sequence, |first| first.min(sequence)));
        self.received += 1;
        self.bytes += length as u64;
        self.last_seen = Some(now);
        self.rate.add(now, length);
        if let Some((arrival, before)) = self.last_arrival {
            let elapsed = now.saturating_duration_since(arrival).as_secs_f64() * f64::from(self.clock_rate);
            let distance = elapsed - f64::from(timestamp.wrapping_sub(before) as i32);
            let distance = distance.abs().min(f64::from(self.clock_rate) * 10.0) as u32;
            self.jitter_16 = self
                .jitter_16
                .saturating_add(distance)
                .saturating_sub((self.jitter_16 + 8) >> 4);
        }
        self.last_arrival = Some((now, timestamp));
        sequence
    }

    /// The number that a repaired packet has in the stream. It is not counted as received: the loss did happen.
    pub fn repaired(&mut self, sequence_number: u16) -> u64 {
        self.extender.peek(sequence_number)
    }

    pub fn sender_report(&mut self, now: Instant, info: &SenderInfo) {
        self.sender_clock = Some(SenderClock {
            ntp: info.ntp,
            rtp_timestamp: info.rtp_timestamp,
            arrived: now,
        });
    }

    pub fn sender_clock(&self) -> Option<SenderClock> {
        self.sender_clock
    }

    /// Bits per second over the last second.
    pub fn bit_rate(&self, now: Instant) -> u64 {
        self.rate.bits_per_second(now)
    }

    /// The block for a receiver report; begins a new reporting interval. `None` before the first packet.
    pub fn report(&mut self, now: Instant, ssrc: u32) -> Option<ReportBlock> {
        let (first, highest) = (self.first?, self.extender.highest()?);
        let expected = highest - first + 1;
        let expected_now = expected - self.reported_expected;
        let received_now = self.received - self.reported_received;
        (self.reported_expected, self.reported_received) = (expected, self.received);
        let lost_now = expected_now.saturating_sub(received_now);
        let fraction = (lost_now * 256).checked_div(expected_now).unwrap_or(0).min(255);
        let (last_sender_report, delay) = self.sender_clock.map_or((0, 0), |clock| {
            let delay = now.saturating_duration_since(clock.arrived).as_secs_f64() * 65_536.0;
            ((clock.ntp >> 16) as u32, delay as u32)
        });
        Some(ReportBlock {
            ssrc,
            fraction_lost: fraction as u8,
            cumulative_lost: (expected as i64 - self.received as i64).clamp(-0x80_0000, 0x7F_FFFF) as i32,
            // Our count begins after one full cycle; the RFC's begins at none.
            highest_sequence: highest.wrapping_sub(1 << 16) as u32,
            jitter: self.jitter_16 >> 4,
            last_sender_report,
            delay_since_last_sender_report: delay,
        })
    }
}

/// Bit rate over a sliding window of ten buckets.
#[derive(Debug, Default)]
struct RateMeter {
    buckets: [u64; 10],
    /// Start of the current bucket, and its index.
    current: Option<(Instant, usize)>,
}

impl RateMeter {
    const BUCKET: Duration = Duration::from_millis(RATE_WINDOW.as_millis() as u64 / 10);

    fn add(&mut self, now: Instant, length: usize) {
        self.advance(now);
        if let Some((_, index)) = self.current {
            self.buckets[index] += length as u64;
        }
    }

    fn advance(&mut self, now: Instant) {
        let Some((mut start, mut index)) = self.current else {
            self.current = Some((now, 0));
            return;
        };
        if now.saturating_duration_since(start) >= RATE_WINDOW * 2 {
            self.buckets = [0; 10];
            self.current = Some((now, 0));
            return;
        }
        while now.saturating_duration_since(start) >= Self::BUCKET {
            start += Self::BUCKET;
            index = (index + 1) % self.buckets.len();
            self.buckets[index] = 0;
        }
        self.current = Some((start, index));
    }

    fn bits_per_second(&self, now: Instant) -> u64 {
        match self.current {
            Some((start, _)) if now.saturating_duration_since(start) < RATE_WINDOW => {
                self.buckets.iter().sum::<u64>() * 8 * 1000 / RATE_WINDOW.as_millis() as u64
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::test_time::start;

    #[test]
    fn loss_and_jitter_are_reported_per_interval() {
        let (begin, mut stats) = (start(), ReceiveStats::new(90_000));
        assert_eq!(stats.report(begin, 1), None);
        for (i, sequence) in [65_534_u16, 65_535, 0, 4].into_iter().enumerate() {
            stats.received(
                begin + Duration::from_millis(10 * i as u64),
                sequence,
                900 * i as u32,
                100,
            );
        }
        let report = stats.report(begin, 1).expect("packets came");
        assert_eq!((report.cumulative_lost, report.fraction_lost), (3, (3 * 256 / 7) as u8));
        assert_eq!(report.highest_sequence, (1 << 16) | 4, "one wrap");
        assert_eq!(report.jitter, 0);
        assert_eq!(stats.report(begin, 1).expect("still").fraction_lost, 0);
        assert_eq!(stats.repaired(3), stats.extender.peek(3));
    }

    #[test]
    fn rates_rise_and_fall_with_the_traffic() {
        let (begin, mut stats) = (start(), ReceiveStats::new(90_000));
        let mut now = begin;
        for i in 0..200_u16 {
            now = begin + Duration::from_millis(10 * u64::from(i));
            stats.received(now, i, 0, 1250);
        }
        let rate = stats.bit_rate(now);
        assert!((900_000..=1_000_000).contains(&rate), "{rate}");
        assert_eq!(stats.bit_rate(now + Duration::from_secs(5)), 0);
    }

    #[test]
    fn the_senders_clock_extrapolates_both_ways() {
        let clock = SenderClock {
            ntp: 100 << 32,
            rtp_timestamp: 5,
            arrived: start(),
        };
        assert_eq!(clock.ntp_of(5 + 90_000, 90_000), 101 << 32);
        assert_eq!(clock.ntp_of(5_u32.wrapping_sub(45_000), 90_000), (99 << 32) + (1 << 31));
    }
}
