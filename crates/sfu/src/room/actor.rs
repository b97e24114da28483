//! The task that owns a room. Datagrams, commands and time come in here and nowhere else, so nothing of a room is locked.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use livekit_protocol::{
    DisconnectReason, IceServer as IceServerMessage, ParticipantInfo, ParticipantUpdate, leave_request::Action,
    signal_response::Message as SignalOut,
};
use parking_lot::Mutex;
use slab::Slab;
use tokio::{sync::mpsc, time};
use tracing::{debug, info};

use super::{
    Command, ConnectionId,
    forwarding::{Resends, Writer},
    participant::{Participant, Peer, Stage},
    publication::Publication,
    signalling::leave,
};
use crate::{
    Environment, LeaveReason, ParticipantSummary, SfuEvent, clock,
    media::speakers::SpeakerMeter,
    transport::{ConnectionKey, Incoming, PeerEvent},
};

/// Datagrams that may wait for the room; more are dropped and counted by the sockets.
const DATAGRAMS: usize = 4096;
/// Datagrams handled before what they caused is sent: long runs of equal length cost the kernel least.
const BATCH: usize = 128;
/// Commands handled between two batches of datagrams: however much media comes in, requests get their turn.
const COMMANDS_BETWEEN: usize = 32;
/// How often lost packets and keyframes are asked for, and feedback is written.
const TICK: Duration = Duration::from_millis(10);

/// Which of a participant's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The client offers; the only one of clients with a single connection.
    Publisher,
    /// The server offers.
    Subscriber,
}

/// When a connection's timers are due.
pub(crate) type Wake = (Instant, usize, Side);

pub(crate) struct Room {
    pub(crate) name: String,
    pub(crate) sid: String,
    pub(crate) created_ms: i64,
    pub(crate) environment: Arc<Environment>,
    /// Identities present, for those outside.
    pub(crate) members: Arc<Mutex<HashSet<String>>>,
    pub(crate) participants: Slab<Participant>,
    pub(crate) by_identity: HashMap<String, usize>,
    pub(crate) by_connection: HashMap<ConnectionId, usize>,
    pub(crate) publications: Slab<Publication>,
    pub(crate) by_track_sid: HashMap<String, usize>,
    /// Since when nobody is here.
    pub(crate) emptied: Option<Instant>,
    pub(crate) ever_joined: bool,
    /// Those who left lately, for clients that resume.
    pub(crate) recently_gone: VecDeque<(Instant, ParticipantInfo)>,
    pub(crate) wakes: BTreeSet<Wake>,
    /// Connections with something to send.
    pub(crate) dirty: Vec<(usize, Side)>,
    datagrams: mpsc::Sender<Incoming>,
    inbox: Option<mpsc::Receiver<Incoming>>,
    /// Rises with every participant, so that no connection key is used twice.
    generation: u64,
    /// Keys of connections by the number the sockets know them by.
    connections: HashMap<ConnectionKey, (usize, Side)>,
    next: Periodic,
    pub(crate) resends: Resends,
    pub(crate) writer: Writer,
    /// Participants and publishers that everybody was last told of.
    pub(crate) told_counts: (u32, u32),
    /// Events the process did not take yet.
    untold: VecDeque<SfuEvent>,
    /// Passes of the allocator: tests count work instead of time.
    #[cfg(test)]
    pub(crate) allocations: usize,
}

/// When what happens from time to time is due next.
struct Periodic {
    media: Instant,
    allocation: Instant,
    reports: Instant,
    speakers: Instant,
    sweep: Instant,
    quality: Instant,
}

/// A participant update message.
pub(crate) fn update(participants: Vec<ParticipantInfo>) -> SignalOut {
    SignalOut::Update(ParticipantUpdate { participants })
}

