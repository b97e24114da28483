//! What the operating system is told at the start: how many files may be open, and who may read new ones.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Below this a busy server runs out of sockets.
const ENOUGH_FILES: u64 = 8192;

/// New files belong to this user alone: database, media, keys.
pub(crate) fn make_files_private() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Raises the soft limit on open files to the hard one; says what to do where that is not enough.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit on open files");
        }
    }
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < ENOUGH_FILES
    {
        tracing::warn!(
            files,
            "few files may be open at once: set LimitNOFILE=65536 in the systemd unit, or `ulimit -n 65536` before the start"
        );
    }
}
