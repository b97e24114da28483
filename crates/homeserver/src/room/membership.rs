//! Coming and going: joins, invitations, knocks, leaving, kicks and bans, on top of the same event
//! pipeline as everything else. What authorisation rules already say is not said again here.
//! Spec: client-server API, "Room membership".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedUserId, RoomId, ServerName, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    state_res::events::RoomPowerLevelsIntField,
};
use serde::Deserialize;

use super::{Accepted, Error, Membership, Proposal, Room, RoomState, Rooms};

/// A change of somebody's membership.
#[derive(Debug, Clone)]
pub struct MembershipChange {
    /// Who asks for it.
    pub sender: OwnedUserId,
    /// Whose membership changes.
    pub target: OwnedUserId,
    /// What it becomes.
    pub action: Action,
    /// Why, for people.
    pub reason: Option<String>,
    /// Name and picture of the target, for joins, invitations and knocks.
    pub profile: CanonicalJsonObject,
}

/// What can be done to a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The sender joins.
    Join,
    /// The sender asks to be let in.
    Knock,
    /// The target is asked to come in.
    Invite,
    /// The sender leaves, or declines an invitation.
    Leave,
    /// The target is put out.
    Kick,
    /// The target is kept out.
    Ban,
    /// The target may come back.
    Unban,
}

/// The content of a member event.
pub(super) fn member_content(
    membership: &str,
    reason: Option<&str>,
    profile: CanonicalJsonObject,
) -> CanonicalJsonObject {
    let mut content = profile;
    content.insert(
        "membership".to_owned(),
        CanonicalJsonValue::String(membership.to_owned()),
    );
    if let Some(reason) = reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.to_owned()));
    }
    content
}

#[derive(Deserialize)]
struct AllowRule {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

impl Rooms {
    /// Carries out a membership change.
    ///
    /// # Errors
    /// When the room's rules or the target's present membership do not allow it, or the database fails.
    pub async fn change_membership(&self, room: &Arc<Room>, change: MembershipChange) -> Result<Accepted, Error> {
        let state = room.state();
        let present = state.membership(&change.target);
        check_present(&change, present)?;
        if change.action == Action::Leave && present == Membership::Leave {
            return self.already_left(&state, &change.target);
        }
        let name = match change.action {
            Action::Join => MembershipState::Join,
            Action::Knock => MembershipState::Knock,
            Action::Invite => MembershipState::Invite,
            Action::Leave | Action::Kick | Action::Unban => MembershipState::Leave,
            Action::Ban => MembershipState::Ban,
        };
        let mut content = member_content(name.as_str(), change.reason.as_deref(), change.profile);
        let mut allowed_by_rule = false;
        if change.action == Action::Join
            && let Some(authoriser) = self.authoriser(&state, &change.target, present).await?
        {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                CanonicalJsonValue::String(authoriser.to_string()),
            );
            allowed_by_rule = true;
        }
        let mut proposal = Proposal::state(
            &change.sender,
            TimelineEventType::RoomMember,
            change.target.as_str(),
            content,
        );
        proposal.allowed_by_rule = allowed_by_rule;
        self.propose(room, proposal).await
    }

    fn already_left(&self, state: &RoomState, user: &UserId) -> Result<Accepted, Error> {
        match state.map.get(&StateEventType::RoomMember, user.as_str()) {
            Some(entry) => Ok(Accepted {
                event_id: entry.event_id.clone(),
                position: None,
            }),
            None => Err(Error::Forbidden("You are not in this room.".to_owned())),
        }
    }

    /// For a room that lets members of other rooms in: a local member who may invite, on whose authority
    /// `user` joins. `None` where the join needs no such authority.
    /// Spec: client-server API, "Restricted rooms".
    async fn authoriser(
        &self,
        state: &RoomState,
        user: &UserId,
        present: Membership,
    ) -> Result<Option<OwnedUserId>, Error> {
        if !matches!(state.join_rule().as_str(), "restricted" | "knock_restricted")
            || matches!(present, Membership::Join | Membership::Invite)
        {
            return Ok(None);
        }
        let rules = state
            .pinned(&StateEventType::RoomJoinRules)
            .and_then(|event| event.content_field::<Vec<serde_json::Value>>("allow"))
            .unwrap_or_default();
        let mut allowed = false;
        for rule in rules {
            // Rules of unknown kinds or shapes let nobody in.
            let Ok(rule) = serde_json::from_value::<AllowRule>(rule) else {
                continue;
            };
            if rule.kind == "m.room_membership"
                && let Some(other) = rule.room_id
                && let Some(other) = self.find(&other).await?
                && other.state().is_joined(user)
            {
                allowed = true;
                break;
            }
        }
        if !allowed {
            return Err(Error::Forbidden(
                "You are in none of the rooms whose members may join this room.".to_owned(),
            ));
        }
        let level = state.action_level(RoomPowerLevelsIntField::Invite);
        let members = state.local_members(&self.inner.server_name);
        let authoriser = members.iter().find(|member| state.power_level(member) >= level);
        authoriser
            .cloned()
            .map(Some)
            .ok_or_else(|| Error::Forbidden("Nobody on this server may let you into this room.".to_owned()))
    }

