//! Server-side backups of room keys: what lets a new device read old encrypted messages. Keys come encrypted; the
//! server keeps, for each session, the best one it was given.
//! Spec: client-server API, "Server-side key backups".

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    routing::{get, post, put},
};
use http::StatusCode;
use ruma::UInt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use storage::key_backups::{
    BackedUpSession, KeyBackup, KeyBackupChange, KeyBackupCreation, KeyBackupOutcome, KeyBackupScope,
};

use super::{
    ApiError, Auth, JsonBody, Routes,
    arguments::{Path, Query},
};
use crate::{Homeserver, accounts::Authenticated};

/// The largest `auth_data`, in bytes: a public key and a signature for each device that vouches for it.
const MAX_AUTH_DATA: usize = 64 * 1024;
/// The largest encrypted key, in bytes. Those of today's algorithm have about 700.
const MAX_SESSION_DATA: usize = 16 * 1024;
/// The longest room or session id, in bytes.
const MAX_ID: usize = 255;
/// Keys in one backup.
const MAX_SESSIONS: i64 = 500_000;
/// Backups of one user that are not deleted.
const MAX_BACKUPS: i64 = 100;

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/room_keys/version", post(create).get(newest))
        .client(
            "/room_keys/version/{version}",
            get(version).put(update).delete(delete_version),
        )
        .client("/room_keys/keys", put(put_all).get(keys).delete(delete_keys))
        .client(
            "/room_keys/keys/{room_id}",
            put(put_room).get(room_keys).delete(delete_keys),
        )
        .client(
            "/room_keys/keys/{room_id}/{session_id}",
            put(put_session).get(session_key).delete(delete_keys),
        )
}

#[derive(Deserialize)]
struct Definition {
    algorithm: String,
    auth_data: Box<RawValue>,
    version: Option<String>,
}

impl Definition {
    fn check(&self) -> Result<(), ApiError> {
        if !self.auth_data.get().starts_with('{') {
            return Err(ApiError::bad_json("`auth_data` must be an object."));
        }
        if self.auth_data.get().len() > MAX_AUTH_DATA {
            return Err(ApiError::too_large(format!(
                "`auth_data` is larger than {MAX_AUTH_DATA} bytes."
            )));
        }
        if self.algorithm.is_empty() || self.algorithm.len() > MAX_ID || self.algorithm.contains('\0') {
            return Err(ApiError::invalid_param("`algorithm` is not the name of an algorithm."));
        }
        Ok(())
    }
}

/// `POST /_matrix/client/v3/room_keys/version`
async fn create(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(definition): JsonBody<Definition>,
) -> Result<Json<Value>, ApiError> {
    definition.check()?;
    let created = hs
        .store
        .create_key_backup(
            sender.user_id.to_string(),
            definition.algorithm,
            definition.auth_data.get().to_owned(),
            MAX_BACKUPS,
        )
        .await?;
    match created {
        KeyBackupCreation::Created(version) => Ok(Json(json!({ "version": version.to_string() }))),
        KeyBackupCreation::TooMany => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_RESOURCE_LIMIT_EXCEEDED",
            format!("There are {MAX_BACKUPS} key backups already: delete old ones first."),
        )),
    }
}

#[derive(Serialize)]
struct ShownBackup {
    algorithm: String,
    auth_data: Box<RawValue>,
    count: i64,
    etag: String,
    version: String,
}

async fn shown(
    hs: &Homeserver,
    sender: &Authenticated,
    backup: Option<KeyBackup>,
) -> Result<Json<ShownBackup>, ApiError> {
    let backup = backup.ok_or_else(unknown_backup)?;
    let count = hs
        .store
        .key_backup_count(sender.user_id.as_str(), backup.version)
        .await?;
    Ok(Json(ShownBackup {
        algorithm: backup.algorithm,
        auth_data: RawValue::from_string(backup.auth_data).map_err(ApiError::internal)?,
        count,
        etag: backup.etag.to_string(),
        version: backup.version.to_string(),
    }))
}

