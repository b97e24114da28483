//! Room state as shared structure: a group is the difference to its parent, and chains of parents
//! are logarithmically short (see the migration for the numbering).

use crate::{Conn, Error, Store, list};

/// A state group's place in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateGroup {
    /// Its key.
    pub state_group: i64,
    /// How many groups came before it in its line.
    pub generation: i64,
    /// The group it is a difference to.
    pub parent: Option<i64>,
}

/// One piece of state: which event holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntryRow {
    /// Key of the event.
    pub event_nid: i64,
    /// Its Matrix id.
    pub event_id: String,
    /// Its type.
    pub kind: String,
    /// Its state key.
    pub state_key: String,
}

impl Store {
    /// The whole state of a group, one entry per type and state key.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state(&self, state_group: i64) -> Result<Vec<StateEntryRow>, Error> {
        let mut conn = self.read().await?;
        // Generations fall along the chain: of two entries for one key the one met first counts.
        let rows = fetch_all!(
            &mut conn,
            (i64, String, String, String),
            "WITH RECURSIVE chain (state_group, generation, parent) AS (
                 SELECT state_group, generation, parent FROM state_groups WHERE state_group = $1
                 UNION ALL
                 SELECT g.state_group, g.generation, g.parent FROM state_groups g
                 JOIN chain ON g.state_group = chain.parent
             )
             SELECT e.event_nid, e.event_id, e.type, e.state_key
             FROM chain JOIN state_entries s ON s.state_group = chain.state_group
             JOIN events e ON e.event_nid = s.event_nid
             ORDER BY chain.generation DESC",
            state_group
        )?;
        let mut seen = std::collections::HashSet::with_capacity(rows.len());
        Ok(rows
            .into_iter()
            .map(|(event_nid, event_id, kind, state_key)| StateEntryRow {
                event_nid,
                event_id,
                kind,
                state_key,
            })
            .filter(|row| seen.insert((row.kind.clone(), row.state_key.clone())))
            .collect())
    }

    /// The chain of groups from `state_group` to the root of its line, itself first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_chain(&self, state_group: i64) -> Result<Vec<StateGroup>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64, i64, Option<i64>),
            "WITH RECURSIVE chain (state_group, generation, parent) AS (
                 SELECT state_group, generation, parent FROM state_groups WHERE state_group = $1
                 UNION ALL
                 SELECT g.state_group, g.generation, g.parent FROM state_groups g
                 JOIN chain ON g.state_group = chain.parent
             )
             SELECT state_group, generation, parent FROM chain ORDER BY generation DESC",
            state_group
        )?;
        Ok(rows
            .into_iter()
            .map(|(state_group, generation, parent)| StateGroup {
                state_group,
                generation,
                parent,
            })
            .collect())
    }
}

/// What state resolution made of a piece of a room's current state, where the event at that position does not say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateReset {
    /// Since when.
    pub position: i64,
    /// The type.
    pub kind: String,
    /// The state key.
    pub state_key: String,
    /// The event that holds the piece since; none when it is gone.
    pub event_nid: Option<i64>,
}

