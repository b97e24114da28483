//! Keys for end-to-end encryption: publishing, asking, claiming, signing.
//! Spec: client-server API, "End-to-End Encryption".

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Json,
    extract::State,
    routing::{get, post},
};
use ruma::{OwnedDeviceId, OwnedUserId, UserId, events::StateEventType};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use storage::keys::{CrossSigningKey, KeyClaim, KeySignature, KeyUpload, KeyUploadOutcome, NewKey};

use super::{
    ApiError, Auth, JsonBody, Routes,
    arguments::Query,
    interactive::{confirm, typed},
};
use crate::{
    Homeserver,
    accounts::{Authenticated, unix_ms},
    devices::{PublicKey, Signed, add_signature},
    room::{Membership, StateMap},
    sync::SyncToken,
};

/// The first cross-signing keys of a user need no confirmation (MSC3967), which older clients look for here.
pub(super) const UNSTABLE_FEATURES: &[&str] = &["org.matrix.msc3967"];

/// No honest device uploads more at once.
const MAX_KEYS_AT_ONCE: usize = 1000;
/// One key object.
const MAX_KEY: usize = 65_536;
const USAGES: [&str; 3] = ["master", "self_signing", "user_signing"];

pub(super) fn router() -> Routes {
    let sign = || post(upload_signing_keys);
    let signatures = || post(upload_signatures);
    Routes::new()
        .client("/keys/upload", post(upload))
        .client("/keys/query", post(query))
        .client("/keys/claim", post(claim))
        .client("/keys/changes", get(changes))
        .client("/keys/device_signing/upload", sign())
        .route("/_matrix/client/unstable/keys/device_signing/upload", sign())
        .client("/keys/signatures/upload", signatures())
        .route("/_matrix/client/unstable/keys/signatures/upload", signatures())
}

#[derive(Deserialize)]
struct Upload {
    device_keys: Option<Map<String, Value>>,
    #[serde(default)]
    one_time_keys: BTreeMap<String, Value>,
    #[serde(default)]
    fallback_keys: BTreeMap<String, Value>,
}

/// `POST /_matrix/client/v3/keys/upload`: client-server API, "Key management API".
async fn upload(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(request): JsonBody<Upload>,
) -> Result<Json<Value>, ApiError> {
    if let Some(keys) = &request.device_keys {
        let says = |field: &str, wanted: &str| keys.get(field).and_then(Value::as_str) == Some(wanted);
        if !says("user_id", sender.user_id.as_str()) || !says("device_id", sender.device_id.as_str()) {
            return Err(ApiError::invalid_param(
                "`device_keys` must name the user and the device that upload them.",
            ));
        }
    }
    let upload = KeyUpload {
        user_id: sender.user_id.to_string(),
        device_id: sender.device_id.to_string(),
        device_keys: request
            .device_keys
            .map(|keys| key_text(&Value::Object(keys)))
            .transpose()?,
        one_time_keys: named_keys(request.one_time_keys)?,
        fallback_keys: named_keys(request.fallback_keys)?,
        now: unix_ms(&hs.clock),
    };
    let is_empty = upload.device_keys.is_none() && upload.one_time_keys.is_empty() && upload.fallback_keys.is_empty();
    if !is_empty {
        let rooms = match &upload.device_keys {
            Some(_) => hs.joined_rooms(&sender.user_id).await?,
            None => Vec::new(),
        };
        let outcome = hs
            .devices
            .upload_keys(&sender.user_id, &sender.device_id, upload, rooms)
            .await?;
        if let KeyUploadOutcome::Conflict { algorithm, key_id } = outcome {
            return Err(ApiError::invalid_param(format!(
                "A one-time key {algorithm}:{key_id} with another content has been uploaded before."
            )));
        }
    }
    let counts = hs.devices.key_counts(&sender.user_id, &sender.device_id).await?;
    let mut shown = Map::from_iter([("signed_curve25519".to_owned(), Value::from(0))]);
    shown.extend(
        counts
            .one_time
            .iter()
            .map(|(algorithm, count)| (algorithm.clone(), (*count).into())),
    );
    Ok(Json(json!({ "one_time_key_counts": shown })))
}

