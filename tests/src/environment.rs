//! Where the tests find what they drive: the binary, PostgreSQL, Node.js, Python. Each missing piece ends the test with
//! the sentence that says how to get it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The sentence every missing piece ends with.
const HOW: &str = "run the system tests with ./tests/run, which prepares everything they need";

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the manifest of the system tests lies one level below the root")
        .to_owned()
}

/// The `longhouse` binary: `LONGHOUSE_BIN`, or else built once by cargo.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = env::var_os("LONGHOUSE_BIN") {
            let path = PathBuf::from(path);
            assert!(
                path.is_file(),
                "LONGHOUSE_BIN names {}, which is not a file",
                path.display()
            );
            return path;
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "longhouse"])
            .current_dir(repository())
            .status()
            .expect("cargo, which runs this test, can be started");
        assert!(status.success(), "cargo build --package longhouse failed");
        target_directory().join("debug/longhouse")
    })
}

/// Cargo's target directory, from the place of this test's own executable.
fn target_directory() -> PathBuf {
    let executable = env::current_exe().expect("a running program has a path");
    let found = executable
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file());
    found.map_or_else(|| repository().join("target"), Path::to_owned)
}

/// The address of a PostgreSQL server on which the tests may create databases, from `LONGHOUSE_TEST_POSTGRES`.
pub fn postgres_url() -> String {
    env::var("LONGHOUSE_TEST_POSTGRES").unwrap_or_else(|_| {
        panic!("LONGHOUSE_TEST_POSTGRES (postgres://user:password@host:port/postgres) is not set: {HOW}")
    })
}

/// The folder of the Node.js scripts, with their packages installed.
pub fn node_scripts() -> PathBuf {
    let scripts = repository().join("tests/js");
    assert!(
        scripts.join("node_modules").is_dir(),
        "{}/node_modules is missing: {HOW}",
        scripts.display()
    );
    scripts
}

/// The Python interpreter with the packages of `tests/py/requirements.txt`.
pub fn python() -> PathBuf {
    let python = env::var_os("LONGHOUSE_TEST_PYTHON")
        .map_or_else(|| repository().join("target/test-env/python/bin/python"), PathBuf::from);
    assert!(python.is_file(), "{} is missing: {HOW}", python.display());
    python
}

/// A whole number from the environment, or the default when it is not set.
pub fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")),
        Err(_) => default,
    }
}
