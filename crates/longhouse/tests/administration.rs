//! Administration through the built binary, while the server is stopped and while it runs, and its life as a process:
//! ready, one at a time, gone within a second.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The settings every command of a test shares: its own directory, free ports, nothing from the environment.
struct Site {
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        let text = format!(
            "server_name = \"example.test\"\n\
             [listen]\naddresses = [\"{address}\"]\npublic_url = \"http://{address}\"\n\
             [auth]\npassword_hash = \"fast\"\n\
             [turn]\nlisten = [\"127.0.0.1:0\"]\n\
             [sfu]\nudp_listen = \"127.0.0.1:0\"\ntcp_listen = \"127.0.0.1:0\"\n"
        );
        std::fs::write(directory.path().join("longhouse.toml"), text).expect("written");
        Self { directory, address }
    }

    fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhouse"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("LONGHOUSE_")) {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(self.directory.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("runs")
    }

    /// Runs a command that must succeed, and answers what it printed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail, and answers what it complained about.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn start(&self) -> Running<'_> {
        let log = std::fs::File::create(self.directory.path().join("log")).expect("created");
        let mut command = self.command(&["serve"]);
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let running = Running { process, site: self };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.run(&["ready"]).status.success() {
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
        }
        running
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// One request over a connection of its own: status and body.
    fn http(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let status = answer[9..12].parse().expect("a status line");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Running<'a> {
    process: Child,
    site: &'a Site,
}