fn named_keys(keys: BTreeMap<String, Value>) -> Result<Vec<NewKey>, ApiError> {
    if keys.len() > MAX_KEYS_AT_ONCE {
        return Err(ApiError::invalid_param("At most 1000 keys are taken at once."));
    }
    keys.into_iter()
        .map(|(name, key)| {
            let (algorithm, key_id) = name
                .split_once(':')
                .filter(|(algorithm, key_id)| !algorithm.is_empty() && !key_id.is_empty() && name.len() <= 255)
                .ok_or_else(|| ApiError::invalid_param("A key's name is `algorithm:id`."))?;
            if !key.is_object() && !key.is_string() {
                return Err(ApiError::bad_json("A key is a string or an object."));
            }
            Ok(NewKey {
                algorithm: algorithm.to_owned(),
                key_id: key_id.to_owned(),
                key_json: key_text(&key)?,
            })
        })
        .collect()
}

fn key_text(key: &Value) -> Result<String, ApiError> {
    let text = key.to_string();
    if text.len() > MAX_KEY {
        return Err(ApiError::too_large("A key may have at most 64 KiB."));
    }
    Ok(text)
}

#[derive(Deserialize)]
struct KeyQuery {
    device_keys: BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
}

/// `POST /_matrix/client/v3/keys/query`: client-server API, "Key management API".
async fn query(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(request): JsonBody<KeyQuery>,
) -> Result<Json<Value>, ApiError> {
    let (local, remote): (Vec<_>, Vec<_>) = request
        .device_keys
        .into_iter()
        .partition(|(user_id, _)| hs.accounts.is_local(user_id));
    let users: Vec<String> = local.iter().map(|(user_id, _)| user_id.to_string()).collect();
    let signatures = Signatures::read(&hs, &users, &sender.user_id).await?;

    let mut device_keys: BTreeMap<String, Map<String, Value>> =
        users.iter().map(|user_id| (user_id.clone(), Map::new())).collect();
    for device in hs.store.published_devices(&users).await? {
        let wanted = local
            .iter()
            .find(|(user_id, _)| user_id.as_str() == device.user_id)
            .map(|(_, devices)| devices);
        if wanted.is_none_or(|ids| !ids.is_empty() && !ids.iter().any(|id| id.as_str() == device.device_id)) {
            continue;
        }
        let mut keys = stored_object("device_keys", &device.keys)?;
        signatures.add_to(&mut keys, &device.user_id, &device.device_id);
        if let Some(name) = device.display_name {
            keys.insert("unsigned".to_owned(), json!({ "device_display_name": name }));
        }
        device_keys
            .entry(device.user_id)
            .or_default()
            .insert(device.device_id, keys.into());
    }

    let mut by_usage: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for key in hs.store.cross_signing_keys(&users).await? {
        // Spec: only the user sees the user-signing key, which tells whom they verified.
        let Some(usage) = USAGES.into_iter().find(|usage| *usage == key.usage) else {
            continue;
        };
        if usage == "user_signing" && key.user_id != sender.user_id.as_str() {
            continue;
        }
        let mut object = stored_object("cross_signing_keys", &key.key_json)?;
        let public = Signed::read(object.clone().into()).and_then(|key| key.cross_signing_key());
        if let Some(public) = public {
            signatures.add_to(&mut object, &key.user_id, &public.key);
        }
        by_usage.entry(usage).or_default().insert(key.user_id, object.into());
    }
    let mut usage = |usage: &str| by_usage.remove(usage).unwrap_or_default();
    Ok(Json(json!({
        "device_keys": device_keys,
        "master_keys": usage("master"),
        "self_signing_keys": usage("self_signing"),
        "user_signing_keys": usage("user_signing"),
        "failures": unreachable(remote.iter().map(|(user_id, _)| user_id)),
    })))
}

/// Other servers are reached by federation, which this server does not speak.
fn unreachable<'a>(users: impl Iterator<Item = &'a OwnedUserId>) -> Map<String, Value> {
    users
        .map(|user_id| {
            (
                user_id.server_name().to_string(),
                json!({ "status": 503, "message": "Not reachable" }),
            )
        })
        .collect()
}

fn stored_object(table: &'static str, text: &str) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_str(text).map_err(|e| storage::Error::corrupt(table, e).into())
}

/// Signatures added to keys after they were published, as far as the viewer may see them.
struct Signatures(BTreeMap<(String, String), Vec<KeySignature>>);

impl Signatures {
    async fn read(hs: &Homeserver, users: &[String], viewer: &UserId) -> Result<Self, ApiError> {
        let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for signature in hs.store.key_signatures(users, viewer.as_str()).await? {
            let key = (signature.target_user_id.clone(), signature.target_key.clone());
            by_key.entry(key).or_default().push(signature);
        }
        Ok(Self(by_key))
    }

