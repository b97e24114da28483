//! Structured logs on standard error, and panics as log lines. Knows no subsystem; what may never be logged (tokens,
//! keys, bodies) is the duty of whoever writes a span or an event.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// For a command that may open the store itself: only what goes wrong is shown.
pub(crate) fn install_for_command() {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("warn"))
        .with_writer(std::io::stderr)
        .init();
}

/// Libraries that call ordinary work "info": the authorisation of every event would fill the log. A filter that names
/// them overrides this.
const QUIETER: &str = "ruma_state_res=warn";

/// Installs the subscriber and the panic hook; once per process.
pub(crate) fn install(log: &Log) {
    // The configuration has been checked; should the filter still not parse, the default level is the safe answer.
    let filter = EnvFilter::try_new(format!("{QUIETER},{}", log.filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no message)");
        tracing::error!(place, message, backtrace = %std::backtrace::Backtrace::capture(), "panic");
    }));
}
