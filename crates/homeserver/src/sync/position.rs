//! The token clients hold between two syncs. It names one position of the global stream; everything at or below it
//! has been delivered. It knows nothing of what the streams hold.

use std::fmt;

/// `since` and `next_batch` of `GET /sync`: `s` followed by a stream position.
///
/// Spec: client-server API §Syncing. The form is opaque to clients; ours is strict so that a token of another server,
/// or a damaged one, is refused instead of silently read as the beginning of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SyncToken(i64);

/// The text is not a token of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a sync token of this server")]
pub(crate) struct InvalidToken;

impl SyncToken {
    /// The token for everything up to and including `position`.
    pub(crate) fn at(position: i64) -> Self {
        Self(position.max(0))
    }

    /// Reads a token: `s`, then one to nineteen decimal digits without sign or leading zero.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidToken> {
        let digits = text.strip_prefix('s').ok_or(InvalidToken)?;
        let canonical = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        if !canonical {
            return Err(InvalidToken);
        }
        digits.parse().map(Self).map_err(|_| InvalidToken)
    }

    /// The stream position this token stands for.
    pub(crate) fn position(self) -> i64 {
        self.0
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_it_did_not_write() {
        for text in [
            "",
            "s",
            "0",
            "s-1",
            "s+1",
            "s01",
            "s1 ",
            " s1",
            "S1",
            "s1_2",
            "s9223372036854775808",
            "sé",
            "t1",
        ] {
            assert_eq!(SyncToken::parse(text), Err(InvalidToken), "{text:?}");
        }
        assert_eq!(SyncToken::parse("s0").unwrap().position(), 0);
        assert_eq!(SyncToken::parse("s9223372036854775807").unwrap().position(), i64::MAX);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(position in 0..=i64::MAX) {
            let token = SyncToken::at(position);
            prop_assert_eq!(SyncToken::parse(&token.to_string()), Ok(token));
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = SyncToken::parse(&text);
        }
    }
}
