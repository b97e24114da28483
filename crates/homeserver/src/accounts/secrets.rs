//! Random texts and the digests they are stored as.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// SHA-256: all that is kept of a token. A token is random enough that its digest needs no salt.
pub(crate) fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// 256 random bits in 43 characters that need no escaping anywhere.
pub(crate) fn random_text() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// An access token: the prefix tells what it is to whoever finds one in a file.
pub(super) fn access_token() -> String {
    format!("lha_{}", random_text())
}

/// `count` random characters of `alphabet`, each equally likely.
pub(super) fn random_of(alphabet: &[u8], count: usize) -> String {
    use rand::RngExt as _;
    let mut rng = rand::rng();
    (0..count)
        .map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_are_long() {
        let (one, two) = (access_token(), access_token());
        assert_ne!(one, two);
        assert_eq!(one.len(), 4 + 43);
        assert_ne!(digest(&one), digest(&two));
        assert_eq!(random_of(b"AB", 30).trim_matches(['A', 'B']), "");
    }
}
