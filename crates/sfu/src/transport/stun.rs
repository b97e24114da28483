//! The part of STUN that ICE needs: Binding requests and their answers (RFC 8489, RFC 8445 §7). A pure codec on byte
//! slices; knows no agent, no path and no time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aws_lc_rs::hmac;
use fabric::checksum::crc32;

use super::IceCredentials;

const MAGIC_COOKIE: u32 = 0x2112_A442;
const HEADER_LEN: usize = 20;
/// XORed into the CRC of the FINGERPRINT attribute (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_INDICATION: u16 = 0x0011;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;

const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLED: u16 = 0x8029;

pub(crate) type TransactionId = [u8; 12];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// A Binding message whose structure and FINGERPRINT (if any) are right; its integrity is yet to be checked.
#[derive(Debug)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    pub(super) class: Class,
    pub(super) transaction: TransactionId,
    /// The two halves of USERNAME: the receiver's fragment, then the sender's.
    pub(super) username: Option<(&'a str, &'a str)>,
    pub(super) use_candidate: bool,
    /// The sender claims the controlled role.
    pub(super) ice_controlled: bool,
    pub(super) error_code: Option<u16>,
    /// Offset of the MESSAGE-INTEGRITY attribute.
    integrity_at: Option<usize>,
}

/// Whether a datagram can be STUN, by its first bytes (RFC 7983 §7 and the magic cookie).
pub(super) fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN && datagram[0] < 4 && datagram[4..8] == MAGIC_COOKIE.to_be_bytes()
}

/// The first half of the USERNAME of a Binding request: the fragment of the receiving side, by which the socket's
/// owner finds the connection. Nothing is authenticated here.
pub(super) fn local_ufrag(datagram: &[u8]) -> Option<&str> {
    let message = Message::parse(datagram)?;
    (message.class == Class::Request).then_some(message.username?.0)
}

impl<'a> Message<'a> {
    /// `None` for anything that is not a well-formed Binding message.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !is_stun(bytes) {
            return None;
        }
        let class = match u16::from_be_bytes([bytes[0], bytes[1]]) {
            BINDING_REQUEST => Class::Request,
            BINDING_INDICATION => Class::Indication,
            BINDING_SUCCESS => Class::Success,
            BINDING_ERROR => Class::Error,
            _ => return None,
        };
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if !length.is_multiple_of(4) || HEADER_LEN + length != bytes.len() {
            return None;
        }
        let mut message = Self {
            bytes,
            class,
            transaction: bytes[8..20].try_into().ok()?,
            username: None,
            use_candidate: false,
            ice_controlled: false,
            error_code: None,
            integrity_at: None,
        };
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let header = bytes.get(at..at + 4)?;
            let kind = u16::from_be_bytes([header[0], header[1]]);
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let value = bytes.get(at + 4..at + 4 + length)?;
            // RFC 8489 §14.5: whatever follows MESSAGE-INTEGRITY is ignored, but for FINGERPRINT.
            if message.integrity_at.is_none() || kind == FINGERPRINT {
                message.attribute(kind, value, at)?;
            }
            at += 4 + length.next_multiple_of(4);
        }
        Some(message)
    }

    fn attribute(&mut self, kind: u16, value: &'a [u8], at: usize) -> Option<()> {
        match kind {
            USERNAME => self.username = Some(std::str::from_utf8(value).ok()?.split_once(':')?),
            USE_CANDIDATE => self.use_candidate = true,
            ICE_CONTROLLED => self.ice_controlled = true,
            ERROR_CODE if value.len() >= 4 => {
                self.error_code = Some(u16::from(value[2] & 7) * 100 + u16::from(value[3]))
            }
            MESSAGE_INTEGRITY if value.len() == 20 => self.integrity_at = Some(at),
            FINGERPRINT => {
                // Only the last attribute may be one (§14.7): a second would have its checksum computed too, and a
                // datagram full of them would cost the square of its length.
                (value.len() == 4 && at + 8 == self.bytes.len()).then_some(())?;
                let expected = crc32(&self.bytes[..at]) ^ FINGERPRINT_XOR;
                (value == expected.to_be_bytes()).then_some(())?;
            }
            _ => {}
        }
        Some(())
    }

    /// Whether the message carries MESSAGE-INTEGRITY made with `password`. The comparison takes constant time.
    pub(super) fn verify(&self, password: &str) -> bool {
        let Some(at) = self.integrity_at else { return false };
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
        // The length field covers the message up to and including MESSAGE-INTEGRITY (RFC 8489 §14.5), so the covered
        // bytes are rebuilt; a Binding message is small.
        let mut covered = Vec::with_capacity(at);
        covered.extend_from_slice(&self.bytes[..at]);
        set_length(&mut covered, at + 24);
        hmac::verify(&key, &covered, &self.bytes[at + 4..at + 24]).is_ok()
    }
}

