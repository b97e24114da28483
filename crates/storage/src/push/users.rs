//! Small numbers for users who have other push results than most. Given out in order and never taken back, so that they
//! can be written before the event that needs them.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::{Error, Store};

/// The numbers that were given out. Read from the database when the first is asked for.
#[derive(Debug, Default)]
pub(crate) struct PushUsers {
    known: RwLock<Option<HashMap<String, i64>>>,
    /// One loading or giving out at a time.
    giving: tokio::sync::Mutex<()>,
}

impl Store {
    /// The numbers of `users`, in their order. Users without one are given one, durably.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn push_user_nids(&self, users: &[&str]) -> Result<Vec<i64>, Error> {
        if users.is_empty() {
            return Ok(Vec::new());
        }
        self.load_push_users().await?;
        let all = |known: &HashMap<String, i64>| users.iter().map(|user| known.get(*user).copied()).collect();
        let found: Option<Vec<i64>> = self.push_users().known.read().as_ref().and_then(all);
        if let Some(nids) = found {
            return Ok(nids);
        }
        let _one = self.push_users().giving.lock().await;
        // Whoever had the turn before may have failed, and what is known with it.
        self.read_push_users().await?;
        let mut fresh: Vec<(i64, String)> = Vec::new();
        if let Some(known) = self.push_users().known.read().as_ref() {
            // Numbers begin at one and have no gaps.
            let mut next = i64::try_from(known.len()).unwrap_or(i64::MAX) + 1;
            for user in users {
                if !known.contains_key(*user) && !fresh.iter().any(|(_, fresh)| fresh == user) {
                    fresh.push((next, (*user).to_owned()));
                    next += 1;
                }
            }
        }
        let written = fresh.clone();
        let kept = self.write::<_, Error, _>(move |tx| {
            Box::pin(async move {
                for (nid, user) in &written {
                    execute!(
                        tx,
                        "INSERT INTO push_users (user_nid, user_id) VALUES ($1, $2)",
                        nid,
                        user
                    )?;
                }
                Ok(())
            })
        });
        if let Err(error) = kept.await {
            // They may have been kept all the same: what the database holds is asked for again.
            *self.push_users().known.write() = None;
            return Err(error);
        }
        let mut known = self.push_users().known.write();
        let given = known.as_mut().and_then(|known| {
            known.extend(fresh.into_iter().map(|(nid, user)| (user, nid)));
            all(known)
        });
        given.ok_or_else(|| Error::corrupt("push_users", "a number that was just given is not there"))
    }

    /// The number of a user who was ever given one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn push_user_nid(&self, user: &str) -> Result<Option<i64>, Error> {
        self.load_push_users().await?;
        Ok(self
            .push_users()
            .known
            .read()
            .as_ref()
            .and_then(|known| known.get(user).copied()))
    }

    /// Every number that was given out, by user.
    pub(super) async fn push_user_map(&self) -> Result<HashMap<String, i64>, Error> {
        self.load_push_users().await?;
        Ok(self.push_users().known.read().clone().unwrap_or_default())
    }

    async fn load_push_users(&self) -> Result<(), Error> {
        if self.push_users().known.read().is_some() {
            return Ok(());
        }
        let _one = self.push_users().giving.lock().await;
        self.read_push_users().await
    }

    /// For who holds `giving`: reads the numbers from the database unless they are known.
    async fn read_push_users(&self) -> Result<(), Error> {
        if self.push_users().known.read().is_some() {
            return Ok(());
        }
        let mut conn = self.read().await?;
        let rows = fetch_all!(&mut conn, (String, i64), "SELECT user_id, user_nid FROM push_users")?;
        *self.push_users().known.write() = Some(rows.into_iter().collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Config, Error, Store};

    #[tokio::test]
    async fn after_a_failed_write_the_numbers_are_read_again() {
        testkit::database::each(|db| async move {
            let config = Config {
                url: Some(db.url.clone()),
                ..Config::default()
            };
            let store = Store::open(&config, &db.dir).await.unwrap();
            assert_eq!(store.push_user_nid("@x:x").await.unwrap(), None);
            // The first number is taken without the store's knowledge: the next to be given out fails.
            store
                .write::<_, Error, _>(|tx| {
                    Box::pin(async move {
                        execute!(tx, "INSERT INTO push_users (user_nid, user_id) VALUES (1, '@x:x')").map(drop)
                    })
                })
                .await
                .unwrap();
            // The second waits for its turn meanwhile.
            let (first, second) = tokio::join!(store.push_user_nids(&["@a:x"]), store.push_user_nids(&["@b:x"]));
            first.unwrap_err();
            assert_eq!(second.unwrap(), [2]);
            assert_eq!(store.push_user_nid("@x:x").await.unwrap(), Some(1));
            assert_eq!(store.push_user_nids(&["@a:x", "@x:x"]).await.unwrap(), [3, 1]);
            store.close().await;
        })
        .await;
    }
}
