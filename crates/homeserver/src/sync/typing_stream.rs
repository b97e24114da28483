//! Typing as a stream: a change takes a position, is announced, and is then visible to every reader beyond it.

use std::time::Duration;

use ruma::{RoomId, UserId};
use storage::Error;

use super::{RoomStream, Streams, typing::MAX_TYPING_MS};

impl Streams {
    /// Marks the user as typing for `timeout_ms` (bounded) from now.
    pub(crate) async fn start_typing(&self, room_id: &RoomId, user_id: &UserId, timeout_ms: u64) -> Result<(), Error> {
        let until_ms = self.clock.now_ms().saturating_add(timeout_ms.min(MAX_TYPING_MS));
        let reservation = self.store.reserve(1).await?;
        if self.typing.start(room_id, user_id, until_ms) {
            self.notifier
                .mark_room(room_id, RoomStream::Typing, reservation.first());
        }
        self.typing_started.notify_one();
        Ok(())
    }

    /// Marks the user as no longer typing.
    pub(crate) async fn stop_typing(&self, room_id: &RoomId, user_id: &UserId) -> Result<(), Error> {
        let reservation = self.store.reserve(1).await?;
        if self.typing.stop(room_id, user_id) {
            self.notifier
                .mark_room(room_id, RoomStream::Typing, reservation.first());
        }
        Ok(())
    }

    /// Ends typing that has run out, now.
    pub(crate) async fn expire_typing(&self) -> Result<(), Error> {
        let reservation = self.store.reserve(1).await?;
        for room_id in self.typing.expire(self.clock.now_ms()) {
            self.notifier
                .mark_room(&room_id, RoomStream::Typing, reservation.first());
        }
        Ok(())
    }

    /// Ends typing whenever it runs out, for as long as the future is polled.
    pub(super) async fn run_typing_expiry(&self) {
        loop {
            let started = self.typing_started.notified();
            let Some(next) = self.typing.next_expiry() else {
                started.await;
                continue;
            };
            let wait = Duration::from_millis(next.saturating_sub(self.clock.now_ms()).max(1));
            if tokio::time::timeout(wait, started).await.is_err()
                && self.clock.now_ms() >= next
                && let Err(e) = self.expire_typing().await
            {
                tracing::warn!(error = %e, "typing could not be ended");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
