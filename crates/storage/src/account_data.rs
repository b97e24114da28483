//! What users keep on the server for themselves: account data, global and of rooms, push rules among it. Contents are
//! opaque JSON text; the global data's room is the empty text.

use crate::{Conn, Error, Store};

/// One entry of a user's account data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountData {
    /// The room it belongs to; empty for global data.
    pub room_id: String,
    /// Its event type.
    pub r#type: String,
    /// The content as JSON text.
    pub content: String,
    /// Where in the stream it was last set.
    pub position: i64,
}

type Row = (String, String, String, i64);

impl From<Row> for AccountData {
    fn from((room_id, r#type, content, position): Row) -> Self {
        Self {
            room_id,
            r#type,
            content,
            position,
        }
    }
}

/// Sets an entry, within a caller's transaction.
///
/// # Errors
/// When the database fails.
pub async fn set_account_data(
    conn: &mut Conn,
    (user_id, room_id, r#type): (&str, &str, &str),
    content: &str,
    position: i64,
) -> Result<(), Error> {
    execute!(
        conn,
        "INSERT INTO account_data (user_id, room_id, type, content, position) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, position = excluded.position",
        user_id,
        room_id,
        r#type,
        content,
        position
    )
    .map(drop)
}

/// The content of an entry, within a caller's transaction.
///
/// # Errors
/// When the database fails.
pub async fn account_data(
    conn: &mut Conn,
    (user_id, room_id, r#type): (&str, &str, &str),
) -> Result<Option<String>, Error> {
    let row = fetch_optional!(
        conn,
        (String,),
        "SELECT content FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3",
        user_id,
        room_id,
        r#type
    )?;
    Ok(row.map(|(content,)| content))
}

impl Store {
    /// The content of one entry; `room_id` is empty for global data.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn account_data(&self, user_id: &str, room_id: &str, r#type: &str) -> Result<Option<String>, Error> {
        account_data(&mut self.read().await?, (user_id, room_id, r#type)).await
    }

    /// Every entry the user has set in (`after`, `until`], oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn account_data_changes(&self, user_id: &str, after: i64, until: i64) -> Result<Vec<AccountData>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            Row,
            "SELECT room_id, type, content, position FROM account_data
             WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY position",
            user_id,
            after,
            until
        )?;
        Ok(rows.into_iter().map(AccountData::from).collect())
    }

    /// Every entry of one room the user has set.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn account_data_of_room(&self, user_id: &str, room_id: &str) -> Result<Vec<AccountData>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            Row,
            "SELECT room_id, type, content, position FROM account_data
             WHERE user_id = $1 AND room_id = $2 ORDER BY position",
            user_id,
            room_id
        )?;
        Ok(rows.into_iter().map(AccountData::from).collect())
    }

    /// The users who have changed their push rules: (user, `m.push_rules` content).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn users_with_push_rules(&self) -> Result<Vec<String>, Error> {
        let mut conn = self.read().await?;
        let rows = fetch_all!(
            &mut conn,
            (String,),
            "SELECT user_id FROM account_data WHERE type = 'm.push_rules' AND room_id = ''"
        )?;
        Ok(rows.into_iter().map(|(user_id,)| user_id).collect())
    }

    /// Every user's list of ignored users: (user, `m.ignored_user_list` content).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn ignored_user_lists(&self) -> Result<Vec<(String, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String),
            "SELECT user_id, content FROM account_data WHERE type = 'm.ignored_user_list' AND room_id = ''"
        )
    }
}
