//! Removing old rows without losing what is unread: their counts are added up for each reader who is behind, and kept
//! with what that reader has read. A reader behind costs one row for each thread, not the history.
//!
//! A receipt below the fold lowers nothing of it, because what it covers is one number; the first receipt above it
//! removes all of it. With as many newer events kept as [`FoldBounds::keep`] says, nobody who reads a room notices.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{EVERY_THREAD, Others, counts::shared_outcome};
use crate::{Conn, Error, Store};

/// What is kept unfolded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldBounds {
    /// The newest events of each room, if they are not too old.
    pub keep: i64,
    /// Older ones than this are folded in any case, Unix milliseconds.
    pub received_after: i64,
    /// Events folded in one transaction, at most; and about as many rows of users.
    pub at_once: i64,
}

/// A shared row: position, thread, sender, result for most, for others.
type Shared = (i64, String, String, bool, bool, Vec<u8>);

/// A personal row: user, position, thread, result.
type Personal = (String, i64, String, bool, bool);

/// A read position: user, thread, read, folded up to, folded counts.
type Read = (String, String, i64, i64, i64, i64);

/// How many rows there are of whom events notified, by room.
#[derive(Debug, Default)]
pub(crate) struct RowsCounted {
    /// Up to this position. Nothing is, before the first time.
    counted: i64,
    by_room: HashMap<i64, i64>,
}

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

    /// Rooms that have something to fold, at most `limit`. Reads what was recorded since it was asked last.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rooms_to_fold(&self, bounds: FoldBounds, limit: usize) -> Result<Vec<i64>, Error> {
        let counted = self.push_rows_counted().lock().counted;
        let mut conn = self.read().await?;
        // `+`: by position, not room after room.
        let gained = fetch_all!(
            &mut conn,
            (i64, i64, i64),
            "SELECT +room_nid, COUNT(*), MAX(position) FROM push_events WHERE position > $1 GROUP BY +room_nid",
            counted
        )?;
        let old = fetch_all!(
            &mut conn,
            (i64,),
            "SELECT room_nid FROM push_events WHERE ts < $1 UNION SELECT room_nid FROM push_personal WHERE ts < $1",
            bounds.received_after
        )?;
        let mut rows = self.push_rows_counted().lock();
        // Whoever else asked meanwhile counted them.
        if rows.counted == counted {
            for (room_nid, gained, newest) in gained {
                *rows.by_room.entry(room_nid).or_default() += gained;
                rows.counted = rows.counted.max(newest);
            }
        }
        let most = bounds.keep.saturating_add(bounds.at_once);
        let many = rows
            .by_room
            .iter()
            .filter(|(_, rows)| **rows > most)
            .map(|(room, _)| *room);
        let rooms: BTreeSet<i64> = many.chain(old.into_iter().map(|(room,)| room)).collect();
        Ok(rooms.into_iter().take(limit).collect())
    }

    /// Folds the oldest events of a room that are out of bounds; answers how many rows are gone. Call again while it
    /// answers more than none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fold_notifications(&self, room_nid: i64, bounds: FoldBounds) -> Result<u64, Error> {
        let nids = self.push_user_map().await?;
        let _alone = self.folding().write().await;
        // What is old stays as it is, so it is added up before the writer's turn; only what was read moves meanwhile.
        let Some((until, rows)) = self.rows_to_fold(room_nid, bounds, &nids).await? else {
            return Ok(0);
        };
        let (shared, personal) = self
            .write::<_, Error, _>(move |tx| {
                Box::pin(async move {
                    for fold in rows.folds(&read_positions(tx, room_nid).await?, until) {
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
                    Ok((shared, personal))
                })
            })
            .await?;
        if let Some(rows) = self.push_rows_counted().lock().by_room.get_mut(&room_nid) {
            *rows = (*rows - i64::try_from(shared).unwrap_or(i64::MAX)).max(0);
        }
        Ok(shared + personal)
    }

    async fn rows_to_fold(
        &self,
        room_nid: i64,
        bounds: FoldBounds,
        nids: &HashMap<String, i64>,
    ) -> Result<Option<(i64, Rows)>, Error> {
        let mut conn = self.read().await?;
        let Some(until) = fold_until(&mut conn, room_nid, bounds).await? else {
            return Ok(None);
        };
        let shared = fetch_all!(
            &mut conn,
            Shared,
            "SELECT position, thread_id, sender, notify, highlight, others FROM push_events
             WHERE room_nid = $1 AND position <= $2 ORDER BY position",
            room_nid,
            until
        )?;
        let personal = fetch_all!(
            &mut conn,
            Personal,
            "SELECT user_id, position, thread_id, notify, highlight FROM push_personal
             WHERE room_nid = $1 AND position <= $2",
            room_nid,
            until
        )?;
        Ok(Some((until, Rows::new(shared, personal, nids))))
    }
}

/// The last position to fold now; `None` when everything is within bounds.
async fn fold_until(conn: &mut Conn, room_nid: i64, bounds: FoldBounds) -> Result<Option<i64>, Error> {
    let beyond = fetch_optional!(
        conn,
        (i64,),
        "SELECT position FROM push_events WHERE room_nid = $1 ORDER BY position DESC LIMIT 1 OFFSET $2",
        room_nid,
        bounds.keep
    )?;
    let old = fetch_optional!(
        conn,
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
    // As many of one kind as of the other.
    let bound = fetch_optional!(
        conn,
        (Option<i64>,),
        "SELECT MIN(position) FROM (
             SELECT position FROM (SELECT position FROM push_events WHERE room_nid = $1
                 ORDER BY position LIMIT 1 OFFSET $2) AS shared
             UNION ALL SELECT position FROM (SELECT position FROM push_personal WHERE room_nid = $1
                 ORDER BY position LIMIT 1 OFFSET $2) AS personal) AS bounds",
        room_nid,
        bounds.at_once - 1
    )?;
    let bound = bound.and_then(|(position,)| position);
    Ok(Some(bound.map_or(wanted, |bound| wanted.min(bound))))
}

