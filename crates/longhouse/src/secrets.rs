//! Secrets the process makes at first start and keeps in the database, so that nobody has to invent or copy one. Their
//! `Debug` shows nothing.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use storage::Store;

/// 256 bits of chance, as text that fits headers and URLs.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The secret itself: for the component that needs it, never for a log.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What the homeserver and the media plane must both hold.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    /// Key of the TURN REST credentials.
    pub(crate) turn: Secret,
}

impl Secrets {
    /// Reads them, making the missing ones.
    pub(crate) async fn load(store: &Store) -> Result<Self, storage::Error> {
        Ok(Self {
            turn: load(store, "turn_secret").await?,
        })
    }
}

async fn load(store: &Store, name: &'static str) -> Result<Secret, storage::Error> {
    let bytes = store.server_value_or(name, Secret::generate().0.into_bytes()).await?;
    String::from_utf8(bytes)
        .map(Secret)
        .map_err(|_| storage::Error::corrupt("server_values", "a secret is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_made_once_and_never_shown() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&storage::Config::default(), directory.path())
            .await
            .expect("opens");
        let first = Secrets::load(&store).await.expect("made");
        let again = Secrets::load(&store).await.expect("kept");
        assert_eq!(first.turn, again.turn);
        assert!(!format!("{first:?}").contains(first.turn.reveal()));
        store.close().await;
    }
}