    fn add_to(&self, object: &mut Map<String, Value>, user_id: &str, key: &str) {
        for s in self.0.get(&(user_id.to_owned(), key.to_owned())).into_iter().flatten() {
            add_signature(object, &s.signer_user_id, &s.signer_key_id, &s.signature);
        }
    }
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
}

/// `POST /_matrix/client/v3/keys/claim`: client-server API, "Key management API".
async fn claim(
    State(hs): State<Homeserver>,
    Auth(_): Auth,
    JsonBody(request): JsonBody<Claim>,
) -> Result<Json<Value>, ApiError> {
    let (local, remote): (Vec<_>, Vec<_>) = request
        .one_time_keys
        .into_iter()
        .partition(|(user_id, _)| hs.accounts.is_local(user_id));
    let claims: Vec<KeyClaim> = local
        .into_iter()
        .flat_map(|(user_id, devices)| {
            devices.into_iter().map(move |(device_id, algorithm)| KeyClaim {
                user_id: user_id.to_string(),
                device_id: device_id.to_string(),
                algorithm,
            })
        })
        .collect();
    let mut keys: BTreeMap<String, BTreeMap<String, Map<String, Value>>> = BTreeMap::new();
    if !claims.is_empty() {
        for key in hs.devices.claim_keys(claims).await? {
            let value: Value =
                serde_json::from_str(&key.key_json).map_err(|e| storage::Error::corrupt("one_time_keys", e))?;
            let of_device = keys.entry(key.user_id).or_default().entry(key.device_id).or_default();
            of_device.insert(format!("{}:{}", key.algorithm, key.key_id), value);
        }
    }
    Ok(Json(
        json!({ "one_time_keys": keys, "failures": unreachable(remote.iter().map(|(user_id, _)| user_id)) }),
    ))
}

#[derive(Deserialize)]
struct Between {
    from: String,
    to: String,
}

/// `GET /_matrix/client/v3/keys/changes`: client-server API, "Key management API". Of each room, only what happened while
/// the sender was in it.
async fn changes(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Query(Between { from, to }): Query<Between>,
) -> Result<Json<Value>, ApiError> {
    let position = |token: &str| {
        SyncToken::parse(token)
            .map(SyncToken::position)
            .map_err(|_| ApiError::invalid_param("`from` and `to` are tokens of `/sync`."))
    };
    let (from, to) = (position(&from)?, position(&to)?.min(hs.sync.now()));
    let memberships = hs.memberships_at(&sender.user_id, hs.sync.now()).await?;
    let (mut shared, mut parted) = (Vec::new(), Vec::new());
    for (room_id, membership) in memberships.iter() {
        match membership.membership {
            Membership::Join => {
                let room = hs.rooms.get(room_id).await?.state();
                let (joined_at, _) = hs
                    .joined_until(&sender.user_id, room_id, membership.position, from)
                    .await?;
                shared.push((room, joined_at));
            }
            Membership::Leave | Membership::Ban if membership.position > from && membership.position <= to => {
                parted.push((room_id, membership.position));
            }
            _ => {}
        }
    }
    let shares_room =
        |user_id: &UserId| *user_id == sender.user_id || shared.iter().any(|(room, _)| room.is_joined(user_id));
    let mut concerned = BTreeSet::new();
    let with_new_keys = hs.devices.list_changes(from, to).await?;
    let with_new_keys = with_new_keys
        .iter()
        .filter_map(|user_id| UserId::parse(user_id.as_str()).ok());
    let mut changed: BTreeSet<_> = with_new_keys.filter(|user_id| shares_room(user_id)).collect();
    for (room, joined_at) in &shared {
        if *joined_at > from && *joined_at <= to {
            concerned.extend(joined_members(&room.map));
        }
        for event in hs.rooms.state_changes(room, from.max(*joined_at), to).await? {
            if let Some((StateEventType::RoomMember, user_id)) = event.state_type() {
                concerned.extend(UserId::parse(user_id));
            }
        }
    }
    for (room_id, left_at) in parted {
        let room = hs.rooms.get(room_id).await?.state();
        // Who was never in it met nobody there.
        if let (_, true) = hs.joined_until(&sender.user_id, room_id, left_at, from).await? {
            concerned.extend(joined_members(&hs.rooms.state_at(&room, left_at - 1).await?));
        }
    }
    let mut left = BTreeSet::new();
    for user_id in concerned {
        match shares_room(&user_id) {
            true => changed.insert(user_id),
            false => left.insert(user_id),
        };
    }
    Ok(Json(json!({ "changed": changed, "left": left })))
}

