//! Whom an event notifies. Users who never changed a rule differ only in whether the event speaks of them, so their
//! result is computed once; only the mentioned, the invited and those with rules of their own are looked at one by one.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock},
};

use futures_util::FutureExt as _;
use ruma::{
    Int, OwnedRoomId, OwnedUserId, ServerName, UInt, UserId,
    events::StateEventType,
    push::{Action, FlattenedJson, FlattenedJsonValue, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
    user_id,
};
use serde_json::value::RawValue;
use storage::push::Notified;

use super::{Known, Push};
use crate::room::RoomState;

/// What rules ask about a room, at the event.
#[derive(Debug)]
pub(crate) struct PushRoom {
    pub(crate) room_id: OwnedRoomId,
    /// Joined members, of all servers.
    pub(crate) member_count: u64,
    /// Joined members of this server.
    pub(crate) members: Vec<OwnedUserId>,
    /// Read only when a rule asks whether the sender may notify everybody.
    pub(crate) power_levels: Option<PushConditionPowerLevelsCtx>,
}

impl PushRoom {
    fn of(room: &RoomState, server_name: &ServerName, with_power_levels: bool) -> Self {
        Self {
            room_id: room.room_id.clone(),
            member_count: u64::try_from(room.joined).unwrap_or(u64::MAX),
            members: room.local_members(server_name).to_vec(),
            power_levels: with_power_levels.then(|| power_levels(room)),
        }
    }
}

fn power_levels(room: &RoomState) -> PushConditionPowerLevelsCtx {
    let event = room.pinned(&StateEventType::RoomPowerLevels);
    let field = |name: &str| event.and_then(|event| event.content_field::<Int>(name));
    let creators = room.creators();
    let mut users: BTreeMap<OwnedUserId, Int> =
        event.and_then(|event| event.content_field("users")).unwrap_or_default();
    if event.is_none() {
        users.extend(creators.iter().map(|creator| (creator.clone(), 100.into())));
    }
    PushConditionPowerLevelsCtx::new(
        users,
        field("users_default").unwrap_or_default(),
        event
            .and_then(|event| event.content_field("notifications"))
            .unwrap_or_default(),
        RoomPowerLevelsRules::new(&room.rules.authorization, creators),
    )
}

impl Push {
    /// Evaluates the push rules of the room's local members, and of the invited user if the event is an invite; to be
    /// recorded in the event's own transaction with [`storage::push::record_notified`]. `event` is its JSON.
    pub(crate) async fn evaluate(
        &self,
        event: Box<RawValue>,
        sender: &UserId,
        room: &RoomState,
    ) -> Result<Vec<Notified>, storage::Error> {
        let local = room.local_members(&self.server_name);
        let invites = event.get().contains(r#""m.room.member""#);
        if !invites && local.iter().all(|member| member == sender) {
            return Ok(Vec::new());
        }
        let asks_for_levels = event.get().contains(r#""m.mentions""#) || !self.customised.read().is_empty();
        self.evaluate_in(event, sender, PushRoom::of(room, &self.server_name, asks_for_levels))
            .await
    }

    async fn evaluate_in(
        &self,
        event: Box<RawValue>,
        sender: &UserId,
        mut room: PushRoom,
    ) -> Result<Vec<Notified>, storage::Error> {
        let event = FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(event));
        let invited = invited_user(&event).filter(|invited| invited.server_name() == self.server_name);
        if let Some(invited) = &invited
            && !room.members.contains(invited)
        {
            room.members.push(invited.clone());
        }
        room.members.retain(|member| member != sender);
        self.ignored
            .retain_listeners(sender, &mut room.members, |member| member);
        if room.members.is_empty() {
            return Ok(Vec::new());
        }

        let members = std::mem::take(&mut room.members);
        let spoken_of = mentioned_users(&event, invited.as_ref());
        let shared = Ruleset::server_default(*NOBODY);
        let mut context = Context::new(room);
        let ordinary = context.outcome(&shared, &event, *NOBODY);
        let mut groups: Vec<(Outcome, Vec<String>)> = Vec::new();
        for member in members {
            let outcome = match self.known(&member) {
                Known::Default if !spoken_of.contains(member.as_str()) => ordinary.clone(),
                Known::Default => {
                    let rules = Ruleset::server_default(&member);
                    context.outcome(&rules, &event, &member)
                }
                Known::Loaded(rules) => context.outcome(&rules, &event, &member),
                Known::NotLoaded => {
                    let rules = self.ruleset(&member).await?;
                    context.outcome(&rules, &event, &member)
                }
            };
            if !outcome.notify && !outcome.highlight {
                continue;
            }
            let user_id = String::from(member);
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

    fn outcome(&mut self, rules: &Ruleset, event: &FlattenedJson, user_id: &UserId) -> Outcome {
        self.0.user_id = user_id.to_owned();
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
