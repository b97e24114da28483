//! The stored form of push rules and the changes clients make to them.

use ruma::{
    UserId,
    push::{Action, InsertPushRuleError, NewPushRule, RemovePushRuleError, RuleKind, RuleNotFoundError, Ruleset},
};
use serde_json::{Map, Value, json};
use tracing::warn;

/// The type of the account data that push rules are kept and announced under.
pub(crate) const PUSH_RULES: &str = "m.push_rules";

/// The largest set of rules a user can have, in bytes of JSON.
const MAX_RULESET_BYTES: usize = 512 * 1024;

/// Why rules were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("There is no such push rule.")]
    NotFound,
    #[error("Server-default rules cannot be added or removed.")]
    ServerDefault,
    #[error("A rule id may contain neither slashes nor backslashes.")]
    InvalidId,
    #[error("A rule cannot be placed relative to a server-default rule.")]
    RelativeToDefault,
    #[error("before/after rule not found.")]
    UnknownNeighbour,
    #[error("`before` names a rule of higher priority than `after`.")]
    Contradiction,
    #[error("The push rules are larger than {MAX_RULESET_BYTES} bytes.")]
    TooLarge,
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// Adds or replaces a rule; `after` and `before` place it among the user's rules of its kind.
pub(crate) fn insert(
    rules: &mut Ruleset,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<(), RuleError> {
    rules
        .insert(without_historical(rule), after, before)
        .map_err(|e| match e {
            InsertPushRuleError::ServerDefaultRuleId => RuleError::ServerDefault,
            InsertPushRuleError::InvalidRuleId => RuleError::InvalidId,
            InsertPushRuleError::RelativeToServerDefaultRule => RuleError::RelativeToDefault,
            InsertPushRuleError::BeforeHigherThanAfter => RuleError::Contradiction,
            _ => RuleError::UnknownNeighbour,
        })
}

/// Removes a rule of the user's own.
pub(crate) fn remove(rules: &mut Ruleset, kind: RuleKind, rule_id: &str) -> Result<(), RuleError> {
    rules.remove(kind, rule_id).map_err(|e| match e {
        RemovePushRuleError::ServerDefault => RuleError::ServerDefault,
        _ => RuleError::NotFound,
    })
}

/// Sets what a rule does; default rules too.
pub(crate) fn set_actions(
    rules: &mut Ruleset,
    kind: RuleKind,
    rule_id: &str,
    actions: Vec<Action>,
) -> Result<(), RuleError> {
    rules
        .set_actions(kind, rule_id, current_actions(actions))
        .map_err(not_found)
}

/// Switches a rule on or off; default rules too.
pub(crate) fn set_enabled(rules: &mut Ruleset, kind: RuleKind, rule_id: &str, enabled: bool) -> Result<(), RuleError> {
    rules.set_enabled(kind, rule_id, enabled).map_err(not_found)
}

fn not_found(_: RuleNotFoundError) -> RuleError {
    RuleError::NotFound
}

/// The rules as clients see them: `{"global": …}` has every kind, empty ones too.
pub(crate) fn ruleset_json(rules: &Ruleset) -> Result<Value, serde_json::Error> {
    let mut kinds: Map<String, Value> = match serde_json::to_value(rules)? {
        Value::Object(kinds) => kinds,
        _ => Map::new(),
    };
    for kind in ["override", "content", "room", "sender", "underride"] {
        kinds.entry(kind).or_insert_with(|| json!([]));
    }
    Ok(Value::Object(kinds))
}

pub(crate) fn to_text(rules: &Ruleset) -> Result<String, RuleError> {
    let text = serde_json::to_string(rules)
        .map_err(|e| RuleError::Storage(storage::Error::corrupt("account_data", format!("push rules: {e}"))))?;
    if text.len() > MAX_RULESET_BYTES {
        Err(RuleError::TooLarge)
    } else {
        Ok(text)
    }
}

/// Reads kept rules and lays them over today's defaults, so that rules of a later version of the server appear.
pub(crate) fn from_text(text: Option<&str>, user_id: &UserId) -> Ruleset {
    let mut rules = text
        .and_then(|text| {
            serde_json::from_str::<Ruleset>(text)
                .inspect_err(
                    |e| warn!(user_id = %user_id, error = %e, "kept push rules cannot be read; the defaults apply"),
                )
                .ok()
        })
        .unwrap_or_default();
    rules.update_with_server_default(Ruleset::server_default(user_id));
    rules
}

/// Spec: client-server API §Historical Actions: `dont_notify` and `coalesce` are ignored.
fn current_actions(mut actions: Vec<Action>) -> Vec<Action> {
    actions.retain(|action| match serde_json::to_value(action) {
        Ok(Value::String(name)) => name != "dont_notify" && name != "coalesce",
        _ => true,
    });
    actions
}

fn without_historical(rule: NewPushRule) -> NewPushRule {
    match rule {
        NewPushRule::Override(mut r) => {
            r.actions = current_actions(r.actions);
            NewPushRule::Override(r)
        }
        NewPushRule::Underride(mut r) => {
            r.actions = current_actions(r.actions);
            NewPushRule::Underride(r)
        }
        NewPushRule::Content(mut r) => {
            r.actions = current_actions(r.actions);
            NewPushRule::Content(r)
        }
        NewPushRule::Room(mut r) => {
            r.actions = current_actions(r.actions);
            NewPushRule::Room(r)
        }
        NewPushRule::Sender(mut r) => {
            r.actions = current_actions(r.actions);
            NewPushRule::Sender(r)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        push::{NewConditionalPushRule, NewPatternedPushRule, NewSimplePushRule},
        room_id, user_id,
    };

    use super::*;

    fn actions(json: Value) -> Vec<Action> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn kept_rules_survive_and_new_defaults_appear() {
        let user = user_id!("@a:x");
        let mut rules = Ruleset::server_default(user);
        let rule = NewSimplePushRule::new(room_id!("!r:x").to_owned(), vec![]);
        insert(&mut rules, NewPushRule::Room(rule), None, None).unwrap();
        set_enabled(&mut rules, RuleKind::Underride, ".m.rule.message", false).unwrap();
        // As if `.m.rule.reaction` had not existed when the rules were kept.
        rules.override_.shift_remove(".m.rule.reaction");
        let read = from_text(Some(&to_text(&rules).unwrap()), user);
        assert!(read.get(RuleKind::Room, "!r:x").is_some());
        assert!(!read.get(RuleKind::Underride, ".m.rule.message").unwrap().enabled());
        assert!(read.get(RuleKind::Override, ".m.rule.reaction").is_some());
        assert_eq!(read.override_.first().unwrap().rule_id, ".m.rule.master");
    }

    #[test]
    fn unreadable_rules_are_the_defaults() {
        let read = from_text(Some("{"), user_id!("@a:x"));
        assert_eq!(
            read.iter().count(),
            Ruleset::server_default(user_id!("@a:x")).iter().count()
        );
    }

    #[test]
    fn every_kind_is_present() {
        let json = ruleset_json(&Ruleset::server_default(user_id!("@a:x"))).unwrap();
        for kind in ["override", "content", "room", "sender", "underride"] {
            assert!(json[kind].is_array(), "{kind}");
        }
    }

    #[test]
    fn historical_actions_are_dropped() {
        let mut rules = Ruleset::server_default(user_id!("@a:x"));
        let rule = NewPatternedPushRule::new(
            "cake".into(),
            "cake".into(),
            actions(json!(["dont_notify", "coalesce"])),
        );
        insert(&mut rules, NewPushRule::Content(rule), None, None).unwrap();
        assert!(rules.get(RuleKind::Content, "cake").unwrap().actions().is_empty());
        set_actions(
            &mut rules,
            RuleKind::Content,
            "cake",
            actions(json!(["notify", "dont_notify"])),
        )
        .unwrap();
        assert_eq!(rules.get(RuleKind::Content, "cake").unwrap().actions().len(), 1);
    }

    #[test]
    fn refusals_say_why() {
        let mut rules = Ruleset::server_default(user_id!("@a:x"));
        let mut add = |id: &str, after: Option<&str>, before: Option<&str>| {
            let rule = NewPushRule::Override(NewConditionalPushRule::new(id.into(), vec![], vec![]));
            insert(&mut rules, rule, after, before)
        };
        assert!(matches!(add(".x", None, None), Err(RuleError::ServerDefault)));
        assert!(matches!(add("a/b", None, None), Err(RuleError::InvalidId)));
        assert!(matches!(add("a\\b", None, None), Err(RuleError::InvalidId)));
        assert!(matches!(
            add("a", Some(".m.rule.reaction"), None),
            Err(RuleError::RelativeToDefault)
        ));
        assert!(matches!(add("a", Some("none"), None), Err(RuleError::UnknownNeighbour)));
        add("a", None, None).unwrap();
        add("b", Some("a"), None).unwrap();
        assert!(matches!(add("c", Some("b"), Some("a")), Err(RuleError::Contradiction)));
        assert!(matches!(
            remove(&mut rules, RuleKind::Override, ".m.rule.master"),
            Err(RuleError::ServerDefault)
        ));
        assert!(matches!(
            remove(&mut rules, RuleKind::Override, "none"),
            Err(RuleError::NotFound)
        ));
        remove(&mut rules, RuleKind::Override, "a").unwrap();
        assert!(matches!(
            set_enabled(&mut rules, RuleKind::Override, "a", true),
            Err(RuleError::NotFound)
        ));
    }
}
