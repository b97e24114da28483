//! Which names a user of this server may have.
//! Spec: appendices, "User Identifiers".

use ruma::{OwnedUserId, ServerName, UserId};

use super::{Accounts, secrets::random_of};
use crate::client_api::ApiError;

/// The longest user id, in bytes.
const MAX_USER_ID: usize = 255;

impl Accounts {
    /// The id a new account of this name would have. Capital letters become small ones.
    ///
    /// # Errors
    /// `M_INVALID_USERNAME` when the name holds other characters than the grammar allows or is too long.
    pub fn new_user_id(&self, localpart: &str) -> Result<OwnedUserId, ApiError> {
        new_user_id(localpart, &self.server_name)
    }

    /// An id for somebody who did not choose a name.
    pub(super) fn generated_user_id(&self) -> OwnedUserId {
        let localpart = random_of(b"abcdefghijklmnopqrstuvwxyz0123456789", 12);
        new_user_id(&localpart, &self.server_name).expect("letters and digits are a valid name")
    }

    /// The local user that `name`, a user id or a localpart, means; `None` when it can be nobody here.
    pub fn local_user(&self, name: &str) -> Option<OwnedUserId> {
        let user_id = match name.strip_prefix('@') {
            Some(_) => UserId::parse(name).ok()?,
            None => UserId::parse(format!("@{name}:{}", self.server_name)).ok()?,
        };
        self.is_local(&user_id).then_some(user_id)
    }
}

fn new_user_id(localpart: &str, server_name: &ServerName) -> Result<OwnedUserId, ApiError> {
    let localpart = localpart.to_ascii_lowercase();
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '=' | '-' | '/' | '+');
    if localpart.is_empty() {
        return Err(invalid("A username cannot be empty."));
    }
    if !localpart.chars().all(allowed) {
        return Err(invalid(
            "A username may hold only the characters a-z, 0-9, and . _ = - / +",
        ));
    }
    let user_id = format!("@{localpart}:{server_name}");
    if user_id.len() > MAX_USER_ID {
        return Err(invalid("This username is too long."));
    }
    UserId::parse(user_id).map_err(|_| invalid("This is not a valid username."))
}

fn invalid(message: &'static str) -> ApiError {
    ApiError::new(http::StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        let server = <&ServerName>::try_from("example.org").unwrap();
        let id = |name: &str| new_user_id(name, server).map(|id| id.to_string());
        assert_eq!(id("alice").unwrap(), "@alice:example.org");
        assert_eq!(id("User-UPPER").unwrap(), "@user-upper:example.org");
        assert_eq!(id("q3._=-/+").unwrap(), "@q3._=-/+:example.org");
        let long = "x".repeat(255);
        for bad in ["", "a b", "a:b", "@a", "ä", "a\n", "a\"", "a!", long.as_str()] {
            assert_eq!(id(bad).unwrap_err().errcode(), "M_INVALID_USERNAME", "{bad:?}");
        }
    }
}
