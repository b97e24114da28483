//! The error answer of the client-server API.
//! Spec: client-server API, "Standard error response".

use std::borrow::Cow;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};
use tracing::error;

/// `{"errcode": …, "error": …}` with its HTTP status, and further fields where the endpoint has them.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    status: StatusCode,
    errcode: Cow<'static, str>,
    message: Cow<'static, str>,
    fields: Map<String, Value>,
    retry_after_ms: Option<u64>,
    whole_body: Option<Value>,
}

impl ApiError {
    /// An error with any status and code. `message` is for a person: what is wrong and what to do.
    pub fn new(
        status: StatusCode,
        errcode: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Parts {
            status,
            errcode: errcode.into(),
            message: message.into(),
            fields: Map::new(),
            retry_after_ms: None,
            whole_body: None,
        }))
    }

    /// The same error with one more field in its body.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.fields.insert(field.to_owned(), value.into());
        self
    }

    /// 401 with the stages that user-interactive authentication still needs: `body` is the whole answer.
    pub fn uiaa(body: Value) -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, "", "");
        error.0.whole_body = Some(body);
        error
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message)
    }

    /// 400 `M_BAD_JSON`: JSON, but not what the endpoint takes.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_BAD_JSON", message)
    }

    /// 400 `M_NOT_JSON`.
    pub fn not_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_NOT_JSON", message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_MISSING_PARAM", message)
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "M_MISSING_TOKEN",
            "This request needs an access token.",
        )
    }

    /// 401 `M_UNKNOWN_TOKEN`. After a soft logout the client keeps its keys and signs in again.
    pub fn unknown_token(soft_logout: bool) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "M_UNKNOWN_TOKEN",
            "This access token is not valid (any more).",
        )
        .with("soft_logout", soft_logout)
    }

    /// 404 `M_UNRECOGNIZED`: not built here.
    pub fn unrecognized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", message)
    }

    /// 429 `M_LIMIT_EXCEEDED`. `limit` names the setting that was hit.
    pub fn limit_exceeded(limit: &str, retry_after_ms: u64) -> Self {
        let mut error = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "M_LIMIT_EXCEEDED",
            format!("Too many requests: the limit {limit} is reached."),
        )
        .with("retry_after_ms", retry_after_ms);
        error.0.retry_after_ms = Some(retry_after_ms);
        error
    }

    /// 500 `M_UNKNOWN`. The cause goes to the log, never to the client.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        error!(error = %cause, "a request failed inside the server");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "M_UNKNOWN",
            "The server could not do this. Its log says why.",
        )
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The `errcode`.
    pub fn errcode(&self) -> &str {
        &self.0.errcode
    }

    /// The sentence for a person.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        let parts = &*self.0;
        parts.whole_body.clone().unwrap_or_else(|| {
            let mut body = Map::new();
            body.insert("errcode".to_owned(), Value::from(&*parts.errcode));
            body.insert("error".to_owned(), Value::from(&*parts.message));
            body.extend(parts.fields.clone());
            Value::Object(body)
        })
    }
}

/// The answer to U+0000 where one of the engines could not keep it.
pub(super) fn no_nul() -> ApiError {
    ApiError::invalid_param("The request holds the character U+0000, which this server does not keep.")
}

impl From<storage::Error> for ApiError {
    fn from(e: storage::Error) -> Self {
        if e.is_unstorable_text() {
            return no_nul();
        }
        Self::internal(e)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.0.status.as_u16(), self.0.errcode, self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, axum::Json(self.body())).into_response();
        if let Some(ms) = self.0.retry_after_ms {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        response
    }
}
