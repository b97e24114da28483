//! The ICE agent of one connection, always in the controlled role at a public address (RFC 8445): it answers
//! connectivity checks, follows the client's latest nomination, and watches that the client is still there. Told the
//! time; knows no socket and nothing of what flows over the paths.

use std::net::SocketAddr;
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
/// Pace and number of transmissions of one check (RFC 8445 §14, RFC 8489 §6.2.1 shortened).
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
const CHECK_ATTEMPTS: u8 = 7;
/// Consent checks on the selected path while the agent sends checks (RFC 7675 §5.1).
const CONSENT_INTERVAL: Duration = Duration::from_secs(4);

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
    /// Answer only (RFC 8445 §2.5); say `a=ice-lite` in the SDP.
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
    /// A check of our own over it was answered.
    proven: bool,
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
    selected: Option<Path>,
    checks: Vec<Outstanding>,
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
            checks: Vec::new(),
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
        self.started = now;
        if self.liveness != Liveness::Connected {
            self.liveness = Liveness::Connecting;
        }
        self.last_heard = now;
    }

    /// In full mode: also check this address of the client, learned by signalling.
    pub(super) fn add_remote_candidate(&mut self, now: Instant, address: SocketAddr) {
        if self.mode == IceMode::Full {
            self.check(
                now,
                Path {
                    carrier: Carrier::Udp,
                    remote: address,
                    local: None,
                },
            );
        }
    }

    /// Where to send: the nominated path, or before a nomination the path last heard of.
    pub(super) fn send_path(&self) -> Option<Path> {
        self.selected
            .or_else(|| self.paths.iter().max_by_key(|p| p.last_heard).map(|p| p.path))
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
        self.checks.swap_remove(at);
        if message.class == Class::Success {
            self.learn(now, path);
            self.heard(now, &path);
            if let Some(known) = self.paths.iter_mut().find(|p| p.path == path) {
                known.proven = true;
            }
        }
        true
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
                .filter(|(_, p)| Some(p.path) != self.selected)
                .min_by_key(|(_, p)| p.last_heard)
        {
            self.paths.swap_remove(oldest);
        }
        self.paths.push(KnownPath {
            path,
            last_heard: now,
            proven: false,
        });
    }

    fn nominate(&mut self, now: Instant, path: Path) {
        let before = self.selected.replace(path);
        if self.liveness == Liveness::Connecting {
            self.liveness = Liveness::Connected;
            self.event = Some(IceEvent::Connected);
        } else if before != Some(path) {
            self.event = Some(IceEvent::PathChanged);
        }
        if self.mode == IceMode::Full {
            self.next_consent = Some(now + CONSENT_INTERVAL);
        }
    }

    /// A triggered check (RFC 8445 §7.3.1.4), unless this path was proven from our side already.
    fn check_once(&mut self, now: Instant, path: Path) {
        let proven = self.paths.iter().any(|p| p.path == path && p.proven);
        if !proven && !self.checks.iter().any(|c| c.path == path) {
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
            .and_then(|_| self.checks.iter().map(|c| c.next).min());
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
            self.next_consent = None;
            return;
        }
        if self.next_consent.is_some_and(|at| at <= now) {
            self.next_consent = Some(now + CONSENT_INTERVAL);
            if let Some(path) = self.selected {
                self.check(now, path);
            }
        }
        self.send_checks(now, outbox);
    }

    fn send_checks(&mut self, now: Instant, outbox: &mut Outbox) {
        let Some(remote) = &self.remote else { return };
        self.checks.retain_mut(|check| {
            if check.next > now {
                return true;
            }
            if check.left == 0 {
                return false;
            }
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
    use crate::transport::stun::testing::request;

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

    fn drain(outbox: &mut Outbox) -> Vec<(Path, u16)> {
        let mut seen = Vec::new();
        while let Some(transmit) = outbox.pop() {
            for datagram in transmit.datagrams() {
                seen.push((transmit.path, u16::from_be_bytes([datagram[0], datagram[1]])));
            }
        }
        seen
    }

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin for simulated time")]
        Instant::now()
    }

    #[test]
    fn the_latest_nomination_wins() {
        let (now, local, mut outbox) = (start(), credentials("local"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Lite, local.clone(), now);
        assert!(agent.handle(now, path(1), &request(&local, false, false), &mut outbox));
        assert_eq!(agent.poll_event(), None, "a check without a nomination selects nothing");
        assert_eq!(agent.send_path(), Some(path(1)), "but answers may go there");
        for (port, event) in [
            (1, IceEvent::Connected),
            (2, IceEvent::PathChanged),
            (1, IceEvent::PathChanged),
        ] {
            assert!(agent.handle(now, path(port), &request(&local, true, false), &mut outbox));
            assert_eq!(agent.poll_event(), Some(event));
            assert_eq!(agent.send_path(), Some(path(port)));
        }
        assert!(drain(&mut outbox).iter().all(|(_, kind)| *kind == 0x0101));
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
        let (now, old, new, mut outbox) = (start(), credentials("old"), credentials("new"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Lite, old.clone(), now);
        agent.handle(now, path(1), &request(&old, true, false), &mut outbox);
        agent.poll_event();
        agent.restart(now, new.clone(), credentials("client"));
        assert_eq!(agent.send_path(), Some(path(1)), "media continues");
        assert!(agent.handle(now, path(1), &request(&old, false, false), &mut outbox));
        assert!(agent.handle(now, path(2), &request(&new, true, false), &mut outbox));
        assert_eq!(agent.poll_event(), Some(IceEvent::PathChanged));
        assert!(
            !agent.handle(now, path(1), &request(&old, true, false), &mut outbox),
            "the old session is over"
        );
    }

    #[test]
    fn full_mode_sends_checks_and_accepts_only_their_answers() {
        let (now, local, remote, mut outbox) =
            (start(), credentials("local"), credentials("client"), Outbox::default());
        let mut agent = IceAgent::new(IceMode::Full, local.clone(), now);
        agent.set_remote(remote.clone());
        agent.add_remote_candidate(now, path(5).remote);
        agent.handle_timeout(now, &mut outbox);
        let sent = outbox.pop().expect("a check is due").contents.to_vec();
        let check = Message::parse(&sent).expect("well-formed");
        assert_eq!(check.username, Some(("client", "local")));
        assert!(check.verify(&remote.pwd));
        let mut answer = Vec::new();
        stun::write_success(&mut answer, &check.transaction, path(9).remote, &remote.pwd);
        assert!(
            !agent.handle(now, path(6), &answer, &mut outbox),
            "not from where the check went"
        );
        assert!(agent.handle(now, path(5), &answer, &mut outbox));
        assert!(agent.knows(&path(5)));
        assert!(
            !agent.handle(now, path(5), &answer, &mut outbox),
            "each check is answered once"
        );
    }
}
