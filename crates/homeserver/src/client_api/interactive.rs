//! Carries user-interactive authentication between requests and `accounts`.

use serde_json::{Map, Value};

use super::ApiError;
use crate::{
    Homeserver,
    accounts::{Authenticated, Flow, Operation, Passed, Stage},
    limits::Class,
};

/// The flow of everything a signed-in user confirms.
const BY_PASSWORD: &[Flow] = &[&[Stage::Password]];

/// Has the sender confirm an operation by password. Answers the body without `auth`.
pub(super) async fn confirm(
    hs: &Homeserver,
    sender: &Authenticated,
    operation: &str,
    body: Map<String, Value>,
) -> Result<Map<String, Value>, ApiError> {
    let tries_password = body.get("auth").is_some_and(|auth| auth.get("password").is_some());
    if tries_password {
        hs.limits.check(&sender.user_id, Class::Password)?;
    }
    let Passed { body, .. } = hs
        .accounts
        .interact(Operation {
            name: operation,
            user: Some(&sender.user_id),
            body,
            flows: BY_PASSWORD,
        })
        .await?;
    Ok(body)
}

/// The rest of a confirmed body, typed.
pub(super) fn typed<T: serde::de::DeserializeOwned>(body: Map<String, Value>) -> Result<T, ApiError> {
    serde_json::from_value(Value::Object(body))
        .map_err(|e| ApiError::bad_json(format!("The request is not what this endpoint takes: {e}.")))
}
