//! The page at `/`: files built from `web/`, embedded, served with headers that let them load nothing from elsewhere.

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};

const INDEX: &str = include_str!("../../../../web/dist/index.html");
const SCRIPT: &str = include_str!("../../../../web/dist/app.js");
const STYLE: &str = include_str!("../../../../web/dist/style.css");
const ICON: &str = include_str!("../../../../web/dist/icon.svg");

/// Only this server's own files; no frames around the page, no forms to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) fn router() -> Router {
    Router::new()
        // GET /: the page.
        .route("/", get(|| async { file("text/html; charset=utf-8", INDEX) }))
        // GET /_longhouse/page/…: its parts.
        .route(
            "/_longhouse/page/app.js",
            get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }),
        )
        .route(
            "/_longhouse/page/style.css",
            get(|| async { file("text/css; charset=utf-8", STYLE) }),
        )
        .route(
            "/_longhouse/page/icon.svg",
            get(|| async { file("image/svg+xml", ICON) }),
        )
}

fn file(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        // The parts belong together: after an upgrade none may be older than the others.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};

    use super::*;

    /// The same digest as `web/build.mjs` writes into what it builds.
    #[test]
    fn the_built_page_is_in_step_with_its_source() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/src");
        let mut names: Vec<String> = std::fs::read_dir(&source)
            .expect("web/src exists")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("ASCII name"))
            .collect();
        names.sort();
        let mut digest = Sha256::new();
        for name in &names {
            digest.update(name);
            digest.update([0]);
            digest.update(std::fs::read(source.join(name)).expect("readable"));
            digest.update([0]);
        }
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        for built in [SCRIPT, STYLE] {
            assert!(
                built.contains(&digest),
                "web/dist is stale: run `npm run build` in web/"
            );
        }
        for (name, built) in [("index.html", INDEX), ("icon.svg", ICON)] {
            let source = std::fs::read_to_string(source.join(name)).expect("readable");
            assert_eq!(source, built, "web/dist/{name} is stale: run `npm run build` in web/");
        }
    }

    #[test]
    fn the_page_names_no_other_place() {
        for (name, text) in [("index.html", INDEX), ("app.js", SCRIPT), ("style.css", STYLE)] {
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for scheme in ["http://", "https://", "//cdn", "@import"] {
                assert!(!text.contains(scheme), "{name} contains {scheme}");
            }
        }
    }
}
