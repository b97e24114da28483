//! SRTP and SRTCP (RFC 3711, RFC 7714): sealing in place into the buffer that goes to the socket, opening in place in
//! the buffer that came from it. Told the keys; knows neither DTLS nor paths. Nothing here allocates per packet, and no
//! state is made for an SSRC before a packet of it was authenticated.

mod keys;
mod replay;

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use keys::SessionKeys;
pub(super) use keys::{KeySide, KeyingMaterial};
use replay::ReplayWindow;

use crate::media::rtp::{OutgoingRtp, RtpHeader};

/// SSRCs one client may send from at once, RTP and RTCP counted apart: simulcast, retransmissions and screen shares
/// need a few dozen.
const MAX_SSRCS: usize = 256;
const GCM_TAG_LEN: usize = 16;
/// HMAC-SHA1 cut to 80 bits.
const HMAC_TAG_LEN: usize = 10;
/// The SRTCP index word: E flag and 31 bits.
const INDEX_LEN: usize = 4;
const RTCP_HEADER_LEN: usize = 8;
/// SRTCP indices have 31 bits; the session must end before they repeat.
const MAX_RTCP_INDEX: u32 = 0x7FFF_FFFF;
/// SRTP indices have 48 bits.
const MAX_RTP_INDEX: u64 = (1 << 48) - 1;

/// The protection profile negotiated by DTLS (RFC 5764 §4.1.2, RFC 7714 §14.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SrtpProfile {
    AeadAes256Gcm,
    AeadAes128Gcm,
    /// For clients that have nothing better; costs about three times as much.
    Aes128CmHmacSha1_80,
}

impl SrtpProfile {
    pub(super) fn key_len(self) -> usize {
        match self {
            Self::AeadAes256Gcm => 32,
            Self::AeadAes128Gcm | Self::Aes128CmHmacSha1_80 => 16,
        }
    }

    pub(super) fn salt_len(self) -> usize {
        match self {
            Self::AeadAes256Gcm | Self::AeadAes128Gcm => 12,
            Self::Aes128CmHmacSha1_80 => 14,
        }
    }
}

/// Why an incoming packet was not opened. The packet is dropped and counted; nothing else follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    #[error("not a well-formed packet")]
    Malformed,
    #[error("authentication failed")]
    NotAuthentic,
    #[error("received before, or too old to tell")]
    Replayed,
    #[error("too many SSRCs")]
    TooManySsrcs,
}

/// The ciphers of one direction.
enum Cipher {
    Gcm {
        rtp: LessSafeKey,
        rtp_salt: [u8; 12],
        rtcp: LessSafeKey,
        rtcp_salt: [u8; 12],
    },
    Cm {
        rtp: Box<CmKeys>,
        rtcp: Box<CmKeys>,
    },
}

struct CmKeys {
    cipher: EncryptingKey,
    auth: hmac::Key,
    salt: [u8; 14],
}

impl Cipher {
    fn new(profile: SrtpProfile, master_key: &[u8], master_salt: &[u8]) -> Self {
        let rtp = SessionKeys::derive(profile, master_key, master_salt, 0);
        let rtcp = SessionKeys::derive(profile, master_key, master_salt, 3);
        match profile {
            SrtpProfile::AeadAes256Gcm | SrtpProfile::AeadAes128Gcm => Self::Gcm {
                rtp: gcm_key(&rtp.cipher),
                rtp_salt: gcm_salt(&rtp.salt),
                rtcp: gcm_key(&rtcp.cipher),
                rtcp_salt: gcm_salt(&rtcp.salt),
            },
            SrtpProfile::Aes128CmHmacSha1_80 => Self::Cm {
                rtp: Box::new(CmKeys::new(rtp)),
                rtcp: Box::new(CmKeys::new(rtcp)),
            },
        }
    }
}

fn gcm_key(key: &[u8]) -> LessSafeKey {
    let algorithm = if key.len() == 32 { &AES_256_GCM } else { &AES_128_GCM };
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("the key has the length of its algorithm"))
}

