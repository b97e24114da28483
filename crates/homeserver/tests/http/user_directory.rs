//! Finding users, and what one shares with them.
//! Spec: client-server API, "User directory" and "Mutual rooms".

use http::Method;
use serde_json::{Value, json};

use crate::harness::Server;

async fn find(server: &Server, token: &str, term: &str) -> Vec<String> {
    let body = json!({ "search_term": term });
    let path = "/_matrix/client/v3/user_directory/search";
    let found = server.json(Method::POST, path, Some(token), &body).await.ok();
    let users = found["results"].as_array().unwrap().iter();
    users.map(|user| user["user_id"].as_str().unwrap().to_owned()).collect()
}

async fn rename(server: &Server, token: &str, user: &str, name: &str) {
    let path = format!("/_matrix/client/v3/profile/{user}/displayname");
    let body = json!({ "displayname": name });
    server.json(Method::PUT, &path, Some(token), &body).await.ok();
}

async fn room(server: &Server, token: &str, body: Value) -> String {
    let path = "/_matrix/client/v3/createRoom";
    let made = server.json(Method::POST, path, Some(token), &body).await.ok();
    made["room_id"].as_str().unwrap().to_owned()
}

async fn join(server: &Server, token: &str, room: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/join");
    server.json(Method::POST, &path, Some(token), &json!({})).await.ok();
}

#[tokio::test]
async fn users_are_found_by_those_who_may_see_them() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let (carol, dora) = (server.register("carol").await, server.register("dora").await);
        rename(&server, &bob, "@bob:example.org", "王小明").await;
        rename(&server, &carol, "@carol:example.org", "山田太郎 (Büro)").await;
        assert!(find(&server, &alice, "bob").await.is_empty(), "they share no room");

        let private = room(
            &server,
            &alice,
            json!({ "preset": "private_chat", "invite": ["@bob:example.org"] }),
        )
        .await;
        assert!(find(&server, &alice, "bob").await.is_empty(), "invited is not joined");
        join(&server, &bob, &private).await;
        for term in [
            "bob",
            "BOB",
            "@bob:example.org",
            "小",
            "王小明",
            "明",
            "小明 example.org",
        ] {
            assert_eq!(find(&server, &alice, term).await, ["@bob:example.org"], "{term}");
        }
        assert!(find(&server, &carol, "bob").await.is_empty());

        // Who is in a room that anybody may join is seen by all, as long as the room is open.
        let public = room(&server, &carol, json!({ "preset": "public_chat" })).await;
        for term in ["carol", "田太", "太郎", "büro", "BÜRO 山"] {
            assert_eq!(find(&server, &dora, term).await, ["@carol:example.org"], "{term}");
        }
        let path = format!("/_matrix/client/v3/rooms/{public}/state/m.room.join_rules");
        let rules = json!({ "join_rule": "invite" });
        server.json(Method::PUT, &path, Some(&carol), &rules).await.ok();
        assert!(find(&server, &dora, "carol").await.is_empty());
        let listed = json!({ "visibility": "public" });
        let path = format!("/_matrix/client/v3/directory/list/room/{public}");
        server.json(Method::PUT, &path, Some(&carol), &listed).await.ok();
        assert_eq!(find(&server, &dora, "carol").await, ["@carol:example.org"]);

        assert!(find(&server, &dora, "dora").await.is_empty(), "oneself is no find");
        assert!(find(&server, &alice, "").await.is_empty());
        assert!(find(&server, &alice, "%_").await.is_empty());
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_directory_is_ranked_limited_and_can_show_everybody() {
    testkit::database::each(|db| async move {
        let server = Server::start_with(&db, |c| c.user_directory.show_everybody = true).await;
        let alice = server.register("alice").await;
        for name in ["ann", "annabel", "joann"] {
            server.register(name).await;
        }
        let expected = ["@ann:example.org", "@annabel:example.org", "@joann:example.org"];
        assert_eq!(find(&server, &alice, "ann").await, expected);
        let body = json!({ "search_term": "ann", "limit": 2 });
        let path = "/_matrix/client/v3/user_directory/search";
        let found = server.json(Method::POST, path, Some(&alice), &body).await.ok();
        assert_eq!(
            (found["results"].as_array().unwrap().len(), &found["limited"]),
            (2, &json!(true))
        );
        let long = json!({ "search_term": "x".repeat(600) });
        server
            .json(Method::POST, path, Some(&alice), &long)
            .await
            .is_error(400, "M_INVALID_PARAM");
        server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn mutual_rooms_are_those_both_have_joined() {
    testkit::database::each(|db| async move {
        let server = Server::start(&db).await;
        let (alice, bob) = (server.register("alice").await, server.register("bob").await);
        let mut shared = Vec::new();
        for _ in 0..3 {
            shared.push(room(&server, &alice, json!({ "preset": "public_chat" })).await);
        }
        join(&server, &bob, &shared[0]).await;
        join(&server, &bob, &shared[2]).await;
        let mut expected = vec![shared[0].clone(), shared[2].clone()];
        expected.sort();
        let path = "/_matrix/client/v1/mutual_rooms?user_id=@bob:example.org";
        let answer = server.get(path, Some(&alice)).await.ok();
        assert_eq!(answer, json!({ "joined": expected, "count": 2 }));
        let rest = format!("{path}&from={}", expected[0]);
        let answer = server.get(&rest, Some(&alice)).await.ok();
        assert_eq!(answer, json!({ "joined": [expected[1]], "count": 2 }));
        let nobody = "/_matrix/client/v1/mutual_rooms?user_id=@nobody:example.org";
        assert_eq!(
            server.get(nobody, Some(&alice)).await.ok(),
            json!({ "joined": [], "count": 0 })
        );
        for wrong in [
            "user_id=@alice:example.org",
            "user_id=nonsense",
            "",
            "user_id=@bob:example.org&from=x",
        ] {
            let path = format!("/_matrix/client/v1/mutual_rooms?{wrong}");
            server.get(&path, Some(&alice)).await.is_error(400, "M_INVALID_PARAM");
        }
        server.stop().await;
    })
    .await;
}