impl Store {
    /// The graph of `auth_events` below these state events: `(event, auth event)`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn auth_graph(&self, events: &[i64]) -> Result<Vec<(i64, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (i64, i64),
            "WITH RECURSIVE reached (nid) AS (
                 SELECT * FROM {INT_LIST $1} seeds
                 UNION
                 SELECT a.auth_nid FROM event_auth a JOIN reached ON a.event_nid = reached.nid
             )
             SELECT a.event_nid, a.auth_nid FROM reached JOIN event_auth a ON a.event_nid = reached.nid",
            list(events)
        )
    }

    /// Which events at or after the position `floor` are in the auth chain of any of `events`. An event comes after
    /// those that authorise it, so nothing below `floor` leads there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn auth_chain_after(&self, events: &[i64], floor: i64) -> Result<Vec<i64>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64,),
            "WITH RECURSIVE reached (nid) AS (
                 SELECT a.auth_nid FROM event_auth a WHERE a.event_nid IN {INT_LIST $1} AND a.auth_nid >= $2
                 UNION
                 SELECT a.auth_nid FROM event_auth a JOIN reached ON a.event_nid = reached.nid WHERE a.auth_nid >= $2
             )
             SELECT nid FROM reached",
            list(events),
            floor
        )?;
        Ok(rows.into_iter().map(|(nid,)| nid).collect())
    }

    /// What state resolution did to one piece of a room's state, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn state_resets(&self, room_nid: i64, kind: &str, state_key: &str) -> Result<Vec<StateReset>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64, String, String, Option<i64>),
            "SELECT position, type, state_key, event_nid FROM state_resets
             WHERE room_nid = $1 AND type = $2 AND state_key = $3 ORDER BY position",
            room_nid,
            kind,
            state_key
        )?;
        Ok(rows
            .into_iter()
            .map(|(position, kind, state_key, event_nid)| StateReset {
                position,
                kind,
                state_key,
                event_nid,
            })
            .collect())
    }

    /// When state resolution last changed a room's current state; 0 for never.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn last_state_reset(&self, room_nid: i64) -> Result<i64, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            (i64,),
            "SELECT position FROM state_resets WHERE room_nid = $1 ORDER BY position DESC LIMIT 1",
            room_nid
        )?;
        Ok(row.map_or(0, |(position,)| position))
    }
}

/// Records what authorises a state event.
///
/// # Errors
/// When the database fails.
pub async fn insert_auth_events(tx: &mut Conn, event_nid: i64, auth_events: &[i64]) -> Result<(), Error> {
    if auth_events.is_empty() {
        return Ok(());
    }
    execute!(
        tx,
        "INSERT INTO event_auth (event_nid, auth_nid) SELECT $1, * FROM {INT_LIST $2} named",
        event_nid,
        list(auth_events)
    )
    .map(drop)
}

/// Records what state resolution made of a piece of a room's state.
///
/// # Errors
/// When the database fails.
pub async fn insert_state_reset(tx: &mut Conn, room_nid: i64, reset: &StateReset) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO state_resets (room_nid, position, type, state_key, event_nid) VALUES ($1, $2, $3, $4, $5)",
        room_nid,
        reset.position,
        &reset.kind,
        &reset.state_key,
        reset.event_nid
    )
    .map(drop)
}

/// Makes a group that differs from its parent by `entries` (keys of events) and by what `folded`
/// groups, its nearer ancestors, differ from it. Where an event of a folded group has the same type
/// and state key as one of `entries` or of a newer folded group, the newer one counts.
///
/// # Errors
/// When the database fails.
pub async fn insert_state_group(
    tx: &mut Conn,
    room_nid: i64,
    group: StateGroup,
    entries: &[i64],
    folded: &[i64],
) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO state_groups (state_group, room_nid, generation, parent) VALUES ($1, $2, $3, $4)",
        group.state_group,
        room_nid,
        group.generation,
        group.parent
    )?;
    for event_nid in entries {
        execute!(
            tx,
            "INSERT INTO state_entries (state_group, event_nid) VALUES ($1, $2)",
            group.state_group,
            event_nid
        )?;
    }
    if !folded.is_empty() {
        // `folded` groups have rising keys along a line, so the newest entry is the one of the largest group.
        execute!(
            tx,
            "INSERT INTO state_entries (state_group, event_nid)
             SELECT $1, picked.event_nid FROM (
                 SELECT s.event_nid, e.type, e.state_key,
                        ROW_NUMBER() OVER (PARTITION BY e.type, e.state_key ORDER BY s.state_group DESC) AS age
                 FROM state_entries s JOIN events e ON e.event_nid = s.event_nid
                 WHERE s.state_group IN {INT_LIST $2}
             ) picked
             WHERE picked.age = 1 AND NOT EXISTS (
                 SELECT 1 FROM state_entries own JOIN events o ON o.event_nid = own.event_nid
                 WHERE own.state_group = $1 AND o.type = picked.type AND o.state_key = picked.state_key
             )",
            group.state_group,
            list(folded)
        )?;
    }
    Ok(())
}