/// Appends a Binding success response (RFC 8445 §7.3) to `out`.
pub(super) fn write_success(out: &mut Vec<u8>, transaction: &TransactionId, mapped: SocketAddr, password: &str) {
    let start = begin(out, BINDING_SUCCESS, transaction);
    xor_mapped_address(out, mapped, transaction);
    finish(out, start, password);
}

/// Appends a 487 (Role Conflict) response (RFC 8445 §7.3.1.1) to `out`.
pub(super) fn write_role_conflict(out: &mut Vec<u8>, transaction: &TransactionId, password: &str) {
    let start = begin(out, BINDING_ERROR, transaction);
    attribute(out, ERROR_CODE, b"\0\0\x04\x57Role Conflict");
    finish(out, start, password);
}

/// Appends a connectivity check of a controlled agent to `out`.
pub(super) fn write_check(out: &mut Vec<u8>, transaction: &TransactionId, check: &Check<'_>) {
    let start = begin(out, BINDING_REQUEST, transaction);
    let username = format!("{}:{}", check.remote_ufrag, check.local_ufrag);
    attribute(out, USERNAME, username.as_bytes());
    attribute(out, PRIORITY, &check.priority.to_be_bytes());
    attribute(out, ICE_CONTROLLED, &check.tie_breaker.to_be_bytes());
    finish(out, start, check.remote_password);
}

/// A connectivity check for whom we gave `local` to: how the process tries its own sockets.
pub(crate) fn check_of_ours(local: &IceCredentials, transaction: &TransactionId) -> Vec<u8> {
    let mut check = Vec::with_capacity(128);
    let own = Check {
        local_ufrag: "self",
        remote_ufrag: &local.ufrag,
        remote_password: &local.pwd,
        priority: 1,
        tie_breaker: 0,
    };
    write_check(&mut check, transaction, &own);
    check
}

/// What a connectivity check says.
pub(super) struct Check<'a> {
    pub(super) local_ufrag: &'a str,
    pub(super) remote_ufrag: &'a str,
    pub(super) remote_password: &'a str,
    /// The priority a peer-reflexive candidate learned from this check would have (RFC 8445 §7.1.1).
    pub(super) priority: u32,
    pub(super) tie_breaker: u64,
}

fn begin(out: &mut Vec<u8>, kind: u16, transaction: &TransactionId) -> usize {
    let start = out.len();
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&MAGIC_COOKIE.to_be_bytes());
    out.extend_from_slice(transaction);
    start
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
    out.resize(out.len() + value.len().next_multiple_of(4) - value.len(), 0);
}

/// Adds MESSAGE-INTEGRITY and FINGERPRINT and settles the length field.
fn finish(out: &mut Vec<u8>, start: usize, password: &str) {
    let length = out.len() - start;
    set_length(&mut out[start..], length + 24);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    let tag = hmac::sign(&key, &out[start..]);
    attribute(out, MESSAGE_INTEGRITY, tag.as_ref());
    set_length(&mut out[start..], length + 32);
    let crc = crc32(&out[start..]) ^ FINGERPRINT_XOR;
    attribute(out, FINGERPRINT, &crc.to_be_bytes());
}

/// Writes the length field for a message that ends at `end`, counted from its first byte.
fn set_length(message: &mut [u8], end: usize) {
    message[2..4].copy_from_slice(&((end - HEADER_LEN) as u16).to_be_bytes());
}

