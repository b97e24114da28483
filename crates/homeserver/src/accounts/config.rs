//! The sections `[registration]` and `[auth]`.

use serde::Deserialize;

/// `[registration]`: how accounts come to be.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registration {
    /// Who may make an account for themselves.
    pub mode: RegistrationMode,
    /// Opens `/_synapse/admin/v1/register` to whoever knows it.
    pub shared_secret: Option<String>,
}

impl std::fmt::Debug for Registration {
    /// The secret is never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration")
            .field("mode", &self.mode)
            .field("shared_secret", &self.shared_secret.as_ref().map(|_| "…"))
            .finish()
    }
}

/// Who may make an account for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationMode {
    /// Nobody: an administrator adds accounts.
    #[default]
    Closed,
    /// Whoever has a registration token.
    Token,
    /// Everybody.
    Open,
}

/// `[auth]`: how users prove who they are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// What it costs to try a password.
    pub password_hash: PasswordHash,
}

/// The cost of one password check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasswordHash {
    /// Argon2id with 19 MiB and two passes (OWASP password storage cheat sheet).
    #[default]
    Argon2id,
    /// Argon2id at its smallest: for test suites that make hundreds of accounts, not for people.
    Fast,
}
