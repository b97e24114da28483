//! Devices: their keys, the record of whose keys changed, and messages from device to device.
//!
//! Knows users by id only; who shares a room with whom is told by the caller.

mod lifecycle;
mod signatures;
mod to_device;

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use storage::{
    Store,
    keys::{ClaimedKey, KeyClaim, KeyUpload, KeyUploadOutcome},
};

use crate::sync::{Change, Notifier, RoomStream};

pub(crate) use signatures::{PublicKey, Signed, add_signature};
use to_device::Waiting;

/// Devices whose key counts are kept in memory.
const COUNTED: NonZeroUsize = NonZeroUsize::new(50_000).expect("not zero");

/// How many keys others may still take from a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// One-time keys left, by algorithm.
    pub one_time: Vec<(String, i64)>,
    /// Algorithms with a fallback key that nobody was given.
    pub unused_fallback: Vec<String>,
}

/// The devices of this server's users.
#[derive(Debug)]
pub struct Devices {
    store: Store,
    notifier: Arc<Notifier>,
    /// No user's keys changed after this position. Raised before the change commits, so that whoever sees the
    /// position also sees this.
    latest_list_change: Arc<AtomicI64>,
    waiting: Arc<Mutex<HashMap<Device, Waiting>>>,
    counts: Arc<Counts>,
}

type Device = (OwnedUserId, OwnedDeviceId);

#[derive(Debug)]
struct Counts {
    known: Mutex<LruCache<Device, Arc<KeyCounts>>>,
    /// Rises with every change: what was read before one must not be kept after it.
    changes: AtomicU64,
}

impl Counts {
    fn forget(&self, user_id: &UserId, device_id: &DeviceId) {
        let mut known = self.known.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        known.pop(&(user_id.to_owned(), device_id.to_owned()));
    }
}

impl Devices {
    pub(crate) async fn open(store: Store, notifier: Arc<Notifier>) -> Result<Self, storage::Error> {
        let latest = store.latest_device_list_change().await?;
        let waiting = to_device::load(&store).await?;
        Ok(Self {
            store,
            notifier,
            latest_list_change: Arc::new(AtomicI64::new(latest)),
            waiting: Arc::new(Mutex::new(waiting)),
            counts: Arc::new(Counts {
                known: Mutex::new(LruCache::new(COUNTED)),
                changes: AtomicU64::new(0),
            }),
        })
    }

    /// What a write that changes a user's keys calls with its position: tells the user and everybody in `rooms`,
    /// the rooms the user is joined to.
    pub(crate) fn note_list_change(
        &self,
        user_id: &UserId,
        rooms: Vec<OwnedRoomId>,
    ) -> impl FnOnce(i64) + Send + 'static {
        let (latest, notifier, user_id) = (
            self.latest_list_change.clone(),
            self.notifier.clone(),
            user_id.to_owned(),
        );
        move |position| {
            latest.fetch_max(position, Ordering::SeqCst);
            notifier.mark_user(&user_id, Change::DeviceLists, position);
            for room_id in &rooms {
                notifier.mark_room(room_id, RoomStream::DeviceLists, position);
            }
        }
    }

    /// Users whose devices or keys changed at a position in `(from, to]`; no query when nobody's did since `from`.
    pub async fn list_changes(&self, from: i64, to: i64) -> Result<Vec<String>, storage::Error> {
        if self.latest_list_change.load(Ordering::SeqCst) <= from {
            return Ok(Vec::new());
        }
        self.store.device_list_changes(from, to).await
    }

    /// How many keys a device has left. From memory while they do not change.
    pub async fn key_counts(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Arc<KeyCounts>, storage::Error> {
        let device = (user_id.to_owned(), device_id.to_owned());
        if let Some(counts) = self.counts.known.lock().get(&device) {
            return Ok(counts.clone());
        }
        let read_at = self.counts.changes.load(Ordering::SeqCst);
        let counts = Arc::new(KeyCounts {
            one_time: self
                .store
                .one_time_key_counts(user_id.as_str(), device_id.as_str())
                .await?,
            unused_fallback: self
                .store
                .unused_fallback_key_types(user_id.as_str(), device_id.as_str())
                .await?,
        });
        let mut known = self.counts.known.lock();
        if self.counts.changes.load(Ordering::SeqCst) == read_at {
            known.put(device, counts.clone());
        }
        Ok(counts)
    }

    /// Stores uploaded keys; `rooms` as in `note_list_change`.
    pub(crate) async fn upload_keys(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        upload: KeyUpload,
        rooms: Vec<OwnedRoomId>,
    ) -> Result<KeyUploadOutcome, storage::Error> {
        let note = self.note_list_change(user_id, rooms);
        let (notifier, user) = (self.notifier.clone(), user_id.to_owned());
        let outcome = self
            .store
            .upload_keys(upload, move |position, changed| {
                notifier.mark_user(&user, Change::DeviceKeys, position);
                if changed {
                    note(position);
                }
            })
            .await?;
        self.counts.forget(user_id, device_id);
        Ok(outcome)
    }

    /// Hands out one key for each claim.
    pub(crate) async fn claim_keys(&self, claims: Vec<KeyClaim>) -> Result<Vec<ClaimedKey>, storage::Error> {
        let notifier = self.notifier.clone();
        let claimed = self
            .store
            .claim_keys(claims, move |position, claimed| {
                for key in claimed {
                    if let Ok(user_id) = UserId::parse(key.user_id.as_str()) {
                        notifier.mark_user(&user_id, Change::DeviceKeys, position);
                    }
                }
            })
            .await?;
        for key in &claimed {
            if let Ok(user_id) = UserId::parse(key.user_id.as_str()) {
                self.counts.forget(&user_id, key.device_id.as_str().into());
            }
        }
        Ok(claimed)
    }
}
