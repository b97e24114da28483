//! Listing what notified a user.

use super::Others;
use crate::{Error, Store};

/// Shared rows looked at in one step, of whatever rooms.
const STEP: i64 = 500;
/// Steps of one page: a page of a user whom little notifies may be short, and goes on from where it ends.
const STEPS: usize = 8;

/// A notification as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Where in the stream the event is; its key.
    pub position: i64,
    /// The room.
    pub room_id: String,
    /// The actions of the rule that matched, as JSON text.
    pub actions: String,
    /// When the event was received, Unix milliseconds.
    pub ts: i64,
    /// Whether a receipt has passed it.
    pub read: bool,
}

/// Some of a user's notifications, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotificationPage {
    /// The notifications.
    pub notifications: Vec<Notification>,
    /// Where the next page begins; `None` when there is no more.
    pub next: Option<i64>,
}

/// Position, room, time, result for most, for others, read.
type Shared = (i64, String, i64, bool, bool, String, Vec<u8>, bool);

/// Position, room, time, actions, read.
type Personal = (i64, String, i64, String, bool);

impl Store {
    /// A user's notifications below `before`, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn notifications(
        &self,
        user_id: &str,
        before: i64,
        only_highlights: bool,
        limit: usize,
    ) -> Result<NotificationPage, Error> {
        let (mut found, lowest) = self
            .shared_notifications(user_id, before, only_highlights, limit)
            .await?;
        let mut conn = self.read().await?;
        let personal = fetch_all!(
            &mut conn,
            Personal,
            "SELECT p.position, m.room_id, p.ts, p.actions,
                 r.read_position IS NULL OR p.position <= r.read_position OR p.position <= COALESCE(t.read_position, 0)
             FROM push_personal p
             JOIN rooms m ON m.room_nid = p.room_nid
             LEFT JOIN push_reads r ON r.room_nid = p.room_nid AND r.user_id = $1 AND r.thread_id = '*'
             LEFT JOIN push_reads t ON t.room_nid = p.room_nid AND t.user_id = $1 AND t.thread_id = p.thread_id
             WHERE p.user_id = $1 AND p.position < $2 AND p.position >= $3 AND p.notify AND (p.highlight OR NOT $4)
             ORDER BY p.position DESC LIMIT $5",
            user_id,
            before,
            lowest,
            only_highlights,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )?;
        found.extend(
            personal
                .into_iter()
                .map(|(position, room_id, ts, actions, read)| Notification {
                    position,
                    room_id,
                    actions,
                    ts,
                    read,
                }),
        );
        found.sort_by_key(|notification| std::cmp::Reverse(notification.position));
        let next = match found.get(limit.saturating_sub(1)) {
            Some(last) => Some(last.position),
            None => Some(lowest).filter(|lowest| *lowest > 0),
        };
        found.truncate(limit);
        Ok(NotificationPage {
            notifications: found,
            next,
        })
    }

    /// The shared rows that notify the user, and the lowest position that was looked at: 0 for the end.
    async fn shared_notifications(
        &self,
        user_id: &str,
        mut before: i64,
        only_highlights: bool,
        limit: usize,
    ) -> Result<(Vec<Notification>, i64), Error> {
        let user_nid = self.push_user_nid(user_id).await?;
        let mut conn = self.read().await?;
        let mut found = Vec::new();
        for _ in 0..STEPS {
            let lowest = fetch_optional!(
                &mut conn,
                (i64,),
                "SELECT position FROM push_events WHERE position < $1 ORDER BY position DESC LIMIT 1 OFFSET $2",
                before,
                STEP - 1
            )?;
            let lowest = lowest.map_or(0, |(position,)| position);
            let rows = fetch_all!(
                &mut conn,
                Shared,
                "SELECT e.position, m.room_id, e.ts, e.notify, e.highlight, e.actions, e.others,
                     e.position <= r.read_position OR e.position <= COALESCE(t.read_position, 0)
                 FROM push_events e
                 JOIN push_reads r ON r.room_nid = e.room_nid AND r.user_id = $1 AND r.thread_id = '*'
                     AND e.position > r.joined_position
                 JOIN rooms m ON m.room_nid = e.room_nid
                 LEFT JOIN push_reads t ON t.room_nid = e.room_nid AND t.user_id = $1 AND t.thread_id = e.thread_id
                 WHERE e.position < $2 AND e.position >= $3 AND e.sender <> $1
                     AND NOT EXISTS (SELECT 1 FROM push_personal p WHERE p.user_id = $1 AND p.position = e.position)
                 ORDER BY e.position DESC",
                user_id,
                before,
                lowest
            )?;
            for (position, room_id, ts, notify, highlight, actions, others, read) in rows {
                let others = Others::from_bytes(others);
                let (notify, highlight, actions) = match user_nid.and_then(|nid| others.of(nid)) {
                    Some(other) => (other.notify, other.highlight, other.actions.to_owned()),
                    None => (notify, highlight, actions),
                };
                if notify && (highlight || !only_highlights) {
                    found.push(Notification {
                        position,
                        room_id,
                        actions,
                        ts,
                        read,
                    });
                }
            }
            // Everything from `lowest` on is known.
            before = lowest;
            if lowest == 0 || found.len() >= limit {
                break;
            }
        }
        Ok((found, before))
    }
}