impl Room {
    pub(crate) fn new(name: String, environment: Arc<Environment>, members: Arc<Mutex<HashSet<String>>>) -> Self {
        let now = clock::now();
        let (datagrams, inbox) = mpsc::channel(DATAGRAMS);
        Self {
            name,
            sid: clock::sid("RM_"),
            created_ms: clock::unix_millis(),
            environment,
            members,
            participants: Slab::new(),
            by_identity: HashMap::new(),
            by_connection: HashMap::new(),
            publications: Slab::new(),
            by_track_sid: HashMap::new(),
            emptied: Some(now),
            ever_joined: false,
            recently_gone: VecDeque::new(),
            wakes: BTreeSet::new(),
            dirty: Vec::new(),
            datagrams,
            inbox: Some(inbox),
            generation: 0,
            connections: HashMap::new(),
            next: Periodic {
                media: now,
                allocation: now,
                reports: now,
                speakers: now,
                sweep: now,
                quality: now,
            },
            resends: Resends::default(),
            writer: Writer::default(),
            told_counts: (0, 0),
            untold: VecDeque::new(),
            #[cfg(test)]
            allocations: 0,
        }
    }

    /// Runs until the room is over, closed, or the process stops.
    pub(crate) async fn run(mut self, commands: &mut mpsc::Receiver<Command>) {
        let mut inbox = self.inbox.take().expect("a room is run once");
        let shutdown = self.environment.shutdown.clone();
        let mut batch = Vec::with_capacity(BATCH);
        info!(room = %self.name, sid = %self.sid, "room opened");
        metrics::gauge!("sfu_rooms").increment(1.0);
        'room: loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    self.end(DisconnectReason::ServerShutdown, LeaveReason::Shutdown);
                    break;
                }
                received = inbox.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    let now = clock::now();
                    for incoming in batch.drain(..) {
                        self.datagram(incoming, now);
                    }
                    for _ in 0..COMMANDS_BETWEEN {
                        let Ok(command) = commands.try_recv() else { break };
                        if self.command(command, now).is_break() {
                            break 'room;
                        }
                    }
                }
                command = commands.recv() => {
                    let Some(command) = command else { break };
                    if self.command(command, clock::now()).is_break() {
                        break;
                    }
                }
                () = time::sleep_until(wake.into()) => {}
            }
            let now = clock::now();
            self.timers(now);
            self.flush(now);
            if self.is_over(now) {
                break;
            }
        }
        metrics::gauge!("sfu_rooms").decrement(1.0);
        info!(room = %self.name, "room closed");
    }

    /// Carries out one command; breaks when it ended the room.
    pub(super) fn command(&mut self, command: Command, now: Instant) -> ControlFlow<()> {
        match command {
            Command::Join(join) => self.join(*join, now),
            Command::Signal { connection, message } => self.signal(connection, *message, now),
            Command::Closed { connection } => self.signal_closed(connection, now),
            Command::Expel { connection } => {
                if let Some(&key) = self.by_connection.get(&connection) {
                    let farewell = leave(DisconnectReason::ParticipantRemoved, Action::Disconnect);
                    self.remove(key, LeaveReason::Removed, Some(farewell), now);
                }
            }
            Command::Remove { identity, reason } => {
                if let Some(&key) = self.by_identity.get(&identity) {
                    self.remove(key, LeaveReason::Removed, Some(leave(reason, Action::Disconnect)), now);
                }
            }
            Command::Participants { reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.summaries());
            }
            Command::Close { reason } => {
                self.end(reason, LeaveReason::RoomClosed);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self, reason: DisconnectReason, told: LeaveReason) {
        let now = clock::now();
        // After a restart clients come back by themselves.
        let action = if told == LeaveReason::Shutdown {
            Action::Reconnect
        } else {
            Action::Disconnect
        };
        let keys: Vec<usize> = self.participants.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.remove(key, told, Some(leave(reason, action)), now);
        }
    }

    fn next_wake(&self) -> Instant {
        let connection = self.wakes.first().map(|(due, _, _)| *due);
        let coarse = if self.participants.is_empty() {
            self.next.sweep
        } else {
            self.next.media.min(self.next.sweep)
        };
        connection.map_or(coarse, |due| due.min(coarse))
    }

    fn timers(&mut self, now: Instant) {
        while let Some(&(due, key, side)) = self.wakes.first()
            && due <= now
        {
            self.wakes.pop_first();
            if let Some(peer) = self
                .participants
                .get_mut(key)
                .and_then(|participant| participant.peer(side))
            {
                peer.wake = None;
                peer.transport.handle_timeout(now);
                self.events(key, side, now);
                self.touch(key, side);
            }
        }
        if now >= self.next.media && !self.participants.is_empty() {
            self.next.media = now + TICK;
            self.ask_publishers(now);
        }
        if now >= self.next.allocation {
            self.next.allocation = now + Duration::from_millis(200);
            self.allocate_everybody(now);
            self.tell_demand(now);
        }
        if now >= self.next.reports {
            self.next.reports = now + Duration::from_secs(1);
            self.write_reports(now);
        }
        if now >= self.next.speakers {
            self.next.speakers = now + SpeakerMeter::INTERVAL;
            self.tell_speakers();
        }
        if now >= self.next.sweep {
            self.next.sweep = now + Duration::from_secs(1);
            self.sweep(now);
            self.tell_events();
        }
        if now >= self.next.quality {
            self.next.quality = now + Duration::from_secs(5);
            self.tell_quality();
            self.tell_counts();
        }
    }

    /// One datagram from the sockets.
    fn datagram(&mut self, incoming: Incoming, now: Instant) {
        let Some(&(key, side)) = self.connections.get(&incoming.connection) else {
            return;
        };
        let Some(peer) = self
            .participants
            .get_mut(key)
            .and_then(|participant| participant.peer(side))
        else {
            return;
        };
        peer.transport.handle_datagram(now, incoming.path, incoming.datagram);
        self.events(key, side, now);
        self.touch(key, side);
    }

    /// What a connection has to say.
    fn events(&mut self, key: usize, side: Side, now: Instant) {
        while let Some(participant) = self.participants.get_mut(key)
            && let Some(event) = participant.peer(side).and_then(|peer| peer.transport.poll_event())
        {
            match event {
                PeerEvent::Rtp(packet) => self.rtp(key, &packet, now),
                PeerEvent::Rtcp(compound) => self.rtcp(key, side, &compound, now),
                PeerEvent::IceConnected => debug!(participant = %participant.sid, "media path found"),
                PeerEvent::Connected { profile } => {
                    info!(room = %self.name, participant = %participant.sid, ?profile, ?side, "media connected");
                    self.connected(key, side, now);
                }
                PeerEvent::ChannelOpen { id, label, .. } => self.channel_opened(key, side, id, &label),
                PeerEvent::ChannelMessage { id, data, .. } => {
                    let Some(peer) = participant.peer(side) else { continue };
                    let reliable = peer.reliable == Some(id);
                    if reliable || peer.lossy == Some(id) {
                        self.data_message(key, reliable, data, now);
                    }
                }
                PeerEvent::ChannelClosed { id } => {
                    if let Some(peer) = participant.peer(side) {
                        for channel in [&mut peer.reliable, &mut peer.lossy] {
                            channel.take_if(|known| *known == id);
                        }
                    }
                }
                // The sweep decides what silence means.
                PeerEvent::Disconnected => debug!(participant = %participant.sid, "media path fell silent"),
                PeerEvent::Failed { reason } => {
                    info!(room = %self.name, participant = %participant.sid, %reason, "media connection failed");
                    // A client that leaves closes its media first and says so a moment later: the sweep waits for that.
                    participant.media_failed.get_or_insert(now);
                }
            }
        }
    }

    /// The media connection stands: from here on the participant is active.
    fn connected(&mut self, key: usize, side: Side, now: Instant) {
        let participant = &mut self.participants[key];
        let primary = participant.single_connection || (side == Side::Subscriber) == participant.permission.subscribe;
        if primary && participant.stage == Stage::Joined {
            participant.stage = Stage::Active;
            self.broadcast_update(key);
            self.subscribe_to_all(key, now);
        }
    }

    /// Makes a connection known to the sockets under its present ICE name.
    pub(crate) fn attach(&mut self, key: usize, side: Side) {
        let Some(peer) = self.participants[key].peer(side) else {
            return;
        };
        let number = *peer.number.get_or_insert_with(|| {
            self.generation += 1;
            ConnectionKey(self.generation)
        });
        let ufrag = peer.transport.local_credentials().ufrag.clone();
        let registration = self.environment.mux.register(&ufrag, number, self.datagrams.clone());
        // The names of the present and of the last ICE session are enough.
        if peer.registered.len() > 1 {
            peer.registered.remove(0);
        }
        peer.registered.push(registration);
        self.connections.insert(number, (key, side));
    }

    /// Forgets the connections of a participant that is gone.
    pub(crate) fn detach(&mut self, participant: &mut Participant) {
        let key = participant.key;
        self.connections.retain(|_, (owner, _)| *owner != key);
        for peer in participant.peers() {
            peer.registered.clear();
            if let Some(due) = peer.wake.take() {
                self.wakes.retain(|wake| *wake != (due, key, wake.2));
            }
        }
    }

    /// Notes that a connection may have something to send.
    pub(crate) fn touch(&mut self, key: usize, side: Side) {
        if let Some(peer) = self
            .participants
            .get_mut(key)
            .and_then(|participant| participant.peer(side))
            && !std::mem::replace(&mut peer.dirty, true)
        {
            self.dirty.push((key, side));
        }
    }

    pub(crate) fn touch_all(&mut self, key: usize) {
        self.touch(key, Side::Publisher);
        self.touch(key, Side::Subscriber);
    }

    /// Sends what waits, and asks each connection when it wants to be woken.
    fn flush(&mut self, now: Instant) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for (key, side) in dirty.drain(..) {
            // Events may have come up while a timer or a request was handled.
            self.events(key, side, now);
            let Some(peer) = self
                .participants
                .get_mut(key)
                .and_then(|participant| participant.peer(side))
            else {
                continue;
            };
            peer.dirty = false;
            while let Some(transmit) = peer.transport.poll_transmit() {
                self.environment.mux.send(&transmit);
            }
            let due = peer.transport.poll_timeout();
            if due != peer.wake {
                if let Some(old) = peer.wake {
                    self.wakes.remove(&(old, key, side));
                }
                peer.wake = due;
                if let Some(due) = due {
                    self.wakes.insert((due, key, side));
                }
            }
        }
        if self.dirty.is_empty() {
            // Keeps the buffer.
            self.dirty = dirty;
        }
    }

    /// Sends what waits for one participant that is about to go.
    pub(crate) fn flush_participant(&mut self, key: usize) {
        for peer in self.participants[key].peers() {
            while let Some(transmit) = peer.transport.poll_transmit() {
                self.environment.mux.send(&transmit);
            }
        }
    }

    /// The present state of a participant as others see it.
    pub(crate) fn participant_info(&self, key: usize) -> ParticipantInfo {
        let participant = &self.participants[key];
        let tracks = participant
            .publications
            .iter()
            .map(|publication| &self.publications[*publication])
            .filter(|publication| publication.is_announced())
            .map(|publication| publication.info.clone())
            .collect();
        participant.info(tracks)
    }

    /// Tells everybody else the new state of a participant.
    pub(crate) fn broadcast_update(&mut self, key: usize) {
        self.participants[key].version += 1;
        if self.participants[key].permission.hidden {
            return;
        }
        let info = self.participant_info(key);
        for (other, participant) in &mut self.participants {
            if other != key {
                participant.send(update(vec![info.clone()]));
            }
        }
    }

    fn summaries(&self) -> Vec<ParticipantSummary> {
        self.participants
            .iter()
            .map(|(key, participant)| ParticipantSummary {
                identity: participant.identity.clone(),
                sid: participant.sid.clone(),
                active: participant.stage == Stage::Active,
                joined_at_ms: participant.joined_at_ms,
                tracks: self
                    .participant_info(key)
                    .tracks
                    .into_iter()
                    .map(|track| track.sid)
                    .collect(),
            })
            .collect()
    }

    pub(crate) fn ice_servers(&self, identity: &str) -> Vec<IceServerMessage> {
        (self.environment.ice_servers)(&self.name, identity)
            .into_iter()
            .map(|server| IceServerMessage {
                urls: server.urls,
                username: server.username,
                credential: server.credential,
            })
            .collect()
    }

    /// Tells the process.
    pub(crate) fn event(&mut self, event: SfuEvent) {
        self.untold.push_back(event);
        self.tell_events();
    }

    /// Events that found no room are told later: a departure that nobody hears of would leave a ghost.
    fn tell_events(&mut self) {
        while let Some(event) = self.untold.front() {
            match self.environment.events.try_send(event.clone()) {
                Err(mpsc::error::TrySendError::Full(_)) => break,
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => drop(self.untold.pop_front()),
            }
        }
    }
}

impl Participant {
    /// One of its connections.
    pub(crate) fn peer(&mut self, side: Side) -> Option<&mut Peer> {
        match side {
            Side::Publisher => self.publisher.as_mut(),
            Side::Subscriber => self.subscriber.as_mut(),
        }
    }
}
