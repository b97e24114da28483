//! The schema, one numbered step at a time, each in a transaction of its own. A step is one SQL text
//! for both engines: tokens as in [`crate::Dialect`], and blocks between `-- only sqlite` or
//! `-- only postgres` and `-- end`.

use tracing::info;

use crate::{Conn, Dialect, OpenError};

/// Every step ever released, in order. A released step never changes.
const STEPS: &[(i64, &str, &str)] = &[
    (1, "core", include_str!("../migrations/0001_core.sql")),
    (2, "accounts", include_str!("../migrations/0002_accounts.sql")),
    (3, "rooms", include_str!("../migrations/0003_rooms.sql")),
    (4, "sync", include_str!("../migrations/0004_sync.sql")),
    (5, "calls", include_str!("../migrations/0005_calls.sql")),
    (6, "media", include_str!("../migrations/0006_media.sql")),
    (7, "devices", include_str!("../migrations/0007_devices.sql")),
    (8, "push", include_str!("../migrations/0008_push.sql")),
    (9, "upkeep", include_str!("../migrations/0009_upkeep.sql")),
    (10, "resolution", include_str!("../migrations/0010_resolution.sql")),
    (11, "push_indexes", include_str!("../migrations/0011_push_indexes.sql")),
    (12, "call_ends", include_str!("../migrations/0012_call_ends.sql")),
    (13, "threads", include_str!("../migrations/0013_threads.sql")),
    (14, "presence", include_str!("../migrations/0014_presence.sql")),
    (15, "reports", include_str!("../migrations/0015_reports.sql")),
];

/// Brings the schema up to date.
pub(crate) async fn run(conn: &mut Conn) -> Result<(), OpenError> {
    conn.command("CREATE TABLE IF NOT EXISTS schema_steps (number BIGINT PRIMARY KEY, name TEXT NOT NULL)")
        .await?;
    let done = fetch_all!(conn, (i64,), "SELECT number FROM schema_steps ORDER BY number").map_err(|e| match e {
        crate::Error::Database(e) => OpenError::Database(e),
        other => OpenError::Database(sqlx::Error::Protocol(other.to_string())),
    })?;
    let known = STEPS.last().map_or(0, |step| step.0);
    if let Some((found,)) = done.last().filter(|(n,)| *n > known) {
        return Err(OpenError::Newer { found: *found, known });
    }
    for (number, name, text) in STEPS {
        if done.iter().any(|(n,)| n == number) {
            continue;
        }
        apply(conn, *number, name, text)
            .await
            .map_err(|source| OpenError::Migration {
                number: *number,
                name,
                source,
            })?;
        info!(number, name, "schema step applied");
    }
    Ok(())
}

async fn apply(conn: &mut Conn, number: i64, name: &str, text: &str) -> Result<(), sqlx::Error> {
    let sql = for_dialect(text, conn.dialect());
    conn.command("BEGIN").await?;
    let applied = async {
        match conn {
            Conn::Sqlite(c) => sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut **c)
                .await
                .map(drop)?,
            Conn::Postgres(c) => sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&mut **c)
                .await
                .map(drop)?,
        }
        execute!(
            conn,
            "INSERT INTO schema_steps (number, name) VALUES ($1, $2)",
            number,
            name
        )
        .map_err(|e| match e {
            crate::Error::Database(e) => e,
            other => sqlx::Error::Protocol(other.to_string()),
        })?;
        Ok(())
    }
    .await;
    conn.command(if applied.is_ok() { "COMMIT" } else { "ROLLBACK" })
        .await?;
    applied
}

fn for_dialect(text: &str, dialect: Dialect) -> String {
    let mut keep = true;
    let mut sql = String::with_capacity(text.len());
    for line in text.lines() {
        match line.trim() {
            "-- only sqlite" => keep = dialect == Dialect::Sqlite,
            "-- only postgres" => keep = dialect == Dialect::Postgres,
            "-- end" => keep = true,
            _ if keep => {
                // A comment may hold anything, braces too.
                sql.push_str(line.split("--").next().unwrap_or_default());
                sql.push('\n');
            }
            _ => {}
        }
    }
    dialect.replace_tokens(&sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_tokens_follow_the_dialect() {
        let text =
            "CREATE TABLE t (b {BLOB}); -- {a comment}\n-- only sqlite\nA;\n-- end\n-- only postgres\nB;\n-- end\nC;";
        assert_eq!(
            for_dialect(text, Dialect::Sqlite),
            "CREATE TABLE t (b BLOB); \nA;\nC;\n"
        );
        assert_eq!(
            for_dialect(text, Dialect::Postgres),
            "CREATE TABLE t (b BYTEA); \nB;\nC;\n"
        );
    }

    #[test]
    fn steps_are_numbered_upwards() {
        assert!(STEPS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
