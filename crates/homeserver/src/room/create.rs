//! Making a room: its first events in the order the specification gives, all in one transaction.
//! Spec: client-server API, `POST /createRoom`.

use std::{collections::BTreeMap, sync::Arc};

use rand::distr::{Alphanumeric, SampleString as _};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, OwnedUserId,
    RoomVersionId, UInt, events::TimelineEventType, room_version_rules::RoomIdFormatVersion,
};
use serde_json::json;

use super::{
    Error, Proposal, Room, RoomState, Rooms, SUPPORTED_VERSIONS, build, commit::Alias, membership::member_content,
    worker::Batch,
};

/// Event types of calls that every member has to be able to write.
/// MSC3401, MSC4143 and the name it will have once stable.
const CALL_MEMBER_TYPES: [&str; 4] = [
    "org.matrix.msc3401.call.member",
    "org.matrix.msc4143.rtc.member",
    "m.call.member",
    "m.rtc.member",
];

/// A room to be made.
#[derive(Debug, Clone)]
pub struct NewRoom {
    /// Who makes it.
    pub creator: OwnedUserId,
    /// Name and picture that the creator's member event shows.
    pub creator_profile: CanonicalJsonObject,
    /// Its version; the configured one when not said.
    pub version: Option<RoomVersionId>,
    /// Further fields of the create event.
    pub creation_content: CanonicalJsonObject,
    /// Who may join and what they may see.
    pub preset: Preset,
    /// Whether it stands in the public directory.
    pub listed: bool,
    /// A first alias.
    pub alias: Option<OwnedRoomAliasId>,
    /// Its name.
    pub name: Option<String>,
    /// Its topic.
    pub topic: Option<String>,
    /// Users to invite, with the name and picture their member events show.
    pub invites: Vec<(OwnedUserId, CanonicalJsonObject)>,
    /// Whether the invitations say that this is a direct chat.
    pub is_direct: bool,
    /// Further state: type, state key, content.
    pub initial_state: Vec<(TimelineEventType, String, CanonicalJsonObject)>,
    /// What to change in the default power levels.
    pub power_levels: CanonicalJsonObject,
}

/// The presets of `createRoom`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// By invitation.
    PrivateChat,
    /// By invitation, and everyone invited has the creator's power.
    TrustedPrivateChat,
    /// Open to all.
    PublicChat,
}

impl Rooms {
    /// Makes a room.
    ///
    /// # Errors
    /// When the version is not supported, the alias is taken, the state contradicts itself, or the database fails.
    pub async fn create(&self, new: NewRoom) -> Result<OwnedRoomId, Error> {
        let version = new.version.clone().unwrap_or_else(|| self.default_version().clone());
        if !SUPPORTED_VERSIONS.contains(&version) {
            return Err(Error::UnsupportedVersion(version.to_string()));
        }
        if let Some(alias) = &new.alias
            && self.inner.store.room_alias(alias.as_str()).await?.is_some()
        {
            return Err(Error::AliasTaken(alias.to_string()));
        }
        let mut now = self.inner.clock.now_ms();
        loop {
            match self.create_at(&new, &version, now).await {
                // The id of a version 12 room is the hash of its create event: two alike in one millisecond collide.
                Err(Error::Storage(e)) if e.is_unique_violation() && now < self.inner.clock.now_ms() + 1_000 => {
                    now += 1
                }
                done => return done,
            }
        }
    }

