//! Liveness and readiness, for supervisors and load balancers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::get;
use http::StatusCode;

/// Whether the process wants traffic: set when everything is wired, cleared when shutdown begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new()
        // GET /health/live: the process answers.
        .route("/health/live", get(|| async { "live\n" }))
        // GET /health/ready: the process wants traffic.
        .route(
            "/health/ready",
            get(move || async move {
                if readiness.get() {
                    (StatusCode::OK, "ready\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
                }
            }),
        )
}
