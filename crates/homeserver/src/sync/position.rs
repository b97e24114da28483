//! The token clients hold between two syncs. It names one position of the global stream; everything at or below it
//! has been delivered. It knows nothing of what the streams hold.

use std::fmt;

/// `since` and `next_batch` of `GET /sync`: `s` and a stream position; where messages to the device are still on their
/// way, `_` and the position up to which those were delivered.
///
/// Spec: client-server API §Syncing. The form is opaque to clients; ours is strict so that a token of another server,
/// or a damaged one, is refused instead of silently read as the beginning of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SyncToken {
    position: i64,
    to_device: i64,
}

/// The text is not a token of this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a sync token of this server")]
pub(crate) struct InvalidToken;

impl SyncToken {
    /// The token for everything up to and including `position`.
    pub(crate) fn at(position: i64) -> Self {
        let position = position.max(0);
        Self {
            position,
            to_device: position,
        }
    }

    /// The same, but with messages to the device delivered only up to `to_device`.
    pub(crate) fn with_to_device(self, to_device: i64) -> Self {
        Self {
            to_device: to_device.clamp(0, self.position),
            ..self
        }
    }

    /// Reads a token: `s`, one to nineteen decimal digits without sign or leading zero, and the like after `_`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidToken> {
        let rest = text.strip_prefix('s').ok_or(InvalidToken)?;
        match rest.split_once('_') {
            None => Ok(Self::at(number(rest)?)),
            Some((position, to_device)) => {
                let (position, to_device) = (number(position)?, number(to_device)?);
                if to_device < position {
                    Ok(Self { position, to_device })
                } else {
                    Err(InvalidToken)
                }
            }
        }
    }

    /// The stream position this token stands for.
    pub(crate) fn position(self) -> i64 {
        self.position
    }

    /// The position up to which messages to the device were delivered.
    pub(crate) fn to_device(self) -> i64 {
        self.to_device
    }
}

fn number(digits: &str) -> Result<i64, InvalidToken> {
    let canonical = !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    if canonical {
        digits.parse().map_err(|_| InvalidToken)
    } else {
        Err(InvalidToken)
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.position)?;
        if self.to_device == self.position {
            Ok(())
        } else {
            write!(f, "_{}", self.to_device)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_it_did_not_write() {
        let wrong = [
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
            "s1_1",
            "s2_",
            "s_1",
            "s3_2_1",
            "s9223372036854775808",
            "sé",
            "t1",
        ];
        for text in wrong {
            assert_eq!(SyncToken::parse(text), Err(InvalidToken), "{text:?}");
        }
        assert_eq!(SyncToken::parse("s0").unwrap().position(), 0);
        assert_eq!(SyncToken::parse("s9223372036854775807").unwrap().position(), i64::MAX);
        assert_eq!(SyncToken::parse("s2_1").unwrap().to_device(), 1);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(position in 0..=i64::MAX, to_device in any::<i64>()) {
            let token = SyncToken::at(position);
            prop_assert_eq!(SyncToken::parse(&token.to_string()), Ok(token));
            let token = token.with_to_device(to_device);
            prop_assert_eq!(SyncToken::parse(&token.to_string()), Ok(token));
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = SyncToken::parse(&text);
        }
    }
}
