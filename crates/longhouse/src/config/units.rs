//! Durations and byte sizes as people write them ("90s", "50 MiB"). Owns the grammar and its error texts; must not
//! know which setting it reads.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

const DURATION_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
];

/// Parses one or more `<integer><unit>` terms, for instance `90s` or `1h 30m`. Units: ms, s, m, h, d, w.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(duration_error(text));
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| duration_error(text))?;
        let (_, scale) = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| duration_error(text))?;
        total_ms = number
            .checked_mul(*scale)
            .and_then(|ms| total_ms.checked_add(ms))
            .ok_or_else(|| format!("the duration `{text}` is too long"))?;
        rest = next.trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

fn duration_error(text: &str) -> String {
    format!("`{text}` is not a duration: write a number and a unit (ms, s, m, h, d, w), for instance \"30s\" or \"1h\"")
}

/// For `#[serde(deserialize_with)]`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        for (text, milliseconds) in [
            ("0s", 0),
            ("500ms", 500),
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("7 d", 604_800_000),
            ("2w", 1_209_600_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn nonsense_durations_are_refused_with_advice() {
        for text in ["", "10", "h", "1x", "-1s", "1.5h", "99999999999999999999s", "1h,2m"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains("unit"), "{text}: {error}");
        }
        assert!(
            parse_duration("18446744073709551615w")
                .expect_err("overflow")
                .contains("too long")
        );
    }
}
