//! The ICE agent of one connection, always in the controlled role at a public address (RFC 8445): it answers
//! connectivity checks, follows the client's latest nomination once the client proved to be there, and watches that the
//! client stays. It sends checks only to where an authenticated check came from: addresses that a client names by
//! signalling are never probed. Told the time; knows no socket and nothing of what flows over the paths.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::outbox::Outbox;
use super::path::{Carrier, Path};
use super::stun::{self, Class, Message, TransactionId};

/// Silence after which a connected client counts as disconnected.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(10);
/// Further silence after which the connection has failed.
const FAILED_AFTER: Duration = Duration::from_secs(5);
/// How long a client may take to its first nomination. Clients give up after 15 s themselves.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Paths remembered for one client; the one unheard of for longest gives way.
const MAX_PATHS: usize = 16;
/// Checks of our own that are outstanding at once.
const MAX_CHECKS: usize = 16;
/// Pace and number of transmissions of one check (RFC 8489 §6.2.1 shortened).
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
const CHECK_ATTEMPTS: u8 = 7;
/// Least time between any two checks, whatever the client does (RFC 8445 §14.2: Ta).
const PACE: Duration = Duration::from_millis(50);
/// Consent checks on the selected path while the agent sends checks (RFC 7675 §5.1).
const CONSENT_INTERVAL: Duration = Duration::from_secs(4);
/// How long an answered check is proof of consent for a path that is not in use (RFC 7675 §5.1).
const CONSENT_LIFETIME: Duration = Duration::from_secs(30);

/// The short-term credential of one side of one ICE session (RFC 8445 §5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    /// The user name fragment: the key by which [`super::Mux`] finds the connection.
    pub ufrag: String,
    /// The password. A secret.
    pub pwd: String,
}

impl IceCredentials {
    /// Fresh random credentials: 16 characters of fragment, 32 of password.
    pub fn random() -> Self {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut rng = rand::rng();
        let mut text = |length| {
            (0..length)
                .map(|_| char::from(ALPHABET[usize::from(rng.random::<u8>() & 63)]))
                .collect::<String>()
        };
        Self {
            ufrag: text(16),
            pwd: text(32),
        }
    }
}

impl std::fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IceCredentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

/// Whether we only answer checks or send our own as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IceMode {
    /// Answer (RFC 8445 §2.5), and check only that the client agrees before its media moves to another path; say
    /// `a=ice-lite` in the SDP.
    Lite,
    /// Answer, and check every path the client uses: for clients that asked for it and for Firefox.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IceEvent {
    /// A path is selected, after none was or after a silence.
    Connected,
    /// The client moved to another path.
    PathChanged,
    Disconnected,
    Failed(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Liveness {
    /// Waiting for the first nomination.
    Connecting,
    Connected,
    Disconnected,
    Failed,
}

struct KnownPath {
    path: Path,
    last_heard: Instant,
    /// When a check of our own over it was last answered.
    proven: Option<Instant>,
}

/// The path that the client nominated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Selected {
    path: Path,
    /// The client receives what we send there. Media waits for it: a check with a forged source can nominate anybody's
    /// address.
    proven: bool,
}

/// Where the DTLS handshake went. Who completes it received our part of it, which nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    Nowhere,
    Over(Path),
    /// Over several, so that its end proves none of them.
    Scattered,
}

/// A check of our own that waits for its answer.
struct Outstanding {
    path: Path,
    transaction: TransactionId,
    next: Instant,
    left: u8,
}

pub(super) struct IceAgent {
    mode: IceMode,
    tie_breaker: u64,
    local: IceCredentials,
    /// Valid until the client nominates a path with the new ones (RFC 8445 §9).
    previous_local: Option<IceCredentials>,
    remote: Option<IceCredentials>,
    paths: Vec<KnownPath>,
    selected: Option<Selected>,
    /// Nominated after the selected path, and to take its place once a check over it was answered.
    next_selected: Option<Path>,
    /// Where the DTLS handshake was sent, as long as it was one path.
    handshake: Handshake,
    checks: Vec<Outstanding>,
    /// No check is sent before.
    next_check: Instant,
    next_consent: Option<Instant>,
    liveness: Liveness,
    /// When the client was last heard with proof that it was the client.
    last_heard: Instant,
    started: Instant,
    event: Option<IceEvent>,
}