fn gcm_salt(salt: &[u8; 14]) -> [u8; 12] {
    *salt.first_chunk().expect("12 of 14 bytes")
}

impl CmKeys {
    fn new(keys: SessionKeys) -> Self {
        let key = UnboundCipherKey::new(&AES_128, &keys.cipher).expect("AES-CM keys have 16 bytes");
        Self {
            cipher: EncryptingKey::ctr(key).expect("AES supports counter mode"),
            auth: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &keys.auth),
            salt: keys.salt,
        }
    }

    /// RFC 3711 §4.1.1: the counter block, and XOR with its key stream; the same for both directions.
    fn apply(&self, ssrc: u32, index: u64, in_out: &mut [u8]) -> bool {
        let mut iv = [0; 16];
        iv[..14].copy_from_slice(&self.salt);
        xor(&mut iv[4..8], &ssrc.to_be_bytes());
        xor(&mut iv[8..14], &index.to_be_bytes()[2..]);
        let context = EncryptionContext::Iv128(FixedLength::from(iv));
        self.cipher.less_safe_encrypt(in_out, context).is_ok()
    }

    fn tag(&self, covered: &[u8], trailer: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.auth);
        context.update(covered);
        context.update(trailer);
        context.sign()
    }

    fn verify(&self, covered: &[u8], trailer: &[u8], tag: &[u8]) -> bool {
        let expected = self.tag(covered, trailer);
        aws_lc_rs::constant_time::verify_slices_are_equal(&expected.as_ref()[..HMAC_TAG_LEN], tag).is_ok()
    }
}

/// RFC 7714 §8.1: SSRC, rollover counter and sequence number under the salt.
fn gcm_rtp_nonce(salt: &[u8; 12], ssrc: u32, index: u64) -> Nonce {
    let mut nonce = *salt;
    xor(&mut nonce[2..6], &ssrc.to_be_bytes());
    xor(&mut nonce[6..12], &index.to_be_bytes()[2..]);
    Nonce::assume_unique_for_key(nonce)
}

/// RFC 7714 §9.1: SSRC and SRTCP index under the salt.
fn gcm_rtcp_nonce(salt: &[u8; 12], ssrc: u32, index: u32) -> Nonce {
    let mut nonce = *salt;
    xor(&mut nonce[2..6], &ssrc.to_be_bytes());
    xor(&mut nonce[8..12], &index.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn xor(target: &mut [u8], with: &[u8]) {
    for (t, w) in target.iter_mut().zip(with) {
        *t ^= w;
    }
}

fn rtcp_ssrc(packet: &[u8]) -> u32 {
    u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]])
}

/// Protects what we send on one connection.
pub(super) struct SrtpSender {
    cipher: Cipher,
    /// Which packets were sealed: two different packets under one index would give the keys away (RFC 7714 §8.4).
    sealed: HashMap<u32, ReplayWindow>,
    /// One counter for all SSRCs: each sees an increasing one, and no pair of SSRC and index repeats.
    rtcp_index: u32,
}

impl SrtpSender {
    pub(super) fn new(profile: SrtpProfile, keys: &KeyingMaterial) -> Self {
        Self {
            cipher: Cipher::new(profile, keys.local_key(), keys.local_salt()),
            sealed: HashMap::new(),
            rtcp_index: 0,
        }
    }

