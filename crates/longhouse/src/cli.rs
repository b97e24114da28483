//! The command line: its names, which scripts and tests rely on, and nothing of what they do.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
