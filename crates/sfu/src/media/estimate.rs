//! How much a subscriber's connection carries: from its transport-wide feedback (delay and loss), its REMB, and its
//! receiver reports. Pure; told the time. The estimate grows while nothing speaks against it, also when little is sent,
//! because an estimate that waits for proof never rises, though only a step ahead of it; the first sign of a queue takes it back to what arrived.

mod delay;

use std::time::{Duration, Instant};

use super::rtcp::{PacketArrival, TransportFeedback};
use delay::{DelayTrend, Usage};

/// Packets whose feedback may be outstanding; a power of two.
const HISTORY: usize = 4096;
const INITIAL_BPS: u64 = 2_500_000;
const MIN_BPS: u64 = 50_000;
const MAX_BPS: u64 = 50_000_000;
/// How far the estimate may run ahead of what was seen to arrive, beyond the initial value: enough for the next step up,
/// and no more, since nothing proves the rest.
const AHEAD: f64 = 4.0;
/// Growth per second while all is well, and shortly after a decrease.
const GROWTH_PER_SECOND: f64 = 1.15;
const CAREFUL_GROWTH_PER_SECOND: f64 = 1.05;
const CAREFUL_FOR: Duration = Duration::from_secs(10);
/// What is kept of the arriving rate when a queue builds up.
const BACK_OFF: f64 = 0.85;
/// Between two decreases: the first one must have had time to show.
const DECREASE_INTERVAL: Duration = Duration::from_millis(300);
/// Loss above which the estimate falls, and below which it may grow.
const LOSS_HIGH: f64 = 0.10;
const LOSS_LOW: f64 = 0.02;

/// What was sent on one connection, by transport-wide number.
#[derive(Debug)]
pub struct SendHistory {
    origin: Instant,
    next: u64,
    packets: Vec<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    sequence: u64,
    at: Instant,
    length: u32,
}

impl SendHistory {
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            next: 1,
            packets: Vec::new(),
        }
    }

    /// Numbers a packet that is about to be sent; the value of its extension.
    pub fn sent(&mut self, now: Instant, length: usize) -> u16 {
        let sequence = self.next;
        self.next += 1;
        let sent = Sent {
            sequence,
            at: now,
            length: length as u32,
        };
        if self.packets.len() < HISTORY {
            self.packets.push(sent);
        } else {
            let index = self.index(sequence);
            self.packets[index] = sent;
        }
        sequence as u16
    }

    /// The value of the abs-send-time extension: 24 bits of 6.18 fixed point seconds.
    pub fn abs_send_time(&self, now: Instant) -> u32 {
        let micros = now.saturating_duration_since(self.origin).as_micros();
        ((micros << 18) / 1_000_000) as u32 & 0x00FF_FFFF
    }

    fn index(&self, sequence: u64) -> usize {
        // The first packet has number 1 and index 0.
        ((sequence - 1) as usize) & (HISTORY - 1)
    }

    fn get(&self, number: u16) -> Option<Sent> {
        // Numbers refer to the recent past: extended against the newest sent.
        let newest = self.next - 1;
        let behind = (newest as u16).wrapping_sub(number);
        let sequence = newest.checked_sub(u64::from(behind)).filter(|s| *s > 0)?;
        self.packets
            .get(self.index(sequence))
            .filter(|sent| sent.sequence == sequence)
            .copied()
    }
}

/// The estimate for one subscriber connection.
#[derive(Debug)]
pub struct BandwidthEstimate {
    bits_per_second: f64,
    /// The client's own limit, if it says one.
    remb: Option<u64>,
    trend: DelayTrend,
    last_update: Option<Instant>,
    last_decrease: Option<Instant>,
    arrived: ArrivedRate,
    loss: f64,
}

impl Default for BandwidthEstimate {
    fn default() -> Self {
        Self {
            bits_per_second: INITIAL_BPS as f64,
            remb: None,
            trend: DelayTrend::default(),
            last_update: None,
            last_decrease: None,
            arrived: ArrivedRate::default(),
            loss: 0.0,
        }
    }
}

