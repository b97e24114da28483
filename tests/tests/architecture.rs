//! The crate table of ARCHITECTURE.md holds: dependencies between our crates run downwards only.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};
use system_tests::environment;

/// Which of our crates each of our crates may depend on. `testkit` is for tests only, and nobody depends on the process.
const ALLOWED: &[(&str, &[&str])] = &[
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
fn crates_depend_downwards_only() {
    let manifest = environment::repository().join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("the workspace can be read");
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(
        ours,
        allowed.keys().copied().collect(),
        "the table lists every crate of the workspace and no other"
    );
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if !ours.contains(name) {
                continue;
            }
            let for_tests = dependency.kind == DependencyKind::Development;
            let permitted = allowed[package.name.as_str()].contains(&name) || (for_tests && name != "longhouse");
            assert!(permitted, "{} must not depend on {name}", package.name);
        }
    }
}
