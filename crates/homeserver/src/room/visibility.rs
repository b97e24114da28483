//! Who may see which event: the room's history visibility and the user's membership at the time.
//! Spec: client-server API, "Room history visibility".
//!
//! Time is this server's stream order, in which it learnt of the events.

use std::sync::Arc;

use ruma::{UserId, events::room::history_visibility::HistoryVisibility};

use super::{Error, Event, Membership, RoomState, Rooms};

/// The changes of a room's history visibility: position and new value, oldest first.
pub(super) type VisibilityChanges = Arc<Vec<(i64, HistoryVisibility)>>;

/// What of a room's history one user may see.
#[derive(Debug, Clone)]
pub struct Visibility {
    /// Everything: nothing further was loaded.
    everything: bool,
    changes: VisibilityChanges,
    /// The user's memberships: position and new value, oldest first.
    memberships: Vec<(i64, Membership)>,
}

impl Rooms {
    /// What of the room's history `user` may see. For a member of a room whose history was always
    /// shared, this reads nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn visibility(&self, room: &RoomState, user: &UserId) -> Result<Visibility, Error> {
        let open = |visibility: &HistoryVisibility| {
            matches!(visibility, HistoryVisibility::Shared | HistoryVisibility::WorldReadable)
        };
        let always_open = room.visibility_changes.iter().all(|(_, visibility)| open(visibility));
        if always_open && room.is_joined(user) {
            return Ok(Visibility {
                everything: true,
                changes: Arc::default(),
                memberships: Vec::new(),
            });
        }
        let memberships = self.membership_history(room, user).await?;
        Ok(Visibility {
            everything: false,
            changes: room.visibility_changes.clone(),
            memberships,
        })
    }
}

impl Visibility {
    /// Whether the user may see `event`.
    pub fn allows(&self, event: &Event) -> bool {
        if self.everything {
            return true;
        }
        let own = event.membership().is_some() && self.memberships.iter().any(|(nid, _)| *nid == event.nid);
        if own {
            return true;
        }
        let changes_visibility = self.changes.iter().any(|(nid, _)| *nid == event.nid);
        self.allows_at(event.nid) || (changes_visibility && self.allows_at(event.nid - 1))
    }

    /// Whether the user may see what happened at a position.
    pub fn allows_at(&self, position: i64) -> bool {
        if self.everything {
            return true;
        }
        let visibility = value_at(&self.changes, position).unwrap_or(&HistoryVisibility::Shared);
        let membership = self.membership_at(position);
        match visibility {
            HistoryVisibility::WorldReadable => true,
            _ if membership == Membership::Join => true,
            HistoryVisibility::Invited => membership == Membership::Invite,
            HistoryVisibility::Joined => false,
            // Shared; values nobody knows mean the same.
            _ => self
                .memberships
                .iter()
                .any(|(nid, membership)| *nid > position && *membership == Membership::Join),
        }
    }

    /// What the user was at a position; `Leave` before the first membership. For a member who may see
    /// everything, `Join`.
    pub fn membership_at(&self, position: i64) -> Membership {
        if self.everything {
            return Membership::Join;
        }
        value_at(&self.memberships, position)
            .copied()
            .unwrap_or(Membership::Leave)
    }
}

fn value_at<T>(changes: &[(i64, T)], position: i64) -> Option<&T> {
    let after = changes.partition_point(|(nid, _)| *nid <= position);
    after.checked_sub(1).map(|last| &changes[last].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The user is invited at 10, joins at 20, leaves at 30, joins again at 40 and leaves at 50.
    fn visibility(changes: Vec<(i64, HistoryVisibility)>) -> Visibility {
        Visibility {
            everything: false,
            changes: Arc::new(changes),
            memberships: vec![
                (10, Membership::Invite),
                (20, Membership::Join),
                (30, Membership::Leave),
                (40, Membership::Join),
                (50, Membership::Leave),
            ],
        }
    }

    #[test]
    fn each_visibility_opens_its_part_of_history() {
        // Positions: before the invite, invited, joined, gone, joined again, gone for good.
        let at = [5, 15, 25, 35, 45, 55];
        let cases = [
            (HistoryVisibility::WorldReadable, [true, true, true, true, true, true]),
            (HistoryVisibility::Shared, [true, true, true, true, true, false]),
            (HistoryVisibility::Invited, [false, true, true, false, true, false]),
            (HistoryVisibility::Joined, [false, false, true, false, true, false]),
        ];
        for (value, expected) in cases {
            let visibility = visibility(vec![(1, value.clone())]);
            assert_eq!(at.map(|position| visibility.allows_at(position)), expected, "{value}");
        }
    }

    #[test]
    fn a_change_counts_from_its_position_on() {
        let visibility = visibility(vec![(1, HistoryVisibility::Joined), (35, HistoryVisibility::Shared)]);
        assert!(!visibility.allows_at(34));
        assert!(visibility.allows_at(35));
    }
}
