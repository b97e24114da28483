//! The handle to the database: opening, reading, writing.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{
    PgPool, SqlitePool,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::{
    Config, Conn, Dialect, Error, OpenError, Positions, Reservation, migrate,
    positions::BLOCK,
    push::{PushUsers, RowsCounted},
    writer::{self, Job},
};

/// The database. Cheap to clone; closes when [`Store::close`] has been awaited.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    positions: Positions,
    /// Connections given out for reading.
    reads: AtomicU64,
    /// One extension of the block of positions at a time.
    extending: tokio::sync::Mutex<()>,
    push_users: PushUsers,
    push_rows: parking_lot::Mutex<RowsCounted>,
    /// Held by whoever counts what is unread, and alone by whoever folds it.
    folding: tokio::sync::RwLock<()>,
}

#[derive(Debug)]
enum Engine {
    Sqlite {
        readers: SqlitePool,
        /// Taken on close, so that the writer drains its queue and ends.
        writer: Mutex<Option<mpsc::Sender<Job>>>,
        writing: Mutex<Option<JoinHandle<()>>>,
    },
    Postgres {
        pool: PgPool,
        /// Writes run in tasks of their own, so that a caller who goes away does not cut one short.
        writes: TaskTracker,
        /// Holds the lock that keeps a second process away from this database.
        lock: tokio::sync::Mutex<PoolConnection<sqlx::Postgres>>,
    },
}

/// How long closing waits for writes and readers.
const CLOSING: Duration = Duration::from_secs(10);

/// How long closing waits for PostgreSQL to take the lock back.
const UNLOCKING: Duration = Duration::from_secs(2);

/// The SQLSTATE of a lock that was not got within `lock_timeout` (PostgreSQL, appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Any number that no other program's advisory lock is likely to have.
const POSTGRES_LOCK: i64 = 0x4c6f_6e67_686f_7573;

impl Store {
    /// Opens the database that `config` names (by default an SQLite file in `data_dir`) and brings its schema up to date.
    ///
    /// # Errors
    /// When it cannot be reached, is held by another process, is newer than this version, or a migration fails.
    pub async fn open(config: &Config, data_dir: &Path) -> Result<Self, OpenError> {
        match Place::of(config)? {
            Place::DataDir => {
                let options = SqliteConnectOptions::new().filename(data_dir.join("longhouse.db"));
                Self::open_sqlite(options, config).await
            }
            Place::Sqlite(options) => Self::open_sqlite(*options, config).await,
            Place::Postgres(options) => Self::open_postgres(*options, config).await,
        }
    }

    async fn open_sqlite(options: SqliteConnectOptions, config: &Config) -> Result<Self, OpenError> {
        let place = options.get_filename().display().to_string();
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a commit is on the disk when it returns, in WAL mode too.
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("cache_size", "-16000")
            .pragma("temp_store", "memory")
            .statement_cache_capacity(512);
        let failed = |source| connect_error(&place, source);
        let writers = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let mut conn = Conn::Sqlite(writers.acquire().await.map_err(failed)?);
        migrate::run(&mut conn).await?;
        let positions = open_positions(&mut conn).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(config.max_connections.max(1))
            .min_connections(1)
            .connect_with(options.pragma("query_only", "ON").pragma("cache_size", "-4000"))
            .await
            .map_err(failed)?;
        let (writer, writing) = writer::start(conn);
        info!(engine = "sqlite", file = %place, "database opened");
        Ok(Self::new(
            Engine::Sqlite {
                readers,
                writer: Mutex::new(Some(writer)),
                writing: Mutex::new(Some(writing)),
            },
            positions,
        ))
    }

    async fn open_postgres(options: PgConnectOptions, config: &Config) -> Result<Self, OpenError> {
        let place = format!(
            "postgres://{}:{}/{}",
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or("")
        );
        let options = options.application_name("longhouse").statement_cache_capacity(512);
        let pool = PgPoolOptions::new()
            // One connection is the lock's.
            .max_connections(config.max_connections.max(2) + 1)
            .acquire_timeout(Duration::from_secs(30))
            .connect_with(options)
            .await
            .map_err(|source| connect_error(&place, source))?;
        let mut lock = pool.acquire().await?;
        // A predecessor that was killed leaves the lock to its connection until PostgreSQL notices: wait for that.
        sqlx::query("SET lock_timeout = '5s'").execute(&mut *lock).await?;
        let locked = sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(POSTGRES_LOCK)
            .execute(&mut *lock)
            .await;
        match locked {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(LOCK_NOT_AVAILABLE) => {
                return Err(OpenError::InUse);
            }
            Err(error) => return Err(error.into()),
        }
        sqlx::query("SET lock_timeout = 0").execute(&mut *lock).await?;
        let mut conn = Conn::Postgres(pool.acquire().await?);
        migrate::run(&mut conn).await?;
        let positions = open_positions(&mut conn).await?;
        drop(conn);
        info!(engine = "postgres", server = %place, "database opened");
        Ok(Self::new(
            Engine::Postgres {
                pool,
                writes: TaskTracker::new(),
                lock: tokio::sync::Mutex::new(lock),
            },
            positions,
        ))
    }

