//! Whom an event notifies. Users who never changed a rule differ only in whether the event speaks of them, so their
//! result is computed once; only the mentioned, the invited and those with rules of their own are looked at one by one.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
};

use futures_util::FutureExt as _;
use ruma::{
    OwnedRoomId, OwnedUserId, UInt, UserId,
    push::{Action, FlattenedJson, FlattenedJsonValue, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
    user_id,
};
use serde_json::value::RawValue;
use storage::push::Notified;

use super::{Known, Push};

/// A joined member of this server.
#[derive(Debug, Clone)]
pub struct LocalMember {
    /// The user.
    pub user_id: OwnedUserId,
    /// The display name of the membership event, for rules that look for it.
    pub display_name: Option<String>,
}

/// What rules ask about a room, at the event.
#[derive(Debug)]
pub struct PushRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Joined members, of all servers.
    pub member_count: u64,
    /// The power levels, for rules that ask whether the sender may notify everybody.
    pub power_levels: Option<PushConditionPowerLevelsCtx>,
    /// Joined members of this server.
    pub members: Vec<LocalMember>,
}

impl Push {
    /// Evaluates the push rules of the room's local members, and of the invited user if the event is an invite; to be
    /// recorded in the event's own transaction with [`storage::push::record_notified`].
    ///
    /// # Errors
    /// When rules cannot be read.
    pub async fn evaluate(
        &self,
        event: &RawValue,
        sender: &UserId,
        mut room: PushRoom,
    ) -> Result<Vec<Notified>, storage::Error> {
        let event = FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(event.to_owned()));
        let invited = invited_user(&event).filter(|invited| invited.server_name() == self.server_name);
        if let Some(invited) = &invited
            && !room.members.iter().any(|member| member.user_id == *invited)
        {
            room.members.push(LocalMember {
                user_id: invited.clone(),
                display_name: None,
            });
        }
        room.members.retain(|member| member.user_id != sender);
        self.ignored
            .retain_listeners(sender, &mut room.members, |member| &member.user_id);
        if room.members.is_empty() {
            return Ok(Vec::new());
        }

        let members = std::mem::take(&mut room.members);
        let spoken_of = mentioned_users(&event, invited.as_ref());
        let shared = Ruleset::server_default(*NOBODY);
        let mut context = Context::new(room);
        let ordinary = context.outcome(&shared, &event, *NOBODY, "");
        let mut groups: Vec<(Outcome, Vec<String>)> = Vec::new();
        for member in members {
            let outcome = match self.known(&member.user_id) {
                Known::Default if !spoken_of.contains(member.user_id.as_str()) => ordinary.clone(),
                Known::Default => {
                    let rules = Ruleset::server_default(&member.user_id);
                    context.outcome(&rules, &event, &member.user_id, "")
                }
                Known::Loaded(rules) => {
                    let name = member.display_name.as_deref().unwrap_or_default();
                    context.outcome(&rules, &event, &member.user_id, name)
                }
                Known::NotLoaded => {
                    let rules = self.ruleset(&member.user_id).await?;
                    let name = member.display_name.as_deref().unwrap_or_default();
                    context.outcome(&rules, &event, &member.user_id, name)
                }
            };
            if !outcome.notify && !outcome.highlight {
                continue;
            }
            let user_id = String::from(member.user_id);
            match groups.iter_mut().find(|(same, _)| *same == outcome) {
                Some((_, user_ids)) => user_ids.push(user_id),
                None => groups.push((outcome, vec![user_id])),
            }
        }
        Ok(groups
            .into_iter()
            .map(|(outcome, user_ids)| Notified {
                user_ids,
                notify: outcome.notify,
                highlight: outcome.highlight,
                actions: outcome.actions.to_string(),
            })
            .collect())
    }
}

/// Stands for any user the event does not speak of; no user can have this name.
static NOBODY: LazyLock<&UserId> = LazyLock::new(|| user_id!("@-:invalid"));

#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    notify: bool,
    highlight: bool,
    actions: Arc<str>,
}

/// The conditions' view of the room, for one user after the other.
struct Context(PushConditionRoomCtx);

impl Context {
    fn new(room: PushRoom) -> Self {
        let mut context = PushConditionRoomCtx::new(
            room.room_id,
            UInt::new_saturating(room.member_count),
            (*NOBODY).to_owned(),
            String::new(),
        );
        context.power_levels = room.power_levels;
        Self(context)
    }

    fn outcome(&mut self, rules: &Ruleset, event: &FlattenedJson, user_id: &UserId, display_name: &str) -> Outcome {
        self.0.user_id = user_id.to_owned();
        self.0.user_display_name = display_name.to_owned();
        let matching = rules.iter().find(|rule| {
            // The future waits only where rules ask for thread subscriptions, which this context does not offer.
            rule.applies(event, &self.0).now_or_never().unwrap_or(false)
        });
        let actions = matching.map(|rule| rule.actions()).unwrap_or_default();
        Outcome {
            notify: actions.iter().any(|action| matches!(action, Action::Notify)),
            highlight: actions.iter().any(Action::is_highlight),
            actions: serde_json::to_string(actions)
                .unwrap_or_else(|_| "[]".to_owned())
                .into(),
        }
    }
}

fn invited_user(event: &FlattenedJson) -> Option<OwnedUserId> {
    (event.get_str("type") == Some("m.room.member") && event.get_str("content.membership") == Some("invite"))
        .then(|| {
            event
                .get_str("state_key")
                .and_then(|user_id| UserId::parse(user_id).ok())
        })
        .flatten()
}

fn mentioned_users<'a>(event: &'a FlattenedJson, invited: Option<&'a OwnedUserId>) -> HashSet<&'a str> {
    let mentioned = event
        .get(r"content.m\.mentions.user_ids")
        .and_then(FlattenedJsonValue::as_array)
        .unwrap_or_default();
    mentioned
        .iter()
        .filter_map(|value| value.as_str())
        .chain(invited.map(|user_id| user_id.as_str()))
        .collect()
}
