//! What users say about themselves.
//! Spec: client-server API, "Profiles".

use ruma::{CanonicalJsonObject, CanonicalJsonValue, UserId};
use serde_json::{Map, Value};

use super::Accounts;
use crate::client_api::ApiError;

/// Spec: a whole profile has at most 64 KiB, a field name 255 bytes.
const MAX_PROFILE: usize = 65_536;
const MAX_FIELD_NAME: usize = 255;

impl Accounts {
    /// A local user's profile.
    ///
    /// # Errors
    /// `M_NOT_FOUND` when there is no such living account.
    pub async fn profile(&self, user_id: &UserId) -> Result<Map<String, Value>, ApiError> {
        let fields = self.store.profile_fields(user_id.as_str()).await?;
        // A user may have removed every field: then only the account itself tells.
        if fields.is_empty() && !self.exists(user_id).await? {
            return Err(ApiError::not_found("There is no such user."));
        }
        fields
            .into_iter()
            .map(|(field, value)| match serde_json::from_str(&value) {
                Ok(value) => Ok((field, value)),
                Err(e) => Err(storage::Error::corrupt("profile_fields", e).into()),
            })
            .collect()
    }

    /// Name and picture, as member events show them.
    pub async fn shown_profile(&self, user_id: &UserId) -> Result<CanonicalJsonObject, ApiError> {
        let profile = self.profile(user_id).await?;
        let shown = ["displayname", "avatar_url"].into_iter().filter_map(|field| {
            let value = profile.get(field)?.as_str()?.to_owned();
            Some((field.to_owned(), CanonicalJsonValue::String(value)))
        });
        Ok(shown.collect())
    }

    /// Sets one field of a profile, or removes it (`None`). True when that changed it.
    ///
    /// # Errors
    /// `M_KEY_TOO_LARGE`, `M_PROFILE_TOO_LARGE`.
    pub async fn set_profile_field(
        &self,
        user_id: &UserId,
        field: &str,
        value: Option<Value>,
    ) -> Result<bool, ApiError> {
        if field.is_empty() || field.len() > MAX_FIELD_NAME {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_KEY_TOO_LARGE",
                "The name of a profile field has 1 to 255 bytes.",
            ));
        }
        let mut profile = self.profile(user_id).await?;
        if profile.get(field) == value.as_ref() {
            return Ok(false);
        }
        match &value {
            Some(value) => profile.insert(field.to_owned(), value.clone()),
            None => profile.remove(field),
        };
        if value.is_some() && serde_json::to_vec(&profile).map_or(usize::MAX, |text| text.len()) > MAX_PROFILE {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_PROFILE_TOO_LARGE",
                "A profile may have at most 64 KiB.",
            ));
        }
        self.store
            .set_profile_field(user_id.as_str(), field, value.map(|value| value.to_string()))
            .await?;
        Ok(true)
    }
}
