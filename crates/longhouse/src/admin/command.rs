//! The administration commands: asks the running server over its socket, or opens the store itself while none runs.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use rand::RngExt;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use tokio_util::sync::CancellationToken;

use super::protocol::{Answer, Refusal, Request, Token, User};
use super::{execute, socket};
use crate::cli::{PasswordSource, Switch, TokenCommand, UserCommand};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::serve::{self, ServeError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] ServeError),
    #[error("cannot read the password: {0}")]
    Password(io::Error),
    #[error("the two passwords differ")]
    PasswordsDiffer,
    #[error("no password was given: use --password-file FILE (- for standard input) or --generate-password")]
    NoPassword,
    #[error("cannot talk to the running server: {0}")]
    Socket(io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error("the server answered something else than was asked")]
    OtherAnswer,
}

/// `longhouse user …`: what to print.
pub(crate) fn user(config: &Config, command: UserCommand) -> Result<String, CommandError> {
    match command {
        UserCommand::Add { name, admin, password } => {
            let (password, shown) = read_password(&password)?;
            match ask(config, Request::CreateUser { name, password, admin })? {
                Answer::User { user_id } => Ok(format!("{user_id}\n{shown}")),
                _ => Err(CommandError::OtherAnswer),
            }
        }
        UserCommand::List => match ask(config, Request::ListUsers)? {
            Answer::Users(users) => Ok(list_users(&users)),
            _ => Err(CommandError::OtherAnswer),
        },
        UserCommand::Password { name, password } => {
            let (password, shown) = read_password(&password)?;
            ask(config, Request::SetPassword { name, password }).map(|_| shown)
        }
        UserCommand::Deactivate { name } => ask(config, Request::Deactivate { name }).map(|_| String::new()),
        UserCommand::Admin { name, switch } => {
            let admin = switch == Switch::On;
            ask(config, Request::SetAdmin { name, admin }).map(|_| String::new())
        }
    }
}

/// `longhouse registration-token …`: what to print.
pub(crate) fn registration_token(config: &Config, command: TokenCommand) -> Result<String, CommandError> {
    match command {
        TokenCommand::Create { uses, expires } => {
            let lifetime_ms = expires.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
            match ask(config, Request::CreateToken { uses, lifetime_ms })? {
                Answer::Token { token } => Ok(format!("{token}\n")),
                _ => Err(CommandError::OtherAnswer),
            }
        }
        TokenCommand::List => match ask(config, Request::ListTokens)? {
            Answer::Tokens(tokens) => Ok(list_tokens(&tokens, crate::clock::now_ms())),
            _ => Err(CommandError::OtherAnswer),
        },
        TokenCommand::Revoke { token } => ask(config, Request::RevokeToken { token }).map(|_| String::new()),
    }
}

fn ask(config: &Config, request: Request) -> Result<Answer, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    runtime.block_on(async {
        if let Some(result) = socket::ask(&config.data_dir, &request)
            .await
            .map_err(CommandError::Socket)?
        {
            return Ok(result?);
        }
        offline(config, request).await
    })
}

async fn offline(config: &Config, request: Request) -> Result<Answer, CommandError> {
    let data_dir = DataDir::open(&config.data_dir).map_err(ServeError::from)?;
    let shutdown = CancellationToken::new();
    let homeserver = serve::start_homeserver(config, &data_dir, shutdown.clone()).await?;
    let answer = execute::execute(&homeserver, request).await;
    shutdown.cancel();
    homeserver.tasks.close();
    homeserver.tasks.wait().await;
    homeserver.store.close().await;
    Ok(answer?)
}

/// The password, and what to print of it: a generated one is shown once.
fn read_password(source: &PasswordSource) -> Result<(String, String), CommandError> {
    if source.generate_password {
        let password = generate();
        let shown = format!("password: {password}\n");
        return Ok((password, shown));
    }
    let password = match &source.password_file {
        Some(file) if file == Path::new("-") => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map_err(CommandError::Password)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(CommandError::Password)?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None if io::stdin().is_terminal() => {
            let first = prompt("Password: ").map_err(CommandError::Password)?;
            let second = prompt("Again: ").map_err(CommandError::Password)?;
            if first != second {
                return Err(CommandError::PasswordsDiffer);
            }
            first
        }
        None => return Err(CommandError::NoPassword),
    };
    Ok((password, String::new()))
}

/// Five groups of four: 96 bits, easy to copy by hand.
fn generate() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut rng = rand::rng();
    let group = |rng: &mut rand::rngs::ThreadRng| -> String {
        (0..4)
            .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
            .collect()
    };
    (0..5).map(|_| group(&mut rng)).collect::<Vec<_>>().join("-")
}

/// Asks on the terminal without showing what is typed.
fn prompt(question: &str) -> io::Result<String> {
    let mut terminal = io::stderr();
    terminal.write_all(question.as_bytes())?;
    terminal.flush()?;
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    terminal.write_all(b"\n")?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn list_users(users: &[User]) -> String {
    let mut text = String::new();
    for user in users {
        let marks = [(user.admin, "admin"), (user.deactivated, "deactivated")];
        let marks: Vec<&str> = marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark).collect();
        let line = format!("{}\t{}", user.user_id, marks.join(","));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn list_tokens(tokens: &[Token], now_ms: u64) -> String {
    let mut text = String::new();
    for token in tokens {
        let uses = token
            .uses_left
            .map_or("unlimited uses".to_owned(), |uses| format!("{uses} uses left"));
        let expiry = token.expires_at_ms.map_or("never expires".to_owned(), |at| {
            match u64::try_from(at).unwrap_or(0).checked_sub(now_ms) {
                Some(left) => format!("expires in {}", about(left / 1000)),
                None => "expired".to_owned(),
            }
        });
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\t{uses}\t{expiry}", token.token);
    }
    text
}

/// A span of time to its largest unit.
fn about(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_for_people_and_for_cut() {
        let user = |id: &str, admin, deactivated| User {
            user_id: id.to_owned(),
            admin,
            deactivated,
        };
        let users = [
            user("@a:x", true, false),
            user("@b:x", false, false),
            user("@c:x", true, true),
        ];
        assert_eq!(list_users(&users), "@a:x\tadmin\n@b:x\n@c:x\tadmin,deactivated\n");
        let token = |token: &str, uses_left, expires_at_ms| Token {
            token: token.to_owned(),
            uses_left,
            expires_at_ms,
        };
        let tokens = [
            token("t", None, None),
            token("u", Some(2), Some(3_600_000 + 5)),
            token("v", Some(0), Some(1)),
        ];
        assert_eq!(
            list_tokens(&tokens, 5),
            "t\tunlimited uses\tnever expires\nu\t2 uses left\texpires in 60 min\nv\t0 uses left\texpired\n"
        );
    }

    #[test]
    fn generated_passwords_differ_and_are_long() {
        let (one, two) = (generate(), generate());
        assert_ne!(one, two);
        assert_eq!(one.len(), 24);
    }
}
