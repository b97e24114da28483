//! What the homeserver is told at its start. Each part belongs to the module that reads it.

use std::path::PathBuf;

use ruma::OwnedServerName;
use serde::Deserialize;

use crate::{accounts, limits, media, presence};

/// `[user_directory]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserDirectory {
    /// Whether everybody is found, not only those who share a room with the searcher or are in a public one.
    pub show_everybody: bool,
}

/// The homeserver's settings, parsed into their final types by the process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name in user and room ids. It never changes.
    pub server_name: OwnedServerName,
    /// Where files live that are not in the database.
    pub data_dir: PathBuf,
    /// The URL that clients reach this server at, without a trailing slash: `https://chat.example.org`.
    pub public_base_url: String,
    /// `[rooms]`.
    pub rooms: crate::room::Config,
    /// `[registration]`.
    pub registration: accounts::RegistrationConfig,
    /// `[auth]`.
    pub auth: accounts::AuthConfig,
    /// `[media]`.
    pub media: media::Config,
    /// `[presence]`.
    pub presence: presence::Config,
    /// `[user_directory]`.
    pub user_directory: UserDirectory,
    /// `[rate_limits]`.
    pub rate_limits: limits::Config,
}

impl Config {
    /// The default settings of a server of this name.
    pub fn new(server_name: OwnedServerName, data_dir: PathBuf, public_base_url: String) -> Self {
        Self {
            server_name,
            data_dir,
            public_base_url,
            rooms: crate::room::Config::default(),
            registration: accounts::RegistrationConfig::default(),
            auth: accounts::AuthConfig::default(),
            media: media::Config::default(),
            presence: presence::Config::default(),
            user_directory: UserDirectory::default(),
            rate_limits: limits::Config::default(),
        }
    }
}