/// `GET /_matrix/client/v3/room_keys/version`
async fn newest(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<ShownBackup>, ApiError> {
    let backup = hs.store.key_backup(sender.user_id.as_str(), None).await?;
    shown(&hs, &sender, backup).await
}

/// `GET /_matrix/client/v3/room_keys/version/{version}`
async fn version(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(version): Path<String>,
) -> Result<Json<ShownBackup>, ApiError> {
    let version = number(&version)?;
    let backup = hs.store.key_backup(sender.user_id.as_str(), Some(version)).await?;
    shown(&hs, &sender, backup).await
}

/// `PUT /_matrix/client/v3/room_keys/version/{version}`
async fn update(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(version): Path<String>,
    JsonBody(definition): JsonBody<Definition>,
) -> Result<Json<Value>, ApiError> {
    definition.check()?;
    if definition.version.as_ref().is_some_and(|named| *named != version) {
        return Err(ApiError::invalid_param("`version` is not the version in the path."));
    }
    let version = number(&version)?;
    let user_id = sender.user_id.as_str();
    let backup = hs.store.key_backup(user_id, Some(version)).await?;
    let backup = backup.ok_or_else(unknown_backup)?;
    if backup.algorithm != definition.algorithm {
        return Err(ApiError::invalid_param("The algorithm of a backup does not change."));
    }
    let auth_data = definition.auth_data.get().to_owned();
    match hs
        .store
        .set_key_backup_auth_data(user_id.to_owned(), version, auth_data)
        .await?
    {
        true => Ok(Json(json!({}))),
        false => Err(unknown_backup()),
    }
}

/// `DELETE /_matrix/client/v3/room_keys/version/{version}`
async fn delete_version(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(version): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match hs
        .store
        .delete_key_backup(sender.user_id.to_string(), number(&version)?)
        .await?
    {
        true => Ok(Json(json!({}))),
        false => Err(unknown_backup()),
    }
}

/// Which backup is meant.
#[derive(Deserialize)]
struct Version {
    version: Option<String>,
}

impl Version {
    fn number(&self) -> Result<i64, ApiError> {
        number(
            self.version
                .as_deref()
                .ok_or_else(|| ApiError::missing_param("`version` is missing."))?,
        )
    }
}

/// A key as clients send and get it.
#[derive(Serialize, Deserialize)]
struct Session {
    first_message_index: UInt,
    forwarded_count: UInt,
    is_verified: bool,
    session_data: Box<RawValue>,
}

#[derive(Default, Serialize, Deserialize)]
struct RoomSessions {
    sessions: BTreeMap<String, Session>,
}

#[derive(Serialize, Deserialize)]
struct AllSessions {
    rooms: BTreeMap<String, RoomSessions>,
}

/// `PUT /_matrix/client/v3/room_keys/keys`
async fn put_all(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Query(version): Query<Version>,
    JsonBody(AllSessions { rooms }): JsonBody<AllSessions>,
) -> Result<Json<Value>, ApiError> {
    store(&hs, &sender, &version, rooms).await
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}`
async fn put_room(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(room_id): Path<String>,
    Query(version): Query<Version>,
    JsonBody(sessions): JsonBody<RoomSessions>,
) -> Result<Json<Value>, ApiError> {
    store(&hs, &sender, &version, BTreeMap::from([(room_id, sessions)])).await
}

/// `PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn put_session(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((room_id, session_id)): Path<(String, String)>,
    Query(version): Query<Version>,
    JsonBody(session): JsonBody<Session>,
) -> Result<Json<Value>, ApiError> {
    let sessions = RoomSessions {
        sessions: BTreeMap::from([(session_id, session)]),
    };
    store(&hs, &sender, &version, BTreeMap::from([(room_id, sessions)])).await
}

async fn store(
    hs: &Homeserver,
    sender: &Authenticated,
    version: &Version,
    rooms: BTreeMap<String, RoomSessions>,
) -> Result<Json<Value>, ApiError> {
    let version = version.number()?;
    let mut sessions = Vec::new();
    for (room_id, RoomSessions { sessions: of_room }) in rooms {
        check_id(&room_id)?;
        for (session_id, session) in of_room {
            check_id(&session_id)?;
            sessions.push(session.kept(room_id.clone(), session_id)?);
        }
    }
    let outcome = hs
        .store
        .put_key_backup_sessions(sender.user_id.to_string(), version, sessions, MAX_SESSIONS)
        .await?;
    match outcome {
        KeyBackupOutcome::Stored(change) => Ok(changed(change)),
        KeyBackupOutcome::NotCurrent(current) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "M_WRONG_ROOM_KEYS_VERSION",
            "Keys go into the newest backup, which is another.",
        )
        .with("current_version", current.to_string())),
        KeyBackupOutcome::NoBackup => Err(unknown_backup()),
        KeyBackupOutcome::Full => Err(ApiError::too_large(format!(
            "A backup holds at most {MAX_SESSIONS} keys."
        ))),
    }
}

