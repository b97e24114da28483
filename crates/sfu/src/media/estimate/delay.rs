//! Whether a queue builds up on the way: the trend of one-way delay differences between bursts of packets, fitted by
//! least squares over a window, against a threshold that adapts to the link's own jitter (the idea of
//! draft-ietf-rmcat-gcc-02 §5).

use std::collections::VecDeque;

/// Packets sent within this time form a burst.
const BURST_US: i64 = 5_000;
/// Bursts in the fit.
const WINDOW: usize = 20;
const SMOOTHING: f64 = 0.9;
/// Scales the slope to the threshold's unit, as the draft's gain and burst count do together.
const GAIN: f64 = 4.0 * 60.0;
const INITIAL_THRESHOLD_MS: f64 = 12.5;
const THRESHOLD_RANGE_MS: (f64, f64) = (6.0, 600.0);
const THRESHOLD_UP: f64 = 0.0087;
const THRESHOLD_DOWN: f64 = 0.039;
/// How long the trend has to exceed the threshold before it counts.
const OVERUSE_US: i64 = 10_000;
/// Clocks that jump by more say nothing.
const MAX_DIFFERENCE_US: i64 = 3_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    Normal,
    /// A queue grows.
    Over,
    /// A queue drains: not the time to grow.
    Under,
}

#[derive(Debug)]
pub(super) struct DelayTrend {
    /// First send time, last send time and last arrival of the current burst, and of the one before.
    burst: Option<Burst>,
    previous: Option<Burst>,
    accumulated_ms: f64,
    smoothed_ms: f64,
    /// Arrival in ms and smoothed delay in ms.
    window: VecDeque<(f64, f64)>,
    threshold_ms: f64,
    over_since_us: Option<i64>,
    last_slope: f64,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    first_sent_us: i64,
    last_sent_us: i64,
    arrival_us: i64,
}

impl Default for DelayTrend {
    fn default() -> Self {
        Self {
            burst: None,
            previous: None,
            accumulated_ms: 0.0,
            smoothed_ms: 0.0,
            window: VecDeque::with_capacity(WINDOW),
            threshold_ms: INITIAL_THRESHOLD_MS,
            over_since_us: None,
            last_slope: 0.0,
        }
    }
}

impl DelayTrend {
    /// Notes an arrived packet; a verdict whenever it completes a burst.
    pub(super) fn packet(&mut self, sent_us: i64, arrival_us: i64) -> Option<Usage> {
        let Some(burst) = &mut self.burst else {
            self.burst = Some(Burst {
                first_sent_us: sent_us,
                last_sent_us: sent_us,
                arrival_us,
            });
            return None;
        };
        if sent_us < burst.first_sent_us {
            return None;
        }
        if sent_us - burst.first_sent_us <= BURST_US {
            burst.last_sent_us = burst.last_sent_us.max(sent_us);
            burst.arrival_us = burst.arrival_us.max(arrival_us);
            return None;
        }
        let complete = *burst;
        *burst = Burst {
            first_sent_us: sent_us,
            last_sent_us: sent_us,
            arrival_us,
        };
        let previous = self.previous.replace(complete)?;
        let arrival_gap = complete.arrival_us - previous.arrival_us;
        let difference = arrival_gap - (complete.last_sent_us - previous.last_sent_us);
        if difference.abs() > MAX_DIFFERENCE_US {
            self.reset();
            return None;
        }
        Some(self.sample(difference as f64 / 1000.0, complete.arrival_us, arrival_gap))
    }

    /// Forgets the trend: what was sent afterwards is another matter.
    pub(super) fn reset(&mut self) {
        self.window.clear();
        self.accumulated_ms = 0.0;
        self.smoothed_ms = 0.0;
        self.over_since_us = None;
        self.last_slope = 0.0;
    }

    fn sample(&mut self, difference_ms: f64, arrival_us: i64, arrival_gap_us: i64) -> Usage {
        self.accumulated_ms += difference_ms;
        self.smoothed_ms = SMOOTHING * self.smoothed_ms + (1.0 - SMOOTHING) * self.accumulated_ms;
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back((arrival_us as f64 / 1000.0, self.smoothed_ms));
        if self.window.len() < WINDOW / 2 {
            return Usage::Normal;
        }
        let slope = slope(&self.window);
        let trend = slope * GAIN;
        let usage = if trend > self.threshold_ms {
            let since = *self.over_since_us.get_or_insert(arrival_us);
            let lasting = arrival_us - since >= OVERUSE_US && slope >= self.last_slope;
            if lasting { Usage::Over } else { Usage::Normal }
        } else {
            self.over_since_us = None;
            if trend < -self.threshold_ms {
                Usage::Under
            } else {
                Usage::Normal
            }
        };
        self.last_slope = slope;
        self.adapt(trend, arrival_gap_us);
        usage
    }

    fn adapt(&mut self, trend: f64, arrival_gap_us: i64) {
        let distance = trend.abs() - self.threshold_ms;
        // A sudden spike must not raise the threshold beyond use.
        if distance > 15.0 {
            return;
        }
        let rate = if distance < 0.0 { THRESHOLD_DOWN } else { THRESHOLD_UP };
        let elapsed_ms = (arrival_gap_us as f64 / 1000.0).clamp(0.0, 100.0);
        let (low, high) = THRESHOLD_RANGE_MS;
        self.threshold_ms = (self.threshold_ms + rate * distance * elapsed_ms).clamp(low, high);
    }
}

/// The least-squares slope, in ms of delay per ms.
fn slope(points: &VecDeque<(f64, f64)>) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / count;
    let (numerator, denominator) = points.iter().fold((0.0, 0.0), |(n, d), (x, y)| {
        (n + (x - mean_x) * (y - mean_y), d + (x - mean_x) * (x - mean_x))
    });
    if denominator > 0.0 {
        numerator / denominator
    } else {
        0.0
    }
}
