//! The SCTP association of one connection and its data channels (RFC 8831), over `sctp-proto`. Takes and gives the
//! plain text of DTLS records; knows neither DTLS nor paths. Endpoints of the library are keyed by address: each
//! association has one of its own with a constant stand-in address, so a client may move as it likes.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event, Payload,
    PayloadProtocolIdentifier, ReliabilityType, ServerConfig, StreamEvent, TransportConfig,
};

use super::dcep::{Dcep, Reliability};

/// The largest message in either direction, in bytes: the value for `a=max-message-size`.
pub const MAX_MESSAGE_SIZE: u32 = 262_144;
/// Receive budget of one association, in bytes.
const RECEIVE_BUFFER: u32 = 1024 * 1024;
/// Bytes that may wait to be sent on one channel before further messages are refused.
const MAX_BUFFERED: usize = 2 * 1024 * 1024;
/// Channels of one association.
const MAX_CHANNELS: usize = 64;
/// Payload of one SCTP packet: fits a DTLS record in a path MTU of 1200.
const MAX_PACKET: u32 = 1150;

/// The SCTP stream of a data channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u16);

/// What a message holds, by its payload protocol identifier (RFC 8831 §8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    Binary,
    Text,
}

/// The properties of a channel that we open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelOptions {
    pub label: String,
    pub ordered: bool,
    pub reliability: Reliability,
}

/// Why a message was not taken. It is lost; nothing is queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendMessageError {
    #[error("the channel is not open")]
    NotOpen,
    #[error("the message exceeds the largest size")]
    TooLarge,
    #[error("the channel's buffer is full: the client reads slower than is sent")]
    Full,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SctpEvent {
    Opened {
        id: ChannelId,
        label: String,
        ordered: bool,
        reliability: Reliability,
    },
    Message {
        id: ChannelId,
        kind: MessageKind,
        data: Bytes,
    },
    Closed(ChannelId),
    /// The association ended; its channels are gone.
    Lost(String),
}

pub(super) struct SctpSession {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    established: bool,
    /// Parity of the stream ids we choose: even for the DTLS client (RFC 8832 §6).
    next_id: u16,
    channels: HashMap<u16, String>,
    /// Channels asked for before the association stood.
    waiting: VecDeque<(ChannelId, ChannelOptions)>,
    events: VecDeque<SctpEvent>,
}

