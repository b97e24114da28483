//! Aliases and the public room directory.
//! Spec: client-server API, "Room aliases" and "Listing rooms".

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId,
    UserId,
    directory::PublicRoomsChunk,
    events::{StateEventType, TimelineEventType},
};

use super::{
    Error, Proposal, Room, RoomState, Rooms,
    public_rooms::{DirectoryPage, DirectoryQuery, public_chunk},
    worker::Batch,
};

/// The aliases that a canonical alias event names.
fn named_aliases(content: &CanonicalJsonObject) -> Result<Vec<&str>, Error> {
    let mut aliases = Vec::new();
    match content.get("alias") {
        None | Some(CanonicalJsonValue::Null) => {}
        // Spec: an empty alias is none.
        Some(CanonicalJsonValue::String(alias)) if alias.is_empty() => {}
        Some(CanonicalJsonValue::String(alias)) => aliases.push(alias.as_str()),
        Some(_) => return Err(Error::InvalidParam("`alias` is not a string.".to_owned())),
    }
    match content.get("alt_aliases") {
        None | Some(CanonicalJsonValue::Null) => {}
        Some(CanonicalJsonValue::Array(list)) => {
            for alias in list {
                let alias = alias.as_str();
                aliases.push(alias.ok_or_else(|| {
                    Error::InvalidParam("`alt_aliases` holds something else than strings.".to_owned())
                })?);
            }
        }
        Some(_) => return Err(Error::InvalidParam("`alt_aliases` is not a list.".to_owned())),
    }
    Ok(aliases)
}

impl Rooms {
    /// For a canonical alias event: whether the aliases it adds point to its room.
    /// Spec: client-server API, `PUT …/state/{eventType}/{stateKey}`, `M_BAD_ALIAS`.
    ///
    /// # Errors
    /// [`Error::BadAlias`]; [`Error::InvalidParam`] for what is no alias; or when the database fails.
    pub(super) async fn check_canonical_alias(&self, batch: &Batch, proposal: &Proposal) -> Result<(), Error> {
        if proposal.kind != TimelineEventType::RoomCanonicalAlias || proposal.state_key.as_deref() != Some("") {
            return Ok(());
        }
        let present = batch.state.pinned(&StateEventType::RoomCanonicalAlias);
        let present: Option<CanonicalJsonObject> =
            present.and_then(|event| serde_json::from_str(event.content.get()).ok());
        let present = present
            .as_ref()
            .and_then(|content| named_aliases(content).ok())
            .unwrap_or_default();
        for alias in named_aliases(&proposal.content)? {
            // What stands there already may stay, though the alias be gone since.
            if present.contains(&alias) || batch.aliases.iter().any(|made| made.alias == alias) {
                continue;
            }
            let parsed = RoomAliasId::parse(alias)
                .map_err(|e| Error::InvalidParam(format!("{alias:?} is not a room alias: {e}.")))?;
            let target = self.resolve_alias(&parsed).await?;
            if target.is_none_or(|(target, _)| target != batch.state.room_id) {
                return Err(Error::BadAlias(alias.to_owned()));
            }
        }
        Ok(())
    }

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

    /// What somebody who may know of a room is told before they are in it.
    pub fn described(&self, state: &RoomState) -> PublicRoomsChunk {
        public_chunk(state)
    }

    /// Moves a room's aliases and its place in the directory to the room that replaces it, and tells the new room of its
    /// canonical alias.
    ///
    /// # Errors
    /// When the new room is not known, its canonical alias cannot be said, or the database fails.
    pub async fn move_aliases(&self, from: &Room, to: &RoomId, user: &UserId) -> Result<(), Error> {
        let (old, room) = (from.state(), self.get(to).await?);
        let moved = self
            .inner
            .store
            .move_aliases(old.room_nid, room.state().room_nid)
            .await?;
        self.list(from, false).await?;
        let canonical = old.pinned(&StateEventType::RoomCanonicalAlias);
        let Some(canonical) = canonical.filter(|_| moved) else {
            return Ok(());
        };
        let content = serde_json::from_str(canonical.content.get()).map_err(|e| Error::Internal(e.to_string()))?;
        let proposal = Proposal::state(user, TimelineEventType::RoomCanonicalAlias, "", content);
        self.propose(&room, proposal).await.map(drop)
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
        self.list(&room, listed).await
    }

    /// Makes durable whether a room is listed, and lets the directory know.
    pub(super) async fn list(&self, room: &Room, listed: bool) -> Result<(), Error> {
        let public_rooms = &self.inner.public_rooms;
        let _one = public_rooms.listing.lock().await;
        self.inner.store.set_listed(room.state().room_nid, listed).await?;
        let mut entries = public_rooms.entries.lock();
        match listed {
            true => entries.set(&room.state()),
            false => entries.remove(&room.room_id),
        }
        Ok(())
    }

    /// A page of the public directory. Rooms that are not in it cost nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn public_rooms(&self, query: &DirectoryQuery<'_>) -> Result<DirectoryPage, Error> {
        self.load_public_rooms().await?;
        Ok(self.inner.public_rooms.entries.lock().page(query))
    }

    /// Reads the directory's rooms when it is first asked for.
    async fn load_public_rooms(&self) -> Result<(), Error> {
        let public_rooms = &self.inner.public_rooms;
        if public_rooms.entries.lock().loaded {
            return Ok(());
        }
        let _one = public_rooms.listing.lock().await;
        if public_rooms.entries.lock().loaded {
            return Ok(());
        }
        for room_id in self.inner.store.listed_rooms().await? {
            let room_id = OwnedRoomId::try_from(room_id).map_err(|e| storage::Error::corrupt("rooms", e))?;
            let Some(room) = self.find(&room_id).await? else {
                continue;
            };
            // The state is read under the lock: whoever changes the room from now on finds its entry.
            public_rooms.entries.lock().set(&room.state());
        }
        public_rooms.entries.lock().loaded = true;
        Ok(())
    }
}
