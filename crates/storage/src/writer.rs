//! Group commit for SQLite: one task owns the only writing connection, and every write that waits
//! at the same moment shares one transaction and one fsync. Each write has a savepoint of its own,
//! so one that fails takes nothing of its neighbours with it.

use std::panic::AssertUnwindSafe;

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::{Conn, Error};

/// Writes that may share a transaction: bounds how long the first one waits for its neighbours.
const GROUP: usize = 256;

/// Writes that may wait; a sender waits beyond that.
const QUEUE: usize = 1024;

/// A write: runs on the connection and says how to tell its caller.
pub(crate) type Job = Box<dyn for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Ran> + Send>;

/// What became of a job, before the commit.
pub(crate) enum Ran {
    /// Keep its changes; tell the caller once the transaction is durable, or that it could not be made so.
    Keep(Box<dyn FnOnce(Result<(), Error>) + Send>),
    /// Undo its changes; then tell the caller.
    Undo(Box<dyn FnOnce() + Send>),
}

/// Wraps a typed write into a [`Job`] and the receiver of its outcome.
pub(crate) fn job<T, E, F>(write: F) -> (Job, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
    F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let job: Job = Box::new(move |conn| {
        // The panic is caught around the first poll too: the closure runs inside the future.
        let run = AssertUnwindSafe(async move { write(conn).await }).catch_unwind();
        Box::pin(async move {
            // A caller who has gone is no reason to undo: `send` may fail.
            match run.await {
                Ok(Ok(value)) => Ran::Keep(Box::new(move |committed| {
                    tell.send(committed.map(|()| value).map_err(E::from)).ok();
                })),
                Ok(Err(refused)) => Ran::Undo(Box::new(move || {
                    tell.send(Err(refused)).ok();
                })),
                Err(_) => {
                    error!("a database write panicked; it is undone");
                    Ran::Undo(Box::new(move || {
                        tell.send(Err(E::from(Error::Panicked))).ok();
                    }))
                }
            }
        })
    });
    (job, told)
}

/// Starts the task that owns `conn`; it ends when the last sender is gone and the queue is empty.
pub(crate) fn start(conn: Conn) -> (mpsc::Sender<Job>, tokio::task::JoinHandle<()>) {
    let (send, receive) = mpsc::channel(QUEUE);
    (send, tokio::spawn(run(conn, receive)))
}

async fn run(mut conn: Conn, mut jobs: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP);
    let mut kept = Vec::with_capacity(GROUP);
    while jobs.recv_many(&mut group, GROUP).await > 0 {
        let committed = run_group(&mut conn, &mut group, &mut kept).await;
        metrics::histogram!("longhouse_storage_group_commit_writes").record(kept.len() as f64);
        if let Err(e) = &committed {
            error!(error = %e, writes = kept.len(), "a group of writes could not be committed");
            // The transaction may still be open; a failure here means it is not.
            conn.command("ROLLBACK").await.ok();
        }
        for tell in kept.drain(..) {
            tell(committed.as_ref().map(|_| ()).map_err(|e| Error::Commit(e.to_string())));
        }
        // Jobs that never ran because the transaction could not begin are dropped here: their
        // callers see the closed channel.
        group.clear();
    }
}

type Tell = Box<dyn FnOnce(Result<(), Error>) + Send>;

async fn run_group(conn: &mut Conn, group: &mut Vec<Job>, kept: &mut Vec<Tell>) -> Result<(), sqlx::Error> {
    conn.command("BEGIN IMMEDIATE").await?;
    for job in group.drain(..) {
        conn.command("SAVEPOINT job").await?;
        match job(conn).await {
            Ran::Keep(tell) => {
                // Told whatever follows: if the release fails, so does the group.
                kept.push(tell);
                conn.command("RELEASE job").await?;
            }
            Ran::Undo(tell) => {
                let undone = async {
                    conn.command("ROLLBACK TO job").await?;
                    conn.command("RELEASE job").await
                }
                .await;
                tell();
                undone?;
            }
        }
    }
    conn.command("COMMIT").await
}

/// One write in a transaction of its own (PostgreSQL commits groups by itself).
pub(crate) async fn run_alone(mut conn: Conn, job: Job) {
    let begun = conn.command("BEGIN").await;
    if let Err(e) = begun {
        error!(error = %e, "a transaction could not begin");
        return;
    }
    match job(&mut conn).await {
        Ran::Keep(tell) => {
            let committed = conn.command("COMMIT").await;
            if committed.is_err() {
                conn.command("ROLLBACK").await.ok();
            }
            drop(conn);
            tell(committed.map_err(|e| Error::Commit(e.to_string())));
        }
        Ran::Undo(tell) => {
            if conn.command("ROLLBACK").await.is_err() {
                error!("a transaction could not be rolled back; its connection is closed");
                if let Conn::Postgres(c) = conn {
                    drop(c.detach());
                }
            }
            tell();
        }
    }
}
