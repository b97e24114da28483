//! Joining, inviting, leaving, kicking, banning, forgetting, knocking.

use axum::extract::State;
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, RoomId, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room, invite_user, join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user,
            leave_room, unban_user,
        },
    },
};

use super::{
    ApiError, Routes, Ruma, RumaResponse,
    room_arguments::{member_profile, resolve},
};
use crate::{
    Homeserver,
    room::{Action, Error, Membership, MembershipChange},
};

pub(super) fn router() -> Routes {
    Routes::new()
        .ruma(join)
        .ruma(join_by_alias)
        .ruma(knock)
        .ruma(invite)
        .ruma(leave)
        .ruma(kick)
        .ruma(ban)
        .ruma(unban)
        .ruma(forget)
        .ruma(joined)
}

async fn change(
    hs: &Homeserver,
    room_id: &RoomId,
    action: Action,
    sender: &UserId,
    target: &UserId,
    reason: Option<String>,
) -> Result<(), ApiError> {
    let room = hs.rooms.find(room_id).await?.ok_or_else(|| match action {
        Action::Join | Action::Knock => ApiError::not_found(format!("This server knows no room {room_id}.")),
        _ => ApiError::forbidden("You are not in this room."),
    })?;
    let profile = match action {
        Action::Join | Action::Knock | Action::Invite => member_profile(hs, target).await,
        _ => CanonicalJsonObject::new(),
    };
    let change = MembershipChange {
        sender: sender.to_owned(),
        target: target.to_owned(),
        action,
        reason,
        profile,
    };
    hs.rooms.change_membership(&room, change).await?;
    Ok(())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/join`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidjoin>
async fn join(
    State(hs): State<Homeserver>,
    request: Ruma<join_room_by_id::v3::Request>,
) -> Result<RumaResponse<join_room_by_id::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let room_id = request.body.room_id.clone();
    change(&hs, &room_id, Action::Join, user, user, request.body.reason.clone()).await?;
    Ok(RumaResponse(join_room_by_id::v3::Response::new(room_id)))
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3joinroomidoralias>
async fn join_by_alias(
    State(hs): State<Homeserver>,
    request: Ruma<join_room_by_id_or_alias::v3::Request>,
) -> Result<RumaResponse<join_room_by_id_or_alias::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let room_id = resolve(&hs, &request.body.room_id_or_alias).await?;
    change(&hs, &room_id, Action::Join, user, user, request.body.reason.clone()).await?;
    Ok(RumaResponse(join_room_by_id_or_alias::v3::Response::new(room_id)))
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3knockroomidoralias>
async fn knock(
    State(hs): State<Homeserver>,
    request: Ruma<knock_room::v3::Request>,
) -> Result<RumaResponse<knock_room::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let room_id = resolve(&hs, &request.body.room_id_or_alias).await?;
    change(&hs, &room_id, Action::Knock, user, user, request.body.reason.clone()).await?;
    Ok(RumaResponse(knock_room::v3::Response::new(room_id)))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidinvite>
async fn invite(
    State(hs): State<Homeserver>,
    request: Ruma<invite_user::v3::Request>,
) -> Result<RumaResponse<invite_user::v3::Response>, ApiError> {
    let sender = &request.sender().user_id;
    let invite_user::v3::InvitationRecipient::UserId(invited) = &request.body.recipient else {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_UNRECOGNIZED",
            "This server does not invite by e-mail address or telephone number.",
        ));
    };
    let (room_id, reason) = (&request.body.room_id, invited.reason.clone());
    change(&hs, room_id, Action::Invite, sender, &invited.user_id, reason).await?;
    Ok(RumaResponse(invite_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidleave>
async fn leave(
    State(hs): State<Homeserver>,
    request: Ruma<leave_room::v3::Request>,
) -> Result<RumaResponse<leave_room::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let body = &request.body;
    change(&hs, &body.room_id, Action::Leave, user, user, body.reason.clone()).await?;
    Ok(RumaResponse(leave_room::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidkick>
async fn kick(
    State(hs): State<Homeserver>,
    request: Ruma<kick_user::v3::Request>,
) -> Result<RumaResponse<kick_user::v3::Response>, ApiError> {
    let sender = &request.sender().user_id;
    let body = &request.body;
    change(
        &hs,
        &body.room_id,
        Action::Kick,
        sender,
        &body.user_id,
        body.reason.clone(),
    )
    .await?;
    Ok(RumaResponse(kick_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidban>
async fn ban(
    State(hs): State<Homeserver>,
    request: Ruma<ban_user::v3::Request>,
) -> Result<RumaResponse<ban_user::v3::Response>, ApiError> {
    let sender = &request.sender().user_id;
    let body = &request.body;
    change(
        &hs,
        &body.room_id,
        Action::Ban,
        sender,
        &body.user_id,
        body.reason.clone(),
    )
    .await?;
    Ok(RumaResponse(ban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidunban>
async fn unban(
    State(hs): State<Homeserver>,
    request: Ruma<unban_user::v3::Request>,
) -> Result<RumaResponse<unban_user::v3::Response>, ApiError> {
    let sender = &request.sender().user_id;
    let body = &request.body;
    change(
        &hs,
        &body.room_id,
        Action::Unban,
        sender,
        &body.user_id,
        body.reason.clone(),
    )
    .await?;
    Ok(RumaResponse(unban_user::v3::Response::new()))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidforget>
async fn forget(
    State(hs): State<Homeserver>,
    request: Ruma<forget_room::v3::Request>,
) -> Result<RumaResponse<forget_room::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    hs.rooms
        .forget(&request.body.room_id, user)
        .await
        .map_err(|e| match e {
            Error::BadState(why) => ApiError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", why),
            other => other.into(),
        })?;
    Ok(RumaResponse(forget_room::v3::Response::new()))
}

/// `GET /_matrix/client/v3/joined_rooms`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3joined_rooms>
async fn joined(
    State(hs): State<Homeserver>,
    request: Ruma<joined_rooms::v3::Request>,
) -> Result<RumaResponse<joined_rooms::v3::Response>, ApiError> {
    let rooms = hs.rooms.memberships_of(&request.sender().user_id).await?;
    let mut joined: Vec<OwnedRoomId> = rooms
        .iter()
        .filter(|(_, room)| room.membership == Membership::Join)
        .map(|(room_id, _)| room_id.clone())
        .collect();
    joined.sort_unstable();
    Ok(RumaResponse(joined_rooms::v3::Response::new(joined)))
}
