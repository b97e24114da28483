//! The media repository: uploads to files named by their hash, downloads as streams.
//! Spec: client-server API, "Content repository".
//!
//! Knows nothing of HTTP answers; never holds a whole file in memory.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use ruma::UserId;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use storage::{
    Store,
    media::{Media as Row, MediaFill},
};
use tokio::{
    fs,
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
    sync::Notify,
};

use crate::{Clock, StartError, accounts};

/// A reserved address waits this long for its content. Spec: at least a minute, 24 hours recommended.
pub(crate) const RESERVATION_MS: u64 = 24 * 3_600_000;
/// Addresses a user may have reserved at a time. Spec: "the server should limit the number".
const MAX_RESERVED: i64 = 100;
const READ_AT_ONCE: usize = 64 * 1024;

/// `[media]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_upload_bytes: 100 * 1024 * 1024,
        }
    }
}

/// What an upload says of itself.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// The media type.
    pub content_type: Option<String>,
    /// The name of the file.
    pub filename: Option<String>,
}

/// Why media could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More bytes than the setting allows.
    #[error("larger than media.max_upload_bytes")]
    TooLarge,
    /// The sender broke off.
    #[error("the upload broke off")]
    BrokenOff,
    /// Too many reserved addresses.
    #[error("too many reserved addresses")]
    TooManyReserved,
    /// The address was not reserved, or too long ago.
    #[error("no such reservation")]
    NotReserved,
    /// Somebody else reserved the address.
    #[error("reserved by somebody else")]
    NotYours,
    /// The address has its content.
    #[error("already there")]
    AlreadyThere,
    /// The file system failed.
    #[error("media files: {0}")]
    Files(#[from] std::io::Error),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// The files of this server's users.
#[derive(Debug)]
pub struct Media {
    config: Config,
    store: Store,
    clock: Clock,
    dir: PathBuf,
    /// Wakes those who wait for the content of a reserved address.
    arrived: Notify,
}

impl Media {
    pub(crate) async fn open(config: &crate::Config, store: Store, clock: Clock) -> Result<Self, StartError> {
        let dir = config.data_dir.join("media");
        let incoming = dir.join("incoming");
        // What an earlier process left unfinished is nobody's.
        let prepared = async {
            if fs::try_exists(&incoming).await? {
                fs::remove_dir_all(&incoming).await?;
            }
            fs::create_dir_all(&incoming).await
        };
        prepared.await.map_err(|source| StartError::MediaFolder {
            path: dir.clone(),
            source,
        })?;
        Ok(Self {
            config: config.media.clone(),
            store,
            clock,
            dir,
            arrived: Notify::new(),
        })
    }

    /// The largest upload, in bytes.
    pub fn max_upload_bytes(&self) -> u64 {
        self.config.max_upload_bytes
    }

    /// Stores an upload and answers its media id. The content and its address are durable when this returns.
    pub async fn upload<E>(
        &self,
        user_id: &UserId,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<String, Error> {
        let row = self.receive(new_media_id(), user_id, description, content).await?;
        let media_id = row.media_id.clone();
        self.store.create_media(row).await?;
        Ok(media_id)
    }

    /// Reserves an address: its id, and when it lapses (Unix milliseconds).
    pub async fn reserve(&self, user_id: &UserId) -> Result<(String, u64), Error> {
        let now = self.clock.now_ms();
        if self
            .store
            .reserved_media_count(user_id.as_str(), self.reserved_after())
            .await?
            >= MAX_RESERVED
        {
            return Err(Error::TooManyReserved);
        }
        let media_id = new_media_id();
        self.store
            .create_media(self.row(media_id.clone(), user_id, Description::default()))
            .await?;
        Ok((media_id, now + RESERVATION_MS))
    }

    /// Fills a reserved address.
    pub async fn fill<E>(
        &self,
        media_id: &str,
        user_id: &UserId,
        description: Description,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(), Error> {
        match self.store.media(media_id).await? {
            None => return Err(Error::NotReserved),
            Some(row) if row.user_id != user_id.as_str() => return Err(Error::NotYours),
            Some(row) if row.content_hash.is_some() => return Err(Error::AlreadyThere),
            Some(row) if row.created_at <= self.reserved_after() => return Err(Error::NotReserved),
            Some(_) => {}
        }
        let row = self.receive(media_id.to_owned(), user_id, description, content).await?;
        match self.store.fill_media(row, self.reserved_after()).await? {
            MediaFill::Stored => {
                self.arrived.notify_waiters();
                Ok(())
            }
            MediaFill::Unknown => Err(Error::NotReserved),
            MediaFill::NotYours => Err(Error::NotYours),
            MediaFill::AlreadyFilled => Err(Error::AlreadyThere),
        }
    }

    /// What lies behind an address; waits up to `patience` for content that is still to come.
    pub async fn find(&self, media_id: &str, patience: Duration) -> Result<Option<Row>, Error> {
        let waited = tokio::time::timeout(patience, async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                arrived.as_mut().enable();
                match self.store.media(media_id).await? {
                    Some(row) if row.content_hash.is_none() => arrived.await,
                    found => return Ok(found),
                }
            }
        })
        .await;
        match waited {
            Ok(found) => found,
            Err(_) => Ok(self.store.media(media_id).await?),
        }
    }

    /// `length` bytes of the content with this hash from byte `first` on, piece by piece.
    pub async fn read(
        &self,
        content_hash: &str,
        first: u64,
        length: u64,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + use<>, Error> {
        let mut file = fs::File::open(self.path(content_hash)?).await?;
        if first > 0 {
            file.seek(std::io::SeekFrom::Start(first)).await?;
        }
        Ok(futures_util::stream::try_unfold(
            file.take(length),
            |mut file| async move {
                let mut piece = bytes::BytesMut::with_capacity(READ_AT_ONCE);
                let read = file.read_buf(&mut piece).await?;
                Ok((read > 0).then(|| (piece.freeze(), file)))
            },
        ))
    }

    fn row(&self, media_id: String, user_id: &UserId, description: Description) -> Row {
        Row {
            media_id,
            user_id: user_id.to_string(),
            created_at: accounts::unix_ms(&self.clock),
            content_hash: None,
            size_bytes: 0,
            content_type: description.content_type,
            filename: description.filename,
        }
    }

    fn reserved_after(&self) -> i64 {
        accounts::unix_ms(&self.clock) - i64::try_from(RESERVATION_MS).unwrap_or(i64::MAX)
    }

    /// Writes the content to its place. It is on the disk when this returns.
    async fn receive<E>(
        &self,
        media_id: String,
        user_id: &UserId,
        description: Description,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Row, Error> {
        let unfinished = Unfinished(self.dir.join("incoming").join(accounts::random_text()));
        let mut file = fs::File::create_new(&unfinished.0).await?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|_| Error::BrokenOff)?;
            size += piece.len() as u64;
            if size > self.config.max_upload_bytes {
                return Err(Error::TooLarge);
            }
            hash.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        file.sync_all().await?;
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let place = self.path(&hash)?;
        let folder = place.parent().unwrap_or(&self.dir).to_owned();
        fs::create_dir_all(&folder).await?;
        // The same content again replaces itself.
        fs::rename(&unfinished.0, &place).await?;
        for folder in [folder.as_path(), folder.parent().unwrap_or(&self.dir), &self.dir] {
            sync_folder(folder).await?;
        }
        Ok(Row {
            content_hash: Some(hash),
            size_bytes: i64::try_from(size).unwrap_or(i64::MAX),
            ..self.row(media_id, user_id, description)
        })
    }

    fn path(&self, content_hash: &str) -> Result<PathBuf, Error> {
        let valid = content_hash.len() == 64 && content_hash.bytes().all(|b| b.is_ascii_hexdigit());
        if !valid {
            return Err(storage::Error::corrupt("media", "content_hash is no SHA-256").into());
        }
        Ok(self
            .dir
            .join(&content_hash[..2])
            .join(&content_hash[2..4])
            .join(&content_hash[4..]))
    }
}

fn new_media_id() -> String {
    accounts::random_text()
}

/// A renamed file survives a power failure once its folder is on the disk.
async fn sync_folder(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder).await?.sync_all().await
}

/// A file that is removed unless it was moved to its place: a client may leave at any time.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the move there is nothing to remove.
        std::fs::remove_file(&self.0).ok();
    }
}
