//! TURN credentials in the REST form (draft-uberti-behave-turn-rest-00): what the homeserver mints and the relay verifies.
//!
//! Owns the derivation from the shared secret: username `expiry:user_id`, password `base64(HMAC-SHA1(secret, username))`,
//! and the long-term key of RFC 8489 §9.2.2. Pure: is told the time, knows no socket and no STUN message.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// RFC 8489 §14.3: a username is shorter than 509 bytes.
const MAX_USERNAME_LEN: usize = 508;

/// The secret that mints and verifies. Wiped on drop, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TurnSecret(Vec<u8>);

/// What a client presents to the relay.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnCredentials {
    /// `expiry:user_id`, expiry in seconds since the Unix epoch.
    pub username: String,
    /// Reveals nothing about the secret, but is a bearer secret itself until the expiry.
    pub password: String,
}

/// A username taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Whom the credentials were minted for.
    pub user_id: &'a str,
    /// Seconds since the Unix epoch.
    pub expires_at_unix: u64,
}

impl Presented<'_> {
    /// Whether the credentials no longer open anything new at `now_unix` (seconds since the Unix epoch).
    pub fn is_expired(&self, now_unix: u64) -> bool {
        self.expires_at_unix <= now_unix
    }
}

/// Key of MESSAGE-INTEGRITY under the long-term credential mechanism (RFC 8489 §9.2.2): `MD5(username:realm:password)`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct LongTermKey([u8; 16]);

impl LongTermKey {
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for LongTermKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongTermKey(..)")
    }
}

/// The username is not of the form `expiry:user_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the username is not of the form expiry:user_id")]
pub struct UnreadableUsername;

impl TurnSecret {
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        Self(secret.into())
    }

    /// Credentials for `user_id`, good until `expires_at_unix` (seconds since the Unix epoch).
    pub fn mint(&self, user_id: &str, expires_at_unix: u64) -> TurnCredentials {
        let username = format!("{expires_at_unix}:{user_id}");
        let password = self.password(&username).to_string();
        TurnCredentials { username, password }
    }

    /// The key with which a holder of credentials for `username` authenticates its messages in `realm`.
    ///
    /// Any username has one: that a message carries a MAC under this key is the proof that the credentials were minted
    /// here. Compare that MAC in constant time.
    pub fn long_term_key(&self, username: &str, realm: &str) -> LongTermKey {
        let password = self.password(username);
        let mut digest = Md5::new();
        for part in [username, ":", realm, ":", &password] {
            digest.update(part);
        }
        LongTermKey(digest.finalize().into())
    }

    fn password(&self, username: &str) -> Zeroizing<String> {
        let mut mac = Hmac::<Sha1>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(username.as_bytes());
        Zeroizing::new(BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for TurnSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TurnSecret(..)")
    }
}

impl fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Takes a username apart. The user id may itself contain colons, as Matrix user ids do.
///
/// # Errors
/// When it was not minted by any [`TurnSecret`].
pub fn parse_username(username: &str) -> Result<Presented<'_>, UnreadableUsername> {
    let (expiry, user_id) = username.split_once(':').ok_or(UnreadableUsername)?;
    let digits = !expiry.is_empty() && expiry.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || user_id.is_empty() || username.len() > MAX_USERNAME_LEN {
        return Err(UnreadableUsername);
    }
    let expires_at_unix = expiry.parse().map_err(|_| UnreadableUsername)?;
    Ok(Presented {
        user_id,
        expires_at_unix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values computed with `openssl dgst -sha1 -hmac` and `md5sum`.
    #[test]
    fn agrees_with_other_implementations() {
        let secret = TurnSecret::new("north");
        let credentials = secret.mint("@alice:example.org", 1_700_000_000);
        assert_eq!(credentials.username, "1700000000:@alice:example.org");
        assert_eq!(credentials.password, "b7c/MWmorxmLryRFjaJYkUW5nOo=");
        let key = secret.long_term_key(&credentials.username, "example.org");
        let hex: String = key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "522ccc327c40cefd31bd88342b8a56c6");
    }

    #[test]
    fn takes_usernames_apart() {
        let table = [
            (
                "1700000000:@alice:example.org:8448",
                Ok(("@alice:example.org:8448", 1_700_000_000)),
            ),
            ("0:bob", Ok(("bob", 0))),
            ("bob", Err(UnreadableUsername)),
            ("1700000000", Err(UnreadableUsername)),
            ("1700000000:", Err(UnreadableUsername)),
            (":bob", Err(UnreadableUsername)),
            ("+17:bob", Err(UnreadableUsername)),
            ("-1:bob", Err(UnreadableUsername)),
            ("99999999999999999999:bob", Err(UnreadableUsername)),
        ];
        for (username, expected) in table {
            let parsed = parse_username(username).map(|presented| (presented.user_id, presented.expires_at_unix));
            assert_eq!(parsed, expected, "{username}");
        }
        assert!(parse_username(&format!("1:{}", "x".repeat(600))).is_err());
    }

    #[test]
    fn expires_at_its_second() {
        let presented = parse_username("100:bob").expect("well formed");
        assert!(!presented.is_expired(99));
        assert!(presented.is_expired(100));
    }

    #[test]
    fn shows_no_secret() {
        let secret = TurnSecret::new("hunter2");
        let credentials = secret.mint("bob", 1);
        let shown = format!(
            "{secret:?} {credentials:?} {:?}",
            secret.long_term_key("1:bob", "realm")
        );
        assert!(
            !shown.contains("hunter2") && !shown.contains(&credentials.password),
            "{shown}"
        );
    }
}
