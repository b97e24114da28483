//! Who was removed, so that a token from before the removal does not bring them back. Tokens are signed and stateless:
//! this memory is what ends one before its time.

use std::collections::{HashMap, VecDeque};

use credentials::livekit::{Claims, LEEWAY_SECONDS};
use parking_lot::Mutex;

/// Longest lifetime of a token, in seconds: as long is a removal remembered, and a refreshed token is good for as long.
pub(crate) const TOKEN_LIFETIME_SECONDS: u64 = 3600;
/// Most removals remembered; beyond it the oldest is forgotten.
const MAX_REMEMBERED: usize = 65_536;

/// Room and identity.
type Name = (String, String);

/// The removals of the last hour.
#[derive(Debug, Default)]
pub(crate) struct Removals(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// When each was last removed, seconds since the epoch.
    at: HashMap<Name, u64>,
    /// The same in order; an entry that is older than what `at` says was removed anew.
    order: VecDeque<(u64, Name)>,
}

impl Removals {
    /// Notes that tokens issued to `identity` for `room` up to `now` (seconds since the epoch) are over.
    pub(crate) fn note(&self, room: &str, identity: &str, now: u64) {
        let name = (room.to_owned(), identity.to_owned());
        let mut remembered = self.0.lock();
        remembered.at.insert(name.clone(), now);
        remembered.order.push_back((now, name));
        while let Some((noted, _)) = remembered.order.front()
            && (remembered.order.len() > MAX_REMEMBERED
                || noted.saturating_add(TOKEN_LIFETIME_SECONDS + LEEWAY_SECONDS) < now)
        {
            let Some((noted, name)) = remembered.order.pop_front() else {
                break;
            };
            if remembered.at.get(&name) == Some(&noted) {
                remembered.at.remove(&name);
            }
        }
    }

    /// Whether the token was issued before its holder was removed. Tokens count whole seconds: one of the very second
    /// of the removal is refused too.
    pub(crate) fn ended(&self, claims: &Claims) -> bool {
        let name = (claims.video.room.clone(), claims.identity.clone());
        let remembered = self.0.lock();
        remembered
            .at
            .get(&name)
            .is_some_and(|removed| claims.not_before <= *removed)
    }
}

#[cfg(test)]
mod tests {
    use credentials::livekit::RoomGrant;

    use super::*;

    fn claims(identity: &str, not_before: u64) -> Claims {
        Claims {
            identity: identity.to_owned(),
            not_before,
            video: RoomGrant::participant("room"),
            ..Claims::default()
        }
    }

    #[test]
    fn tokens_from_before_the_removal_are_over() {
        let removals = Removals::default();
        removals.note("room", "alice", 1000);
        assert!(removals.ended(&claims("alice", 999)) && removals.ended(&claims("alice", 1000)));
        assert!(!removals.ended(&claims("alice", 1001)), "a new one lets her in again");
        assert!(!removals.ended(&claims("bob", 999)));
        removals.note("elsewhere", "bob", 1000);
        assert!(!removals.ended(&claims("bob", 999)), "removed from another room");
    }

    #[test]
    fn a_removal_is_forgotten_when_no_token_of_its_time_is_left() {
        let removals = Removals::default();
        removals.note("room", "alice", 1000);
        removals.note("room", "alice", 2000);
        let end = 1000 + TOKEN_LIFETIME_SECONDS + LEEWAY_SECONDS;
        removals.note("room", "bob", end + 1);
        assert!(removals.ended(&claims("alice", 1500)), "the later removal counts");
        removals.note("room", "carol", end + 1001);
        assert!(!removals.ended(&claims("alice", 1500)));
        assert_eq!(removals.0.lock().at.len(), 2);
    }

    #[test]
    fn memory_is_bounded() {
        let removals = Removals::default();
        for number in 0..MAX_REMEMBERED + 100 {
            removals.note("room", &number.to_string(), 1000);
        }
        let remembered = removals.0.lock();
        assert_eq!(
            (remembered.at.len(), remembered.order.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
    }
}
