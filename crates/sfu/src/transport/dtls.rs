//! The DTLS session of one connection, over `dimpl`: handshake, the check of the client's fingerprint, the export of
//! SRTP keys, and the records that carry SCTP. Always DTLS 1.2: under 1.3 the library takes the slow SRTP profile, and
//! no client needs 1.3. Told the time; knows no path.

use std::collections::VecDeque;
use std::time::Instant;

use dimpl::{Dtls, Output};

use super::certificate::{Certificate, Fingerprint};
use super::srtp::{KeySide, KeyingMaterial, SrtpProfile};

/// Datagrams that may arrive before signalling told us the client's fingerprint: its first flight, twice.
const MAX_EARLY: usize = 6;
/// Records are small, but a caller may hand in any datagram.
const MAX_DATAGRAM: usize = 2048;

/// Which side opens the DTLS handshake: the value of our own `a=setup` (RFC 5763 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtlsRole {
    /// We wait for the client's ClientHello (`a=setup:passive`): the answer to `actpass`.
    Passive,
    /// We send the ClientHello (`a=setup:active`), because the client said `passive`.
    Active,
}

pub(super) enum DtlsEvent {
    /// The handshake is done with the client whose fingerprint was signalled.
    Connected(SrtpProfile, KeyingMaterial),
    /// Plain text of an application record.
    Data(Vec<u8>),
    /// The client closed the session.
    Closed,
    Failed(String),
}

pub(super) struct DtlsSession {
    dtls: Dtls,
    side: KeySide,
    expected: Option<Fingerprint>,
    verified: bool,
    keys: Option<(SrtpProfile, KeyingMaterial)>,
    connected: bool,
    failed: bool,
    timeout: Option<Instant>,
    early: Vec<Vec<u8>>,
    events: VecDeque<DtlsEvent>,
    packets: VecDeque<Vec<u8>>,
    scratch: Vec<u8>,
}

impl DtlsSession {
    pub(super) fn new(certificate: &Certificate, now: Instant) -> Self {
        Self {
            dtls: Dtls::new_12(certificate.config.clone(), certificate.dtls.clone(), now),
            side: KeySide::Server,
            expected: None,
            verified: false,
            keys: None,
            connected: false,
            failed: false,
            timeout: None,
            early: Vec::new(),
            events: VecDeque::new(),
            packets: VecDeque::new(),
            scratch: vec![0; MAX_DATAGRAM],
        }
    }

    /// What signalling says of the client. Only the first call counts: an ICE restart keeps the session, and a client
    /// with another certificate has to make a new connection.
    pub(super) fn set_remote(&mut self, now: Instant, fingerprint: Fingerprint, role: DtlsRole) {
        if let Some(expected) = self.expected {
            if expected != fingerprint {
                self.fail("the client changed its certificate fingerprint within a connection");
            }
            return;
        }
        self.expected = Some(fingerprint);
        if role == DtlsRole::Active {
            self.side = KeySide::Client;
            self.dtls.set_active(true);
        }
        for datagram in std::mem::take(&mut self.early) {
            self.handle(now, &datagram);
        }
    }

    /// Begins the handshake where we are the active side; to be called once a path is there.
    pub(super) fn start(&mut self, now: Instant) {
        if self.expected.is_some() {
            self.handle_timeout(now);
        }
    }

    pub(super) fn handle(&mut self, now: Instant, datagram: &[u8]) {
        if self.failed {
            return;
        }
        if self.expected.is_none() {
            if self.early.len() < MAX_EARLY && datagram.len() <= MAX_DATAGRAM {
                self.early.push(datagram.to_vec());
            }
            return;
        }
        let result = self
            .dtls
            .handle_timeout(now)
            .and_then(|()| self.dtls.handle_packet(datagram));
        self.settle(result);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if !self.failed && self.expected.is_some() {
            let result = self.dtls.handle_timeout(now);
            self.settle(result);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timeout.filter(|_| !self.failed)
    }

    /// Sends one application record.
    pub(super) fn send(&mut self, now: Instant, data: &[u8]) {
        if self.connected && !self.failed {
            let result = self
                .dtls
                .handle_timeout(now)
                .and_then(|()| self.dtls.send_application_data(data).map(drop));
            self.settle(result);
        }
    }

    /// Tells the client that the session ends.
    pub(super) fn close(&mut self) {
        if self.connected && !self.failed {
            let result = self.dtls.close();
            self.settle(result);
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<DtlsEvent> {
        self.events.pop_front()
    }

    pub(super) fn poll_packet(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    pub(super) fn side(&self) -> KeySide {
        self.side
    }

    fn settle(&mut self, result: Result<(), dimpl::Error>) {
        self.drain();
        if let Err(error) = result
            && !self.failed
        {
            self.fail(&format!("the DTLS handshake failed: {error}"));
        }
    }

    fn drain(&mut self) {
        while !self.failed {
            match self.dtls.poll_output(&mut self.scratch) {
                Output::Packet(packet) => self.packets.push_back(packet.to_vec()),
                Output::BufferTooSmall { needed } => self.scratch.resize(needed, 0),
                Output::Timeout(at) => {
                    self.timeout = Some(at);
                    return;
                }
                Output::PeerCert(certificate) => {
                    if self.expected != Some(Fingerprint::of(certificate)) {
                        self.fail("the client's certificate is not the one it signalled");
                        return;
                    }
                    self.verified = true;
                }
                Output::KeyingMaterial(material, profile) => {
                    let profile = match profile {
                        dimpl::SrtpProfile::AEAD_AES_256_GCM => SrtpProfile::AeadAes256Gcm,
                        dimpl::SrtpProfile::AEAD_AES_128_GCM => SrtpProfile::AeadAes128Gcm,
                        dimpl::SrtpProfile::AES128_CM_SHA1_80 => SrtpProfile::Aes128CmHmacSha1_80,
                        _ => continue,
                    };
                    self.keys = KeyingMaterial::new(profile, &material, self.side).map(|keys| (profile, keys));
                    self.announce();
                }
                Output::Connected => {
                    self.connected = true;
                    self.announce();
                }
                Output::ApplicationData(data) if self.verified => {
                    self.events.push_back(DtlsEvent::Data(data.to_vec()));
                }
                Output::CloseNotify => self.events.push_back(DtlsEvent::Closed),
                _ => {}
            }
        }
    }

    /// Reports the connection once handshake, keys and verification are all there, in whatever order they came.
    fn announce(&mut self) {
        if self.connected
            && self.verified
            && let Some((profile, keys)) = self.keys.take()
        {
            self.events.push_back(DtlsEvent::Connected(profile, keys));
        }
    }

    fn fail(&mut self, reason: &str) {
        self.failed = true;
        self.packets.clear();
        self.events.clear();
        self.events.push_back(DtlsEvent::Failed(reason.to_owned()));
    }
}
