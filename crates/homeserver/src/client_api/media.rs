//! Uploading and downloading media.
//! Spec: client-server API, "Content repository".

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ruma::http_headers::{ContentDisposition, ContentDispositionType};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ApiError, Auth, Routes,
    arguments::{Path, Query},
    byte_range::{self, Choice},
};
use crate::{
    Homeserver,
    media::{Description, Error},
};

/// Spec: "Serving inline content". Everything else is for saving only.
const INLINE: &[&str] = &[
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];
/// Spec: "Content repository", the recommended policy.
const POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';";
const ANY_TYPE: &str = "application/octet-stream";
const MAX_TEXT: usize = 255;
/// Spec: `timeout_ms`.
const PATIENCE_MS: u64 = 20_000;
const MAX_PATIENCE_MS: u64 = 60_000;

pub(super) fn router() -> Routes {
    let mut router = Routes::new()
        .route("/_matrix/media/v1/create", post(create))
        .route("/_matrix/media/v3/upload/{server_name}/{media_id}", put(fill))
        .route("/_matrix/client/v1/media/config", get(config))
        .route(
            "/_matrix/client/v1/media/download/{server_name}/{media_id}",
            get(download),
        )
        .route(
            "/_matrix/client/v1/media/download/{server_name}/{media_id}/{filename}",
            get(download_as),
        )
        .route(
            "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}",
            get(thumbnail),
        );
    for version in ["r0", "v1", "v3"] {
        let old = |rest: &str| format!("/_matrix/media/{version}{rest}");
        router = router
            .route(&old("/upload"), post(upload))
            .route(&old("/config"), get(config))
            .route(&old("/download/{server_name}/{media_id}"), get(frozen))
            .route(&old("/download/{server_name}/{media_id}/{filename}"), get(frozen))
            .route(&old("/thumbnail/{server_name}/{media_id}"), get(frozen));
    }
    router
}

/// `GET /_matrix/media/v3/download/…`, `GET /_matrix/media/v3/thumbnail/…`: frozen, as the specification asks since
/// v1.12: media is for those who sign in.
async fn frozen() -> ApiError {
    ApiError::not_found("Media is served at /_matrix/client/v1/media to signed-in users.")
}

/// `GET /_matrix/client/v1/media/config`: client-server API, "Content repository".
async fn config(State(hs): State<Homeserver>, Auth(_): Auth) -> Json<Value> {
    Json(json!({ "m.upload.size": hs.media.max_upload_bytes() }))
}

#[derive(Deserialize)]
struct Filename {
    filename: Option<String>,
}

/// `POST /_matrix/media/v3/upload`: client-server API, "Content repository".
async fn upload(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Query(Filename { filename }): Query<Filename>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let description = describe(&hs, &headers, filename)?;
    let media_id = hs
        .media
        .upload(&sender.user_id, description, body.into_data_stream())
        .await
        .map_err(explain)?;
    Ok(Json(
        json!({ "content_uri": format!("mxc://{}/{media_id}", hs.config.server_name) }),
    ))
}

