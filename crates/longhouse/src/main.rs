//! The `longhouse` process.

fn main() {}
