//! Which events notified whom, and what of it is unread.
//!
//! An event is one row, whoever it notifies: its result for most of the room's members of this server, and the others
//! packed into [`Others`]. The few whom it highlights, or invites, have rows of their own. A member has a row that says
//! since when they are in the room and up to where they have read it, and one for each thread read further than that.
//! Unread counts follow from these; see `counts.rs`. Rows that grew old are added up into what their readers have unread
//! and removed; see `fold.rs`.

mod counts;
mod fold;
mod list;
mod others;
mod users;

pub use counts::UnreadCount;
pub use fold::FoldBounds;
pub(crate) use fold::RowsCounted;
pub use list::{Notification, NotificationPage};
pub use others::{OtherOutcome, Others};
pub(crate) use users::PushUsers;

use crate::{Conn, Error};

/// Stands for every thread in `push_reads.thread_id`; the id of no event.
const EVERY_THREAD: &str = "*";

/// The event that notifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifyingEvent {
    /// The key of its room.
    pub room_nid: i64,
    /// The root of its thread; empty for the main timeline.
    pub thread_id: String,
    /// Who sent it: what they had not read, they have now.
    pub sender: String,
    /// Where in the stream it is.
    pub position: i64,
    /// When it was received, Unix milliseconds.
    pub ts: i64,
    /// The users of this server who are members since, or are none any more: by what the event says, or by what state
    /// resolution made of it.
    pub memberships: Vec<(String, MemberChange)>,
}

/// What a change of membership does to the count of unread notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// The user is joined: from here on events count, if they did not already.
    Joined,
    /// The user is not in the room (any more): counts and notifications of it are forgotten.
    Gone,
}

/// What an event means to a user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// It counts as a notification.
    pub notify: bool,
    /// It counts as a highlight.
    pub highlight: bool,
    /// The actions of the matching push rule, as JSON text.
    pub actions: String,
}

impl Outcome {
    /// Nothing happens.
    pub fn silent() -> Self {
        Self {
            notify: false,
            highlight: false,
            actions: "[]".to_owned(),
        }
    }

    /// Whether it counts in no way.
    pub fn is_silent(&self) -> bool {
        !self.notify && !self.highlight
    }
}

/// Whom an event notifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notified {
    /// What it means to every joined member of this server who is neither the sender nor named below.
    pub base: Outcome,
    /// Members with other results.
    pub others: Others,
    /// The few that have a row of their own, in the room or invited to it.
    pub personal: Vec<(String, Outcome)>,
}

impl Notified {
    /// Nobody.
    pub fn nobody() -> Self {
        Self {
            base: Outcome::silent(),
            others: Others::none(),
            personal: Vec::new(),
        }
    }
}

/// Records whom an event notified, within the transaction that stores the event.
///
/// # Errors
/// When the database fails.
pub async fn record_notified(conn: &mut Conn, event: &NotifyingEvent, notified: &Notified) -> Result<(), Error> {
    let mut sender_begins = false;
    for (user_id, change) in &event.memberships {
        match change {
            MemberChange::Joined => {
                sender_begins |= begin_counting(conn, event, user_id).await? && *user_id == event.sender;
            }
            MemberChange::Gone => forget_notifications(conn, event.room_nid, user_id).await?,
        }
    }
    if !sender_begins {
        // Who sends has read what came before.
        move_read_position(conn, event.room_nid, &event.sender, &event.thread_id, event.position).await?;
    }
    if !notified.base.is_silent() || !notified.others.is_empty() {
        execute!(
            conn,
            "INSERT INTO push_events (room_nid, position, thread_id, sender, notify, highlight, actions, others, ts)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            event.room_nid,
            event.position,
            &event.thread_id,
            &event.sender,
            notified.base.notify,
            notified.base.highlight,
            &notified.base.actions,
            notified.others.as_bytes(),
            event.ts
        )?;
    }
    for (user_id, outcome) in &notified.personal {
        execute!(
            conn,
            "INSERT INTO push_personal (user_id, position, room_nid, thread_id, notify, highlight, actions, ts)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            user_id,
            event.position,
            event.room_nid,
            &event.thread_id,
            outcome.notify,
            outcome.highlight,
            &outcome.actions,
            event.ts
        )?;
    }
    Ok(())
}

/// Answers whether the user was no member before.
async fn begin_counting(conn: &mut Conn, event: &NotifyingEvent, user_id: &str) -> Result<bool, Error> {
    let begun = execute!(
        conn,
        "INSERT INTO push_reads (room_nid, user_id, thread_id, joined_position, read_position)
         VALUES ($1, $2, $3, $4, $4) ON CONFLICT (room_nid, user_id, thread_id) DO NOTHING",
        event.room_nid,
        user_id,
        EVERY_THREAD,
        event.position
    )?;
    Ok(begun > 0)
}

async fn forget_notifications(conn: &mut Conn, room_nid: i64, user_id: &str) -> Result<(), Error> {
    execute!(
        conn,
        "DELETE FROM push_reads WHERE room_nid = $1 AND user_id = $2",
        room_nid,
        user_id
    )?;
    execute!(
        conn,
        "DELETE FROM push_personal WHERE user_id = $2 AND room_nid = $1",
        room_nid,
        user_id
    )
    .map(drop)
}

