//! Filters as `/sync` uses them: parsed once, held in a form that answers "is this event wanted?" without allocation.
//! Where filters are stored and how clients upload them is not its concern.

use std::{collections::HashSet, hash::Hash};

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    api::client::filter::{
        EventFormat, Filter as PlainFilter, FilterDefinition, LazyLoadOptions, RoomEventFilter as RoomEventDefinition,
        UrlFilter,
    },
};
use serde_json::{Map, Value, value::RawValue};

/// Timeline events per room when the filter names no limit.
pub(crate) const DEFAULT_TIMELINE_LIMIT: usize = 10;
/// The most timeline events per room a filter can ask for.
pub(crate) const MAX_TIMELINE_LIMIT: usize = 100;
/// The largest filter that is accepted, inline or stored, in bytes.
pub(crate) const MAX_FILTER_BYTES: usize = 64 * 1024;
/// The most entries one list of a filter may have.
const MAX_LIST_ENTRIES: usize = 1000;

/// Why a filter was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("the filter is larger than {MAX_FILTER_BYTES} bytes")]
    TooLarge,
    #[error("the filter is not valid: {0}")]
    Invalid(#[from] serde_json::Error),
    #[error("{0} has more than {MAX_LIST_ENTRIES} entries")]
    TooManyEntries(&'static str),
}

/// A whole filter (spec: client-server API §Filtering).
#[derive(Debug, Default)]
pub(crate) struct SyncFilter {
    pub(crate) account_data: EventFilter,
    pub(crate) presence: EventFilter,
    pub(crate) room: RoomFilter,
    /// Reduces events to the listed fields; `None` keeps them whole.
    pub(crate) event_fields: Option<Vec<Vec<String>>>,
    /// Events are wanted in the format of the federation API.
    pub(crate) federation_format: bool,
}

/// The part of a filter that concerns rooms.
#[derive(Debug, Default)]
pub(crate) struct RoomFilter {
    rooms: Scope<OwnedRoomId>,
    pub(crate) include_leave: bool,
    pub(crate) timeline: EventFilter,
    pub(crate) state: EventFilter,
    pub(crate) ephemeral: EventFilter,
    pub(crate) account_data: EventFilter,
}

/// Which events of one kind are wanted.
#[derive(Debug, Default)]
pub(crate) struct EventFilter {
    types: Option<Vec<TypePattern>>,
    not_types: Vec<TypePattern>,
    senders: Scope<OwnedUserId>,
    rooms: Scope<OwnedRoomId>,
    contains_url: Option<bool>,
    limit: Option<usize>,
    lazy_load: Option<LazyLoad>,
    pub(crate) unread_thread_notifications: bool,
}

/// How membership events are to be left out of room state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LazyLoad {
    pub(crate) include_redundant_members: bool,
}

/// "Only these" and "not these" over one kind of identifier; "not these" wins.
#[derive(Debug)]
struct Scope<T> {
    only: Option<HashSet<T>>,
    not: HashSet<T>,
}

impl<T> Default for Scope<T> {
    fn default() -> Self {
        Self {
            only: None,
            not: HashSet::new(),
        }
    }
}

impl<T: Eq + Hash> Scope<T> {
    fn new(only: Option<Vec<T>>, not: Vec<T>) -> Self {
        Self {
            only: only.map(|ids| ids.into_iter().collect()),
            not: not.into_iter().collect(),
        }
    }

    fn admits<Q: Eq + Hash + ?Sized>(&self, id: &Q) -> bool
    where
        T: std::borrow::Borrow<Q>,
    {
        !self.not.contains(id) && self.only.as_ref().is_none_or(|only| only.contains(id))
    }

    fn is_open(&self) -> bool {
        self.only.is_none() && self.not.is_empty()
    }
}

/// An event type in which `*` stands for any sequence of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TypePattern(String);

impl TypePattern {
    fn matches(&self, event_type: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| event_type.strip_prefix(first)) else {
            return false;
        };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            // The leftmost place is always as good as a later one.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        true
    }
}

impl SyncFilter {
    /// Reads a filter from its JSON text.
    pub(crate) fn parse(json: &str) -> Result<Self, FilterError> {
        if json.len() > MAX_FILTER_BYTES {
            return Err(FilterError::TooLarge);
        }
        Self::new(serde_json::from_str(json)?)
    }

