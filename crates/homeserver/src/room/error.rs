//! What a room answers to a request it does not carry out: each kind tells the caller what to do.

use http::StatusCode;

use crate::client_api::ApiError;

/// Why a room request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The room's rules do not let this user do this.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such room, event, state or alias, or the user may not know of it.
    #[error("{0}")]
    NotFound(String),
    /// The content is JSON, but not a valid event of its type.
    #[error("{0}")]
    BadJson(String),
    /// A parameter has a value that cannot be used.
    #[error("{0}")]
    InvalidParam(String),
    /// The event is larger than events may be.
    #[error("{0}")]
    TooLarge(String),
    /// Rooms of this version cannot be made or joined here.
    #[error("room version {0} is not supported by this server")]
    UnsupportedVersion(String),
    /// The alias points to a room already.
    #[error("the alias {0} is taken")]
    AliasTaken(String),
    /// The alias does not point to the room that wants to be called by it.
    #[error("the alias {0} does not point to this room")]
    BadAlias(String),
    /// The state a new room is to begin with contradicts itself.
    #[error("{0}")]
    InvalidRoomState(String),
    /// The user is in the room already.
    #[error("{0}")]
    BadState(String),
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// A defect of this server.
    #[error("{0}")]
    Internal(String),
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        match e {
            Error::Forbidden(why) => Self::forbidden(why),
            Error::NotFound(what) => Self::not_found(what),
            Error::BadJson(why) => Self::bad_json(why),
            Error::InvalidParam(why) => Self::invalid_param(why),
            Error::TooLarge(why) => Self::too_large(why),
            Error::UnsupportedVersion(_) => {
                Self::new(StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION", e.to_string())
            }
            Error::AliasTaken(_) => Self::new(StatusCode::BAD_REQUEST, "M_ROOM_IN_USE", e.to_string()),
            Error::BadAlias(_) => Self::new(StatusCode::BAD_REQUEST, "M_BAD_ALIAS", e.to_string()),
            Error::InvalidRoomState(why) => Self::new(StatusCode::BAD_REQUEST, "M_INVALID_ROOM_STATE", why),
            Error::BadState(why) => Self::new(StatusCode::FORBIDDEN, "M_BAD_STATE", why),
            Error::Storage(e) => e.into(),
            Error::Internal(why) => Self::internal(why),
        }
    }
}
