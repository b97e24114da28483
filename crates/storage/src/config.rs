//! The `[database]` section: which engine, where, and how many connections.

use serde::{Deserialize, Serialize};

/// Where data lives.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `postgres://user:password@host/database`, or `sqlite:PATH`.
    /// Absent: an SQLite file named `longhouse.db` in the data directory.
    pub url: Option<String>,
    /// Connections that PostgreSQL is asked for, or readers of an SQLite file.
    pub max_connections: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            max_connections: 8,
        }
    }
}

impl std::fmt::Debug for Config {
    /// The URL holds a password: it is never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.url.as_ref().map(|_| "…"))
            .field("max_connections", &self.max_connections)
            .finish()
    }
}
