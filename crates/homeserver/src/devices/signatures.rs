//! Signed keys: reading them, checking signatures, adding signatures others made. Pure.
//! Spec: client-server API, "Cross-signing"; appendices, "Signing JSON".

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, SigningKeyAlgorithm, UserId,
    serde::base64::{Base64, Standard},
    signatures::{to_canonical_json_string_for_signing, verify_canonical_json_bytes},
};
use serde_json::{Map, Value};

/// An ed25519 key: its name in signatures and its public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// `ed25519:NAME`.
    pub(crate) id: String,
    /// Unpadded base64.
    pub(crate) key: String,
}

/// A key object with signatures under it.
#[derive(Debug, Clone)]
pub(crate) struct Signed(CanonicalJsonObject);

impl Signed {
    /// `None` when it is not an object of canonical JSON.
    pub(crate) fn read(value: Value) -> Option<Self> {
        match CanonicalJsonValue::try_from(value) {
            Ok(CanonicalJsonValue::Object(object)) => Some(Self(object)),
            _ => None,
        }
    }

    /// What was signed: everything but `signatures` and `unsigned`.
    pub(crate) fn content(&self) -> Option<String> {
        to_canonical_json_string_for_signing(&self.0).ok()
    }

    /// Signatures of `user`: key id and signature.
    pub(crate) fn signatures_of(&self, user: &UserId) -> BTreeMap<String, String> {
        let of_user = self
            .0
            .get("signatures")
            .and_then(|s| s.as_object())
            .and_then(|s| s.get(user.as_str()));
        let Some(of_user) = of_user.and_then(|s| s.as_object()) else {
            return BTreeMap::new();
        };
        of_user
            .iter()
            .filter_map(|(id, s)| Some((id.clone(), s.as_str()?.to_owned())))
            .collect()
    }

    /// Does `user`'s signature under this object, made with `key`, hold?
    pub(crate) fn is_signed_by(&self, user: &UserId, key: &PublicKey) -> bool {
        let signature = self.signatures_of(user).remove(&key.id);
        let parse = |text: &str| Base64::<Standard>::parse(text).ok();
        let (Some(content), Some(signature), Some(public)) =
            (self.content(), signature.as_deref().and_then(parse), parse(&key.key))
        else {
            return false;
        };
        verify_canonical_json_bytes(
            &SigningKeyAlgorithm::Ed25519,
            public.as_bytes(),
            signature.as_bytes(),
            content.as_bytes(),
        )
        .is_ok()
    }

    /// The one key of a cross-signing key object. Spec: `keys` has exactly one entry, named by itself.
    pub(crate) fn cross_signing_key(&self) -> Option<PublicKey> {
        let keys = self.0.get("keys")?.as_object()?;
        let (id, key) = keys.first_key_value().filter(|_| keys.len() == 1)?;
        let key = key.as_str()?;
        (id.strip_prefix("ed25519:")? == key).then(|| PublicKey {
            id: id.clone(),
            key: key.to_owned(),
        })
    }

    /// The ed25519 key of a device key object.
    pub(crate) fn device_key(&self, device_id: &str) -> Option<PublicKey> {
        let id = format!("ed25519:{device_id}");
        let key = self.0.get("keys")?.as_object()?.get(&id)?.as_str()?.to_owned();
        Some(PublicKey { id, key })
    }

    pub(crate) fn text_field(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// Does `usage` name this one?
    pub(crate) fn has_usage(&self, usage: &str) -> bool {
        let listed = self.0.get("usage").and_then(|u| u.as_array());
        listed.is_some_and(|listed| listed.iter().any(|u| u.as_str() == Some(usage)))
    }
}

/// Puts a signature into a key object.
pub(crate) fn add_signature(object: &mut Map<String, Value>, user: &str, key_id: &str, signature: &str) {
    let signatures = object.entry("signatures").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(signatures) = signatures else { return };
    let of_user = signatures.entry(user).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(of_user) = of_user {
        of_user.insert(key_id.to_owned(), signature.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruma::signatures::{Ed25519KeyPair, sign_json};
    use serde_json::json;

    #[test]
    fn a_signature_holds_for_its_content_and_key_alone() {
        let pair = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "DEV".to_owned()).unwrap();
        let user = <&UserId>::try_from("@a:test").unwrap();
        let key = PublicKey {
            id: "ed25519:DEV".to_owned(),
            key: Base64::<Standard, _>::new(pair.public_key()).encode(),
        };
        let CanonicalJsonValue::Object(mut object) =
            json!({ "user_id": "@a:test", "usage": ["master"] }).try_into().unwrap()
        else {
            panic!("an object");
        };
        sign_json(user.as_str(), &pair, &mut object).unwrap();
        let signed = Signed(object.clone());
        assert!(signed.is_signed_by(user, &key));
        let other = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "DEV".to_owned()).unwrap();
        let other = PublicKey {
            key: Base64::<Standard, _>::new(other.public_key()).encode(),
            ..key.clone()
        };
        assert!(!signed.is_signed_by(user, &other));
        // What is unsigned may change, the content may not.
        object.insert("unsigned".to_owned(), true.into());
        assert!(Signed(object.clone()).is_signed_by(user, &key));
        object.insert("usage".to_owned(), "other".to_owned().into());
        assert!(!Signed(object).is_signed_by(user, &key));
    }

    #[test]
    fn a_cross_signing_key_names_itself() {
        let read = |value: Value| Signed::read(value).unwrap().cross_signing_key().map(|key| key.key);
        assert_eq!(
            read(json!({ "keys": { "ed25519:abc": "abc" } })).as_deref(),
            Some("abc")
        );
        for bad in [
            json!({}),
            json!({ "keys": {} }),
            json!({ "keys": { "ed25519:abc": "abd" } }),
            json!({ "keys": { "ed25519:a": "a", "ed25519:b": "b" } }),
            json!({ "keys": { "curve:a": "a" } }),
            json!({ "keys": { "ed25519:a": 1 } }),
        ] {
            assert_eq!(read(bad.clone()), None, "{bad}");
        }
    }
}
