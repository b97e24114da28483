//! Administration from the command line and from the page: one set of requests, answered by the homeserver, carried over
//! a Unix socket while the server runs and directly while it is stopped.

pub(crate) mod command;
pub(crate) mod execute;
pub(crate) mod first_admin;
pub(crate) mod protocol;
pub(crate) mod socket;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use protocol::{Answer, Refusal, Request};

/// Whoever answers administration requests: the homeserver, behind a function so that carriers need not know it.
#[derive(Clone)]
pub(crate) struct Administration(Arc<dyn Fn(Request) -> BoxFuture<'static, Result<Answer, Refusal>> + Send + Sync>);

impl Administration {
    pub(crate) fn new<F>(answer: impl Fn(Request) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(answer(request))))
    }

    pub(crate) async fn answer(&self, request: Request) -> Result<Answer, Refusal> {
        (self.0)(request).await
    }
}

impl std::fmt::Debug for Administration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Administration")
    }
}
