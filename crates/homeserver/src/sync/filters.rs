//! Filters by id and by text: uploaded once, kept under a digest, parsed once and shared by every sync that names them.

use std::{num::NonZeroUsize, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use sha2::{Digest as _, Sha256};

use super::{
    Streams,
    filter::{FilterError, SyncFilter},
};

/// Parsed filters held at once.
const MAX_PARSED: usize = 1000;
/// Inline filters longer than this are parsed each time instead of being held.
const MAX_HELD_TEXT: usize = 4096;

#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Kept(OwnedUserId, String),
    Inline(String),
}

/// The parsed filters in use.
#[derive(Debug)]
pub(crate) struct Filters {
    parsed: Mutex<LruCache<Key, Arc<SyncFilter>>>,
}

impl Default for Filters {
    fn default() -> Self {
        Self {
            parsed: Mutex::new(LruCache::new(
                NonZeroUsize::new(MAX_PARSED).expect("the bound is not zero"),
            )),
        }
    }
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterLookup {
    #[error("There is no filter with this id.")]
    Unknown,
    #[error(transparent)]
    Refused(#[from] FilterError),
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Streams {
    /// Keeps a filter (JSON text) and answers its id; the same filter has the same id.
    pub(crate) async fn keep_filter(&self, user_id: &UserId, definition: String) -> Result<String, FilterLookup> {
        let filter = Arc::new(SyncFilter::parse(&definition)?);
        let digest = Sha256::digest(definition.as_bytes());
        // A client tells an inline filter by its `{`; this alphabet has none.
        let filter_id = URL_SAFE_NO_PAD.encode(&digest[..15]);
        self.store
            .keep_filter(user_id.to_string(), filter_id.clone(), definition)
            .await?;
        self.filters
            .parsed
            .lock()
            .put(Key::Kept(user_id.to_owned(), filter_id.clone()), filter);
        Ok(filter_id)
    }

    /// The text of a kept filter.
    pub(crate) async fn filter_definition(
        &self,
        user_id: &UserId,
        filter_id: &str,
    ) -> Result<Option<String>, storage::Error> {
        self.store.filter(user_id.as_str(), filter_id).await
    }

    /// The filter that a `filter` parameter names or spells out.
    pub(crate) async fn filter(
        &self,
        user_id: &UserId,
        parameter: Option<&str>,
    ) -> Result<Arc<SyncFilter>, FilterLookup> {
        let Some(text) = parameter.filter(|text| !text.is_empty()) else {
            return Ok(Arc::default());
        };
        // Spec: GET /sync, `filter`: an object if it begins with a brace, else an id.
        let inline = text.starts_with('{');
        if inline && text.len() > MAX_HELD_TEXT {
            return Ok(Arc::new(SyncFilter::parse(text)?));
        }
        let key = if inline {
            Key::Inline(text.to_owned())
        } else {
            Key::Kept(user_id.to_owned(), text.to_owned())
        };
        if let Some(filter) = self.filters.parsed.lock().get(&key) {
            return Ok(filter.clone());
        }
        let filter = if inline {
            SyncFilter::parse(text)?
        } else {
            let kept = self
                .store
                .filter(user_id.as_str(), text)
                .await?
                .ok_or(FilterLookup::Unknown)?;
            SyncFilter::parse(&kept)?
        };
        let filter = Arc::new(filter);
        self.filters.parsed.lock().put(key, filter.clone());
        Ok(filter)
    }
}
