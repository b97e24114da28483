//! What devices hear of. Streams are kept in files of their own and read by position; `/sync` is one reader of them.
//! It knows nothing of how events are made or checked: rooms are read through [`crate::room`].

mod account_data;
mod classic;
mod filter;
mod filters;
mod lazy_members;
mod memberships;
mod notifier;
mod position;
mod receipts;
mod room_cache;
mod streams;
mod typing;
mod typing_stream;

pub(crate) use account_data::AccountDataError;
pub(crate) use classic::{StateAfter, SyncRequest};
pub(crate) use filter::EventFilter;
pub(crate) use filters::FilterLookup;
pub use notifier::{Change, Notifier, RoomStream};
pub(crate) use position::SyncToken;
pub(crate) use receipts::{NewReceipt, ReceiptError};

use std::sync::Arc;

use storage::Store;
use tokio::sync::broadcast::error::RecvError;

use self::{
    filters::Filters,
    lazy_members::LazyMembers,
    room_cache::{RoomCache, RoomReceipts},
    typing::Typing,
};
use crate::{Clock, Homeserver, accounts::AccountChange};

/// Sessions that nobody used for so long are forgotten; their next sync reads more once.
const SESSION_IDLE_MS: u64 = 3_600_000;

/// The streams that devices read, and what is remembered between two reads.
#[derive(Debug)]
pub struct Streams {
    store: Store,
    clock: Clock,
    /// Where writers announce what changed.
    pub notifier: Arc<Notifier>,
    filters: Filters,
    typing: Typing,
    /// Wakes the task that ends typing.
    typing_started: tokio::sync::Notify,
    receipts: RoomCache<RoomReceipts>,
    lazy_members: LazyMembers,
    /// One change of a document that is read, changed and written back, at a time.
    editing: tokio::sync::Mutex<()>,
}

impl Streams {
    pub(crate) fn new(store: Store, clock: Clock, notifier: Arc<Notifier>) -> Self {
        Self {
            filters: Filters::default(),
            typing: Typing::default(),
            typing_started: tokio::sync::Notify::new(),
            receipts: RoomCache::default(),
            lazy_members: LazyMembers::default(),
            editing: tokio::sync::Mutex::new(()),
            store,
            clock,
            notifier,
        }
    }

    /// The position a reader takes as its "now": all changes at or below it are known to the sessions.
    pub(crate) fn now(&self) -> i64 {
        self.notifier.advance(self.store.positions().current())
    }
}

impl Homeserver {
    /// Wakes the syncs of users one of whose sessions ended, so that they see whether it was theirs.
    async fn wake_whose_sessions_end(&self) {
        let mut changes = self.accounts.changes();
        loop {
            match changes.recv().await {
                Ok(
                    AccountChange::DeviceGone { user_id, .. }
                    | AccountChange::DeviceSignedIn { user_id, .. }
                    | AccountChange::UserGone { user_id },
                ) => self.sync.notifier.wake(&user_id),
                Err(RecvError::Lagged(_)) => self.sync.notifier.wake_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// Starts the tasks that wake sleeping syncs, end typing and forget idle sessions. They end at shutdown.
pub(crate) fn start(hs: &Homeserver) {
    let wake = hs.clone();
    hs.tasks
        .spawn(hs.shutdown.clone().run_until_cancelled_owned(async move {
            let mut published = wake.store.positions().subscribe();
            while published.changed().await.is_ok() {
                let current = *published.borrow_and_update();
                wake.sync.notifier.advance(current);
            }
        }));
    let typing = hs.clone();
    hs.tasks.spawn(
        hs.shutdown
            .clone()
            .run_until_cancelled_owned(async move { typing.sync.run_typing_expiry().await }),
    );
    let ended = hs.clone();
    hs.tasks.spawn(
        hs.shutdown
            .clone()
            .run_until_cancelled_owned(async move { ended.wake_whose_sessions_end().await }),
    );
    let idle = hs.clone();
    hs.tasks
        .spawn(hs.shutdown.clone().run_until_cancelled_owned(async move {
            let mut often = tokio::time::interval(std::time::Duration::from_secs(600));
            loop {
                often.tick().await;
                idle.sync
                    .notifier
                    .forget_idle(idle.clock.now_ms().saturating_sub(SESSION_IDLE_MS));
            }
        }));
}
