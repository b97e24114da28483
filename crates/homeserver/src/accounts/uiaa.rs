//! User-interactive authentication: stages a client passes one after the other before an operation is done.
//! Spec: client-server API, "User-Interactive Authentication API".
//!
//! A session belongs to one operation of one user with one body. Clients may begin it with an empty probe, or correct
//! the body, until a first stage is passed; whatever was confirmed then stays as it was. Sessions live in memory, bounded
//! in number and time.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Accounts, random_text};
use crate::client_api::ApiError;

const SESSIONS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// A person reads, types and perhaps looks for a token.
const SESSION_MS: u64 = 15 * 60_000;
/// A body up to this size may be left out of later requests of the session.
const KEPT_BODY: usize = 16 * 1024;

/// One step of proving who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `m.login.password`: the password of the user who asks.
    Password,
    /// `m.login.dummy`: nothing at all.
    Dummy,
    /// `m.login.registration_token`.
    RegistrationToken,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Password => "m.login.password",
            Self::Dummy => "m.login.dummy",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Password, Self::Dummy, Self::RegistrationToken]
            .into_iter()
            .find(|stage| stage.name() == name)
    }
}

/// Stages in the order they must be passed.
pub type Flow = &'static [Stage];

/// What somebody wants to do.
#[derive(Debug)]
pub struct Operation<'a> {
    /// Method and path, or any name that tells operations apart.
    pub name: &'a str,
    /// Who asks; `None` before there is an account.
    pub user: Option<&'a UserId>,
    /// The request's body, with `auth` if it has one.
    pub body: Map<String, Value>,
    /// Any of these is enough.
    pub flows: &'a [Flow],
}

/// All stages of a flow are passed: do it.
#[derive(Debug)]
pub struct Passed {
    /// The body without `auth`.
    pub body: Map<String, Value>,
    /// The token of an `m.login.registration_token` stage, to be counted with the account.
    pub registration_token: Option<String>,
}

#[derive(Debug)]
pub(super) struct Interactive(Mutex<LruCache<String, Session>>);

impl Default for Interactive {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(SESSIONS)))
    }
}

#[derive(Debug, Clone)]
struct Session {
    operation: String,
    user: Option<OwnedUserId>,
    request: KeptBody,
    completed: Vec<Stage>,
    registration_token: Option<String>,
    expires_at: u64,
}

