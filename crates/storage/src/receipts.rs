//! Read receipts: for each room, user, type and thread the last event read. They only move forward.

use crate::{Conn, Error, Store};

/// A receipt. An unthreaded one has an empty `thread_id`, one of the main timeline `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Who has read.
    pub user_id: String,
    /// `m.read` or `m.read.private`.
    pub r#type: String,
    /// The thread it speaks of.
    pub thread_id: String,
    /// The last event read.
    pub event_id: String,
    /// Where in the stream that event is.
    pub event_position: i64,
    /// When it was read, Unix milliseconds.
    pub ts: i64,
    /// Where in the stream the receipt itself is.
    pub position: i64,
}

type Row = (String, String, String, String, i64, i64, i64);

impl From<Row> for Receipt {
    fn from((user_id, r#type, thread_id, event_id, event_position, ts, position): Row) -> Self {
        Self {
            user_id,
            r#type,
            thread_id,
            event_id,
            event_position,
            ts,
            position,
        }
    }
}

/// Sets a receipt at `receipt.position`, within a caller's transaction; answers whether it moved forward.
///
/// # Errors
/// When the database fails.
pub async fn set_receipt(conn: &mut Conn, room_id: &str, receipt: &Receipt) -> Result<bool, Error> {
    let changed = execute!(
        conn,
        "INSERT INTO receipts (room_id, user_id, type, thread_id, event_id, event_position, ts, position)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (room_id, user_id, type, thread_id) DO UPDATE SET
             event_id = excluded.event_id, event_position = excluded.event_position,
             ts = excluded.ts, position = excluded.position
         WHERE receipts.event_position < excluded.event_position",
        room_id,
        &receipt.user_id,
        &receipt.r#type,
        &receipt.thread_id,
        &receipt.event_id,
        receipt.event_position,
        receipt.ts,
        receipt.position
    )?;
    Ok(changed > 0)
}

impl Store {
    /// The receipts of a room set in (`after`, `until`], oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn receipts_of_room(&self, room_id: &str, after: i64, until: i64) -> Result<Vec<Receipt>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            Row,
            "SELECT user_id, type, thread_id, event_id, event_position, ts, position FROM receipts
             WHERE room_id = $1 AND position > $2 AND position <= $3 ORDER BY position",
            room_id,
            after,
            until
        )?;
        Ok(rows.into_iter().map(Receipt::from).collect())
    }

    /// Those of `room_ids` that have a receipt in (`after`, `until`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rooms_with_receipts(&self, room_ids: &[&str], after: i64, until: i64) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rooms = crate::list(room_ids);
        let rows = fetch_all!(
            &mut conn,
            (String,),
            "SELECT DISTINCT room_id FROM receipts
             WHERE room_id IN {TEXT_LIST $1} AND position > $2 AND position <= $3",
            &rooms,
            after,
            until
        )?;
        Ok(rows.into_iter().map(|(room_id,)| room_id).collect())
    }
}