async fn read_positions(tx: &mut Conn, room_nid: i64) -> Result<Vec<Read>, Error> {
    fetch_all!(
        tx,
        Read,
        "SELECT user_id, thread_id, read_position, folded_position, folded_notify, folded_highlight FROM push_reads
         WHERE room_nid = $1",
        room_nid
    )
}

/// What a reader has unread at or below the fold.
struct Fold {
    user_id: String,
    thread_id: String,
    notify: i64,
    highlight: i64,
}

/// Notifications and highlights.
type Sum = (i64, i64);

/// A personal row at a position: user, thread, whether it notifies and highlights.
type Own = (String, String, (bool, bool));

fn as_sum((notify, highlight): (bool, bool)) -> Sum {
    (i64::from(notify), i64::from(highlight))
}

/// The rows to fold, added up so that a reader costs no look at each: what they mean to most, and for whoever it
/// is not right (the sender, the others, who has a row) what it is off by.
#[derive(Default)]
struct Rows {
    /// By thread: positions, rising, with the sum up to and with each.
    most: BTreeMap<String, Vec<(i64, Sum)>>,
    /// By user: position, thread, difference.
    off: HashMap<String, Vec<(i64, String, Sum)>>,
}

impl Rows {
    fn new(shared: Vec<Shared>, personal: Vec<Personal>, nids: &HashMap<String, i64>) -> Self {
        let names: HashMap<i64, &str> = nids.iter().map(|(user, nid)| (*nid, user.as_str())).collect();
        let mut own: HashMap<i64, Vec<Own>> = HashMap::new();
        for (user, position, thread, notify, highlight) in personal {
            own.entry(position)
                .or_default()
                .push((user, thread, (notify, highlight)));
        }
        let mut rows = Self::default();
        for (position, thread, sender, notify, highlight, others) in shared {
            let base = (notify, highlight);
            let others = Others::from_bytes(others);
            let sums = rows.most.entry(thread.clone()).or_default();
            let before = sums.last().map_or((0, 0), |(_, sum)| *sum);
            let sum = as_sum(base);
            sums.push((position, (before.0 + sum.0, before.1 + sum.1)));
            others.each(|nid, other| {
                if let Some(user) = names.get(&nid) {
                    rows.differ(user, position, &thread, as_sum(base), as_sum(other));
                }
            });
            let mut takes_no_part = |user: &str| {
                let outcome = shared_outcome(base, &others, nids.get(user).copied());
                rows.differ(user, position, &thread, as_sum(outcome), (0, 0));
            };
            takes_no_part(&sender);
            for (user, ..) in own
                .get(&position)
                .into_iter()
                .flatten()
                .filter(|(user, ..)| *user != sender)
            {
                takes_no_part(user);
            }
        }
        for (position, own) in own {
            for (user, thread, outcome) in own {
                rows.differ(&user, position, &thread, (0, 0), as_sum(outcome));
            }
        }
        rows
    }

    fn differ(&mut self, user: &str, position: i64, thread: &str, from: Sum, to: Sum) {
        if from != to {
            let off = self.off.entry(user.to_owned()).or_default();
            off.push((position, thread.to_owned(), (to.0 - from.0, to.1 - from.1)));
        }
    }

    /// What is unread in these rows, which go up to `until`, and what was folded before.
    fn folds(&self, reads: &[Read], until: i64) -> Vec<Fold> {
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
            let read_of = |thread: &str| threads.get(thread).map_or(*read, |(_, _, of_it, ..)| *read.max(of_it));
            let mut sums: HashMap<&str, Sum> = HashMap::new();
            let mut add = |thread, (notify, highlight): Sum| {
                let sum = sums.entry(thread).or_default();
                sum.0 += notify;
                sum.1 += highlight;
            };
            for (thread, most) in &self.most {
                let read = read_of(thread);
                let seen = most.partition_point(|(position, _)| *position <= read);
                let seen = seen.checked_sub(1).map_or((0, 0), |last| most[last].1);
                let all = most.last().map_or((0, 0), |(_, sum)| *sum);
                add(thread, (all.0 - seen.0, all.1 - seen.1));
            }
            for (position, thread, difference) in self.off.get(user_id).into_iter().flatten() {
                if *position > read_of(thread) {
                    add(thread, *difference);
                }
            }
            for (thread, (notify, highlight)) in sums {
                if notify == 0 && highlight == 0 {
                    continue;
                }
                // Folded before and still unread.
                let former = threads
                    .get(thread)
                    .filter(|(_, _, _, folded, ..)| *folded > read_of(thread))
                    .map_or((0, 0), |(.., notify, highlight)| (*notify, *highlight));
                folds.push(Fold {
                    user_id: user_id.clone(),
                    thread_id: thread.to_owned(),
                    notify: notify + former.0,
                    highlight: highlight + former.1,
                });
            }
        }
        folds
    }
}
