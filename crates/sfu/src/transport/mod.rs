//! How packets reach and leave a client: ICE, DTLS, SRTP, SCTP, and the sockets. The only place that knows those
//! protocols and the crates that speak them. Everything here but `mux` is sans-IO and told the time.

mod path;
pub use path::{Carrier, Path, Transmit};

mod certificate;
pub use certificate::{Certificate, CertificateError, Fingerprint};

mod peer;
pub use peer::{PeerEvent, PeerParams, PeerStats, PeerTransport, RemoteParams};

mod ice;
pub use ice::{IceCredentials, IceMode};

mod dtls;
pub use dtls::DtlsRole;

mod srtp;
pub use srtp::SrtpProfile;

mod sctp;
pub use sctp::{ChannelId, ChannelOptions, MAX_MESSAGE_SIZE, MessageKind, SendMessageError};

mod dcep;
pub use dcep::Reliability;

mod mux;
pub use mux::{ConnectionKey, Incoming, Mux, MuxConfig, MuxError, MuxStats, Registration};

mod outbox;
mod stun;
pub(crate) use stun::check_of_ours;

#[cfg(test)]
mod tests;
