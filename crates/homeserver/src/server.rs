//! The handle that every request works on, and how it is put together.

use std::{ops::Deref, sync::Arc};

use storage::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Clock, Config, Keys,
    accounts::Accounts,
    calls::Calls,
    devices::Devices,
    limits::Limits,
    media::Media,
    presence::Presence,
    push::Push,
    room::{Listeners, Rooms},
    sync::{self, Notifier, Streams},
};

/// The homeserver. Cheap to clone; the services are fields of what it dereferences to.
#[derive(Debug, Clone)]
pub struct Homeserver(Arc<Services>);

/// What the homeserver is made of. Services do not know each other: a request or a background task
/// that needs several takes the whole [`Homeserver`].
#[derive(Debug)]
pub struct Services {
    /// The settings.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// The signing key.
    pub keys: Arc<Keys>,
    /// Users, their sessions, and who a request comes from.
    pub accounts: Accounts,
    /// Rooms: their events, state and members.
    pub rooms: Rooms,
    /// What devices hear of.
    pub sync: Streams,
    /// Push rules, and whom events notify.
    pub push: Arc<Push>,
    /// Who is there.
    pub presence: Presence,
    /// Calls: credentials, entry to the SFU, delayed events.
    pub calls: Calls,
    /// Devices and their keys.
    pub devices: Devices,
    /// What users uploaded.
    pub media: Media,
    /// Rate limits.
    pub limits: Limits,
    /// Background tasks; the process waits for them when it stops.
    pub tasks: TaskTracker,
    /// Cancelled when the process stops: long polls answer, background tasks end.
    pub shutdown: CancellationToken,
}

/// Why the homeserver could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The folder for media cannot be used.
    #[error("the media folder {path} cannot be used: {source}")]
    MediaFolder {
        /// The folder.
        path: std::path::PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The kept signing key cannot be read.
    #[error("the signing key kept in the database cannot be used: {0}; restore it from a backup")]
    SigningKey(String),
}

impl Homeserver {
    /// Puts the services together and starts their background tasks.
    ///
    /// # Errors
    /// When the database fails or what it keeps cannot be used.
    pub async fn start(
        config: Config,
        store: Store,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let keys = Arc::new(Keys::open(&store).await?);
        let notifier = Arc::new(Notifier::new(store.positions().current()));
        let sync = Streams::new(store.clone(), clock.clone(), notifier.clone());
        let calls = Calls::open(&store, &clock).await?;
        let push = Arc::new(Push::open(config.server_name.clone(), store.clone(), notifier.clone()).await?);
        let accounts = Accounts::new(store.clone(), clock.clone(), &config);
        let devices = Devices::open(store.clone(), notifier.clone()).await?;
        let media = Media::open(&config, store.clone(), clock.clone()).await?;
        let presence = Presence::open(&config.presence, &store, clock.clone()).await?;
        let limits = Limits::new(config.rate_limits.clone(), clock.clone());
        let tasks = TaskTracker::new();
        let rooms = Rooms::new(
            config.rooms.clone(),
            store.clone(),
            clock.clone(),
            keys.clone(),
            config.server_name.clone(),
            Listeners {
                tasks: tasks.clone(),
                notifier,
                push: push.clone(),
            },
        );
        let homeserver = Self(Arc::new(Services {
            config,
            store,
            clock,
            keys,
            accounts,
            calls,
            devices,
            media,
            presence,
            limits,
            sync,
            push,
            rooms,
            tasks,
            shutdown,
        }));
        homeserver.tasks.spawn(homeserver.clone().keep_accounts());
        homeserver.tasks.spawn(homeserver.clone().keep_tidy());
        if homeserver.presence.is_enabled() {
            homeserver.tasks.spawn(homeserver.clone().keep_presence());
        }
        sync::start(&homeserver);
        Ok(homeserver)
    }
}

impl Deref for Homeserver {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}