    fn new(engine: Engine, positions: Positions) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine,
                positions,
                reads: AtomicU64::new(0),
                extending: tokio::sync::Mutex::new(()),
                push_users: PushUsers::default(),
                push_rows: parking_lot::Mutex::default(),
                folding: tokio::sync::RwLock::new(()),
            }),
        }
    }

    /// Which engine holds the data.
    pub fn dialect(&self) -> Dialect {
        match self.inner.engine {
            Engine::Sqlite { .. } => Dialect::Sqlite,
            Engine::Postgres { .. } => Dialect::Postgres,
        }
    }

    pub(crate) fn push_users(&self) -> &PushUsers {
        &self.inner.push_users
    }

    pub(crate) fn push_rows_counted(&self) -> &parking_lot::Mutex<RowsCounted> {
        &self.inner.push_rows
    }

    pub(crate) fn folding(&self) -> &tokio::sync::RwLock<()> {
        &self.inner.folding
    }

    /// The process' stream positions.
    pub fn positions(&self) -> &Positions {
        &self.inner.positions
    }

    /// How many connections were given out for reading since the store was opened: what a request costs the
    /// database, for tests and metrics.
    pub fn reads(&self) -> u64 {
        self.inner.reads.load(Ordering::Relaxed)
    }

    /// A connection for reading. It sees every write that was answered before.
    ///
    /// # Errors
    /// When no connection is free within 30 seconds, or the engine is gone.
    pub async fn read(&self) -> Result<Conn, Error> {
        self.inner.reads.fetch_add(1, Ordering::Relaxed);
        match &self.inner.engine {
            Engine::Sqlite { readers, .. } => Ok(Conn::Sqlite(readers.acquire().await?)),
            Engine::Postgres { pool, .. } => Ok(Conn::Postgres(pool.acquire().await?)),
        }
    }

    /// Runs `write` in a transaction and answers once it is durable. When `write` answers an error,
    /// nothing of it is kept. It runs to its end even if the caller goes away.
    ///
    /// # Errors
    /// What `write` answered, or a failure to commit.
    pub async fn write<T, E, F>(&self, write: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let (job, told) = writer::job(write);
        self.enqueue(job).await?;
        told.await.unwrap_or_else(|_| Err(E::from(Error::Closed)))
    }

    /// Like [`Store::write`], with `count` consecutive stream positions from the one given to
    /// `write`. Readers see them as passed only after the commit, in order.
    ///
    /// # Errors
    /// What `write` answered, or a failure to commit.
    pub async fn write_at<T, E, F>(&self, count: usize, write: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn, i64) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        let reservation = self.reserve(count).await?;
        let first = reservation.first();
        let (job, told) = writer::job(move |conn| write(conn, first));
        // The reservation is finished by the job's end, not by the caller: a caller who goes away
        // must not let readers pass positions that are still to be committed.
        self.enqueue(finish_after(job, reservation)).await?;
        told.await.unwrap_or_else(|_| Err(E::from(Error::Closed)))
    }

    /// `count` positions for something that lives in memory only.
    ///
    /// # Errors
    /// When a new block of positions cannot be made durable.
    pub async fn reserve(&self, count: usize) -> Result<Reservation, Error> {
        let count = i64::try_from(count).expect("a count of positions fits");
        loop {
            match self.inner.positions.try_reserve(count) {
                Ok(reservation) => return Ok(reservation),
                Err(needs) => self.extend_positions(needs.ceiling, needs.wanted).await?,
            }
        }
    }

    async fn extend_positions(&self, seen: i64, wanted: i64) -> Result<(), Error> {
        let _one = self.inner.extending.lock().await;
        // Another caller may have extended it while this one waited.
        if self.inner.positions.ceiling() > seen {
            return Ok(());
        }
        self.write::<_, Error, _>(move |conn| {
            Box::pin(async move {
                execute!(
                    conn,
                    "UPDATE stream_ceiling SET position = $1 WHERE position < $1",
                    wanted
                )?;
                Ok(())
            })
        })
        .await?;
        self.inner.positions.raise_ceiling(wanted);
        Ok(())
    }

    async fn enqueue(&self, job: Job) -> Result<(), Error> {
        match &self.inner.engine {
            Engine::Sqlite { writer, .. } => {
                let sender = writer.lock().clone().ok_or(Error::Closed)?;
                sender.send(job).await.map_err(|_| Error::Closed)
            }
            Engine::Postgres { pool, writes, .. } => {
                if writes.is_closed() {
                    return Err(Error::Closed);
                }
                let conn = Conn::Postgres(pool.acquire().await?);
                writes.spawn(writer::run_alone(conn, job));
                Ok(())
            }
        }
    }

    /// Gives pages that hold nothing any more back to the file system, some of them. PostgreSQL does so by itself.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release_free_pages(&self) -> Result<(), Error> {
        if self.dialect() == Dialect::Postgres {
            return Ok(());
        }
        self.write(|conn| Box::pin(async move { Ok(conn.command("PRAGMA incremental_vacuum(1000)").await?) }))
            .await
    }

    /// Finishes the writes under way and closes every connection. Later writes answer [`Error::Closed`].
    pub async fn close(&self) {
        self.close_within(CLOSING).await;
    }

    /// Like [`Store::close`], waiting for writes and readers no longer than `patience` (PostgreSQL: and a little). What
    /// is not finished then is undone by the engine. Answers whether everything was finished.
    pub async fn close_within(&self, patience: Duration) -> bool {
        let finished = match &self.inner.engine {
            Engine::Sqlite {
                readers,
                writer,
                writing,
            } => {
                writer.lock().take();
                let task = writing.lock().take();
                let finish = async {
                    if let Some(task) = task {
                        task.await.ok();
                    }
                    readers.close().await;
                };
                tokio::time::timeout(patience, finish).await.is_ok()
            }
            Engine::Postgres { pool, writes, lock } => {
                writes.close();
                let finished = tokio::time::timeout(patience, writes.wait()).await.is_ok();
                // The lock's connection is never returned to the pool, so `close` would wait for it:
                // it is unlocked here and goes with the process.
                let unlock = async {
                    let mut lock = lock.lock().await;
                    sqlx::query("SELECT pg_advisory_unlock_all()")
                        .execute(&mut **lock)
                        .await
                        .ok();
                };
                // A server that does not answer gives the lock up when the connection ends.
                tokio::time::timeout(UNLOCKING, unlock).await.ok();
                tokio::time::timeout(Duration::from_millis(100), pool.close())
                    .await
                    .ok();
                finished
            }
        };
        if !finished {
            warn!(
                seconds = patience.as_secs_f64(),
                "the database was closed before everything was finished"
            );
        }
        finished
    }
}

