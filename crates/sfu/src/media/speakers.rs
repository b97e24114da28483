//! Who speaks, and how loudly, from the audio level that senders put into the packet header (RFC 6464): it stays
//! legible under end-to-end encryption. Pure; the caller samples at a steady interval.

use super::header_extensions::AudioLevel;

/// Quieter packets, in dB below full scale, are background.
const ACTIVE_DB: u8 = 35;
/// The share of an interval that must be loud.
const MIN_ACTIVE_SHARE: f64 = 0.4;
/// Packets of 20 ms in an interval of 400 ms: with discontinuous transmission silence sends fewer.
const PACKETS_PER_INTERVAL: f64 = 20.0;
/// How fast the shown level follows.
const SMOOTHING: f64 = 0.5;
/// Below this level somebody counts as silent.
const SILENCE: f32 = 0.01;

/// The loudness of one microphone track.
#[derive(Debug, Default)]
pub struct SpeakerMeter {
    loud_packets: u32,
    loudest_db: Option<u8>,
    level: f64,
}

impl SpeakerMeter {
    /// How long to wait between two calls of [`SpeakerMeter::sample`].
    pub const INTERVAL: std::time::Duration = std::time::Duration::from_millis(400);

    /// Notes the level of one packet.
    pub fn observe(&mut self, level: AudioLevel) {
        if level.attenuation_db <= ACTIVE_DB {
            self.loud_packets += 1;
            self.loudest_db = Some(
                self.loudest_db
                    .map_or(level.attenuation_db, |l| l.min(level.attenuation_db)),
            );
        }
    }

    /// The level of the past interval, 0 to 1; 0 for silence. Begins a new interval.
    pub fn sample(&mut self) -> f32 {
        let share = (f64::from(self.loud_packets) / PACKETS_PER_INTERVAL).min(1.0);
        let heard = match self.loudest_db {
            Some(db) if share >= MIN_ACTIVE_SHARE => 10_f64.powf(-f64::from(db) / 20.0) * share,
            _ => 0.0,
        };
        self.loud_packets = 0;
        self.loudest_db = None;
        self.level += (heard - self.level) * SMOOTHING;
        let level = self.level as f32;
        if level < SILENCE { 0.0 } else { level.min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_is_heard_and_noise_is_not() {
        let level = |attenuation_db| AudioLevel {
            voice: true,
            attenuation_db,
        };
        let mut meter = SpeakerMeter::default();
        (0..20).for_each(|_| meter.observe(level(20)));
        let first = meter.sample();
        (0..20).for_each(|_| meter.observe(level(20)));
        let second = meter.sample();
        assert!(0.0 < first && first < second && second <= 0.1, "{first} {second}");
        (0..20).for_each(|_| meter.observe(level(60)));
        (0..10).for_each(|_| {
            meter.sample();
        });
        assert_eq!(meter.sample(), 0.0);
        (0..3).for_each(|_| meter.observe(level(0)));
        assert_eq!(meter.sample(), 0.0, "a click is not speech");
    }
}
