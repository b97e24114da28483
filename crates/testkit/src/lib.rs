//! What tests share: a clock that is told the time, and both databases. A development dependency
//! only; it knows none of the product's crates, so that each of them may use it.

pub mod clock;
pub mod database;