impl BandwidthEstimate {
    /// The present estimate.
    pub fn bits_per_second(&self) -> u64 {
        let own = self.bits_per_second as u64;
        self.remb.map_or(own, |remb| own.min(remb)).clamp(MIN_BPS, MAX_BPS)
    }

    /// The share of packets lost of late, 0 to 1.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    /// The subscriber's transport-wide feedback.
    pub fn transport_feedback(&mut self, now: Instant, feedback: &TransportFeedback<'_>, history: &SendHistory) {
        let (mut received, mut lost) = (0_u32, 0_u32);
        let mut usage = Usage::Normal;
        for PacketArrival { sequence, arrival_us } in feedback.arrivals() {
            let Some(sent) = history.get(sequence) else { continue };
            match arrival_us {
                Some(arrival_us) => {
                    received += 1;
                    self.arrived.add(arrival_us, sent.length);
                    let sent_us = sent.at.saturating_duration_since(history.origin).as_micros() as i64;
                    if let Some(new) = self.trend.packet(sent_us, arrival_us) {
                        usage = new;
                    }
                }
                None => lost += 1,
            }
        }
        if received + lost > 0 {
            let share = f64::from(lost) / f64::from(received + lost);
            // A smoothed value: single feedbacks cover a handful of packets.
            self.loss = 0.8 * self.loss + 0.2 * share;
        }
        self.update(now, usage);
    }

    /// The client's receiver-side estimate.
    pub fn receiver_estimate(&mut self, bits_per_second: u64) {
        self.remb = Some(bits_per_second);
    }

    /// The loss that a receiver report tells, for clients without transport-wide feedback: 0 to 1.
    pub fn receiver_report(&mut self, now: Instant, fraction_lost: f64) {
        if self.arrived.is_empty() {
            self.loss = 0.5 * self.loss + 0.5 * fraction_lost;
            self.update(now, Usage::Normal);
        }
    }

    fn update(&mut self, now: Instant, usage: Usage) {
        let elapsed = self
            .last_update
            .map_or(0.0, |last| now.saturating_duration_since(last).as_secs_f64())
            .min(1.0);
        self.last_update = Some(now);
        let may_decrease = self.last_decrease.is_none_or(|at| now >= at + DECREASE_INTERVAL);
        let arriving = self.arrived.bits_per_second();
        if usage == Usage::Over && may_decrease {
            // Without a measured rate the estimate itself is the best guess.
            let base = arriving.map_or(self.bits_per_second, |rate| rate.min(self.bits_per_second));
            self.decrease(now, base * BACK_OFF);
        } else if self.loss > LOSS_HIGH && may_decrease {
            self.decrease(now, self.bits_per_second * (1.0 - 0.5 * self.loss));
        } else if usage == Usage::Normal && self.loss < LOSS_LOW {
            let careful = self.last_decrease.is_some_and(|at| now < at + CAREFUL_FOR);
            let growth = if careful {
                CAREFUL_GROWTH_PER_SECOND
            } else {
                GROWTH_PER_SECOND
            };
            let limit = arriving.unwrap_or(0.0) * AHEAD + INITIAL_BPS as f64;
            let grown = (self.bits_per_second * growth.powf(elapsed))
                .min(MAX_BPS as f64)
                .min(limit);
            self.bits_per_second = self.bits_per_second.max(grown);
        }
    }

    fn decrease(&mut self, now: Instant, to: f64) {
        self.bits_per_second = to.clamp(MIN_BPS as f64, self.bits_per_second);
        self.last_decrease = Some(now);
        self.trend.reset();
    }
}

/// The rate at which packets arrive at the subscriber, by its own clock, over half a second.
#[derive(Debug, Default)]
struct ArrivedRate {
    window_start_us: Option<i64>,
    bytes: u64,
    rate: Option<f64>,
}

impl ArrivedRate {
    const WINDOW_US: i64 = 500_000;

