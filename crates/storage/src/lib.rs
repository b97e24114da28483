//! Everything that survives a restart. The only crate that knows SQL; one text for SQLite and PostgreSQL.
