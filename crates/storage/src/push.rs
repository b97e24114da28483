//! Which events notified whom, and how many of them are unread. Counts are kept as they change: neither an event nor a
//! receipt scans more of the past than what is unread.

use crate::{Conn, Error, Store, list};

/// How long a notification that was read is listed, in milliseconds.
const KEPT_MS: i64 = 30 * 24 * 3600 * 1000;

/// How many outdated notifications one receipt removes.
const PRUNED_PER_RECEIPT: i64 = 50;

/// The event that notifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifyingEvent {
    /// Its room.
    pub room_id: String,
    /// Its id.
    pub event_id: String,
    /// The root of its thread; empty for the main timeline.
    pub thread_id: String,
    /// Who sent it: what they had not read, they have now.
    pub sender: String,
    /// Where in the stream it is.
    pub position: i64,
    /// When it was received, Unix milliseconds.
    pub ts: i64,
}

/// Users for whom the event has the same result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notified {
    /// The users.
    pub user_ids: Vec<String>,
    /// It counts as a notification.
    pub notify: bool,
    /// It counts as a highlight.
    pub highlight: bool,
    /// The actions of the matching push rule, as JSON text.
    pub actions: String,
}

/// The unread counts of one thread of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadCount {
    /// The room.
    pub room_id: String,
    /// The user.
    pub user_id: String,
    /// The root of the thread; empty for the main timeline.
    pub thread_id: String,
    /// Notifications, highlights among them.
    pub notify: i64,
    /// Highlights.
    pub highlight: i64,
}

/// A notification as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Where in the stream the event is.
    pub position: i64,
    /// The room.
    pub room_id: String,
    /// The event.
    pub event_id: String,
    /// The actions of the rule that matched, as JSON text.
    pub actions: String,
    /// When the event was received, Unix milliseconds.
    pub ts: i64,
    /// Whether a receipt has passed it.
    pub read: bool,
}

type CountRow = (String, String, String, i64, i64);

impl From<CountRow> for UnreadCount {
    fn from((room_id, user_id, thread_id, notify, highlight): CountRow) -> Self {
        Self {
            room_id,
            user_id,
            thread_id,
            notify,
            highlight,
        }
    }
}

type NotificationRow = (i64, String, String, String, i64, bool);

impl From<NotificationRow> for Notification {
    fn from((position, room_id, event_id, actions, ts, read): NotificationRow) -> Self {
        Self {
            position,
            room_id,
            event_id,
            actions,
            ts,
            read,
        }
    }
}

/// Records whom an event notified, within the transaction that stores the event.
///
/// # Errors
/// When the database fails.
pub async fn record_notified(conn: &mut Conn, event: &NotifyingEvent, notified: &[Notified]) -> Result<(), Error> {
    // Spec: client-server API §Marking notifications as read: sending an event is reading up to it.
    execute!(
        conn,
        "UPDATE unread_counts SET notify = 0, highlight = 0, read_position = $4, position = $4
         WHERE room_id = $1 AND user_id = $2 AND thread_id = $3 AND (notify > 0 OR highlight > 0)",
        &event.room_id,
        &event.sender,
        &event.thread_id,
        event.position
    )?;
    for group in notified.iter().filter(|group| !group.user_ids.is_empty()) {
        let users = list(&group.user_ids);
        execute!(
            conn,
            "INSERT INTO push_actions
                 (user_id, room_id, position, event_id, thread_id, notify, highlight, actions, ts)
             SELECT u.*, $2, $3, $4, $5, $6, $7, $8, $9 FROM {TEXT_LIST $1} AS u WHERE true
             ON CONFLICT (user_id, room_id, position) DO NOTHING",
            &users,
            &event.room_id,
            event.position,
            &event.event_id,
            &event.thread_id,
            group.notify,
            group.highlight,
            &group.actions,
            event.ts
        )?;
        execute!(
            conn,
            "INSERT INTO unread_counts (user_id, room_id, thread_id, notify, highlight, read_position, position)
             SELECT u.*, $2, $3, $4, $5, 0, $6 FROM {TEXT_LIST $1} AS u WHERE true
             ON CONFLICT (room_id, user_id, thread_id) DO UPDATE SET
                 notify = unread_counts.notify + excluded.notify,
                 highlight = unread_counts.highlight + excluded.highlight,
                 position = excluded.position",
            &users,
            &event.room_id,
            &event.thread_id,
            i64::from(group.notify),
            i64::from(group.highlight),
            event.position
        )?;
    }
    Ok(())
}

/// What a user has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadUpTo<'a> {
    /// The room.
    pub room_id: &'a str,
    /// The reader.
    pub user_id: &'a str,
    /// The thread (empty for the main timeline), or every thread.
    pub thread_id: Option<&'a str>,
    /// Where in the stream the last event read is.
    pub event_position: i64,
    /// The time, Unix milliseconds.
    pub now_ms: i64,
}

