//! Whom an event notifies. Users who never changed a rule differ only in whether the event speaks of them, so their
//! result is computed once, and goes without naming them; only the mentioned, the invited, those with rules of their own
//! and those who ignore the sender are looked at one by one.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::LazyLock,
};

use futures_util::FutureExt as _;
use ruma::{
    Int, OwnedUserId, ServerName, UInt, UserId,
    events::StateEventType,
    push::{Action, FlattenedJson, FlattenedJsonValue, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
    user_id,
};
use serde_json::value::RawValue;
use storage::push::{Notified, Others, Outcome};

use super::Push;
use crate::room::RoomState;

/// Members with a highlight of their own that get a row each; more of them are kept with the event.
const MAX_PERSONAL: usize = 16;

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
    ) -> Result<Notified, storage::Error> {
        let invites = event.get().contains(r#""m.room.member""#);
        if !invites && room.joined <= 1 {
            return Ok(Notified::nobody());
        }
        // Read only when a rule may ask whether the sender may notify everybody.
        let asks_for_levels = event.get().contains(r#""m.mentions""#) || !self.customised.read().is_empty();
        let event = FlattenedJson::from_raw(&Raw::<serde_json::Value>::from_json(event));
        let mut context = Context::new(room, asks_for_levels);
        let base = context.outcome(&DEFAULT_RULES, &event, *NOBODY);

        let invited = invited_user(&event).filter(|invited| invited.server_name() == self.server_name);
        let ignoring = self.ignored.ignoring(sender);
        let mut personal = Vec::new();
        let mut groups = Groups::default();
        for member in self.special_members(&event, sender, room, &ignoring) {
            let outcome = if ignoring.contains(&member) {
                Outcome::silent()
            } else {
                context.outcome(&*self.ruleset(&member).await?, &event, &member)
            };
            if outcome != base {
                groups.add(outcome, member);
            }
        }
        let base = groups.make_base_the_most_common(base, sender, room, &self.server_name);
        let highlighted = groups.take_few_highlighted(&base);
        personal.extend(
            highlighted
                .into_iter()
                .map(|(member, outcome)| (String::from(member), outcome)),
        );
        if let Some(invited) = invited
            && !room.is_joined(&invited)
            && !ignoring.contains(&invited)
            && invited != sender
        {
            let outcome = context.outcome(&*self.ruleset(&invited).await?, &event, &invited);
            if !outcome.is_silent() {
                personal.push((invited.into(), outcome));
            }
        }
        let mut others = Vec::with_capacity(groups.0.len());
        for (outcome, members) in groups.0 {
            let members: Vec<&str> = members.iter().map(|member| member.as_str()).collect();
            others.push((outcome, self.store.push_user_nids(&members).await?));
        }
        Ok(Notified {
            base,
            others: Others::new(others),
            personal,
        })
    }

    /// Joined members of this server, other than the sender, for whom the event may have another result than for most:
    /// who has rules of their own, is mentioned, or ignores the sender.
    fn special_members(
        &self,
        event: &FlattenedJson,
        sender: &UserId,
        room: &RoomState,
        ignoring: &HashSet<OwnedUserId>,
    ) -> BTreeSet<OwnedUserId> {
        let joined = |user_id: &UserId| user_id != sender && room.is_joined(user_id);
        let mut special = BTreeSet::new();
        {
            let customised = self.customised.read();
            if customised.len() <= room.joined {
                special.extend(customised.keys().filter(|user_id| joined(user_id)).cloned());
            } else {
                let members = room.local_members(&self.server_name);
                let members = members.iter().filter(|member| *member != sender);
                special.extend(members.filter(|member| customised.contains_key(*member)).cloned());
            }
        }
        let mentioned = mentioned_users(event)
            .filter_map(|user_id| UserId::parse(user_id).ok())
            .filter(|user_id| user_id.server_name() == self.server_name && joined(user_id));
        special.extend(mentioned);
        special.extend(ignoring.iter().filter(|user_id| joined(user_id)).cloned());
        special
    }
}

/// Members by what the event means to them.
#[derive(Debug, Default)]
struct Groups(Vec<(Outcome, Vec<OwnedUserId>)>);

impl Groups {
    fn add(&mut self, outcome: Outcome, member: OwnedUserId) {
        match self.0.iter_mut().find(|(same, _)| *same == outcome) {
            Some((_, members)) => members.push(member),
            None => self.0.push((outcome, vec![member])),
        }
    }

    /// Where most members have the same rules of their own, that is the result that goes without saying.
    fn make_base_the_most_common(
        &mut self,
        base: Outcome,
        sender: &UserId,
        room: &RoomState,
        server_name: &ServerName,
    ) -> Outcome {
        let Some(largest) = (0..self.0.len()).max_by_key(|at| self.0[*at].1.len()) else {
            return base;
        };
        let members = room.local_members(server_name);
        // All special members are among these, the sender is not special.
        let special: usize = self.0.iter().map(|(_, members)| members.len()).sum();
        let sending = usize::from(sender.server_name() == server_name && room.is_joined(sender));
        if members.len().saturating_sub(special + sending) >= self.0[largest].1.len() {
            return base;
        }
        let special: HashSet<&OwnedUserId> = self.0.iter().flat_map(|(_, members)| members).collect();
        let ordinary: Vec<OwnedUserId> = members
            .iter()
            .filter(|member| *member != sender && !special.contains(member))
            .cloned()
            .collect();
        let (common, _) = self.0.swap_remove(largest);
        if !ordinary.is_empty() {
            self.0.push((base, ordinary));
        }
        common
    }

    /// Those whom the event highlights as it does not most, if they are few.
    fn take_few_highlighted(&mut self, base: &Outcome) -> Vec<(OwnedUserId, Outcome)> {
        let highlights = |outcome: &Outcome| outcome.highlight && !base.highlight;
        let highlighted = self.0.iter().filter(|(outcome, _)| highlights(outcome));
        if highlighted.map(|(_, members)| members.len()).sum::<usize>() > MAX_PERSONAL {
            return Vec::new();
        }
        let (personal, others) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(outcome, _)| highlights(outcome));
        self.0 = others;
        let personal: Vec<(Outcome, Vec<OwnedUserId>)> = personal;
        personal
            .into_iter()
            .flat_map(|(outcome, members)| members.into_iter().map(move |member| (member, outcome.clone())))
            .collect()
    }
}

