//! The command line: its names, which scripts and tests rely on, and nothing of what they do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::units::parse_duration;

/// Matrix chat and calls for a group of people, in one process.
#[derive(Debug, Parser)]
#[command(name = "longhouse", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options every command understands.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The configuration file [default: ./longhouse.toml, then /etc/longhouse/longhouse.toml, if one exists]
    #[arg(long, short, global = true, value_name = "FILE", env = "LONGHOUSE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// The server's name: the part after the colon in @user:name
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// The data directory
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server (the default)
    Serve,
    /// Print or check a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Accounts, while the server runs or is stopped
    #[command(subcommand)]
    User(UserCommand),
    /// Tokens with which people register themselves
    #[command(subcommand)]
    RegistrationToken(TokenCommand),
    /// Succeed if the server runs and wants traffic, for health checks
    Ready,
    /// Print every listener, and firewall lines for it
    Ports,
    /// Print how a web server of yours answers where this server is
    Wellknown {
        /// What to write it for
        #[arg(long = "for", value_name = "SERVER")]
        target: WellknownTarget,
    },
    /// Print the version
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a complete, commented, working file
    Generate,
    /// Read the configuration and say what is wrong with it; exit status 1 if anything is
    Check,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add an account
    Add {
        name: String,
        /// Make it an administrator
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// List the accounts
    List,
    /// Set a password
    Password {
        name: String,
        #[command(flatten)]
        password: PasswordSource,
    },
    /// End an account for good; its name stays taken
    Deactivate { name: String },
    /// Make somebody an administrator, or take it away
    Admin { name: String, switch: Switch },
}

/// Where a password comes from; asked for on the terminal when neither is given.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct PasswordSource {
    /// Read the password from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Make a password and print it
    #[arg(long)]
    pub(crate) generate_password: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it
    Create {
        /// How many accounts it admits [default: any number]
        #[arg(long, value_name = "N")]
        uses: Option<u32>,
        /// How long it works, for instance 7d [default: for ever]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires: Option<Duration>,
    },
    /// List the tokens
    List,
    /// End a token
    Revoke { token: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WellknownTarget {
    Nginx,
    Caddy,
    Traefik,
    /// A Cloudflare Worker
    Worker,
    /// Two files for any web server
    Static,
}
