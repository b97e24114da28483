//! Which part of a file a request wants, if any of it: conditional and range requests (RFC 9110, sections 13 and 14).
//!
//! Pure: it is told headers, size and entity tag, and answers a choice.

use http::{HeaderMap, HeaderName, header};

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// 200 with everything.
    Whole,
    /// 206 with the bytes from the first to the last named one.
    Part {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// 304: the client has it.
    NotModified,
    /// 412: what the client builds on is something else.
    PreconditionFailed,
    /// 416: the file ends before the range begins.
    Unsatisfiable,
}

/// Chooses for a GET of a file that never changes. `etag` is its strong entity tag, with quotes. Files have no
/// modification date here, so conditions on one are never met and never fail (RFC 9110, section 13.1).
pub(super) fn choose(headers: &HeaderMap, size: u64, etag: &str) -> Choice {
    if headers.contains_key(header::IF_MATCH) && !names(headers, header::IF_MATCH, |tag| tag == etag) {
        return Choice::PreconditionFailed;
    }
    // Weak comparison: a weak tag of the same text is as good.
    if names(headers, header::IF_NONE_MATCH, |tag| {
        tag.trim_start_matches("W/") == etag
    }) {
        return Choice::NotModified;
    }
    let Some(range) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Choice::Whole;
    };
    if let Some(condition) = headers.get(header::IF_RANGE)
        && condition.as_bytes() != etag.as_bytes()
    {
        return Choice::Whole;
    }
    // An unknown unit, several ranges or nonsense: a server may answer everything.
    range_of(range, size).unwrap_or(Choice::Whole)
}

/// Whether a list of entity tags is `*` or has one that fits.
fn names(headers: &HeaderMap, name: HeaderName, fits: impl Fn(&str) -> bool) -> bool {
    let lists = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    // Our tags hold no comma.
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || fits(tag))
}

fn range_of(range: &str, size: u64) -> Option<Choice> {
    let (unit, range) = range.split_once('=')?;
    let (first, last) = range.split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // More digits than a number holds: beyond every end.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = (first.trim(), last.trim());
    let (first, last) = if first.is_empty() {
        let suffix = number(last)?;
        if suffix == 0 {
            return Some(Choice::Unsatisfiable);
        }
        (size.saturating_sub(suffix), u64::MAX)
    } else {
        let from = number(first)?;
        let to = if last.is_empty() { u64::MAX } else { number(last)? };
        if to < from {
            return None;
        }
        (from, to)
    };
    if first >= size {
        return Some(Choice::Unsatisfiable);
    }
    Some(Choice::Part {
        first,
        last: last.min(size - 1),
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"abc\"";

    fn chosen(of: &[(HeaderName, &str)]) -> Choice {
        let headers = of
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        choose(&headers.collect(), 100, TAG)
    }

    fn part(first: u64, last: u64) -> Choice {
        Choice::Part { first, last }
    }

    #[test]
    fn ranges_are_cut_to_the_file() {
        let cases = [
            ("bytes=0-9", part(0, 9)),
            ("bytes=90-", part(90, 99)),
            ("bytes=90-1000", part(90, 99)),
            ("Bytes= 5 - 5 ", part(5, 5)),
            ("bytes=-10", part(90, 99)),
            ("bytes=-1000", part(0, 99)),
            ("bytes=99999999999999999999999-", Choice::Unsatisfiable),
            ("bytes=100-", Choice::Unsatisfiable),
            ("bytes=-0", Choice::Unsatisfiable),
            ("bytes=9-5", Choice::Whole),
            ("bytes=1-2,5-6", Choice::Whole),
            ("bytes=-", Choice::Whole),
            ("bytes=+1-2", Choice::Whole),
            ("lines=1-2", Choice::Whole),
            ("", Choice::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(chosen(&[(header::RANGE, range)]), expected, "{range:?}");
        }
        let empty = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static("bytes=0-"))]);
        assert_eq!(choose(&empty, 0, TAG), Choice::Unsatisfiable);
    }

    #[test]
    fn conditions_come_before_ranges() {
        let range = (header::RANGE, "bytes=0-9");
        let with = |name: HeaderName, value| chosen(&[(name, value), range.clone()]);
        assert_eq!(with(header::IF_RANGE, TAG), part(0, 9));
        assert_eq!(with(header::IF_RANGE, "W/\"abc\""), Choice::Whole);
        assert_eq!(with(header::IF_RANGE, "Wed, 21 Oct 2015 07:28:00 GMT"), Choice::Whole);
        assert_eq!(with(header::IF_NONE_MATCH, "\"x\", W/\"abc\""), Choice::NotModified);
        assert_eq!(with(header::IF_NONE_MATCH, "*"), Choice::NotModified);
        assert_eq!(with(header::IF_NONE_MATCH, "\"x\""), part(0, 9));
        assert_eq!(with(header::IF_MATCH, "\"x\""), Choice::PreconditionFailed);
        assert_eq!(with(header::IF_MATCH, "\"x\", \"abc\""), part(0, 9));
        assert_eq!(with(header::IF_MATCH, "W/\"abc\""), Choice::PreconditionFailed);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_file(range in "(bytes=)?[0-9,-]{0,24}", size in 0u64..2000) {
            let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(&range).unwrap())]);
            if let Choice::Part { first, last } = choose(&headers, size, TAG) {
                prop_assert!(first <= last && last < size);
            }
        }
    }
}
