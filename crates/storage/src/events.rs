//! Events as rows: opaque canonical JSON with the few columns that are queried.

use crate::{Conn, Error, Store, list};

/// An event as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Key of the event: its stream position.
    pub event_nid: i64,
    /// Key of its room.
    pub room_nid: i64,
    /// Its Matrix id.
    pub event_id: String,
    /// Its depth in the room's graph.
    pub depth: i64,
    /// Its type.
    pub kind: String,
    /// Who sent it.
    pub sender: String,
    /// Its state key, when it is a state event.
    pub state_key: Option<String>,
    /// The state event it took the place of.
    pub replaces: Option<i64>,
    /// The state after it.
    pub state_group: i64,
    /// Whether the current state refused it.
    pub soft_failed: bool,
    /// The redaction that pruned it.
    pub redacted_by: Option<i64>,
    /// The device of a local sender that named a transaction id.
    pub device_id: Option<String>,
    /// That transaction id.
    pub txn_id: Option<String>,
    /// The room's state once the event had its place, where that is not `state_group`.
    pub room_group: Option<i64>,
    /// Whether it is refused where it stands; `soft_failed` is set then as well.
    pub rejected: bool,
    /// Canonical JSON.
    pub json: String,
}

type EventTuple = (
    i64,
    i64,
    String,
    i64,
    String,
    String,
    Option<String>,
    Option<i64>,
    i64,
    bool,
    Option<i64>,
    Option<String>,
    Option<String>,
    Option<i64>,
    bool,
    String,
);

impl From<EventTuple> for EventRow {
    fn from(row: EventTuple) -> Self {
        Self {
            event_nid: row.0,
            room_nid: row.1,
            event_id: row.2,
            depth: row.3,
            kind: row.4,
            sender: row.5,
            state_key: row.6,
            replaces: row.7,
            state_group: row.8,
            soft_failed: row.9,
            redacted_by: row.10,
            device_id: row.11,
            txn_id: row.12,
            room_group: row.13,
            rejected: row.14,
            json: row.15,
        }
    }
}

/// Which way to read a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Backward,
}

