//! The server's signing key: made at the first start, kept in the database.

use ruma::signatures::Ed25519KeyPair;
use storage::Store;

use crate::StartError;

/// The name the key is kept under.
const VALUE: &str = "signing_key";

/// The ed25519 key that signs events and requests of this server.
pub struct Keys {
    pair: Ed25519KeyPair,
}

impl Keys {
    /// The kept key, or a fresh one that is kept from then on.
    pub(crate) async fn open(store: &Store) -> Result<Self, StartError> {
        let der = match store.server_value(VALUE).await? {
            Some(der) => der,
            None => {
                store
                    .server_value_or(VALUE, Ed25519KeyPair::generate().to_vec())
                    .await?
            }
        };
        // The version names the key in signatures; a replaced key will get another.
        let pair = Ed25519KeyPair::from_der(&der, "1".to_owned()).map_err(|e| StartError::SigningKey(e.to_string()))?;
        Ok(Self { pair })
    }

    /// The pair, for `ruma::signatures`.
    pub fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.pair.public_key()
    }

    /// `ed25519:VERSION`.
    pub fn id(&self) -> String {
        format!("ed25519:{}", self.pair.version())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.id())
    }
}
