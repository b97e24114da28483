//! What somebody meets first: a start without any file, the one-time link, mistakes in the configuration, and the
//! administration commands while the server runs and while it is stopped.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use reqwest::{Method, StatusCode};
use serde_json::json;
use system_tests::{Client, Engine, Script, Server, Setup, command_line, environment, eventually, free_port, program};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A start in an empty folder: no file, no arguments. Only the ports are given, since tests run side by side.
struct Unconfigured {
    folder: TempDir,
    http: u16,
    environment: Vec<(&'static str, String)>,
}

impl Unconfigured {
    fn new() -> Self {
        let (http, turn, sfu) = (free_port(), free_port(), free_port());
        let listen = |port: u16| format!("[\"127.0.0.1:{port}\"]");
        Self {
            folder: TempDir::new().expect("the temporary directory is writable"),
            http,
            environment: vec![
                ("LONGHOUSE_LISTEN__ADDRESSES", listen(http)),
                ("LONGHOUSE_TURN__LISTEN", listen(turn)),
                ("LONGHOUSE_SFU__UDP_LISTEN", format!("127.0.0.1:{sfu}")),
                ("LONGHOUSE_SFU__TCP_LISTEN", format!("127.0.0.1:{sfu}")),
            ],
        }
    }

    fn command(&self) -> Command {
        let mut command = command_line(self.folder.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn client(&self) -> Client {
        Client::new(format!("http://127.0.0.1:{}", self.http))
    }

    /// Starts on a terminal and waits for the answer; what the terminal shows goes to `printed` as well.
    async fn start(&self, printed: &Path) -> Child {
        let binary = environment::binary().display();
        let mut terminal = program("script", self.folder.path());
        terminal
            .args([
                "--quiet",
                "--flush",
                "--return",
                "--command",
                &format!("exec '{binary}'"),
            ])
            .arg(printed)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null());
        let process = terminal
            .spawn()
            .expect("script (package bsdutils or util-linux) can be started");
        let client = self.client();
        eventually("the unconfigured server answers", Duration::from_secs(30), async || {
            client.answers().await.then_some(())
        })
        .await;
        process
    }
}

async fn terminate(mut process: Child) {
    let pid = process.id().expect("the process still runs").to_string();
    Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .await
        .expect("kill can be started");
    assert!(
        process
            .wait()
            .await
            .expect("a child process can be waited for")
            .success()
    );
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_needs_nothing_and_its_link_makes_the_administrator() {
    let start = Unconfigured::new();
    let printed = start.folder.path().join("printed");
    let process = start.start(&printed).await;
    let address = format!("http://127.0.0.1:{}", start.http);
    let link = eventually("the one-time link is printed", Duration::from_secs(10), async || {
        let text = fs::read_to_string(&printed).unwrap_or_default();
        text.split_whitespace()
            .find(|word| word.contains("#first-admin="))
            .map(str::to_owned)
    })
    .await;
    assert!(link.starts_with(&address), "{link} does not open {address}");
    assert!(start.folder.path().join("data").is_dir(), "the data are in ./data");

    let password = "four warm unrelated words";
    let parameters = json!({ "link": link, "name": "hearthkeeper", "password": password });
    let mut browser = Script::node("first_admin.mjs", &parameters);
    let shown = browser.expect("shown").await;
    assert_eq!(shown["cut"], json!([]), "wider than the phone: {shown}");
    assert_eq!(shown["background"], "rgb(15, 22, 20)", "dark: {shown}");
    let services = shown["services"].as_array().expect("a list");
    for (service, said) in services.iter().zip(["Running", "Its ports hear", "Its ports hear"]) {
        assert!(service.as_str().is_some_and(|text| text.contains(said)), "{shown}");
    }
    assert_eq!(browser.expect("focus").await["on"], "Show");
    let created = browser.expect("created").await;
    assert!(
        created["heading"]
            .as_str()
            .is_some_and(|heading| heading.contains("@hearthkeeper:localhost")),
        "{created}"
    );
    browser.finish().await;

    let keeper = start.client().login("hearthkeeper", password).await;
    assert_eq!(keeper.user_id, "@hearthkeeper:localhost");
    let list = start
        .command()
        .args(["user", "list"])
        .output()
        .await
        .expect("the longhouse binary can be started");
    let listed = text(&list);
    let line = listed
        .lines()
        .find(|line| line.contains("hearthkeeper"))
        .unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("admin"), "{line}");

    // The link works once.
    let token = link.split_once("#first-admin=").expect("the link carries its token").1;
    let again = json!({ "token": token, "user_name": "second", "password": password });
    let answer = start
        .client()
        .request(Method::POST, "/_longhouse/first-admin", Some(&again))
        .await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);

