//! The decoder: one pass over a message, borrowing from it.

use aws_lc_rs::hmac;
use smallvec::SmallVec;

use super::{
    Class, Family, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId,
    attribute::{self, ATTRIBUTE_HEADER_LEN, INTEGRITY_LEN, padded, read_xor_address},
    split_type,
};

/// Unknown attributes named in a 420; a client that sends more learns the rest when it has dealt with these.
const MAX_UNKNOWN: usize = 16;
/// Peers of one CreatePermission; more are refused as malformed.
const MAX_PEERS: usize = 64;

/// Not a STUN message, or one damaged so that nothing can be said about it. It is dropped, never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStun;

/// A decoded message. Of attributes that may occur once the first counts, the rest are ignored (RFC 8489 §14).
#[derive(Debug)]
pub struct Message<'a> {
    pub class: Class,
    pub method: Method,
    pub transaction_id: TransactionId,
    pub username: Option<&'a str>,
    pub realm: Option<&'a [u8]>,
    pub nonce: Option<&'a [u8]>,
    pub peers: SmallVec<[std::net::SocketAddr; 2]>,
    pub data: Option<&'a [u8]>,
    pub channel_number: Option<u16>,
    /// Seconds.
    pub lifetime: Option<u32>,
    /// An IP protocol number; 17 is UDP.
    pub requested_transport: Option<u8>,
    /// `Some(None)`: a family nobody knows.
    pub requested_family: Option<Option<Family>>,
    pub additional_family: Option<Option<Family>>,
    /// Whether the next higher port is to be reserved.
    pub even_port: Option<bool>,
    pub reservation_token: Option<[u8; 8]>,
    pub dont_fragment: bool,
    /// Comprehension-required attributes the relay does not know.
    pub unknown: SmallVec<[u16; 4]>,
    /// A known attribute has a value that cannot be read.
    pub malformed: bool,
    /// The sender added a FINGERPRINT, and it is right; the response carries one then.
    pub fingerprint: bool,
    integrity: Option<Integrity<'a>>,
}

/// The MESSAGE-INTEGRITY attribute and what it covers.
#[derive(Debug)]
struct Integrity<'a> {
    /// The message up to the attribute.
    covered: &'a [u8],
    mac: &'a [u8],
}

