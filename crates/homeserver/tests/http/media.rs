//! Uploads, downloads and profiles.

use http::{Method, Request, StatusCode, header};
use serde_json::json;

use crate::harness::Server;

const UPLOAD: &str = "/_matrix/media/v3/upload?filename=a%20cat.png";

async fn upload(server: &Server, token: &str, content_type: &str, content: &[u8]) -> (StatusCode, serde_json::Value) {
    let request = Request::post(UPLOAD)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, content_type)
        .body(axum::body::Body::from(content.to_vec()))
        .unwrap();
    let response = tower::ServiceExt::oneshot(server.router.clone(), request)
        .await
        .unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

fn path(uri: &serde_json::Value, kind: &str) -> String {
    format!(
        "/_matrix/client/v1/media/{kind}/{}",
        uri["content_uri"].as_str().unwrap().trim_start_matches("mxc://")
    )
}

#[tokio::test]
async fn a_file_comes_back_as_it_went_and_to_users_only() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.media.max_upload_bytes = 300_000).await;
        let token = server.register("alice").await;
        let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let (status, uri) = upload(&server, &token, "image/png", &content).await;
        assert_eq!(status, 200);
        let got = server.get(&path(&uri, "download"), Some(&token)).await;
        assert_eq!(got.bytes, content);
        assert_eq!(got.headers["content-type"], "image/png");
        assert_eq!(got.headers["content-length"], "200000");
        assert!(
            got.headers["content-disposition"]
                .to_str()
                .unwrap()
                .starts_with("inline; filename=")
        );
        assert!(
            got.headers["content-security-policy"]
                .to_str()
                .unwrap()
                .starts_with("sandbox;")
        );
        assert_eq!(got.headers["cross-origin-resource-policy"], "cross-origin");
        assert_eq!(got.headers["x-content-type-options"], "nosniff");
        server
            .get(&path(&uri, "download"), None)
            .await
            .is_error(401, "M_MISSING_TOKEN");
        let old = path(&uri, "download").replace("client/v1/media", "media/v3");
        server.get(&old, Some(&token)).await.is_error(404, "M_NOT_FOUND");
        let named = server
            .get(&format!("{}/other.txt", path(&uri, "download")), Some(&token))
            .await;
        assert!(
            named.headers["content-disposition"]
                .to_str()
                .unwrap()
                .contains("other.txt")
        );
        let small = format!("{}?width=32&height=32&method=crop", path(&uri, "thumbnail"));
        assert_eq!(server.get(&small, Some(&token)).await.bytes, content);

        // The same content again is another address.
        let (_, again) = upload(&server, &token, "text/html", &content).await;
        assert_ne!(again, uri);
        let got = server.get(&path(&again, "download"), Some(&token)).await;
        assert!(
            got.headers["content-disposition"]
                .to_str()
                .unwrap()
                .starts_with("attachment")
        );
        let small = small.replace(&path(&uri, "thumbnail"), &path(&again, "thumbnail"));
        server.get(&small, Some(&token)).await.is_error(400, "M_UNKNOWN");

        let (status, error) = upload(&server, &token, "image/png", &vec![0; 300_001]).await;
        assert_eq!((status.as_u16(), &error["errcode"]), (413, &json!("M_TOO_LARGE")));
        let left = std::fs::read_dir(db.dir.join("media/incoming")).unwrap().count();
        assert_eq!(left, 0, "nothing unfinished stays");
        for bad in ["elsewhere/abc", "example.org/abc", "example.org/..%2F..%2Fx"] {
            let bad = format!("/_matrix/client/v1/media/download/{bad}");
            server.get(&bad, Some(&token)).await.is_error(404, "M_NOT_FOUND");
        }
        let config = server.get("/_matrix/client/v1/media/config", Some(&token)).await.ok();
        assert_eq!(config["m.upload.size"], 300_000);
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_reserved_address_is_filled_once() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let uri = server
            .raw(Method::POST, "/_matrix/media/v1/create", Some(&alice), Vec::new())
            .await
            .ok();
        let early = format!("{}?timeout_ms=0", path(&uri, "download"));
        server.get(&early, Some(&bob)).await.is_error(504, "M_NOT_YET_UPLOADED");
        let place = path(&uri, "x").replace("client/v1/media/x", "media/v3/upload");
        let fill = |token: String| {
            server.raw(
                Method::PUT,
                Box::leak(place.clone().into_boxed_str()),
                Some(Box::leak(token.into_boxed_str())),
                b"hello".to_vec(),
            )
        };
        fill(bob.clone()).await.is_error(403, "M_FORBIDDEN");
        // Somebody who waits gets it when it arrives.
        let patient = path(&uri, "download");
        let (got, filled) = tokio::join!(server.get(&patient, Some(&bob)), fill(alice.clone()));
        filled.ok();
        assert_eq!(got.bytes, b"hello");
        fill(alice.clone()).await.is_error(409, "M_CANNOT_OVERWRITE_MEDIA");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn profiles_are_read_by_all_and_written_by_their_owner() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let profile = "/_matrix/client/v3/profile/@alice:example.org";
        assert_eq!(server.get(profile, None).await.ok(), json!({ "displayname": "alice" }));
        let name = format!("{profile}/displayname");
        server
            .json(Method::PUT, &name, Some(&alice), &json!({ "displayname": "Alice A." }))
            .await
            .ok();
        server
            .json(Method::PUT, &name, Some(&bob), &json!({ "displayname": "x" }))
            .await
            .is_error(403, "M_FORBIDDEN");
        server
            .json(Method::PUT, &name, Some(&alice), &json!({ "displayname": 1 }))
            .await
            .is_error(400, "M_BAD_JSON");
        let zone = format!("{profile}/m.tz");
        server
            .json(Method::PUT, &zone, Some(&alice), &json!({ "m.tz": "Europe/Vienna" }))
            .await
            .ok();
        assert_eq!(server.get(&zone, None).await.ok(), json!({ "m.tz": "Europe/Vienna" }));
        let large = json!({ "m.tz": "x".repeat(70_000) });
        server
            .json(Method::PUT, &zone, Some(&alice), &large)
            .await
            .is_error(400, "M_PROFILE_TOO_LARGE");
        server.raw(Method::DELETE, &zone, Some(&alice), Vec::new()).await.ok();
        server.get(&zone, None).await.is_error(404, "M_NOT_FOUND");
        assert_eq!(
            server.get(profile, None).await.ok(),
            json!({ "displayname": "Alice A." })
        );
        server
            .get("/_matrix/client/v3/profile/@nobody:example.org", None)
            .await
            .is_error(404, "M_NOT_FOUND");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn parts_of_a_file_and_files_that_a_client_has() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let token = server.register("alice").await;
        let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let (_, uri) = upload(&server, &token, "video/mp4", &content).await;
        let get = async |headers: &[(header::HeaderName, &str)]| {
            let mut request =
                Request::get(path(&uri, "download")).header(header::AUTHORIZATION, format!("Bearer {token}"));
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            server.send(request.body(axum::body::Body::empty()).unwrap()).await
        };
        let whole = get(&[]).await;
        assert_eq!(
            (whole.status, &whole.headers["accept-ranges"]),
            (StatusCode::OK, &"bytes".parse().unwrap())
        );
        let tag = whole.headers["etag"].to_str().unwrap().to_owned();

        let part = get(&[(header::RANGE, "bytes=100000-100009")]).await;
        assert_eq!(part.status, 206);
        assert_eq!(part.bytes, content[100_000..100_010]);
        assert_eq!(part.headers["content-range"], "bytes 100000-100009/200000");
        assert_eq!(part.headers["content-length"], "10");
        assert_eq!(part.headers["content-type"], "video/mp4");
        let end = get(&[(header::RANGE, "bytes=-70000"), (header::IF_RANGE, &tag)]).await;
        assert_eq!((end.status.as_u16(), &end.bytes[..]), (206, &content[130_000..]));
        let other = get(&[(header::RANGE, "bytes=-70000"), (header::IF_RANGE, "\"x\"")]).await;
        assert_eq!((other.status.as_u16(), other.bytes.len()), (200, 200_000));
        let beyond = get(&[(header::RANGE, "bytes=200000-")]).await;
        beyond.is_error(416, "M_UNKNOWN");
        assert_eq!(beyond.headers["content-range"], "bytes */200000");

        let known = get(&[(header::IF_NONE_MATCH, &tag), (header::RANGE, "bytes=0-9")]).await;
        assert_eq!((known.status.as_u16(), known.bytes.len()), (304, 0));
        assert_eq!(known.headers["etag"], tag.as_str());
        get(&[(header::IF_MATCH, "\"x\"")]).await.is_error(412, "M_UNKNOWN");
        server.stop().await;
    })
    .await;
}
