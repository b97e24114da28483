//! What calls must remember over a restart: delayed events and whom the SFU was told to let in.

use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

use crate::{Error, Store};

/// A delayed event as it was scheduled. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DelayedEvent {
    /// What the client names it by.
    pub delay_id: String,
    /// Who sends it.
    pub user_id: String,
    /// The session that scheduled it.
    pub device_id: String,
    /// Where it will be sent.
    pub room_id: String,
    /// Its type.
    pub event_type: String,
    /// Its state key; `None` for a message event.
    pub state_key: Option<String>,
    /// Its content, as JSON.
    pub content: String,
    /// How long it waits.
    pub delay_ms: i64,
    /// When it began to wait.
    pub running_since: i64,
    /// The SFU room and identity it watches, when the leave is delegated.
    pub delegated_room: Option<String>,
    /// See `delegated_room`.
    pub delegated_identity: Option<String>,
    /// The stream position when it was scheduled: writes up to there came before it.
    pub scheduled_position: i64,
}

/// What became of a delayed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finalised {
    /// Which one.
    pub delay_id: String,
    /// `send` or `cancel`.
    pub outcome: String,
    /// `delay`, `action` or `error`.
    pub reason: String,
    /// The event that was sent.
    pub event_id: Option<String>,
    /// Why it could not be sent, as the JSON of a Matrix error.
    pub error: Option<String>,
    /// When.
    pub finalised_at: i64,
}

/// Whom the SFU was told to let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SfuGrant {
    /// The SFU's name of the call.
    pub sfu_room: String,
    /// The participant's identity there.
    pub identity: String,
    /// The Matrix room.
    pub room_id: String,
    /// The user.
    pub user_id: String,
    /// The device.
    pub device_id: String,
    /// When it ends; a session under way may outlast it.
    pub expires_at: i64,
}

/// Reads a struct from the columns of its fields' names, with either engine.
macro_rules! from_row {
    ($row:ident { $($field:ident),* $(,)? }) => {
        impl<'r, R> FromRow<'r, R> for $row
        where
            R: Row,
            &'static str: ColumnIndex<R>,
            String: Decode<'r, R::Database> + Type<R::Database>,
            Option<String>: Decode<'r, R::Database> + Type<R::Database>,
            i64: Decode<'r, R::Database> + Type<R::Database>,
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: row.try_get(stringify!($field))?),* })
            }
        }
    };
}
from_row!(DelayedEvent {
    delay_id,
    user_id,
    device_id,
    room_id,
    event_type,
    state_key,
    content,
    delay_ms,
    running_since,
    delegated_room,
    delegated_identity,
    scheduled_position,
});
from_row!(Finalised {
    delay_id,
    outcome,
    reason,
    event_id,
    error,
    finalised_at
});
from_row!(SfuGrant {
    sfu_room,
    identity,
    room_id,
    user_id,
    device_id,
    expires_at
});

/// Scheduling was refused.
#[derive(Debug)]
pub enum ScheduleError {
    /// The user has as many scheduled events as allowed.
    TooMany,
    /// The database failed.
    Storage(Error),
}

impl From<Error> for ScheduleError {
    fn from(e: Error) -> Self {
        Self::Storage(e)
    }
}