impl Store {
    /// The event `event_id`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event(&self, event_id: &str) -> Result<Option<EventRow>, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            EventTuple,
            "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events WHERE event_id = $1",
            event_id
        )?;
        Ok(row.map(EventRow::from))
    }

    /// The events with these keys, in no particular order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_by_nid(&self, nids: &[i64]) -> Result<Vec<EventRow>, Error> {
        if nids.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            EventTuple,
            "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events WHERE event_nid IN {INT_LIST $1}",
            list(nids)
        )?;
        Ok(rows.into_iter().map(EventRow::from).collect())
    }

    /// The events with these ids, of whatever room, refused ones too, in no particular order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_by_id(&self, ids: &[&str]) -> Result<Vec<EventRow>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            EventTuple,
            "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events WHERE event_id IN {TEXT_LIST $1}",
            list(ids)
        )?;
        Ok(rows.into_iter().map(EventRow::from).collect())
    }

    /// At most `limit` shown events of a room with `after < position <= up_to`: the oldest ones
    /// going forward, the newest ones going backward.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn timeline(
        &self,
        room_nid: i64,
        after: i64,
        up_to: i64,
        direction: Direction,
        limit: i64,
    ) -> Result<Vec<EventRow>, Error> {
        let mut conn = self.read().await?;
        let rows = match direction {
            Direction::Forward => fetch_all!(
                &mut conn,
                EventTuple,
                "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events WHERE room_nid = $1 AND event_nid > $2 AND event_nid <= $3 AND NOT soft_failed
                 ORDER BY event_nid LIMIT $4",
                room_nid,
                after,
                up_to,
                limit
            ),
            Direction::Backward => fetch_all!(
                &mut conn,
                EventTuple,
                "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events WHERE room_nid = $1 AND event_nid > $2 AND event_nid <= $3 AND NOT soft_failed
                 ORDER BY event_nid DESC LIMIT $4",
                room_nid,
                after,
                up_to,
                limit
            ),
        }?;
        Ok(rows.into_iter().map(EventRow::from).collect())
    }

    /// Every version of one piece of a room's state up to a position, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_history(&self, room_nid: i64, kind: &str, state_key: &str) -> Result<Vec<EventRow>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            EventTuple,
            "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events
             WHERE room_nid = $1 AND type = $2 AND state_key = $3 AND state_key IS NOT NULL AND NOT soft_failed
             ORDER BY event_nid",
            room_nid,
            kind,
            state_key
        )?;
        Ok(rows.into_iter().map(EventRow::from).collect())
    }

    /// The state events of a room with `after < position <= up_to`, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_events_between(&self, room_nid: i64, after: i64, up_to: i64) -> Result<Vec<EventRow>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            EventTuple,
            "SELECT event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                    soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json FROM events
             WHERE room_nid = $1 AND event_nid > $2 AND event_nid <= $3 AND state_key IS NOT NULL AND NOT soft_failed
             ORDER BY event_nid",
            room_nid,
            after,
            up_to
        )?;
        Ok(rows.into_iter().map(EventRow::from).collect())
    }

    /// The key of the newest shown event of a room at or before a position, and the room's state since.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn event_before(&self, room_nid: i64, up_to: i64) -> Result<Option<(i64, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            (i64, i64),
            "SELECT event_nid, COALESCE(room_group, state_group) FROM events
             WHERE room_nid = $1 AND event_nid <= $2 AND NOT soft_failed ORDER BY event_nid DESC LIMIT 1",
            room_nid,
            up_to
        )
    }

    /// The newest transactions of a device: `(room_nid, type, txn_id, event_id)`, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn transactions_of(
        &self,
        sender: &str,
        device_id: &str,
        limit: i64,
    ) -> Result<Vec<(i64, String, String, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (i64, String, String, String),
            "SELECT room_nid, type, txn_id, event_id FROM events
             WHERE sender = $1 AND device_id = $2 AND txn_id IS NOT NULL ORDER BY event_nid DESC LIMIT $3",
            sender,
            device_id,
            limit
        )
    }

    /// The event a device sent under a transaction id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn transaction(
        &self,
        sender: &str,
        device_id: &str,
        txn_id: &str,
        room_nid: i64,
        kind: &str,
    ) -> Result<Option<String>, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            (String,),
            "SELECT event_id FROM events
             WHERE sender = $1 AND device_id = $2 AND txn_id = $3 AND room_nid = $4 AND type = $5 AND txn_id IS NOT NULL",
            sender,
            device_id,
            txn_id,
            room_nid,
            kind
        )?;
        Ok(row.map(|(id,)| id))
    }

    /// The redactions of an event that came before it, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn waiting_redactions(&self, target: &str) -> Result<Vec<i64>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64,),
            "SELECT event_nid FROM waiting_redactions WHERE target = $1 ORDER BY event_nid",
            target
        )?;
        Ok(rows.into_iter().map(|(nid,)| nid).collect())
    }

    /// Events of a room that relate to its event `target` with `after < position <= up_to`, newest or oldest first; each
    /// with its relation type.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn relations(
        &self,
        room_nid: i64,
        target: &str,
        (after, up_to): (i64, i64),
        direction: Direction,
        limit: i64,
    ) -> Result<Vec<(i64, String)>, Error> {
        let mut conn = self.read().await?;
        match direction {
            Direction::Forward => fetch_all!(
                &mut conn,
                (i64, String),
                "SELECT event_nid, rel_type FROM event_relations
                 WHERE target = $1 AND event_nid > $2 AND event_nid <= $3 AND room_nid = $4
                 ORDER BY event_nid LIMIT $5",
                target,
                after,
                up_to,
                room_nid,
                limit
            ),
            Direction::Backward => fetch_all!(
                &mut conn,
                (i64, String),
                "SELECT event_nid, rel_type FROM event_relations
                 WHERE target = $1 AND event_nid > $2 AND event_nid <= $3 AND room_nid = $4
                 ORDER BY event_nid DESC LIMIT $5",
                target,
                after,
                up_to,
                room_nid,
                limit
            ),
        }
    }

    /// Like [`Store::relations`], with the events that relate to those, and so on down to `levels` levels; all of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn relations_below(
        &self,
        room_nid: i64,
        target: &str,
        (after, up_to): (i64, i64),
        direction: Direction,
        levels: i64,
    ) -> Result<Vec<(i64, String)>, Error> {
        let mut conn = self.read().await?;
        let mut found = fetch_all!(
            &mut conn,
            (i64, String),
            "WITH RECURSIVE below (event_nid, rel_type, level) AS (
                 SELECT event_nid, rel_type, 1 FROM event_relations WHERE target = $1 AND room_nid = $2
                 UNION
                 SELECT r.event_nid, r.rel_type, b.level + 1
                 FROM below b JOIN events e ON e.event_nid = b.event_nid
                 JOIN event_relations r ON r.target = e.event_id AND r.room_nid = $2
                 WHERE b.level < $3
             )
             SELECT event_nid, MIN(rel_type) FROM below WHERE event_nid > $4 AND event_nid <= $5
             GROUP BY event_nid ORDER BY event_nid",
            target,
            room_nid,
            levels,
            after,
            up_to
        )?;
        if direction == Direction::Backward {
            found.reverse();
        }
        Ok(found)
    }

    /// The threads of a room whose newest reply (of those with `position <= up_to`) is below `before`, the newest first:
    /// `(root, newest reply)`. With `participant`, those in which that user wrote the root or a reply.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn threads(
        &self,
        room_nid: i64,
        (before, up_to): (i64, i64),
        participant: Option<&str>,
        limit: i64,
    ) -> Result<Vec<(i64, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (i64, i64),
            "SELECT root.event_nid, MAX(r.event_nid) AS latest
             FROM event_relations r JOIN events root ON root.event_id = r.target AND root.room_nid = r.room_nid
             WHERE r.room_nid = $1 AND r.rel_type = 'm.thread' AND r.event_nid <= $3
                 AND ($4 OR root.sender = $5 OR EXISTS (
                     SELECT 1 FROM event_relations own JOIN events e ON e.event_nid = own.event_nid
                     WHERE own.room_nid = $1 AND own.rel_type = 'm.thread' AND own.target = r.target AND e.sender = $5))
             GROUP BY root.event_nid HAVING MAX(r.event_nid) < $2 ORDER BY latest DESC LIMIT $6",
            room_nid,
            before,
            up_to,
            participant.is_none(),
            participant.unwrap_or_default(),
            limit
        )
    }

    /// The events of a room by which `sender` relates to `target` in this way.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn relations_by(
        &self,
        room_nid: i64,
        target: &str,
        rel_type: &str,
        sender: &str,
    ) -> Result<Vec<i64>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64,),
            "SELECT r.event_nid FROM event_relations r JOIN events e ON e.event_nid = r.event_nid
             WHERE r.target = $1 AND r.room_nid = $2 AND r.rel_type = $3 AND e.sender = $4 ORDER BY r.event_nid",
            target,
            room_nid,
            rel_type,
            sender
        )?;
        Ok(rows.into_iter().map(|(nid,)| nid).collect())
    }

    /// What is summed up with any of `targets` in a room, oldest first: edits, references and replies in threads.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn aggregated_relations(
        &self,
        room_nid: i64,
        targets: &[String],
    ) -> Result<Vec<AggregatedRelation>, Error> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            AggregatedRelation,
            "SELECT r.target, r.event_nid, r.rel_type, e.sender, e.type AS kind FROM event_relations r
             JOIN events e ON e.event_nid = r.event_nid
             WHERE r.target IN {TEXT_LIST $1} AND r.room_nid = $2
                 AND r.rel_type IN ('m.thread', 'm.replace', 'm.reference')
             ORDER BY r.event_nid",
            list(targets),
            room_nid
        )
    }
}

