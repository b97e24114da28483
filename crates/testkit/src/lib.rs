//! What tests share: a clock, both databases, a lossy network. A development dependency only.
