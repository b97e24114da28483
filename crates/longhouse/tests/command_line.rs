//! The command line through the built binary: what it prints, where, and its exit status.

use std::path::Path;
use std::process::{Command, Output};

/// A command that inherits no settings from the environment of the test.
fn longhouse(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhouse"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("LONGHOUSE_")) {
            command.env_remove(name);
        }
    }
    command.current_dir(directory);
    command
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version_and_help_name_the_commands() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let version = longhouse(directory.path()).arg("version").output().expect("runs");
    assert_eq!(out(&version), format!("longhouse {}\n", env!("CARGO_PKG_VERSION")));
    let help = longhouse(directory.path()).arg("--help").output().expect("runs");
    for command in ["serve", "config", "ports", "wellknown", "version"] {
        assert!(
            out(&help).contains(&format!("  {command} ")),
            "{command} is missing: {}",
            out(&help)
        );
    }
}

#[test]
fn a_generated_file_passes_the_check() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let generated = longhouse(directory.path())
        .args(["config", "generate", "--server-name", "example.org"])
        .output()
        .expect("runs");
    assert!(generated.status.success(), "{}", err(&generated));
    std::fs::write(directory.path().join("longhouse.toml"), &generated.stdout).expect("written");
    let check = longhouse(directory.path())
        .args(["config", "check"])
        .output()
        .expect("runs");
    assert!(check.status.success(), "{}", err(&check));
    assert!(out(&check).contains("example.org"), "{}", out(&check));
}

#[test]
fn faults_are_named_and_never_a_panic() {
    let directory = tempfile::tempdir().expect("temporary directory");
    for (text, expected) in [
        ("[regstration]\n", &["longhouse.toml:1:2: ", "regstration"][..]),
        (
            "[log]\nfromat = \"json\"\n",
            &["longhouse.toml:2:1: ", "did you mean `format`?"],
        ),
        (
            "[listen]\naddresses = [\"localhost\"]\n",
            &["longhouse.toml:2:", "`listen.addresses`"],
        ),
        ("[listen\n", &["longhouse.toml:1:8: "]),
        (
            "server_name = \"https://example.org\"\n",
            &["longhouse.toml:1:15: ", "without https://"],
        ),
    ] {
        std::fs::write(directory.path().join("longhouse.toml"), text).expect("written");
        let check = longhouse(directory.path())
            .args(["config", "check"])
            .output()
            .expect("runs");
        assert_eq!(check.status.code(), Some(1), "{text}");
        for part in expected {
            assert!(err(&check).contains(part), "{text}: lacks {part}: {}", err(&check));
        }
        assert!(!err(&check).contains("panicked"), "{}", err(&check));
        let serve = longhouse(directory.path()).arg("serve").output().expect("runs");
        assert_eq!(serve.status.code(), Some(1), "a server does not start on a wrong file");
        assert!(err(&serve).contains(expected[0]), "{}", err(&serve));
    }
}

#[test]
fn a_missing_file_that_was_named_is_a_fault() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let check = longhouse(directory.path())
        .args(["config", "check", "--config", "none.toml"])
        .output()
        .expect("runs");
    assert_eq!(check.status.code(), Some(1));
    assert!(
        err(&check).contains("none.toml") && err(&check).contains("config generate"),
        "{}",
        err(&check)
    );
}

#[test]
fn the_environment_and_the_command_line_override_the_file() {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(
        directory.path().join("longhouse.toml"),
        "server_name = \"file.example\"\n",
    )
    .expect("written");
    let check = |environment: &[(&str, &str)], arguments: &[&str]| {
        let mut command = longhouse(directory.path());
        command
            .args(["config", "check"])
            .args(arguments)
            .envs(environment.iter().copied());
        command.output().expect("runs")
    };
    assert!(out(&check(&[], &[])).contains("file.example"));
    assert!(out(&check(&[("LONGHOUSE_SERVER_NAME", "env.example")], &[])).contains("env.example"));
    let both = check(
        &[("LONGHOUSE_SERVER_NAME", "env.example")],
        &["--server-name", "argument.example"],
    );
    assert!(out(&both).contains("argument.example"));
    let wrong = check(&[("LONGHOUSE_LISTEN__MAX_CONNECTIONS", "many")], &[]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        err(&wrong).contains("LONGHOUSE_LISTEN__MAX_CONNECTIONS"),
        "{}",
        err(&wrong)
    );
    let unknown = check(&[("LONGHOUSE_LOG__LEVL", "info")], &[]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(err(&unknown).contains("LONGHOUSE_LOG__LEVL"), "{}", err(&unknown));
}

#[test]
fn ports_and_well_known_documents_follow_the_configuration() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let ports = longhouse(directory.path())
        .arg("ports")
        .env("LONGHOUSE_LISTEN__ADDRESSES", "0.0.0.0:8448")
        .output()
        .expect("runs");
    assert!(out(&ports).contains("ufw allow 8448/tcp"), "{}", out(&ports));
    for target in ["nginx", "caddy", "traefik", "worker", "static"] {
        let output = longhouse(directory.path())
            .args(["wellknown", "--for", target, "--server-name", "example.org"])
            .output()
            .expect("runs");
        assert!(
            output.status.success() && out(&output).contains("example.org"),
            "{target}: {}",
            err(&output)
        );
    }
}
