//! The dependency table of ARCHITECTURE.md, enforced: an edge between our crates that is not in it fails.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Each crate and what it may depend on, development dependencies apart.
const TABLE: &[(&str, &[&str])] = &[
    (
        "longhouse",
        &["homeserver", "storage", "credentials", "relay", "sfu", "fabric"],
    ),
    ("homeserver", &["storage", "credentials"]),
    ("storage", &[]),
    ("credentials", &[]),
    ("relay", &["credentials", "fabric"]),
    ("sfu", &["credentials", "fabric"]),
    ("fabric", &[]),
    ("testkit", &[]),
    ("system-tests", &[]),
];

#[test]
fn dependencies_run_downwards_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo answers JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let known: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known, "the table lists exactly the crates of the workspace");

    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let (_, allowed) = TABLE.iter().find(|(of, _)| *of == name).expect("compared above");
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let on = dependency["name"].as_str().expect("a name");
            let is_development = dependency["kind"].as_str() == Some("dev");
            if !names.contains(on) {
                continue;
            }
            let permitted = allowed.contains(&on) || (is_development && on == "testkit");
            assert!(permitted, "{name} must not depend on {on}");
            assert!(
                on != "testkit" || is_development,
                "{name} may use testkit in tests only"
            );
        }
    }
}
