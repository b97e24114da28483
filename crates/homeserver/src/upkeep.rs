//! What is of no use any more, removed from time to time. Rounds are bounded: what one leaves, the next removes, and
//! requests are served between two small transactions.
//!
//! What needs none: OpenID tokens, login tokens and interactive authentication are not stored; access tokens live as long
//! as their devices; ended calls are removed by [`crate::calls`].

use std::time::Duration;

use storage::push::FoldBounds;
use tracing::warn;

use crate::{Homeserver, accounts::unix_ms, media::RESERVATION_MS};

/// How often something is removed.
const ROUNDS: Duration = Duration::from_secs(600);
/// Rows removed in one transaction.
const ROWS: i64 = 1000;
/// Transactions of one kind in one round.
const STEPS: usize = 50;
/// How long a request of a device to send to other devices is known again.
const TO_DEVICE_TRANSACTION_MS: i64 = 24 * 3_600_000;
/// How long notifications are listed.
const NOTIFICATION_MS: i64 = 30 * 24 * 3_600_000;
/// The newest notifying events of a room that are kept one by one, so that a receipt lowers counts exactly.
const NOTIFICATIONS_PER_ROOM: i64 = 1000;
/// Rooms in which notifications are folded in one round.
const ROOMS: usize = 100;

impl Homeserver {
    /// Removes what has grown old until the process stops.
    pub(crate) async fn keep_tidy(self) {
        let shutdown = self.shutdown.clone();
        let rounds = async {
            loop {
                tokio::time::sleep(ROUNDS).await;
                if let Err(error) = self.tidy().await {
                    warn!(%error, "could not remove what is of no use any more");
                }
            }
        };
        shutdown.run_until_cancelled(rounds).await;
    }

    /// One round of removing what has grown old.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tidy(&self) -> Result<(), storage::Error> {
        let now = unix_ms(&self.clock);
        let store = &self.store;
        for _ in 0..STEPS {
            let before = now - TO_DEVICE_TRANSACTION_MS;
            if store.forget_to_device_transactions(before, ROWS).await? < ROWS as u64 {
                break;
            }
        }
        for _ in 0..STEPS {
            let before = now - i64::try_from(RESERVATION_MS).unwrap_or(i64::MAX);
            if store.forget_unfilled_media(before, ROWS).await? < ROWS as u64 {
                break;
            }
        }
        let bounds = FoldBounds {
            keep: NOTIFICATIONS_PER_ROOM,
            received_after: now - NOTIFICATION_MS,
            at_once: NOTIFICATIONS_PER_ROOM / 4,
        };
        for room_nid in store.rooms_to_fold(bounds, ROOMS).await? {
            for _ in 0..STEPS {
                if store.fold_notifications(room_nid, bounds).await? == 0 {
                    break;
                }
            }
        }
        store.release_free_pages().await
    }
}
