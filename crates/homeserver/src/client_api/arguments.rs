//! Path and query arguments of endpoints without a ruma type.

use axum::extract::{FromRequestParts, rejection::PathRejection};
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;
use crate::Homeserver;

/// Percent-decoded path arguments.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Homeserver> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hs: &Homeserver) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, hs).await {
            Ok(axum::extract::Path(arguments)) => Ok(Self(arguments)),
            Err(PathRejection::FailedToDeserializePathParams(e)) => Err(ApiError::invalid_param(format!(
                "The path is not what this endpoint takes: {e}."
            ))),
            Err(e) => Err(ApiError::internal(e)),
        }
    }
}

/// Query arguments.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Homeserver> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, hs: &Homeserver) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, hs).await {
            Ok(axum::extract::Query(arguments)) => Ok(Self(arguments)),
            Err(e) => Err(ApiError::invalid_param(format!(
                "The query is not what this endpoint takes: {e}."
            ))),
        }
    }
}
