//! The one-time link that makes the first administrator: shown on the terminal, kept in a private file, never in a log.
//! The homeserver makes and consumes its token; this module shows the link and serves the page's form.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use homeserver::Homeserver;
use homeserver::client_api::ApiError;
use serde::Deserialize;
use serde_json::{Value, json};

/// Where the link is kept, in the data directory.
const LINK_FILE: &str = "first-admin.link";

/// Whether an administrator is still to be made; all handles share it.
#[derive(Debug, Clone)]
pub(crate) struct FirstAdmin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    homeserver: Homeserver,
    needed: AtomicBool,
    file: PathBuf,
}

impl FirstAdmin {
    /// Makes a new link while there is no administrator, in place of an earlier one.
    pub(crate) async fn prepare(
        homeserver: &Homeserver,
        public_url: &str,
        data_dir: &Path,
    ) -> Result<(Self, Option<String>), ApiError> {
        let file = data_dir.join(LINK_FILE);
        remove(&file);
        let token = homeserver.accounts.first_admin_link().await?;
        let link = token.map(|token| format!("{public_url}/#first-admin={}", token.0));
        if let Some(link) = &link
            && let Err(error) = write_private(&file, link)
        {
            tracing::warn!(%error, file = %file.display(), "cannot write the administrator link");
        }
        let inner = Inner {
            homeserver: homeserver.clone(),
            needed: AtomicBool::new(link.is_some()),
            file,
        };
        Ok((Self(Arc::new(inner)), link))
    }

    /// Asks the database only until the first administrator exists, who may be made on the command line too.
    pub(crate) async fn is_needed(&self) -> bool {
        if !self.0.needed.load(Ordering::Relaxed) {
            return false;
        }
        match self.0.homeserver.store.admin_exists().await {
            Ok(true) => {
                self.close();
                false
            }
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether there is an administrator");
                true
            }
        }
    }

    pub(crate) fn file(&self) -> &Path {
        &self.0.file
    }

    fn close(&self) {
        if self.0.needed.swap(false, Ordering::Relaxed) {
            remove(&self.0.file);
        }
    }
}

/// Removes the file of a link that nobody serves the form for any more.
pub(crate) fn forget_link(data_dir: &Path) {
    remove(&data_dir.join(LINK_FILE));
}

fn write_private(file: &Path, link: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(file, "{link}")
}

fn remove(file: &Path) {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, file = %file.display(), "cannot remove the administrator link");
        }
        _ => {}
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    token: String,
    user_name: String,
    password: String,
}

pub(crate) fn router(first: FirstAdmin) -> Router {
    Router::new()
        .route("/_longhouse/first-admin", post(create))
        .layer(DefaultBodyLimit::max(8 * 1024))
        .with_state(first)
}

/// POST /_longhouse/first-admin: the page's form. 200 with `user_id`, or a Matrix error that says what to change.
async fn create(
    State(first): State<FirstAdmin>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Ok(Json(body)) = body else {
        return Err(ApiError::bad_json("The request is not what the form sends."));
    };
    if !first.is_needed().await {
        return Err(ApiError::forbidden(
            "This server has an administrator: the link has done its work.",
        ));
    }
    let login = first
        .0
        .homeserver
        .accounts
        .first_admin(&body.token, &body.user_name, &body.password)
        .await?;
    first.close();
    // The person signs in with Element next: the session that came with the account would stay unused.
    let device = [login.device_id.to_string()];
    if let Err(error) = first.0.homeserver.remove_devices(&login.user_id, &device).await {
        tracing::warn!(%error, "cannot end the session that came with the first administrator");
    }
    Ok(Json(json!({ "user_id": login.user_id })))
}
