//! Attribute numbers and the values that several attributes share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fabric::checksum::crc32;

use super::{MAGIC_COOKIE, TransactionId};

pub(super) const MAPPED_ADDRESS: u16 = 0x0001;
pub(super) const USERNAME: u16 = 0x0006;
pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000A;
pub(super) const CHANNEL_NUMBER: u16 = 0x000C;
pub(super) const LIFETIME: u16 = 0x000D;
pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
pub(super) const DATA: u16 = 0x0013;
pub(super) const REALM: u16 = 0x0014;
pub(super) const NONCE: u16 = 0x0015;
pub(super) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub(super) const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
pub(super) const EVEN_PORT: u16 = 0x0018;
pub(super) const REQUESTED_TRANSPORT: u16 = 0x0019;
pub(super) const DONT_FRAGMENT: u16 = 0x001A;
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(super) const RESERVATION_TOKEN: u16 = 0x0022;
pub(super) const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
pub(super) const ADDRESS_ERROR_CODE: u16 = 0x8001;
pub(super) const SOFTWARE: u16 = 0x8022;
pub(super) const FINGERPRINT: u16 = 0x8028;

/// Length in bytes of an attribute's type and length fields.
pub(super) const ATTRIBUTE_HEADER_LEN: usize = 4;
/// Length in bytes of an HMAC-SHA1.
pub(super) const INTEGRITY_LEN: usize = 20;

/// XORed into the checksum, so that a message of another protocol with a CRC-32 at its end is told apart (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// The value of FINGERPRINT for a message of which `before` are the bytes up to that attribute.
pub(super) fn fingerprint(before: &[u8]) -> u32 {
    crc32(before) ^ FINGERPRINT_XOR
}

/// Types below this must be understood or refused (RFC 8489 §14).
pub(super) fn is_comprehension_required(attribute_type: u16) -> bool {
    attribute_type < 0x8000
}

/// Attribute values are padded to 32-bit boundaries.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// An IP address family as STUN numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V4),
            2 => Some(Self::V6),
            _ => None,
        }
    }

    pub(super) fn byte(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }
}

/// The pad an address is XORed with: the cookie, then the transaction id (RFC 8489 §14.2).
fn pad(transaction_id: TransactionId) -> [u8; 16] {
    let mut pad = [0; 16];
    pad[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    pad[4..].copy_from_slice(&transaction_id.0);
    pad
}

/// Reads the value of an XOR-*-ADDRESS attribute; IPv4-mapped IPv6 is taken as the IPv4 address it stands for.
pub(super) fn read_xor_address(value: &[u8], transaction_id: TransactionId) -> Option<SocketAddr> {
    let pad = pad(transaction_id);
    let (&[_, family, port_high, port_low], address) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([port_high ^ pad[0], port_low ^ pad[1]]);
    let ip = match Family::from_byte(family)? {
        Family::V4 => {
            let mut octets = <[u8; 4]>::try_from(address).ok()?;
            octets.iter_mut().zip(pad).for_each(|(octet, pad)| *octet ^= pad);
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        Family::V6 => {
            let mut octets = <[u8; 16]>::try_from(address).ok()?;
            octets.iter_mut().zip(pad).for_each(|(octet, pad)| *octet ^= pad);
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    };
    Some(SocketAddr::new(ip, port))
}

/// Writes the value of an XOR-*-ADDRESS attribute into `out` and returns its length: 8 or 20 bytes.
pub(super) fn write_xor_address(address: SocketAddr, transaction_id: TransactionId, out: &mut [u8; 20]) -> usize {
    let pad = pad(transaction_id);
    out[0] = 0;
    out[1] = Family::of(address.ip()).byte();
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    out[2] ^= pad[0];
    out[3] ^= pad[1];
    let mut write = |octets: &[u8]| {
        for (index, octet) in octets.iter().enumerate() {
            out[4 + index] = octet ^ pad[index];
        }
        4 + octets.len()
    };
    match address.ip() {
        IpAddr::V4(ip) => write(&ip.octets()),
        IpAddr::V6(ip) => write(&ip.octets()),
    }
}
