//! One BUNDLEd WebRTC connection: ICE, DTLS, SRTP and SCTP behind one face. Sans-IO: datagrams and the time go in,
//! datagrams and events come out. It knows no socket, no SDP, and nothing of what the RTP packets mean.
//!
//! The owner calls one of the `handle_*` or `send_*` functions, then drains [`PeerTransport::poll_event`] and
//! [`PeerTransport::poll_transmit`], then sleeps until [`PeerTransport::poll_timeout`]. Sending may be batched: seal
//! the packets of a whole incoming batch first and drain once, so that the kernel segments runs of equal length.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::certificate::{Certificate, Fingerprint};
use super::dcep::Reliability;
use super::dtls::{DtlsEvent, DtlsRole, DtlsSession};
use super::ice::{IceAgent, IceCredentials, IceEvent, IceMode};
use super::outbox::Outbox;
use super::path::{Path, Transmit};
use super::sctp::{ChannelId, ChannelOptions, MessageKind, SctpEvent, SctpSession, SendMessageError};
use super::srtp::{KeySide, OpenError, SrtpProfile, SrtpReceiver, SrtpSender};
use crate::media::rtp::OutgoingRtp;

/// What a connection is made from.
#[derive(Debug, Clone)]
pub struct PeerParams {
    /// Our credentials; register the same fragment with [`super::Mux`].
    pub local: IceCredentials,
    pub ice_mode: IceMode,
    pub certificate: Certificate,
}

/// What signalling tells of the client's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteParams {
    pub ice: IceCredentials,
    pub fingerprint: Fingerprint,
    /// Our own role, as it stands in our SDP: passive when the client offered `actpass` or `active`, active when the
    /// client says `passive`.
    pub role: DtlsRole,
}

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// ICE found a path, or found it again after [`PeerEvent::Disconnected`].
    IceConnected,
    /// DTLS is done: media may flow both ways. Comes once.
    Connected { profile: SrtpProfile },
    /// A decrypted RTP packet: header, extensions and payload, without the authentication tag.
    Rtp(Bytes),
    /// A decrypted compound RTCP packet.
    Rtcp(Bytes),
    /// A data channel opened, by either side. For ours, messages may be sent from now on.
    ChannelOpen {
        id: ChannelId,
        label: String,
        ordered: bool,
        reliability: Reliability,
    },
    ChannelMessage {
        id: ChannelId,
        kind: MessageKind,
        data: Bytes,
    },
    /// The channel was closed, or could not be opened.
    ChannelClosed { id: ChannelId },
    /// Nothing authentic was heard for ten seconds. Five more and the connection fails.
    Disconnected,
    /// The connection is over; drop it. The text is for people.
    Failed { reason: String },
}

/// Counts since the connection was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerStats {
    pub datagrams_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    /// Datagrams that were none of the known protocols, not authentic, or from an address the client never proved.
    pub dropped_in: u64,
    /// RTP and RTCP packets that failed authentication.
    pub not_authentic: u64,
    /// Packets replayed or too old.
    pub replayed: u64,
    /// Packets not sent because there was no path, no key, or a full queue.
    pub dropped_out: u64,
}

/// One client connection.
pub struct PeerTransport {
    ice: IceAgent,
    dtls: DtlsSession,
    srtp: Option<(SrtpSender, SrtpReceiver)>,
    sctp: Option<SctpSession>,
    /// Channels asked for before the DTLS role, and with it the parity of stream ids, was known.
    early_channels: Vec<ChannelOptions>,
    outbox: Outbox,
    events: VecDeque<PeerEvent>,
    stats: PeerStats,
    failed: bool,
    connected: bool,
}