impl IceAgent {
    pub(super) fn new(mode: IceMode, local: IceCredentials, now: Instant) -> Self {
        Self {
            mode,
            tie_breaker: rand::rng().random(),
            local,
            previous_local: None,
            remote: None,
            paths: Vec::new(),
            selected: None,
            next_selected: None,
            handshake: Handshake::Nowhere,
            checks: Vec::new(),
            next_check: now,
            next_consent: None,
            liveness: Liveness::Connecting,
            last_heard: now,
            started: now,
            event: None,
        }
    }

    pub(super) fn local(&self) -> &IceCredentials {
        &self.local
    }

    pub(super) fn remote(&self) -> Option<&IceCredentials> {
        self.remote.as_ref()
    }

    pub(super) fn set_remote(&mut self, remote: IceCredentials) {
        self.remote = Some(remote);
    }

    /// Begins a new ICE session on the same connection; media flows on over the selected path meanwhile.
    pub(super) fn restart(&mut self, now: Instant, local: IceCredentials, remote: IceCredentials) {
        self.previous_local = Some(std::mem::replace(&mut self.local, local));
        self.remote = Some(remote);
        self.checks.clear();
        self.next_selected = None;
        self.started = now;
        if self.liveness != Liveness::Connected {
            self.liveness = Liveness::Connecting;
        }
        self.last_heard = now;
    }

    /// Where to send what proves the client: the nominated path, or before a nomination the path last heard of.
    pub(super) fn send_path(&self) -> Option<Path> {
        self.selected
            .map(|selected| selected.path)
            .or_else(|| self.paths.iter().max_by_key(|p| p.last_heard).map(|p| p.path))
    }

    /// Where to send media: the nominated path, once the client proved that it receives there.
    pub(super) fn media_path(&self) -> Option<Path> {
        self.selected
            .filter(|selected| selected.proven)
            .map(|selected| selected.path)
    }

    /// Notes that a part of the DTLS handshake was sent over `path`.
    pub(super) fn handshake_sent(&mut self, path: Path) {
        self.handshake = match self.handshake {
            Handshake::Nowhere => Handshake::Over(path),
            Handshake::Over(only) if only == path => self.handshake,
            Handshake::Over(_) | Handshake::Scattered => Handshake::Scattered,
        };
    }

    /// The client completed the DTLS handshake: it received what we sent of it.
    pub(super) fn handshake_done(&mut self, now: Instant) {
        if let Handshake::Over(path) = self.handshake {
            self.proven(now, path);
        }
    }

    /// When the client was last heard with proof that it was the client; the start if never.
    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Whether the client proved by an authenticated check that it is at the end of this path.
    pub(super) fn knows(&self, path: &Path) -> bool {
        self.paths.iter().any(|p| p.path == *path)
    }

    /// Notes that something authenticated (a check, SRTP, DTLS records) came from the client over `path`.
    pub(super) fn heard(&mut self, now: Instant, path: &Path) {
        self.last_heard = now;
        if let Some(known) = self.paths.iter_mut().find(|p| p.path == *path) {
            known.last_heard = now;
        }
        if self.liveness == Liveness::Disconnected {
            self.liveness = Liveness::Connected;
            self.event = Some(IceEvent::Connected);
        }
    }

    /// Handles a datagram that looks like STUN; whether it was an authentic message of this client.
    pub(super) fn handle(&mut self, now: Instant, path: Path, datagram: &[u8], outbox: &mut Outbox) -> bool {
        let Some(message) = Message::parse(datagram) else {
            return false;
        };
        match message.class {
            Class::Request => self.handle_request(now, path, &message, outbox),
            Class::Success | Class::Error => self.handle_response(now, path, &message),
            // Keep-alives of RFC 8445 §11 prove nothing: they need no integrity.
            Class::Indication => false,
        }
    }

