//! From an HTTP request to a typed one: access token, rate limit, size, encoding, syntax and path arguments are
//! checked here once, so that a handler sees only well-formed requests of a known sender.

use std::net::IpAddr;

use axum::{
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header, request::Parts};
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, Metadata, OutgoingResponse, OutgoingResponseExt as _, auth_scheme,
    error::FromHttpRequestError,
};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{
    ApiError,
    limited::{Limit, PathLimits},
};
use crate::{Homeserver, accounts::Authenticated};

/// The largest JSON body: key uploads and account data are the big ones; events have a limit of their own.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// The address a request comes from, put into the request's extensions by the process (which knows its proxies).
#[derive(Debug, Clone, Copy)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    fn of(parts: &Parts) -> Option<IpAddr> {
        parts.extensions.get::<Self>().map(|ip| ip.0)
    }
}

/// The address a request comes from, for handlers; `None` when the process does not say (tests).
#[derive(Debug)]
pub(super) struct Ip(pub(super) Option<IpAddr>);

impl FromRequestParts<Homeserver> for Ip {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Homeserver) -> Result<Self, Self::Rejection> {
        Ok(Self(ClientIp::of(parts)))
    }
}

/// A typed request of a ruma endpoint.
#[derive(Debug)]
pub struct Ruma<T> {
    /// The request.
    pub body: T,
    /// The sender, where the request carried a token and the endpoint takes one.
    pub user: Option<Authenticated>,
    /// Where it comes from; `None` when the process does not say (tests).
    pub ip: Option<IpAddr>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body as it came.
    pub raw: Bytes,
}

impl<T: Metadata<Authentication = auth_scheme::AccessToken>> Ruma<T> {
    /// The sender: endpoints with this kind of authentication always have one.
    pub fn sender(&self) -> &Authenticated {
        self.user
            .as_ref()
            .expect("a request of an endpoint that needs a token is refused without one")
    }
}

/// How an endpoint treats access tokens.
pub trait TokenRule {
    /// The rule.
    const RULE: Rule;
}

/// See [`TokenRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Tokens are ignored.
    Ignored,
    /// A token is checked when there is one.
    Optional,
    /// A valid token is needed.
    Required,
}

macro_rules! rules {
    ($($scheme:ident: $rule:ident),* $(,)?) => {
        $(impl TokenRule for auth_scheme::$scheme { const RULE: Rule = Rule::$rule; })*
    };
}
rules! {
    NoAuthentication: Ignored,
    NoAccessToken: Ignored,
    AccessToken: Required,
    AccessTokenOptional: Optional,
    AppserviceToken: Required,
    AppserviceTokenOptional: Optional,
}

impl<T> FromRequest<Homeserver> for Ruma<T>
where
    T: IncomingRequest,
    T::Authentication: TokenRule,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, hs: &Homeserver) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let user = match <T::Authentication as TokenRule>::RULE {
            Rule::Ignored => None,
            Rule::Optional => authenticate(&parts, hs).await?,
            Rule::Required => Some(authenticate(&parts, hs).await?.ok_or_else(ApiError::missing_token)?),
        };
        let path = RawPathParams::from_request_parts(&mut parts, &())
            .await
            .map_err(|_| ApiError::invalid_param("The path is not valid UTF-8 after percent-decoding."))?;
        let path: Vec<&str> = path.iter().map(|(_, value)| value).collect();
        let raw = read_body(body).await?;
        as_text(&raw)?;
        let ip = ClientIp::of(&parts);
        let headers = parts.headers.clone();
        // Clients leave the body out where every field of it is optional (matrix-nio joins so): an empty object is meant.
        let json: &[u8] = if raw.is_empty() { b"{}" } else { &raw };
        let body =
            T::try_from_http_request(http::Request::from_parts(parts, json), &path).map_err(|e| explain(&e, &raw))?;
        Ok(Self {
            body,
            user,
            ip,
            headers,
            raw,
        })
    }
}

/// The sender of a request to an endpoint that ruma has no type for.
#[derive(Debug)]
pub struct Auth(pub Authenticated);

impl FromRequestParts<Homeserver> for Auth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hs: &Homeserver) -> Result<Self, ApiError> {
        authenticate(parts, hs)
            .await?
            .map(Self)
            .ok_or_else(ApiError::missing_token)
    }
}

/// The sender of a request that lasts, with the access token, so that it can be seen whether the session still is.
#[derive(Debug)]
pub(super) struct AuthWithToken(pub(super) Authenticated, pub(super) AccessToken);

impl FromRequestParts<Homeserver> for AuthWithToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hs: &Homeserver) -> Result<Self, ApiError> {
        let token = access_token(parts)?.ok_or_else(ApiError::missing_token)?;
        let sender = hs.accounts.authenticate(&token, ClientIp::of(parts)).await?;
        Ok(Self(sender, AccessToken(token)))
    }
}

/// An access token, kept out of logs.
pub(crate) struct AccessToken(pub(crate) String);

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken")
    }
}