    fn add(&mut self, arrival_us: i64, length: u32) {
        let start = *self.window_start_us.get_or_insert(arrival_us);
        let elapsed = arrival_us - start;
        if !(0..Self::WINDOW_US).contains(&elapsed) {
            // A pause, or a clock that jumped, says nothing about the rate.
            if (Self::WINDOW_US..2 * Self::WINDOW_US).contains(&elapsed) {
                self.rate = Some(self.bytes as f64 * 8.0 * 1_000_000.0 / elapsed as f64);
            }
            self.window_start_us = Some(arrival_us);
            self.bytes = 0;
        }
        self.bytes += u64::from(length);
    }

    fn bits_per_second(&self) -> Option<f64> {
        self.rate
    }

    fn is_empty(&self) -> bool {
        self.window_start_us.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::rtcp::{RtcpPacket, RtcpWriter, parse, write_transport_feedback};
    use crate::media::test_time::start;

    /// Sends at `send_bps` through a link of `link_bps` with a deep queue for `seconds`.
    fn run(
        estimate: &mut BandwidthEstimate,
        history: &mut SendHistory,
        now: &mut Instant,
        (send, link): (u64, u64),
        seconds: u64,
    ) {
        let origin = *now;
        let gap = Duration::from_micros(1200 * 8 * 1_000_000 / send);
        let mut link_free_us = now.saturating_duration_since(history.origin).as_micros() as i64;
        let mut pending = Vec::new();
        while now.saturating_duration_since(origin) < Duration::from_secs(seconds) {
            let sequence = history.sent(*now, 1200);
            let sent_us = now.saturating_duration_since(history.origin).as_micros() as i64;
            link_free_us = link_free_us.max(sent_us) + (1200 * 8 * 1_000_000 / link) as i64;
            pending.push(PacketArrival {
                sequence,
                arrival_us: Some(link_free_us + 20_000),
            });
            *now += gap;
            if pending.len() >= 20 {
                let mut writer = RtcpWriter::default();
                let mut rest = &pending[..];
                while !rest.is_empty() {
                    let written = write_transport_feedback(&mut writer, (1, 2), 0, rest);
                    rest = &rest[written.max(1)..];
                }
                for packet in parse(writer.as_bytes()) {
                    let RtcpPacket::TransportFeedback(feedback) = packet else {
                        panic!("{packet:?}")
                    };
                    estimate.transport_feedback(*now, &feedback, history);
                }
                pending.clear();
            }
        }
    }

    #[test]
    fn a_queue_takes_the_estimate_below_the_link_and_a_free_link_lets_it_rise() {
        let begin = start();
        let (mut now, mut history, mut estimate) = (begin, SendHistory::new(begin), BandwidthEstimate::default());
        run(&mut estimate, &mut history, &mut now, (2_000_000, 1_000_000), 3);
        let congested = estimate.bits_per_second();
        assert!(congested < 1_000_000, "{congested}");
        run(&mut estimate, &mut history, &mut now, (600_000, 1_000_000), 20);
        let recovered = estimate.bits_per_second();
        assert!(recovered > congested * 3 / 2, "{congested} -> {recovered}");
    }

    #[test]
    fn remb_and_loss_bound_it() {
        let begin = start();
        let mut estimate = BandwidthEstimate::default();
        estimate.receiver_estimate(700_000);
        assert_eq!(estimate.bits_per_second(), 700_000);
        estimate.receiver_estimate(u64::MAX);
        assert_eq!(estimate.bits_per_second(), INITIAL_BPS);
        for i in 0..20 {
            estimate.receiver_report(begin + Duration::from_secs(i), 0.5);
        }
        assert!(estimate.bits_per_second() < INITIAL_BPS / 4);
    }

    #[test]
    fn numbers_are_found_across_wraps() {
        let begin = start();
        let mut history = SendHistory::new(begin);
        for _ in 0..70_000 {
            history.sent(begin, 10);
        }
        assert_eq!(history.get(70_000_u64 as u16).map(|s| s.sequence), Some(70_000));
        assert_eq!(history.get(65_930_u64 as u16).map(|s| s.sequence), Some(65_930));
        assert!(history.get(60_000).is_none(), "too old");
    }
}