impl Session {
    fn kept(self, room_id: String, session_id: String) -> Result<BackedUpSession, ApiError> {
        let session_data = self.session_data.get();
        if !session_data.starts_with('{') {
            return Err(ApiError::bad_json("`session_data` must be an object."));
        }
        if session_data.len() > MAX_SESSION_DATA {
            return Err(ApiError::too_large(format!(
                "`session_data` is larger than {MAX_SESSION_DATA} bytes."
            )));
        }
        Ok(BackedUpSession {
            room_id,
            session_id,
            first_message_index: self.first_message_index.into(),
            forwarded_count: self.forwarded_count.into(),
            is_verified: self.is_verified,
            session_data: session_data.to_owned(),
        })
    }

    fn shown(kept: BackedUpSession) -> Result<Self, ApiError> {
        let number = |n: i64| UInt::try_from(n).map_err(ApiError::internal);
        Ok(Self {
            first_message_index: number(kept.first_message_index)?,
            forwarded_count: number(kept.forwarded_count)?,
            is_verified: kept.is_verified,
            session_data: RawValue::from_string(kept.session_data).map_err(ApiError::internal)?,
        })
    }
}

/// The keys in the scope of a backup that exists.
async fn read(
    hs: &Homeserver,
    sender: &Authenticated,
    version: &Version,
    room_id: Option<&str>,
    session_id: Option<&str>,
) -> Result<BTreeMap<String, RoomSessions>, ApiError> {
    let version = version.number()?;
    [room_id, session_id].into_iter().flatten().try_for_each(check_id)?;
    let user_id = sender.user_id.as_str();
    if hs.store.key_backup(user_id, Some(version)).await?.is_none() {
        return Err(unknown_backup());
    }
    let scope = KeyBackupScope { room_id, session_id };
    let mut rooms = BTreeMap::<String, RoomSessions>::new();
    for mut kept in hs.store.key_backup_sessions(user_id, version, scope).await? {
        let room = rooms.entry(std::mem::take(&mut kept.room_id)).or_default();
        let session_id = std::mem::take(&mut kept.session_id);
        room.sessions.insert(session_id, Session::shown(kept)?);
    }
    Ok(rooms)
}

/// `GET /_matrix/client/v3/room_keys/keys`
async fn keys(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Query(version): Query<Version>,
) -> Result<Json<AllSessions>, ApiError> {
    let rooms = read(&hs, &sender, &version, None, None).await?;
    Ok(Json(AllSessions { rooms }))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}`
async fn room_keys(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(room_id): Path<String>,
    Query(version): Query<Version>,
) -> Result<Json<RoomSessions>, ApiError> {
    let mut rooms = read(&hs, &sender, &version, Some(&room_id), None).await?;
    Ok(Json(rooms.remove(&room_id).unwrap_or_default()))
}

/// `GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}`
async fn session_key(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((room_id, session_id)): Path<(String, String)>,
    Query(version): Query<Version>,
) -> Result<Json<Session>, ApiError> {
    let mut rooms = read(&hs, &sender, &version, Some(&room_id), Some(&session_id)).await?;
    rooms
        .get_mut(&room_id)
        .and_then(|room| room.sessions.remove(&session_id))
        .map(Json)
        .ok_or_else(|| ApiError::not_found("This backup has no key of this session."))
}

/// The room and the session in a path that may have either.
#[derive(Deserialize)]
struct Scope {
    room_id: Option<String>,
    session_id: Option<String>,
}

/// `DELETE /_matrix/client/v3/room_keys/keys`, `…/{roomId}` and `…/{roomId}/{sessionId}`
async fn delete_keys(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(Scope { room_id, session_id }): Path<Scope>,
    Query(version): Query<Version>,
) -> Result<Json<Value>, ApiError> {
    let version = version.number()?;
    [&room_id, &session_id].into_iter().flatten().try_for_each(check_id)?;
    hs.store
        .delete_key_backup_sessions(sender.user_id.to_string(), version, room_id, session_id)
        .await?
        .map(changed)
        .ok_or_else(unknown_backup)
}

fn changed(KeyBackupChange { count, etag }: KeyBackupChange) -> Json<Value> {
    Json(json!({ "count": count, "etag": etag.to_string() }))
}

/// Versions are opaque to clients: what this server never gave out names no backup.
fn number(version: &str) -> Result<i64, ApiError> {
    version.parse().map_err(|_| unknown_backup())
}

fn check_id(id: &(impl AsRef<str> + ?Sized)) -> Result<(), ApiError> {
    let id = id.as_ref();
    if id.is_empty() || id.len() > MAX_ID || id.contains('\0') {
        return Err(ApiError::invalid_param(
            "Room and session ids have between 1 and 255 bytes, none of them NUL.",
        ));
    }
    Ok(())
}

fn unknown_backup() -> ApiError {
    ApiError::not_found("There is no such key backup.")
}