fn joined_members(state: &StateMap) -> impl Iterator<Item = OwnedUserId> {
    let joined = state
        .members()
        .filter(|(_, entry)| entry.membership == Some(Membership::Join));
    joined.filter_map(|(user_id, _)| UserId::parse(user_id).ok())
}

#[derive(Deserialize)]
struct SigningKeys {
    master_key: Option<Value>,
    self_signing_key: Option<Value>,
    user_signing_key: Option<Value>,
}

/// `POST /_matrix/client/v3/keys/device_signing/upload`: client-server API, "Cross-signing".
async fn upload_signing_keys(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Json<Value>, ApiError> {
    let mut stored = BTreeMap::new();
    for key in hs.store.cross_signing_keys(&[sender.user_id.to_string()]).await? {
        let object = Value::Object(stored_object("cross_signing_keys", &key.key_json)?);
        stored.extend(
            Signed::read(object)
                .and_then(|k| k.cross_signing_key())
                .map(|public| (key.usage, public)),
        );
    }
    let uploaded = |body: &Map<String, Value>| -> Result<Vec<Uploaded>, ApiError> {
        let mut unconfirmed = body.clone();
        unconfirmed.remove("auth");
        read_signing_keys(&sender.user_id, typed(unconfirmed)?)
    };
    let first = uploaded(&body)?;
    let replaces = first
        .iter()
        .any(|key| stored.get(key.usage).is_some_and(|old| *old != key.public));
    let adds_without_master = stored.contains_key("master") && first.iter().any(|key| !stored.contains_key(key.usage));
    // The body may be given in an earlier request of the authentication session only.
    let keys = if replaces || adds_without_master || (first.is_empty() && body.contains_key("auth")) {
        uploaded(&confirm(&hs, &sender, "POST /keys/device_signing/upload", body).await?)?
    } else {
        first
    };
    let master = keys
        .iter()
        .find(|key| key.usage == "master")
        .map(|key| &key.public)
        .or_else(|| stored.get("master"));
    for key in keys.iter().filter(|key| key.usage != "master") {
        let Some(master) = master else {
            return Err(ApiError::missing_param(
                "There is no master key that the others are signed by.",
            ));
        };
        if !key.signed.is_signed_by(&sender.user_id, master) {
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_INVALID_SIGNATURE",
                "A key is not signed by the master key.",
            ));
        }
    }
    let changed: Vec<CrossSigningKey> = keys
        .into_iter()
        .filter(|key| stored.get(key.usage) != Some(&key.public))
        .map(|key| CrossSigningKey {
            user_id: sender.user_id.to_string(),
            usage: key.usage.to_owned(),
            key_json: key.text,
        })
        .collect();
    if !changed.is_empty() {
        let note = hs
            .devices
            .note_list_change(&sender.user_id, hs.joined_rooms(&sender.user_id).await?);
        hs.store
            .set_cross_signing_keys(sender.user_id.as_str(), changed, note)
            .await?;
    }
    Ok(Json(json!({})))
}

struct Uploaded {
    usage: &'static str,
    signed: Signed,
    public: PublicKey,
    text: String,
}

fn read_signing_keys(user_id: &UserId, keys: SigningKeys) -> Result<Vec<Uploaded>, ApiError> {
    let given = [keys.master_key, keys.self_signing_key, keys.user_signing_key];
    let mut uploaded = Vec::new();
    for (usage, value) in USAGES.into_iter().zip(given) {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            continue;
        };
        let text = key_text(&value)?;
        let signed = Signed::read(value).ok_or_else(|| ApiError::bad_json("A key is an object of canonical JSON."))?;
        if signed.text_field("user_id") != Some(user_id.as_str()) || !signed.has_usage(usage) {
            return Err(ApiError::invalid_param(format!(
                "The {usage} key must name its user and its usage."
            )));
        }
        let public = signed.cross_signing_key().ok_or_else(|| {
            ApiError::invalid_param(format!("The {usage} key has not one ed25519 key named by itself."))
        })?;
        uploaded.push(Uploaded {
            usage,
            signed,
            public,
            text,
        });
    }
    Ok(uploaded)
}