fn xor_mapped_address(out: &mut Vec<u8>, address: SocketAddr, transaction: &TransactionId) {
    let cookie = MAGIC_COOKIE.to_be_bytes();
    let port = address.port() ^ (MAGIC_COOKIE >> 16) as u16;
    let mut value = [0; 20];
    value[2..4].copy_from_slice(&port.to_be_bytes());
    let length = match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            for (i, byte) in Ipv4Addr::octets(&ip).iter().enumerate() {
                value[4 + i] = byte ^ cookie[i];
            }
            8
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            for (i, byte) in Ipv6Addr::octets(&ip).iter().enumerate() {
                value[4 + i] = byte ^ if i < 4 { cookie[i] } else { transaction[i - 4] };
            }
            20
        }
    };
    attribute(out, XOR_MAPPED_ADDRESS, &value[..length]);
}

#[cfg(test)]
pub(super) mod testing {
    //! What only clients send.

    use super::*;
    use crate::transport::IceCredentials;

    /// A check of a client to the agent with these credentials. `controlled` claims the wrong role.
    pub(in crate::transport) fn request(to: &IceCredentials, nominate: bool, controlled: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out, BINDING_REQUEST, &[9; 12]);
        attribute(&mut out, USERNAME, format!("{}:client", to.ufrag).as_bytes());
        if nominate {
            attribute(&mut out, USE_CANDIDATE, &[]);
        }
        // ICE-CONTROLLING.
        attribute(&mut out, if controlled { ICE_CONTROLLED } else { 0x802A }, &[1; 8]);
        finish(&mut out, start, &to.pwd);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 5769 §2.1: the sample request (its USERNAME is `evtj:h6vY`).
    const SAMPLE: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
        \x80\x22\x00\x10STUN test client\x00\x24\x00\x04\x6e\x00\x01\xff\x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
        \x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20\
        \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\
        \x80\x28\x00\x04\xe5\x7a\x3b\xcf";

    #[test]
    fn the_sample_of_rfc_5769_is_read_and_verified() {
        let message = Message::parse(SAMPLE).expect("the sample is well-formed");
        assert_eq!(message.username, Some(("evtj", "h6vY")));
        assert!(message.ice_controlled);
        assert!(message.verify("VOkJxbRl1RmTxUk/WvJxBt"));
        assert!(!message.verify("wrong"));
        assert_eq!(local_ufrag(SAMPLE), Some("evtj"));
        let mut broken = SAMPLE.to_vec();
        broken[30] ^= 1;
        assert!(Message::parse(&broken).is_none(), "the fingerprint does not match");
    }

    #[test]
    fn a_fingerprint_is_the_last_attribute_and_the_only_one() {
        let mut out = Vec::new();
        begin(&mut out, BINDING_REQUEST, &[7; 12]);
        for end in [HEADER_LEN + 8, HEADER_LEN + 16] {
            set_length(&mut out, end);
            let crc = crc32(&out) ^ FINGERPRINT_XOR;
            attribute(&mut out, FINGERPRINT, &crc.to_be_bytes());
            assert_eq!(Message::parse(&out).is_some(), end == HEADER_LEN + 8);
        }
        out.truncate(HEADER_LEN);
        attribute(&mut out, FINGERPRINT, &[]);
        set_length(&mut out, HEADER_LEN + 4);
        assert!(Message::parse(&out).is_none());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let transaction = [7; 12];
        let mut out = vec![0xAA; 3];
        write_success(
            &mut out,
            &transaction,
            "[2001:db8::1]:4000".parse().expect("literal"),
            "password",
        );
        let message = Message::parse(&out[3..]).expect("well-formed");
        assert_eq!((message.class, message.transaction), (Class::Success, transaction));
        assert!(message.verify("password"));

        let mut out = Vec::new();
        write_role_conflict(&mut out, &transaction, "password");
        let message = Message::parse(&out).expect("well-formed");
        assert_eq!((message.class, message.error_code), (Class::Error, Some(487)));

        let mut out = Vec::new();
        let check = Check {
            local_ufrag: "l",
            remote_ufrag: "r",
            remote_password: "p",
            priority: 1,
            tie_breaker: 2,
        };
        write_check(&mut out, &transaction, &check);
        let message = Message::parse(&out).expect("well-formed");
        assert_eq!(message.username, Some(("r", "l")));
        assert!(message.verify("p"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), shaped: bool) {
            if shaped && bytes.len() >= 20 {
                bytes.truncate(bytes.len() / 4 * 4);
                let length = (bytes.len() - 20) as u16;
                bytes[..2].copy_from_slice(&[0, 1]);
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
            }
            if let Some(message) = Message::parse(&bytes) {
                message.verify("password");
            }
        }
    }
}
