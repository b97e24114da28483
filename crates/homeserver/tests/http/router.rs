//! What holds for every path.

use http::{Method, StatusCode};

use crate::harness::Server;

#[tokio::test]
async fn unknown_paths_preflights_and_cors() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let unknown = server.get("/_matrix/client/v3/no/such/thing", None).await;
        unknown.is_error(404, "M_UNRECOGNIZED");
        assert_eq!(unknown.headers["access-control-allow-origin"], "*");
        let preflight = server
            .raw(Method::OPTIONS, "/_matrix/client/v3/anything", None, Vec::new())
            .await;
        assert_eq!(preflight.status, StatusCode::OK);
        assert!(
            preflight.headers["access-control-allow-headers"]
                .to_str()
                .unwrap()
                .contains("Authorization")
        );
        server.stop().await;
    })
    .await;
}
