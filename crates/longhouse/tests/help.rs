//! What `--help` says, of every command: scripts and people rely on it, so that a change is seen in review.

use std::process::Command;

const KEPT: &str = include_str!("help.txt");

#[test]
fn the_help_of_every_command_is_as_reviewed() {
    let mut text = String::new();
    describe(&mut Vec::new(), &mut text);
    if std::env::var_os("UPDATE_HELP").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help.txt"), &text).expect("written");
        return;
    }
    assert!(
        text == KEPT,
        "the help has changed; if that is meant, run this test with UPDATE_HELP=1 and commit help.txt:\n{text}"
    );
}

/// Appends the help of one command and of all below it.
fn describe(path: &mut Vec<String>, text: &mut String) {
    let output = Command::new(env!("CARGO_BIN_EXE_longhouse"))
        .args(&*path)
        .arg("--help")
        .env("COLUMNS", "100")
        .output()
        .expect("runs");
    assert!(output.status.success(), "{path:?}");
    let help = String::from_utf8(output.stdout).expect("text");
    text.push_str(&format!(
        "$ longhouse {}\n{help}\n",
        [path.as_slice(), &["--help".to_owned()]].concat().join(" ")
    ));
    let below = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let below = below.take_while(|line| !line.is_empty());
    // A name at the first indentation; what is indented further continues a description.
    let names = below.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    for name in names.filter_map(|line| line.split_whitespace().next()) {
        path.push(name.to_owned());
        describe(path, text);
        path.pop();
    }
}
