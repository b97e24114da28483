//! The real process: its configuration file, its start on free loopback ports, its end by SIGTERM or SIGKILL, and its
//! log, whose end every failing test shows.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, OpenOptions},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{Client, Database, Engine, environment, free_port, free_ports};

/// The name of every server under test.
pub(crate) const SERVER_NAME: &str = "longhouse.test";

/// How long a start may take before the test fails. The product promises one second; a busy build machine is slower.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How many ports each relay has for peers outside.
const RELAY_PORTS: u16 = 32;

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// What a server is started with: the settings every test wants, and those the test adds.
#[derive(Debug)]
pub struct Setup {
    engine: Engine,
    settings: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
}

impl Setup {
    /// Open registration, no rate limits, fast password hashes, everything on loopback.
    pub fn new(engine: Engine) -> Self {
        let setup = Self {
            engine,
            settings: BTreeMap::new(),
        };
        setup
            .set("", "server_name", format!("{SERVER_NAME:?}"))
            .set("registration", "mode", "\"open\"")
            .set("rate_limits", "enabled", "false")
            .set("auth", "password_hash", "\"fast\"")
    }

    /// Sets one key of one section (`""` is the top level) to a TOML value.
    pub fn set(mut self, section: &'static str, key: &'static str, value: impl Into<String>) -> Self {
        self.settings.entry(section).or_default().insert(key, value.into());
        self
    }

    /// Sets one key unless the test has set it.
    fn or_set(self, section: &'static str, key: &'static str, value: impl Into<String>) -> Self {
        let is_set = self.settings.get(section).is_some_and(|keys| keys.contains_key(key));
        if is_set { self } else { self.set(section, key, value) }
    }

    /// Takes one key out again.
    pub fn unset(mut self, section: &'static str, key: &'static str) -> Self {
        if let Some(keys) = self.settings.get_mut(section) {
            keys.remove(key);
        }
        self
    }

