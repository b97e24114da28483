//! A fresh, empty database of each engine for a test.
//!
//! SQLite lives in a temporary folder. PostgreSQL is the real server that `LONGHOUSE_TEST_POSTGRES`
//! names (`postgres://user:password@host:port/postgres`, a user who may create databases); the test
//! command starts one.

use std::{future::Future, io::Write};

use sqlx::{Connection, PgConnection};

/// The variable that names the PostgreSQL server.
pub const POSTGRES_VARIABLE: &str = "LONGHOUSE_TEST_POSTGRES";

/// An empty database that goes with the test.
#[derive(Debug)]
pub struct TestDatabase {
    /// What `database.url` would say.
    pub url: String,
    /// A folder for the files of the test.
    pub dir: tempfile::TempDir,
    postgres: Option<(String, String)>,
}

/// Runs `test` on an empty SQLite database and then on an empty PostgreSQL database.
///
/// # Panics
/// When a database cannot be made; when no PostgreSQL server is named and `CI` is set.
pub async fn each<F, Fut>(test: F)
where
    F: Fn(TestDatabaseUrl) -> Fut,
    Fut: Future<Output = ()>,
{
    let sqlite = TestDatabase::sqlite();
    test(sqlite.handle()).await;
    drop(sqlite);
    if let Some(postgres) = TestDatabase::postgres().await {
        test(postgres.handle()).await;
        postgres.drop_database().await;
    }
}

/// Where a test's database is.
#[derive(Debug, Clone)]
pub struct TestDatabaseUrl {
    /// What `database.url` would say.
    pub url: String,
    /// A folder for the files of the test; it goes with the test.
    pub dir: std::path::PathBuf,
}

impl TestDatabase {
    /// An SQLite file in a folder of its own.
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let url = format!("sqlite:{}", dir.path().join("test.db").display());
        Self {
            url,
            dir,
            postgres: None,
        }
    }

    /// A new database on the named server; without one, says so and answers `None`.
    pub async fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var(POSTGRES_VARIABLE) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "{POSTGRES_VARIABLE} names no PostgreSQL server: run the tests by the README's test command"
            );
            writeln!(
                std::io::stderr(),
                "skipped on PostgreSQL: {POSTGRES_VARIABLE} is not set (the README's test command sets it)"
            )
            .ok();
            return None;
        };
        let name = format!("test_{:016x}", rand::random::<u64>());
        let mut conn = PgConnection::connect(&server)
            .await
            .expect("the test PostgreSQL server answers");
        let create = format!("CREATE DATABASE {name}");
        sqlx::query(sqlx::AssertSqlSafe(create))
            .execute(&mut conn)
            .await
            .expect("a test database can be created");
        conn.close().await.ok();
        let base = server.rsplit_once('/').expect("the server's URL names a database").0;
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        Some(Self {
            url: format!("{base}/{name}"),
            dir,
            postgres: Some((server, name)),
        })
    }

    fn handle(&self) -> TestDatabaseUrl {
        TestDatabaseUrl {
            url: self.url.clone(),
            dir: self.dir.path().to_owned(),
        }
    }

    /// Removes a PostgreSQL database, with its connections.
    pub async fn drop_database(self) {
        let Some((server, name)) = &self.postgres else { return };
        let mut conn = PgConnection::connect(server)
            .await
            .expect("the test PostgreSQL server answers");
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        sqlx::query(sqlx::AssertSqlSafe(drop))
            .execute(&mut conn)
            .await
            .expect("a test database can be dropped");
        conn.close().await.ok();
    }
}
