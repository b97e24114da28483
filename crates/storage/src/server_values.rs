//! Values the server makes for itself once and keeps: its signing key, the secrets it shares with its media plane.

use crate::{Error, Store};

impl Store {
    /// The value kept under `name`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn server_value(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut conn = self.read().await?;
        let row = fetch_optional!(
            &mut conn,
            (Vec<u8>,),
            "SELECT value FROM server_values WHERE name = $1",
            name
        )?;
        Ok(row.map(|(value,)| value))
    }

    /// The value kept under `name`; `fresh` is kept and answered when there is none. Of several
    /// callers at once, all get the one that was kept.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn server_value_or(&self, name: &'static str, fresh: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO server_values (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
                    name,
                    &fresh[..]
                )?;
                let row = fetch_optional!(tx, (Vec<u8>,), "SELECT value FROM server_values WHERE name = $1", name)?;
                row.map(|(value,)| value)
                    .ok_or_else(|| Error::corrupt("server_values", "a value just kept is absent"))
            })
        })
        .await
    }

    /// Replaces the value kept under `name`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_server_value(&self, name: &'static str, value: Vec<u8>) -> Result<(), Error> {
        self.write(move |tx| {
            Box::pin(async move {
                execute!(
                    tx,
                    "INSERT INTO server_values (name, value) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    name,
                    &value[..]
                )
                .map(drop)
            })
        })
        .await
    }
}
