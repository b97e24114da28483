//! Who can be found by whom: users with the names and pictures they show.

use crate::{Error, Store, list};

/// A user as the directory shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUser {
    /// The user.
    pub user_id: String,
    /// The profile's `displayname`, as JSON text.
    pub display_name: Option<String>,
    /// The profile's `avatar_url`, as JSON text.
    pub avatar_url: Option<String>,
}
from_row!(ListedUser {
    user_id,
    display_name,
    avatar_url
});

impl Store {
    /// The living accounts that are joined to one of `rooms` or to a public room; all of them without `rooms`. A room is
    /// public when it stands in the directory or anybody may join it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn listed_users(&self, rooms: Option<&[i64]>) -> Result<Vec<ListedUser>, Error> {
        let mut conn = self.read().await?;
        let Some(rooms) = rooms else {
            return fetch_all!(
                &mut conn,
                ListedUser,
                "SELECT u.user_id, n.value AS display_name, a.value AS avatar_url FROM users u
                 LEFT JOIN profile_fields n ON n.user_id = u.user_id AND n.field = 'displayname'
                 LEFT JOIN profile_fields a ON a.user_id = u.user_id AND a.field = 'avatar_url'
                 WHERE u.deactivated_at IS NULL"
            );
        };
        // The JSON is canonical, so a rule is written in one way only.
        fetch_all!(
            &mut conn,
            ListedUser,
            "WITH visible (room_nid) AS (
                 SELECT room_nid FROM rooms WHERE room_nid IN {INT_LIST $1} OR listed
                 UNION
                 SELECT r.room_nid FROM rooms r JOIN events e ON e.event_nid = (
                     SELECT MAX(event_nid) FROM events WHERE room_nid = r.room_nid AND type = 'm.room.join_rules'
                         AND state_key = '' AND state_key IS NOT NULL AND NOT soft_failed)
                 WHERE e.json LIKE '%\"join_rule\":\"public\"%'
             )
             SELECT u.user_id, n.value AS display_name, a.value AS avatar_url FROM users u
             LEFT JOIN profile_fields n ON n.user_id = u.user_id AND n.field = 'displayname'
             LEFT JOIN profile_fields a ON a.user_id = u.user_id AND a.field = 'avatar_url'
             WHERE u.deactivated_at IS NULL AND EXISTS (
                 SELECT 1 FROM memberships m
                 WHERE m.user_id = u.user_id AND m.membership = 'join' AND m.room_nid IN (SELECT room_nid FROM visible))",
            list(rooms)
        )
    }
}