    async fn create_at(&self, new: &NewRoom, version: &RoomVersionId, now_ms: u64) -> Result<OwnedRoomId, Error> {
        let proposals = proposals(new, version)?;
        let reservation = self.inner.store.reserve(proposals.len()).await?;
        let room_nid = reservation.first();
        let mut state = RoomState::before_creation(self.fresh_room_id()?, room_nid, version.clone())?;
        if state.rules.room_id_format == RoomIdFormatVersion::V2 {
            let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(now_ms));
            let (name, keys) = (&self.inner.server_name, &self.inner.keys);
            let standing = build::Standing {
                prev: &[],
                auth_events: Vec::new(),
                now,
            };
            let create = build::build(&proposals[0], &state, standing, name, keys)?;
            state.room_id = OwnedRoomId::try_from(format!("!{}", create.event_id.as_str().trim_start_matches('$')))
                .map_err(|e| Error::Internal(format!("a made room id: {e}")))?;
        }
        let room_id = state.room_id.clone();
        let mut batch = Batch::new(state, room_nid, now_ms, true);
        batch.aliases = new
            .alias
            .iter()
            .map(|alias| Alias {
                alias: alias.to_string(),
                creator: new.creator.to_string(),
            })
            .collect();
        for proposal in proposals {
            let kind = proposal.kind.clone();
            self.prepare(&mut batch, proposal).await.map_err(|e| match e {
                Error::Forbidden(why) => Error::InvalidRoomState(format!("The room's `{kind}` cannot be made: {why}")),
                other => other,
            })?;
            self.record_newest(&mut batch).await?;
        }
        let (state, news) = self
            .commit(batch)
            .await?
            .ok_or_else(|| Error::Internal("a new room has no events".to_owned()))?;
        let room = Arc::new(Room::new((*state).clone()));
        self.keep(room.clone());
        self.remember(&state, &news).await;
        drop(reservation);
        self.announce(&state, &news);
        if new.listed {
            self.list(&room, true).await?;
        }
        Ok(room_id)
    }

    fn fresh_room_id(&self) -> Result<OwnedRoomId, Error> {
        let name = Alphanumeric.sample_string(&mut rand::rng(), 18);
        OwnedRoomId::try_from(format!("!{name}:{}", self.inner.server_name))
            .map_err(|e| Error::Internal(format!("a made room id: {e}")))
    }
}