    /// Appends the packet, sealed, to `out`; whether it could be. A number that this SSRC had before is refused.
    pub(super) fn seal_rtp(&mut self, packet: &OutgoingRtp<'_>, out: &mut Vec<u8>) -> bool {
        let sealed = self.sealed.entry(packet.ssrc).or_default();
        if packet.sequence > MAX_RTP_INDEX || !sealed.is_fresh(packet.sequence) {
            return false;
        }
        sealed.mark(packet.sequence);
        let start = out.len();
        let header_len = packet.write(out);
        let (header, body) = out[start..].split_at_mut(header_len);
        match &self.cipher {
            Cipher::Gcm { rtp, rtp_salt, .. } => {
                let nonce = gcm_rtp_nonce(rtp_salt, packet.ssrc, packet.sequence);
                let Ok(tag) = rtp.seal_in_place_separate_tag(nonce, Aad::from(&*header), body) else {
                    return false;
                };
                out.extend_from_slice(tag.as_ref());
            }
            Cipher::Cm { rtp, .. } => {
                if !rtp.apply(packet.ssrc, packet.sequence, body) {
                    return false;
                }
                let tag = rtp.tag(&out[start..], &rollover(packet.sequence));
                out.extend_from_slice(&tag.as_ref()[..HMAC_TAG_LEN]);
            }
        }
        true
    }

    /// Appends a compound RTCP packet, sealed, to `out`; whether it could be.
    pub(super) fn seal_rtcp(&mut self, compound: &[u8], out: &mut Vec<u8>) -> bool {
        if compound.len() < RTCP_HEADER_LEN || self.rtcp_index >= MAX_RTCP_INDEX {
            return false;
        }
        self.rtcp_index += 1;
        let (index, ssrc) = (self.rtcp_index, rtcp_ssrc(compound));
        let word = (index | 0x8000_0000).to_be_bytes();
        let start = out.len();
        out.extend_from_slice(compound);
        match &self.cipher {
            Cipher::Gcm { rtcp, rtcp_salt, .. } => {
                let mut aad = [0; RTCP_HEADER_LEN + INDEX_LEN];
                aad[..RTCP_HEADER_LEN].copy_from_slice(&compound[..RTCP_HEADER_LEN]);
                aad[RTCP_HEADER_LEN..].copy_from_slice(&word);
                let nonce = gcm_rtcp_nonce(rtcp_salt, ssrc, index);
                let body = &mut out[start + RTCP_HEADER_LEN..];
                let Ok(tag) = rtcp.seal_in_place_separate_tag(nonce, Aad::from(aad), body) else {
                    return false;
                };
                out.extend_from_slice(tag.as_ref());
                out.extend_from_slice(&word);
            }
            Cipher::Cm { rtcp, .. } => {
                if !rtcp.apply(ssrc, u64::from(index), &mut out[start + RTCP_HEADER_LEN..]) {
                    return false;
                }
                let tag = rtcp.tag(&out[start..], &word);
                out.extend_from_slice(&word);
                out.extend_from_slice(&tag.as_ref()[..HMAC_TAG_LEN]);
            }
        }
        true
    }
}

/// Opens what the client sends on one connection.
pub(super) struct SrtpReceiver {
    cipher: Cipher,
    rtp: HashMap<u32, ReplayWindow>,
    rtcp: HashMap<u32, ReplayWindow>,
}

impl SrtpReceiver {
    pub(super) fn new(profile: SrtpProfile, keys: &KeyingMaterial) -> Self {
        Self {
            cipher: Cipher::new(profile, keys.remote_key(), keys.remote_salt()),
            rtp: HashMap::new(),
            rtcp: HashMap::new(),
        }
    }