/// `POST /_matrix/client/v3/keys/signatures/upload`: client-server API, "Cross-signing".
async fn upload_signatures(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    JsonBody(request): JsonBody<BTreeMap<OwnedUserId, BTreeMap<String, Value>>>,
) -> Result<Json<Value>, ApiError> {
    let mut users: BTreeSet<String> = request.keys().map(ToString::to_string).collect();
    users.insert(sender.user_id.to_string());
    let published = Published::read(&hs, &users.into_iter().collect::<Vec<_>>()).await?;
    let mut accepted = Vec::new();
    let mut failures: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (user_id, objects) in request {
        for (key, object) in objects {
            match published.check(&sender, &user_id, &key, object) {
                Ok(signatures) => accepted.extend(signatures),
                Err((errcode, why)) => {
                    let failure = json!({ "errcode": errcode, "error": why });
                    failures.entry(user_id.to_string()).or_default().insert(key, failure);
                }
            }
        }
    }
    if !accepted.is_empty() {
        let rooms = hs.joined_rooms(&sender.user_id).await?;
        hs.store
            .add_key_signatures(accepted, hs.devices.note_list_change(&sender.user_id, rooms))
            .await?;
    }
    Ok(Json(json!({ "failures": failures })))
}

/// Published keys by user and by what signatures call them: a device id, or the public part of a cross-signing key.
struct Published {
    keys: BTreeMap<(String, String), (Signed, PublicKey)>,
    masters: BTreeSet<(String, String)>,
}

impl Published {
    async fn read(hs: &Homeserver, users: &[String]) -> Result<Self, ApiError> {
        let (mut keys, mut masters) = (BTreeMap::new(), BTreeSet::new());
        for device in hs.store.published_devices(users).await? {
            let signed = Signed::read(stored_object("device_keys", &device.keys)?.into());
            let public = signed.as_ref().and_then(|s| s.device_key(&device.device_id));
            keys.extend(signed.zip(public).map(|key| ((device.user_id, device.device_id), key)));
        }
        for key in hs.store.cross_signing_keys(users).await? {
            let signed = Signed::read(stored_object("cross_signing_keys", &key.key_json)?.into());
            let Some((signed, public)) = signed.and_then(|s| s.cross_signing_key().map(|public| (s, public))) else {
                continue;
            };
            let name = (key.user_id, public.key.clone());
            if key.usage == "master" {
                masters.insert(name.clone());
            }
            keys.insert(name, (signed, public));
        }
        Ok(Self { keys, masters })
    }

    /// The sender's signatures under one uploaded object, if all of them hold.
    fn check(
        &self,
        sender: &Authenticated,
        user_id: &UserId,
        key: &str,
        object: Value,
    ) -> Result<Vec<KeySignature>, (&'static str, &'static str)> {
        let target = (user_id.to_string(), key.to_owned());
        let Some((published, _)) = self.keys.get(&target) else {
            return Err(("M_NOT_FOUND", "There is no such key."));
        };
        // Spec: of other users only the master key is signed.
        if *user_id != sender.user_id && !self.masters.contains(&target) {
            return Err((
                "M_INVALID_SIGNATURE",
                "Only the master key of another user can be signed.",
            ));
        }
        let uploaded = Signed::read(object).ok_or(("M_INVALID_PARAM", "A key is an object of canonical JSON."))?;
        if uploaded.content() != published.content() {
            return Err(("M_INVALID_SIGNATURE", "The signed key is not the published one."));
        }
        let known = published.signatures_of(&sender.user_id);
        let mut accepted = Vec::new();
        for (signer_key_id, signature) in uploaded.signatures_of(&sender.user_id) {
            if known.get(&signer_key_id) == Some(&signature) {
                continue;
            }
            let name = signer_key_id.strip_prefix("ed25519:").unwrap_or_default();
            let signer = self.keys.get(&(sender.user_id.to_string(), name.to_owned()));
            if !signer.is_some_and(|(_, public)| uploaded.is_signed_by(&sender.user_id, public)) {
                return Err(("M_INVALID_SIGNATURE", "A signature does not hold."));
            }
            accepted.push(KeySignature {
                target_user_id: target.0.clone(),
                target_key: target.1.clone(),
                signer_user_id: sender.user_id.to_string(),
                signer_key_id,
                signature,
            });
        }
        Ok(accepted)
    }
}