impl SctpSession {
    /// `is_dtls_client` decides the parity of our stream ids and whether we open the association or wait for it.
    pub(super) fn new(is_dtls_client: bool) -> Self {
        let mut config = EndpointConfig::new();
        config.max_payload_size(MAX_PACKET);
        let mut server = ServerConfig::new();
        server.transport = Arc::new(transport());
        Self {
            endpoint: Endpoint::new(Arc::new(config), Some(Arc::new(server))),
            association: None,
            established: false,
            next_id: u16::from(!is_dtls_client),
            channels: HashMap::new(),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Opens the association from our side; clients otherwise do.
    pub(super) fn connect(&mut self) {
        if self.association.is_none() {
            let mut config = ClientConfig::new();
            config.transport = Arc::new(transport());
            match self.endpoint.connect(config, stand_in()) {
                Ok(association) => {
                    self.association = Some(association);
                    self.endpoint.reject_new_associations();
                }
                Err(error) => self.events.push_back(SctpEvent::Lost(error.to_string())),
            }
        }
    }

    pub(super) fn handle(&mut self, now: Instant, packet: Vec<u8>) {
        match self.endpoint.handle(now, stand_in(), None, None, packet.into()) {
            Some((handle, DatagramEvent::NewAssociation(association))) if self.association.is_none() => {
                self.association = Some((handle, association));
                // Every further INIT would be remembered.
                self.endpoint.reject_new_associations();
            }
            Some((handle, DatagramEvent::AssociationEvent(event))) => {
                if let Some((ours, association)) = &mut self.association
                    && *ours == handle
                {
                    association.handle_event(event);
                }
            }
            _ => {}
        }
        self.process();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, association)) = &mut self.association {
            association.handle_timeout(now);
            self.process();
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.association
            .as_ref()
            .and_then(|(_, association)| association.poll_timeout())
    }

    /// Hands every packet that is to be sent to `send`.
    pub(super) fn drain_transmits(&mut self, now: Instant, mut send: impl FnMut(&[u8])) {
        let mut emit = |payload: Payload| {
            if let Payload::RawEncode(packets) = payload {
                packets.iter().for_each(|packet| send(packet));
            }
        };
        while let Some(transmit) = self.endpoint.poll_transmit() {
            emit(transmit.payload);
        }
        if let Some((_, association)) = &mut self.association {
            while let Some(transmit) = association.poll_transmit(now) {
                emit(transmit.payload);
            }
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<SctpEvent> {
        self.events.pop_front()
    }

    /// Opens a channel, at once or as soon as the association stands.
    pub(super) fn open(&mut self, options: ChannelOptions) -> Option<ChannelId> {
        if self.channels.len() + self.waiting.len() >= MAX_CHANNELS {
            return None;
        }
        while self.channels.contains_key(&self.next_id) {
            self.next_id = self.next_id.checked_add(2)?;
        }
        let id = ChannelId(self.next_id);
        self.next_id = self.next_id.checked_add(2)?;
        self.waiting.push_back((id, options));
        if self.established {
            self.open_waiting();
        }
        Some(id)
    }

    pub(super) fn send(&mut self, id: ChannelId, kind: MessageKind, data: &[u8]) -> Result<(), SendMessageError> {
        if data.len() > MAX_MESSAGE_SIZE as usize {
            return Err(SendMessageError::TooLarge);
        }
        let Some((_, association)) = self.association.as_mut().filter(|_| self.established) else {
            return Err(SendMessageError::NotOpen);
        };
        if !self.channels.contains_key(&id.0) {
            return Err(SendMessageError::NotOpen);
        }
        let mut stream = association.stream(id.0).map_err(|_| SendMessageError::NotOpen)?;
        if stream.buffered_amount().map_err(|_| SendMessageError::NotOpen)? + data.len() > MAX_BUFFERED {
            return Err(SendMessageError::Full);
        }
        // RFC 8831 §6.6: SCTP carries no empty messages; one zero byte under a special identifier stands for them.
        let (identifier, data) = match (kind, data) {
            (MessageKind::Binary, []) => (PayloadProtocolIdentifier::BinaryEmpty, &[0][..]),
            (MessageKind::Text, []) => (PayloadProtocolIdentifier::StringEmpty, &[0][..]),
            (MessageKind::Binary, data) => (PayloadProtocolIdentifier::Binary, data),
            (MessageKind::Text, data) => (PayloadProtocolIdentifier::String, data),
        };
        stream
            .write_with_ppi(data, identifier)
            .map(drop)
            .map_err(|_| SendMessageError::NotOpen)
    }

    pub(super) fn close(&mut self, id: ChannelId) {
        if self.channels.remove(&id.0).is_some()
            && let Some((_, association)) = &mut self.association
            && let Ok(mut stream) = association.stream(id.0)
        {
            // Only fails while the association is not established; then there is nothing to reset.
            let _ = stream.close();
        }
    }

    fn process(&mut self) {
        loop {
            let Some((handle, association)) = &mut self.association else {
                return;
            };
            let handle = *handle;
            while let Some(event) = association.poll_endpoint_event() {
                if let Some(answer) = self.endpoint.handle_event(handle, event) {
                    association.handle_event(answer);
                }
            }
            let Some(event) = association.poll() else { return };
            match event {
                Event::Connected => {
                    self.established = true;
                    self.open_waiting();
                }
                Event::HandshakeFailed { reason } => return self.lose(&reason.to_string()),
                // With a stream reset the library may report a loss although the association lives; a real one closes it.
                Event::AssociationLost { reason } if association.is_closed() => return self.lose(&reason.to_string()),
                Event::Stream(StreamEvent::Opened { .. }) => while association.accept_stream().is_some() {},
                Event::Stream(StreamEvent::Readable { id }) => {
                    while association.accept_stream().is_some() {}
                    self.read(id);
                }
                Event::Stream(StreamEvent::Finished { id }) if self.channels.remove(&id).is_some() => {
                    self.events.push_back(SctpEvent::Closed(ChannelId(id)));
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, id: u16) {
        loop {
            let Some((_, association)) = &mut self.association else {
                return;
            };
            let Ok(mut stream) = association.stream(id) else { return };
            let Ok(Some(chunks)) = stream.read_sctp() else { return };
            let mut data = vec![0; chunks.len()];
            if chunks.len() > MAX_MESSAGE_SIZE as usize || chunks.read(&mut data).is_err() {
                continue;
            }
            let message = |kind, data: Vec<u8>| SctpEvent::Message {
                id: ChannelId(id),
                kind,
                data: data.into(),
            };
            match chunks.ppi {
                PayloadProtocolIdentifier::Dcep => self.handle_dcep(id, &data),
                // Data on a stream without an open channel has no meaning.
                _ if !self.channels.contains_key(&id) => {}
                PayloadProtocolIdentifier::Binary => self.events.push_back(message(MessageKind::Binary, data)),
                PayloadProtocolIdentifier::String => self.events.push_back(message(MessageKind::Text, data)),
                PayloadProtocolIdentifier::BinaryEmpty => {
                    self.events.push_back(message(MessageKind::Binary, Vec::new()));
                }
                PayloadProtocolIdentifier::StringEmpty => self.events.push_back(message(MessageKind::Text, Vec::new())),
                PayloadProtocolIdentifier::Unknown => {}
            }
        }
    }

    fn handle_dcep(&mut self, id: u16, bytes: &[u8]) {
        let Some(Dcep::Open {
            label,
            ordered,
            reliability,
            ..
        }) = Dcep::parse(bytes)
        else {
            return;
        };
        if self.channels.contains_key(&id) || self.channels.len() >= MAX_CHANNELS {
            return;
        }
        let Some((_, association)) = &mut self.association else {
            return;
        };
        let Ok(mut stream) = association.stream(id) else { return };
        let acknowledged = configure(&mut stream, ordered, reliability)
            && stream
                .write_with_ppi(&Dcep::Ack.write(), PayloadProtocolIdentifier::Dcep)
                .is_ok();
        if acknowledged {
            self.channels.insert(id, label.clone());
            self.events.push_back(SctpEvent::Opened {
                id: ChannelId(id),
                label,
                ordered,
                reliability,
            });
        }
    }

    fn open_waiting(&mut self) {
        let Some((_, association)) = &mut self.association else {
            return;
        };
        while let Some((id, options)) = self.waiting.pop_front() {
            let ChannelOptions {
                label,
                ordered,
                reliability,
            } = options;
            let Ok(mut stream) = association.open_stream(id.0, PayloadProtocolIdentifier::Binary) else {
                self.events.push_back(SctpEvent::Closed(id));
                continue;
            };
            let open = Dcep::Open {
                label: label.clone(),
                protocol: String::new(),
                ordered,
                reliability,
            };
            // RFC 8832 §6: the opening goes out ordered and reliable; data may follow at once.
            let opened = stream
                .write_with_ppi(&open.write(), PayloadProtocolIdentifier::Dcep)
                .is_ok()
                && configure(&mut stream, ordered, reliability);
            if opened {
                self.channels.insert(id.0, label.clone());
                self.events.push_back(SctpEvent::Opened {
                    id,
                    label,
                    ordered,
                    reliability,
                });
            } else {
                self.events.push_back(SctpEvent::Closed(id));
            }
        }
    }

    fn lose(&mut self, reason: &str) {
        self.association = None;
        self.established = false;
        for (id, _) in self.channels.drain() {
            self.events.push_back(SctpEvent::Closed(ChannelId(id)));
        }
        self.events.push_back(SctpEvent::Lost(reason.to_owned()));
    }
}

fn configure(stream: &mut sctp_proto::Stream<'_>, ordered: bool, reliability: Reliability) -> bool {
    let (kind, value) = match reliability {
        Reliability::Reliable => (ReliabilityType::Reliable, 0),
        Reliability::MaxRetransmits(n) => (ReliabilityType::Rexmit, n),
        Reliability::MaxLifetimeMs(ms) => (ReliabilityType::Timed, ms),
    };
    stream.set_reliability_params(!ordered, kind, value).is_ok()
}

/// The one address that every association sees as its peer's.
fn stand_in() -> SocketAddr {
    ([192, 0, 2, 1], 5000).into()
}

fn transport() -> TransportConfig {
    TransportConfig::default()
        .with_max_receive_buffer_size(RECEIVE_BUFFER)
        .with_max_send_message_size(MAX_MESSAGE_SIZE)
        .with_max_receive_message_size(MAX_MESSAGE_SIZE)
        // ICE decides when the connection is dead; SCTP must not give up before.
        .with_max_init_retransmits(None)
        .with_max_data_retransmits(None)
        .with_rto_initial_ms(500)
        .with_rto_min_ms(200)
        .with_rto_max_ms(3000)
}
