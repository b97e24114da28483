//! Rooms as rows: who is in them, what they are called, and what their newest events are.
//! Matrix rules live above; this file only keeps and finds.

use crate::{Conn, Error, Store, list};

/// A room's own row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomRow {
    /// Key of the room.
    pub room_nid: i64,
    /// Its Matrix id.
    pub room_id: String,
    /// Its version.
    pub version: String,
    /// JSON list of the keys of its forward extremities.
    pub extremities: String,
    /// Key of the state after them.
    pub state_group: i64,
    /// Position of its newest event.
    pub latest: i64,
    /// Whether it stands in the public directory.
    pub listed: bool,
}

/// One user's membership of one room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembershipRow {
    /// Key of the room.
    pub room_nid: i64,
    /// Its Matrix id.
    pub room_id: String,
    /// `join`, `invite`, `knock`, `leave` or `ban`.
    pub membership: String,
    /// Key of the member event.
    pub event_nid: i64,
    /// Since when it holds: the position of the member event, unless state resolution brought that back.
    pub position: i64,
    /// Whether the user asked to forget the room after leaving it.
    pub forgotten: bool,
    /// Who sent the member event.
    pub sender: String,
}

impl Store {
    /// The row of the room `room_id`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn room(&self, room_id: &str) -> Result<Option<RoomRow>, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            (i64, String, String, String, i64, i64, bool),
            "SELECT room_nid, room_id, version, extremities, state_group, latest, listed
             FROM rooms WHERE room_id = $1",
            room_id
        )?;
        Ok(row.map(
            |(room_nid, room_id, version, extremities, state_group, latest, listed)| RoomRow {
                room_nid,
                room_id,
                version,
                extremities,
                state_group,
                latest,
                listed,
            },
        ))
    }

    /// Every membership of `user_id`, forgotten ones too.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn memberships_of(&self, user_id: &str) -> Result<Vec<MembershipRow>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64, String, String, i64, i64, bool, String),
            "SELECT m.room_nid, r.room_id, m.membership, m.event_nid, m.position, m.forgotten, e.sender
             FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid JOIN events e ON e.event_nid = m.event_nid
             WHERE m.user_id = $1",
            user_id
        )?;
        Ok(rows
            .into_iter()
            .map(
                |(room_nid, room_id, membership, event_nid, position, forgotten, sender)| MembershipRow {
                    room_nid,
                    room_id,
                    membership,
                    event_nid,
                    position,
                    forgotten,
                    sender,
                },
            )
            .collect())
    }

    /// Every current member row of a room: `(user_id, membership, event_nid)`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn members_of(&self, room_nid: i64) -> Result<Vec<(String, String, i64)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String, i64),
            "SELECT user_id, membership, event_nid FROM memberships WHERE room_nid = $1",
            room_nid
        )
    }

    /// Hides a left room from its former member.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_room(&self, room_nid: i64, user_id: String) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "UPDATE memberships SET forgotten = TRUE WHERE room_nid = $1 AND user_id = $2",
                    room_nid,
                    &user_id
                )
                .map(drop)
            })
        })
        .await
    }

    /// The id of the room an alias points to, and who made the alias.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn room_alias(&self, alias: &str) -> Result<Option<(String, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_optional!(
            &mut conn,
            (String, String),
            "SELECT r.room_id, a.creator FROM room_aliases a JOIN rooms r ON r.room_nid = a.room_nid
             WHERE a.alias = $1",
            alias
        )
    }

    /// The aliases of a room, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn aliases_of(&self, room_nid: i64) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (String,),
            "SELECT alias FROM room_aliases WHERE room_nid = $1 ORDER BY alias",
            room_nid
        )?;
        Ok(rows.into_iter().map(|(alias,)| alias).collect())
    }

    /// Points `alias` to a room; `false` when it points somewhere already.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_alias(&self, alias: String, room_nid: i64, creator: String) -> Result<bool, Error> {
        self.write(move |tx| Box::pin(async move { add_alias(tx, &alias, room_nid, &creator).await }))
            .await
    }

    /// Points all aliases of one room to another; `false` when there were none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn move_aliases(&self, from: i64, to: i64) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                let sql = "UPDATE room_aliases SET room_nid = $2 WHERE room_nid = $1";
                Ok(execute!(tx, sql, from, to)? > 0)
            })
        })
        .await
    }

    /// Removes `alias`; `false` when there was none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_alias(&self, alias: String) -> Result<bool, Error> {
        self.write(move |tx| {
            Box::pin(async move { Ok(execute!(tx, "DELETE FROM room_aliases WHERE alias = $1", &alias)? > 0) })
        })
        .await
    }

    /// Puts a room into the public directory or takes it out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_listed(&self, room_nid: i64, listed: bool) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(tx, "UPDATE rooms SET listed = $2 WHERE room_nid = $1", room_nid, listed).map(drop)
            })
        })
        .await
    }

    /// The ids of the rooms in the public directory.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn listed_rooms(&self) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(&mut conn, (String,), "SELECT room_id FROM rooms WHERE listed")?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Which of the rooms have an event after position `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rooms_with_events_after(&self, rooms: &[i64], after: i64) -> Result<Vec<i64>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (i64,),
            "SELECT room_nid FROM rooms WHERE room_nid IN {INT_LIST $1} AND latest > $2",
            list(rooms),
            after
        )?;
        Ok(rows.into_iter().map(|(nid,)| nid).collect())
    }
}