/// Moves what a member has read forward; answers whether it moved. Who is no member has nothing to read.
async fn move_read_position(
    conn: &mut Conn,
    room_nid: i64,
    user_id: &str,
    thread_id: &str,
    position: i64,
) -> Result<bool, Error> {
    let moved = execute!(
        conn,
        "INSERT INTO push_reads (room_nid, user_id, thread_id, joined_position, read_position)
         SELECT room_nid, user_id, $3, joined_position, $4 FROM push_reads
         WHERE room_nid = $1 AND user_id = $2 AND thread_id = '*' AND read_position < $4
         ON CONFLICT (room_nid, user_id, thread_id) DO UPDATE SET read_position = excluded.read_position
         WHERE push_reads.read_position < excluded.read_position",
        room_nid,
        user_id,
        thread_id,
        position
    )?;
    Ok(moved > 0)
}

/// What a user has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadUpTo<'a> {
    /// The key of the room.
    pub room_nid: i64,
    /// The reader.
    pub user_id: &'a str,
    /// The thread (empty for the main timeline), or every thread.
    pub thread_id: Option<&'a str>,
    /// Where in the stream the last event read is.
    pub event_position: i64,
}

/// Lowers counts to what is above a receipt, within the receipt's transaction. Answers whether any count may have moved.
///
/// # Errors
/// When the database fails.
pub async fn mark_read(conn: &mut Conn, mark: &ReadUpTo<'_>) -> Result<bool, Error> {
    let &ReadUpTo {
        room_nid,
        user_id,
        thread_id,
        event_position,
    } = mark;
    let thread = thread_id.unwrap_or(EVERY_THREAD);
    let reads = fetch_all!(
        conn,
        (String, i64),
        "SELECT thread_id, read_position FROM push_reads
         WHERE room_nid = $1 AND user_id = $2 AND (thread_id = '*' OR thread_id = $3)",
        room_nid,
        user_id,
        thread
    )?;
    let is_member = reads.iter().any(|(thread_id, _)| thread_id == EVERY_THREAD);
    let read = reads.iter().map(|(_, read)| *read).max().unwrap_or_default();
    if !is_member || read >= event_position {
        return Ok(false);
    }
    // Looked at before the position moves: what it passes is what it lowers.
    let passes = passes_unread(conn, mark, read).await?;
    let moved = match thread_id {
        Some(thread_id) => move_read_position(conn, room_nid, user_id, thread_id, event_position).await?,
        None => {
            execute!(
                conn,
                "UPDATE push_reads SET read_position = $4
                 WHERE room_nid = $1 AND user_id = $2 AND thread_id = $3 AND read_position < $4",
                room_nid,
                user_id,
                thread,
                event_position
            )? > 0
        }
    };
    if moved && thread_id.is_none() {
        // What was read of single threads is read anyway now.
        execute!(
            conn,
            "DELETE FROM push_reads WHERE room_nid = $1 AND user_id = $2 AND thread_id <> $3
                 AND read_position <= $4 AND folded_position <= $4",
            room_nid,
            user_id,
            thread,
            event_position
        )?;
    }
    Ok(moved && passes)
}

/// Whether anything unread is between `read`, up to where the thread or the room is read, and the event of `mark`.
async fn passes_unread(conn: &mut Conn, mark: &ReadUpTo<'_>, read: i64) -> Result<bool, Error> {
    let &ReadUpTo {
        room_nid,
        user_id,
        thread_id,
        event_position,
    } = mark;
    let shared = match thread_id {
        None => fetch_optional!(
            conn,
            (i64,),
            "SELECT e.position FROM push_events e
             LEFT JOIN push_reads t ON t.room_nid = $1 AND t.user_id = $2 AND t.thread_id = e.thread_id
             WHERE e.room_nid = $1 AND e.position > $3 AND e.position <= $4 AND e.sender <> $2
                 AND e.position > COALESCE(t.read_position, 0) LIMIT 1",
            room_nid,
            user_id,
            read,
            event_position
        )?,
        Some("") => fetch_optional!(
            conn,
            (i64,),
            "SELECT position FROM push_events
             WHERE room_nid = $1 AND position > $3 AND position <= $4 AND sender <> $2 AND thread_id = '' LIMIT 1",
            room_nid,
            user_id,
            read,
            event_position
        )?,
        Some(thread_id) => fetch_optional!(
            conn,
            (i64,),
            "SELECT position FROM push_events {INDEXED_BY push_events_in_threads}
             WHERE room_nid = $1 AND position > $3 AND position <= $4 AND sender <> $2
                 AND thread_id = $5 AND thread_id <> '' LIMIT 1",
            room_nid,
            user_id,
            read,
            event_position,
            thread_id
        )?,
    };
    if shared.is_some() {
        return Ok(true);
    }
    let own = fetch_optional!(
        conn,
        (i64,),
        "SELECT p.position FROM push_personal p
         LEFT JOIN push_reads t ON t.room_nid = $1 AND t.user_id = $2 AND t.thread_id = p.thread_id
         WHERE p.user_id = $2 AND p.position > $3 AND p.position <= $4 AND p.room_nid = $1
             AND ($5 OR p.thread_id = $6) AND p.position > COALESCE(t.read_position, 0)
         UNION ALL
         SELECT folded_position FROM push_reads
         WHERE room_nid = $1 AND user_id = $2 AND ($5 OR thread_id = $6)
             AND (folded_notify > 0 OR folded_highlight > 0)
             AND folded_position > $3 AND folded_position <= $4 AND folded_position > read_position LIMIT 1",
        room_nid,
        user_id,
        read,
        event_position,
        thread_id.is_none(),
        thread_id.unwrap_or_default()
    )?;
    Ok(own.is_some())
}
