//! Devices: their keys, the record of whose keys changed, and messages from device to device.
//!
//! Knows users by id only; who shares a room with whom is told by the caller.

mod lifecycle;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use storage::Store;

/// The devices of this server's users.
#[derive(Debug)]
pub struct Devices {
    store: Store,
    /// No user's keys changed after this position. Raised before the change commits, so that whoever sees the
    /// position also sees this.
    latest_list_change: Arc<AtomicI64>,
}

impl Devices {
    pub(crate) async fn open(store: Store) -> Result<Self, storage::Error> {
        let latest = store.latest_device_list_change().await?;
        Ok(Self {
            store,
            latest_list_change: Arc::new(AtomicI64::new(latest)),
        })
    }

    /// What a write that changes somebody's keys calls with its position.
    pub(crate) fn note_list_change(&self) -> impl FnOnce(i64) + Send + 'static {
        let latest = self.latest_list_change.clone();
        move |position| {
            latest.fetch_max(position, Ordering::SeqCst);
        }
    }

    /// Users whose devices or keys changed at a position in `(from, to]`; no query when nobody's did since `from`.
    pub async fn list_changes(&self, from: i64, to: i64) -> Result<Vec<String>, storage::Error> {
        if self.latest_list_change.load(Ordering::SeqCst) <= from {
            return Ok(Vec::new());
        }
        self.store.device_list_changes(from, to).await
    }
}
