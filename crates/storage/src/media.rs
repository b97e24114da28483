//! What was uploaded: one row per `mxc://` address. The bytes are files, kept elsewhere.

use crate::{Error, Store};

/// A media address and what lies behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    pub media_id: String,
    pub user_id: String,
    /// Unix milliseconds.
    pub created_at: i64,
    /// SHA-256 in hexadecimal; `None` while the address is reserved and the content has not arrived.
    pub content_hash: Option<String>,
    pub size_bytes: i64,
    pub content_type: Option<String>,
    pub filename: Option<String>,
}
from_row!(Media {
    media_id,
    user_id,
    created_at,
    content_hash,
    size_bytes,
    content_type,
    filename
});

/// How filling a reserved address ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaFill {
    Stored,
    /// No such reservation, or it expired.
    Unknown,
    /// Reserved by somebody else.
    NotYours,
    AlreadyFilled,
}

impl Store {
    /// Records an address, reserved or filled.
    pub async fn create_media(&self, media: Media) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO media (media_id, user_id, created_at, content_hash, size_bytes, content_type, filename)
                     VALUES ($1, $2, $3, $4, $5, $6, $7)",
                    &media.media_id,
                    &media.user_id,
                    media.created_at,
                    &media.content_hash,
                    media.size_bytes,
                    &media.content_type,
                    &media.filename
                )?;
                Ok(())
            })
        })
        .await
    }

    /// Fills the address that `media.user_id` reserved after `reserved_after` (Unix milliseconds), once.
    pub async fn fill_media(&self, media: Media, reserved_after: i64) -> Result<MediaFill, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let filled = execute!(
                    tx,
                    "UPDATE media SET content_hash = $4, size_bytes = $5, content_type = $6, filename = $7
                     WHERE media_id = $1 AND user_id = $2 AND created_at > $3 AND content_hash IS NULL",
                    &media.media_id,
                    &media.user_id,
                    reserved_after,
                    &media.content_hash,
                    media.size_bytes,
                    &media.content_type,
                    &media.filename
                )?;
                if filled == 1 {
                    return Ok(MediaFill::Stored);
                }
                let known: Option<(String, Option<String>)> = fetch_optional!(
                    tx,
                    (String, Option<String>),
                    "SELECT user_id, content_hash FROM media WHERE media_id = $1",
                    &media.media_id
                )?;
                Ok(match known {
                    Some((owner, _)) if owner != media.user_id => MediaFill::NotYours,
                    Some((_, Some(_))) => MediaFill::AlreadyFilled,
                    Some((_, None)) | None => MediaFill::Unknown,
                })
            })
        })
        .await
    }

    pub async fn media(&self, media_id: &str) -> Result<Option<Media>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            Media,
            "SELECT media_id, user_id, created_at, content_hash, size_bytes, content_type, filename
             FROM media WHERE media_id = $1",
            media_id
        )
    }

    /// How many addresses `user_id` reserved after `reserved_after` and has not filled.
    pub async fn reserved_media_count(&self, user_id: &str, reserved_after: i64) -> Result<i64, Error> {
        let mut conn = self.read().await?;
        let row: Option<(i64,)> = fetch_optional!(
            &mut conn,
            (i64,),
            "SELECT COUNT(*) FROM media WHERE user_id = $1 AND created_at > $2 AND content_hash IS NULL",
            user_id,
            reserved_after
        )?;
        Ok(row.map_or(0, |(count,)| count))
    }

    /// Removes at most `limit` addresses that were reserved at `before` (Unix milliseconds) or earlier and never filled;
    /// answers how many.
    pub async fn forget_unfilled_media(&self, before: i64, limit: i64) -> Result<u64, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "DELETE FROM media WHERE content_hash IS NULL AND media_id IN
                         (SELECT media_id FROM media WHERE content_hash IS NULL AND created_at <= $1
                          ORDER BY created_at LIMIT $2)",
                    before,
                    limit
                )
            })
        })
        .await
    }
}