/// The rules of who never changed one and is not spoken of.
static DEFAULT_RULES: LazyLock<Ruleset> = LazyLock::new(|| Ruleset::server_default(*NOBODY));

/// Stands for any user the event does not speak of; no user can have this name.
static NOBODY: LazyLock<&UserId> = LazyLock::new(|| user_id!("@-:invalid"));

/// The conditions' view of the room, for one user after the other.
struct Context(PushConditionRoomCtx);

impl Context {
    fn new(room: &RoomState, with_power_levels: bool) -> Self {
        let mut context = PushConditionRoomCtx::new(
            room.room_id.clone(),
            UInt::try_from(room.joined).unwrap_or(UInt::MAX),
            (*NOBODY).to_owned(),
            String::new(),
        );
        context.power_levels = with_power_levels.then(|| power_levels(room));
        Self(context)
    }

    fn outcome(&mut self, rules: &Ruleset, event: &FlattenedJson, user_id: &UserId) -> Outcome {
        self.0.user_id = user_id.to_owned();
        let matching = rules.iter().find(|rule| {
            // The future waits only where rules ask for thread subscriptions, which this context does not offer.
            rule.applies(event, &self.0).now_or_never().unwrap_or(false)
        });
        let actions = matching.map(|rule| rule.actions()).unwrap_or_default();
        let outcome = Outcome {
            notify: actions.iter().any(|action| matches!(action, Action::Notify)),
            highlight: actions.iter().any(Action::is_highlight),
            actions: serde_json::to_string(actions).unwrap_or_else(|_| "[]".to_owned()),
        };
        // Silence is the same whichever rule it comes from.
        if outcome.is_silent() {
            Outcome::silent()
        } else {
            outcome
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

fn mentioned_users(event: &FlattenedJson) -> impl Iterator<Item = &str> {
    event
        .get(r"content.m\.mentions.user_ids")
        .and_then(FlattenedJsonValue::as_array)
        .unwrap_or_default()
        .iter()
        .filter_map(|value| value.as_str())
}
