//! What can go wrong below the domain: the engine, a row that breaks an invariant, or a store that is closing.

/// A storage failure that the caller cannot repair: absence and refusal are values, not errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine refused or failed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A stored value breaks an invariant of this crate.
    #[error("corrupt row in {table}: {detail}")]
    Corrupt {
        /// The table that holds it.
        table: &'static str,
        /// Column and cause.
        detail: String,
    },
    /// The transaction this write shared could not be committed; nothing of it was kept.
    #[error("the transaction could not be committed: {0}")]
    Commit(String),
    /// The write panicked; nothing of it was kept.
    #[error("a write panicked and was undone")]
    Panicked,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// A stored value that breaks an invariant: names where.
    pub fn corrupt(table: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            table,
            detail: detail.to_string(),
        }
    }

    /// Whether the engine has no place for a text: PostgreSQL keeps no U+0000.
    pub fn is_unstorable_text(&self) -> bool {
        // SQLSTATE: character_not_in_repertoire, untranslatable_character (PostgreSQL, appendix A).
        let is_text = |code: &str| matches!(code, "22021" | "22P05");
        matches!(self, Self::Database(sqlx::Error::Database(e)) if e.code().is_some_and(|code| is_text(&code)))
    }

    /// Whether the engine refused because a unique key already exists.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(e)) if e.is_unique_violation())
    }
}

/// Why a store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `database.url` has a scheme that is neither `sqlite:` nor `postgres:`.
    #[error("`database.url` must begin with `sqlite:` or `postgres://`")]
    UnknownScheme,
    /// The engine could not be reached or the file could not be opened.
    #[error("cannot open {place}: {source}")]
    Connect {
        /// The file, or the server without its password.
        place: String,
        /// What the engine said.
        source: sqlx::Error,
    },
    /// A schema step failed.
    #[error("migration {number} ({name}) failed: {source}")]
    Migration {
        /// Number of the step.
        number: i64,
        /// Name of the step.
        name: &'static str,
        /// What the engine said.
        source: sqlx::Error,
    },
    /// The data was written by a later version.
    #[error(
        "the database has schema {found}, this version knows up to {known}: run the newer version again, or restore a backup"
    )]
    Newer {
        /// Schema number found.
        found: i64,
        /// Highest number known here.
        known: i64,
    },
    /// Another process holds the database.
    #[error("another Longhouse process uses this database: stop it first, or give this one its own database")]
    InUse,
    /// A query failed while opening.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}
