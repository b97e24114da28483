//! A connection of either engine, and the few words in which their SQL differs.

use std::{collections::HashMap, sync::LazyLock};

use parking_lot::RwLock;
use sqlx::{Postgres, Sqlite, pool::PoolConnection};

/// A connection to the database, inside or outside a transaction. The macros `execute!`,
/// `fetch_all!` and `fetch_optional!` take one by `&mut`.
#[derive(Debug)]
pub enum Conn {
    /// A connection to the SQLite file.
    Sqlite(PoolConnection<Sqlite>),
    /// A connection to a PostgreSQL server.
    Postgres(PoolConnection<Postgres>),
}

impl Conn {
    /// Which engine this connection speaks to.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Runs a statement without parameters or results, such as `BEGIN`.
    pub(crate) async fn command(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(c) => sqlx::query(sql).execute(&mut **c).await.map(drop),
            Self::Postgres(c) => sqlx::query(sql).execute(&mut **c).await.map(drop),
        }
    }
}

/// The engine, for the words in which the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

impl Dialect {
    /// The statement with its tokens replaced for this engine. Tokens:
    ///
    /// | token | stands for |
    /// |---|---|
    /// | `{TEXT_LIST $n}` | `(SELECT …)` of the strings in the JSON array bound to `$n` (see [`list`]) |
    /// | `{INT_LIST $n}` | the same for integers |
    /// | `{INDEXED_BY i}` | the index to use, which SQLite's planner misjudges; PostgreSQL's goes by statistics |
    /// | `{BLOB}` | the type of a byte string (in migrations) |
    ///
    /// The expansion of each literal is made once and kept: there are as many as statements in this crate.
    pub(crate) fn expand(self, sql: &'static str) -> &'static str {
        if !sql.contains('{') {
            return sql;
        }
        static EXPANDED: LazyLock<RwLock<HashMap<(Dialect, &'static str), &'static str>>> =
            LazyLock::new(RwLock::default);
        if let Some(found) = EXPANDED.read().get(&(self, sql)) {
            return found;
        }
        let mut cache = EXPANDED.write();
        cache
            .entry((self, sql))
            .or_insert_with(|| Box::leak(self.replace_tokens(sql).into_boxed_str()))
    }

    pub(crate) fn replace_tokens(self, sql: &str) -> String {
        let mut out = String::with_capacity(sql.len() + 64);
        let mut rest = sql;
        while let Some(open) = rest.find('{') {
            let close = open
                + rest[open..]
                    .find('}')
                    .expect("a token in a statement of this crate is closed");
            out.push_str(&rest[..open]);
            let token = &rest[open + 1..close];
            match (token.split_once(' ').unwrap_or((token, "")), self) {
                (("BLOB", ""), Self::Sqlite) => out.push_str("BLOB"),
                (("BLOB", ""), Self::Postgres) => out.push_str("BYTEA"),
                (("TEXT_LIST" | "INT_LIST", p), Self::Sqlite) => {
                    out.push_str(&format!("(SELECT value FROM json_each({p}))"));
                }
                (("TEXT_LIST", p), Self::Postgres) => {
                    out.push_str(&format!("(SELECT jsonb_array_elements_text({p}::jsonb))"));
                }
                (("INT_LIST", p), Self::Postgres) => {
                    out.push_str(&format!("(SELECT jsonb_array_elements_text({p}::jsonb)::bigint)"));
                }
                (("INDEXED_BY", index), Self::Sqlite) => out.push_str(&format!("INDEXED BY {index}")),
                (("INDEXED_BY", _), Self::Postgres) => {}
                _ => unreachable!("a statement of this crate names the unknown token {{{token}}}"),
            }
            rest = &rest[close + 1..];
        }
        out.push_str(rest);
        out
    }
}

/// The one text that carries a list parameter, for `{TEXT_LIST $n}` and `{INT_LIST $n}`.
pub fn list<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("a list of strings or integers always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_expand_per_dialect() {
        let sql = "SELECT a FROM t WHERE a IN {TEXT_LIST $1} AND b IN {INT_LIST $2}";
        assert_eq!(
            Dialect::Sqlite.expand(sql),
            "SELECT a FROM t WHERE a IN (SELECT value FROM json_each($1)) AND b IN (SELECT value FROM json_each($2))"
        );
        assert!(
            Dialect::Postgres
                .expand(sql)
                .contains("jsonb_array_elements_text($2::jsonb)::bigint")
        );
    }

    #[test]
    fn a_statement_without_tokens_is_itself() {
        let sql = "SELECT 1";
        assert!(std::ptr::eq(Dialect::Postgres.expand(sql), sql));
    }
}
