//! A homeserver on an empty database, and requests to it.

use axum::{Router, body::Body};
use homeserver::{Clock, Config, Homeserver, client_api};
use http::{HeaderMap, Method, Request, StatusCode, header};
use serde_json::{Value, json};
use storage::Store;
use testkit::{clock::ManualClock, database::TestDatabaseUrl};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// A homeserver under test.
pub(crate) struct Server {
    pub(crate) homeserver: Homeserver,
    pub(crate) clock: ManualClock,
    pub(crate) router: Router,
}

/// What a request was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The JSON body of a 200.
    pub(crate) fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    /// Asserts the status and `errcode` of an error.
    #[track_caller]
    pub(crate) fn is_error(&self, status: u16, errcode: &str) {
        assert_eq!(
            (self.status.as_u16(), self.json()["errcode"].as_str()),
            (status, Some(errcode)),
            "{self:?}"
        );
    }
}

impl Server {
    /// A homeserver named `example.org` with default settings.
    pub(crate) async fn start(db: &TestDatabaseUrl) -> Self {
        Self::start_with(db, |_| {}).await
    }

    /// The same with settings changed.
    pub(crate) async fn start_with(db: &TestDatabaseUrl, change: impl FnOnce(&mut Config)) -> Self {
        let database = storage::Config {
            url: Some(db.url.clone()),
            ..storage::Config::default()
        };
        let store = Store::open(&database, &db.dir).await.expect("the store opens");
        let mut config = Config::new(
            "example.org".try_into().expect("a valid server name"),
            db.dir.clone(),
            "http://example.org".to_owned(),
        );
        config.registration.mode = homeserver::accounts::RegistrationMode::Open;
        config.auth.password_hash = homeserver::accounts::PasswordHash::Fast;
        change(&mut config);
        let clock = ManualClock::at(1_800_000_000_000);
        let homeserver = Homeserver::start(config, store, Clock::new(clock.reader()), CancellationToken::new())
            .await
            .expect("it starts");
        Self {
            router: client_api::router(homeserver.clone()),
            homeserver,
            clock,
        }
    }

    /// Registers a user with password `password` of `name`; answers the access token. Registration must be open.
    pub(crate) async fn register(&self, name: &str) -> String {
        let body = json!({
            "username": name, "password": format!("password of {name}"), "device_id": format!("{name}-device"),
            "auth": { "type": "m.login.dummy" },
        });
        let answer = self
            .json(Method::POST, "/_matrix/client/v3/register", None, &body)
            .await
            .ok();
        answer["access_token"]
            .as_str()
            .expect("registration logs in")
            .to_owned()
    }

    /// A request with a JSON body.
    pub(crate) async fn json(&self, method: Method, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.raw(method, path, token, serde_json::to_vec(body).expect("JSON serialises"))
            .await
    }

    /// A GET.
    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.raw(Method::GET, path, token, Vec::new()).await
    }

    /// A request with any body.
    pub(crate) async fn raw(&self, method: Method, path: &str, token: Option<&str>, body: Vec<u8>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        self.send(request.body(Body::from(body)).expect("a valid request"))
            .await
    }

    /// Any request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("the router is infallible");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX)
            .await
            .expect("the body is whole")
            .to_vec();
        Answer {
            status: parts.status,
            headers: parts.headers,
            bytes,
        }
    }

    /// Ends background tasks and closes the store, as the process does.
    pub(crate) async fn stop(self) {
        self.homeserver.shutdown.cancel();
        self.homeserver.tasks.close();
        self.homeserver.tasks.wait().await;
        self.homeserver.store.close().await;
    }
}