impl Accounts {
    /// Passes one more stage of an operation.
    ///
    /// # Errors
    /// 401 with what is still to be done; `M_FORBIDDEN` when the session is another operation's.
    pub async fn interact(&self, operation: Operation<'_>) -> Result<Passed, ApiError> {
        let Operation {
            name,
            user,
            mut body,
            flows,
        } = operation;
        let auth = match body.remove("auth") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(auth)) => auth,
            Some(_) => return Err(ApiError::bad_json("`auth` must be an object.")),
        };
        let text = |key: &str| auth.get(key).and_then(Value::as_str);
        let now = self.clock.now_ms();
        let fresh = || Session {
            operation: name.to_owned(),
            user: user.map(UserId::to_owned),
            request: KeptBody::of(&body),
            completed: Vec::new(),
            registration_token: None,
            expires_at: now + SESSION_MS,
        };
        let (id, mut session) = match text("session") {
            None => (random_text(), fresh()),
            Some(id) => {
                let known = self
                    .interactive
                    .0
                    .lock()
                    .get(id)
                    .filter(|s| s.expires_at > now)
                    .cloned();
                match known {
                    Some(session) => (id.to_owned(), session),
                    None => {
                        let (id, session) = (random_text(), fresh());
                        return Err(self.unfinished(
                            id,
                            session,
                            flows,
                            Some("This session is unknown or too old: begin again."),
                        ));
                    }
                }
            }
        };
        if session.operation != name || session.user.as_deref() != user {
            return Err(ApiError::forbidden(
                "This authentication session was begun for something else.",
            ));
        }
        if body.is_empty() {
            body = session.request.body.clone().unwrap_or_default();
        }
        let request = KeptBody::of(&body);
        if request.digest != session.request.digest {
            // A probe has confirmed nothing that could be exchanged.
            let may_change = session.completed.is_empty() || session.request.is_empty();
            if !may_change {
                return Err(ApiError::forbidden(
                    "The request changed during its authentication: begin again.",
                ));
            }
            session.request = request;
        }
        let Some(stage) = text("type") else {
            return Err(self.unfinished(id, session, flows, None));
        };
        let allowed = Stage::parse(stage).filter(|stage| {
            session.completed.contains(stage) || flows.iter().any(|flow| is_next(flow, &session.completed, *stage))
        });
        let Some(stage) = allowed else {
            return Err(self.unfinished(
                id,
                session,
                flows,
                Some("This stage is not offered, or it is not its turn."),
            ));
        };
        if !session.completed.contains(&stage) {
            if let Err(why) = self.pass(stage, &auth, user, &mut session).await? {
                return Err(self.unfinished(id, session, flows, Some(why)));
            }
            session.completed.push(stage);
        }
        if flows.iter().any(|flow| flow.iter().eq(&session.completed)) {
            self.interactive.0.lock().pop(&id);
            return Ok(Passed {
                body,
                registration_token: session.registration_token,
            });
        }
        Err(self.unfinished(id, session, flows, None))
    }

    /// Tries one stage. The inner error says why it was not passed.
    async fn pass(
        &self,
        stage: Stage,
        auth: &Map<String, Value>,
        user: Option<&UserId>,
        session: &mut Session,
    ) -> Result<Result<(), &'static str>, ApiError> {
        match stage {
            Stage::Dummy => Ok(Ok(())),
            Stage::RegistrationToken => {
                let Some(token) = auth.get("token").and_then(Value::as_str) else {
                    return Err(ApiError::missing_param("`auth.token` is missing."));
                };
                if !self.store.registration_token_is_valid(token, self.now()).await? {
                    return Ok(Err("This registration token is unknown, used up or expired."));
                }
                session.registration_token = Some(token.to_owned());
                Ok(Ok(()))
            }
            Stage::Password => {
                let Some(password) = auth.get("password").and_then(Value::as_str) else {
                    return Err(ApiError::missing_param("`auth.password` is missing."));
                };
                let Some(user) = user else {
                    return Ok(Err("There is no account yet whose password could be checked."));
                };
                // The identifier is the client's claim; only the password of the user who asks counts.
                if let Some(named) = identified_user(auth)
                    && self.local_user(named).as_deref() != Some(user)
                {
                    return Ok(Err("This is not the user whose request it is."));
                }
                match self.check_password(user.as_str(), password).await {
                    Ok(_) => Ok(Ok(())),
                    Err(e) if e.status() == http::StatusCode::FORBIDDEN => Ok(Err("The password is wrong.")),
                    Err(e) => Err(e),
                }
            }
        }
    }

    /// Keeps the session and says what is still to be done.
    fn unfinished(&self, id: String, session: Session, flows: &[Flow], error: Option<&'static str>) -> ApiError {
        let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name()).collect::<Vec<_>>();
        let mut answer = json!({
            "flows": flows.iter().map(|flow| json!({ "stages": names(flow) })).collect::<Vec<_>>(),
            "params": {},
            "session": id,
            "completed": names(&session.completed),
        });
        if let Some(error) = error {
            answer["errcode"] = "M_FORBIDDEN".into();
            answer["error"] = error.into();
        }
        self.interactive.0.lock().put(id, session);
        ApiError::uiaa(answer)
    }
}

fn is_next(flow: &[Stage], completed: &[Stage], stage: Stage) -> bool {
    flow.starts_with(completed) && flow.get(completed.len()) == Some(&stage)
}

/// Spec: "Identifier types", and the older `user` beside it.
fn identified_user(auth: &Map<String, Value>) -> Option<&str> {
    let identifier = auth.get("identifier");
    identifier
        .and_then(|i| i.get("user"))
        .or_else(|| auth.get("user"))
        .and_then(Value::as_str)
}

/// The body of the request that a session is about, without `auth`.
#[derive(Debug, Clone)]
struct KeptBody {
    digest: [u8; 32],
    /// The body itself, unless it is large: a client may then leave it out of later requests.
    body: Option<Map<String, Value>>,
}

impl KeptBody {
    fn of(body: &Map<String, Value>) -> Self {
        // A map of this kind is sorted or keeps the order of the text; the same client writes the same order.
        let text = serde_json::to_vec(body).unwrap_or_default();
        Self {
            digest: Sha256::digest(&text).into(),
            body: (text.len() <= KEPT_BODY).then(|| body.clone()),
        }
    }

    fn is_empty(&self) -> bool {
        self.body.as_ref().is_some_and(Map::is_empty)
    }
}