/// The events of a new room, in order.
fn proposals(new: &NewRoom, version: &RoomVersionId) -> Result<Vec<Proposal>, Error> {
    let rules = version
        .rules()
        .ok_or_else(|| Error::UnsupportedVersion(version.to_string()))?;
    let creators_are_privileged = rules.authorization.explicitly_privilege_room_creators;
    let creator = &new.creator;
    let given = |kind: &str| {
        new.initial_state
            .iter()
            .any(|(k, key, _)| k.to_string() == kind && key.is_empty())
    };
    let state = |kind: &str, content: serde_json::Value| -> Result<Proposal, Error> {
        Ok(Proposal::state(creator, kind, "", object(content)?))
    };

    let mut create = new.creation_content.clone();
    create.insert(
        "room_version".to_owned(),
        CanonicalJsonValue::String(version.to_string()),
    );
    create.remove("creator");
    if !rules.authorization.use_room_create_sender {
        create.insert("creator".to_owned(), CanonicalJsonValue::String(creator.to_string()));
    }
    let trusted = new.preset == Preset::TrustedPrivateChat;
    if trusted && creators_are_privileged {
        add_creators(&mut create, creator, new.invites.iter().map(|(user, _)| user));
    }
    let additional: Vec<String> = match create.get("additional_creators") {
        Some(CanonicalJsonValue::Array(users)) => users.iter().filter_map(|u| u.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };

    let mut events = vec![
        Proposal::state(creator, TimelineEventType::RoomCreate, "", create),
        Proposal::state(
            creator,
            TimelineEventType::RoomMember,
            creator.as_str(),
            member_content("join", None, new.creator_profile.clone()),
        ),
    ];
    if !given("m.room.power_levels") {
        let levels = power_levels(new, creators_are_privileged, &additional)?;
        events.push(Proposal::state(creator, TimelineEventType::RoomPowerLevels, "", levels));
    }
    if let Some(alias) = &new.alias
        && !given("m.room.canonical_alias")
    {
        events.push(state("m.room.canonical_alias", json!({ "alias": alias }))?);
    }
    let (join_rule, guests) = match new.preset {
        Preset::PublicChat => ("public", "forbidden"),
        Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
    };
    let presets = [
        ("m.room.join_rules", json!({ "join_rule": join_rule })),
        ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
        ("m.room.guest_access", json!({ "guest_access": guests })),
    ];
    for (kind, content) in presets {
        if !given(kind) {
            events.push(state(kind, content)?);
        }
    }
    for (kind, key, content) in &new.initial_state {
        // What the parameters `name` and `topic` say counts.
        let named = (new.name.is_some() && *kind == TimelineEventType::RoomName)
            || (new.topic.is_some() && *kind == TimelineEventType::RoomTopic);
        if !named {
            events.push(Proposal::state(creator, kind.clone(), key.as_str(), content.clone()));
        }
    }
    if let Some(name) = &new.name {
        events.push(state("m.room.name", json!({ "name": name }))?);
    }
    if let Some(topic) = &new.topic {
        // Since Matrix 1.15 a topic also has representations.
        let text = json!([{ "body": topic, "mimetype": "text/plain" }]);
        events.push(state(
            "m.room.topic",
            json!({ "topic": topic, "m.topic": { "m.text": text } }),
        )?);
    }
    for (user, profile) in &new.invites {
        let mut content = member_content("invite", None, profile.clone());
        if new.is_direct {
            content.insert("is_direct".to_owned(), CanonicalJsonValue::Bool(true));
        }
        events.push(Proposal::state(
            creator,
            TimelineEventType::RoomMember,
            user.as_str(),
            content,
        ));
    }
    Ok(events)
}

/// Spec: `trusted_private_chat` in version 12 makes the invited users creators too.
fn add_creators<'a>(
    create: &mut CanonicalJsonObject,
    creator: &OwnedUserId,
    users: impl Iterator<Item = &'a OwnedUserId>,
) {
    let entry = create
        .entry("additional_creators".to_owned())
        .or_insert_with(|| CanonicalJsonValue::Array(Vec::new()));
    let CanonicalJsonValue::Array(list) = entry else { return };
    for user in users.filter(|user| *user != creator) {
        let user = CanonicalJsonValue::String(user.to_string());
        if !list.contains(&user) {
            list.push(user);
        }
    }
}

fn power_levels(
    new: &NewRoom,
    creators_are_privileged: bool,
    additional: &[String],
) -> Result<CanonicalJsonObject, Error> {
    let mut users = BTreeMap::new();
    if !creators_are_privileged {
        users.insert(new.creator.to_string(), 100);
    }
    if new.preset == Preset::TrustedPrivateChat {
        for (user, _) in &new.invites {
            users.insert(user.to_string(), 100);
        }
    }
    if creators_are_privileged {
        // Creators have all power and may not be listed.
        users.retain(|user, _| user != new.creator.as_str() && !additional.contains(user));
    }
    let mut levels = object(json!({
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": if creators_are_privileged { 150 } else { 100 },
        },
        "events_default": 0,
        "invite": if new.preset == Preset::PublicChat { 50 } else { 0 },
        "kick": 50,
        "redact": 50,
        "state_default": 50,
        "users": users,
        "users_default": 0,
    }))?;
    levels.extend(new.power_levels.clone());
    // Everybody may be in a call, whatever else an override says about events.
    if let Some(CanonicalJsonValue::Object(events)) = levels.get_mut("events") {
        for kind in CALL_MEMBER_TYPES {
            events
                .entry(kind.to_owned())
                .or_insert_with(|| CanonicalJsonValue::Integer(0.into()));
        }
    }
    Ok(levels)
}

fn object(value: serde_json::Value) -> Result<CanonicalJsonObject, Error> {
    match CanonicalJsonValue::try_from(value) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(Error::Internal("a content that is no object".to_owned())),
        Err(e) => Err(Error::BadJson(format!("The content is not canonical JSON: {e}."))),
    }
}
