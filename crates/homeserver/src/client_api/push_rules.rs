//! Push rules.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ruma::{
    api::client::push::{
        delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    push::{AnyPushRule, RuleKind},
};
use serde_json::{json, value::to_raw_value};

use super::{ApiError, Routes, Ruma, RumaResponse, raw_json};
use crate::{
    Homeserver,
    accounts::Authenticated,
    push::{RuleError, rules, ruleset_json},
};

pub(super) fn router() -> Routes {
    Routes::new()
        .ruma(all_rules)
        .ruma(global_rules)
        .ruma(rule)
        .ruma(set_rule)
        .ruma(delete_rule)
        .ruma(rule_enabled)
        .ruma(set_rule_enabled)
        .ruma(rule_actions)
        .ruma(set_rule_actions)
}

/// `GET /_matrix/client/v3/pushrules/` (spec: client-server API §Push Rules: API).
async fn all_rules(
    State(hs): State<Homeserver>,
    req: Ruma<get_pushrules_all::v3::Request>,
) -> Result<Response, ApiError> {
    Ok(raw_json(&hs.push_rules_content(&req.sender().user_id).await?))
}

/// `GET /_matrix/client/v3/pushrules/global/` (spec: client-server API §Push Rules: API).
async fn global_rules(
    State(hs): State<Homeserver>,
    req: Ruma<get_pushrules_global_scope::v3::Request>,
) -> Result<Response, ApiError> {
    let rules = hs.push.ruleset(&req.sender().user_id).await?;
    answer(ruleset_json(&rules))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}` (spec: client-server API §Push Rules: API).
async fn rule(State(hs): State<Homeserver>, req: Ruma<get_pushrule::v3::Request>) -> Result<Response, ApiError> {
    let rule = find(&hs, req.sender(), &req.body.kind, &req.body.rule_id).await?;
    answer(match rule {
        AnyPushRule::Override(rule) | AnyPushRule::Underride(rule) => serde_json::to_value(rule),
        AnyPushRule::Content(rule) => serde_json::to_value(rule),
        AnyPushRule::Room(rule) => serde_json::to_value(rule),
        AnyPushRule::Sender(rule) => serde_json::to_value(rule),
        _ => return Err(RuleError::NotFound.into()),
    })
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}` (spec: client-server API §Push Rules: API).
async fn set_rule(
    State(hs): State<Homeserver>,
    req: Ruma<set_pushrule::v3::Request>,
) -> Result<RumaResponse<set_pushrule::v3::Response>, ApiError> {
    let (new, after, before) = (
        req.body.rule.clone(),
        req.body.after.as_deref(),
        req.body.before.as_deref(),
    );
    hs.push
        .change(&req.sender().user_id, |set| rules::insert(set, new, after, before))
        .await?;
    Ok(RumaResponse(set_pushrule::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}` (spec: client-server API §Push Rules: API).
async fn delete_rule(
    State(hs): State<Homeserver>,
    req: Ruma<delete_pushrule::v3::Request>,
) -> Result<RumaResponse<delete_pushrule::v3::Response>, ApiError> {
    let kind = req.body.kind.clone();
    hs.push
        .change(&req.sender().user_id, |set| rules::remove(set, kind, &req.body.rule_id))
        .await?;
    Ok(RumaResponse(delete_pushrule::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled` (spec: client-server API §Push Rules: API).
async fn rule_enabled(
    State(hs): State<Homeserver>,
    req: Ruma<get_pushrule_enabled::v3::Request>,
) -> Result<Response, ApiError> {
    let rule = find(&hs, req.sender(), &req.body.kind, &req.body.rule_id).await?;
    answer(Ok(json!({ "enabled": rule.enabled() })))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled` (spec: client-server API §Push Rules: API).
async fn set_rule_enabled(
    State(hs): State<Homeserver>,
    req: Ruma<set_pushrule_enabled::v3::Request>,
) -> Result<RumaResponse<set_pushrule_enabled::v3::Response>, ApiError> {
    let (kind, enabled) = (req.body.kind.clone(), req.body.enabled);
    hs.push
        .change(&req.sender().user_id, |set| {
            rules::set_enabled(set, kind, &req.body.rule_id, enabled)
        })
        .await?;
    Ok(RumaResponse(set_pushrule_enabled::v3::Response::new()))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions` (spec: client-server API §Push Rules: API).
async fn rule_actions(
    State(hs): State<Homeserver>,
    req: Ruma<get_pushrule_actions::v3::Request>,
) -> Result<Response, ApiError> {
    let rule = find(&hs, req.sender(), &req.body.kind, &req.body.rule_id).await?;
    answer(Ok(json!({ "actions": rule.actions() })))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions` (spec: client-server API §Push Rules: API).
async fn set_rule_actions(
    State(hs): State<Homeserver>,
    req: Ruma<set_pushrule_actions::v3::Request>,
) -> Result<RumaResponse<set_pushrule_actions::v3::Response>, ApiError> {
    let (kind, actions) = (req.body.kind.clone(), req.body.actions.clone());
    hs.push
        .change(&req.sender().user_id, |set| {
            rules::set_actions(set, kind, &req.body.rule_id, actions)
        })
        .await?;
    Ok(RumaResponse(set_pushrule_actions::v3::Response::new()))
}

async fn find(
    hs: &Homeserver,
    sender: &Authenticated,
    kind: &RuleKind,
    rule_id: &str,
) -> Result<AnyPushRule, ApiError> {
    let rules = hs.push.ruleset(&sender.user_id).await?;
    let found = rules.get(kind.clone(), rule_id).map(|rule| rule.to_owned());
    found.ok_or_else(|| RuleError::NotFound.into())
}

fn answer(json: Result<serde_json::Value, serde_json::Error>) -> Result<Response, ApiError> {
    let json = json.and_then(|json| to_raw_value(&json)).map_err(ApiError::internal)?;
    Ok(raw_json(&json))
}

impl From<RuleError> for ApiError {
    fn from(error: RuleError) -> Self {
        let message = error.to_string();
        match error {
            RuleError::NotFound => Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message),
            RuleError::ServerDefault | RuleError::InvalidId | RuleError::RelativeToDefault => {
                Self::invalid_param(message)
            }
            // Spec: PUT …/pushrules, 400.
            RuleError::UnknownNeighbour | RuleError::Contradiction => {
                Self::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", message)
            }
            RuleError::TooLarge => Self::too_large(message),
            RuleError::Storage(e) => e.into(),
        }
    }
}