    fn new(definition: FilterDefinition) -> Result<Self, FilterError> {
        let room = definition.room;
        within("room.rooms", room.rooms.as_deref().unwrap_or_default())?;
        within("room.not_rooms", &room.not_rooms)?;
        within("event_fields", definition.event_fields.as_deref().unwrap_or_default())?;
        Ok(Self {
            account_data: EventFilter::of_no_room(definition.account_data)?,
            presence: EventFilter::of_no_room(definition.presence)?,
            room: RoomFilter {
                rooms: Scope::new(room.rooms, room.not_rooms),
                include_leave: room.include_leave,
                timeline: EventFilter::of_room(room.timeline)?,
                state: EventFilter::of_room(room.state)?,
                ephemeral: EventFilter::of_room(room.ephemeral)?,
                account_data: EventFilter::of_room(room.account_data)?,
            },
            event_fields: definition
                .event_fields
                .map(|fields| fields.iter().map(|f| field_path(f)).collect()),
            federation_format: definition.event_format == EventFormat::Federation,
        })
    }

    /// Whether events can be handed on as they are stored, shared with other readers.
    pub(crate) fn keeps_events_whole(&self) -> bool {
        self.event_fields.is_none()
    }

    /// Reduces an event to the wanted fields. Text that is no object comes back as it is.
    pub(crate) fn reduce(&self, event: &RawValue) -> Option<Box<RawValue>> {
        let fields = self.event_fields.as_ref()?;
        let whole: Map<String, Value> = serde_json::from_str(event.get()).ok()?;
        let mut reduced = Map::new();
        for path in fields {
            copy_field(&whole, &mut reduced, path);
        }
        serde_json::value::to_raw_value(&reduced).ok()
    }
}

impl RoomFilter {
    /// Whether the room is wanted at all.
    pub(crate) fn admits_room(&self, room_id: &RoomId) -> bool {
        self.rooms.admits(room_id)
    }

    /// How many timeline events a room may bring.
    pub(crate) fn timeline_limit(&self) -> usize {
        self.timeline
            .limit
            .unwrap_or(DEFAULT_TIMELINE_LIMIT)
            .min(MAX_TIMELINE_LIMIT)
    }

    /// Lazy loading is set on the state part (spec: §Lazy-loading room members); js-sdk also sets it on the timeline.
    pub(crate) fn lazy_load(&self) -> Option<LazyLoad> {
        self.state.lazy_load.or(self.timeline.lazy_load)
    }

    /// Whether unread counts are wanted per thread.
    pub(crate) fn counts_per_thread(&self) -> bool {
        self.timeline.unread_thread_notifications
            || self.state.unread_thread_notifications
            || self.ephemeral.unread_thread_notifications
    }
}

impl EventFilter {
    /// The filter of an endpoint that reads one room.
    ///
    /// # Errors
    /// When a list is too long.
    pub(crate) fn of_room(definition: RoomEventDefinition) -> Result<Self, FilterError> {
        within("types", definition.types.as_deref().unwrap_or_default())?;
        within("not_types", &definition.not_types)?;
        within("senders", definition.senders.as_deref().unwrap_or_default())?;
        within("not_senders", &definition.not_senders)?;
        within("rooms", definition.rooms.as_deref().unwrap_or_default())?;
        within("not_rooms", &definition.not_rooms)?;
        Ok(Self {
            types: definition.types.map(patterns),
            not_types: patterns(definition.not_types),
            senders: Scope::new(definition.senders, definition.not_senders),
            rooms: Scope::new(definition.rooms, definition.not_rooms),
            contains_url: definition.url_filter.map(|wanted| wanted == UrlFilter::EventsWithUrl),
            limit: definition
                .limit
                .map(|limit| usize::try_from(u64::from(limit)).unwrap_or(usize::MAX)),
            lazy_load: match definition.lazy_load_options {
                LazyLoadOptions::Disabled => None,
                LazyLoadOptions::Enabled {
                    include_redundant_members,
                } => Some(LazyLoad {
                    include_redundant_members,
                }),
            },
            unread_thread_notifications: definition.unread_thread_notifications,
        })
    }

