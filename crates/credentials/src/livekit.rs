//! LiveKit access tokens (HS256 JSON Web Tokens) and the names under which Matrix calls meet on an SFU.
//!
//! Owns the claims, their encoding and their verification. Knows no clock: every call is told the time in seconds since
//! the Unix epoch. Knows nothing about who may have a token; that is the authorisation service's decision.

use std::{collections::BTreeMap, fmt};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Clock difference tolerated on `nbf` and `exp`, in seconds, as LiveKit's own verifier does.
pub const LEEWAY_SECONDS: u64 = 60;
/// A token longer than this is refused unread.
const MAX_TOKEN_LENGTH: usize = 16 * 1024;

/// What a token permits: LiveKit's `video` claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoomGrant {
    /// The holder may join `room`.
    #[serde(skip_serializing_if = "is_false")]
    pub room_join: bool,
    /// The one room the grant speaks of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room: String,
    /// May create and delete rooms (server API).
    #[serde(skip_serializing_if = "is_false")]
    pub room_create: bool,
    /// May list rooms (server API).
    #[serde(skip_serializing_if = "is_false")]
    pub room_list: bool,
    /// May administer `room` (server API).
    #[serde(skip_serializing_if = "is_false")]
    pub room_admin: bool,
    /// May publish tracks; absent means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    /// May subscribe; absent means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    /// May send data packets; absent means the same as `can_publish`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish_data: Option<bool>,
    /// Sources the holder may publish (`camera`, `microphone`, …); empty means every source.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub can_publish_sources: Vec<String>,
    /// May change its own name, metadata and attributes; absent means no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    /// Invisible to the other participants.
    #[serde(skip_serializing_if = "is_false")]
    pub hidden: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl RoomGrant {
    /// The grant of a call participant: join `room`, publish, subscribe and update its own metadata.
    pub fn participant(room: impl Into<String>) -> Self {
        Self {
            room_join: true,
            room: room.into(),
            can_publish: Some(true),
            can_subscribe: Some(true),
            can_update_own_metadata: Some(true),
            ..Self::default()
        }
    }

    /// Whether tracks may be published.
    pub fn may_publish(&self) -> bool {
        self.can_publish.unwrap_or(true)
    }

    /// Whether tracks may be received.
    pub fn may_subscribe(&self) -> bool {
        self.can_subscribe.unwrap_or(true)
    }

    /// Whether data packets may be sent.
    pub fn may_publish_data(&self) -> bool {
        self.can_publish_data.unwrap_or_else(|| self.may_publish())
    }

    /// Whether the holder may change its own metadata.
    pub fn may_update_own_metadata(&self) -> bool {
        self.can_update_own_metadata.unwrap_or(false)
    }
}

/// The payload of an access token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The API key that signed.
    #[serde(rename = "iss", default)]
    pub issuer: String,
    /// The participant identity.
    #[serde(rename = "sub", default)]
    pub identity: String,
    /// Not valid before, seconds since the epoch.
    #[serde(rename = "nbf", default)]
    pub not_before: u64,
    /// Not valid at or after, seconds since the epoch.
    #[serde(rename = "exp")]
    pub expires_at: u64,
    /// Display name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Participant metadata, opaque.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// Participant attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What the token permits.
    #[serde(default)]
    pub video: RoomGrant,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three base64url parts with an HS256 header and a JSON payload.
    #[error("token is malformed")]
    Malformed,
    /// Another API key than ours.
    #[error("token was issued by an unknown key")]
    UnknownIssuer,
    /// The signature is not ours.
    #[error("token signature is invalid")]
    BadSignature,
    /// `exp` has passed.
    #[error("token is expired")]
    Expired,
    /// `nbf` is still ahead.
    #[error("token is not valid yet")]
    NotYetValid,
}

/// An API key and its secret: mints and verifies access tokens.
#[derive(Clone)]
pub struct ApiKey {
    key: String,
    secret: Vec<u8>,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("key", &self.key).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    #[serde(default)]
    typ: &'a str,
}

impl ApiKey {
    /// `key` is the public name (`iss`), `secret` signs.
    pub fn new(key: impl Into<String>, secret: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            secret: secret.into(),
        }
    }

    /// The public name of the key.
    pub fn name(&self) -> &str {
        &self.key
    }

    /// A token for `identity` with `grant`, valid from `now` for `lifetime_seconds`.
    pub fn mint(&self, identity: &str, grant: RoomGrant, now: u64, lifetime_seconds: u64) -> String {
        self.mint_claims(&Claims {
            identity: identity.to_owned(),
            not_before: now,
            expires_at: now.saturating_add(lifetime_seconds),
            video: grant,
            ..Claims::default()
        })
    }

    /// A token for `claims`; `iss` is replaced by our key.
    pub fn mint_claims(&self, claims: &Claims) -> String {
        let claims = Claims {
            issuer: self.key.clone(),
            ..claims.clone()
        };
        let payload = serde_json::to_string(&claims).expect("claims have string keys and finite numbers only");
        let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let mut token = format!("{header}.{}", URL_SAFE_NO_PAD.encode(escape_for_atob(&payload)));
        let signature = self.mac(token.as_bytes()).finalize().into_bytes();
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }

    /// Checks signature, issuer and validity at `now` (seconds since the epoch) and returns the claims.
    pub fn verify(&self, token: &str, now: u64) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN_LENGTH {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let header = decode(header)?;
        // RFC 8725 §3.1: the algorithm is ours to choose; `none` and everything else is refused.
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
        if header.alg != "HS256" {
            return Err(TokenError::Malformed);
        }
        // `verify_slice` compares in constant time.
        self.mac(signed.as_bytes())
            .verify_slice(&decode(signature)?)
            .map_err(|_| TokenError::BadSignature)?;
        let claims: Claims = serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)?;
        if claims.issuer != self.key {
            return Err(TokenError::UnknownIssuer);
        }
        if claims.expires_at.saturating_add(LEEWAY_SECONDS) <= now {
            return Err(TokenError::Expired);
        }
        if claims.not_before > now.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::NotYetValid);
        }
        Ok(claims)
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes a key of any length");
        mac.update(message);
        mac
    }
}

