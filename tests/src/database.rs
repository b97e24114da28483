//! A fresh database for one server: a file in its data directory, or a database of its own on the PostgreSQL server.

use std::process::Command;

use crate::environment;

/// The database engine a server runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The embedded engine, in the data directory.
    Sqlite,
    /// A database on the server that `LONGHOUSE_TEST_POSTGRES` names.
    Postgres,
}

/// One server's database, dropped with this value.
#[derive(Debug)]
pub struct Database {
    postgres: Option<PostgresDatabase>,
}

#[derive(Debug)]
struct PostgresDatabase {
    server: String,
    name: String,
}

impl Database {
    /// Creates an empty database for one server.
    pub fn fresh(engine: Engine) -> Self {
        let postgres = (engine == Engine::Postgres).then(|| {
            let server = environment::postgres_url();
            let name = format!("longhouse_test_{:016x}", rand::random::<u64>());
            // The C collation is what the product asks for; template0 is the template that permits it.
            psql(
                &server,
                &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"),
            );
            PostgresDatabase { server, name }
        });
        Self { postgres }
    }

    /// The `[database] url` of the configuration; `None` for the default, which is SQLite in the data directory.
    pub fn url(&self) -> Option<String> {
        let PostgresDatabase { server, name } = self.postgres.as_ref()?;
        let (rest, _) = server
            .rsplit_once('/')
            .expect("a PostgreSQL address names a database after its last slash");
        Some(format!("{rest}/{name}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // While a test unwinds, a second panic would abort it and hide the first: a leftover database is harmless,
        // since the cluster is removed when the tests end.
        if let Some(PostgresDatabase { server, name }) = &self.postgres {
            let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            let _ = psql_command(server, &statement).output();
        }
    }
}

fn psql_command(server: &str, statement: &str) -> Command {
    let mut command = Command::new("psql");
    command.args([
        "--no-psqlrc",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--dbname",
        server,
        "--command",
        statement,
    ]);
    command
}

fn psql(server: &str, statement: &str) {
    let output = psql_command(server, statement).output().expect("psql can be started");
    assert!(
        output.status.success(),
        "{statement}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
