//! Removing old rows without losing what is unread: their counts are added up for each reader who is behind, and kept
//! with what that reader has read. A reader behind costs one row for each thread, not the history.
//!
//! A receipt below the fold lowers nothing of it, because what it covers is one number; the first receipt above it
//! removes all of it. With as many newer events kept as [`FoldBounds::keep`] says, nobody who reads a room notices.

use std::collections::HashMap;

use super::{EVERY_THREAD, Others, counts::shared_outcome};
use crate::{Conn, Error, Store};

/// What is kept unfolded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldBounds {
    /// The newest events of each room, if they are not too old.
    pub keep: i64,
    /// Older ones than this are folded in any case, Unix milliseconds.
    pub received_after: i64,
    /// Events folded in one transaction, at most.
    pub at_once: i64,
}

/// A shared row: position, thread, sender, result for most, for others.
type Shared = (i64, String, String, bool, bool, Vec<u8>);

/// A personal row: user, position, thread, result.
type Personal = (String, i64, String, bool, bool);

/// A read position: user, thread, read, folded up to, folded counts.
type Read = (String, String, i64, i64, i64, i64);

impl Store {
    /// How many rows are kept of whom events notified, for tests and metrics. Reads all of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn push_rows(&self) -> Result<i64, Error> {
        let mut conn = self.read().await?;
        let count = fetch_optional!(
            &mut conn,
            (i64,),
            "SELECT (SELECT COUNT(*) FROM push_events) + (SELECT COUNT(*) FROM push_personal)"
        )?;
        Ok(count.map_or(0, |(rows,)| rows))
    }

    /// Rooms that have something to fold, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rooms_to_fold(&self, bounds: FoldBounds, limit: i64) -> Result<Vec<i64>, Error> {
        let mut conn = self.read().await?;
        let rooms = fetch_all!(
            &mut conn,
            (i64,),
            "SELECT room_nid FROM push_events GROUP BY room_nid HAVING COUNT(*) > $1 OR MIN(ts) < $2
             UNION SELECT room_nid FROM push_personal WHERE ts < $2 LIMIT $3",
            bounds.keep.saturating_add(bounds.at_once),
            bounds.received_after,
            limit
        )?;
        Ok(rooms.into_iter().map(|(room_nid,)| room_nid).collect())
    }

    /// Folds the oldest events of a room that are out of bounds; answers how many rows are gone. Call again while it
    /// answers more than none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fold_notifications(&self, room_nid: i64, bounds: FoldBounds) -> Result<u64, Error> {
        let nids = self.push_user_map().await?;
        let _alone = self.folding().write().await;
        self.write(move |tx| {
            Box::pin(async move {
                let Some(until) = fold_until(tx, room_nid, bounds).await? else {
                    return Ok(0);
                };
                for fold in folds(tx, room_nid, until, &nids).await? {
                    execute!(
                        tx,
                        "INSERT INTO push_reads (room_nid, user_id, thread_id, joined_position, read_position,
                             folded_position, folded_notify, folded_highlight)
                         SELECT room_nid, user_id, $3, joined_position, 0, $4, $5, $6 FROM push_reads
                         WHERE room_nid = $1 AND user_id = $2 AND thread_id = '*'
                         ON CONFLICT (room_nid, user_id, thread_id) DO UPDATE SET
                             folded_position = excluded.folded_position, folded_notify = excluded.folded_notify,
                             folded_highlight = excluded.folded_highlight",
                        room_nid,
                        &fold.user_id,
                        &fold.thread_id,
                        until,
                        fold.notify,
                        fold.highlight
                    )?;
                }
                // What was read of a thread says nothing of the rows that stay.
                execute!(
                    tx,
                    "DELETE FROM push_reads WHERE room_nid = $1 AND thread_id <> '*' AND read_position <= $2
                         AND (folded_notify = 0 AND folded_highlight = 0 OR folded_position <= read_position)",
                    room_nid,
                    until
                )?;
                let shared = execute!(
                    tx,
                    "DELETE FROM push_events WHERE room_nid = $1 AND position <= $2",
                    room_nid,
                    until
                )?;
                let personal = execute!(
                    tx,
                    "DELETE FROM push_personal WHERE room_nid = $1 AND position <= $2",
                    room_nid,
                    until
                )?;
                Ok(shared + personal)
            })
        })
        .await
    }
}