/// An event that is summed up with the event it relates to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregatedRelation {
    /// The id of the event it relates to.
    pub target: String,
    /// Its key.
    pub event_nid: i64,
    /// How it relates.
    pub rel_type: String,
    /// Who sent it.
    pub sender: String,
    /// Its event type.
    pub kind: String,
}
from_row!(AggregatedRelation {
    target,
    event_nid,
    rel_type,
    sender,
    kind
});

/// Keeps a new event.
///
/// # Errors
/// When the database fails, or the event or its transaction id is known.
pub async fn insert_event(tx: &mut Conn, event: &EventRow) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO events (event_nid, room_nid, event_id, depth, type, sender, state_key, replaces, state_group,
                             soft_failed, redacted_by, device_id, txn_id, room_group, rejected, json)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        event.event_nid,
        event.room_nid,
        &event.event_id,
        event.depth,
        &event.kind,
        &event.sender,
        &event.state_key,
        event.replaces,
        event.state_group,
        event.soft_failed,
        event.redacted_by,
        &event.device_id,
        &event.txn_id,
        event.room_group,
        event.rejected,
        &event.json
    )
    .map(drop)
}

/// Puts the pruned form in the place of a redacted event; its relations go with its content.
///
/// # Errors
/// When the database fails.
pub async fn redact_event(tx: &mut Conn, event_nid: i64, redacted_by: i64, json: &str) -> Result<(), Error> {
    execute!(
        tx,
        "UPDATE events SET json = $2, redacted_by = $3 WHERE event_nid = $1",
        event_nid,
        json,
        redacted_by
    )?;
    execute!(tx, "DELETE FROM event_relations WHERE event_nid = $1", event_nid)?;
    Ok(())
}

/// Records that an event of a room relates to `target`.
///
/// # Errors
/// When the database fails.
pub async fn insert_relation(
    tx: &mut Conn,
    room_nid: i64,
    target: &str,
    event_nid: i64,
    rel_type: &str,
) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO event_relations (target, event_nid, rel_type, room_nid) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
        target,
        event_nid,
        rel_type,
        room_nid
    )
    .map(drop)
}

/// Records that a redaction waits for the event `target`.
///
/// # Errors
/// When the database fails.
pub async fn insert_waiting_redaction(tx: &mut Conn, target: &str, event_nid: i64) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO waiting_redactions (target, event_nid) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        target,
        event_nid
    )
    .map(drop)
}
