//! The certificate with which this process proves itself in DTLS, and its fingerprint for SDP. Knows no connection.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

/// The process's DTLS identity: one self-signed ECDSA certificate, shared by all connections.
#[derive(Clone)]
pub struct Certificate {
    pub(super) dtls: dimpl::DtlsCertificate,
    pub(super) config: Arc<dimpl::Config>,
    fingerprint: Fingerprint,
}

impl Certificate {
    /// A fresh key and certificate. One per process start: clients learn the fingerprint over the signalling channel,
    /// so nothing outlives the process.
    ///
    /// # Errors
    /// When the system's source of randomness or the key generation fails.
    pub fn generate() -> Result<Self, CertificateError> {
        let dtls =
            dimpl::certificate::generate_self_signed_certificate().map_err(|e| CertificateError(e.to_string()))?;
        let config = dimpl::Config::builder()
            // The address is proven by ICE before the first DTLS datagram is answered: the cookie would be a round
            // trip for nothing.
            .use_server_cookie(false)
            .build()
            .map_err(|e| CertificateError(e.to_string()))?;
        let fingerprint = Fingerprint::of(&dtls.certificate);
        Ok(Self {
            dtls,
            config: Arc::new(config),
            fingerprint,
        })
    }

    /// The SHA-256 fingerprint for `a=fingerprint:sha-256 …` (RFC 8122 §5).
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// The certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot generate the DTLS certificate: {0}")]
pub struct CertificateError(String);

/// SHA-256 of a certificate in DER. Its text is the form of RFC 8122: upper-case hexadecimal pairs joined by colons.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(certificate_der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate_der).as_ref());
        Self(bytes)
    }

    /// Reads the value of an `a=fingerprint` attribute: `sha-256 AB:CD:…`, hash name and digits in either case.
    /// `None` for another hash function (browsers always send SHA-256) or anything malformed.
    pub fn parse(value: &str) -> Option<Self> {
        let (hash, digits) = value.trim().split_once(' ')?;
        if !hash.eq_ignore_ascii_case("sha-256") {
            return None;
        }
        let mut bytes = [0; 32];
        let mut pairs = digits.trim().split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2)?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        pairs.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha-256 {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_text_round_trips_and_refuses_other_forms() {
        let fingerprint = Fingerprint::of(b"certificate");
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(Fingerprint::parse(&format!("sha-256 {text}")), Some(fingerprint));
        assert_eq!(
            Fingerprint::parse(&format!("SHA-256 {}", text.to_lowercase())),
            Some(fingerprint)
        );
        for bad in [
            "",
            "sha-1 AB",
            "sha-256",
            "sha-256 AB:CD",
            &format!("sha-256 {text}:00"),
            &format!("sha-256 +{text}"),
        ] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }
}