/// Element Call decodes the payload with the browser's `atob`, which refuses base64url's `-` and `_`. Those two arise only
/// from `>`, `?`, `~`, DEL and bytes above ASCII, so such characters are written as JSON escapes. They cannot occur outside
/// of JSON strings.
fn escape_for_atob(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    let mut units = [0u16; 2];
    for character in json.chars() {
        match character {
            '>' | '?' | '~' | '\u{7f}'.. => {
                for unit in character.encode_utf16(&mut units) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// The SFU room in which a Matrix room's `slot_id` meets: unpadded base64 of the SHA-256 of the compact JSON array
/// `["<room_id>","<slot_id>"]` (MSC4195).
pub fn room_alias(room_id: &str, slot_id: &str) -> String {
    hashed_name(&[room_id, slot_id])
}

/// The participant identity of the three-element form, `["<user_id>","<device_id>","<member_id>"]` hashed as in
/// [`room_alias`]; clients compute the same and match by equality.
pub fn hashed_identity(user_id: &str, device_id: &str, member_id: &str) -> String {
    hashed_name(&[user_id, device_id, member_id])
}

/// The participant identity of the legacy `/sfu/get` endpoint: `@user:server:DEVICE`.
pub fn legacy_identity(user_id: &str, device_id: &str) -> String {
    format!("{user_id}:{device_id}")
}

fn hashed_name(parts: &[&str]) -> String {
    let json = serde_json::to_vec(parts).expect("an array of strings serialises");
    STANDARD_NO_PAD.encode(Sha256::digest(json))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn key() -> ApiKey {
        ApiKey::new("longhouse", "a secret of sufficient length")
    }

    /// HS256 example with a published result (RFC 7515 appendix A.1): proves the signature input and the MAC.
    #[test]
    fn signature_matches_rfc_7515_appendix_a1() {
        let secret = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let key = ApiKey::new("joe", secret);
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
            .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
            .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(key.verify(token, 1_300_819_379).unwrap().expires_at, 1_300_819_380);
        assert_eq!(
            key.verify(token, 1_300_819_380 + LEEWAY_SECONDS),
            Err(TokenError::Expired)
        );
    }

    #[test]
    fn room_alias_matches_the_vector_of_msc4195() {
        assert_eq!(
            room_alias("!roomid:example.com", "slot1234"),
            "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc"
        );
    }

    #[test]
    fn legacy_identity_is_literal() {
        assert_eq!(legacy_identity("@alice:example.org", "DEV"), "@alice:example.org:DEV");
    }

    #[test]
    fn claims_survive_a_round_trip() {
        let token = key().mint("@a:b:C", RoomGrant::participant("room"), NOW, 3600);
        let claims = key().verify(&token, NOW + 10).unwrap();
        assert_eq!(claims.identity, "@a:b:C");
        assert_eq!(claims.issuer, "longhouse");
        assert_eq!(claims.expires_at, NOW + 3600);
        assert_eq!(claims.video, RoomGrant::participant("room"));
        assert!(claims.video.may_publish_data() && !claims.video.room_create);
    }

    #[test]
    fn refusals_name_their_cause() {
        let good = key().mint("i", RoomGrant::participant("r"), NOW, 60);
        let (head, signature) = good.rsplit_once('.').unwrap();
        let none = format!(
            "{}.{}.",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#),
            head.split_once('.').unwrap().1
        );
        let mut bent = signature.as_bytes().to_vec();
        bent[3] = if bent[3] == b'A' { b'B' } else { b'A' };
        let bent = format!("{head}.{}", String::from_utf8(bent).unwrap());
        let other_secret = ApiKey::new("longhouse", "another secret").mint("i", RoomGrant::default(), NOW, 60);
        let other_key = ApiKey::new("x", "a secret of sufficient length").mint("i", RoomGrant::default(), NOW, 60);
        for (token, now, expected) in [
            (good.as_str(), NOW + 60 + LEEWAY_SECONDS, TokenError::Expired),
            (&good, NOW - LEEWAY_SECONDS - 1, TokenError::NotYetValid),
            (&none, NOW, TokenError::Malformed),
            (&bent, NOW, TokenError::BadSignature),
            (&other_secret, NOW, TokenError::BadSignature),
            (&other_key, NOW, TokenError::UnknownIssuer),
            ("", NOW, TokenError::Malformed),
            ("a.b", NOW, TokenError::Malformed),
            ("..", NOW, TokenError::Malformed),
        ] {
            assert_eq!(key().verify(token, now), Err(expected), "{token}");
        }
    }

    proptest! {
        #[test]
        fn the_payload_is_readable_by_atob(identity in "\\PC{0,40}", room in "[ -\\x7f]{0,40}") {
            let token = key().mint(&identity, RoomGrant::participant(room.clone()), NOW, 3600);
            let payload = token.split('.').nth(1).unwrap();
            prop_assert!(!payload.contains(['-', '_']));
            let claims = key().verify(&token, NOW).unwrap();
            prop_assert_eq!(claims.identity, identity);
            prop_assert_eq!(claims.video.room, room);
        }

        #[test]
        fn hostile_tokens_never_panic(token in "[ -~]{0,200}") {
            prop_assert!(key().verify(&token, NOW).is_err());
        }
    }
}