    /// Decrypts in place; the length of the packet without its tag.
    pub(super) fn open_rtp(&mut self, packet: &mut [u8]) -> Result<usize, OpenError> {
        let header = RtpHeader::parse(packet).ok_or(OpenError::Malformed)?;
        let known = self.rtp.get(&header.ssrc);
        if known.is_none() && self.rtp.len() >= MAX_SSRCS {
            return Err(OpenError::TooManySsrcs);
        }
        let index = known.map_or(Some(u64::from(header.sequence_number)), |w| {
            w.estimate(header.sequence_number)
        });
        let index = index.ok_or(OpenError::Replayed)?;
        if known.is_some_and(|w| !w.is_fresh(index)) {
            return Err(OpenError::Replayed);
        }
        let length = match &self.cipher {
            Cipher::Gcm { rtp, rtp_salt, .. } => {
                let (clear, sealed) = packet.split_at_mut(header.payload_start);
                let nonce = gcm_rtp_nonce(rtp_salt, header.ssrc, index);
                let plain = rtp
                    .open_in_place(nonce, Aad::from(&*clear), sealed)
                    .map_err(|_| OpenError::NotAuthentic)?;
                header.payload_start + plain.len()
            }
            Cipher::Cm { rtp, .. } => {
                let end = packet
                    .len()
                    .checked_sub(HMAC_TAG_LEN)
                    .filter(|end| *end >= header.payload_start);
                let end = end.ok_or(OpenError::Malformed)?;
                let (covered, tag) = packet.split_at_mut(end);
                if !rtp.verify(covered, &rollover(index), tag) {
                    return Err(OpenError::NotAuthentic);
                }
                if !rtp.apply(header.ssrc, index, &mut covered[header.payload_start..]) {
                    return Err(OpenError::Malformed);
                }
                end
            }
        };
        self.rtp.entry(header.ssrc).or_default().mark(index);
        Ok(length)
    }

    /// Decrypts a compound RTCP packet in place; its length without index and tag.
    pub(super) fn open_rtcp(&mut self, packet: &mut [u8]) -> Result<usize, OpenError> {
        let overhead = INDEX_LEN
            + if matches!(self.cipher, Cipher::Gcm { .. }) {
                GCM_TAG_LEN
            } else {
                HMAC_TAG_LEN
            };
        if packet.len() < RTCP_HEADER_LEN + overhead {
            return Err(OpenError::Malformed);
        }
        let ssrc = rtcp_ssrc(packet);
        let word_at = match self.cipher {
            Cipher::Gcm { .. } => packet.len() - INDEX_LEN,
            Cipher::Cm { .. } => packet.len() - INDEX_LEN - HMAC_TAG_LEN,
        };
        let word: [u8; 4] = *packet[word_at..].first_chunk().expect("the length was checked above");
        let index = u32::from_be_bytes(word) & MAX_RTCP_INDEX;
        // WebRTC encrypts all RTCP; a clear packet would carry no confidentiality and some stacks forbid it.
        if word[0] & 0x80 == 0 {
            return Err(OpenError::Malformed);
        }
        let known = self.rtcp.get(&ssrc);
        if known.is_none() && self.rtcp.len() >= MAX_SSRCS {
            return Err(OpenError::TooManySsrcs);
        }
        if known.is_some_and(|w| !w.is_fresh(u64::from(index))) {
            return Err(OpenError::Replayed);
        }
        let length = match &self.cipher {
            Cipher::Gcm { rtcp, rtcp_salt, .. } => {
                let mut aad = [0; RTCP_HEADER_LEN + INDEX_LEN];
                aad[..RTCP_HEADER_LEN].copy_from_slice(&packet[..RTCP_HEADER_LEN]);
                aad[RTCP_HEADER_LEN..].copy_from_slice(&word);
                let nonce = gcm_rtcp_nonce(rtcp_salt, ssrc, index);
                let sealed = &mut packet[RTCP_HEADER_LEN..word_at];
                let plain = rtcp
                    .open_in_place(nonce, Aad::from(aad), sealed)
                    .map_err(|_| OpenError::NotAuthentic)?;
                RTCP_HEADER_LEN + plain.len()
            }
            Cipher::Cm { rtcp, .. } => {
                let (covered, trailer) = packet.split_at_mut(word_at);
                if !rtcp.verify(covered, &word, &trailer[INDEX_LEN..]) {
                    return Err(OpenError::NotAuthentic);
                }
                if !rtcp.apply(ssrc, u64::from(index), &mut covered[RTCP_HEADER_LEN..]) {
                    return Err(OpenError::Malformed);
                }
                word_at
            }
        };
        self.rtcp.entry(ssrc).or_default().mark(u64::from(index));
        Ok(length)
    }
}

fn rollover(index: u64) -> [u8; 4] {
    ((index >> 16) as u32).to_be_bytes()
}

#[cfg(test)]
mod tests;