    fn handle_request(&mut self, now: Instant, path: Path, message: &Message<'_>, outbox: &mut Outbox) -> bool {
        let Some((ufrag, _)) = message.username else {
            return false;
        };
        let is_current = ufrag == self.local.ufrag;
        let credentials = match &self.previous_local {
            _ if is_current => &self.local,
            Some(previous) if ufrag == previous.ufrag => previous,
            _ => return false,
        };
        if !message.verify(&credentials.pwd) || self.liveness == Liveness::Failed {
            return false;
        }
        if message.ice_controlled {
            // We never take the controlling role; 487 makes the client take it.
            outbox.push_with(path, |out| {
                stun::write_role_conflict(out, &message.transaction, &credentials.pwd);
                true
            });
            return true;
        }
        outbox.push_with(path, |out| {
            stun::write_success(out, &message.transaction, path.remote, &credentials.pwd);
            true
        });
        self.learn(now, path);
        self.heard(now, &path);
        if message.use_candidate {
            if is_current {
                self.previous_local = None;
            }
            self.nominate(now, path);
        }
        if self.mode == IceMode::Full && is_current {
            self.check_once(now, path);
        }
        self.send_checks(now, outbox);
        true
    }

    fn handle_response(&mut self, now: Instant, path: Path, message: &Message<'_>) -> bool {
        let Some(at) = self.checks.iter().position(|c| c.transaction == message.transaction) else {
            return false;
        };
        let authentic = self.remote.as_ref().is_some_and(|remote| message.verify(&remote.pwd));
        // RFC 8445 §7.2.5.2.1: the answer comes from where the check went, or it counts for nothing.
        if !authentic || self.checks[at].path.remote != path.remote {
            return false;
        }
        let checked = self.checks.swap_remove(at).path;
        if message.class == Class::Success {
            self.learn(now, path);
            self.heard(now, &path);
            // Where the answer came to may differ by our own address alone; what was checked is what was proven.
            self.proven(now, checked);
        }
        true
    }

    /// The client receives what is sent over `path`.
    fn proven(&mut self, now: Instant, path: Path) {
        self.checks.retain(|check| check.path != path);
        if let Some(known) = self.paths.iter_mut().find(|p| p.path == path) {
            known.proven = Some(now);
        }
        if let Some(selected) = self.selected.as_mut().filter(|selected| selected.path == path) {
            selected.proven = true;
        }
        if self.next_selected == Some(path) {
            self.select(path, true);
        }
    }

    /// Whether the client is known to receive over `path`. A TCP connection stands only between addresses that hear each
    /// other, and our own relay sends to nobody that did not answer its challenge.
    fn is_proven(&self, now: Instant, path: &Path) -> bool {
        path.carrier != Carrier::Udp
            || self
                .paths
                .iter()
                .any(|p| p.path == *path && p.proven.is_some_and(|at| now < at + CONSENT_LIFETIME))
    }

    fn learn(&mut self, now: Instant, path: Path) {
        if self.knows(&path) {
            return;
        }
        if self.paths.len() >= MAX_PATHS
            && let Some((oldest, _)) = self
                .paths
                .iter()
                .enumerate()
                .filter(|(_, p)| self.selected.is_none_or(|selected| selected.path != p.path))
                .min_by_key(|(_, p)| p.last_heard)
        {
            self.paths.swap_remove(oldest);
        }
        self.paths.push(KnownPath {
            path,
            last_heard: now,
            proven: None,
        });
    }

    /// Follows the client's nomination: at once where nothing is lost by it or the client is known to be there, else after
    /// a check.
    fn nominate(&mut self, now: Instant, path: Path) {
        let proven = self.is_proven(now, &path);
        match self.selected {
            Some(selected) if selected.path == path => self.next_selected = None,
            Some(Selected { proven: true, .. }) if !proven => self.await_proof(path),
            _ => self.select(path, proven),
        }
        if self.liveness == Liveness::Connecting {
            self.liveness = Liveness::Connected;
            self.event = Some(IceEvent::Connected);
        }
        if !proven
            && self
                .selected
                .is_none_or(|selected| selected.path != path || !selected.proven)
        {
            self.check_once(now, path);
        }
        if self.mode == IceMode::Full {
            self.next_consent.get_or_insert(now + CONSENT_INTERVAL);
        }
    }

