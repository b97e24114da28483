//! The words of administration: one JSON object a line, a request answered by a result. Knows no carrier.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an administrator asks for. `name` is a localpart or a full user id of this server.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    CreateUser {
        name: String,
        password: String,
        admin: bool,
    },
    ListUsers,
    SetPassword {
        name: String,
        password: String,
    },
    Deactivate {
        name: String,
    },
    SetAdmin {
        name: String,
        admin: bool,
    },
    /// `uses`: how often it serves; `None` without limit. `lifetime_ms`: milliseconds from now; `None` for ever.
    CreateToken {
        uses: Option<u32>,
        lifetime_ms: Option<u64>,
    },
    ListTokens,
    RevokeToken {
        token: String,
    },
}

impl fmt::Debug for Request {
    /// Passwords and tokens are never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Request {
    /// For logs: what was asked, without any of its content.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::CreateUser { .. } => "create_user",
            Self::ListUsers => "list_users",
            Self::SetPassword { .. } => "set_password",
            Self::Deactivate { .. } => "deactivate",
            Self::SetAdmin { .. } => "set_admin",
            Self::CreateToken { .. } => "create_token",
            Self::ListTokens => "list_tokens",
            Self::RevokeToken { .. } => "revoke_token",
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer {
    Done,
    User { user_id: String },
    Users(Vec<User>),
    Token { token: String },
    Tokens(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) user_id: String,
    pub(crate) admin: bool,
    pub(crate) deactivated: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) token: String,
    /// Uses left; `None` without limit.
    pub(crate) uses_left: Option<i64>,
    /// Milliseconds since 1970; `None` for ever.
    pub(crate) expires_at_ms: Option<i64>,
}

/// Why a request was not carried out, for a person to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);