/// Lowers counts to what is above a receipt, within the receipt's transaction and at its position. Answers whether any
/// count moved.
///
/// # Errors
/// When the database fails.
pub async fn mark_read(conn: &mut Conn, read: &ReadUpTo<'_>, position: i64) -> Result<bool, Error> {
    let &ReadUpTo {
        room_id,
        user_id,
        thread_id,
        event_position,
        now_ms,
    } = read;
    execute!(
        conn,
        "DELETE FROM unread_counts
         WHERE room_id = $1 AND user_id = $2 AND thread_id <> '' AND notify = 0 AND highlight = 0 AND position < $3",
        room_id,
        user_id,
        event_position
    )?;
    let moved = execute!(
        conn,
        "UPDATE unread_counts SET
             notify = (SELECT COUNT(*) FROM push_actions p WHERE p.user_id = $2 AND p.room_id = $1
                           AND p.thread_id = unread_counts.thread_id AND p.position > $3 AND p.notify),
             highlight = (SELECT COUNT(*) FROM push_actions p WHERE p.user_id = $2 AND p.room_id = $1
                           AND p.thread_id = unread_counts.thread_id AND p.position > $3 AND p.highlight),
             read_position = $3, position = $4
         WHERE room_id = $1 AND user_id = $2 AND read_position < $3 AND (notify > 0 OR highlight > 0)
             AND ($5 OR thread_id = $6)",
        room_id,
        user_id,
        event_position,
        position,
        thread_id.is_none(),
        thread_id.unwrap_or_default()
    )?;
    execute!(
        conn,
        "DELETE FROM push_actions WHERE user_id = $1 AND room_id = $2 AND ts < $3 AND position <= $4 AND position IN
             (SELECT position FROM push_actions WHERE user_id = $1 AND room_id = $2 ORDER BY position LIMIT $5)",
        user_id,
        room_id,
        now_ms - KEPT_MS,
        event_position,
        PRUNED_PER_RECEIPT
    )?;
    Ok(moved > 0)
}

/// Forgets counts and notifications of a user who left a room, within the transaction of the leave and at its position.
///
/// # Errors
/// When the database fails.
pub async fn forget_room_notifications(
    conn: &mut Conn,
    user_id: &str,
    room_id: &str,
    position: i64,
) -> Result<(), Error> {
    execute!(
        conn,
        "UPDATE unread_counts SET notify = 0, highlight = 0, read_position = $3, position = $3
         WHERE room_id = $1 AND user_id = $2",
        room_id,
        user_id,
        position
    )?;
    execute!(
        conn,
        "DELETE FROM push_actions WHERE room_id = $1 AND user_id = $2",
        room_id,
        user_id
    )
    .map(drop)
}

impl Store {
    /// The counts of a user that are not zero.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unread_counts_of_user(&self, user_id: &str) -> Result<Vec<UnreadCount>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            CountRow,
            "SELECT room_id, user_id, thread_id, notify, highlight FROM unread_counts
             WHERE user_id = $1 AND (notify > 0 OR highlight > 0)",
            user_id
        )?;
        Ok(rows.into_iter().map(UnreadCount::from).collect())
    }

    /// The counts of a room, zero or not, that moved in (`after`, `until`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn unread_counts_of_room(
        &self,
        room_id: &str,
        after: i64,
        until: i64,
    ) -> Result<Vec<UnreadCount>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            CountRow,
            "SELECT room_id, user_id, thread_id, notify, highlight FROM unread_counts
             WHERE room_id = $1 AND position > $2 AND position <= $3",
            room_id,
            after,
            until
        )?;
        Ok(rows.into_iter().map(UnreadCount::from).collect())
    }

    /// A user's notifications below `before`, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn notifications(
        &self,
        user_id: &str,
        before: i64,
        only_highlights: bool,
        limit: i64,
    ) -> Result<Vec<Notification>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            NotificationRow,
            "SELECT p.position, p.room_id, p.event_id, p.actions, p.ts,
                    p.position <= COALESCE((SELECT c.read_position FROM unread_counts c WHERE c.room_id = p.room_id
                        AND c.user_id = p.user_id AND c.thread_id = p.thread_id), p.position) AS read
             FROM push_actions p
             WHERE p.user_id = $1 AND p.position < $2 AND p.notify AND (p.highlight OR NOT $3)
             ORDER BY p.position DESC LIMIT $4",
            user_id,
            before,
            only_highlights,
            limit
        )?;
        Ok(rows.into_iter().map(Notification::from).collect())
    }
}
