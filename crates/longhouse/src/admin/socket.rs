//! Carries administration requests over a Unix socket in the data directory. Whoever may open the socket is an
//! administrator: the file permissions are the authentication.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Administration;
use super::protocol::{Answer, Refusal, Request};

const NAME: &str = "admin.sock";
/// Longest request line, in bytes.
const LONGEST: u64 = 64 * 1024;
/// What fits the kernel's `sun_path`, with room for its end.
const LONGEST_PATH: usize = 100;

/// The socket's path, short enough for the kernel whatever the depth of the data directory: the open directory is
/// reached through `/proc/self/fd`.
struct Place {
    path: PathBuf,
    _directory: Option<File>,
}

impl Place {
    fn in_directory(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(NAME);
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { path, _directory: None });
        }
        let directory = File::open(data_dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()));
        Ok(Self {
            path,
            _directory: Some(directory),
        })
    }
}

/// Listens until shutdown. The caller holds the lock of the data directory, so an existing socket is a leftover.
pub(crate) fn serve(
    data_dir: &Path,
    administration: Administration,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let place = Place::in_directory(data_dir)?;
    match std::fs::remove_file(&place.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&place.path)?;
    std::fs::set_permissions(&place.path, Permissions::from_mode(0o600))?;
    let connections = tasks.clone();
    tasks.spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (administration, shutdown) = (administration.clone(), shutdown.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            result = converse(stream, administration) => {
                                if let Err(error) = result {
                                    tracing::debug!(%error, "administration connection ended with an error");
                                }
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an administration connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        // The next start removes what remains; a stale socket only means "not running".
        let _ = std::fs::remove_file(&place.path);
    });
    Ok(())
}

async fn converse(stream: UnixStream, administration: Administration) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let result = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => {
                tracing::info!(request = request.kind(), "administration request");
                administration.answer(request).await
            }
            Err(error) => Err(Refusal(format!("not an administration request: {error}"))),
        };
        let mut answer = serde_json::to_vec(&result)?;
        answer.push(b'\n');
        writer.write_all(&answer).await?;
    }
}

/// Asks the running server; `None` when none runs.
pub(crate) async fn ask(data_dir: &Path, request: &Request) -> io::Result<Option<Result<Answer, Refusal>>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let place = match Place::in_directory(data_dir) {
        Err(error) if error.kind() == NotFound => return Ok(None),
        place => place?,
    };
    let stream = match UnixStream::connect(&place.path).await {
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        stream => stream?,
    };
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut answer = String::new();
    if BufReader::new(reader).read_line(&mut answer).await? == 0 {
        return Err(io::Error::other("the server closed the connection without an answer"));
    }
    Ok(Some(serde_json::from_str(&answer)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo() -> Administration {
        Administration::new(|request| async move {
            match request {
                Request::CreateUser { name, .. } => Ok(Answer::User {
                    user_id: format!("@{name}:test"),
                }),
                _ => Err(Refusal("no".to_owned())),
            }
        })
    }

    /// Both a short path and one longer than the kernel's limit.
    #[tokio::test]
    async fn requests_reach_the_server_and_no_one_else_may_ask() {
        for depth in [1, 30] {
            let parent = tempfile::tempdir().expect("temporary directory");
            let data = parent.path().join("deeper/".repeat(depth));
            std::fs::create_dir_all(&data).expect("created");
            let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
            let request = Request::CreateUser {
                name: "alice".to_owned(),
                password: "p".to_owned(),
                admin: false,
            };
            assert!(ask(&data, &request).await.expect("asks").is_none(), "nothing runs yet");

            serve(&data, echo(), &tasks, shutdown.clone()).expect("listens");
            let mode = data.join(NAME).metadata().expect("socket").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let answer = ask(&data, &request).await.expect("asks").expect("runs");
            assert!(matches!(answer, Ok(Answer::User { user_id }) if user_id == "@alice:test"));
            let refusal = ask(&data, &Request::ListUsers).await.expect("asks").expect("runs");
            assert!(matches!(refusal, Err(refusal) if refusal.0 == "no"));

            shutdown.cancel();
            tasks.close();
            tasks.wait().await;
            assert!(
                ask(&data, &request).await.expect("asks").is_none(),
                "nothing runs any more"
            );
        }
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_the_connection_stays() {
        let data = tempfile::tempdir().expect("temporary directory");
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        serve(data.path(), echo(), &tasks, shutdown.clone()).expect("listens");
        let mut stream = UnixStream::connect(data.path().join(NAME)).await.expect("connects");
        stream
            .write_all(b"nonsense\n{\"request\":\"list_users\"}\n")
            .await
            .expect("writes");
        let mut lines = BufReader::new(&mut stream).lines();
        let first = lines.next_line().await.expect("reads").expect("an answer");
        assert!(first.contains("not an administration request"), "{first}");
        let second = lines.next_line().await.expect("reads").expect("an answer");
        assert!(second.contains("\"no\""), "{second}");
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