    /// Hides a room that `user` has left.
    ///
    /// # Errors
    /// [`Error::BadState`] while the user is in the room or invited, or when the database fails.
    pub async fn forget(&self, room_id: &RoomId, user: &UserId) -> Result<(), Error> {
        let room = self.get(room_id).await?;
        let state = room.state();
        if matches!(
            state.membership(user),
            Membership::Join | Membership::Invite | Membership::Knock
        ) {
            return Err(Error::BadState("Leave the room before forgetting it.".to_owned()));
        }
        if state.map.get(&StateEventType::RoomMember, user.as_str()).is_none() {
            return Err(Error::NotFound(format!("You have nothing to do with {room_id}.")));
        }
        self.inner.store.forget_room(state.room_nid, user.to_string()).await?;
        self.inner.members.forget(user, room_id);
        Ok(())
    }

    /// Brings name and picture of `user` up to date in every room they are joined to.
    ///
    /// # Errors
    /// When the database fails; rooms that do not take the event are passed over.
    pub async fn update_profile(&self, user: &UserId, profile: &CanonicalJsonObject) -> Result<(), Error> {
        let rooms = self.memberships_of(user).await?;
        for (room_id, _) in rooms.iter().filter(|(_, m)| m.membership == Membership::Join) {
            let Some(room) = self.find(room_id).await? else {
                continue;
            };
            let content = member_content("join", None, profile.clone());
            let proposal = Proposal::state(user, TimelineEventType::RoomMember, user.as_str(), content);
            if let Err(e) = self.propose(&room, proposal).await {
                tracing::warn!(%room_id, error = %e, "a room does not take a changed profile");
            }
        }
        Ok(())
    }
}

/// What authorisation rules leave to the server that makes a member event: whether a join on another
/// member's authority follows the room's allow rules, and whether an invitation can reach its user.
pub(super) fn check_own(proposal: &Proposal, state: &RoomState, server_name: &ServerName) -> Result<(), Error> {
    check_call_member(proposal)?;
    let Some(user) = proposal
        .state_key
        .as_deref()
        .filter(|_| proposal.kind == TimelineEventType::RoomMember)
    else {
        return Ok(());
    };
    let Ok(user) = <&UserId>::try_from(user) else {
        return Err(Error::InvalidParam(format!("{user:?} is not a user id.")));
    };
    let claims_authority = proposal.content.contains_key("join_authorised_via_users_server");
    let present = state.membership(user);
    if claims_authority && !proposal.allowed_by_rule && !matches!(present, Membership::Join | Membership::Invite) {
        return Err(Error::Forbidden("Join this room by the join endpoint.".to_owned()));
    }
    // Spec: rooms/v8, authorisation rule 4.2: such an event needs the signature of that user's server.
    let is_ours = |authoriser: &CanonicalJsonValue| {
        let authoriser = authoriser.as_str().and_then(|user| <&UserId>::try_from(user).ok());
        authoriser.is_some_and(|user| user.server_name() == server_name)
    };
    let authoriser = proposal.content.get("join_authorised_via_users_server");
    if authoriser.is_some_and(|authoriser| !is_ours(authoriser)) {
        return Err(Error::Forbidden(
            "`join_authorised_via_users_server` names no user of this server.".to_owned(),
        ));
    }
    let invites = proposal.content.get("membership").and_then(|m| m.as_str()) == Some("invite");
    if invites && user.server_name() != server_name {
        return Err(Error::Forbidden(
            "Users of other servers cannot be invited: this server does not federate.".to_owned(),
        ));
    }
    Ok(())
}

/// Everybody may write their place in a call, and nobody another's: the key names its owner
/// (`_@user:server_DEVICE_m.call`), which the authorisation rules look at only when it begins with `@`.
fn check_call_member(proposal: &Proposal) -> Result<(), Error> {
    let kind = proposal.kind.to_string();
    if !matches!(kind.as_str(), "org.matrix.msc3401.call.member" | "m.call.member") {
        return Ok(());
    }
    let Some(owner) = proposal.state_key.as_deref().and_then(|key| key.strip_prefix('_')) else {
        return Ok(());
    };
    let own = owner
        .strip_prefix(proposal.sender.as_str())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    if owner.starts_with('@') && !own {
        return Err(Error::Forbidden("This is another user's place in the call.".to_owned()));
    }
    Ok(())
}

fn check_present(change: &MembershipChange, present: Membership) -> Result<(), Error> {
    let here = matches!(present, Membership::Join | Membership::Invite | Membership::Knock);
    match change.action {
        Action::Kick if !here => Err(Error::Forbidden(format!("{} is not in this room.", change.target))),
        Action::Unban if present != Membership::Ban => Err(Error::BadState(format!(
            "{} is not banned from this room.",
            change.target
        ))),
        Action::Invite if present == Membership::Join => {
            Err(Error::Forbidden(format!("{} is in this room already.", change.target)))
        }
        _ => Ok(()),
    }
}
