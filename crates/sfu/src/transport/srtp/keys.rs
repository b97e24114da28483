//! Keys: taking apart what DTLS exports, and deriving session keys from it (RFC 5764 §4.2, RFC 3711 §4.3).

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;

use super::SrtpProfile;

/// Which side of the DTLS handshake we are: it decides which half of the keys is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::transport) enum KeySide {
    Client,
    Server,
}

/// The master keys and salts of both directions.
pub(in crate::transport) struct KeyingMaterial {
    local: (Vec<u8>, Vec<u8>),
    remote: (Vec<u8>, Vec<u8>),
}

impl KeyingMaterial {
    /// Takes the exported bytes apart: client key, server key, client salt, server salt. `None` if the length is not
    /// that of the profile.
    pub(in crate::transport) fn new(profile: SrtpProfile, exported: &[u8], side: KeySide) -> Option<Self> {
        let (key, salt) = (profile.key_len(), profile.salt_len());
        if exported.len() != 2 * (key + salt) {
            return None;
        }
        let (keys, salts) = exported.split_at(2 * key);
        let client = (keys[..key].to_vec(), salts[..salt].to_vec());
        let server = (keys[key..].to_vec(), salts[salt..].to_vec());
        Some(match side {
            KeySide::Client => Self {
                local: client,
                remote: server,
            },
            KeySide::Server => Self {
                local: server,
                remote: client,
            },
        })
    }

    pub(super) fn local_key(&self) -> &[u8] {
        &self.local.0
    }

    pub(super) fn local_salt(&self) -> &[u8] {
        &self.local.1
    }

    pub(super) fn remote_key(&self) -> &[u8] {
        &self.remote.0
    }

    pub(super) fn remote_salt(&self) -> &[u8] {
        &self.remote.1
    }
}

/// The keys of one protocol (RTP or RTCP) in one direction.
pub(super) struct SessionKeys {
    pub(super) cipher: Vec<u8>,
    pub(super) auth: [u8; 20],
    /// GCM uses the first 12 bytes.
    pub(super) salt: [u8; 14],
}

impl SessionKeys {
    /// `first_label` is 0 for RTP and 3 for RTCP (RFC 3711 §4.3.2); the key derivation rate is zero.
    pub(super) fn derive(profile: SrtpProfile, master_key: &[u8], master_salt: &[u8], first_label: u8) -> Self {
        let mut cipher = vec![0; profile.key_len()];
        let mut keys = Self {
            cipher: Vec::new(),
            auth: [0; 20],
            salt: [0; 14],
        };
        prf(master_key, master_salt, first_label, &mut cipher);
        prf(master_key, master_salt, first_label + 1, &mut keys.auth);
        prf(master_key, master_salt, first_label + 2, &mut keys.salt);
        keys.cipher = cipher;
        keys
    }
}

/// AES-CM as pseudo-random function (RFC 3711 §4.3.3, RFC 6188 §3): the key stream under the master key. A 96-bit salt
/// is padded with zeros on the right (RFC 7714 §11).
fn prf(master_key: &[u8], master_salt: &[u8], label: u8, out: &mut [u8]) {
    let mut iv = [0; 16];
    iv[..master_salt.len()].copy_from_slice(master_salt);
    iv[7] ^= label;
    out.fill(0);
    let algorithm = if master_key.len() == 32 { &AES_256 } else { &AES_128 };
    let key = UnboundCipherKey::new(algorithm, master_key).expect("master keys have 16 or 32 bytes");
    EncryptingKey::ctr(key)
        .and_then(|key| key.less_safe_encrypt(out, EncryptionContext::Iv128(FixedLength::from(iv))))
        .expect("AES supports counter mode for any length");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3711 §B.3.
    #[test]
    fn derivation_gives_the_values_of_the_rfc() {
        let key = hex("E1F97A0D3E018BE0D64FA32C06DE4139");
        let salt = hex("0EC675AD498AFEEBB6960B3AABE6");
        let keys = SessionKeys::derive(SrtpProfile::Aes128CmHmacSha1_80, &key, &salt, 0);
        assert_eq!(keys.cipher, hex("C61E7A93744F39EE10734AFE3FF7A087"));
        assert_eq!(keys.salt.to_vec(), hex("30CBBC08863D8C85D49DB34A9AE1"));
        assert_eq!(keys.auth.to_vec(), hex("CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex"))
            .collect()
    }
}
