//! Prometheus metrics on a listener of their own. Crates record through the `metrics` facade; without this recorder that
//! costs them nothing.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Seconds, from a cached answer to a long poll.
const LATENCIES: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];
/// How often old samples are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error("cannot set up metrics: {0}")]
    Build(#[from] BuildError),
    #[error("metrics are recorded elsewhere already: {0}")]
    Installed(String),
}

/// Records from here on; answers the router for the metrics listener. Once per process.
pub(crate) fn install(tasks: &TaskTracker, shutdown: CancellationToken) -> Result<Router, MetricsError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), LATENCIES)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| MetricsError::Installed(error.to_string()))?;
    metrics::gauge!("longhouse_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let upkeep = handle.clone();
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => upkeep.run_upkeep(),
            }
        }
    });
    // GET /metrics: Prometheus text exposition format.
    let render = move || async move {
        (
            [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            handle.render(),
        )
    };
    Ok(Router::new().route("/metrics", get(render)))
}
