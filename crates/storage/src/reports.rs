//! What users reported to the administrators of this server.

use crate::{Error, Store};

/// A report to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReport {
    /// Who reports.
    pub reporter: String,
    /// The room that is reported, or that the event is in.
    pub room_id: Option<String>,
    /// The event that is reported.
    pub event_id: Option<String>,
    /// The user who is reported, or who sent the event.
    pub user_id: Option<String>,
    /// Why, for people.
    pub reason: String,
    /// From -100 (most offensive) to 0.
    pub score: Option<i64>,
    /// Unix milliseconds.
    pub reported_at: i64,
}

/// A report that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its number.
    pub number: i64,
    /// See [`NewReport`].
    pub reporter: String,
    /// See [`NewReport`].
    pub room_id: Option<String>,
    /// See [`NewReport`].
    pub event_id: Option<String>,
    /// See [`NewReport`].
    pub user_id: Option<String>,
    /// See [`NewReport`].
    pub reason: String,
    /// See [`NewReport`].
    pub score: Option<i64>,
    /// See [`NewReport`].
    pub reported_at: i64,
}
from_row!(Report {
    number,
    reporter,
    room_id,
    event_id,
    user_id,
    reason,
    score,
    reported_at
});

impl Store {
    /// Keeps a report and answers its number.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_report(&self, report: NewReport) -> Result<i64, Error> {
        self.write_at(1, move |tx, number| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO reports (number, reporter, room_id, event_id, user_id, reason, score, reported_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                    number,
                    &report.reporter,
                    &report.room_id,
                    &report.event_id,
                    &report.user_id,
                    &report.reason,
                    report.score,
                    report.reported_at
                )?;
                Ok(number)
            })
        })
        .await
    }

    /// At most `limit` reports below a number, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reports(&self, before: i64, limit: i64) -> Result<Vec<Report>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            Report,
            "SELECT number, reporter, room_id, event_id, user_id, reason, score, reported_at
             FROM reports WHERE number < $1 ORDER BY number DESC LIMIT $2",
            before,
            limit
        )
    }
}