/// Points `alias` to a room inside a transaction; `false` when it points somewhere already.
///
/// # Errors
/// When the database fails.
pub async fn add_alias(tx: &mut Conn, alias: &str, room_nid: i64, creator: &str) -> Result<bool, Error> {
    let added = execute!(
        tx,
        "INSERT INTO room_aliases (alias, room_nid, creator) VALUES ($1, $2, $3) ON CONFLICT (alias) DO NOTHING",
        alias,
        room_nid,
        creator
    )?;
    Ok(added > 0)
}

/// Makes the row of a new room.
///
/// # Errors
/// When the database fails, or the room exists.
pub async fn insert_room(tx: &mut Conn, room: &RoomRow) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO rooms (room_nid, room_id, version, extremities, state_group, latest, listed)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        room.room_nid,
        &room.room_id,
        &room.version,
        &room.extremities,
        room.state_group,
        room.latest,
        room.listed
    )
    .map(drop)
}

/// Moves a room on to its newest events and state.
///
/// # Errors
/// When the database fails.
pub async fn advance_room(
    tx: &mut Conn,
    room_nid: i64,
    extremities: &str,
    state_group: i64,
    latest: i64,
) -> Result<(), Error> {
    execute!(
        tx,
        "UPDATE rooms SET extremities = $2, state_group = $3, latest = $4 WHERE room_nid = $1",
        room_nid,
        extremities,
        state_group,
        latest
    )
    .map(drop)
}

/// Records what a user is in a room since `position`. A user who comes back, or is asked to, remembers a forgotten room;
/// one who is put out again does not.
///
/// # Errors
/// When the database fails.
pub async fn set_membership(
    tx: &mut Conn,
    room_nid: i64,
    user_id: &str,
    membership: &str,
    event_nid: i64,
    position: i64,
) -> Result<(), Error> {
    execute!(
        tx,
        "INSERT INTO memberships (room_nid, user_id, membership, event_nid, position, forgotten)
         VALUES ($1, $2, $3, $4, $5, FALSE)
         ON CONFLICT (room_nid, user_id) DO UPDATE
         SET membership = excluded.membership, event_nid = excluded.event_nid, position = excluded.position,
             forgotten = memberships.forgotten AND excluded.membership IN ('leave', 'ban')",
        room_nid,
        user_id,
        membership,
        event_nid,
        position
    )
    .map(drop)
}
