//! Push rules over HTTP, on both engines.

use http::Method;
use serde_json::{Value, json};
use testkit::database;

use crate::harness::Server;

const RULES: &str = "/_matrix/client/v3/pushrules/global";

#[tokio::test]
async fn rules_are_added_ordered_changed_and_removed() {
    database::each(|db| async move {
        let server = Server::start(&db).await;
        let token = server.register("alice").await;
        let put = async |path: &str, body: Value| {
            server
                .json(Method::PUT, &format!("{RULES}/{path}"), Some(&token), &body)
                .await
        };
        let get = async |path: &str| server.get(&format!("{RULES}/{path}"), Some(&token)).await;
        let ids = async |kind: &str| -> Vec<String> {
            let rules = get("").await.ok();
            let rules = rules[kind].as_array().cloned().unwrap_or_default();
            let own = rules.iter().filter(|rule| rule["default"] == false);
            own.map(|rule| rule["rule_id"].as_str().unwrap().to_owned()).collect()
        };

        let all = server.get("/_matrix/client/v3/pushrules/", Some(&token)).await.ok();
        assert_eq!(all["global"]["override"][0]["rule_id"], ".m.rule.master");
        assert_eq!(all["global"]["room"], json!([]));

        for id in ["a", "b"] {
            put(&format!("content/{id}"), json!({"pattern": id, "actions": ["notify"]}))
                .await
                .ok();
        }
        assert_eq!(ids("content").await, ["b", "a"], "a new rule is the most important one");
        put("content/c?after=b", json!({"pattern": "c", "actions": []}))
            .await
            .ok();
        put("content/d?before=a", json!({"pattern": "d", "actions": []}))
            .await
            .ok();
        assert_eq!(ids("content").await, ["b", "c", "d", "a"]);
        put("content/e?after=none", json!({"pattern": "e", "actions": []}))
            .await
            .is_error(400, "M_UNKNOWN");
        put("content/.e", json!({"pattern": "e", "actions": []}))
            .await
            .is_error(400, "M_INVALID_PARAM");
        put("content/e?before=.m.rule.x", json!({"pattern": "e", "actions": []}))
            .await
            .is_error(400, "M_INVALID_PARAM");

        assert_eq!(get("content/a").await.ok()["pattern"], "a");
        put("content/a/enabled", json!({"enabled": false})).await.ok();
        assert_eq!(get("content/a/enabled").await.ok(), json!({"enabled": false}));
        put("underride/.m.rule.message/actions", json!({"actions": []}))
            .await
            .ok();
        assert_eq!(
            get("underride/.m.rule.message/actions").await.ok(),
            json!({"actions": []})
        );
        get("content/none").await.is_error(404, "M_NOT_FOUND");
        put("content/none/enabled", json!({"enabled": false}))
            .await
            .is_error(404, "M_NOT_FOUND");

        let delete = async |path: &str| {
            server
                .raw(Method::DELETE, &format!("{RULES}/{path}"), Some(&token), vec![])
                .await
        };
        delete("content/a").await.ok();
        delete("content/a").await.is_error(404, "M_NOT_FOUND");
        delete("override/.m.rule.master").await.is_error(400, "M_INVALID_PARAM");
        assert_eq!(ids("content").await, ["b", "c", "d"]);

        // They are there after a restart too.
        server.stop().await;
        let server = Server::start(&db).await;
        let rule = server.get(&format!("{RULES}/content/c"), Some(&token)).await.ok();
        assert_eq!(rule["pattern"], "c");
        server.stop().await;
    })
    .await;
}