/// The sender, where the request carries a token; an invalid one is still refused.
#[derive(Debug)]
pub struct OptionalAuth(pub Option<Authenticated>);

impl FromRequestParts<Homeserver> for OptionalAuth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hs: &Homeserver) -> Result<Self, ApiError> {
        authenticate(parts, hs).await.map(Self)
    }
}

/// A JSON body of an endpoint that ruma has no type for. An empty body is read as `{}`.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Homeserver> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Homeserver) -> Result<Self, ApiError> {
        let raw = read_body(request.into_body()).await?;
        let text = if raw.is_empty() { "{}" } else { as_text(&raw)? };
        serde_json::from_str(text).map(Self).map_err(|e| explain(&e, &raw))
    }
}

/// A typed answer of a ruma endpoint.
#[derive(Debug)]
pub struct RumaResponse<T>(pub T);

impl<T: OutgoingResponse> IntoResponse for RumaResponse<T> {
    fn into_response(self) -> Response {
        match self.0.try_into_http_response::<BytesMut>() {
            Ok(response) => response
                .map(|body| axum::body::Body::from(body.freeze()))
                .into_response(),
            Err(e) => ApiError::internal(e).into_response(),
        }
    }
}

async fn authenticate(parts: &Parts, hs: &Homeserver) -> Result<Option<Authenticated>, ApiError> {
    let Some(token) = access_token(parts)? else {
        return Ok(None);
    };
    let sender = hs.accounts.authenticate(&token, ClientIp::of(parts)).await?;
    let limits = parts.extensions.get::<PathLimits>();
    if let Some(Limit::User(class)) = limits.and_then(|limits| limits.limit(&parts.method)) {
        hs.limits.check(&sender.user_id, class)?;
    }
    Ok(Some(sender))
}

/// Spec: client-server API, "Using access tokens": a header, or (deprecated) a query parameter.
fn access_token(parts: &Parts) -> Result<Option<String>, ApiError> {
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        let token = value
            .to_str()
            .ok()
            .and_then(|v| v.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim().to_owned());
        return token
            .filter(|t| !t.is_empty())
            .map(Some)
            .ok_or_else(ApiError::missing_token);
    }
    let query = parts.uri.query().unwrap_or_default();
    let token = query.split('&').find_map(|pair| pair.strip_prefix("access_token="));
    Ok(token
        .and_then(|t| percent_encoding::percent_decode_str(t).decode_utf8().ok())
        .filter(|t| !t.is_empty())
        .map(std::borrow::Cow::into_owned))
}

pub(super) async fn read_body(body: axum::body::Body) -> Result<Bytes, ApiError> {
    // The error does not say whether it was the limit or the connection; on a broken connection nobody reads this.
    axum::body::to_bytes(body, MAX_BODY)
        .await
        .map_err(|_| ApiError::too_large(format!("The request's body is larger than {MAX_BODY} bytes.")))
}

/// The parser does not look into texts it skips, so the encoding is checked here.
fn as_text(raw: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(raw).map_err(|_| ApiError::not_json("The body is not valid UTF-8."))
}

/// Says what is wrong with a request that could not be read.
fn explain(error: &(impl std::error::Error + 'static), raw: &[u8]) -> ApiError {
    let method_mismatch = (error as &dyn std::error::Error)
        .downcast_ref::<FromHttpRequestError>()
        .is_some_and(|e| matches!(e, FromHttpRequestError::MethodMismatch { .. }));
    if method_mismatch {
        return ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "M_UNRECOGNIZED",
            "This endpoint does not have that method.",
        );
    }
    // Syntax errors, nesting beyond the parser's 128 levels among them, are M_NOT_JSON;
    // JSON of another shape is M_BAD_JSON.
    if !raw.is_empty()
        && let Err(e) = serde_json::from_slice::<IgnoredAny>(raw)
    {
        return ApiError::not_json(format!("The body is not JSON: {e}."));
    }
    ApiError::bad_json(format!("The request is not what this endpoint takes: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, authorization: Option<&str>) -> Parts {
        let mut request = http::Request::builder().uri(uri);
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_token_comes_from_the_header_or_the_query() {
        let cases = [
            ("/x", Some("Bearer abc"), Some("abc")),
            ("/x", Some("bearer abc"), Some("abc")),
            ("/x?access_token=a%2Bc&y=1", None, Some("a+c")),
            ("/x?access_token=query", Some("Bearer header"), Some("header")),
            ("/x?other=1", None, None),
            ("/x?access_token=", None, None),
        ];
        for (uri, header, expected) in cases {
            assert_eq!(
                access_token(&parts(uri, header)).unwrap().as_deref(),
                expected,
                "{uri} {header:?}"
            );
        }
    }

    #[test]
    fn another_scheme_is_a_missing_token() {
        for value in ["Basic abc", "Bearer", "Bearer "] {
            assert_eq!(
                access_token(&parts("/x", Some(value))).unwrap_err().errcode(),
                "M_MISSING_TOKEN",
                "{value}"
            );
        }
    }
}
