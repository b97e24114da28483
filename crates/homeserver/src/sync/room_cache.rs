//! What many members of a room read at once, read from the database once: receipts. A room's entry holds everything up to
//! a position and is brought forward by the part that is new, so that a receipt costs one small query for the room and
//! none per member.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::Arc,
};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, RoomId};
use storage::{Error, Store, receipts::Receipt};

/// Rooms kept at once.
const MAX_ROOMS: usize = 2000;

/// Something a room has many of, that can be read from a position on.
pub(crate) trait RoomRows: Default + Send {
    /// Reads what changed in (`after`, `until`] and lays it over what is known.
    fn extend(
        &mut self,
        store: &Store,
        room_id: &RoomId,
        after: i64,
        until: i64,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

#[derive(Debug, Default)]
struct Entry<T> {
    upto: i64,
    rows: T,
}

/// The rows of recently read rooms.
#[derive(Debug)]
pub(crate) struct RoomCache<T> {
    rooms: Mutex<LruCache<OwnedRoomId, Arc<tokio::sync::Mutex<Entry<T>>>>>,
}

impl<T: RoomRows> Default for RoomCache<T> {
    fn default() -> Self {
        let size = NonZeroUsize::new(MAX_ROOMS).expect("the bound is not zero");
        Self {
            rooms: Mutex::new(LruCache::new(size)),
        }
    }
}

impl<T: RoomRows> RoomCache<T> {
    /// Looks at the room's rows as they were at `now` or later. `changed` is the position at which the room's rows were
    /// last announced: if they are known beyond it, nothing is read.
    pub(crate) async fn with<R>(
        &self,
        store: &Store,
        room_id: &RoomId,
        (changed, now): (i64, i64),
        look: impl FnOnce(&T) -> R,
    ) -> Result<R, Error> {
        let entry = self
            .rooms
            .lock()
            .get_or_insert(room_id.to_owned(), Arc::default)
            .clone();
        let mut entry = entry.lock().await;
        if entry.upto == 0 || (changed > entry.upto && now > entry.upto) {
            let after = entry.upto;
            entry.rows.extend(store, room_id, after, now).await?;
            entry.upto = now;
        }
        Ok(look(&entry.rows))
    }
}

/// The receipts of a room, by position and by what they replace.
#[derive(Debug, Default)]
pub(crate) struct RoomReceipts {
    by_position: BTreeMap<(i64, u32), Receipt>,
    places: HashMap<(String, String, String), (i64, u32)>,
    next: u32,
}

impl RoomReceipts {
    /// Receipts set after `since`.
    pub(crate) fn after(&self, since: i64) -> impl Iterator<Item = &Receipt> {
        self.by_position
            .range((since.saturating_add(1), 0)..)
            .map(|(_, receipt)| receipt)
    }

    fn set(&mut self, receipt: Receipt) {
        let key = (
            receipt.user_id.clone(),
            receipt.r#type.clone(),
            receipt.thread_id.clone(),
        );
        // Several receipts can share one position; the number keeps them apart.
        let place = (receipt.position, self.next);
        self.next = self.next.wrapping_add(1);
        if let Some(former) = self.places.insert(key, place) {
            self.by_position.remove(&former);
        }
        self.by_position.insert(place, receipt);
    }
}

impl RoomRows for RoomReceipts {
    async fn extend(&mut self, store: &Store, room_id: &RoomId, after: i64, until: i64) -> Result<(), Error> {
        for receipt in store.receipts_of_room(room_id.as_str(), after, until).await? {
            self.set(receipt);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(user: &str, position: i64) -> Receipt {
        Receipt {
            user_id: user.into(),
            r#type: "m.read".into(),
            thread_id: String::new(),
            event_id: format!("${position}"),
            event_position: position,
            ts: 0,
            position,
        }
    }

    #[test]
    fn a_receipt_replaces_its_former_self() {
        let mut receipts = RoomReceipts::default();
        for (user, position) in [("@a:x", 1), ("@b:x", 1), ("@a:x", 3)] {
            receipts.set(receipt(user, position));
        }
        let after = |since| {
            receipts
                .after(since)
                .map(|r| (r.user_id.clone(), r.position))
                .collect::<Vec<_>>()
        };
        assert_eq!(after(0), [("@b:x".to_owned(), 1), ("@a:x".to_owned(), 3)]);
        assert_eq!(after(1), [("@a:x".to_owned(), 3)]);
        assert_eq!(after(3), []);
        assert_eq!(after(i64::MAX), []);
    }
}