impl<'a> Message<'a> {
    /// Decodes exactly one message.
    ///
    /// # Errors
    /// When the bytes are no STUN message of exactly this length, or its FINGERPRINT is wrong.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, NotStun> {
        let (header, body) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(NotStun)?;
        let message_type = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let cookie = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if message_type & 0xC000 != 0 || cookie != MAGIC_COOKIE || length != body.len() || !length.is_multiple_of(4) {
            return Err(NotStun);
        }
        let (class, method) = split_type(message_type);
        let mut transaction_id = [0; 12];
        transaction_id.copy_from_slice(&header[8..]);
        let mut message = Self {
            class,
            method,
            transaction_id: TransactionId(transaction_id),
            username: None,
            realm: None,
            nonce: None,
            peers: SmallVec::new(),
            data: None,
            channel_number: None,
            lifetime: None,
            requested_transport: None,
            requested_family: None,
            additional_family: None,
            even_port: None,
            reservation_token: None,
            dont_fragment: false,
            unknown: SmallVec::new(),
            malformed: false,
            fingerprint: false,
            integrity: None,
        };
        message.decode_attributes(bytes)?;
        Ok(message)
    }

    fn decode_attributes(&mut self, bytes: &'a [u8]) -> Result<(), NotStun> {
        let mut position = HEADER_LEN;
        while position < bytes.len() {
            let (header, rest) = bytes[position..]
                .split_first_chunk::<ATTRIBUTE_HEADER_LEN>()
                .ok_or(NotStun)?;
            let attribute_type = u16::from_be_bytes([header[0], header[1]]);
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let value = rest.get(..length).ok_or(NotStun)?;
            let next = position + ATTRIBUTE_HEADER_LEN + padded(length);
            if attribute_type == attribute::FINGERPRINT {
                let expected = attribute::fingerprint(&bytes[..position]).to_be_bytes();
                if value != expected || next != bytes.len() {
                    return Err(NotStun);
                }
                self.fingerprint = true;
            } else if attribute_type == attribute::MESSAGE_INTEGRITY && self.integrity.is_none() {
                if length != INTEGRITY_LEN {
                    return Err(NotStun);
                }
                self.integrity = Some(Integrity {
                    covered: &bytes[..position],
                    mac: value,
                });
            } else if self.integrity.is_none() {
                // What follows MESSAGE-INTEGRITY is not covered by it and must be ignored (RFC 8489 §14.5).
                self.take(attribute_type, value);
            }
            position = next;
        }
        Ok(())
    }

    fn take(&mut self, attribute_type: u16, value: &'a [u8]) {
        use attribute as a;
        let readable = match attribute_type {
            a::USERNAME => first(&mut self.username, std::str::from_utf8(value).ok()),
            a::REALM => first(&mut self.realm, Some(value)),
            a::NONCE => first(&mut self.nonce, Some(value)),
            a::XOR_PEER_ADDRESS => match read_xor_address(value, self.transaction_id) {
                Some(peer) if self.peers.len() < MAX_PEERS => {
                    self.peers.push(peer);
                    true
                }
                _ => false,
            },
            a::DATA => first(&mut self.data, Some(value)),
            a::CHANNEL_NUMBER => first(&mut self.channel_number, leading_u16(value)),
            a::LIFETIME => first(&mut self.lifetime, value.try_into().ok().map(u32::from_be_bytes)),
            a::REQUESTED_TRANSPORT => first(&mut self.requested_transport, leading_byte(value)),
            a::REQUESTED_ADDRESS_FAMILY => {
                first(&mut self.requested_family, leading_byte(value).map(Family::from_byte))
            }
            a::ADDITIONAL_ADDRESS_FAMILY => {
                first(&mut self.additional_family, leading_byte(value).map(Family::from_byte))
            }
            a::EVEN_PORT => first(&mut self.even_port, value.first().map(|byte| byte & 0x80 != 0)),
            a::RESERVATION_TOKEN => first(&mut self.reservation_token, value.try_into().ok()),
            a::DONT_FRAGMENT => {
                self.dont_fragment = true;
                true
            }
            // Understood, and of no consequence in what a client sends.
            a::MAPPED_ADDRESS
            | a::XOR_MAPPED_ADDRESS
            | a::XOR_RELAYED_ADDRESS
            | a::ERROR_CODE
            | a::UNKNOWN_ATTRIBUTES => true,
            other => {
                if a::is_comprehension_required(other) && self.unknown.len() < MAX_UNKNOWN {
                    self.unknown.push(other);
                }
                true
            }
        };
        self.malformed |= !readable;
    }

    /// Whether the message carries a MESSAGE-INTEGRITY.
    pub fn has_integrity(&self) -> bool {
        self.integrity.is_some()
    }

    /// Whether MESSAGE-INTEGRITY was made with this key (RFC 8489 §14.5). Compares in constant time.
    pub fn verify_integrity(&self, key: &hmac::Key) -> bool {
        let Some(Integrity { covered, mac }) = &self.integrity else {
            return false;
        };
        // The MAC is computed over a header whose length ends with MESSAGE-INTEGRITY, whatever follows it.
        let length = covered.len() - HEADER_LEN + ATTRIBUTE_HEADER_LEN + INTEGRITY_LEN;
        let Ok(length) = u16::try_from(length) else {
            return false;
        };
        let mut context = hmac::Context::with_key(key);
        context.update(&covered[..2]);
        context.update(&length.to_be_bytes());
        context.update(&covered[4..]);
        subtle::ConstantTimeEq::ct_eq(context.sign().as_ref(), *mac).into()
    }
}

/// Keeps the first occurrence; tells whether the value could be read.
fn first<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let readable = value.is_some();
    if slot.is_none() {
        *slot = value;
    }
    readable
}

/// A byte followed by three reserved ones.
fn leading_byte(value: &[u8]) -> Option<u8> {
    <[u8; 4]>::try_from(value).ok().map(|[byte, ..]| byte)
}

/// A `u16` followed by two reserved bytes.
fn leading_u16(value: &[u8]) -> Option<u16> {
    <[u8; 4]>::try_from(value)
        .ok()
        .map(|[high, low, ..]| u16::from_be_bytes([high, low]))
}
