//! One client script in Node.js or Python: told its parameters as one JSON argument, it reports facts as JSON lines on
//! standard output and hears commands as JSON lines on standard input.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use crate::{environment, server::tail};

/// How long a script may take to report its next fact, unless the test says otherwise.
const PATIENCE: Duration = Duration::from_secs(90);

/// Held by a test whose browsers encode and decode video: two such calls at a time starve each other on a small machine.
pub async fn one_call_at_a_time() -> MutexGuard<'static, ()> {
    static CALL: Mutex<()> = Mutex::const_new(());
    CALL.lock().await
}

/// A running script.
#[derive(Debug)]
pub struct Script {
    name: String,
    child: Child,
    commands: ChildStdin,
    facts: Lines<BufReader<ChildStdout>>,
    reported: Vec<String>,
    diagnostics: NamedTempFile,
    patience: Duration,
}

impl Script {
    /// Starts `tests/js/<name>`.
    pub fn node(name: &str, parameters: &Value) -> Self {
        let scripts = environment::node_scripts();
        Self::start(name, Path::new("node"), &scripts, parameters)
    }

    /// Starts `tests/py/<name>`.
    pub fn python(name: &str, parameters: &Value) -> Self {
        let scripts = environment::repository().join("tests/py");
        Self::start(name, &environment::python(), &scripts, parameters)
    }

    fn start(name: &str, interpreter: &Path, directory: &Path, parameters: &Value) -> Self {
        let diagnostics = NamedTempFile::new().expect("the temporary directory is writable");
        let stderr = File::create(diagnostics.path()).expect("a file just made can be opened");
        let mut child = Command::new(interpreter)
            .arg(directory.join(name))
            .arg(parameters.to_string())
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", interpreter.display()));
        let commands = child.stdin.take().expect("the standard input is piped");
        let facts = BufReader::new(child.stdout.take().expect("the standard output is piped")).lines();
        Self {
            name: name.to_owned(),
            child,
            commands,
            facts,
            reported: Vec::new(),
            diagnostics,
            patience: PATIENCE,
        }
    }

    /// Sets how long the script may take to report each fact.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The script's next fact, which must be `event`.
    ///
    /// # Panics
    /// When the script reports something else, ends, or is silent for longer than the patience.
    pub async fn expect(&mut self, event: &str) -> Value {
        let fact = match timeout(self.patience, self.facts.next_line()).await {
            Err(_) => panic!(
                "{} is silent for {:?} instead of reporting {event:?}",
                self.name, self.patience
            ),
            Ok(Err(error)) => panic!("{}: its report cannot be read: {error}", self.name),
            Ok(Ok(None)) => panic!("{} ended instead of reporting {event:?}", self.name),
            Ok(Ok(Some(line))) => line,
        };
        self.reported.push(fact.clone());
        let fact: Value = serde_json::from_str(&fact)
            .unwrap_or_else(|error| panic!("{} reported {fact:?}, which is not JSON: {error}", self.name));
        if fact["event"] == "failed" {
            panic!(
                "{} failed: {}",
                self.name,
                fact["reason"].as_str().unwrap_or("without a reason")
            );
        }
        assert_eq!(fact["event"], event, "{} reported {fact}", self.name);
        fact
    }

    /// Tells the script to go on.
    pub async fn tell(&mut self, command: &str) {
        self.tell_with(json!({ "command": command })).await;
    }

    /// Tells the script to go on, with fields beside `command`.
    pub async fn tell_with(&mut self, command: Value) {
        let line = format!("{command}\n");
        self.commands
            .write_all(line.as_bytes())
            .await
            .expect("the script still listens");
        self.commands.flush().await.expect("the script still listens");
    }

    /// Waits for the script to report that it is done and to end well.
    pub async fn finish(mut self) {
        self.expect("done").await;
        let status = timeout(self.patience, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} does not end after its last report", self.name));
        assert!(
            status.expect("a child process can be waited for").success(),
            "{} ended badly",
            self.name
        );
    }
}

impl Drop for Script {
    #[expect(
        clippy::print_stderr,
        reason = "the test runner captures it and shows it with the failure it explains"
    )]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("---- {}: its reports", self.name);
        for line in &self.reported {
            eprintln!("{line}");
        }
        let diagnostics = fs::read_to_string(self.diagnostics.path()).unwrap_or_default();
        eprintln!(
            "---- {}: the end of its standard error\n{}",
            self.name,
            tail(&diagnostics, 60)
        );
    }
}
