//! Nonces that need no memory: a time and a MAC over it and the client's address under a key of this process.
//!
//! A flood of unauthenticated requests therefore leaves nothing behind (RFC 8489 §9.2 leaves the construction to us).

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac;

/// Length in bytes of the nonce on the wire: hexadecimal.
const LEN: usize = 2 * (TIME_LEN + MAC_LEN);
const TIME_LEN: usize = 8;
const MAC_LEN: usize = 16;

/// Makes and checks nonces.
pub(crate) struct Nonces {
    key: hmac::Key,
    /// Seconds for which a nonce is accepted.
    lifetime: u64,
}

impl Nonces {
    pub(crate) fn new(key: &[u8; 32], lifetime: u64) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            lifetime,
        }
    }

    /// A nonce for this client, issued at `now_unix` (seconds).
    pub(crate) fn issue(&self, client: SocketAddr, now_unix: u64) -> [u8; LEN] {
        let time = now_unix.to_be_bytes();
        let mac = self.mac(client, time);
        let mut nonce = [0; LEN];
        for (digits, byte) in nonce.chunks_exact_mut(2).zip(time.iter().chain(&mac)) {
            digits[0] = HEX[usize::from(byte >> 4)];
            digits[1] = HEX[usize::from(byte & 15)];
        }
        nonce
    }

    /// Whether the nonce was issued here, to this client, and not too long ago.
    pub(crate) fn is_valid(&self, nonce: &[u8], client: SocketAddr, now_unix: u64) -> bool {
        let Ok(digits) = <&[u8; LEN]>::try_from(nonce) else {
            return false;
        };
        let mut bytes = [0; TIME_LEN + MAC_LEN];
        for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(high), Some(low)) = (unhex(digits[0]), unhex(digits[1])) else {
                return false;
            };
            *byte = high << 4 | low;
        }
        let (time, mac) = bytes.split_at(TIME_LEN);
        let time = <[u8; TIME_LEN]>::try_from(time).expect("split at its length");
        let authentic: bool = subtle::ConstantTimeEq::ct_eq(&self.mac(client, time)[..], mac).into();
        let issued = u64::from_be_bytes(time);
        authentic && now_unix.saturating_sub(issued) < self.lifetime && issued <= now_unix.saturating_add(self.lifetime)
    }

    fn mac(&self, client: SocketAddr, time: [u8; TIME_LEN]) -> [u8; MAC_LEN] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&time);
        match client.ip() {
            IpAddr::V4(ip) => context.update(&ip.octets()),
            IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        context.update(&client.port().to_be_bytes());
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&context.sign().as_ref()[..MAC_LEN]);
        mac
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn unhex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bound_to_client_time_and_process() {
        let nonces = Nonces::new(&[1; 32], 600);
        let client: SocketAddr = "192.0.2.1:1000".parse().expect("literal");
        let other: SocketAddr = "192.0.2.1:1001".parse().expect("literal");
        let nonce = nonces.issue(client, 10_000);
        assert!(nonces.is_valid(&nonce, client, 10_000));
        assert!(nonces.is_valid(&nonce, client, 10_599));
        assert!(!nonces.is_valid(&nonce, client, 10_600), "stale");
        assert!(
            nonces.is_valid(&nonce, client, 9_999),
            "a clock set back a little does not matter"
        );
        assert!(!nonces.is_valid(&nonce, client, 1), "issued in the future");
        assert!(!nonces.is_valid(&nonce, other, 10_000), "another client's");
        assert!(
            !Nonces::new(&[2; 32], 600).is_valid(&nonce, client, 10_000),
            "another process's"
        );
        for index in 0..nonce.len() {
            let mut forged = nonce;
            forged[index] = if forged[index] == b'0' { b'1' } else { b'0' };
            assert!(!nonces.is_valid(&forged, client, 10_000), "digit {index}");
        }
        assert!(!nonces.is_valid(b"", client, 10_000));
        assert!(!nonces.is_valid(&[0xFF; LEN], client, 10_000));
    }
}
