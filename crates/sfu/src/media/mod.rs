//! What RTP packets mean and what is done to them on the way from a publisher to its subscribers. Pure: no async
//! runtime, no clock, no socket, no encryption.
//!
//! A packet's way, all in the one task that owns a room:
//! 1. [`rtp::RtpHeader::parse`] and [`header_extensions::ExtensionMap::read`], once;
//! 2. [`arrivals::ArrivalRecorder::received`] if it has a transport-wide number;
//! 3. [`streams::StreamTable::resolve`]: which track and layer;
//! 4. [`up_track::UpTrack::receive`]: unwrapped, numbered, cached;
//! 5. for each subscriber [`down_track::DownTrack::forward`], and what it gives to
//!    [`crate::transport::PeerTransport::send_rtp`].
//!
//! Back from the subscriber: RTCP through [`rtcp::parse`]; a NACK to [`down_track::DownTrack::lost`], then
//! [`up_track::UpTrack::cached`] and [`down_track::DownTrack::resend`]; PLI and FIR through
//! [`down_track::DownTrack::keyframe_requested`] to [`up_track::UpTrack::request_keyframe`]; feedback and REMB to
//! [`estimate::BandwidthEstimate`], whose value [`allocate::allocate`] turns into [`down_track::DownTrack::set_target`].
//! Every 10 ms or so [`up_track::UpTrack::write_requests`], every 50 ms the transport-wide feedback, every second the
//! reports, every 400 ms [`speakers::SpeakerMeter::sample`].

pub mod codec;
pub mod header_extensions;
pub mod layers;
pub mod rtcp;
pub mod rtp;

pub mod streams;
pub mod up_track;

pub mod down_track;
pub mod sequence_map;

pub mod allocate;
pub mod estimate;

pub mod arrivals;
pub mod speakers;

pub mod receive_stats;

mod keyframes;
mod nack;
mod packet_cache;

#[cfg(test)]
mod test_time {
    //! Simulated time.

    use std::sync::OnceLock;
    use std::time::Instant;

    /// The origin of simulated time, the same at every call.
    pub(super) fn start() -> Instant {
        static START: OnceLock<Instant> = OnceLock::new();
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        *START.get_or_init(Instant::now)
    }
}