/// `POST /_matrix/media/v1/create`: client-server API, "Content repository".
async fn create(State(hs): State<Homeserver>, Auth(sender): Auth) -> Result<Json<Value>, ApiError> {
    let (media_id, lapses) = hs.media.reserve(&sender.user_id).await.map_err(explain)?;
    let content_uri = format!("mxc://{}/{media_id}", hs.config.server_name);
    Ok(Json(json!({ "content_uri": content_uri, "unused_expires_at": lapses })))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`: client-server API, "Content repository".
async fn fill(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((server_name, media_id)): Path<(String, String)>,
    Query(Filename { filename }): Query<Filename>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    if server_name != hs.config.server_name.as_str() {
        return Err(explain(Error::NotReserved));
    }
    let description = describe(&hs, &headers, filename)?;
    hs.media
        .fill(&media_id, &sender.user_id, description, body.into_data_stream())
        .await
        .map_err(explain)?;
    Ok(Json(json!({})))
}

fn describe(hs: &Homeserver, headers: &HeaderMap, filename: Option<String>) -> Result<Description, ApiError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > hs.media.max_upload_bytes()) {
        return Err(explain(Error::TooLarge));
    }
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    if content_type.as_ref().is_some_and(|t| t.len() > MAX_TEXT)
        || filename.as_ref().is_some_and(|f| f.len() > MAX_TEXT)
    {
        return Err(ApiError::invalid_param(
            "A media type and a file name may have at most 255 bytes.",
        ));
    }
    Ok(Description { content_type, filename })
}

fn explain(error: Error) -> ApiError {
    match error {
        Error::TooLarge => ApiError::too_large("The file is larger than this server takes (media.max_upload_bytes)."),
        Error::BrokenOff => ApiError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "The upload broke off."),
        Error::TooManyReserved => ApiError::limit_exceeded("of reserved media addresses", 60_000),
        Error::NotReserved => ApiError::not_found("This address is not reserved (any more)."),
        Error::NotYours => ApiError::forbidden("Somebody else reserved this address."),
        Error::AlreadyThere => ApiError::new(
            StatusCode::CONFLICT,
            "M_CANNOT_OVERWRITE_MEDIA",
            "This address has its content.",
        ),
        Error::Files(e) => ApiError::internal(e),
        Error::Storage(e) => e.into(),
    }
}

#[derive(Deserialize)]
struct Patience {
    timeout_ms: Option<u64>,
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`: client-server API, "Content repository".
async fn download(
    State(hs): State<Homeserver>,
    Auth(_): Auth,
    headers: HeaderMap,
    Path((server_name, media_id)): Path<(String, String)>,
    Query(Patience { timeout_ms }): Query<Patience>,
) -> Result<Response, ApiError> {
    let wanted = Wanted::new(headers, timeout_ms, Purpose::Download);
    serve(&hs, &server_name, &media_id, wanted).await
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}`: client-server API, "Content repository".
async fn download_as(
    State(hs): State<Homeserver>,
    Auth(_): Auth,
    headers: HeaderMap,
    Path((server_name, media_id, filename)): Path<(String, String, String)>,
    Query(Patience { timeout_ms }): Query<Patience>,
) -> Result<Response, ApiError> {
    let wanted = Wanted {
        filename: Some(filename),
        ..Wanted::new(headers, timeout_ms, Purpose::Download)
    };
    serve(&hs, &server_name, &media_id, wanted).await
}

#[derive(Deserialize)]
struct Thumbnail {
    width: u32,
    height: u32,
    timeout_ms: Option<u64>,
}

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`: client-server API, "Content repository". Answers the
/// image itself: the specification lets a server return more than was asked for, never less.
async fn thumbnail(
    State(hs): State<Homeserver>,
    Auth(_): Auth,
    headers: HeaderMap,
    Path((server_name, media_id)): Path<(String, String)>,
    Query(Thumbnail {
        width,
        height,
        timeout_ms,
    }): Query<Thumbnail>,
) -> Result<Response, ApiError> {
    if width == 0 || height == 0 {
        return Err(ApiError::invalid_param("A thumbnail has a width and a height."));
    }
    let wanted = Wanted::new(headers, timeout_ms, Purpose::Thumbnail);
    serve(&hs, &server_name, &media_id, wanted).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Download,
    Thumbnail,
}

/// How a client wants its media.
struct Wanted {
    headers: HeaderMap,
    timeout_ms: Option<u64>,
    filename: Option<String>,
    purpose: Purpose,
}

impl Wanted {
    fn new(headers: HeaderMap, timeout_ms: Option<u64>, purpose: Purpose) -> Self {
        Self {
            headers,
            timeout_ms,
            filename: None,
            purpose,
        }
    }
}

async fn serve(hs: &Homeserver, server_name: &str, media_id: &str, wanted: Wanted) -> Result<Response, ApiError> {
    let absent = || ApiError::not_found("There is no such media on this server.");
    if server_name != hs.config.server_name.as_str() {
        return Err(absent());
    }
    let patience = Duration::from_millis(wanted.timeout_ms.unwrap_or(PATIENCE_MS).min(MAX_PATIENCE_MS));
    let media = hs
        .media
        .find(media_id, patience)
        .await
        .map_err(explain)?
        .ok_or_else(absent)?;
    let Some(content_hash) = &media.content_hash else {
        return Err(ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "M_NOT_YET_UPLOADED",
            "The content of this address has not been uploaded yet.",
        ));
    };
    let content_type = media.content_type.as_deref().unwrap_or(ANY_TYPE);
    let essence = content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    let is_inline = INLINE.contains(&essence.as_str());
    if wanted.purpose == Purpose::Thumbnail && !(is_inline && essence.starts_with("image/")) {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_UNKNOWN",
            "There are thumbnails of images only.",
        ));
    }
    let disposition = if is_inline {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    };
    let filename = wanted.filename.or_else(|| media.filename.clone());
    let disposition = ContentDisposition::new(disposition).with_filename(filename);
    let size = u64::try_from(media.size_bytes).unwrap_or(0);
    // The same bytes have the same hash, whatever address they are behind.
    let etag = format!("\"{content_hash}\"");
    let choice = byte_range::choose(&wanted.headers, size, &etag);
    let (status, first, length) = match choice {
        Choice::Whole => (StatusCode::OK, 0, size),
        Choice::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Choice::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
        Choice::PreconditionFailed => {
            return Err(ApiError::new(
                StatusCode::PRECONDITION_FAILED,
                "M_UNKNOWN",
                "The content is not the one that `If-Match` names.",
            ));
        }
        Choice::Unsatisfiable => {
            let error = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "M_UNKNOWN",
                "The content ends before the range that `Range` asks for.",
            );
            let content_range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((content_range, error).into_response());
        }
    };
    let body = match choice {
        Choice::NotModified => Body::empty(),
        _ => Body::from_stream(hs.media.read(content_hash, first, length).await.map_err(explain)?),
    };
    let value = |text: &str| HeaderValue::from_str(text).ok();
    let headers = [
        (
            header::CONTENT_TYPE,
            value(content_type).unwrap_or(HeaderValue::from_static(ANY_TYPE)),
        ),
        (header::ETAG, value(&etag).unwrap_or(HeaderValue::from_static("\"\""))),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (
            header::CONTENT_DISPOSITION,
            value(&disposition.to_string()).unwrap_or(HeaderValue::from_static("attachment")),
        ),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        // An address never changes its content; only the user who may see it keeps it.
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, max-age=31536000, immutable"),
        ),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            HeaderValue::from_static("cross-origin"),
        ),
    ];
    let mut response = (status, headers, body).into_response();
    if choice != Choice::NotModified {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let Choice::Part { first, last } = choice
        && let Some(content_range) = value(&format!("bytes {first}-{last}/{size}"))
    {
        response.headers_mut().insert(header::CONTENT_RANGE, content_range);
    }
    Ok(response)
}
