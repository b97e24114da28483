//! The members of a room for whom an event has another result than for most, in a few bytes each: for every result one
//! group of rising small numbers, each written as the difference to the one before (LEB128, as DWARF 5 §7.6 has it).

use super::Outcome;

const NOTIFY: u8 = 1;
const HIGHLIGHT: u8 = 2;

/// Users by their small number ([`crate::Store::push_user_nids`]), grouped by what an event means to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others(Vec<u8>);

impl Others {
    /// Nobody has another result.
    pub fn none() -> Self {
        Self::default()
    }

    /// Writes the groups. A user stands in one of them at most.
    pub fn new(groups: impl IntoIterator<Item = (Outcome, Vec<i64>)>) -> Self {
        let mut bytes = Vec::new();
        for (outcome, mut users) in groups {
            if users.is_empty() {
                continue;
            }
            users.sort_unstable();
            bytes.push(if outcome.notify { NOTIFY } else { 0 } | if outcome.highlight { HIGHLIGHT } else { 0 });
            write_number(&mut bytes, outcome.actions.len() as u64);
            bytes.extend_from_slice(outcome.actions.as_bytes());
            write_number(&mut bytes, users.len() as u64);
            let mut before = 0;
            for user in users {
                write_number(&mut bytes, user.abs_diff(before));
                before = user;
            }
        }
        Self(bytes)
    }

    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// As it is kept.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether nobody has another result.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every one of them, by small number: whether the event notifies and highlights them.
    pub(super) fn each(&self, mut meets: impl FnMut(i64, (bool, bool))) -> Option<()> {
        let mut rest = self.0.as_slice();
        while let Some((&flags, after)) = rest.split_first() {
            rest = after;
            let length = usize::try_from(read_number(&mut rest)?).ok()?;
            (_, rest) = rest.split_at_checked(length)?;
            let mut user = 0i64;
            for _ in 0..read_number(&mut rest)? {
                user = user.checked_add_unsigned(read_number(&mut rest)?)?;
                meets(user, (flags & NOTIFY != 0, flags & HIGHLIGHT != 0));
            }
        }
        Some(())
    }

    /// The result for one user; `None` when it is that of most.
    pub fn of(&self, user_nid: i64) -> Option<OtherOutcome<'_>> {
        let mut rest = self.0.as_slice();
        while let Some((&flags, after)) = rest.split_first() {
            rest = after;
            let length = usize::try_from(read_number(&mut rest)?).ok()?;
            let (actions, after) = rest.split_at_checked(length)?;
            rest = after;
            let mut user = 0i64;
            for _ in 0..read_number(&mut rest)? {
                user = user.checked_add_unsigned(read_number(&mut rest)?)?;
                if user == user_nid {
                    return Some(OtherOutcome {
                        notify: flags & NOTIFY != 0,
                        highlight: flags & HIGHLIGHT != 0,
                        actions: std::str::from_utf8(actions).ok()?,
                    });
                }
            }
        }
        None
    }
}

/// What an event means to one of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherOutcome<'a> {
    /// It counts as a notification.
    pub notify: bool,
    /// It counts as a highlight.
    pub highlight: bool,
    /// The actions of the matching push rule, as JSON text.
    pub actions: &'a str,
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn outcome(kind: u8) -> Outcome {
        Outcome {
            notify: kind & 1 != 0,
            highlight: kind & 2 != 0,
            actions: "x".repeat(usize::from(kind) * 100),
        }
    }

    proptest! {
        #[test]
        fn everybody_is_found_again(users in prop::collection::btree_map(1i64..5000, 0u8..4, 0..200)) {
            let mut groups: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
            for (user, kind) in &users {
                groups.entry(*kind).or_default().push(*user);
            }
            let others = Others::new(groups.into_iter().map(|(kind, users)| (outcome(kind), users)));
            prop_assert_eq!(others.is_empty(), users.is_empty());
            let mut met = BTreeMap::new();
            others.each(|user, outcome| {
                met.insert(user, outcome);
            });
            let expected = users.iter().map(|(user, kind)| (*user, (kind & 1 != 0, kind & 2 != 0))).collect();
            prop_assert_eq!(met, expected);
            for user in 0..5001 {
                let found = others.of(user).map(|o| (o.notify, o.highlight, o.actions.len()));
                let expected = users.get(&user).map(|kind| outcome(*kind)).map(|o| (o.notify, o.highlight, o.actions.len()));
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn damaged_bytes_answer_nothing_or_something_but_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let others = Others::from_bytes(bytes);
            let _ = others.of(3);
            let _ = others.each(|_, _| ());
        }
    }

    #[test]
    fn three_hundred_neighbours_take_about_a_byte_each() {
        let others = Others::new([(outcome(0), (1..=300).collect())]);
        assert!(others.as_bytes().len() < 310, "{}", others.as_bytes().len());
    }
}
