//! What users say of themselves beside being there. Presence itself is not kept.

use crate::{Error, Store};

impl Store {
    /// What every user says who says something: (user, text).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn presence_statuses(&self) -> Result<Vec<(String, String)>, Error> {
        let mut conn = self.read().await?;
        fetch_all!(
            &mut conn,
            (String, String),
            "SELECT user_id, status FROM presence_statuses"
        )
    }

    /// Keeps what a user says; nothing when that is empty.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_presence_status(&self, user_id: String, status: String) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                if status.is_empty() {
                    return execute!(tx, "DELETE FROM presence_statuses WHERE user_id = $1", &user_id).map(drop);
                }
                execute!(
                    tx,
                    "INSERT INTO presence_statuses (user_id, status) VALUES ($1, $2)
                     ON CONFLICT (user_id) DO UPDATE SET status = excluded.status",
                    &user_id,
                    &status
                )
                .map(drop)
            })
        })
        .await
    }
}
