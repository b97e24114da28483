//! A STUN/TURN relay. Knows no Matrix and no database.
