//! An event of another server before it is anywhere: its format, its signatures and its hashes. Whose keys count is the
//! caller's knowledge; that only verified events reach a room is this type's.
//! Spec: server-server API, "Checks performed on receipt of a PDU", 1 to 3.

use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedRoomId, OwnedServerName, RoomVersionId,
    canonical_json::redact,
    events::TimelineEventType,
    room_version_rules::RoomVersionRules,
    signatures::{PublicKeyMap, Verified, reference_hash, required_server_signatures_to_verify_event, verify_event},
    state_res::check_pdu_format,
};
use serde::Deserialize;

use super::{
    Error, Verdict,
    build::MAX_EVENT_BYTES,
    event::{MAX_DEPTH, MAX_NAME_BYTES, is_storable, redacts_in_content},
};

/// A complete event that is well-formed, validly signed and, if its content was not what its hash says, pruned.
#[derive(Debug, Clone)]
pub struct Pdu {
    pub(super) event_id: OwnedEventId,
    pub(super) room_id: OwnedRoomId,
    pub(super) json: CanonicalJsonObject,
    pub(super) prev_events: Vec<OwnedEventId>,
    pub(super) auth_events: Vec<OwnedEventId>,
    pub(super) depth: i64,
    pub(super) redacts: Option<OwnedEventId>,
}

/// What is read of an event to know where it belongs.
#[derive(Deserialize)]
struct Place {
    room_id: Option<OwnedRoomId>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    depth: i64,
}

/// The servers whose keys [`Pdu::verify`] needs for an event.
///
/// # Errors
/// [`Error::BadJson`] when the event is too malformed to tell.
pub fn signers(json: &CanonicalJsonObject, version: &RoomVersionId) -> Result<Vec<OwnedServerName>, Error> {
    let rules = rules_of(version)?;
    required_server_signatures_to_verify_event(json, &rules.signatures)
        .map(|servers| servers.into_iter().collect())
        .map_err(|e| Error::BadJson(format!("The event does not say who signed it: {e}.")))
}

fn rules_of(version: &RoomVersionId) -> Result<RoomVersionRules, Error> {
    version
        .rules()
        .ok_or_else(|| Error::UnsupportedVersion(version.to_string()))
}

impl Pdu {
    /// Checks an event as another server sent it, with the keys of its signers (see [`signers`]).
    ///
    /// # Errors
    /// [`Error::BadJson`] or [`Error::TooLarge`] for what is no event of this room version, and
    /// [`Error::Forbidden`] when a signature is missing or wrong: such an event is dropped.
    pub fn verify(mut json: CanonicalJsonObject, version: &RoomVersionId, keys: &PublicKeyMap) -> Result<Self, Error> {
        let rules = rules_of(version)?;
        // Each server adds its own; what another one says of age or of relations is not taken over.
        json.remove("unsigned");
        check_format(&json, &rules).map_err(|verdict| match verdict {
            Verdict::TooLarge(why) => Error::TooLarge(why),
            Verdict::Malformed(why) | Verdict::Rejected(why) | Verdict::SoftFailed(why) => Error::BadJson(why),
            Verdict::Accepted => Error::Internal("an event was refused for being valid".to_owned()),
        })?;
        let bad = |e: &dyn std::fmt::Display| Error::BadJson(format!("The event is malformed: {e}."));
        match verify_event(keys, &json, &rules) {
            Ok(Verified::All) => {}
            // Spec: 3. The hash is wrong: all that is taken of it is what survives a redaction.
            Ok(Verified::Signatures) => json = redact(json, &rules.redaction, None).map_err(|e| bad(&e))?,
            Err(e) => return Err(Error::Forbidden(format!("The event is not validly signed: {e}."))),
        }
        let hash = reference_hash(&json, &rules).map_err(|e| bad(&e))?;
        let event_id = EventId::parse(format!("${hash}")).map_err(|e| bad(&e))?;
        let text = serde_json::to_string(&json).map_err(|e| bad(&e))?;
        let place: Place = serde_json::from_str(&text).map_err(|e| bad(&e))?;
        let mut named = place.prev_events.iter().chain(&place.auth_events);
        if !named.all(|id| is_storable(id.as_str())) {
            return Err(bad(&"it names what cannot be the id of an event"));
        }
        let room_id = match place.room_id {
            Some(room_id) => room_id,
            // The create event of a room that is called after it.
            None => OwnedRoomId::try_from(format!("!{hash}")).map_err(|e| bad(&e))?,
        };
        Ok(Self {
            event_id,
            room_id,
            redacts: redaction_target(&json, &rules),
            json,
            prev_events: place.prev_events,
            auth_events: place.auth_events,
            depth: place.depth.min(MAX_DEPTH),
        })
    }

    /// Its id: the hash of what of it survives a redaction.
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// Its room.
    pub fn room_id(&self) -> &ruma::RoomId {
        &self.room_id
    }

    /// Which events it comes after.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.prev_events
    }

    /// Which events are said to authorise it.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.auth_events
    }

    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.json.get(field)?.as_str()
    }
}

/// The event a redaction redacts, named where its room version has the name.
fn redaction_target(json: &CanonicalJsonObject, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    let is_redaction = json.get("type")?.as_str() == Some(&TimelineEventType::RoomRedaction.to_string())
        && !json.contains_key("state_key");
    let holder = match redacts_in_content(rules) {
        true => json.get("content")?.as_object()?,
        false => json,
    };
    is_redaction
        .then(|| EventId::parse(holder.get("redacts")?.as_str()?).ok())
        .flatten()
        .filter(|target| is_storable(target.as_str()))
}

/// Whether `json` is an event of a room version at all, and no larger than events may be.
pub(super) fn check_format(json: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<(), Verdict> {
    let bytes = serde_json::to_string(json).map_or(usize::MAX, |text| text.len());
    if bytes > MAX_EVENT_BYTES {
        return Err(Verdict::TooLarge(format!(
            "The event is {bytes} bytes large; {MAX_EVENT_BYTES} are allowed."
        )));
    }
    for field in ["type", "state_key", "sender", "room_id"] {
        if let Some(value) = json.get(field).and_then(|value| value.as_str())
            && value.len() > MAX_NAME_BYTES
        {
            return Err(Verdict::TooLarge(format!(
                "The event's `{field}` is longer than {MAX_NAME_BYTES} bytes."
            )));
        }
    }
    // PostgreSQL has no place for U+0000 in text.
    for field in ["type", "state_key"] {
        if json
            .get(field)
            .and_then(|value| value.as_str())
            .is_some_and(|text| text.contains('\0'))
        {
            return Err(Verdict::Malformed(format!(
                "The event's `{field}` holds the character U+0000."
            )));
        }
    }
    let checked = match bytes == MAX_EVENT_BYTES {
        false => check_pdu_format(json, &rules.event_format),
        // `ruma-state-res` refuses the largest event there may be (65,536 bytes; it allows 65,535): it sees all of it but the
        // signatures, which its checks are not about. Delete when it allows what the specification does.
        true => {
            let mut unsigned = json.clone();
            unsigned.remove("signatures");
            check_pdu_format(&unsigned, &rules.event_format)
        }
    };
    checked.map_err(Verdict::Malformed)
}
