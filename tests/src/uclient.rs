//! coturn's own client, `turnutils_uclient`, with credentials that the homeserver hands to a signed-in user.

use std::{process::Stdio, time::Duration};

use reqwest::Method;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

use crate::{Client, UdpEcho};

/// How long one run may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The client, told where the relay and the peer are.
#[derive(Debug)]
pub struct Uclient {
    arguments: Vec<String>,
}

impl Uclient {
    /// With the credentials that `user` is offered, for the relay on `port` of 127.0.0.1.
    pub async fn with_credentials_of(user: &Client, port: u16) -> Self {
        let offered = user.ask(Method::GET, "/_matrix/client/v3/voip/turnServer", None).await;
        let field = |name: &str| {
            offered[name]
                .as_str()
                .unwrap_or_else(|| panic!("no {name} in {offered}"))
                .to_owned()
        };
        let port = port.to_string();
        let arguments = ["-u", &field("username"), "-w", &field("password"), "-p", &port];
        Self {
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    /// Relays to this peer.
    pub fn towards(mut self, peer: &UdpEcho) -> Self {
        let (ip, port) = (peer.ip().to_string(), peer.port().to_string());
        self.arguments.extend(["-e", &ip, "-r", &port].map(str::to_owned));
        self
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new("turnutils_uclient");
        command
            .args(&self.arguments)
            .args(options)
            .arg("127.0.0.1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Sends 50 messages from each of four clients.
    ///
    /// # Panics
    /// When the client fails, nothing comes back, or anything is lost.
    pub async fn loses_nothing(&self, options: &[&str]) {
        let load = ["-n", "50", "-m", "4", "-l", "400", "-z", "10"];
        let (success, text) = self.run(&[&load, options].concat()).await;
        assert!(success, "turnutils_uclient {options:?} failed:\n{text}");
        assert!(
            text.contains("Total lost packets 0 (0.000000%)"),
            "turnutils_uclient {options:?} lost packets:\n{text}"
        );
        let last = text
            .lines()
            .rfind(|line| line.contains("tot_recv_msgs="))
            .unwrap_or_else(|| panic!("turnutils_uclient {options:?} counts no messages:\n{text}"));
        assert!(
            !last.ends_with("tot_recv_msgs=0"),
            "turnutils_uclient {options:?} received nothing:\n{text}"
        );
    }

    /// Sends messages from one client, and some come back: over TLS this client does not take apart what the relay puts
    /// into one record, and counts the rest as lost.
    ///
    /// # Panics
    /// When the client fails or nothing comes back.
    pub async fn hears_back(&self, options: &[&str]) {
        let (success, text) = self.run(&[&["-n", "20", "-m", "1", "-c"], options].concat()).await;
        assert!(success, "turnutils_uclient {options:?} failed:\n{text}");
        let heard = text.lines().rfind(|line| line.contains("tot_recv_msgs="));
        assert!(
            heard.is_some_and(|line| !line.ends_with("tot_recv_msgs=0")),
            "turnutils_uclient {options:?} received nothing:\n{text}"
        );
    }

    /// Runs until the client has printed every one of `parts`, in this order, and ends it then: refused, it tries on and
    /// on.
    ///
    /// # Panics
    /// When the client ends or is silent before.
    pub async fn prints(&self, options: &[&str], parts: &[&str]) {
        let mut child = self
            .command(&[&["-v", "-n", "1", "-m", "1", "-c"], options].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("turnutils_uclient (package coturn) can be started");
        let mut lines = BufReader::new(child.stdout.take().expect("the standard output is piped")).lines();
        let mut printed = Vec::new();
        let mut parts = parts.iter().peekable();
        let reading = async {
            while let Some(part) = parts.peek() {
                let line = lines.next_line().await.expect("the client prints text");
                let Some(line) = line else { break };
                if line.contains(**part) {
                    parts.next();
                }
                printed.push(line);
            }
        };
        let in_time = timeout(LIMIT, reading).await.is_ok();
        assert!(
            in_time && parts.peek().is_none(),
            "turnutils_uclient {options:?} never printed {:?}:\n{}",
            parts.peek(),
            printed.join("\n")
        );
    }

    async fn run(&self, options: &[&str]) -> (bool, String) {
        let output = timeout(LIMIT, self.command(options).output())
            .await
            .unwrap_or_else(|_| panic!("turnutils_uclient {options:?} does not end within {LIMIT:?}"));
        let output = output.expect("turnutils_uclient (package coturn) can be started");
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    }
}
