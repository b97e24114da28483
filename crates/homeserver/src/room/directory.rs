//! Aliases and the public room directory.
//! Spec: client-server API, "Room aliases" and "Listing rooms".

use std::sync::Arc;

use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, UserId,
    directory::{PublicRoomsChunk, PublicRoomsChunkInit},
    events::{StateEventType, room::history_visibility::HistoryVisibility},
};

use super::{Error, Event, RoomState, Rooms};

impl Rooms {
    /// Which room an alias of this server names, and a server that is in it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resolve_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<Option<(OwnedRoomId, Vec<OwnedServerName>)>, Error> {
        let Some((room_id, _)) = self.inner.store.room_alias(alias.as_str()).await? else {
            return Ok(None);
        };
        let room_id = OwnedRoomId::try_from(room_id).map_err(|e| storage::Error::corrupt("room_aliases", e))?;
        Ok(Some((room_id, vec![self.inner.server_name.clone()])))
    }

    /// Points a new alias of this server to a room.
    ///
    /// # Errors
    /// [`Error::AliasTaken`]; [`Error::InvalidParam`] for an alias of another server; or when the database fails.
    pub async fn add_alias(&self, alias: &RoomAliasId, room_id: &RoomId, creator: &UserId) -> Result<(), Error> {
        if alias.server_name() != self.inner.server_name {
            return Err(Error::InvalidParam(format!(
                "The alias must end in :{}.",
                self.inner.server_name
            )));
        }
        // Who is not in the room may not learn either whether it exists.
        let room = self.find(room_id).await?.filter(|room| room.state().is_joined(creator));
        let room = room.ok_or_else(|| Error::Forbidden("You are not in this room.".to_owned()))?;
        let room_nid = room.state().room_nid;
        let added = self
            .inner
            .store
            .add_alias(alias.to_string(), room_nid, creator.to_string())
            .await?;
        if added {
            Ok(())
        } else {
            Err(Error::AliasTaken(alias.to_string()))
        }
    }

    /// Removes an alias: whoever made it may, and whoever may change the room's canonical alias.
    ///
    /// # Errors
    /// When there is no such alias, the user may not remove it, or the database fails.
    pub async fn remove_alias(&self, alias: &RoomAliasId, user: &UserId, is_admin: bool) -> Result<(), Error> {
        let Some((room_id, creator)) = self.inner.store.room_alias(alias.as_str()).await? else {
            return Err(Error::NotFound(format!("There is no alias {alias}.")));
        };
        let room_id = OwnedRoomId::try_from(room_id).map_err(|e| storage::Error::corrupt("room_aliases", e))?;
        let room = self.get(&room_id).await?;
        let in_charge = room.state().may_send_state(user, &StateEventType::RoomCanonicalAlias);
        if creator != user.as_str() && !in_charge && !is_admin {
            return Err(Error::Forbidden("You may not remove this alias.".to_owned()));
        }
        self.inner.store.remove_alias(alias.to_string()).await?;
        Ok(())
    }

    /// The aliases of a room on this server.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn aliases(&self, room: &RoomState) -> Result<Vec<OwnedRoomAliasId>, Error> {
        let aliases = self.inner.store.aliases_of(room.room_nid).await?;
        Ok(aliases.into_iter().filter_map(|a| a.try_into().ok()).collect())
    }

    /// Whether a room stands in the public directory.
    ///
    /// # Errors
    /// When there is no such room, or the database fails.
    pub async fn is_listed(&self, room_id: &RoomId) -> Result<bool, Error> {
        let row = self.inner.store.room(room_id.as_str()).await?;
        row.map(|row| row.listed)
            .ok_or_else(|| Error::NotFound(format!("This server knows no room {room_id}.")))
    }

    /// Puts a room into the public directory or takes it out.
    ///
    /// # Errors
    /// When there is no such room, the user may not decide it, or the database fails.
    pub async fn set_listed(&self, room_id: &RoomId, user: &UserId, is_admin: bool, listed: bool) -> Result<(), Error> {
        let room = self.get(room_id).await?;
        let state = room.state();
        if !is_admin && !state.may_send_state(user, &StateEventType::RoomCanonicalAlias) {
            return Err(Error::Forbidden(
                "Listing a room needs the power to change its canonical alias.".to_owned(),
            ));
        }
        Ok(self.inner.store.set_listed(state.room_nid, listed).await?)
    }

    /// The public directory, the largest rooms first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn public_rooms(&self, term: Option<&str>) -> Result<Vec<PublicRoomsChunk>, Error> {
        let term = term.map(str::to_lowercase).filter(|term| !term.is_empty());
        let mut rooms = Vec::new();
        for room_id in self.inner.store.listed_rooms().await? {
            let room_id = OwnedRoomId::try_from(room_id).map_err(|e| storage::Error::corrupt("rooms", e))?;
            let Some(room) = self.find(&room_id).await? else {
                continue;
            };
            let chunk = public_chunk(&room.state());
            if term.as_ref().is_none_or(|term| matches(&chunk, term)) {
                rooms.push(chunk);
            }
        }
        rooms.sort_by(|a, b| {
            b.num_joined_members
                .cmp(&a.num_joined_members)
                .then_with(|| a.room_id.cmp(&b.room_id))
        });
        Ok(rooms)
    }
}

fn matches(chunk: &PublicRoomsChunk, term: &str) -> bool {
    let alias = chunk.canonical_alias.as_ref().map(ToString::to_string);
    [&chunk.name, &chunk.topic, &alias]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(term))
}

/// What the directory says of a room.
pub(super) fn public_chunk(state: &RoomState) -> PublicRoomsChunk {
    let joined = ruma::UInt::try_from(state.joined).unwrap_or(ruma::UInt::MAX);
    let world_readable = state.history_visibility() == HistoryVisibility::WorldReadable;
    let mut chunk = PublicRoomsChunk::from(PublicRoomsChunkInit {
        num_joined_members: joined,
        room_id: state.room_id.clone(),
        world_readable,
        guest_can_join: false,
    });
    chunk.join_rule = state.join_rule().as_str().into();
    let pinned = |kind: StateEventType| state.pinned(&kind).cloned();
    let text = |event: Option<Arc<Event>>, field: &str| event?.content_field::<String>(field).filter(|t| !t.is_empty());
    chunk.name = text(pinned(StateEventType::RoomName), "name");
    chunk.topic = text(pinned(StateEventType::RoomTopic), "topic");
    chunk.avatar_url = text(pinned(StateEventType::RoomAvatar), "url").map(Into::into);
    chunk.canonical_alias =
        text(pinned(StateEventType::RoomCanonicalAlias), "alias").and_then(|alias| alias.try_into().ok());
    chunk.room_type = pinned(StateEventType::RoomCreate).and_then(|create| create.content_field("type"));
    chunk
}
