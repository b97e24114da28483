//! OpenID tokens: a user's proof of identity for a third party (here, most often our own SFU's
//! authorisation service). Spec: client-server API, "OpenID".
//!
//! A token is the user, the device that asked for it and an expiry under a MAC of this server: nothing
//! is stored, and it stays valid over a restart. It ends with its device.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sha2::Sha256;

/// How long a token is valid: what other servers answer too.
pub const VALID: Duration = Duration::from_secs(3600);

/// Makes and checks OpenID tokens.
pub struct OpenIdTokens {
    mac: Hmac<Sha256>,
}

impl OpenIdTokens {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self {
            mac: Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"),
        }
    }

    /// A token that proves to be `user_id` at `device_id` until [`VALID`] after `now_secs`.
    pub fn mint(&self, user_id: &UserId, device_id: &DeviceId, now_secs: u64) -> String {
        let expiry = now_secs + VALID.as_secs();
        let [user, device] = [user_id.as_str(), device_id.as_str()].map(|id| URL_SAFE_NO_PAD.encode(id));
        let claim = format!("{expiry}.{user}.{device}");
        let mac = URL_SAFE_NO_PAD.encode(self.mac_of(&claim).finalize().into_bytes());
        format!("{claim}.{mac}")
    }

    /// Whose token this is, and the device it was given to; `None` when it is not ours or has expired. That the device
    /// is still signed in is the caller's to check.
    pub fn verify(&self, token: &str, now_secs: u64) -> Option<(OwnedUserId, OwnedDeviceId)> {
        let (claim, mac) = token.rsplit_once('.')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        // Constant time.
        self.mac_of(claim).verify_slice(&mac).ok()?;
        let (expiry, ids) = claim.split_once('.')?;
        let (user, device) = ids.split_once('.')?;
        if expiry.parse::<u64>().ok()? <= now_secs {
            return None;
        }
        let text = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some((UserId::parse(text(user)?).ok()?, text(device)?.into()))
    }

    fn mac_of(&self, claim: &str) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(b"longhouse openid 1\0");
        mac.update(claim.as_bytes());
        mac
    }
}

impl std::fmt::Debug for OpenIdTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenIdTokens")
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn a_token_proves_its_user_until_it_expires() {
        let tokens = OpenIdTokens::new(b"secret");
        let token = tokens.mint(user_id!("@alice:example.org"), "DEVICE".into(), 1000);
        let (user, device) = tokens.verify(&token, 1000).unwrap();
        assert_eq!((user.as_str(), device.as_str()), ("@alice:example.org", "DEVICE"));
        assert!(tokens.verify(&token, 1000 + 3599).is_some());
        assert_eq!(tokens.verify(&token, 1000 + 3600), None);
    }

    #[test]
    fn a_changed_or_foreign_token_proves_nothing() {
        let tokens = OpenIdTokens::new(b"secret");
        let token = tokens.mint(user_id!("@alice:example.org"), "DEVICE".into(), 1000);
        assert_eq!(OpenIdTokens::new(b"other").verify(&token, 1000), None);
        for end in 0..token.len() {
            assert_eq!(tokens.verify(&token[..end], 1000), None);
        }
        let later = token.replacen("4600", "9600", 1);
        assert_ne!(later, token);
        assert_eq!(tokens.verify(&later, 1000), None);
        assert_eq!(tokens.verify("..", 0), None);
    }
}
