//! Carries out administration requests on the homeserver. Knows no carrier.

use homeserver::Homeserver;
use homeserver::client_api::ApiError;

use super::protocol::{Answer, Refusal, Request, Token, User};

pub(crate) async fn execute(homeserver: &Homeserver, request: Request) -> Result<Answer, Refusal> {
    let accounts = &homeserver.accounts;
    // Which local user a name means.
    let local = |name: &str| {
        accounts
            .local_user(name)
            .ok_or_else(|| Refusal(format!("{name} is no user of this server")))
    };
    match request {
        Request::CreateUser { name, password, admin } => {
            let user_id = accounts
                .add_user(localpart(&name), &password, admin)
                .await
                .map_err(refusal)?;
            Ok(Answer::User {
                user_id: user_id.to_string(),
            })
        }
        Request::ListUsers => {
            let users = accounts.users().await.map_err(refusal)?;
            let user = |account: storage::accounts::Account| User {
                user_id: account.user_id,
                admin: account.is_admin,
                deactivated: account.deactivated_at.is_some(),
            };
            Ok(Answer::Users(users.into_iter().map(user).collect()))
        }
        Request::SetPassword { name, password } => {
            let user = local(&name)?;
            accounts.set_password(&user, &password).await.map_err(refusal)?;
            // Whoever knew the old password is signed out.
            homeserver.remove_all_devices(&user, None).await.map_err(refusal)?;
            Ok(Answer::Done)
        }
        Request::Deactivate { name } => {
            homeserver.deactivate_account(&local(&name)?).await.map_err(refusal)?;
            Ok(Answer::Done)
        }
        Request::SetAdmin { name, admin } => {
            accounts.set_admin(&local(&name)?, admin).await.map_err(refusal)?;
            Ok(Answer::Done)
        }
        Request::CreateToken { uses, lifetime_ms } => {
            let expires_at = lifetime_ms.map(|lifetime| homeserver.clock.now_ms().saturating_add(lifetime));
            let token = accounts
                .create_registration_token(None, uses, expires_at)
                .await
                .map_err(refusal)?;
            Ok(Answer::Token { token: token.token })
        }
        Request::ListTokens => {
            let tokens = accounts.registration_tokens().await.map_err(refusal)?;
            let token = |token: storage::accounts::RegistrationToken| Token {
                token: token.token,
                uses_left: token
                    .uses_allowed
                    .map(|allowed| allowed.saturating_sub(token.uses).max(0)),
                expires_at_ms: token.expires_at,
            };
            Ok(Answer::Tokens(tokens.into_iter().map(token).collect()))
        }
        Request::RevokeToken { token } => {
            accounts.revoke_registration_token(&token).await.map_err(refusal)?;
            Ok(Answer::Done)
        }
    }
}

/// People write `alice`, `@alice` and `@alice:example.org`; an account of another server is refused by its grammar.
fn localpart(name: &str) -> &str {
    name.strip_prefix('@').unwrap_or(name)
}

fn refusal(error: ApiError) -> Refusal {
    Refusal(error.message().to_owned())
}
