//! The encoder of responses, and the fixed header of a Data indication for the data path.

use std::net::SocketAddr;

use aws_lc_rs::hmac;

use super::{
    Class, ErrorCode, Family, HEADER_LEN, MAGIC_COOKIE, Method, TransactionId,
    attribute::{self, ATTRIBUTE_HEADER_LEN, INTEGRITY_LEN, padded, write_xor_address},
    join_type,
};

/// Builds one message, attribute by attribute, in the order of the calls.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    transaction_id: TransactionId,
}

impl Encoder {
    pub fn new(class: Class, method: Method, transaction_id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(160);
        bytes.extend_from_slice(&header(class, method, 0, transaction_id));
        Self { bytes, transaction_id }
    }

    pub fn error_code(self, code: ErrorCode) -> Self {
        let (number, reason) = code.parts();
        let mut value = error_value(number).to_vec();
        value.extend_from_slice(reason.as_bytes());
        self.attribute(attribute::ERROR_CODE, &value)
    }

    /// RFC 8656 §18.12: why the additional family could not be allocated.
    pub fn address_error_code(self, family: Family, code: ErrorCode) -> Self {
        let (number, reason) = code.parts();
        let mut value = error_value(number).to_vec();
        value[0] = family.byte();
        value.extend_from_slice(reason.as_bytes());
        self.attribute(attribute::ADDRESS_ERROR_CODE, &value)
    }

    pub fn unknown_attributes(self, unknown: &[u16]) -> Self {
        let value: Vec<u8> = unknown.iter().flat_map(|attribute| attribute.to_be_bytes()).collect();
        self.attribute(attribute::UNKNOWN_ATTRIBUTES, &value)
    }

    pub fn realm(self, realm: &str) -> Self {
        self.attribute(attribute::REALM, realm.as_bytes())
    }

    pub fn nonce(self, nonce: &[u8]) -> Self {
        self.attribute(attribute::NONCE, nonce)
    }

    pub fn username(self, username: &str) -> Self {
        self.attribute(attribute::USERNAME, username.as_bytes())
    }

    pub fn software(self, software: &str) -> Self {
        self.attribute(attribute::SOFTWARE, software.as_bytes())
    }

    /// Seconds.
    pub fn lifetime(self, seconds: u32) -> Self {
        self.attribute(attribute::LIFETIME, &seconds.to_be_bytes())
    }

    pub fn reservation_token(self, token: [u8; 8]) -> Self {
        self.attribute(attribute::RESERVATION_TOKEN, &token)
    }

    pub fn xor_mapped_address(self, address: SocketAddr) -> Self {
        self.xor_address(attribute::XOR_MAPPED_ADDRESS, address)
    }

    pub fn xor_relayed_address(self, address: SocketAddr) -> Self {
        self.xor_address(attribute::XOR_RELAYED_ADDRESS, address)
    }

    pub fn xor_peer_address(self, address: SocketAddr) -> Self {
        self.xor_address(attribute::XOR_PEER_ADDRESS, address)
    }

    pub fn channel_number(self, number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        self.attribute(attribute::CHANNEL_NUMBER, &[high, low, 0, 0])
    }

    /// An IP protocol number.
    pub fn requested_transport(self, protocol: u8) -> Self {
        self.attribute(attribute::REQUESTED_TRANSPORT, &[protocol, 0, 0, 0])
    }

    pub fn requested_family(self, family: Family) -> Self {
        self.attribute(attribute::REQUESTED_ADDRESS_FAMILY, &[family.byte(), 0, 0, 0])
    }

    pub fn additional_family(self, family: Family) -> Self {
        self.attribute(attribute::ADDITIONAL_ADDRESS_FAMILY, &[family.byte(), 0, 0, 0])
    }

    pub fn even_port(self, reserve_next: bool) -> Self {
        self.attribute(attribute::EVEN_PORT, &[if reserve_next { 0x80 } else { 0 }])
    }

    pub fn dont_fragment(self) -> Self {
        self.attribute(attribute::DONT_FRAGMENT, &[])
    }

