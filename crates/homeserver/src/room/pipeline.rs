//! The one entrance for every event: the checks of the specification in their order, with a verdict
//! instead of an error, because a refused event is an answer. Local events come as `local` builds them,
//! events of other servers as `receive` found their place.
//! Spec: server-server API, "Checks performed on receipt of a PDU".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, EventId,
    events::StateEventType,
    state_res::{check_state_dependent_auth_rules, check_state_independent_auth_rules},
};

use super::{Event, RoomState, pdu::check_format};

/// What becomes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It takes its place in the room.
    Accepted,
    /// Valid where it stands, but refused by what the room has become since: kept, not shown.
    SoftFailed(String),
    /// Not valid where it stands.
    Rejected(String),
    /// Not an event at all.
    Malformed(String),
    /// An event, but larger than events may be.
    TooLarge(String),
}

/// What an event is judged by.
pub(super) struct Context<'a> {
    /// The room's rules and current state.
    pub(super) room: &'a RoomState,
    /// The events it names as authorising it; for versions 12 and later with the create event.
    pub(super) auth_events: &'a [Arc<Event>],
    /// The state before it, where that is not the current state.
    pub(super) state_before: Option<&'a [Arc<Event>]>,
    /// The parts of the current state that may matter to it.
    pub(super) current: &'a [Arc<Event>],
}

/// Takes `event` through every check. `json` is its full canonical form.
pub(super) fn accept(event: &Event, json: &CanonicalJsonObject, context: &Context<'_>) -> Verdict {
    // 1. Is an event. 2 and 3 (signatures, hash): our own events are signed by construction; what other
    // servers send is verified before it comes here (`pdu`), because that needs their keys.
    if let Err(verdict) = check_format(json, &context.room.rules) {
        return verdict;
    }
    // 4. Passes authorisation by its own auth events.
    if let Err(why) = check_auth_events(event, context) {
        return Verdict::Rejected(why);
    }
    // 5. Passes authorisation by the state before it.
    if let Some(before) = context.state_before
        && let Err(why) = check_against(event, before, context)
    {
        return Verdict::Rejected(why);
    }
    // 6. Passes authorisation by the current state, or is soft-failed.
    match check_against(event, context.current, context) {
        Ok(()) => Verdict::Accepted,
        // An event built on the current state is not a late-comer: it is simply not allowed.
        Err(why) if context.state_before.is_none() => Verdict::Rejected(why),
        Err(why) => Verdict::SoftFailed(why),
    }
}

fn check_auth_events(event: &Event, context: &Context<'_>) -> Result<(), String> {
    let rules = &context.room.rules.authorization;
    let by_id = |id: &EventId| context.auth_events.iter().find(|e| e.event_id == id).cloned();
    check_state_independent_auth_rules(rules, event, by_id)?;
    // When they are the very events of the current state, the check against that follows anyway.
    let same = context.auth_events.len() == context.current.len()
        && context
            .auth_events
            .iter()
            .all(|a| context.current.iter().any(|c| c.event_id == a.event_id));
    if same && context.state_before.is_none() {
        return Ok(());
    }
    check_against(event, context.auth_events, context)
}

fn check_against(event: &Event, state: &[Arc<Event>], context: &Context<'_>) -> Result<(), String> {
    let by_key = |kind: &StateEventType, key: &str| {
        if *kind == StateEventType::RoomCreate
            && key.is_empty()
            && let Some(create) = context.room.pinned(kind)
        {
            return Some(create.clone());
        }
        state
            .iter()
            .find(|e| e.state_key.as_deref() == Some(key) && e.kind.to_string() == kind.to_string())
            .cloned()
    };
    check_state_dependent_auth_rules(&context.room.rules.authorization, event, by_key)
}

#[cfg(test)]
mod tests;