    /// The client's latest wish alone is checked.
    fn await_proof(&mut self, path: Path) {
        if let Some(former) = self.next_selected.replace(path).filter(|former| *former != path) {
            self.checks.retain(|check| check.path != former);
        }
    }

    fn select(&mut self, path: Path, proven: bool) {
        let before = self.selected.replace(Selected { path, proven });
        self.next_selected = None;
        if before.is_some_and(|before| before.path != path) && self.liveness == Liveness::Connected {
            self.event = Some(IceEvent::PathChanged);
        }
    }

    /// A triggered check (RFC 8445 §7.3.1.4), unless this path was proven from our side already.
    fn check_once(&mut self, now: Instant, path: Path) {
        if !self.is_proven(now, &path) && !self.checks.iter().any(|c| c.path == path) {
            self.check(now, path);
        }
    }

    fn check(&mut self, now: Instant, path: Path) {
        if self.checks.len() < MAX_CHECKS {
            let transaction = rand::rng().random();
            self.checks.push(Outstanding {
                path,
                transaction,
                next: now,
                left: CHECK_ATTEMPTS,
            });
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let silence = match self.liveness {
            Liveness::Connecting => Some(self.started + CONNECT_WITHIN),
            Liveness::Connected => Some(self.last_heard + DISCONNECTED_AFTER),
            Liveness::Disconnected => Some(self.last_heard + DISCONNECTED_AFTER + FAILED_AFTER),
            Liveness::Failed => None,
        };
        let checks = self
            .remote
            .as_ref()
            .and_then(|_| self.checks.iter().map(|c| c.next).min())
            .map(|next| next.max(self.next_check));
        [silence, checks, self.next_consent].into_iter().flatten().min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, outbox: &mut Outbox) {
        match self.liveness {
            Liveness::Connecting if now >= self.started + CONNECT_WITHIN => {
                self.liveness = Liveness::Failed;
                self.event = Some(IceEvent::Failed("no network path was found in time"));
            }
            Liveness::Connected if now >= self.last_heard + DISCONNECTED_AFTER => {
                self.liveness = Liveness::Disconnected;
                self.event = Some(IceEvent::Disconnected);
            }
            Liveness::Disconnected if now >= self.last_heard + DISCONNECTED_AFTER + FAILED_AFTER => {
                self.liveness = Liveness::Failed;
                self.event = Some(IceEvent::Failed("the client fell silent"));
            }
            _ => {}
        }
        if self.liveness == Liveness::Failed {
            self.checks.clear();
            self.next_selected = None;
            self.next_consent = None;
            return;
        }
        if self.next_consent.is_some_and(|at| at <= now) {
            self.next_consent = Some(now + CONSENT_INTERVAL);
            if let Some(selected) = self.selected {
                self.check(now, selected.path);
            }
        }
        self.send_checks(now, outbox);
    }

    fn send_checks(&mut self, now: Instant, outbox: &mut Outbox) {
        let Some(remote) = &self.remote else { return };
        self.checks.retain(|check| check.left > 0 || check.next > now);
        let due = self.checks.iter_mut().filter(|check| check.next <= now);
        let Some(check) = due.min_by_key(|check| check.next).filter(|_| now >= self.next_check) else {
            return;
        };
        self.next_check = now + PACE;
        check.left -= 1;
        check.next = now + CHECK_INTERVAL;
        let content = stun::Check {
            local_ufrag: &self.local.ufrag,
            remote_ufrag: &remote.ufrag,
            remote_password: &remote.pwd,
            // Type preference 110 (peer reflexive), local preference 65535, component 1.
            priority: (110 << 24) | (65_535 << 8) | 255,
            tie_breaker: self.tie_breaker,
        };
        outbox.push_with(check.path, |out| {
            stun::write_check(out, &check.transaction, &content);
            true
        });
    }

    pub(super) fn poll_event(&mut self) -> Option<IceEvent> {
        self.event.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::stun::clients::request;

    fn path(port: u16) -> Path {
        Path {
            carrier: Carrier::Udp,
            remote: ([192, 0, 2, 1], port).into(),
            local: None,
        }
    }

    fn credentials(name: &str) -> IceCredentials {
        IceCredentials {
            ufrag: name.into(),
            pwd: format!("{name}-password-password"),
        }
    }

    /// Where datagrams went, and the kind of each.
    fn drain(outbox: &mut Outbox) -> Vec<(Path, u16)> {
        drain_checks(outbox)
            .into_iter()
            .map(|(path, kind, _)| (path, kind))
            .collect()
    }

    /// The same with the transaction of each.
    fn drain_checks(outbox: &mut Outbox) -> Vec<(Path, u16, TransactionId)> {
        let mut seen = Vec::new();
        while let Some(transmit) = outbox.pop() {
            for datagram in transmit.datagrams() {
                let kind = u16::from_be_bytes([datagram[0], datagram[1]]);
                let transaction = *datagram[8..].first_chunk().expect("a whole header");
                seen.push((transmit.path, kind, transaction));
            }
        }
        seen
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        Instant::now()
    }

    const CHECK: u16 = 0x0001;

    /// An agent whose client is at the first of all paths, and proved it by the handshake.
    fn connected(mode: IceMode) -> (IceAgent, IceCredentials, IceCredentials, Instant, Outbox) {
        let (now, local, remote, mut outbox) =
            (start(), credentials("local"), credentials("client"), Outbox::default());
        let mut agent = IceAgent::new(mode, local.clone(), now);
        agent.set_remote(remote.clone());
        assert!(agent.handle(now, path(1), &request(&local, true, false), &mut outbox));
        assert_eq!(agent.poll_event(), Some(IceEvent::Connected));
        agent.handshake_sent(path(1));
        agent.handshake_done(now);
        assert_eq!(agent.media_path(), Some(path(1)));
        drain(&mut outbox);
        (agent, local, remote, now, outbox)
    }

    fn answer(transaction: &TransactionId, remote: &IceCredentials) -> Vec<u8> {
        let mut answer = Vec::new();
        stun::write_success(&mut answer, transaction, path(9).remote, &remote.pwd);
        answer
    }

    #[test]
    fn the_latest_nomination_wins_once_the_client_answers_from_there() {
        let (mut agent, local, remote, mut now, mut outbox) = connected(IceMode::Lite);
        for (port, checks) in [(2, 1), (3, 1), (2, 0), (1, 0)] {
            now += PACE;
            assert!(agent.handle(now, path(port), &request(&local, true, false), &mut outbox));
            let sent: Vec<_> = drain_checks(&mut outbox)
                .into_iter()
                .filter(|sent| sent.1 == CHECK)
                .collect();
            assert_eq!(sent.len(), checks, "proven paths need no check: {port}");
            for (to, _, transaction) in sent {
                assert_eq!(to, path(port));
                assert_ne!(agent.media_path(), Some(path(port)), "not before the answer");
                assert!(agent.handle(now, path(port), &answer(&transaction, &remote), &mut outbox));
            }
            assert_eq!(agent.poll_event(), Some(IceEvent::PathChanged));
            assert_eq!(
                (agent.media_path(), agent.send_path()),
                (Some(path(port)), Some(path(port)))
            );
        }
        // Proof of consent lapses.
        now += CONSENT_LIFETIME;
        agent.heard(now, &path(1));
        assert!(agent.handle(now, path(2), &request(&local, true, false), &mut outbox));
        assert_eq!(agent.media_path(), Some(path(1)));
        assert!(drain(&mut outbox).contains(&(path(2), CHECK)));
    }

    #[test]
    fn a_nomination_from_a_forged_address_moves_nothing_and_costs_little() {
        let (mut agent, local, remote, begun, mut outbox) = connected(IceMode::Lite);
        let mut checks = 0;
        // A second of nominations from five thousand addresses that are somebody else's.
        for step in 0..5000_u32 {
            let now = begun + Duration::from_micros(200) * step;
            let victim = path(1000 + step as u16);
            assert!(agent.handle(now, victim, &request(&local, true, false), &mut outbox));
            agent.handle_timeout(now, &mut outbox);
            checks += drain(&mut outbox).iter().filter(|(_, kind)| *kind == CHECK).count();
            assert_eq!(agent.media_path(), Some(path(1)));
        }
        assert!(checks <= 21, "{checks} checks in a second");
        // What the client answers from elsewhere proves nothing, and neither does an invented answer.
        let now = begun + Duration::from_secs(2);
        assert!(agent.handle(now, path(77), &request(&local, true, false), &mut outbox));
        let (_, _, transaction) = drain_checks(&mut outbox)
            .into_iter()
            .find(|sent| sent.1 == CHECK)
            .expect("due");
        assert!(!agent.handle(now, path(1), &answer(&transaction, &remote), &mut outbox));
        assert!(!agent.handle(now, path(77), &answer(&[3; 12], &remote), &mut outbox));
        assert_eq!(agent.media_path(), Some(path(1)));
        // Nobody answers: after a few attempts the check is given up.
        let mut later = now;
        for _ in 0..100 {
            later += CHECK_INTERVAL;
            agent.heard(later, &path(1));
            agent.handle_timeout(later, &mut outbox);
        }
        let attempts = drain(&mut outbox).iter().filter(|(_, kind)| *kind == CHECK).count();
        assert_eq!(attempts, usize::from(CHECK_ATTEMPTS) - 1);
        assert_eq!(agent.media_path(), Some(path(1)));
    }

    #[test]
    fn media_waits_for_the_first_path_to_be_proven() {
        let (now, local, mut outbox) = (start(), credentials("local"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Lite, local.clone(), now);
        assert!(agent.handle(now, path(1), &request(&local, false, false), &mut outbox));
        assert_eq!(agent.poll_event(), None, "a check without a nomination selects nothing");
        assert_eq!(agent.send_path(), Some(path(1)), "but the handshake may go there");
        assert_eq!(agent.media_path(), None);
        // A client that finishes a handshake whose parts went to several places may have nominated somebody else's.
        agent.handshake_sent(path(1));
        assert!(agent.handle(now, path(2), &request(&local, true, false), &mut outbox));
        agent.handshake_sent(path(2));
        agent.handshake_done(now);
        assert_eq!(agent.media_path(), None);
        assert!(!drain(&mut outbox).iter().any(|(_, kind)| *kind == CHECK));
        let remote = credentials("client");
        agent.set_remote(remote.clone());
        agent.handle_timeout(now, &mut outbox);
        let (to, _, transaction) = drain_checks(&mut outbox)[0];
        assert_eq!(to, path(2));
        assert!(agent.handle(now, path(2), &answer(&transaction, &remote), &mut outbox));
        assert_eq!(agent.media_path(), Some(path(2)));
    }

    #[test]
    fn a_connection_of_tcp_proves_itself() {
        let (mut agent, local, _, now, mut outbox) = connected(IceMode::Lite);
        let tcp = Path {
            carrier: Carrier::Tcp,
            ..path(2)
        };
        assert!(agent.handle(now, tcp, &request(&local, true, false), &mut outbox));
        assert_eq!(agent.media_path(), Some(tcp));
        assert!(!drain(&mut outbox).iter().any(|(_, kind)| *kind == CHECK));
    }

    #[test]
    fn wrong_passwords_and_strangers_get_no_answer() {
        let (now, local, mut outbox) = (start(), credentials("local"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Lite, local.clone(), now);
        let wrong = IceCredentials {
            ufrag: local.ufrag.clone(),
            pwd: "guess".into(),
        };
        assert!(!agent.handle(now, path(1), &request(&wrong, true, false), &mut outbox));
        assert!(!agent.handle(now, path(1), &request(&credentials("other"), true, false), &mut outbox));
        assert!(drain(&mut outbox).is_empty());
        assert_eq!(agent.send_path(), None);
        assert!(agent.handle(now, path(1), &request(&local, true, true), &mut outbox));
        assert_eq!(
            drain(&mut outbox),
            [(path(1), 0x0111)],
            "a second controlled agent is told of the conflict"
        );
    }

    #[test]
    fn silence_disconnects_then_fails_and_any_sign_of_life_recovers() {
        let (now, local, mut outbox) = (start(), credentials("local"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Lite, local.clone(), now);
        agent.handle(now, path(1), &request(&local, true, false), &mut outbox);
        assert_eq!(agent.poll_event(), Some(IceEvent::Connected));
        let later = now + Duration::from_secs(9);
        agent.heard(later, &path(1));
        agent.handle_timeout(now + DISCONNECTED_AFTER, &mut outbox);
        assert_eq!(agent.poll_event(), None, "media refreshed consent");
        agent.handle_timeout(later + DISCONNECTED_AFTER, &mut outbox);
        assert_eq!(agent.poll_event(), Some(IceEvent::Disconnected));
        agent.heard(later + DISCONNECTED_AFTER, &path(1));
        assert_eq!(agent.poll_event(), Some(IceEvent::Connected));
        let quiet = later + DISCONNECTED_AFTER * 2;
        agent.handle_timeout(quiet, &mut outbox);
        agent.poll_event();
        agent.handle_timeout(quiet + FAILED_AFTER, &mut outbox);
        assert!(matches!(agent.poll_event(), Some(IceEvent::Failed(_))));
        assert_eq!(agent.poll_timeout(), None);
    }

    #[test]
    fn a_restart_keeps_the_old_session_until_the_new_one_nominates() {
        let (mut agent, old, _, now, mut outbox) = connected(IceMode::Lite);
        let (new, remote) = (credentials("new"), credentials("again"));
        agent.restart(now, new.clone(), remote.clone());
        assert_eq!(agent.media_path(), Some(path(1)), "media continues");
        assert!(agent.handle(now, path(1), &request(&old, false, false), &mut outbox));
        let later = now + PACE;
        assert!(agent.handle(later, path(2), &request(&new, true, false), &mut outbox));
        let (_, _, transaction) = drain_checks(&mut outbox)
            .into_iter()
            .find(|sent| sent.1 == CHECK)
            .expect("a check is due");
        assert!(agent.handle(later, path(2), &answer(&transaction, &remote), &mut outbox));
        assert_eq!(agent.poll_event(), Some(IceEvent::PathChanged));
        assert_eq!(agent.media_path(), Some(path(2)));
        assert!(
            !agent.handle(later, path(1), &request(&old, true, false), &mut outbox),
            "the old session is over"
        );
    }

    #[test]
    fn full_mode_checks_where_checks_came_from_and_accepts_only_their_answers() {
        let (mut agent, local, remote, now, mut outbox) = connected(IceMode::Full);
        let now = now + PACE;
        assert!(agent.handle(now, path(5), &request(&local, false, false), &mut outbox));
        let mut sent = Vec::new();
        while let Some(transmit) = outbox.pop() {
            sent.extend(transmit.datagrams().map(<[u8]>::to_vec));
        }
        let check = sent
            .iter()
            .filter_map(|datagram| Message::parse(datagram))
            .find(|message| message.class == Class::Request)
            .expect("a check is due");
        assert_eq!(check.username, Some(("client", "local")));
        assert!(check.verify(&remote.pwd));
        let answer = answer(&check.transaction, &remote);
        assert!(
            !agent.handle(now, path(6), &answer, &mut outbox),
            "not from where the check went"
        );
        assert!(agent.handle(now, path(5), &answer, &mut outbox));
        assert!(agent.is_proven(now, &path(5)));
        assert!(
            !agent.handle(now, path(5), &answer, &mut outbox),
            "each check is answered once"
        );
        // Consent to the selected path is asked for again and again, however often the client nominates it.
        let mut later = now;
        for _ in 0..10 {
            later += Duration::from_millis(500);
            agent.handle(later, path(1), &request(&local, true, false), &mut outbox);
            agent.handle_timeout(later, &mut outbox);
        }
        assert!(drain(&mut outbox).contains(&(path(1), CHECK)));
    }
}
