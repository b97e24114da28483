//! The routes of the client API as they are registered: served by `axum`, listed for whoever wants to walk them, and
//! each with what its requests count against.

use std::future::Future;

use axum::{
    Extension, Router,
    extract::State,
    response::IntoResponse,
    routing::{MethodFilter, MethodRouter, on},
};
use ruma::api::{IncomingRequest, path_builder::PathBuilder as _};

use super::{ApiError, Ruma, extract::TokenRule, limited::PathLimits};
use crate::Homeserver;

/// Routes of one family of endpoints, or of several.
#[derive(Default)]
pub(super) struct Routes {
    pub(super) router: Router<Homeserver>,
    pub(super) paths: Vec<String>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Serves a path.
    pub(super) fn route(mut self, path: &str, methods: MethodRouter<Homeserver>) -> Self {
        self.router = self
            .router
            .route(path, methods.route_layer(Extension(PathLimits::of(path))));
        if self.paths.last().is_none_or(|last| last != path) {
            self.paths.push(path.to_owned());
        }
        self
    }

    /// Serves a path below `/_matrix/client/r0` and `/_matrix/client/v3` alike.
    pub(super) fn client(self, path: &str, methods: MethodRouter<Homeserver>) -> Self {
        self.route(&format!("/_matrix/client/r0{path}"), methods.clone())
            .route(&format!("/_matrix/client/v3{path}"), methods)
    }

    /// Serves every path, stable and unstable, of the endpoint that `handler` takes the request of.
    pub(super) fn ruma<T, F, Fut, R>(mut self, handler: F) -> Self
    where
        T: IncomingRequest + Send + 'static,
        T::Authentication: TokenRule,
        F: Fn(State<Homeserver>, Ruma<T>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ApiError>> + Send,
        R: IntoResponse,
    {
        let method = MethodFilter::try_from(T::METHOD).expect("Matrix endpoints use common methods");
        for path in T::PATH_BUILDER.all_paths() {
            self = self.route(path, on(method, handler.clone()));
        }
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.paths.extend(other.paths);
        self
    }
}