impl PeerTransport {
    /// A connection that answers connectivity checks from now on.
    pub fn new(params: PeerParams, now: Instant) -> Self {
        Self {
            ice: IceAgent::new(params.ice_mode, params.local, now),
            dtls: DtlsSession::new(&params.certificate, now),
            srtp: None,
            sctp: None,
            early_channels: Vec::new(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            stats: PeerStats::default(),
            failed: false,
            connected: false,
        }
    }

    /// Our current ICE credentials, for the SDP.
    pub fn local_credentials(&self) -> &IceCredentials {
        self.ice.local()
    }

    /// What the client's description says. To be called with every description; when the client's ICE credentials
    /// changed from an earlier call this is an ICE restart of the client's: call [`PeerTransport::restart_ice`]
    /// instead. A changed fingerprint fails the connection.
    pub fn set_remote(&mut self, now: Instant, remote: RemoteParams) {
        self.ice.set_remote(remote.ice);
        self.dtls.set_remote(now, remote.fingerprint, remote.role);
        if self.sctp.is_none() {
            let mut sctp = SctpSession::new(self.dtls.side() == KeySide::Client);
            for options in self.early_channels.drain(..) {
                sctp.open(options);
            }
            self.sctp = Some(sctp);
        }
        if self.ice.send_path().is_some() {
            self.dtls.start(now);
        }
        self.settle(now);
    }

    /// Whether a description with these credentials begins a new ICE session (RFC 8839 §4.4.1.1.1).
    pub fn is_restart(&self, remote: &IceCredentials) -> bool {
        self.ice.remote().is_some_and(|known| known != remote)
    }

    /// A new ICE session on the same DTLS connection. Register `local.ufrag` with the mux as well. The old credentials
    /// stay valid, and media keeps flowing, until the client nominates a path of the new session.
    pub fn restart_ice(&mut self, now: Instant, local: IceCredentials, remote: IceCredentials) {
        self.ice.restart(now, local, remote);
        self.settle(now);
    }

    /// An address of the client's, from trickle. Needed only in [`IceMode::Full`]; otherwise ignored.
    pub fn add_remote_candidate(&mut self, now: Instant, address: SocketAddr) {
        self.ice.add_remote_candidate(now, address);
        self.settle(now);
    }

    /// A datagram that came over `path`. Decrypts in place.
    pub fn handle_datagram(&mut self, now: Instant, path: Path, datagram: BytesMut) {
        if self.failed {
            return;
        }
        self.stats.datagrams_in += 1;
        self.stats.bytes_in += datagram.len() as u64;
        // RFC 7983 §7.
        let used = match datagram.first() {
            Some(0..=3) => self.ice.handle(now, path, &datagram, &mut self.outbox),
            Some(20..=63) if self.ice.knows(&path) => {
                self.dtls.handle(now, &datagram);
                true
            }
            Some(128..=191) if self.ice.knows(&path) => {
                self.handle_srtp(now, path, datagram);
                // Media needs no settling: no event but its own, nothing to send.
                return;
            }
            _ => false,
        };
        if !used {
            self.stats.dropped_in += 1;
        }
        self.settle(now);
    }

    fn handle_srtp(&mut self, now: Instant, path: Path, mut packet: BytesMut) {
        let Some((_, receiver)) = &mut self.srtp else {
            self.stats.dropped_in += 1;
            return;
        };
        // RFC 5761 §4: with the marker bit, RTCP's packet types 192 to 223 are RTP's payload types 64 to 95.
        let is_rtcp = packet.get(1).is_some_and(|kind| (192..=223).contains(kind));
        let opened = if is_rtcp {
            receiver.open_rtcp(&mut packet)
        } else {
            receiver.open_rtp(&mut packet)
        };
        match opened {
            Ok(length) => {
                self.ice.heard(now, &path);
                packet.truncate(length);
                let packet = packet.freeze();
                self.events.push_back(if is_rtcp {
                    PeerEvent::Rtcp(packet)
                } else {
                    PeerEvent::Rtp(packet)
                });
            }
            Err(OpenError::Replayed) => self.stats.replayed += 1,
            Err(OpenError::NotAuthentic) => self.stats.not_authentic += 1,
            Err(OpenError::Malformed | OpenError::TooManySsrcs) => self.stats.dropped_in += 1,
        }
    }

    /// To be called at the time that [`PeerTransport::poll_timeout`] told; harmless at any other.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.failed {
            return;
        }
        self.ice.handle_timeout(now, &mut self.outbox);
        self.dtls.handle_timeout(now);
        if self.connected
            && let Some(sctp) = &mut self.sctp
        {
            sctp.handle_timeout(now);
        }
        self.settle(now);
    }

    /// When [`PeerTransport::handle_timeout`] is to be called next; `None` when the connection failed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.failed {
            return None;
        }
        let sctp = self
            .sctp
            .as_ref()
            .filter(|_| self.connected)
            .and_then(SctpSession::poll_timeout);
        [self.ice.poll_timeout(), self.dtls.poll_timeout(), sctp]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next datagrams to send. Drain it after every batch.
    pub fn poll_transmit(&mut self) -> Option<Transmit<'_>> {
        self.outbox.pop()
    }

    /// The next event. Drain it after every call that takes the time.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    /// Seals an RTP packet into the queue of outgoing datagrams; whether it was. False before the connection stands
    /// and when nobody drains the queue.
    pub fn send_rtp(&mut self, packet: &OutgoingRtp<'_>) -> bool {
        let path = self.ice.send_path();
        let sent = match (&mut self.srtp, path) {
            (Some((sender, _)), Some(path)) if !self.failed => {
                self.outbox.push_with(path, |out| sender.seal_rtp(packet, out))
            }
            _ => false,
        };
        self.count_out(sent, packet.len())
    }

    /// Seals a compound RTCP packet (see [`crate::media::rtcp`]) into the queue; whether it was.
    pub fn send_rtcp(&mut self, compound: &[u8]) -> bool {
        let path = self.ice.send_path();
        let sent = match (&mut self.srtp, path) {
            (Some((sender, _)), Some(path)) if !self.failed => {
                self.outbox.push_with(path, |out| sender.seal_rtcp(compound, out))
            }
            _ => false,
        };
        self.count_out(sent, compound.len())
    }

    fn count_out(&mut self, sent: bool, length: usize) -> bool {
        if sent {
            self.stats.packets_out += 1;
            self.stats.bytes_out += length as u64;
        } else {
            self.stats.dropped_out += 1;
        }
        sent
    }

    /// Opens a data channel from our side, as soon as the connection allows. [`PeerEvent::ChannelOpen`] with the same
    /// label tells its id.
    pub fn open_channel(&mut self, now: Instant, options: ChannelOptions) {
        match &mut self.sctp {
            Some(sctp) => {
                sctp.open(options);
                self.settle(now);
            }
            None => self.early_channels.push(options),
        }
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When the channel is not open, the message too large, or the channel's buffer full. The message is then lost.
    pub fn send_message(
        &mut self,
        now: Instant,
        id: ChannelId,
        kind: MessageKind,
        data: &[u8],
    ) -> Result<(), SendMessageError> {
        let sctp = self
            .sctp
            .as_mut()
            .filter(|_| !self.failed)
            .ok_or(SendMessageError::NotOpen)?;
        sctp.send(id, kind, data)?;
        self.settle(now);
        Ok(())
    }

    /// Closes a data channel.
    pub fn close_channel(&mut self, now: Instant, id: ChannelId) {
        if let Some(sctp) = &mut self.sctp {
            sctp.close(id);
            self.settle(now);
        }
    }

    /// Tells the client that we end the connection; drain [`PeerTransport::poll_transmit`] once more, then drop it.
    pub fn close(&mut self) {
        self.dtls.close();
        self.flush_dtls();
    }

    /// Where datagrams to the client go at present.
    pub fn path(&self) -> Option<Path> {
        self.ice.send_path()
    }

    /// Whether media can be sent and received.
    pub fn is_connected(&self) -> bool {
        self.connected && !self.failed
    }

    pub fn stats(&self) -> PeerStats {
        PeerStats {
            dropped_out: self.stats.dropped_out + self.outbox.dropped(),
            ..self.stats
        }
    }

    /// Carries what one layer produced to the next until all are quiet.
    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.ice.poll_event() {
            match event {
                IceEvent::Connected => {
                    self.events.push_back(PeerEvent::IceConnected);
                    self.dtls.start(now);
                }
                IceEvent::PathChanged => {}
                IceEvent::Disconnected => self.events.push_back(PeerEvent::Disconnected),
                IceEvent::Failed(reason) => self.fail(reason.to_owned()),
            }
        }
        while let Some(event) = self.dtls.poll_event() {
            match event {
                DtlsEvent::Connected(profile, keys) => {
                    self.srtp = Some((SrtpSender::new(profile, &keys), SrtpReceiver::new(profile, &keys)));
                    self.connected = true;
                    self.events.push_back(PeerEvent::Connected { profile });
                    if self.dtls.side() == KeySide::Client
                        && let Some(sctp) = &mut self.sctp
                    {
                        sctp.connect();
                    }
                }
                DtlsEvent::Data(data) => {
                    if let Some(path) = self.ice.send_path() {
                        self.ice.heard(now, &path);
                    }
                    if let Some(sctp) = &mut self.sctp {
                        sctp.handle(now, data);
                    }
                }
                DtlsEvent::Closed => self.fail("the client closed the connection".to_owned()),
                DtlsEvent::Failed(reason) => self.fail(reason),
            }
        }
        self.settle_sctp(now);
        self.flush_dtls();
    }

    fn settle_sctp(&mut self, now: Instant) {
        let Some(sctp) = self.sctp.as_mut().filter(|_| self.connected && !self.failed) else {
            return;
        };
        sctp.drain_transmits(now, |packet| self.dtls.send(now, packet));
        while let Some(event) = sctp.poll_event() {
            self.events.push_back(match event {
                SctpEvent::Opened {
                    id,
                    label,
                    ordered,
                    reliability,
                } => PeerEvent::ChannelOpen {
                    id,
                    label,
                    ordered,
                    reliability,
                },
                SctpEvent::Message { id, kind, data } => PeerEvent::ChannelMessage { id, kind, data },
                SctpEvent::Closed(id) => PeerEvent::ChannelClosed { id },
                SctpEvent::Lost(reason) => {
                    tracing::debug!(reason, "the SCTP association ended");
                    continue;
                }
            });
        }
    }

    fn flush_dtls(&mut self) {
        let path = self.ice.send_path();
        while let Some(packet) = self.dtls.poll_packet() {
            match path {
                Some(path) => self.outbox.push(path, &packet),
                None => self.stats.dropped_out += 1,
            }
        }
    }

    fn fail(&mut self, reason: String) {
        if !self.failed {
            self.failed = true;
            self.events.push_back(PeerEvent::Failed { reason });
        }
    }
}