    fn of_no_room(definition: PlainFilter) -> Result<Self, FilterError> {
        within("types", definition.types.as_deref().unwrap_or_default())?;
        within("not_types", &definition.not_types)?;
        within("senders", definition.senders.as_deref().unwrap_or_default())?;
        within("not_senders", &definition.not_senders)?;
        Ok(Self {
            types: definition.types.map(patterns),
            not_types: patterns(definition.not_types),
            senders: Scope::new(definition.senders, definition.not_senders),
            limit: definition
                .limit
                .map(|limit| usize::try_from(u64::from(limit)).unwrap_or(usize::MAX)),
            ..Self::default()
        })
    }

    /// Whether every event is wanted.
    pub(crate) fn is_open(&self) -> bool {
        self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_open()
            && self.rooms.is_open()
            && self.contains_url.is_none()
    }

    /// Whether no event can be wanted.
    pub(crate) fn is_closed(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
            || self.senders.only.as_ref().is_some_and(HashSet::is_empty)
            || self.rooms.only.as_ref().is_some_and(HashSet::is_empty)
            || self.limit == Some(0)
    }

    /// Whether the part applies to the room.
    pub(crate) fn admits_room(&self, room_id: &RoomId) -> bool {
        self.rooms.admits(room_id)
    }

    /// Whether events of the type are wanted.
    pub(crate) fn admits_type(&self, event_type: &str) -> bool {
        !self.not_types.iter().any(|pattern| pattern.matches(event_type))
            && self
                .types
                .as_ref()
                .is_none_or(|types| types.iter().any(|pattern| pattern.matches(event_type)))
    }

    /// Whether events of the sender are wanted.
    pub(crate) fn admits_sender(&self, sender: &UserId) -> bool {
        self.senders.admits(sender)
    }

    /// Whether the event is wanted; `has_url` tells whether its content has a `url` and is asked only when needed.
    pub(crate) fn admits(&self, event_type: &str, sender: &UserId, has_url: impl FnOnce() -> bool) -> bool {
        self.admits_type(event_type)
            && self.admits_sender(sender)
            && self.contains_url.is_none_or(|wanted| wanted == has_url())
    }
}

fn within<T>(name: &'static str, list: &[T]) -> Result<(), FilterError> {
    if list.len() > MAX_LIST_ENTRIES {
        Err(FilterError::TooManyEntries(name))
    } else {
        Ok(())
    }
}

fn patterns(types: Vec<String>) -> Vec<TypePattern> {
    types.into_iter().map(TypePattern).collect()
}

/// Splits `a.b\.c` into `a` and `b.c` (spec: appendices §Dot-separated property paths).
fn field_path(field: &str) -> Vec<String> {
    let mut path = vec![String::new()];
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        let last = path.last_mut().expect("the path starts with one part and only grows");
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('.' | '\\')) => last.push(escaped),
                Some(other) => last.extend(['\\', other]),
                None => last.push('\\'),
            },
            '.' => path.push(String::new()),
            other => last.push(other),
        }
    }
    path
}

