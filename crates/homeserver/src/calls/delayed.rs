//! Delayed events (MSC4140): events that are sent later unless the client restarts or cancels them.
//! Element Call schedules its own leave this way, so that a client that dies leaves the call.
//!
//! The table is the truth; this keeps the order of what is due in memory. An event is sent under a
//! transaction id made of its `delay_id`, so a process killed between sending and recording sends it once.
//!
//! Whoever knows a `delay_id` may use it without a token: it is a secret, and never logged.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{CanonicalJsonObject, OwnedRoomId, OwnedUserId, RoomId, UserId, events::StateEventType};
use serde_json::{Value, json};
use storage::{
    Store,
    calls::{DelayedEvent, Finalised, ScheduleError},
};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::{
    Clock, Homeserver,
    accounts::Authenticated,
    client_api::ApiError,
    room::{Event, Proposal, Transaction},
};

/// The longest delay: Element Call delegates its leave with one hour and asks for a day at most.
pub const MAX_DELAY_MS: u64 = 24 * 3600 * 1000;

/// How many events of a user may wait at once.
pub const MAX_SCHEDULED: i64 = 100;

/// Longest type, state key and transaction id, and largest content, in bytes: what is larger could never be sent.
const MAX_NAME: usize = 255;
const MAX_EVENT: usize = 65_536;

/// After a start, overdue events wait this long: clients whose restarts met a stopped server are still there.
const GRACE_AFTER_START_MS: u64 = 10_000;

/// How long what became of an event is told.
const REMEMBERED_MS: u64 = 7 * 24 * 3600 * 1000;

/// The longest sleep: a clock that jumps is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// When a send failed for a reason inside the server.
const RETRY_MS: u64 = 5_000;

/// What is waiting, in the order it is due.
#[derive(Debug)]
pub struct Schedule {
    store: Store,
    clock: Clock,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: HashMap<String, Arc<DelayedEvent>>,
    due: HashMap<String, u64>,
    order: BTreeSet<(u64, String)>,
}

impl Waiting {
    fn put(&mut self, event: Arc<DelayedEvent>, due: u64) {
        self.remove(&event.delay_id);
        self.order.insert((due, event.delay_id.clone()));
        self.due.insert(event.delay_id.clone(), due);
        self.events.insert(event.delay_id.clone(), event);
    }

    fn remove(&mut self, delay_id: &str) -> Option<Arc<DelayedEvent>> {
        if let Some(due) = self.due.remove(delay_id) {
            self.order.remove(&(due, delay_id.to_owned()));
        }
        self.events.remove(delay_id)
    }
}

/// What a client may do with a scheduled event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let the delay run anew.
    Restart,
    /// Send it at once.
    Send,
    /// Never send it.
    Cancel,
}

impl Action {
    /// The action of that name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "restart" => Some(Self::Restart),
            "send" => Some(Self::Send),
            "cancel" => Some(Self::Cancel),
            _ => None,
        }
    }
}

/// The event that a request wants sent later.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where.
    pub room_id: &'a RoomId,
    /// Its type.
    pub event_type: &'a str,
    /// Its state key, for a state event.
    pub state_key: Option<&'a str>,
    /// Its content.
    pub content: &'a CanonicalJsonObject,
    /// How long to wait, in milliseconds.
    pub delay_ms: u64,
    /// The transaction id of the request, where it has one.
    pub txn_id: Option<&'a str>,
}

/// The delay that a send or state request asks for (`org.matrix.msc4140.delay`), if it does.
///
/// # Errors
/// 400 when it is not a number of milliseconds.
pub fn delay_of(query: Option<&str>) -> Result<Option<u64>, ApiError> {
    let mut pairs = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.find(|(name, _)| *name == "org.matrix.msc4140.delay") else {
        return Ok(None);
    };
    value
        .parse()
        .map(Some)
        .map_err(|_| ApiError::invalid_param("org.matrix.msc4140.delay must be a number of milliseconds."))
}

