//! The configuration: reads it from every layer, parses it into final types and checks what only holds across sections.
//! Each crate owns the meaning and the defaults of its own section; this module owns the sections of the process.

mod check;
pub(crate) mod error;
pub(crate) mod reference;
mod source;
pub(crate) mod units;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use homeserver::accounts::{AuthConfig, RegistrationConfig};
use homeserver::limits;
use homeserver::room::{self, SUPPORTED_VERSIONS};
use ipnet::IpNet;
use serde::Deserialize;

use error::{ConfigError, Fault, Place};
use source::{Locator, Sources};

/// Where a file is looked for when none is named.
const DEFAULT_FILES: &[&str] = &["longhouse.toml", "/etc/longhouse/longhouse.toml"];

/// Everything the process is told, in final types.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The name in every identifier this server issues (Matrix appendices, server name grammar).
    pub(crate) server_name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: Listen,
    pub(crate) tls: Tls,
    pub(crate) database: storage::Config,
    pub(crate) registration: RegistrationConfig,
    pub(crate) auth: AuthConfig,
    pub(crate) rooms: Rooms,
    pub(crate) turn: relay::Config,
    pub(crate) sfu: sfu::Config,
    pub(crate) media: homeserver::media::Config,
    pub(crate) presence: homeserver::presence::Config,
    pub(crate) user_directory: homeserver::UserDirectory,
    pub(crate) rate_limits: limits::Config,
    pub(crate) log: Log,
    pub(crate) metrics: Metrics,
    pub(crate) web: Web,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_name: "localhost".to_owned(),
            data_dir: PathBuf::from("./data"),
            listen: Listen::default(),
            tls: Tls::default(),
            database: storage::Config::default(),
            registration: RegistrationConfig::default(),
            auth: AuthConfig::default(),
            rooms: Rooms::default(),
            turn: relay::Config::default(),
            sfu: sfu::Config::default(),
            media: homeserver::media::Config::default(),
            presence: homeserver::presence::Config::default(),
            user_directory: homeserver::UserDirectory::default(),
            rate_limits: limits::Config::default(),
            log: Log::default(),
            metrics: Metrics::default(),
            web: Web::default(),
        }
    }
}

/// Where HTTP is answered, and how much of it at once.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Listen {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) public_url: Option<PublicUrl>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) max_connections: usize,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) header_timeout: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(crate) idle_timeout: Duration,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 8008))],
            public_url: None,
            trusted_proxies: vec![
                IpNet::new(IpAddr::from([127, 0, 0, 0]), 8).expect("8 is a valid prefix of an IPv4 address"),
                IpNet::from(IpAddr::from(std::net::Ipv6Addr::LOCALHOST)),
            ],
            max_connections: 16_384,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(90),
        }
    }
}

/// HTTPS with certificates from files; TURN over TLS on the same ports.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) private_key: Option<PathBuf>,
}

/// An `http` or `https` address without path, query or trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PublicUrl(String);

impl TryFrom<String> for PublicUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address like \"https://matrix.example.org\"");
        let uri: http::Uri = text.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        if uri.query().is_some() || uri.path() != "/" {
            return Err(format!(
                "`{text}` must not have a path: the standards fix the paths below the host"
            ));
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What rooms are made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rooms {
    /// One of [`SUPPORTED_VERSIONS`].
    pub(crate) default_version: String,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            default_version: room::Config::default().default_version.to_string(),
        }
    }
}

/// How the process reports what it does.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info,ruma_state_res=warn".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Prometheus, on a listener of its own so that a public address never shows it by accident.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    pub(crate) enabled: bool,
    pub(crate) address: SocketAddr,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            enabled: false,
            address: SocketAddr::from(([127, 0, 0, 1], 9108)),
        }
    }
}

/// The page at `/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Web {
    pub(crate) enabled: bool,
}

impl Default for Web {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) file: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
}

impl Config {
    /// Reads file, environment and command line; answers with every fault that could be found at once.
    pub(crate) fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        Ok(Self::read(&gather(overrides)?)?.0)
    }

    /// The same, and looks at the files that it names, as a start must.
    pub(crate) fn load_with_files(overrides: &Overrides) -> Result<Self, ConfigError> {
        let (config, locator) = Self::read(&gather(overrides)?)?;
        refuse(check::files(&config, &locator))?;
        Ok(config)
    }

    fn read(sources: &Sources) -> Result<(Self, Locator), ConfigError> {
        let (config, locator): (Self, _) = source::read(sources)?;
        refuse(check::values(&config, &locator))?;
        Ok((config, locator))
    }

    /// What the homeserver is told.
    pub(crate) fn homeserver(&self, data_dir: &Path) -> homeserver::Config {
        let server_name = self
            .server_name
            .parse()
            .expect("the name was checked when the configuration was read");
        let version = SUPPORTED_VERSIONS
            .into_iter()
            .find(|version| version.as_str() == self.rooms.default_version);
        homeserver::Config {
            rooms: room::Config {
                default_version: version.expect("the version was checked when the configuration was read"),
            },
            registration: self.registration.clone(),
            auth: self.auth.clone(),
            media: self.media.clone(),
            presence: self.presence.clone(),
            user_directory: self.user_directory.clone(),
            rate_limits: self.rate_limits.clone(),
            ..homeserver::Config::new(server_name, data_dir.to_owned(), self.public_url())
        }
    }

    /// The address clients use, without a trailing slash.
    pub(crate) fn public_url(&self) -> String {
        if let Some(url) = &self.listen.public_url {
            return url.to_string();
        }
        let host = host_of(&self.server_name);
        let is_local = host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if !is_local {
            return format!("https://{}", self.server_name);
        }
        match self.listen.addresses.first() {
            Some(address) if address.ip().is_unspecified() => format!("http://{host}:{}", address.port()),
            Some(address) => format!("http://{address}"),
            None => format!("http://{host}"),
        }
    }
}

