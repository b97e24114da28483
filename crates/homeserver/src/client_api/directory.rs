//! Aliases, the public room directory, and what a room tells before one joins it.

use std::cmp::Reverse;

use axum::extract::State;
use http::StatusCode;
use ruma::{
    OwnedRoomId, UInt,
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility},
        room::{Visibility, aliases},
    },
    directory::{Filter, PublicRoomsChunk},
};

use super::{ApiError, Routes, Ruma, RumaResponse};
use crate::{
    Homeserver,
    room::{DirectoryQuery, Error, PageStart},
};

pub(super) fn router() -> Routes {
    Routes::new()
        .ruma(resolve)
        .ruma(add)
        .ruma(remove)
        .ruma(aliases_of)
        .ruma(visibility)
        .ruma(set_visibility)
        .ruma(public_rooms)
        .ruma(search)
}

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directoryroomroomalias>
async fn resolve(
    State(hs): State<Homeserver>,
    request: Ruma<get_alias::v3::Request>,
) -> Result<RumaResponse<get_alias::v3::Response>, ApiError> {
    let alias = &request.body.room_alias;
    let (room_id, servers) = hs
        .rooms
        .resolve_alias(alias)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("There is no room alias {alias} on this server.")))?;
    Ok(RumaResponse(get_alias::v3::Response::new(room_id, servers)))
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directoryroomroomalias>
async fn add(
    State(hs): State<Homeserver>,
    request: Ruma<create_alias::v3::Request>,
) -> Result<RumaResponse<create_alias::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let (alias, room_id) = (&request.body.room_alias, &request.body.room_id);
    hs.rooms.add_alias(alias, room_id, user).await.map_err(|e| match e {
        Error::AliasTaken(_) => ApiError::new(StatusCode::CONFLICT, "M_UNKNOWN", e.to_string()),
        other => other.into(),
    })?;
    Ok(RumaResponse(create_alias::v3::Response::new()))
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#delete_matrixclientv3directoryroomroomalias>
async fn remove(
    State(hs): State<Homeserver>,
    request: Ruma<delete_alias::v3::Request>,
) -> Result<RumaResponse<delete_alias::v3::Response>, ApiError> {
    let user = request.sender();
    hs.rooms
        .remove_alias(&request.body.room_alias, &user.user_id, user.is_admin)
        .await?;
    Ok(RumaResponse(delete_alias::v3::Response::new()))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidaliases>
async fn aliases_of(
    State(hs): State<Homeserver>,
    request: Ruma<aliases::v3::Request>,
) -> Result<RumaResponse<aliases::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let not_a_member = || ApiError::forbidden("You are not a member of this room.");
    let room = hs.rooms.find(&request.body.room_id).await?.ok_or_else(not_a_member)?;
    let (state, until) = hs.rooms.readable(&room, user).await?;
    if until.is_some() {
        return Err(not_a_member());
    }
    let aliases = hs.rooms.aliases(&state).await?;
    Ok(RumaResponse(aliases::v3::Response::new(aliases)))
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3directorylistroomroomid>
async fn visibility(
    State(hs): State<Homeserver>,
    request: Ruma<get_room_visibility::v3::Request>,
) -> Result<RumaResponse<get_room_visibility::v3::Response>, ApiError> {
    let listed = hs.rooms.is_listed(&request.body.room_id).await?;
    let visibility = if listed {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(RumaResponse(get_room_visibility::v3::Response::new(visibility)))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directorylistroomroomid>
async fn set_visibility(
    State(hs): State<Homeserver>,
    request: Ruma<set_room_visibility::v3::Request>,
) -> Result<RumaResponse<set_room_visibility::v3::Response>, ApiError> {
    let user = request.sender();
    let listed = match request.body.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        ref other => return Err(ApiError::invalid_param(format!("{} is no visibility.", other.as_str()))),
    };
    hs.rooms
        .set_listed(&request.body.room_id, &user.user_id, user.is_admin, listed)
        .await?;
    Ok(RumaResponse(set_room_visibility::v3::Response::new()))
}

/// Rooms in one answer, if the client names no number, and at most.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 500;

/// A page of the directory.
struct Page {
    chunk: Vec<PublicRoomsChunk>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
    total: UInt,
}

async fn page(
    hs: &Homeserver,
    server: Option<&ruma::ServerName>,
    filter: &Filter,
    since: Option<&str>,
    limit: Option<UInt>,
) -> Result<Page, ApiError> {
    if server.is_some_and(|server| server != hs.config.server_name) {
        return Err(ApiError::forbidden(
            "The directory of another server cannot be read: this server does not federate.",
        ));
    }
    let from = since.map(|since| {
        parse_token(since).ok_or_else(|| ApiError::invalid_param("`since` is not a token that this server gave."))
    });
    let limit = limit.map_or(DEFAULT_LIMIT, |limit| {
        usize::try_from(u64::from(limit)).unwrap_or(MAX_LIMIT)
    });
    let query = DirectoryQuery {
        term: filter.generic_search_term.as_deref(),
        room_types: &filter.room_types,
        from: from.transpose()?,
        limit: limit.clamp(1, MAX_LIMIT),
    };
    let page = hs.rooms.public_rooms(&query).await?;
    Ok(Page {
        next_batch: page.next.map(|place| token(&PageStart::After(place))),
        prev_batch: page.previous.map(|place| token(&PageStart::Before(place))),
        chunk: page.rooms,
        total: UInt::try_from(page.total).unwrap_or(UInt::MAX),
    })
}

/// `a` or `b` for after or before, the number of members and the id of the room that the page begins after or ends
/// before: a page stays where it was when rooms before it come and go.
fn token(start: &PageStart) -> String {
    let (side, (Reverse(members), room_id)) = match start {
        PageStart::After(place) => ('a', place),
        PageStart::Before(place) => ('b', place),
    };
    format!("{side}{members}{room_id}")
}

fn parse_token(token: &str) -> Option<PageStart> {
    let (side, rest) = token.split_at_checked(1)?;
    let (members, room_id) = rest.split_at(rest.find('!')?);
    let place = (Reverse(members.parse().ok()?), OwnedRoomId::try_from(room_id).ok()?);
    match side {
        "a" => Some(PageStart::After(place)),
        "b" => Some(PageStart::Before(place)),
        _ => None,
    }
}

/// `GET /_matrix/client/v3/publicRooms`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3publicrooms>
async fn public_rooms(
    State(hs): State<Homeserver>,
    request: Ruma<get_public_rooms::v3::Request>,
) -> Result<RumaResponse<get_public_rooms::v3::Response>, ApiError> {
    let body = &request.body;
    let everything = Filter::new();
    let page = page(
        &hs,
        body.server.as_deref(),
        &everything,
        body.since.as_deref(),
        body.limit,
    )
    .await?;
    let mut response = get_public_rooms::v3::Response::new(page.chunk);
    response.next_batch = page.next_batch;
    response.prev_batch = page.prev_batch;
    response.total_room_count_estimate = Some(page.total);
    Ok(RumaResponse(response))
}

/// `POST /_matrix/client/v3/publicRooms`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3publicrooms>
async fn search(
    State(hs): State<Homeserver>,
    request: Ruma<get_public_rooms_filtered::v3::Request>,
) -> Result<RumaResponse<get_public_rooms_filtered::v3::Response>, ApiError> {
    let body = &request.body;
    let page = page(
        &hs,
        body.server.as_deref(),
        &body.filter,
        body.since.as_deref(),
        body.limit,
    )
    .await?;
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.chunk = page.chunk;
    response.next_batch = page.next_batch;
    response.prev_batch = page.prev_batch;
    response.total_room_count_estimate = Some(page.total);
    Ok(RumaResponse(response))
}