impl Store {
    /// Schedules `event`; answers its `delay_id`, or that of the earlier one when the same request was made before.
    ///
    /// # Errors
    /// When the user has `max_scheduled` events waiting, or the database fails.
    pub async fn schedule_delayed_event(
        &self,
        event: DelayedEvent,
        transaction_key: Option<String>,
        max_scheduled: i64,
    ) -> Result<String, ScheduleError> {
        self.write(move |tx| {
            Box::pin(async move {
                if let Some(key) = &transaction_key {
                    let earlier = fetch_optional!(
                        tx,
                        (String,),
                        "SELECT delay_id FROM delayed_events WHERE transaction_key = $1",
                        key
                    )?;
                    if let Some((delay_id,)) = earlier {
                        return Ok(delay_id);
                    }
                }
                let waiting = fetch_optional!(
                    tx,
                    (i64,),
                    "SELECT COUNT(*) FROM delayed_events WHERE user_id = $1 AND outcome IS NULL",
                    &event.user_id
                )?;
                if waiting.is_some_and(|(n,)| n >= max_scheduled) {
                    return Err(ScheduleError::TooMany);
                }
                execute!(
                    tx,
                    "INSERT INTO delayed_events (delay_id, user_id, device_id, room_id, event_type, state_key, content,
                         delay_ms, running_since, transaction_key, scheduled_position)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                    &event.delay_id,
                    &event.user_id,
                    &event.device_id,
                    &event.room_id,
                    &event.event_type,
                    event.state_key.as_deref(),
                    &event.content,
                    event.delay_ms,
                    event.running_since,
                    transaction_key.as_deref(),
                    event.scheduled_position
                )?;
                Ok(event.delay_id)
            })
        })
        .await
    }

    /// Every event that waits, of everybody.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn scheduled_delayed_events(&self) -> Result<Vec<DelayedEvent>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            DelayedEvent,
            "SELECT delay_id, user_id, device_id, room_id, event_type, state_key, content, delay_ms, running_since,
                 delegated_room, delegated_identity, scheduled_position
             FROM delayed_events WHERE outcome IS NULL"
        )
    }

    /// One delayed event, with what became of it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delayed_event(&self, delay_id: &str) -> Result<Option<(DelayedEvent, Option<Finalised>)>, Error> {
        let mut conn = self.read().await?;
        let event = fetch_optional!(
            &mut conn,
            DelayedEvent,
            "SELECT delay_id, user_id, device_id, room_id, event_type, state_key, content, delay_ms, running_since,
                 delegated_room, delegated_identity, scheduled_position
             FROM delayed_events WHERE delay_id = $1",
            delay_id
        )?;
        let Some(event) = event else { return Ok(None) };
        let finalised = fetch_optional!(
            &mut conn,
            Finalised,
            "SELECT delay_id, outcome, reason, event_id, error, finalised_at
             FROM delayed_events WHERE delay_id = $1 AND outcome IS NOT NULL",
            delay_id
        )?;
        Ok(Some((event, finalised)))
    }

    /// A user's delayed events, the oldest first: those that wait, and what became of at most `limit` others.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delayed_events_of(
        &self,
        user_id: &str,
        limit: i64,
    ) -> Result<(Vec<DelayedEvent>, Vec<(DelayedEvent, Finalised)>), Error> {
        let mut conn = self.read().await?;
        let waiting = fetch_all!(
            &mut conn,
            DelayedEvent,
            "SELECT delay_id, user_id, device_id, room_id, event_type, state_key, content, delay_ms, running_since,
                 delegated_room, delegated_identity, scheduled_position
             FROM delayed_events WHERE user_id = $1 AND outcome IS NULL ORDER BY running_since, delay_id",
            user_id
        )?;
        let ended = fetch_all!(
            &mut conn,
            DelayedEvent,
            "SELECT delay_id, user_id, device_id, room_id, event_type, state_key, content, delay_ms, running_since,
                 delegated_room, delegated_identity, scheduled_position
             FROM delayed_events WHERE user_id = $1 AND outcome IS NOT NULL ORDER BY finalised_at DESC, delay_id LIMIT $2",
            user_id,
            limit
        )?;
        let outcomes = fetch_all!(
            &mut conn,
            Finalised,
            "SELECT delay_id, outcome, reason, event_id, error, finalised_at
             FROM delayed_events WHERE user_id = $1 AND outcome IS NOT NULL ORDER BY finalised_at DESC, delay_id LIMIT $2",
            user_id,
            limit
        )?;
        // Two statements may see different moments: only what both know is answered.
        let ended = ended
            .into_iter()
            .filter_map(|event| {
                let outcome = outcomes.iter().find(|o| o.delay_id == event.delay_id)?.clone();
                Some((event, outcome))
            })
            .collect();
        Ok((waiting, ended))
    }

    /// Lets the delay run anew from `now`. `false` when it waits no more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn restart_delayed_event(&self, delay_id: String, now: i64) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "UPDATE delayed_events SET running_since = $2 WHERE delay_id = $1 AND outcome IS NULL",
                    &delay_id,
                    now
                )
                .map(|rows| rows > 0)
            })
        })
        .await
    }

    /// Ties a waiting event to an SFU participant. `false` when it is not the user's, or waits no more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delegate_delayed_event(
        &self,
        delay_id: String,
        user_id: String,
        sfu_room: String,
        identity: String,
    ) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "UPDATE delayed_events SET delegated_room = $3, delegated_identity = $4
                     WHERE delay_id = $1 AND user_id = $2 AND outcome IS NULL",
                    &delay_id,
                    &user_id,
                    &sfu_room,
                    &identity
                )
                .map(|rows| rows > 0)
            })
        })
        .await
    }

    /// Records what became of a waiting event. `false` when somebody else did so first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finalise_delayed_event(&self, outcome: Finalised) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "UPDATE delayed_events SET outcome = $2, reason = $3, event_id = $4, error = $5, finalised_at = $6
                     WHERE delay_id = $1 AND outcome IS NULL",
                    &outcome.delay_id,
                    &outcome.outcome,
                    &outcome.reason,
                    outcome.event_id.as_deref(),
                    outcome.error.as_deref(),
                    outcome.finalised_at
                )
                .map(|rows| rows > 0)
            })
        })
        .await
    }

    /// Forgets what became of events before `before` (Unix milliseconds), and grants and revocations that ended before
    /// then.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_old_calls(&self, before: i64) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "DELETE FROM delayed_events WHERE outcome IS NOT NULL AND finalised_at < $1",
                    before
                )?;
                execute!(tx, "DELETE FROM sfu_grants WHERE expires_at < $1", before)?;
                execute!(tx, "DELETE FROM relay_revocations WHERE until < $1", before / 1000)?;
                Ok(())
            })
        })
        .await
    }

    /// Users whose TURN credentials are refused, with until when (Unix seconds), where that is after `now`. Who loses
    /// the last device is one of them: see [`Store::delete_devices`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn relay_revocations(&self, now: i64) -> Result<Vec<(String, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, i64),
            "SELECT user_id, until FROM relay_revocations WHERE until > $1 ORDER BY until",
            now
        )
    }

    /// Remembers whom the SFU was told to let in.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_sfu_grant(&self, grant: SfuGrant) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO sfu_grants (sfu_room, identity, room_id, user_id, device_id, expires_at)
                     VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (sfu_room, identity) DO UPDATE SET expires_at = excluded.expires_at",
                    &grant.sfu_room,
                    &grant.identity,
                    &grant.room_id,
                    &grant.user_id,
                    &grant.device_id,
                    grant.expires_at
                )
                .map(drop)
            })
        })
        .await
    }

    /// Every grant that is remembered.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sfu_grants(&self) -> Result<Vec<SfuGrant>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            SfuGrant,
            "SELECT sfu_room, identity, room_id, user_id, device_id, expires_at FROM sfu_grants"
        )
    }
}