fn copy_field(from: &Map<String, Value>, to: &mut Map<String, Value>, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let Some(value) = from.get(first) else { return };
    if rest.is_empty() {
        to.insert(first.clone(), value.clone());
        return;
    }
    if let Value::Object(inner) = value {
        let mut copied = match to.remove(first) {
            Some(Value::Object(existing)) => existing,
            _ => Map::new(),
        };
        copy_field(inner, &mut copied, rest);
        if !copied.is_empty() {
            to.insert(first.clone(), Value::Object(copied));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::{room_id, user_id};
    use serde_json::json;

    use super::*;

    fn filter(value: Value) -> SyncFilter {
        SyncFilter::parse(&value.to_string()).unwrap()
    }

    #[test]
    fn type_patterns() {
        for (pattern, event_type, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.message", true),
            ("m.*.message", "m.room.message", true),
            ("m.*.message", "m.message", false),
            ("*", "", true),
            ("*", "anything", true),
            ("**", "anything", true),
            ("", "", true),
            ("", "x", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*c", "abbcc", true),
            ("*é*", "aéb", true),
        ] {
            assert_eq!(
                TypePattern(pattern.into()).matches(event_type),
                expected,
                "{pattern} {event_type}"
            );
        }
    }

    #[test]
    fn exclusion_wins_over_inclusion() {
        let filter = filter(json!({"room": {
            "rooms": ["!a:x", "!b:x"], "not_rooms": ["!b:x"],
            "timeline": {"types": ["m.room.*"], "not_types": ["m.room.member"], "not_senders": ["@b:x"], "contains_url": true},
        }}));
        assert!(filter.room.admits_room(room_id!("!a:x")));
        assert!(!filter.room.admits_room(room_id!("!b:x")));
        assert!(!filter.room.admits_room(room_id!("!c:x")));
        let timeline = &filter.room.timeline;
        assert!(timeline.admits("m.room.message", user_id!("@a:x"), || true));
        assert!(!timeline.admits("m.room.message", user_id!("@a:x"), || false));
        assert!(!timeline.admits("m.room.member", user_id!("@a:x"), || true));
        assert!(!timeline.admits("m.room.message", user_id!("@b:x"), || true));
        assert!(!timeline.admits("x", user_id!("@a:x"), || true));
    }

    #[test]
    fn limits_are_bounded() {
        assert_eq!(SyncFilter::default().room.timeline_limit(), DEFAULT_TIMELINE_LIMIT);
        let limited = |limit: u64| {
            filter(json!({"room": {"timeline": {"limit": limit}}}))
                .room
                .timeline_limit()
        };
        assert_eq!(limited(0), 0);
        assert_eq!(limited(3), 3);
        assert_eq!(limited(9_007_199_254_740_991), MAX_TIMELINE_LIMIT);
    }

    #[test]
    fn hostile_filters_are_refused() {
        assert!(matches!(
            SyncFilter::parse(&" ".repeat(MAX_FILTER_BYTES + 1)),
            Err(FilterError::TooLarge)
        ));
        for text in [
            "",
            "[]",
            "{",
            r#"{"room":[]}"#,
            r#"{"room":{"rooms":["not a room"]}}"#,
            r#"{"event_fields":1}"#,
        ] {
            assert!(SyncFilter::parse(text).is_err(), "{text}");
        }
        let many: Vec<String> = (0..=MAX_LIST_ENTRIES).map(|n| n.to_string()).collect();
        let text = json!({"room": {"timeline": {"types": many}}}).to_string();
        assert!(matches!(
            SyncFilter::parse(&text),
            Err(FilterError::TooManyEntries("types"))
        ));
    }

    #[test]
    fn fields_are_reduced() {
        let event = RawValue::from_string(
            json!({"type": "t", "content": {"body": "b", "m.x": {"y": 1}, "z": 2}, "sender": "s"}).to_string(),
        )
        .unwrap();
        let reduced = |fields: Value| -> Value {
            let raw = filter(json!({"event_fields": fields})).reduce(&event).unwrap();
            serde_json::from_str(raw.get()).unwrap()
        };
        assert_eq!(
            reduced(json!(["type", "content.body"])),
            json!({"type": "t", "content": {"body": "b"}})
        );
        assert_eq!(
            reduced(json!(["content.m\\.x.y", "content.z"])),
            json!({"content": {"m.x": {"y": 1}, "z": 2}})
        );
        assert_eq!(reduced(json!(["content.none", "type.t"])), json!({}));
    }

    #[test]
    fn closed_filters_are_known() {
        assert!(
            filter(json!({"room": {"ephemeral": {"types": []}}}))
                .room
                .ephemeral
                .is_closed()
        );
        assert!(filter(json!({"account_data": {"limit": 0}})).account_data.is_closed());
        assert!(SyncFilter::default().room.timeline.is_open());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            let _ = SyncFilter::parse(&text);
        }

        #[test]
        fn a_pattern_without_star_is_equality(pattern in "[a-z.]{0,6}", event_type in "[a-z.]{0,6}") {
            prop_assert_eq!(TypePattern(pattern.clone()).matches(&event_type), pattern == event_type);
        }

        #[test]
        fn stars_match_what_they_are_filled_with(parts in prop::collection::vec("[ab]{0,3}", 2..4), fill in "[abc]{0,3}") {
            prop_assert!(TypePattern(parts.join("*")).matches(&parts.join(&fill)));
        }

        #[test]
        fn field_paths_never_panic(field in ".{0,20}") {
            prop_assert!(!field_path(&field).is_empty());
        }
    }
}