/// The last position to fold now; `None` when everything is within bounds.
async fn fold_until(tx: &mut Conn, room_nid: i64, bounds: FoldBounds) -> Result<Option<i64>, Error> {
    let beyond = fetch_optional!(
        tx,
        (i64,),
        "SELECT position FROM push_events WHERE room_nid = $1 ORDER BY position DESC LIMIT 1 OFFSET $2",
        room_nid,
        bounds.keep
    )?;
    let old = fetch_optional!(
        tx,
        (Option<i64>,),
        "SELECT MAX(position) FROM (
             SELECT position FROM push_events WHERE room_nid = $1 AND ts < $2
             UNION ALL SELECT position FROM push_personal WHERE room_nid = $1 AND ts < $2) AS old",
        room_nid,
        bounds.received_after
    )?;
    let wanted = beyond
        .map(|(position,)| position)
        .max(old.and_then(|(position,)| position));
    let Some(wanted) = wanted else { return Ok(None) };
    let bound = fetch_optional!(
        tx,
        (i64,),
        "SELECT position FROM push_events WHERE room_nid = $1 ORDER BY position LIMIT 1 OFFSET $2",
        room_nid,
        bounds.at_once - 1
    )?;
    Ok(Some(bound.map_or(wanted, |(bound,)| wanted.min(bound))))
}

/// What a reader has unread at or below the fold.
struct Fold {
    user_id: String,
    thread_id: String,
    notify: i64,
    highlight: i64,
}

/// Adds up what is unread in the rows up to `until`, and what was folded before.
async fn folds(tx: &mut Conn, room_nid: i64, until: i64, nids: &HashMap<String, i64>) -> Result<Vec<Fold>, Error> {
    let reads = fetch_all!(
        tx,
        Read,
        "SELECT user_id, thread_id, read_position, folded_position, folded_notify, folded_highlight FROM push_reads
         WHERE room_nid = $1",
        room_nid
    )?;
    let shared = fetch_all!(
        tx,
        Shared,
        "SELECT position, thread_id, sender, notify, highlight, others FROM push_events
         WHERE room_nid = $1 AND position <= $2 ORDER BY position",
        room_nid,
        until
    )?;
    let shared: Vec<_> = shared
        .into_iter()
        .map(|(position, thread, sender, notify, highlight, others)| {
            (
                position,
                thread,
                sender,
                (notify, highlight),
                Others::from_bytes(others),
            )
        })
        .collect();
    let mut personal: HashMap<String, HashMap<i64, (String, bool, bool)>> = HashMap::new();
    for (user_id, position, thread_id, notify, highlight) in fetch_all!(
        tx,
        Personal,
        "SELECT user_id, position, thread_id, notify, highlight FROM push_personal
         WHERE room_nid = $1 AND position <= $2",
        room_nid,
        until
    )? {
        let rows = personal.entry(user_id).or_default();
        rows.insert(position, (thread_id, notify, highlight));
    }
    let mut of_threads: HashMap<&str, HashMap<&str, &Read>> = HashMap::new();
    for read in reads.iter().filter(|(_, thread_id, ..)| thread_id != EVERY_THREAD) {
        of_threads.entry(&read.0).or_default().insert(&read.1, read);
    }
    let mut folds = Vec::new();
    for (user_id, _, read, ..) in reads.iter().filter(|(_, thread_id, ..)| thread_id == EVERY_THREAD) {
        if *read >= until {
            continue;
        }
        let threads = of_threads.remove(user_id.as_str()).unwrap_or_default();
        let is_read = |thread: &str, position: i64| {
            position <= *read || threads.get(thread).is_some_and(|(_, _, read, ..)| position <= *read)
        };
        let nid = nids.get(user_id).copied();
        let own = personal.get(user_id);
        let mut sums: HashMap<&str, (i64, i64)> = HashMap::new();
        let mut add = |thread, (notify, highlight): (bool, bool)| {
            let sum = sums.entry(thread).or_default();
            sum.0 += i64::from(notify);
            sum.1 += i64::from(highlight);
        };
        for (position, thread, sender, base, others) in shared.iter().rev() {
            if position <= read {
                break;
            }
            let has_own = own.is_some_and(|own| own.contains_key(position));
            if sender != user_id && !has_own && !is_read(thread, *position) {
                add(thread, shared_outcome(*base, others, nid));
            }
        }
        for (position, (thread, notify, highlight)) in own.into_iter().flatten() {
            if !is_read(thread, *position) {
                add(thread, (*notify, *highlight));
            }
        }
        for (thread, (notify, highlight)) in sums {
            if notify == 0 && highlight == 0 {
                continue;
            }
            // Folded before and still unread.
            let former = threads
                .get(thread)
                .filter(|(_, thread, _, folded, ..)| !is_read(thread, *folded))
                .map_or((0, 0), |(.., notify, highlight)| (*notify, *highlight));
            folds.push(Fold {
                user_id: user_id.clone(),
                thread_id: thread.to_owned(),
                notify: notify + former.0,
                highlight: highlight + former.1,
            });
        }
    }
    Ok(folds)
}
