//! Filters that clients have uploaded. The id is a digest of the definition, so that uploading the same one again adds
//! nothing.

use crate::{Error, Store};

impl Store {
    /// Keeps a filter definition under its id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_filter(&self, user_id: String, filter_id: String, definition: String) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO filters (user_id, filter_id, definition) VALUES ($1, $2, $3)
                     ON CONFLICT (user_id, filter_id) DO NOTHING",
                    &user_id,
                    &filter_id,
                    &definition
                )
                .map(drop)
            })
        })
        .await
    }

    /// The definition kept under an id.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn filter(&self, user_id: &str, filter_id: &str) -> Result<Option<String>, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            (String,),
            "SELECT definition FROM filters WHERE user_id = $1 AND filter_id = $2",
            user_id,
            filter_id
        )?;
        Ok(row.map(|(definition,)| definition))
    }
}
