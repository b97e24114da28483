//! STUN and TURN messages on the wire: RFC 8489 §5 and §14, RFC 8656 §18.
//!
//! Owns the bounded decoder and the encoder of every message and attribute the relay understands. Pure; knows nothing of
//! what a message means to an allocation.

mod attribute;
mod decode;
mod encode;

pub use attribute::Family;
pub use decode::{Message, NotStun};
pub use encode::{DataHeader, Encoder};

/// Length in bytes of the fixed header.
pub const HEADER_LEN: usize = 20;
/// Fixed value that tells STUN from its predecessor and from other protocols on the port.
pub(crate) const MAGIC_COOKIE: u32 = 0x2112_A442;

/// Pairs a response with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What kind of message (RFC 8489 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// What the message is about: the methods of RFC 8489 §18.2 and RFC 8656 §17.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Binding,
    Allocate,
    Refresh,
    Send,
    Data,
    CreatePermission,
    ChannelBind,
    /// Any other, kept so that an error response can name it.
    Other(u16),
}

impl Method {
    fn from_bits(bits: u16) -> Self {
        match bits {
            0x001 => Self::Binding,
            0x003 => Self::Allocate,
            0x004 => Self::Refresh,
            0x006 => Self::Send,
            0x007 => Self::Data,
            0x008 => Self::CreatePermission,
            0x009 => Self::ChannelBind,
            other => Self::Other(other),
        }
    }

    fn bits(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::CreatePermission => 0x008,
            Self::ChannelBind => 0x009,
            Self::Other(bits) => bits,
        }
    }
}

/// The class bits lie scattered among the method bits (RFC 8489 §5, figure 3).
fn split_type(message_type: u16) -> (Class, Method) {
    let class = match ((message_type >> 7) & 2) | ((message_type >> 4) & 1) {
        0 => Class::Request,
        1 => Class::Indication,
        2 => Class::Success,
        _ => Class::Error,
    };
    let bits = (message_type & 0x000F) | ((message_type & 0x00E0) >> 1) | ((message_type & 0x3E00) >> 2);
    (class, Method::from_bits(bits))
}

fn join_type(class: Class, method: Method) -> u16 {
    let class = match class {
        Class::Request => 0,
        Class::Indication => 0x0010,
        Class::Success => 0x0100,
        Class::Error => 0x0110,
    };
    let bits = method.bits();
    class | (bits & 0x000F) | ((bits & 0x0070) << 1) | ((bits & 0x0F80) << 2)
}

/// Error codes the relay answers with (RFC 8489 §14.8, RFC 8656 §19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    BadRequest,
    Unauthenticated,
    Forbidden,
    UnknownAttribute,
    AllocationMismatch,
    StaleNonce,
    AddressFamilyNotSupported,
    WrongCredentials,
    UnsupportedTransportProtocol,
    PeerAddressFamilyMismatch,
    AllocationQuotaReached,
    InsufficientCapacity,
}

impl ErrorCode {
    /// The number and the reason phrase sent with it.
    pub fn parts(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Unauthenticated => (401, "Unauthenticated"),
            Self::Forbidden => (403, "Forbidden"),
            Self::UnknownAttribute => (420, "Unknown Attribute"),
            Self::AllocationMismatch => (437, "Allocation Mismatch"),
            Self::StaleNonce => (438, "Stale Nonce"),
            Self::AddressFamilyNotSupported => (440, "Address Family not Supported"),
            Self::WrongCredentials => (441, "Wrong Credentials"),
            Self::UnsupportedTransportProtocol => (442, "Unsupported Transport Protocol"),
            Self::PeerAddressFamilyMismatch => (443, "Peer Address Family Mismatch"),
            Self::AllocationQuotaReached => (486, "Allocation Quota Reached"),
            Self::InsufficientCapacity => (508, "Insufficient Capacity"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_join_as_they_split() {
        let table = [
            (0x0001, Class::Request, Method::Binding),
            (0x0101, Class::Success, Method::Binding),
            (0x0003, Class::Request, Method::Allocate),
            (0x0113, Class::Error, Method::Allocate),
            (0x0016, Class::Indication, Method::Send),
            (0x0017, Class::Indication, Method::Data),
            (0x0108, Class::Success, Method::CreatePermission),
            (0x0119, Class::Error, Method::ChannelBind),
            (0x3EEF, Class::Request, Method::Other(0xFFF)),
        ];
        for (bits, class, method) in table {
            assert_eq!(split_type(bits), (class, method), "{bits:#06x}");
            assert_eq!(join_type(class, method), bits, "{bits:#06x}");
        }
        for bits in 0..0x4000 {
            let (class, method) = split_type(bits);
            assert_eq!(join_type(class, method), bits);
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits
            .chunks_exact(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect()
    }

    fn sha1_key(key: &[u8]) -> aws_lc_rs::hmac::Key {
        aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key)
    }

    #[test]
    fn reads_the_sample_request_of_rfc_5769() {
        let sample = bytes(
            "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b1
             51263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf",
        );
        let message = Message::decode(&sample).expect("the sample");
        assert_eq!((message.class, message.method), (Class::Request, Method::Binding));
        assert_eq!(message.username, Some("evtj:h6vY"));
        assert_eq!(&message.unknown[..], [0x0024], "PRIORITY belongs to ICE");
        assert!(message.fingerprint && message.verify_integrity(&sha1_key(b"VOkJxbRl1RmTxUk/WvJxBt")));
        assert!(!message.verify_integrity(&sha1_key(b"VOkJxbRl1RmTxUk/WvJxBT")));
    }

    #[test]
    fn reads_the_long_term_sample_of_rfc_5769() {
        let sample = bytes(
            "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c662f2f34393
             96b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0
             712e85c9a28ca89666",
        );
        let message = Message::decode(&sample).expect("the sample");
        assert_eq!(
            message.username,
            Some("\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}")
        );
        assert_eq!(message.realm, Some(&b"example.org"[..]));
        // MD5("マトリックス:example.org:TheMatrIX")
        let key = bytes("e8ca7ad59d5eb0518e312911d2dab2a9");
        assert!(message.verify_integrity(&sha1_key(&key)));
    }
}