    /// The configuration file.
    fn toml(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.settings {
            if !section.is_empty() {
                writeln!(text, "\n[{section}]").expect("writing to a string cannot fail");
            }
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").expect("writing to a string cannot fail");
            }
        }
        text
    }

    /// Starts the server and waits until it answers.
    pub async fn start(self) -> Server {
        let mut server = self.prepare();
        server.launch().await;
        server
    }

    /// Writes the configuration and makes the database; nothing runs yet.
    pub fn prepare(self) -> Server {
        let directory = TempDir::new().expect("the temporary directory is writable");
        let database = Database::fresh(self.engine);
        let (http, turn, sfu, metrics) = (free_port(), free_port(), free_port(), free_port());
        let relay = free_ports(RELAY_PORTS);
        let relay_ports = relay..=relay + RELAY_PORTS - 1;
        let data = directory.path().join("data");
        let mut setup = self
            .set("", "data_dir", format!("{:?}", data.display().to_string()))
            .set("listen", "addresses", format!("[\"127.0.0.1:{http}\"]"))
            .or_set("listen", "public_url", format!("\"http://127.0.0.1:{http}\""))
            .set("turn", "listen", format!("[\"127.0.0.1:{turn}\"]"))
            .set(
                "turn",
                "relay_ports",
                format!("\"{}-{}\"", relay_ports.start(), relay_ports.end()),
            )
            .set("metrics", "address", format!("\"127.0.0.1:{metrics}\""))
            .set("sfu", "udp_listen", format!("\"127.0.0.1:{sfu}\""))
            .set("sfu", "tcp_listen", format!("\"127.0.0.1:{sfu}\""))
            .set("sfu", "offer_loopback", "true");
        if let Some(url) = database.url() {
            setup = setup.or_set("database", "url", format!("{url:?}"));
        }
        let config = directory.path().join("longhouse.toml");
        fs::write(&config, setup.toml()).expect("the temporary directory is writable");
        let log = directory.path().join("longhouse.log");
        Server {
            process: None,
            config,
            data,
            log,
            http,
            turn,
            relay_ports,
            metrics,
            _database: database,
            directory,
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Whether its exit status was 0.
    pub success: bool,
}

/// A server process with its data directory and database. Dropping it kills the process and removes both.
#[derive(Debug)]
pub struct Server {
    process: Option<Child>,
    config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    http: u16,
    turn: u16,
    relay_ports: RangeInclusive<u16>,
    metrics: u16,
    _database: Database,
    directory: TempDir,
}

impl Server {
    /// The server on one engine with the usual settings.
    pub async fn start(engine: Engine) -> Self {
        Setup::new(engine).start().await
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// The server's name, the part of user ids after the colon.
    pub fn name(&self) -> &'static str {
        SERVER_NAME
    }

    /// The port of the STUN/TURN relay, UDP and TCP.
    pub fn turn_port(&self) -> u16 {
        self.turn
    }

    /// The UDP ports the relay may open towards peers outside.
    pub fn relay_ports(&self) -> RangeInclusive<u16> {
        self.relay_ports.clone()
    }

    /// Where the configuration puts the metrics, which are off unless the test turns them on.
    pub fn metrics_url(&self) -> String {
        format!("http://127.0.0.1:{}/metrics", self.metrics)
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A client that is not signed in.
    pub fn client(&self) -> Client {
        Client::new(self.base_url())
    }

    /// The process id of the running server.
    pub fn pid(&self) -> u32 {
        let process = self.process.as_ref().expect("the server was started and not yet ended");
        process.id().expect("a process that was not waited for has an id")
    }

    /// Starts the process on the data it had, and waits until it answers.
    pub async fn launch(&mut self) {
        self.spawn();
        if timeout(START_LIMIT, self.answering()).await.is_err() {
            panic!(
                "the server does not answer at {} within {START_LIMIT:?}",
                self.base_url()
            );
        }
    }

    /// Starts the process on the data it had.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("the log file is writable");
        let process = command_line(self.directory.path())
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .stdout(log.try_clone().expect("a file handle can be duplicated"))
            .stderr(log)
            .spawn()
            .expect("the longhouse binary can be started");
        self.process = Some(process);
    }

    async fn answering(&mut self) {
        let client = self.client();
        loop {
            if client.answers().await {
                return;
            }
            let process = self.process.as_mut().expect("the server was just started");
            if let Some(status) = process.try_wait().expect("a child process can be asked for its status") {
                self.process = None;
                panic!("the server ended with {status} instead of starting");
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the process with SIGTERM and says how it ended.
    pub async fn stop(&mut self) -> Ended {
        self.terminate().await;
        self.ended().await
    }

    /// Tells the process to end (SIGTERM), and does not wait for that.
    pub async fn terminate(&self) {
        let pid = self.pid().to_string();
        let kill = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .expect("kill can be started");
        assert!(
            kill.success(),
            "the server's process {pid} is gone before it is told to stop"
        );
    }

    /// Waits for a process that was told to end.
    pub async fn ended(&mut self) -> Ended {
        let mut process = self.process.take().expect("the server was started and not yet ended");
        let status = timeout(STOP_LIMIT, process.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("the server does not stop within {STOP_LIMIT:?} after SIGTERM"));
        Ended {
            success: status.expect("a child process can be waited for").success(),
        }
    }

    /// Ends the process with SIGKILL, as a power cut would.
    pub async fn kill(&mut self) {
        let mut process = self.process.take().expect("the server was started and not yet ended");
        process.kill().await.expect("a running child process can be killed");
    }

    /// An orderly stop and a new start on the same data.
    pub async fn restart(&mut self) {
        let ended = self.stop().await;
        assert!(ended.success, "the server ended badly after SIGTERM");
        self.launch().await;
    }

    /// Runs one administration command with this server's configuration.
    pub async fn admin(&self, arguments: &[&str]) -> Output {
        command_line(self.directory.path())
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .output()
            .await
            .expect("the longhouse binary can be started")
    }

    /// Everything the process has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    #[expect(
        clippy::print_stderr,
        reason = "the test runner captures it and shows it with the failure it explains"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the end of the server's log\n{}", tail(&self.log(), 60));
            if std::env::var_os("LONGHOUSE_TEST_KEEP").is_some() {
                let kept = std::env::temp_dir().join(format!("longhouse-log-{}", self.http));
                let copied = fs::copy(&self.log, &kept).is_ok();
                eprintln!(
                    "---- the whole log {} {}",
                    if copied { "is at" } else { "cannot be kept at" },
                    kept.display()
                );
            }
        }
    }
}

/// The `longhouse` command in a working directory of its own, without the environment's settings.
pub fn command_line(directory: &Path) -> Command {
    program(environment::binary(), directory)
}

/// Any program in a working directory of its own, without the environment's settings for the server.
pub fn program(name: impl AsRef<OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(name);
    command.current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LONGHOUSE_") {
            command.env_remove(name);
        }
    }
    command
}

/// The last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