/// The job, with its positions passed once its caller has been (or could not be) told.
fn finish_after(job: Job, reservation: Reservation) -> Job {
    use crate::writer::Ran;
    Box::new(move |conn| {
        Box::pin(async move {
            match job(conn).await {
                // Passed before the caller is told: who is answered 200 must find it in `/sync`.
                Ran::Keep(tell) => Ran::Keep(Box::new(move |committed| {
                    drop(reservation);
                    tell(committed);
                })),
                Ran::Undo(tell) => Ran::Undo(Box::new(move || {
                    drop(reservation);
                    tell();
                })),
            }
        })
    })
}

/// Where a configuration says the data are.
enum Place {
    DataDir,
    Sqlite(Box<SqliteConnectOptions>),
    Postgres(Box<PgConnectOptions>),
}

impl Place {
    fn of(config: &Config) -> Result<Self, OpenError> {
        let unreadable = |source| connect_error("`database.url`", source);
        match config.url.as_deref() {
            None => Ok(Self::DataDir),
            Some(url) if url.starts_with("sqlite:") => Ok(Self::Sqlite(Box::new(url.parse().map_err(unreadable)?))),
            Some(url) if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
                Ok(Self::Postgres(Box::new(url.parse().map_err(unreadable)?)))
            }
            Some(_) => Err(OpenError::UnknownScheme),
        }
    }
}

impl Config {
    /// Whether the address can be read. Opens nothing; the error does not show the password.
    ///
    /// # Errors
    /// [`OpenError::UnknownScheme`], or [`OpenError::Connect`] for an address that is none.
    pub fn check(&self) -> Result<(), OpenError> {
        Place::of(self).map(|_| ())
    }
}

fn connect_error(place: &str, source: sqlx::Error) -> OpenError {
    OpenError::Connect {
        place: place.to_owned(),
        source,
    }
}

async fn open_positions(conn: &mut Conn) -> Result<Positions, OpenError> {
    let in_use = |e| match e {
        Error::Database(e) => OpenError::Database(e),
        other => OpenError::Database(sqlx::Error::Protocol(other.to_string())),
    };
    let (used,) = fetch_optional!(conn, (i64,), "SELECT position FROM stream_ceiling")
        .map_err(in_use)?
        .ok_or_else(|| OpenError::Database(sqlx::Error::RowNotFound))?;
    let ceiling = used + BLOCK;
    execute!(conn, "UPDATE stream_ceiling SET position = $1", ceiling).map_err(in_use)?;
    Ok(Positions::new(used + 1, ceiling))
}
