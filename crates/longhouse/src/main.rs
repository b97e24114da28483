//! The `longhouse` process: command line, configuration, listeners, wiring and shutdown. No protocol logic: what is
//! true about Matrix, TURN or LiveKit lives in the crates this one connects.

mod admin;
mod cli;
mod clock;
mod config;
mod data_dir;
mod http;
mod limits;
mod logging;
mod media;
mod ports;
mod ready;
mod serve;
mod wellknown;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, ConfigCommand};
use config::{Config, Overrides, reference};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed; there is nowhere left to say so.
            let _ = writeln!(std::io::stderr(), "longhouse: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let overrides = Overrides {
        file: cli.options.config,
        server_name: cli.options.server_name,
        data_dir: cli.options.data,
    };
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(Config::load_with_files(&overrides)?)?,
        Command::Config(ConfigCommand::Generate) => {
            let name = overrides
                .server_name
                .as_deref()
                .ok_or("config generate needs --server-name NAME")?;
            config::check_server_name(name)?;
            let data_dir = overrides.data_dir.as_deref().map(|path| path.display().to_string());
            print(&reference::generate(name, data_dir.as_deref()))?;
        }
        Command::Config(ConfigCommand::Check) => match Config::load_with_files(&overrides) {
            Ok(config) => print(&format!("the configuration of {} is valid\n", config.server_name))?,
            Err(error) => {
                writeln!(std::io::stderr(), "{error}")?;
                return Ok(ExitCode::FAILURE);
            }
        },
        Command::User(command) => {
            let config = Config::load(&overrides)?;
            logging::install_for_command();
            print(&admin::command::user(&config, command)?)?;
        }
        Command::RegistrationToken(command) => {
            let config = Config::load(&overrides)?;
            logging::install_for_command();
            print(&admin::command::registration_token(&config, command)?)?;
        }
        Command::Ready => {
            let config = Config::load(&overrides)?;
            let address = config.listen.addresses.first().ok_or("`listen.addresses` is empty")?;
            if !ready::ask(*address).map_err(|error| format!("{address} does not answer: {error}"))? {
                return Err("the server runs, but is not ready".into());
            }
        }
        Command::Ports => print(&ports::text(&Config::load(&overrides)?))?,
        Command::Wellknown { target } => print(&wellknown::text(&Config::load(&overrides)?, target))?,
        Command::Version => print(&format!("longhouse {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output; a reader that went away (`| head`) is not an error.
fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