    pub fn data(self, data: &[u8]) -> Self {
        self.attribute(attribute::DATA, data)
    }

    /// Any attribute, raw. A value that does not fit its 16-bit length is cut: only we choose values.
    pub fn attribute(mut self, attribute_type: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        let value = &value[..usize::from(length)];
        self.bytes.extend_from_slice(&attribute_type.to_be_bytes());
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(padded(self.bytes.len()), 0);
        self
    }

    /// Adds MESSAGE-INTEGRITY over what is there (RFC 8489 §14.5).
    pub fn integrity(mut self, key: &hmac::Key) -> Self {
        self.set_length(ATTRIBUTE_HEADER_LEN + INTEGRITY_LEN);
        let mac = hmac::sign(key, &self.bytes);
        self.attribute(attribute::MESSAGE_INTEGRITY, mac.as_ref())
    }

    /// Adds FINGERPRINT; the last call before [`Encoder::finish`].
    pub fn fingerprint(mut self) -> Self {
        self.set_length(ATTRIBUTE_HEADER_LEN + 4);
        let value = attribute::fingerprint(&self.bytes);
        self.attribute(attribute::FINGERPRINT, &value.to_be_bytes())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.set_length(0);
        self.bytes
    }

    fn xor_address(self, attribute_type: u16, address: SocketAddr) -> Self {
        let mut value = [0; 20];
        let length = write_xor_address(address, self.transaction_id, &mut value);
        self.attribute(attribute_type, &value[..length])
    }

    fn set_length(&mut self, still_to_come: usize) {
        let length = u16::try_from(self.bytes.len() - HEADER_LEN + still_to_come).unwrap_or(u16::MAX);
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
    }
}

/// What precedes a payload on its way to the client: a ChannelData header or the front of a Data indication.
/// On the stack, so that the data path allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct DataHeader {
    bytes: [u8; HEADER_LEN + ATTRIBUTE_HEADER_LEN + 20 + ATTRIBUTE_HEADER_LEN],
    len: u8,
    padding: u8,
}

impl DataHeader {
    /// RFC 8656 §12.4. Padding is required over streams only.
    pub fn channel_data(channel: u16, payload_len: usize, pad: bool) -> Option<Self> {
        let length = u16::try_from(payload_len).ok()?;
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&channel.to_be_bytes());
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let padding = if pad { padded(payload_len) - payload_len } else { 0 };
        Some(Self {
            bytes,
            len: 4,
            padding: padding as u8,
        })
    }

    /// RFC 8656 §11.3.
    pub fn data_indication(transaction_id: TransactionId, peer: SocketAddr, payload_len: usize) -> Option<Self> {
        let mut address = [0; 20];
        let address_len = write_xor_address(peer, transaction_id, &mut address);
        let attributes = ATTRIBUTE_HEADER_LEN + address_len + ATTRIBUTE_HEADER_LEN + padded(payload_len);
        let length = u16::try_from(attributes).ok()?;
        let mut bytes = [0; 48];
        let mut len = 0;
        let mut write = |part: &[u8]| {
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        };
        write(&header(Class::Indication, Method::Data, length, transaction_id));
        write(&attribute::XOR_PEER_ADDRESS.to_be_bytes());
        write(&(address_len as u16).to_be_bytes());
        write(&address[..address_len]);
        write(&attribute::DATA.to_be_bytes());
        write(&u16::try_from(payload_len).ok()?.to_be_bytes());
        Some(Self {
            bytes,
            len: len as u8,
            padding: (padded(payload_len) - payload_len) as u8,
        })
    }

    /// What goes before the payload.
    pub fn front(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// What goes after it: up to three zero bytes.
    pub fn padding(&self) -> &'static [u8] {
        &[0; 3][..usize::from(self.padding)]
    }
}

fn header(class: Class, method: Method, length: u16, transaction_id: TransactionId) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&join_type(class, method).to_be_bytes());
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    header[8..].copy_from_slice(&transaction_id.0);
    header
}

fn error_value(number: u16) -> [u8; 4] {
    [0, 0, (number / 100) as u8, (number % 100) as u8]
}
