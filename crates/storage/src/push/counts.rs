//! What is unread, from the rows above what was read.

use std::collections::HashMap;

use super::{EVERY_THREAD, Others};
use crate::{Conn, Error, Store, list};

/// The unread counts of one thread of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadCount {
    /// The key of the room.
    pub room_nid: i64,
    /// The root of the thread; empty for the main timeline.
    pub thread_id: String,
    /// Notifications, highlights among them.
    pub notify: i64,
    /// Highlights.
    pub highlight: i64,
}

/// Events of a room that mean the same to everybody: thread, result for most, for others, how many.
type Alike = (i64, String, bool, bool, Vec<u8>, i64);

/// An event with a result of the user's own, and the shared one it takes the place of.
type Personal = (i64, String, bool, bool, Option<bool>, Option<bool>, Option<Vec<u8>>);

/// A row of `push_reads`: room, thread, read, folded up to, folded notifications and highlights.
type Read = (i64, String, i64, i64, i64, i64);

#[derive(Default)]
struct Sums(HashMap<(i64, String), (i64, i64)>);

impl Sums {
    fn add(&mut self, room_nid: i64, thread_id: String, (notify, highlight): (bool, bool), times: i64) {
        if notify || highlight {
            let sum = self.0.entry((room_nid, thread_id)).or_default();
            sum.0 += i64::from(notify) * times;
            sum.1 += i64::from(highlight) * times;
        }
    }
}

/// What an event's shared row says of a user.
pub(super) fn shared_outcome(base: (bool, bool), others: &Others, user_nid: Option<i64>) -> (bool, bool) {
    match user_nid.and_then(|nid| others.of(nid)) {
        Some(other) => (other.notify, other.highlight),
        None => base,
    }
}

impl Store {
    /// The counts of a user in `rooms`, those that are not zero, of the events at or below `until`. What the user read
    /// since may already be taken off.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unread_counts(&self, user_id: &str, rooms: &[i64], until: i64) -> Result<Vec<UnreadCount>, Error> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let user_nid = self.push_user_nid(user_id).await?;
        // Folding moves counts from one table to another: not between two of these statements.
        let _whole = self.folding().read().await;
        let mut conn = self.read().await?;
        let rooms = list(rooms);
        let mut sums = Sums::default();
        self.add_folded(&mut conn, (user_id, &rooms), &mut sums).await?;
        let alike = fetch_all!(
            &mut conn,
            Alike,
            // Whoever reads the main timeline alone is behind in the room for good: its own position bounds what is looked at.
            "SELECT e.room_nid, e.thread_id, e.notify, e.highlight, e.others, COUNT(*)
             FROM push_reads r
             LEFT JOIN push_reads t ON t.room_nid = r.room_nid AND t.user_id = $1 AND t.thread_id = ''
             JOIN push_events e ON e.room_nid = r.room_nid AND e.position <= $3 AND e.position >
                 CASE WHEN t.read_position > r.read_position THEN t.read_position ELSE r.read_position END
             WHERE r.room_nid IN {INT_LIST $2} AND r.user_id = $1 AND r.thread_id = '*'
                 AND e.sender <> $1 AND e.thread_id = ''
             GROUP BY e.room_nid, e.thread_id, e.notify, e.highlight, e.others
             UNION ALL
             SELECT e.room_nid, e.thread_id, e.notify, e.highlight, e.others, COUNT(*)
             FROM push_reads r
             JOIN push_events e {INDEXED_BY push_events_in_threads}
                 ON e.room_nid = r.room_nid AND e.position > r.read_position AND e.position <= $3
             LEFT JOIN push_reads t ON t.room_nid = e.room_nid AND t.user_id = $1 AND t.thread_id = e.thread_id
             WHERE r.room_nid IN {INT_LIST $2} AND r.user_id = $1 AND r.thread_id = '*'
                 AND e.sender <> $1 AND e.thread_id <> '' AND e.position > COALESCE(t.read_position, 0)
             GROUP BY e.room_nid, e.thread_id, e.notify, e.highlight, e.others",
            user_id,
            &rooms,
            until
        )?;
        for (room_nid, thread_id, notify, highlight, others, times) in alike {
            let outcome = shared_outcome((notify, highlight), &Others::from_bytes(others), user_nid);
            sums.add(room_nid, thread_id, outcome, times);
        }
        let personal = fetch_all!(
            &mut conn,
            Personal,
            "SELECT p.room_nid, p.thread_id, p.notify, p.highlight, e.notify, e.highlight, e.others
             FROM push_reads r
             JOIN push_personal p ON p.user_id = $1 AND p.room_nid = r.room_nid AND p.position > r.read_position
                 AND p.position <= $3
             LEFT JOIN push_reads t ON t.room_nid = p.room_nid AND t.user_id = $1 AND t.thread_id = p.thread_id
             LEFT JOIN push_events e ON e.room_nid = p.room_nid AND e.position = p.position
             WHERE r.room_nid IN {INT_LIST $2} AND r.user_id = $1 AND r.thread_id = '*'
                 AND p.position > COALESCE(t.read_position, 0)",
            user_id,
            &rooms,
            until
        )?;
        for (room_nid, thread_id, notify, highlight, base_notify, base_highlight, others) in personal {
            if let (Some(base_notify), Some(base_highlight), Some(others)) = (base_notify, base_highlight, others) {
                let others = Others::from_bytes(others);
                let shared = shared_outcome((base_notify, base_highlight), &others, user_nid);
                sums.add(room_nid, thread_id.clone(), shared, -1);
            }
            sums.add(room_nid, thread_id, (notify, highlight), 1);
        }
        let counts = sums
            .0
            .into_iter()
            .filter(|(_, (notify, highlight))| *notify > 0 || *highlight > 0);
        Ok(counts
            .map(|((room_nid, thread_id), (notify, highlight))| UnreadCount {
                room_nid,
                thread_id,
                notify,
                highlight,
            })
            .collect())
    }

    async fn add_folded(&self, conn: &mut Conn, (user_id, rooms): (&str, &str), sums: &mut Sums) -> Result<(), Error> {
        let reads = fetch_all!(
            conn,
            Read,
            "SELECT room_nid, thread_id, read_position, folded_position, folded_notify, folded_highlight FROM push_reads
             WHERE room_nid IN {INT_LIST $2} AND user_id = $1
                 AND (thread_id = '*' OR folded_notify > 0 OR folded_highlight > 0)",
            user_id,
            rooms
        )?;
        let of_all: HashMap<i64, i64> = reads
            .iter()
            .filter(|(_, thread_id, ..)| thread_id == EVERY_THREAD)
            .map(|(room_nid, _, read, ..)| (*room_nid, *read))
            .collect();
        for (room_nid, thread_id, read, folded, notify, highlight) in reads {
            let read = read.max(of_all.get(&room_nid).copied().unwrap_or(i64::MAX));
            if thread_id != EVERY_THREAD && read < folded {
                let sum = sums.0.entry((room_nid, thread_id)).or_default();
                sum.0 += notify;
                sum.1 += highlight;
            }
        }
        Ok(())
    }
}
