//! Push rules: what a user wants to be told of, and whom an event therefore notifies. It decides and keeps the rules;
//! the rows it decides on are written with the event, and counting what is unread is the storage's.

mod counts;
mod evaluate;
mod ignored;
pub(crate) mod rules;
mod threads;

pub(crate) use counts::{Counts, Recorded};
pub(crate) use ignored::{IGNORED_USERS, IgnoreLists};
pub(crate) use rules::{PUSH_RULES, RuleError, ruleset_json};

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use ruma::{OwnedServerName, OwnedUserId, UserId, push::Ruleset};
use storage::{Store, account_data::set_account_data};

use crate::sync::{Change, Notifier};

/// The users' push rules, and who ignores whom.
#[derive(Debug)]
pub struct Push {
    server_name: OwnedServerName,
    store: Store,
    notifier: Arc<Notifier>,
    /// Users who changed anything of the default rules; their rules once they were needed.
    customised: RwLock<HashMap<OwnedUserId, Option<Arc<Ruleset>>>>,
    /// One change or load at a time, so that a load never puts back what a change replaced.
    changing: tokio::sync::Mutex<()>,
    pub(crate) ignored: IgnoreLists,
    pub(crate) counts: Counts,
}

impl Push {
    pub(crate) async fn open(
        server_name: OwnedServerName,
        store: Store,
        notifier: Arc<Notifier>,
    ) -> Result<Self, storage::Error> {
        let customised = store
            .users_with_push_rules()
            .await?
            .into_iter()
            .filter_map(|user_id| Some((UserId::parse(user_id).ok()?, None)))
            .collect();
        Ok(Self {
            server_name,
            ignored: IgnoreLists::new(store.ignored_user_lists().await?),
            counts: Counts::new(store.clone()),
            store,
            notifier,
            customised: RwLock::new(customised),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// The user's rules: what they changed, over the server's defaults.
    pub(crate) async fn ruleset(&self, user_id: &UserId) -> Result<Arc<Ruleset>, storage::Error> {
        match self.known(user_id) {
            Known::Default => Ok(Arc::new(Ruleset::server_default(user_id))),
            Known::Loaded(rules) => Ok(rules),
            Known::NotLoaded => {
                let _one = self.changing.lock().await;
                self.load(user_id).await
            }
        }
    }

    /// Changes the user's rules and tells their devices.
    pub(crate) async fn change(
        &self,
        user_id: &UserId,
        change: impl FnOnce(&mut Ruleset) -> Result<(), RuleError>,
    ) -> Result<(), RuleError> {
        let _one = self.changing.lock().await;
        let mut rules = match self.known(user_id) {
            Known::Default => Ruleset::server_default(user_id),
            Known::Loaded(rules) => (*rules).clone(),
            Known::NotLoaded => (*self.load(user_id).await?).clone(),
        };
        change(&mut rules)?;
        let text = rules::to_text(&rules)?;
        let (user, notifier) = (user_id.to_owned(), self.notifier.clone());
        self.store
            .write_at::<_, storage::Error, _>(1, move |tx, position| {
                Box::pin(async move {
                    set_account_data(tx, (user.as_str(), "", PUSH_RULES), &text, position).await?;
                    notifier.mark_user(&user, Change::AccountData, position);
                    Ok(())
                })
            })
            .await?;
        self.customised
            .write()
            .insert(user_id.to_owned(), Some(Arc::new(rules)));
        Ok(())
    }

    fn known(&self, user_id: &UserId) -> Known {
        match self.customised.read().get(user_id) {
            None => Known::Default,
            Some(None) => Known::NotLoaded,
            Some(Some(rules)) => Known::Loaded(rules.clone()),
        }
    }

    /// Reads the rules of a user who has some. The caller holds `changing`.
    async fn load(&self, user_id: &UserId) -> Result<Arc<Ruleset>, storage::Error> {
        if let Known::Loaded(rules) = self.known(user_id) {
            return Ok(rules);
        }
        let text = self.store.account_data(user_id.as_str(), "", PUSH_RULES).await?;
        let rules = Arc::new(rules::from_text(text.as_deref(), user_id));
        self.customised.write().insert(user_id.to_owned(), Some(rules.clone()));
        Ok(rules)
    }
}

enum Known {
    Default,
    NotLoaded,
    Loaded(Arc<Ruleset>),
}
