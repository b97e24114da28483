//! The two engines have different connection, row and argument types, so a function cannot serve
//! both; these macros write the statement once and match on the engine.

/// Runs a statement on `&mut Conn`; answers the number of rows it changed.
macro_rules! execute {
    ($conn:expr, $sql:expr $(, $arg:expr)* $(,)?) => {{
        let conn: &mut $crate::Conn = &mut *$conn;
        match conn {
            $crate::Conn::Sqlite(c) => sqlx::query($crate::Dialect::Sqlite.expand($sql))
                $(.bind($arg))*
                .execute(&mut **c)
                .await
                .map(|done| done.rows_affected())
                .map_err($crate::Error::from),
            $crate::Conn::Postgres(c) => sqlx::query($crate::Dialect::Postgres.expand($sql))
                $(.bind($arg))*
                .execute(&mut **c)
                .await
                .map(|done| done.rows_affected())
                .map_err($crate::Error::from),
        }
    }};
}

/// Every row, as `$row` (a tuple or a `FromRow` struct).
macro_rules! fetch_all {
    ($conn:expr, $row:ty, $sql:expr $(, $arg:expr)* $(,)?) => { fetch!(fetch_all, $conn, $row, $sql $(, $arg)*) };
}

/// The first row, if there is one, as `$row` (a tuple or a `FromRow` struct).
macro_rules! fetch_optional {
    ($conn:expr, $row:ty, $sql:expr $(, $arg:expr)* $(,)?) => { fetch!(fetch_optional, $conn, $row, $sql $(, $arg)*) };
}

macro_rules! fetch {
    ($how:ident, $conn:expr, $row:ty, $sql:expr $(, $arg:expr)*) => {{
        let conn: &mut $crate::Conn = &mut *$conn;
        match conn {
            $crate::Conn::Sqlite(c) => sqlx::query_as::<_, $row>($crate::Dialect::Sqlite.expand($sql))
                $(.bind($arg))*
                .$how(&mut **c)
                .await
                .map_err($crate::Error::from),
            $crate::Conn::Postgres(c) => sqlx::query_as::<_, $row>($crate::Dialect::Postgres.expand($sql))
                $(.bind($arg))*
                .$how(&mut **c)
                .await
                .map_err($crate::Error::from),
        }
    }};
}

/// Lets the fetching macros fill a struct from the columns named like its fields.
macro_rules! from_row {
    ($row:ident { $($field:ident),* $(,)? }) => {
        impl sqlx::FromRow<'_, sqlx::sqlite::SqliteRow> for $row {
            fn from_row(row: &sqlx::sqlite::SqliteRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: sqlx::Row::try_get(row, stringify!($field))?),* })
            }
        }
        impl sqlx::FromRow<'_, sqlx::postgres::PgRow> for $row {
            fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: sqlx::Row::try_get(row, stringify!($field))?),* })
            }
        }
    };
}
