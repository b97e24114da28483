//! Who ignores whom. Kept whole in memory: lists are few and short, and both delivery and notification ask for every
//! event.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use parking_lot::RwLock;
use ruma::{OwnedUserId, UserId};
use serde::Deserialize;

/// The type of the account data that holds a user's list.
pub(crate) const IGNORED_USERS: &str = "m.ignored_user_list";

#[derive(Debug, Default)]
struct Lists {
    by_user: HashMap<OwnedUserId, Arc<HashSet<OwnedUserId>>>,
    by_ignored: HashMap<OwnedUserId, HashSet<OwnedUserId>>,
}

/// The lists of ignored users of all users (spec: client-server API §Ignoring Users).
#[derive(Debug, Default)]
pub(crate) struct IgnoreLists {
    lists: RwLock<Lists>,
}

impl IgnoreLists {
    /// Reads the kept lists: (user, account data content).
    pub(crate) fn new(kept: Vec<(String, String)>) -> Self {
        let lists = Self::default();
        for (user_id, content) in kept {
            if let Ok(user_id) = UserId::parse(user_id) {
                lists.set(&user_id, &content);
            }
        }
        lists
    }

    /// Replaces a user's list with the content of their account data; a content of another shape is an empty list.
    pub(crate) fn set(&self, user_id: &UserId, content: &str) {
        #[derive(Default, Deserialize)]
        struct Content {
            ignored_users: HashMap<OwnedUserId, serde::de::IgnoredAny>,
        }
        let mut ignored: HashSet<OwnedUserId> = serde_json::from_str::<Content>(content)
            .unwrap_or_default()
            .ignored_users
            .into_keys()
            .collect();
        ignored.remove(user_id);
        let mut lists = self.lists.write();
        if let Some(former) = lists.by_user.remove(user_id) {
            for other in former.iter() {
                if let Some(users) = lists.by_ignored.get_mut(other) {
                    users.remove(user_id);
                    if users.is_empty() {
                        lists.by_ignored.remove(other);
                    }
                }
            }
        }
        if ignored.is_empty() {
            return;
        }
        for other in &ignored {
            lists
                .by_ignored
                .entry(other.clone())
                .or_default()
                .insert(user_id.to_owned());
        }
        lists.by_user.insert(user_id.to_owned(), Arc::new(ignored));
    }

    /// Whom the user ignores; `None` when nobody.
    pub(crate) fn of(&self, user_id: &UserId) -> Option<Arc<HashSet<OwnedUserId>>> {
        self.lists.read().by_user.get(user_id).cloned()
    }

    /// Who ignores `sender`.
    pub(crate) fn ignoring(&self, sender: &UserId) -> HashSet<OwnedUserId> {
        self.lists.read().by_ignored.get(sender).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, user_id};

    use super::*;

    #[test]
    fn lists_are_replaced_whole() {
        let lists = IgnoreLists::new(vec![(
            "@a:x".into(),
            r#"{"ignored_users":{"@b:x":{},"@c:x":{},"@a:x":{}}}"#.into(),
        )]);
        let ignoring = |sender| lists.ignoring(sender).contains(&owned_user_id!("@a:x"));
        assert!(ignoring(user_id!("@b:x")));
        assert!(!ignoring(user_id!("@a:x")), "nobody ignores themselves");
        lists.set(user_id!("@a:x"), r#"{"ignored_users":{"@c:x":{}}}"#);
        assert!(!ignoring(user_id!("@b:x")));
        assert!(ignoring(user_id!("@c:x")));
        assert_eq!(lists.of(user_id!("@a:x")).unwrap().len(), 1);
        lists.set(user_id!("@a:x"), r#"{"ignored_users":1}"#);
        assert!(lists.of(user_id!("@a:x")).is_none());
        assert!(!ignoring(user_id!("@c:x")));
    }
}
