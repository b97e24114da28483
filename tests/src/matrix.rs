//! A small Matrix client over HTTP for tests that look at answers themselves: no retries, no state, every answer seen.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The password of every user the tests register.
pub const PASSWORD: &str = "correct horse battery staple";

/// The server's answer to one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body; `null` when it is empty or not JSON.
    pub body: Value,
}

/// An event as `/sync` or `/messages` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncedEvent {
    /// The event id.
    pub event_id: String,
    /// `content.body`, empty when there is none.
    pub body: String,
}

/// One device of one user, or nobody before the log-in.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base_url: String,
    /// The user id, empty before the log-in.
    pub user_id: String,
    /// The device id, empty before the log-in.
    pub device_id: String,
    /// The access token, empty before the log-in.
    pub access_token: String,
}

impl Client {
    /// A client without an account.
    pub fn new(base_url: String) -> Self {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(90))
            .build()
            .expect("a client with these options can be built");
        Self {
            http,
            base_url,
            user_id: String::new(),
            device_id: String::new(),
            access_token: String::new(),
        }
    }

    /// The same over HTTPS, trusting certificates of one authority (PEM) and no others.
    pub fn trusting(base_url: String, authority: &str) -> Self {
        let authority = reqwest::Certificate::from_pem(authority.as_bytes()).expect("the test made a certificate");
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(90))
            .https_only(true)
            .tls_certs_only([authority])
            .build()
            .expect("a client with these options can be built");
        Self {
            http,
            ..Self::new(base_url)
        }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The same server, nobody signed in.
    pub fn anonymous(&self) -> Self {
        Self {
            http: self.http.clone(),
            ..Self::new(self.base_url.clone())
        }
    }

    /// Whether the server answers that it is ready: every listener is open.
    pub async fn answers(&self) -> bool {
        let request = self.http.get(format!("{}/health/ready", self.base_url));
        request
            .timeout(Duration::from_secs(5))
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    /// One request; an error only when no whole answer came.
    pub async fn try_request(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base_url));
        if !self.access_token.is_empty() {
            request = request.bearer_auth(&self.access_token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        Ok(Answer {
            status,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    /// Uploads a file; an error only when no whole answer came.
    pub async fn try_upload(&self, content: Vec<u8>) -> reqwest::Result<Answer> {
        let request = self
            .http
            .post(format!("{}/_matrix/media/v3/upload", self.base_url))
            .bearer_auth(&self.access_token)
            .header("content-type", "application/octet-stream")
            .body(content);
        let answer = request.send().await?;
        let status = answer.status();
        let body = answer.bytes().await?;
        Ok(Answer {
            status,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    /// The content of an uploaded file, by its `mxc://` address; `None` when it is not given.
    pub async fn download(&self, uri: &str) -> Option<Vec<u8>> {
        let file = uri.strip_prefix("mxc://").unwrap_or(uri);
        let url = format!("{}/_matrix/client/v1/media/download/{file}", self.base_url);
        let answer = self.http.get(url).bearer_auth(&self.access_token).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("the download of {uri} got no answer: {error:?}"));
        if !answer.status().is_success() {
            return None;
        }
        let content = answer.bytes().await;
        Some(content.expect("the whole file comes").to_vec())
    }

    /// One request that must be answered.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let answer = self.try_request(method.clone(), path, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path} got no answer: {error:?}"))
    }

    /// One request that must be answered with success.
    pub async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let answer = self.request(method.clone(), path, body).await;
        assert!(
            answer.status.is_success(),
            "{method} {path} answered {} {}",
            answer.status,
            answer.body
        );
        answer.body
    }

    /// Registers a user where registration is open.
    pub async fn register(&self, username: &str) -> Self {
        let body = json!({ "username": username, "password": PASSWORD, "auth": { "type": "m.login.dummy" } });
        let answer = self.ask(Method::POST, "/_matrix/client/v3/register", Some(&body)).await;
        self.signed_in(&answer)
    }

    /// Signs in with a password.
    pub async fn login(&self, username: &str, password: &str) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": username },
            "password": password,
        });
        let answer = self.ask(Method::POST, "/_matrix/client/v3/login", Some(&body)).await;
        self.signed_in(&answer)
    }

    /// The session that an answer to a log-in or a registration describes.
    pub fn signed_in(&self, answer: &Value) -> Self {
        let field = |name: &str| {
            answer[name]
                .as_str()
                .unwrap_or_else(|| panic!("no {name} in {answer}"))
                .to_owned()
        };
        Self {
            user_id: field("user_id"),
            device_id: field("device_id"),
            access_token: field("access_token"),
            ..self.clone()
        }
    }

    /// Creates a room and returns its id.
    pub async fn create_room(&self, body: &Value) -> String {
        let answer = self
            .ask(Method::POST, "/_matrix/client/v3/createRoom", Some(body))
            .await;
        answer["room_id"]
            .as_str()
            .unwrap_or_else(|| panic!("no room_id in {answer}"))
            .to_owned()
    }

    /// Joins a room by its id.
    pub async fn join(&self, room_id: &str) {
        self.ask(
            Method::POST,
            &format!("/_matrix/client/v3/join/{}", escape(room_id)),
            Some(&json!({})),
        )
        .await;
    }

    /// Sends a text message; the event id when it was answered with success, the failure otherwise.
    pub async fn try_send(&self, room_id: &str, transaction: &str, text: &str) -> reqwest::Result<Answer> {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/send/m.room.message/{transaction}",
            escape(room_id)
        );
        self.try_request(Method::PUT, &path, Some(&json!({ "msgtype": "m.text", "body": text })))
            .await
    }

    /// One classic `/sync` with at most 100 events per timeline; an error only when no whole answer came.
    pub async fn try_sync(&self, since: Option<&str>, wait: Duration) -> reqwest::Result<Answer> {
        let filter = escape(r#"{"room":{"timeline":{"limit":100}}}"#);
        let since = since
            .map(|since| format!("&since={}", escape(since)))
            .unwrap_or_default();
        let path = format!(
            "/_matrix/client/v3/sync?timeout={}&filter={filter}{since}",
            wait.as_millis()
        );
        self.try_request(Method::GET, &path, None).await
    }

    /// One page of a room's messages, newest first, from one position back to another.
    pub async fn messages_back(&self, room_id: &str, from: &str, to: &str) -> Value {
        let (room_id, from, to) = (escape(room_id), escape(from), escape(to));
        let path = format!("/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=100&from={from}&to={to}");
        self.ask(Method::GET, &path, None).await
    }

    /// The path of one state event.
    pub fn state_path(&self, room_id: &str, kind: &str, key: &str) -> String {
        format!(
            "/_matrix/client/v3/rooms/{}/state/{kind}/{}",
            escape(room_id),
            escape(key)
        )
    }

    /// The current content of one state event; `None` when there is none.
    pub async fn state(&self, room_id: &str, kind: &str, key: &str) -> Option<Value> {
        let path = format!(
            "/_matrix/client/v3/rooms/{}/state/{kind}/{}",
            escape(room_id),
            escape(key)
        );
        let answer = self.request(Method::GET, &path, None).await;
        (answer.status == StatusCode::OK).then_some(answer.body)
    }

    /// The whole current state of a room.
    pub async fn full_state(&self, room_id: &str) -> Vec<Value> {
        let path = format!("/_matrix/client/v3/rooms/{}/state", escape(room_id));
        let answer = self.ask(Method::GET, &path, None).await;
        answer
            .as_array()
            .unwrap_or_else(|| panic!("the state is not a list: {answer}"))
            .clone()
    }

    /// Every message of a room from its beginning, page by page.
    pub async fn all_messages(&self, room_id: &str) -> Vec<SyncedEvent> {
        let mut messages = Vec::new();
        let mut from = None::<String>;
        loop {
            let place = from.map(|from| format!("&from={}", escape(&from))).unwrap_or_default();
            let path = format!(
                "/_matrix/client/v3/rooms/{}/messages?dir=f&limit=500{place}",
                escape(room_id)
            );
            let page = self.ask(Method::GET, &path, None).await;
            messages.extend(messages_in(&page["chunk"]));
            match page["end"].as_str() {
                Some(end) => from = Some(end.to_owned()),
                None => return messages,
            }
        }
    }
}

/// The messages among a list of events.
pub fn messages_in(events: &Value) -> impl Iterator<Item = SyncedEvent> {
    let events = events.as_array().cloned().unwrap_or_default();
    events
        .into_iter()
        .filter(|event| event["type"] == "m.room.message")
        .map(|event| SyncedEvent {
            event_id: event["event_id"].as_str().unwrap_or_default().to_owned(),
            body: event["content"]["body"].as_str().unwrap_or_default().to_owned(),
        })
}

/// A path segment or query value with everything reserved escaped.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