fn refuse(faults: Vec<Fault>) -> Result<(), ConfigError> {
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ConfigError(faults))
    }
}

fn gather(overrides: &Overrides) -> Result<Sources, ConfigError> {
    let path = match &overrides.file {
        Some(path) => Some(path.clone()),
        None => DEFAULT_FILES
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .map(Path::to_owned),
    };
    let file = match path {
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Fault::new(Place::Nowhere, format!("cannot read {}: {error}", path.display()))
                    .advise("`longhouse config generate --server-name NAME` prints a working file")
            })?;
            Some((path, text))
        }
        None => None,
    };
    let mut arguments = Vec::new();
    if let Some(name) = &overrides.server_name {
        arguments.push(("--server-name", "server_name", name.clone()));
    }
    if let Some(data) = &overrides.data_dir {
        arguments.push(("--data", "data_dir", data.display().to_string()));
    }
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Sources {
        file,
        environment,
        arguments,
    })
}

/// The host of a server name, without its port; an IPv6 literal keeps its brackets.
pub(crate) fn host_of(server_name: &str) -> &str {
    match server_name.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) && !host.is_empty() => host,
        _ => server_name,
    }
}

/// Spec: appendices, server name grammar.
pub(crate) fn check_server_name(name: &str) -> Result<(), String> {
    let host = host_of(name);
    let port = name[host.len()..].strip_prefix(':');
    let host_ok = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        }
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if name.len() > 230 {
        return Err("the server name is longer than 230 characters".to_owned());
    }
    if host_ok && port_ok {
        Ok(())
    } else {
        Err(format!("`{name}` is not a server name"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let read = Config::read(&Sources {
            file: Some((PathBuf::from("l.toml"), text.to_owned())),
            ..Sources::default()
        });
        read.map(|(config, _)| config)
    }

    #[test]
    fn the_reference_file_shows_the_defaults() {
        let shown = read(&reference::uncommented()).expect("the reference file is valid");
        assert_eq!(format!("{shown:#?}"), format!("{:#?}", Config::default()));
        let silent = read(reference::REFERENCE).expect("the reference file is valid");
        assert_eq!(format!("{silent:#?}"), format!("{:#?}", Config::default()));
    }

    /// The deserializer names the keys it expects: they must be the documented ones.
    #[test]
    fn the_reference_file_is_complete() {
        let sections = std::iter::once("").chain(reference::sections());
        for section in sections {
            let text = if section.is_empty() {
                "zzz = 1".to_owned()
            } else {
                format!("[{section}]\nzzz = 1")
            };
            let error = toml::from_str::<Config>(&text)
                .expect_err("zzz is no key")
                .message()
                .to_owned();
            let expected: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
            assert!(!expected.is_empty(), "{error}");
            for key in expected {
                let is_section = section.is_empty() && reference::sections().any(|section| section == key);
                assert!(
                    is_section || reference::find(section, key).is_some(),
                    "`{section}.{key}` is not documented"
                );
            }
        }
    }

    #[test]
    fn examples_are_valid() {
        for key in reference::keys().iter().filter(|key| !key.has_default) {
            // These two stand and fall with each other and with a listener: tested with the faults.
            let header = match key.section.as_str() {
                "tls" => continue,
                "" => String::new(),
                section => format!("[{section}]\n"),
            };
            read(&format!("{header}{} = {}\n", key.name, key.shown)).expect("an example is a valid setting");
        }
    }

    #[test]
    fn generated_files_start() {
        let config = read(&reference::generate("example.org", None)).expect("valid");
        assert_eq!(config.server_name, "example.org");
        assert_eq!(config.data_dir, Path::new("./data"));
        let config = read(&reference::generate("example.org", Some("/srv/a \"b\""))).expect("valid");
        assert_eq!(config.data_dir, Path::new("/srv/a \"b\""));
    }

    #[test]
    fn public_urls_follow_from_the_name() {
        for (text, expected) in [
            ("", "http://127.0.0.1:8008"),
            ("server_name = \"example.org\"", "https://example.org"),
            ("server_name = \"example.org:8448\"", "https://example.org:8448"),
            (
                "server_name = \"10.0.0.5\"\n[listen]\naddresses = [\"0.0.0.0:80\"]",
                "http://10.0.0.5:80",
            ),
            (
                "server_name = \"a.org\"\n[listen]\npublic_url = \"https://m.a.org/\"",
                "https://m.a.org",
            ),
        ] {
            assert_eq!(read(text).expect("valid").public_url(), expected, "{text}");
        }
    }

    #[test]
    fn server_names_follow_the_grammar() {
        for name in [
            "example.org",
            "localhost",
            "a-b.c:8448",
            "1.2.3.4",
            "1.2.3.4:80",
            "[::1]",
            "[2001:db8::1]:443",
        ] {
            assert_eq!(check_server_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            ":80",
            "a_b",
            "a b",
            "example.org:99999",
            "[::g]",
            "ex/ample",
            "müller.de",
            "a:b",
        ] {
            assert!(check_server_name(name).is_err(), "{name}");
        }
    }
}
