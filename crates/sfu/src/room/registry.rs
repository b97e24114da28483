//! The rooms that are open, by name. The only state of rooms that is shared between tasks: names and identities, behind
//! locks held for a look-up.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures_util::FutureExt as _;
use livekit_protocol::DisconnectReason;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::{Command, actor};
use crate::{Environment, LeaveReason, SfuEvent};

/// Commands that may wait for a room; connections wait beyond.
const COMMANDS: usize = 1024;

/// A room seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct RoomLink {
    commands: mpsc::Sender<Command>,
    members: Arc<Mutex<HashSet<String>>>,
}

impl RoomLink {
    /// Hands a command over, waiting for room in the queue. An error means that the room is closed.
    pub(crate) async fn send(&self, command: Command) -> Result<(), RoomClosed> {
        self.commands.send(command).await.map_err(|_| RoomClosed)
    }

    pub(crate) fn participant_count(&self) -> u32 {
        u32::try_from(self.members.lock().len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn has_participant(&self, identity: &str) -> bool {
        self.members.lock().contains(identity)
    }

    fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// The room ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the room is closed")]
pub(crate) struct RoomClosed;

/// Every open room.
pub(crate) struct Rooms {
    environment: Arc<Environment>,
    open: Mutex<HashMap<String, RoomLink>>,
    tasks: TaskTracker,
}

impl Rooms {
    pub(crate) fn new(environment: Arc<Environment>, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            environment,
            open: Mutex::default(),
            tasks,
        })
    }

    /// The room of this name, if it is open.
    pub(crate) fn get(&self, name: &str) -> Option<RoomLink> {
        self.open.lock().get(name).filter(|link| !link.is_closed()).cloned()
    }

    /// The room of this name, opened if it was not; `None` when the process is stopping.
    pub(crate) fn ensure(self: &Arc<Self>, name: &str) -> Option<RoomLink> {
        if self.environment.shutdown.is_cancelled() {
            return None;
        }
        let mut open = self.open.lock();
        if let Some(link) = open.get(name).filter(|link| !link.is_closed()) {
            return Some(link.clone());
        }
        let (commands, mut inbox) = mpsc::channel(COMMANDS);
        let members: Arc<Mutex<HashSet<String>>> = Arc::default();
        let link = RoomLink {
            commands,
            members: Arc::clone(&members),
        };
        open.insert(name.to_owned(), link.clone());
        let rooms = Arc::clone(self);
        let name = name.to_owned();
        let room = actor::Room::new(name.clone(), Arc::clone(&self.environment), Arc::clone(&members));
        self.tasks.spawn(async move {
            // The queue stays open until the departures are told: no new room of this name begins before.
            contain(room.run(&mut inbox), &rooms.environment, &name, &members).await;
            drop(inbox);
            let mut open = rooms.open.lock();
            // A new room of the same name may have taken the place.
            if open.get(&name).is_some_and(RoomLink::is_closed) {
                open.remove(&name);
            }
        });
        Some(link)
    }

    /// Ends the room of this name.
    pub(crate) async fn close(&self, name: &str) {
        if let Some(link) = self.get(name) {
            // An error means it closed by itself meanwhile.
            let _ = link
                .send(Command::Close {
                    reason: DisconnectReason::RoomDeleted,
                })
                .await;
        }
    }
}

/// Waits for a room's task. Should a defect end it, everybody who was there is told to have left: nobody would else, and
/// they would stay in the call for all others.
async fn contain(
    run: impl Future<Output = ()>,
    environment: &Environment,
    name: &str,
    members: &Mutex<HashSet<String>>,
) {
    // What the room owned is gone with it; its members are a set of names that is whole after every change.
    if AssertUnwindSafe(run).catch_unwind().await.is_ok() {
        return;
    }
    let left = std::mem::take(&mut *members.lock());
    tracing::error!(room = %name, participants = left.len(), "a defect ended the room");
    metrics::counter!("sfu_room_panics_total").increment(1);
    metrics::gauge!("sfu_rooms").decrement(1.0);
    metrics::gauge!("sfu_participants").decrement(left.len() as f64);
    for identity in left {
        let event = SfuEvent::ParticipantLeft {
            room: name.to_owned(),
            identity,
            reason: LeaveReason::MediaGone,
        };
        // An error means that nobody listens any more, as when the process stops.
        let told = environment.shutdown.run_until_cancelled(environment.events.send(event));
        let _ = told.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::tests::environment;

    #[tokio::test]
    async fn a_defect_leaves_no_ghosts() {
        let (environment, mut events) = environment().await;
        let members = Mutex::new(HashSet::from(["alice".to_owned()]));
        contain(async { panic!("a defect") }, &environment, "room", &members).await;
        let left = SfuEvent::ParticipantLeft {
            room: "room".into(),
            identity: "alice".into(),
            reason: LeaveReason::MediaGone,
        };
        assert_eq!(events.try_recv(), Ok(left));
        assert!(members.lock().is_empty());
    }

    #[tokio::test]
    async fn a_room_that_ends_is_forgotten() {
        let (environment, _events) = environment().await;
        let tasks = TaskTracker::new();
        let rooms = Rooms::new(Arc::new(environment), tasks.clone());
        rooms.ensure("room").unwrap();
        rooms.close("room").await;
        tasks.close();
        tasks.wait().await;
        assert!(rooms.open.lock().is_empty());
    }
}