impl Schedule {
    pub(crate) async fn open(store: Store, clock: &Clock) -> Result<Self, storage::Error> {
        let earliest = clock.now_ms() + GRACE_AFTER_START_MS;
        let mut waiting = Waiting::default();
        for event in store.scheduled_delayed_events().await? {
            let due = due_of(&event).max(earliest);
            waiting.put(Arc::new(event), due);
        }
        Ok(Self {
            store,
            clock: clock.clone(),
            waiting: Mutex::new(waiting),
            changed: Notify::new(),
        })
    }

    /// Schedules an event of `sender`; answers its `delay_id`. That the sender may send it is checked
    /// when it is sent, except that they must be in the room, which the caller checks.
    ///
    /// # Errors
    /// 400 when the delay is too long, 400 `M_MAX_DELAYED_EVENTS_EXCEEDED`-like when too many wait; 400 or 413 for what
    /// could never be sent.
    pub async fn schedule(&self, sender: &Authenticated, request: &Request<'_>) -> Result<String, ApiError> {
        if request.delay_ms > MAX_DELAY_MS {
            // The form that today's clients recognise; the MSC's own code is not parsed by them.
            return Err(ApiError::new(
                http::StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "The delay is longer than allowed.",
            )
            .with("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
            .with("org.matrix.msc4140.max_delay", MAX_DELAY_MS));
        }
        let names = [Some(request.event_type), request.state_key, request.txn_id];
        if names
            .into_iter()
            .flatten()
            .any(|name| name.len() > MAX_NAME || name.contains('\0'))
        {
            return Err(ApiError::invalid_param(format!(
                "Types, keys and transaction ids have at most {MAX_NAME} bytes, and no U+0000."
            )));
        }
        let content = serde_json::to_string(request.content).map_err(ApiError::internal)?;
        if content.len() > MAX_EVENT {
            return Err(ApiError::too_large("The event is larger than events may be."));
        }
        let now = self.clock.now_ms();
        let event = DelayedEvent {
            delay_id: new_delay_id(),
            user_id: sender.user_id.to_string(),
            device_id: sender.device_id.to_string(),
            room_id: request.room_id.to_string(),
            event_type: request.event_type.to_owned(),
            state_key: request.state_key.map(str::to_owned),
            content,
            delay_ms: to_i64(request.delay_ms),
            running_since: to_i64(now),
            delegated_room: None,
            delegated_identity: None,
            scheduled_position: self.store.positions().current(),
        };
        let key = request.txn_id.map(|txn| {
            // Unit separators: none of the parts can hold one.
            [
                sender.user_id.as_str(),
                sender.device_id.as_str(),
                request.room_id.as_str(),
                request.event_type,
                txn,
            ]
            .join("\u{1f}")
        });
        let delay_id = match self
            .store
            .schedule_delayed_event(event.clone(), key, MAX_SCHEDULED)
            .await
        {
            Ok(delay_id) => delay_id,
            Err(ScheduleError::TooMany) => {
                return Err(ApiError::new(
                    http::StatusCode::BAD_REQUEST,
                    "M_UNKNOWN",
                    "Too many delayed events of this user are waiting.",
                )
                .with("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED"));
            }
            Err(ScheduleError::Storage(e)) => return Err(e.into()),
        };
        if delay_id == event.delay_id {
            self.waiting.lock().put(Arc::new(event), now + request.delay_ms);
            self.changed.notify_one();
        }
        Ok(delay_id)
    }

    /// Lets the delay run anew.
    ///
    /// # Errors
    /// 404 when it waits no more: the client schedules another.
    pub async fn restart(&self, delay_id: &str) -> Result<(), ApiError> {
        let now = self.clock.now_ms();
        // Anybody may ask about any id: only one that exists is worth the writer's time. What is being sent at this
        // moment is missing in memory alone.
        let waits = self.waiting.lock().events.contains_key(delay_id);
        if !waits && !matches!(self.store.delayed_event(delay_id).await?, Some((_, None))) {
            return Err(unknown());
        }
        if !self
            .store
            .restart_delayed_event(delay_id.to_owned(), to_i64(now))
            .await?
        {
            return Err(unknown());
        }
        let mut waiting = self.waiting.lock();
        if let Some(event) = waiting.remove(delay_id) {
            let mut event = (*event).clone();
            event.running_since = to_i64(now);
            let due = due_of(&event);
            waiting.put(Arc::new(event), due);
        }
        Ok(())
    }

    /// Ties a waiting event to a participant: it is sent when they are gone, and not while they are there.
    pub(crate) async fn delegate(
        &self,
        delay_id: &str,
        user_id: &UserId,
        sfu_room: &str,
        identity: &str,
    ) -> Result<(), ApiError> {
        let owned = |s: &str| s.to_owned();
        let found = self
            .store
            .delegate_delayed_event(owned(delay_id), user_id.to_string(), owned(sfu_room), owned(identity))
            .await?;
        if !found {
            return Err(ApiError::invalid_param(
                "delay_id names no waiting delayed event of this user.",
            ));
        }
        let mut waiting = self.waiting.lock();
        if let Some(event) = waiting.events.get(delay_id).cloned() {
            let due = waiting.due.get(delay_id).copied().unwrap_or_else(|| due_of(&event));
            let mut event = (*event).clone();
            event.delegated_room = Some(owned(sfu_room));
            event.delegated_identity = Some(owned(identity));
            waiting.put(Arc::new(event), due);
        }
        Ok(())
    }

    /// The waiting events that are tied to this participant.
    pub(crate) fn delegated_to(&self, sfu_room: &str, identity: &str) -> Vec<Arc<DelayedEvent>> {
        let waiting = self.waiting.lock();
        let tied = waiting.events.values().filter(|e| {
            e.delegated_room.as_deref() == Some(sfu_room) && e.delegated_identity.as_deref() == Some(identity)
        });
        tied.cloned().collect()
    }

    /// The waiting events of a user, or of one device.
    pub(crate) fn of_device(&self, user_id: &UserId, device_id: Option<&str>) -> Vec<Arc<DelayedEvent>> {
        let waiting = self.waiting.lock();
        let of_user = waiting.events.values().filter(|e| e.user_id == user_id.as_str());
        of_user
            .filter(|e| device_id.is_none_or(|device| e.device_id == device))
            .cloned()
            .collect()
    }

    /// The waiting events that would write this state.
    pub(crate) fn for_state(&self, room_id: &RoomId, event_type: &str, state_key: &str) -> Vec<Arc<DelayedEvent>> {
        let waiting = self.waiting.lock();
        let same = waiting.events.values().filter(|e| {
            e.room_id == room_id.as_str() && e.event_type == event_type && e.state_key.as_deref() == Some(state_key)
        });
        same.cloned().collect()
    }

    /// The devices that have events waiting.
    pub(crate) fn devices(&self) -> BTreeSet<(String, String)> {
        let waiting = self.waiting.lock();
        let devices = waiting
            .events
            .values()
            .map(|e| (e.user_id.clone(), e.device_id.clone()));
        devices.collect()
    }

    /// Every waiting state event.
    fn of_state(&self) -> Vec<Arc<DelayedEvent>> {
        let waiting = self.waiting.lock();
        let state = waiting.events.values().filter(|e| e.state_key.is_some());
        state.cloned().collect()
    }

    fn take_due(&self, now: u64) -> Vec<Arc<DelayedEvent>> {
        let mut waiting = self.waiting.lock();
        let mut due = Vec::new();
        while let Some((at, delay_id)) = waiting.order.first().cloned() {
            if at > now {
                break;
            }
            due.extend(waiting.remove(&delay_id));
        }
        due
    }

    fn put_back(&self, event: Arc<DelayedEvent>, due: u64) {
        self.waiting.lock().put(event, due);
    }

    fn sleep(&self) -> Duration {
        let next = self.waiting.lock().order.first().map(|(due, _)| *due);
        match next {
            Some(due) => Duration::from_millis(due.saturating_sub(self.clock.now_ms())).min(LONGEST_SLEEP),
            None => LONGEST_SLEEP * 60,
        }
    }
}

/// Sends what is due, until the process stops.
pub(super) async fn run(hs: Homeserver) {
    let mut forget_at = 0;
    loop {
        let schedule = &hs.calls.delayed;
        let sleep = schedule.sleep();
        tokio::select! {
            () = hs.shutdown.cancelled() => return,
            () = schedule.changed.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
        let now = hs.clock.now_ms();
        for event in schedule.take_due(now) {
            if is_kept_by_participant(&hs, &event) {
                let now = to_i64(now);
                let delay_id = event.delay_id.clone();
                // Recorded so that the delay survives a restart; if that fails the grace at the start covers it.
                if let Err(e) = schedule.store.restart_delayed_event(delay_id, now).await {
                    warn!(error = %e, room_id = event.room_id, user_id = event.user_id,
                        "a delegated delayed event could not be restarted");
                }
                let mut event = (*event).clone();
                event.running_since = now;
                let due = due_of(&event);
                schedule.put_back(Arc::new(event), due);
            } else if let Err(e) = finish(&hs, &event, "delay").await {
                warn!(error = %e, room_id = event.room_id, user_id = event.user_id,
                    "a delayed event could not be sent; it is tried again");
                schedule.put_back(event, now + RETRY_MS);
            }
        }
        if now >= forget_at {
            forget_at = now + 3600 * 1000;
            if let Some(control) = hs.calls.control()
                && let Err(e) = hs.calls.grants.renew_present(&*control, now).await
            {
                warn!(error = %e, "grants of participants who are still there could not be renewed");
            }
            hs.calls.grants.forget_expired(now);
            if let Err(e) = hs
                .store
                .forget_old_calls(to_i64(now.saturating_sub(REMEMBERED_MS)))
                .await
            {
                warn!(error = %e, "old delayed events could not be forgotten");
            }
        }
    }
}

/// Spec (MSC4140): a delayed state event is cancelled when another user writes that state; the sender's own writes leave
/// it alone. So does what was written before the event was scheduled, word of which may come later.
pub(super) async fn overwritten(hs: &Homeserver, room_id: &RoomId, event: &Event) {
    let Some(state_key) = event.state_key.as_deref() else {
        return;
    };
    for scheduled in hs.calls.delayed.for_state(room_id, &event.kind.to_string(), state_key) {
        if scheduled.user_id == event.sender.as_str() || event.nid <= scheduled.scheduled_position {
            continue;
        }
        let error = json!({
            "errcode": "M_CANCELLED_BY_STATE_UPDATE",
            "error": "Another user has written this state since.",
        });
        let outcome = Finalised {
            delay_id: scheduled.delay_id.clone(),
            outcome: "cancel".to_owned(),
            reason: "error".to_owned(),
            event_id: None,
            error: Some(error.to_string()),
            finalised_at: to_i64(hs.clock.now_ms()),
        };
        match hs.store.finalise_delayed_event(outcome).await {
            Ok(_) => drop(hs.calls.delayed.waiting.lock().remove(&scheduled.delay_id)),
            Err(e) => warn!(%room_id, error = %e, "a delayed event that was overwritten could not be cancelled"),
        }
    }
}

/// The same for writes that were missed.
pub(super) async fn recheck_overwritten(hs: &Homeserver) {
    for scheduled in hs.calls.delayed.of_state() {
        let (Ok(room_id), Some(state_key)) = (
            <&RoomId>::try_from(scheduled.room_id.as_str()),
            scheduled.state_key.as_deref(),
        ) else {
            continue;
        };
        let kind = StateEventType::from(scheduled.event_type.as_str());
        let written = async {
            let Some(room) = hs.rooms.find(room_id).await? else {
                return Ok(None);
            };
            hs.rooms.state_event_of(&room.state(), &kind, state_key).await
        };
        match written.await {
            Ok(Some(event)) => overwritten(hs, room_id, &event).await,
            Ok(None) => {}
            Err(e) => warn!(%room_id, error = %e, "whether a delayed event was overwritten could not be checked"),
        }
    }
}

fn is_kept_by_participant(hs: &Homeserver, event: &DelayedEvent) -> bool {
    match (&event.delegated_room, &event.delegated_identity, hs.calls.control()) {
        (Some(room), Some(identity), Some(control)) => control.is_present(room, identity),
        _ => false,
    }
}

impl Homeserver {
    /// Does what a client asks of a delayed event.
    ///
    /// # Errors
    /// 404 when there is none of that id (or, for a restart, when it waits no more); 409 when the opposite was done already.
    pub async fn manage_delayed_event(&self, delay_id: &str, action: Action) -> Result<(), ApiError> {
        if action == Action::Restart {
            return self.calls.delayed.restart(delay_id).await;
        }
        let Some((event, finalised)) = self.store.delayed_event(delay_id).await? else {
            return Err(unknown());
        };
        let wanted = if action == Action::Send { "send" } else { "cancel" };
        if let Some(finalised) = finalised {
            return settled(&finalised, wanted);
        }
        if action == Action::Send {
            // The schedule forgets it once that is recorded, and tries again if it fails.
            return finish(self, &event, "action").await;
        }
        let outcome = Finalised {
            delay_id: delay_id.to_owned(),
            outcome: wanted.to_owned(),
            reason: "action".to_owned(),
            event_id: None,
            error: None,
            finalised_at: to_i64(self.clock.now_ms()),
        };
        let cancelled = self.store.finalise_delayed_event(outcome).await?;
        self.calls.delayed.waiting.lock().remove(delay_id);
        if cancelled {
            return Ok(());
        }
        match self.store.delayed_event(delay_id).await? {
            Some((_, Some(finalised))) => settled(&finalised, wanted),
            _ => Err(unknown()),
        }
    }

    /// A user's delayed events as the client API shows them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_delayed_events(&self, user_id: &UserId) -> Result<Value, ApiError> {
        let (waiting, ended) = self.store.delayed_events_of(user_id.as_str(), 100).await?;
        let scheduled: Vec<_> = waiting.iter().map(describe).collect();
        let finalised: Vec<_> = ended
            .iter()
            .map(|(event, outcome)| describe_finalised(event, outcome))
            .collect();
        Ok(json!({ "scheduled": scheduled, "delayed_events": scheduled, "finalised": finalised }))
    }

    /// One delayed event of a user.
    ///
    /// # Errors
    /// 404 when there is none of that id, or it is another user's.
    pub async fn show_delayed_event(&self, user_id: &UserId, delay_id: &str) -> Result<Value, ApiError> {
        match self.store.delayed_event(delay_id).await? {
            Some((event, outcome)) if event.user_id == user_id.as_str() => {
                Ok(outcome.map_or_else(|| describe(&event), |o| describe_finalised(&event, &o)))
            }
            _ => Err(unknown()),
        }
    }
}

/// Sends `event` and records what became of it. An error means: try again later.
pub(super) async fn finish(hs: &Homeserver, event: &DelayedEvent, reason: &str) -> Result<(), ApiError> {
    let sent = send(hs, event).await;
    let (reason, event_id, error) = match &sent {
        Ok(event_id) => (reason, Some(event_id.clone()), None),
        Err(e) if e.status().is_server_error() => return Err(e.clone()),
        Err(e) => {
            info!(room_id = event.room_id, user_id = event.user_id, error = %e, "a delayed event was refused");
            (
                "error",
                None,
                Some(json!({ "errcode": e.errcode(), "error": e.message() }).to_string()),
            )
        }
    };
    let outcome = Finalised {
        delay_id: event.delay_id.clone(),
        outcome: "send".to_owned(),
        reason: reason.to_owned(),
        event_id,
        error,
        finalised_at: to_i64(hs.clock.now_ms()),
    };
    hs.store.finalise_delayed_event(outcome).await?;
    hs.calls.delayed.waiting.lock().remove(&event.delay_id);
    Ok(())
}

async fn send(hs: &Homeserver, event: &DelayedEvent) -> Result<String, ApiError> {
    let broken = |what: &str| ApiError::internal(format!("a delayed event has an unreadable {what}"));
    let room_id = OwnedRoomId::try_from(event.room_id.as_str()).map_err(|_| broken("room id"))?;
    let user_id = OwnedUserId::try_from(event.user_id.as_str()).map_err(|_| broken("user id"))?;
    let content: CanonicalJsonObject = serde_json::from_str(&event.content).map_err(|_| broken("content"))?;
    let room = hs.rooms.get(&room_id).await?;
    let mut proposal = match &event.state_key {
        Some(key) => Proposal::state(&user_id, event.event_type.as_str(), key, content),
        None => Proposal::message(&user_id, event.event_type.as_str(), content),
    };
    proposal.transaction = Some(Transaction::delayed(event.device_id.clone(), &event.delay_id));
    Ok(hs.rooms.propose(&room, proposal).await?.event_id.to_string())
}

fn due_of(event: &DelayedEvent) -> u64 {
    u64::try_from(event.running_since.saturating_add(event.delay_ms)).unwrap_or(0)
}

fn settled(finalised: &Finalised, wanted: &str) -> Result<(), ApiError> {
    if finalised.outcome == wanted {
        return Ok(());
    }
    let done = if finalised.outcome == "send" {
        "sent"
    } else {
        "cancelled"
    };
    Err(ApiError::new(
        http::StatusCode::CONFLICT,
        "M_UNKNOWN",
        format!("This delayed event was {done} already."),
    ))
}

fn describe(event: &DelayedEvent) -> Value {
    let content: Value = serde_json::from_str(&event.content).unwrap_or_default();
    let mut shown = json!({
        "delay_id": event.delay_id,
        "room_id": event.room_id,
        "type": event.event_type,
        "delay": event.delay_ms,
        "running_since": event.running_since,
        "content": content,
    });
    if let Some(key) = &event.state_key {
        shown["state_key"] = Value::from(key.as_str());
    }
    shown
}

fn describe_finalised(event: &DelayedEvent, outcome: &Finalised) -> Value {
    let mut shown = json!({
        "delayed_event": describe(event),
        "outcome": outcome.outcome,
        "reason": outcome.reason,
        "origin_server_ts": outcome.finalised_at,
    });
    if let Some(event_id) = &outcome.event_id {
        shown["event_id"] = Value::from(event_id.as_str());
    }
    if let Some(error) = &outcome.error {
        shown["error"] = serde_json::from_str(error).unwrap_or_default();
    }
    shown
}

fn unknown() -> ApiError {
    ApiError::not_found("There is no delayed event of that id, or it waits no more.")
}

/// Unguessable: whoever knows it may restart, send or cancel the event without a token.
fn new_delay_id() -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>())
}

fn to_i64(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_read_from_the_query() {
        assert_eq!(delay_of(None).unwrap(), None);
        assert_eq!(delay_of(Some("a=1")).unwrap(), None);
        assert_eq!(delay_of(Some("a=1&org.matrix.msc4140.delay=8000")).unwrap(), Some(8000));
        for bad in [
            "org.matrix.msc4140.delay=",
            "org.matrix.msc4140.delay=-1",
            "org.matrix.msc4140.delay=1.5",
        ] {
            assert_eq!(delay_of(Some(bad)).unwrap_err().errcode(), "M_INVALID_PARAM", "{bad}");
        }
    }
}