    terminate(process).await;
    let second = start.start(&printed).await;
    let text = fs::read_to_string(&printed).expect("the file was just written");
    assert!(
        !text.contains("#first-admin="),
        "a server with an administrator offers a link again:\n{text}"
    );
    start.client().login("hearthkeeper", password).await;
    terminate(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_configuration_is_named_with_its_place_and_cure() {
    let folder = TempDir::new().expect("the temporary directory is writable");
    let file = folder.path().join("longhouse.toml");
    for (config, expected) in [
        (
            "server_name = \"a.org\"\nserver_nam = \"b.org\"\n",
            &["longhouse.toml:2", "server_nam", "server_name"][..],
        ),
        (
            "[registration]\nmood = \"open\"\n",
            &["longhouse.toml:2", "mood", "mode"],
        ),
        (
            "[registration]\nmode = \"opne\"\n",
            &["longhouse.toml:2", "opne", "open"],
        ),
        ("[lisen]\naddresses = []\n", &["longhouse.toml:1", "lisen", "listen"]),
        (
            "server_name = \"https://a.org\"\n",
            &["longhouse.toml:1", "https://a.org"],
        ),
        ("[listen]\naddresses = [\"127.0.0.1\"]\n", &["longhouse.toml:2"]),
        ("server_name = \"a.org\"\n[log\n", &["longhouse.toml:2"]),
    ] {
        fs::write(&file, config).expect("the temporary directory is writable");
        for arguments in [&["config", "check"][..], &["serve"]] {
            let command = command_line(folder.path())
                .args(arguments)
                .arg("--config")
                .arg(&file)
                .output();
            let output = command.await.expect("the longhouse binary can be started");
            let text = text(&output);
            assert!(!output.status.success(), "{arguments:?} accepts {config:?}");
            for part in expected {
                assert!(
                    text.contains(part),
                    "{arguments:?} on {config:?} does not say {part:?}:\n{text}"
                );
            }
        }
    }
    let generate = command_line(folder.path())
        .args(["config", "generate", "--server-name", "a.org"])
        .output()
        .await;
    fs::write(&file, generate.expect("the longhouse binary can be started").stdout).expect("the file is writable");
    let check = command_line(folder.path())
        .args(["config", "check", "--config"])
        .arg(&file)
        .output()
        .await;
    let check = check.expect("the longhouse binary can be started");
    assert!(
        check.status.success(),
        "the generated file has mistakes:\n{}",
        text(&check)
    );
}

/// Runs a command that must succeed, and returns what it prints.
async fn admin(server: &Server, arguments: &[&str]) -> String {
    let output = server.admin(arguments).await;
    assert!(
        output.status.success(),
        "longhouse {arguments:?} failed:\n{}",
        text(&output)
    );
    text(&output)
}

/// The whole life of accounts and tokens by the command line.
async fn administer(server: &mut Server, while_running: bool, name: &str) {
    if !while_running {
        assert!(server.stop().await.success);
    }
    let secret = server.data().join("password.txt");
    fs::write(&secret, "a password from a file\n").expect("the data directory is writable");
    let secret = secret.to_str().expect("temporary paths are UTF-8");
    admin(server, &["user", "add", name, "--password-file", secret]).await;
    admin(server, &["user", "admin", name, "on"]).await;
    let listed = admin(server, &["user", "list"]).await;
    let user_id = format!("@{name}:{}", server.name());
    let line = listed
        .lines()
        .find(|line| line.contains(&user_id))
        .unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("admin"), "{line}");

    let output = server.admin(&["user", "add", name, "--password-file", secret]).await;
    assert!(!output.status.success(), "the same name twice:\n{}", text(&output));

    let token = admin(server, &["registration-token", "create", "--uses", "1"]).await;
    let token = token
        .split_whitespace()
        .last()
        .expect("the command prints the token")
        .to_owned();
    assert!(admin(server, &["registration-token", "list"]).await.contains(&token));

    if !while_running {
        server.launch().await;
    }
    server.client().login(name, "a password from a file").await;
    let invited = register_with_token(server, &format!("{name}-guest"), &token).await;
    assert_eq!(invited.status, StatusCode::OK, "{}", invited.body);
    let refused = register_with_token(server, &format!("{name}-late"), &token).await;
    assert_ne!(refused.status, StatusCode::OK, "a token for one use served twice");

    if !while_running {
        assert!(server.stop().await.success);
    }
    fs::write(secret, "another password\n").expect("the data directory is writable");
    admin(server, &["user", "password", name, "--password-file", secret]).await;
    admin(server, &["user", "admin", name, "off"]).await;
    if !while_running {
        server.launch().await;
    }
    let user = server.client().login(name, "another password").await;
    admin(server, &["user", "deactivate", name]).await;
    let answer = user
        .request(Method::GET, "/_matrix/client/v3/account/whoami", None)
        .await;
    assert_eq!(
        answer.status,
        StatusCode::UNAUTHORIZED,
        "a deactivated user keeps the session: {}",
        answer.body
    );
}

/// Registers with a token (m.login.registration_token, Matrix 1.2).
async fn register_with_token(server: &Server, name: &str, token: &str) -> system_tests::Answer {
    let client = server.client();
    let mut body = json!({ "username": name, "password": "a guest's own password" });
    let path = "/_matrix/client/v3/register";
    let challenge = client.request(Method::POST, path, Some(&body)).await;
    assert_eq!(challenge.status, StatusCode::UNAUTHORIZED, "{}", challenge.body);
    body["auth"] =
        json!({ "type": "m.login.registration_token", "token": token, "session": challenge.body["session"] });
    let answer = client.request(Method::POST, path, Some(&body)).await;
    let more = answer.body["flows"].is_array()
        && answer.body["completed"]
            .as_array()
            .is_some_and(|done| done.contains(&json!("m.login.registration_token")));
    if !more {
        return answer;
    }
    body["auth"] = json!({ "type": "m.login.dummy", "session": answer.body["session"] });
    client.request(Method::POST, path, Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_administered_while_the_server_runs_and_while_it_is_stopped() {
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let mut server = Setup::new(engine)
            .set("registration", "mode", "\"token\"")
            .start()
            .await;
        administer(&mut server, true, "running").await;
        administer(&mut server, false, "stopped").await;
    }
}
