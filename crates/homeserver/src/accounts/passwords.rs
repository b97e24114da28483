//! Hashing and checking passwords: Argon2id, off the async threads, as many at once as there are processors.

use std::sync::{Arc, LazyLock};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash as Phc},
};
use tokio::sync::Semaphore;

use super::PasswordHash;
use crate::client_api::ApiError;

/// No password is longer; longer ones would only cost time.
const MAX_PASSWORD: usize = 4096;

/// Hashes passwords.
#[derive(Debug)]
pub(super) struct Passwords {
    argon2: Argon2<'static>,
    /// Each running check holds its memory; the others wait.
    running: Arc<Semaphore>,
    /// Checked in place of the hash of an account that has none, so that an answer's time tells nothing.
    nobody: LazyLock<String>,
}

impl Passwords {
    pub(super) fn new(cost: PasswordHash) -> Self {
        let params = match cost {
            PasswordHash::Argon2id => Params::new(19 * 1024, 2, 1, None),
            PasswordHash::Fast => Params::new(Params::MIN_M_COST, 1, 1, None),
        };
        let params = params.expect("both costs are within Argon2's limits");
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, params),
            running: Arc::new(Semaphore::new(processors)),
            nobody: LazyLock::new(super::random_text),
        }
    }

    /// The PHC string of a password.
    pub(super) async fn hash(&self, password: &str) -> Result<String, ApiError> {
        check_length(password)?;
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        self.run(move || {
            argon2
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(ApiError::internal)
        })
        .await?
    }

    /// Is this the password of the account with that hash? Costs the same when there is no such account.
    pub(super) async fn verify(&self, password: &str, hash: Option<&str>) -> Result<bool, ApiError> {
        if password.len() > MAX_PASSWORD {
            return Ok(false);
        }
        let Some(hash) = hash.map(str::to_owned) else {
            self.hash(&self.nobody).await?;
            return Ok(false);
        };
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        self.run(move || match Phc::new(&hash) {
            Ok(hash) => Ok(argon2.verify_password(password.as_bytes(), &hash).is_ok()),
            Err(e) => Err(ApiError::internal(format!(
                "a stored password hash cannot be read: {e}"
            ))),
        })
        .await?
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        // Held by the work, not by the caller: a caller who leaves does not make room while it still runs.
        let permit = self.running.clone().acquire_owned().await.map_err(ApiError::internal)?;
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        })
        .await
        .map_err(ApiError::internal)
    }
}

fn check_length(password: &str) -> Result<(), ApiError> {
    if password.is_empty() {
        return Err(ApiError::new(
            http::StatusCode::BAD_REQUEST,
            "M_WEAK_PASSWORD",
            "A password cannot be empty.",
        ));
    }
    if password.len() > MAX_PASSWORD {
        return Err(ApiError::invalid_param("A password may have at most 4096 bytes."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_opens_only_its_own_hash() {
        let passwords = Passwords::new(PasswordHash::Fast);
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify("correct horse", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("wrong", Some(&hash)).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
        assert_eq!(passwords.hash("").await.unwrap_err().errcode(), "M_WEAK_PASSWORD");
        // A hash of the other cost is still checked with the cost it was made at.
        assert!(
            Passwords::new(PasswordHash::Argon2id)
                .verify("correct horse", Some(&hash))
                .await
                .unwrap()
        );
    }
}
