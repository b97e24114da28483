//! What tests share: a clock that is told the time, both databases, damaged messages, and ports. A development dependency
//! only; it knows none of the product's crates, so that each of them may use it.

pub mod clock;
pub mod database;
pub mod mutation;
pub mod ports;