impl Running<'_> {
    /// SIGTERM, and how long the end took.
    fn stop(mut self) -> Duration {
        let started = Instant::now();
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill runs").success());
        let status = self.process.wait().expect("ends");
        assert!(status.success(), "{}", self.site.log());
        started.elapsed()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Already gone after `stop`.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Every administration command, first with no server, then with one.
#[test]
fn accounts_and_tokens_are_managed_with_and_without_a_server() {
    let site = Site::new();
    let password_file = site.directory.path().join("password");
    std::fs::write(&password_file, "correct horse battery\n").expect("written");
    let password_file = password_file.to_str().expect("UTF-8 path");
    let mut running = None;
    for name in ["alice", "bob"] {
        let id = format!("@{name}:example.test");
        assert_eq!(
            site.ok(&["user", "add", name, "--password-file", password_file]),
            format!("{id}\n")
        );
        assert!(
            site.fails(&["user", "add", name, "--generate-password"])
                .contains("taken"),
            "the name is in use"
        );
        site.ok(&["user", "admin", name, "on"]);
        assert!(site.ok(&["user", "list"]).contains(&format!("{id}\tadmin\n")));
        site.ok(&["user", "admin", &id, "off"]);
        assert!(site.ok(&["user", "list"]).contains(&format!("{id}\n")));
        assert!(
            site.ok(&["user", "password", name, "--generate-password"])
                .starts_with("password: ")
        );
        assert!(
            !site
                .fails(&["user", "password", "nobody", "--generate-password"])
                .is_empty()
        );
        site.ok(&["user", "deactivate", name]);
        assert!(site.ok(&["user", "list"]).contains(&format!("{id}\tdeactivated\n")));

        let token = site.ok(&["registration-token", "create", "--uses", "3", "--expires", "7d"]);
        let token = token.trim();
        assert!(
            site.ok(&["registration-token", "list"])
                .contains(&format!("{token}\t3 uses left\texpires in "))
        );
        site.ok(&["registration-token", "revoke", token]);
        assert!(!site.ok(&["registration-token", "list"]).contains(token));
        running.get_or_insert_with(|| site.start());
    }
}

#[test]
fn a_password_comes_from_standard_input_or_not_at_all() {
    let site = Site::new();
    assert!(site.fails(&["user", "add", "alice"]).contains("--password-file"));
    let mut child = site
        .command(&["user", "add", "alice", "--admin", "--password-file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"correct horse battery\n")
        .expect("written");
    assert!(child.wait().expect("ends").success());
    assert!(site.ok(&["user", "list"]).contains("@alice:example.test\tadmin"));
}

#[test]
fn the_first_administrator_is_made_by_the_link_once() {
    let site = Site::new();
    let running = site.start();
    let file = site.data().join("first-admin.link");
    let link = std::fs::read_to_string(&file).expect("the link is in a file");
    let token = link
        .trim()
        .split_once("#first-admin=")
        .expect("the token is in the fragment")
        .1
        .to_owned();
    assert!(
        !site.log().contains(&token),
        "the link is a secret and must not be logged"
    );
    let needed = || site.http("GET", "/_longhouse/status", &json!({})).1["needs_first_administrator"].clone();
    assert_eq!(needed(), json!(true));

    let ask = |token: &str, name: &str| {
        let body = json!({ "token": token, "user_name": name, "password": "correct horse battery" });
        site.http("POST", "/_longhouse/first-admin", &body)
    };
    assert_eq!(ask("wrong", "alice").0, 403);
    assert_eq!(ask(&token, "not a name").1["errcode"], "M_INVALID_USERNAME");
    assert_eq!(ask(&token, "alice"), (200, json!({ "user_id": "@alice:example.test" })));
    assert_eq!(ask(&token, "mallory").0, 403);
    assert_eq!(needed(), json!(false));
    assert!(!Path::new(&file).exists());
    assert!(site.ok(&["user", "list"]).contains("@alice:example.test\tadmin"));
    running.stop();
}

#[test]
fn without_the_page_the_administrator_is_made_on_the_command_line() {
    let site = Site::new();
    let file = site.directory.path().join("longhouse.toml");
    let settings = std::fs::read_to_string(&file).expect("readable");
    std::fs::write(&file, format!("{settings}[web]\nenabled = false\n")).expect("written");
    let running = site.start();
    assert_eq!(site.http("GET", "/", &json!({})).0, 404);
    assert!(!site.data().join("first-admin.link").exists());
    running.stop();
    let log = site.log();
    assert!(log.contains("longhouse user add NAME --admin"), "{log}");
}

#[test]
fn every_part_answers_at_one_address() {
    let site = Site::new();
    let running = site.start();
    let nothing = json!({});
    let (status, body) = site.http("GET", "/_longhouse/status", &nothing);
    let services = body["services"].as_array().expect("a list");
    let states: Vec<&Value> = services.iter().map(|service| &service["state"]).collect();
    assert_eq!(
        (status, states),
        (200, vec![&json!("running"); 3]),
        "every port was found to hear: {body}"
    );
    let cure = services[1]["cure"].as_str().unwrap_or_default();
    assert!(cure.contains("turn.listen"), "only this machine reaches it: {body}");
    assert!(site.http("GET", "/_matrix/client/versions", &nothing).1["versions"].is_array());
    let (status, body) = site.http("GET", "/_matrix/client/v3/nothing", &nothing);
    assert_eq!((status, &body["errcode"]), (404, &json!("M_UNRECOGNIZED")));
    let (status, body) = site.http("DELETE", "/_matrix/client/versions", &nothing);
    assert_eq!((status, &body["errcode"]), (405, &json!("M_UNRECOGNIZED")));
    assert_eq!(
        site.http("GET", "/livekit/sfu/rtc/validate", &nothing).0,
        401,
        "the SFU wants a token"
    );
    assert_eq!(site.http("GET", "/livekit/jwt/healthz", &nothing).0, 200);
    assert_eq!(site.http("GET", "/", &nothing).0, 200);
    running.stop();
}

#[test]
fn one_server_a_data_directory_one_name_and_a_quick_end() {
    let site = Site::new();
    let running = site.start();
    assert!(site.fails(&["serve"]).contains("another longhouse already uses"));
    // An idle keep-alive connection must not hold up the end.
    let mut idle = TcpStream::connect(site.address).expect("connects");
    idle.write_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    let mut head = [0; 12];
    idle.read_exact(&mut head).expect("answered");
    let took = running.stop();
    assert!(took < Duration::from_secs(3), "took {took:?}: {}", site.log());

    let renamed = site.fails(&["serve", "--server-name", "other.test"]);
    assert!(renamed.contains("belongs to the server example.test"), "{renamed}");
}
