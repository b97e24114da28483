//! A selective forwarding unit that speaks LiveKit's client protocol. Knows no Matrix and no database.
