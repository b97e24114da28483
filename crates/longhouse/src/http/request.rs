//! What every request gets: the client's address behind trusted proxies, a span, latency figures. Logs the route
//! pattern, never the path or the query, which may carry tokens and names.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use homeserver::client_api::{ApiError, ClientIp};
use http::{HeaderMap, Method, StatusCode};
use ipnet::IpNet;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Networks whose forwarding headers are believed.
#[derive(Debug, Clone)]
pub(crate) struct TrustedProxies(pub(crate) Arc<[IpNet]>);

impl TrustedProxies {
    fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|net| net.contains(&ip))
    }

    /// The rightmost address in `X-Forwarded-For` that is not a trusted proxy: everything left of it is what that
    /// address claims, and may be forged.
    fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        let mut client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if !self.contains(peer.ip()) {
            return client;
        }
        let hops: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .collect();
        for hop in hops.into_iter().rev() {
            let Some(ip) = forwarded_ip(hop) else { break };
            client = SocketAddr::new(ip, 0);
            if !self.contains(ip) {
                break;
            }
        }
        client
    }
}

/// An address as proxies write it: bare, or with a port.
fn forwarded_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
        .map(|ip| ip.to_canonical())
}

/// What surrounds every request.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) proxies: TrustedProxies,
    /// Where requests run that have to run to their end.
    pub(crate) tasks: TaskTracker,
}

/// Middleware around every route: replaces the peer address by the client's, opens the span, measures.
pub(crate) async fn trace(State(around): State<Surroundings>, mut request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>().copied() {
        let client = around.proxies.client(peer, request.headers());
        request.extensions_mut().insert(ConnectInfo(client));
        request.extensions_mut().insert(ClientIp(client.ip()));
    }
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("(no route)", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!("request", %method, route);
    let _in_flight = InFlight::new();
    // A handler that panics has been logged by the hook; its client still gets an answer.
    let only_reads = matches!(method, Method::GET | Method::HEAD);
    let answering = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone());
    let answer = if only_reads {
        // A client that hangs up ends its long poll.
        answering.await.ok()
    } else {
        // What changes something is not cut in two by a client that hangs up: between a commit and what follows it in
        // memory lies an await.
        around.tasks.spawn(answering).await.ok().and_then(Result::ok)
    };
    let response = answer.unwrap_or_else(|| {
        let message = "The server could not do this. Its log says why.";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", message).into_response()
    });
    let latency = started.elapsed();
    let status = response.status().as_u16();
    span.in_scope(|| {
        let latency_ms = latency.as_millis() as u64;
        if response.status().is_server_error() {
            tracing::warn!(status, latency_ms, "answered");
        } else {
            tracing::debug!(status, latency_ms, "answered");
        }
    });
    let labels = [
        ("method", method.to_string()),
        ("route", route),
        ("status", status.to_string()),
    ];
    metrics::histogram!("longhouse_http_request_seconds", &labels).record(latency.as_secs_f64());
    response
}

/// One request between its head and the head of its answer, long polls among them; a client may hang up at any moment.
struct InFlight;

impl InFlight {
    fn new() -> Self {
        metrics::gauge!("longhouse_http_requests_in_flight").increment(1.0);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::gauge!("longhouse_http_requests_in_flight").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_answer() {
        use axum::routing::get;
        use tower::ServiceExt;
        let fails = || async {
            if std::hint::black_box(true) {
                panic!("a defect");
            }
            "never"
        };
        let around = Surroundings {
            proxies: TrustedProxies(Vec::new().into()),
            tasks: TaskTracker::new(),
        };
        let router = axum::Router::new()
            .route("/fails", get(fails).post(fails))
            .layer(axum::middleware::from_fn_with_state(around, trace));
        for method in [Method::GET, Method::POST] {
            let request = http::Request::builder().method(method).uri("/fails");
            let request = request.body(axum::body::Body::empty()).expect("valid");
            let response = router.clone().oneshot(request).await.expect("infallible");
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
    }

    #[tokio::test]
    async fn a_change_runs_to_its_end_after_the_client_hung_up() {
        use axum::routing::post;
        use tokio::sync::Notify;
        use tower::ServiceExt;
        let (started, go, done) = (
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
            Arc::new(Notify::new()),
        );
        let handler = {
            let (started, go, done) = (started.clone(), go.clone(), done.clone());
            move || async move {
                started.notify_one();
                go.notified().await;
                done.notify_one();
                "done"
            }
        };
        let around = Surroundings {
            proxies: TrustedProxies(Vec::new().into()),
            tasks: TaskTracker::new(),
        };
        let router = axum::Router::new()
            .route("/change", post(handler))
            .layer(axum::middleware::from_fn_with_state(around, trace));
        let request = http::Request::post("/change")
            .body(axum::body::Body::empty())
            .expect("valid");
        let client = tokio::spawn(router.oneshot(request));
        started.notified().await;
        client.abort();
        assert!(client.await.is_err_and(|e| e.is_cancelled()));
        go.notify_one();
        done.notified().await;
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let proxies =
            TrustedProxies(vec!["127.0.0.0/8".parse().expect("net"), "10.0.0.0/8".parse().expect("net")].into());
        for (peer, headers, expected) in [
            ("203.0.113.9:5", &["198.51.100.7"][..], "203.0.113.9"),
            ("127.0.0.1:5", &[], "127.0.0.1"),
            ("127.0.0.1:5", &["198.51.100.7"], "198.51.100.7"),
            ("127.0.0.1:5", &["6.6.6.6, 198.51.100.7"], "198.51.100.7"),
            ("127.0.0.1:5", &["6.6.6.6, 198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            ("127.0.0.1:5", &["6.6.6.6", "198.51.100.7, 10.1.1.1"], "198.51.100.7"),
            ("127.0.0.1:5", &["198.51.100.7:4711"], "198.51.100.7"),
            ("127.0.0.1:5", &["[2001:db8::1]:80"], "2001:db8::1"),
            ("127.0.0.1:5", &["[2001:db8::1]"], "2001:db8::1"),
            ("127.0.0.1:5", &["6.6.6.6, unknown, 10.1.1.1"], "10.1.1.1"),
            ("[::ffff:127.0.0.1]:5", &["198.51.100.7"], "198.51.100.7"),
        ] {
            let mut map = HeaderMap::new();
            for value in headers {
                map.append("x-forwarded-for", value.parse().expect("header"));
            }
            let client = proxies.client(peer.parse().expect("peer"), &map);
            assert_eq!(client.ip().to_string(), expected, "{peer} {headers:?}");
        }
    }
}
