//! The public room directory, on both engines.

use serde_json::{Value, json};

use crate::sync::{User, World, each, escaped};

async fn public(w: &World, user: &User, name: &str, kind: Option<&str>) -> String {
    let creation = kind.map_or_else(|| json!({}), |kind| json!({ "type": kind }));
    let room = json!({"preset": "public_chat", "visibility": "public", "name": name, "creation_content": creation});
    w.room(user, room).await
}

fn names(page: &Value) -> Vec<&str> {
    let chunk = page["chunk"].as_array().unwrap().iter();
    chunk.map(|room| room["name"].as_str().unwrap()).collect()
}

async fn list(w: &World, parameters: &str) -> Value {
    w.server
        .get(&format!("/_matrix/client/v3/publicRooms?{parameters}"), None)
        .await
        .ok()
}

#[tokio::test]
async fn the_directory_follows_the_rooms_without_reading_them() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let first = public(&w, &alice, "First", None).await;
        assert_eq!(names(&list(&w, "").await), ["First"]);
        let second = public(&w, &alice, "Second", None).await;
        for n in 0..3 {
            w.room(
                &alice,
                json!({"preset": "private_chat", "name": format!("private {n}")}),
            )
            .await;
        }
        let reads = w.server.homeserver.store.reads();
        assert_eq!(list(&w, "").await["total_room_count_estimate"], 2);
        assert_eq!(
            w.server.homeserver.store.reads() - reads,
            0,
            "a known directory asks the database nothing"
        );

        // The larger one comes first.
        w.join(&bob, &second).await;
        let page = list(&w, "").await;
        assert_eq!(names(&page), ["Second", "First"]);
        assert_eq!(page["chunk"][0]["num_joined_members"], 2);
        w.leave(&bob, &second).await;
        w.join(&bob, &first).await;
        w.set_state(&alice, &second, "m.room.name", json!({"name": "Renamed"}))
            .await;
        w.set_state(&alice, &second, "m.room.topic", json!({"topic": "of WATER"}))
            .await;
        let page = list(&w, "").await;
        assert_eq!(names(&page), ["First", "Renamed"]);
        assert_eq!(page["chunk"][1]["topic"], "of WATER");

        let visibility = format!("/_matrix/client/v3/directory/list/room/{}", escaped(&first));
        w.put(&alice, &visibility, json!({"visibility": "private"})).await;
        assert_eq!(names(&list(&w, "").await), ["Renamed"]);
        w.put(&alice, &visibility, json!({"visibility": "public"})).await;
        assert_eq!(names(&list(&w, "").await), ["First", "Renamed"]);
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn pages_stay_where_they_were_when_rooms_come_and_go() {
    each(|w| async move {
        let (alice, bob) = (w.user("alice").await, w.user("bob").await);
        let mut rooms = Vec::new();
        for n in 0..7 {
            rooms.push(public(&w, &alice, &format!("room {n}"), None).await);
        }
        let all = list(&w, "").await;
        let all = names(&all);
        let (mut seen, mut since) = (Vec::new(), String::new());
        loop {
            let page = list(&w, &format!("limit=3{since}")).await;
            seen.extend(names(&page).into_iter().map(str::to_owned));
            assert_eq!(page["prev_batch"].is_null(), since.is_empty());
            if seen.len() == 3 {
                // A room of an earlier page grows: later pages do not move.
                let at = rooms.iter().position(|_| true).unwrap();
                let grown = seen[1].strip_prefix("room ").unwrap().parse::<usize>().unwrap_or(at);
                w.join(&bob, &rooms[grown]).await;
            }
            match page["next_batch"].as_str() {
                Some(next) => since = format!("&since={}", escaped(next)),
                None => {
                    let back = escaped(page["prev_batch"].as_str().unwrap());
                    let back = list(&w, &format!("limit=3&since={back}")).await;
                    assert_eq!(names(&back), all[3..6]);
                    break;
                }
            }
        }
        assert_eq!(seen, all);
        w.server
            .get("/_matrix/client/v3/publicRooms?since=p3", None)
            .await
            .is_error(400, "M_INVALID_PARAM");
        w.server.stop().await;
    })
    .await;
}

#[tokio::test]
async fn rooms_are_found_by_word_and_by_type() {
    each(|w| async move {
        let alice = w.user("alice").await;
        public(&w, &alice, "Gärten", None).await;
        public(&w, &alice, "Garden space", Some("m.space")).await;
        public(&w, &alice, "Machines", Some("org.example.odd")).await;
        let search = async |filter: Value| {
            let page = w
                .post(&alice, "/_matrix/client/v3/publicRooms", json!({ "filter": filter }))
                .await;
            let mut found: Vec<String> = names(&page).into_iter().map(str::to_owned).collect();
            assert_eq!(page["total_room_count_estimate"], found.len());
            found.sort();
            found
        };
        assert_eq!(search(json!({"generic_search_term": "gÄRT"})).await, ["Gärten"]);
        assert_eq!(search(json!({"generic_search_term": "gar"})).await, ["Garden space"]);
        assert_eq!(search(json!({"room_types": ["m.space"]})).await, ["Garden space"]);
        assert_eq!(search(json!({"room_types": [null]})).await, ["Gärten"]);
        assert_eq!(
            search(json!({"room_types": ["m.space", "org.example.odd"]})).await,
            ["Garden space", "Machines"]
        );
        assert_eq!(
            search(json!({"room_types": [null], "generic_search_term": "machines"})).await,
            [""; 0]
        );
        w.server.stop().await;
    })
    .await;
}
