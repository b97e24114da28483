//! What the types alone cannot refuse: faults of one value that its type permits, faults between sections, and files
//! that cannot be read. Knows every section; owns none.

use std::net::IpAddr;

use homeserver::limits::Rate;
use homeserver::room::SUPPORTED_VERSIONS;

use super::error::{Fault, Place};
use super::source::Locator;
use super::{Config, check_server_name};
use crate::http::tls::{Certificate, TlsError};
use crate::ports::{self, Port};

/// A realm is an attribute of a message and quoted there (RFC 8489 §14.9: fewer than 128 characters).
const LONGEST_REALM: usize = 127;

/// The shortest lifetime of an allocation that clients can live with: they refresh a minute before the end.
const SHORTEST_LIFETIME: u32 = 120;

struct Check<'a> {
    config: &'a Config,
    locator: &'a Locator,
    faults: Vec<Fault>,
}

/// Every fault that shows without looking at anything but the configuration.
pub(super) fn values(config: &Config, locator: &Locator) -> Vec<Fault> {
    let mut check = Check {
        config,
        locator,
        faults: Vec::new(),
    };
    check.name_and_directory();
    check.listeners();
    check.tls();
    check.database();
    check.registration();
    check.rooms();
    check.relay();
    check.calls();
    check.rates();
    check.log();
    check.ports();
    check.faults
}

/// Every fault of the files that the configuration names.
pub(super) fn files(config: &Config, locator: &Locator) -> Vec<Fault> {
    let mut check = Check {
        config,
        locator,
        faults: Vec::new(),
    };
    check.data_dir();
    check.certificate();
    check.faults
}

impl Check<'_> {
    fn fault(&mut self, key: &str, cause: impl Into<String>, advice: impl Into<String>) {
        let fault = Fault::new(self.locator.place(key), cause).advise(advice);
        self.faults.push(fault);
    }

    fn at_least_one(&mut self, key: &str, value: u64, advice: &str) {
        if value == 0 {
            self.fault(key, format!("`{key}` must be at least 1"), advice);
        }
    }

    fn name_and_directory(&mut self) {
        if let Err(cause) = check_server_name(&self.config.server_name) {
            self.fault(
                "server_name",
                cause,
                "write a host name such as \"example.org\", without https://",
            );
        }
        if self.config.data_dir.as_os_str().is_empty() {
            self.fault(
                "data_dir",
                "`data_dir` is empty",
                "name a directory, such as \"./data\"",
            );
        }
    }

    fn listeners(&mut self) {
        let listen = &self.config.listen;
        if listen.addresses.is_empty() {
            self.fault(
                "listen.addresses",
                "`listen.addresses` is empty",
                "name at least one address, for instance \"127.0.0.1:8008\"",
            );
        }
        self.at_least_one(
            "listen.max_connections",
            listen.max_connections as u64,
            "every client needs a connection, a browser several: the default is 16384",
        );
        for (key, duration) in [
            ("listen.header_timeout", listen.header_timeout),
            ("listen.idle_timeout", listen.idle_timeout),
        ] {
            if duration.is_zero() {
                self.fault(
                    key,
                    format!("`{key}` is zero: every connection would be closed at once"),
                    "write how long to wait, for instance \"30s\"",
                );
            }
        }
        if let Some(everybody) = listen.trusted_proxies.iter().find(|net| net.prefix_len() == 0) {
            self.fault(
                "listen.trusted_proxies",
                format!("`{everybody}` trusts everybody: any client could choose the address it is known by"),
                "name the addresses of your reverse proxies, for instance \"10.0.0.2/32\"",
            );
        }
    }

    fn tls(&mut self) {
        let tls = &self.config.tls;
        let advice = "name the certificate chain and its private key, both PEM files, or remove `tls.addresses`";
        let missing = match (&tls.certificate, &tls.private_key) {
            (None, None) if tls.addresses.is_empty() => return,
            (Some(_), Some(_)) if tls.addresses.is_empty() => {
                self.fault(
                    "tls.certificate",
                    "`tls.certificate` is set, but `tls.addresses` is empty: nothing would be answered over TLS",
                    "name the addresses for HTTPS, for instance [\"0.0.0.0:443\"], or remove the certificate",
                );
                return;
            }
            (Some(_), Some(_)) => return,
            (None, None) => ("tls.addresses", "tls.certificate` and `tls.private_key"),
            (Some(_), None) => ("tls.certificate", "tls.private_key"),
            (None, Some(_)) => ("tls.private_key", "tls.certificate"),
        };
        let (set, lacking) = missing;
        self.fault(set, format!("`{set}` needs `{lacking}`"), advice);
    }

    fn database(&mut self) {
        // The address holds a password: it is not shown.
        if let Err(error) = self.config.database.check() {
            let url = self.config.database.url.as_deref().unwrap_or_default();
            let scheme = url.split(':').next().unwrap_or_default();
            let known = ["postgres", "postgresql", "sqlite"];
            let advice = match super::reference::nearest(scheme, known.into_iter()) {
                Some(nearest) if nearest != scheme => format!("did you mean `{nearest}:`?"),
                _ => "write \"postgres://user:password@host/database\", or leave it out for SQLite".to_owned(),
            };
            self.fault("database.url", error.to_string(), advice);
        }
        self.at_least_one(
            "database.max_connections",
            self.config.database.max_connections.into(),
            "the default is 8",
        );
    }

    fn registration(&mut self) {
        let secret = self.config.registration.shared_secret.as_deref();
        if secret.is_some_and(|secret| secret.trim().is_empty()) {
            self.fault(
                "registration.shared_secret",
                "`registration.shared_secret` is empty: everybody would know it",
                "write a long random text, or leave it out",
            );
        }
    }

    fn rooms(&mut self) {
        let version = &self.config.rooms.default_version;
        let supported: Vec<&str> = SUPPORTED_VERSIONS.iter().map(|version| version.as_str()).collect();
        if !supported.contains(&version.as_str()) {
            self.fault(
                "rooms.default_version",
                format!("there is no room version `{version}` here"),
                format!("the versions are {}", supported.join(", ")),
            );
        }
    }

    fn relay(&mut self) {
        let turn = &self.config.turn;
        if !turn.enabled {
            return;
        }
        if turn.listen.is_empty() {
            self.fault(
                "turn.listen",
                "`turn.listen` is empty",
                "name at least one address, such as \"0.0.0.0:3478\", or set `turn.enabled = false`",
            );
        }
        if let Err(error) = turn.check_external_ips() {
            self.fault(
                "turn.external_ips",
                error.to_string(),
                "for example `external_ips = [\"203.0.113.7\"]`",
            );
        }
        if let Some(realm) = &turn.realm
            && (realm.is_empty() || realm.chars().count() > LONGEST_REALM || realm.chars().any(char::is_control))
        {
            self.fault(
                "turn.realm",
                format!("`turn.realm` must have 1 to {LONGEST_REALM} printable characters"),
                "leave it out: it is the server's name then",
            );
        }
        let off = "to offer no relay, set `turn.enabled = false`";
        self.at_least_one("turn.max_allocations", turn.max_allocations.into(), off);
        self.at_least_one(
            "turn.max_allocations_per_user",
            turn.max_allocations_per_user.into(),
            off,
        );
        if turn.tcp {
            self.at_least_one(
                "turn.max_tcp_connections",
                turn.max_tcp_connections.into(),
                "to offer UDP alone, set `turn.tcp = false`",
            );
        }
        if turn.max_lifetime < SHORTEST_LIFETIME {
            self.fault(
                "turn.max_lifetime",
                format!(
                    "`turn.max_lifetime` of {} seconds ends allocations before clients refresh them",
                    turn.max_lifetime
                ),
                format!("write at least {SHORTEST_LIFETIME}; the default is 3600"),
            );
        }
    }

    fn calls(&mut self) {
        let sfu = &self.config.sfu;
        if !sfu.enabled {
            return;
        }
        for (key, ips) in [
            ("sfu.external_ips", &sfu.external_ips),
            ("sfu.candidate_ips", &sfu.candidate_ips),
        ] {
            if let Some(ip) = ips.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
                self.fault(
                    key,
                    format!("`{key}`: {ip} is not an address that clients could reach"),
                    "name the address clients send media to, or leave the list empty",
                );
            }
        }
        for (key, seconds) in [
            ("sfu.ping_timeout_seconds", sfu.ping_timeout_seconds),
            ("sfu.media_timeout_seconds", sfu.media_timeout_seconds),
        ] {
            self.at_least_one(key, seconds.into(), "without it nobody could stay in a call");
        }
    }

    fn rates(&mut self) {
        for (key, Rate { per_second, burst }) in self.config.rate_limits.rates() {
            if !per_second.is_finite() || per_second <= 0.0 || burst == 0 {
                self.fault(
                    key,
                    format!("`{key}`: `per_second` must be a number above 0, and `burst` at least 1"),
                    "to limit nothing, set `rate_limits.enabled = false`",
                );
            }
        }
    }

    fn log(&mut self) {
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.config.log.filter) {
            self.fault(
                "log.filter",
                format!("`log.filter`: {error}"),
                "write a level (error, warn, info, debug, trace), optionally per module: \"info,relay=debug\"",
            );
        }
    }

    /// Two listeners of this process on one port.
    fn ports(&mut self) {
        let all = ports::listeners(self.config);
        for (index, second) in all.iter().enumerate() {
            let Some(first) = all[..index].iter().find(|first| collide(first, second)) else {
                continue;
            };
            let port = first.first.max(second.first);
            let cause = if first.key == second.key {
                format!("`{}` names {} port {port} twice", second.key, second.protocol)
            } else {
                format!(
                    "`{}` and `{}` both want {} port {port}",
                    first.key, second.key, second.protocol
                )
            };
            // The key that is written down, rather than the other's default.
            let written = [second.key, first.key]
                .into_iter()
                .find(|key| self.locator.place(key) != Place::Nowhere);
            self.fault(
                written.unwrap_or(second.key),
                cause,
                "give one of them another port; `longhouse ports` lists them all",
            );
        }
    }

    fn data_dir(&mut self) {
        let path = &self.config.data_dir;
        if path.exists() && !path.is_dir() {
            self.fault(
                "data_dir",
                format!("`data_dir`: {} is not a directory", path.display()),
                "name a directory; it is made when it does not exist",
            );
        }
    }

    fn certificate(&mut self) {
        let (Some(chain), Some(key)) = (&self.config.tls.certificate, &self.config.tls.private_key) else {
            return;
        };
        let Err(error) = Certificate::read(chain, key) else {
            return;
        };
        let at = match &error {
            TlsError::Read { path, .. } if path == chain => "tls.certificate",
            TlsError::NoCertificate { .. } => "tls.certificate",
            TlsError::Read { .. } | TlsError::Unusable(_) => "tls.private_key",
        };
        let text = error.to_string();
        let (cause, advice) = text.split_once("\n  ").unwrap_or((&text, "see [tls] in the reference"));
        self.fault(at, cause, advice);
    }
}

/// Whether the kernel would refuse the second. Port 0 stands for any free one; a wildcard covers its own family, since
/// every listener of ours on `[::]` is for IPv6 alone.
fn collide(first: &Port, second: &Port) -> bool {
    let covers = |wildcard: IpAddr, ip: IpAddr| wildcard.is_unspecified() && wildcard.is_ipv4() == ip.is_ipv4();
    let same_host = first.ip == second.ip || covers(first.ip, second.ip) || covers(second.ip, first.ip);
    let same_port = first.first <= second.last && second.first <= first.last && first.last != 0 && second.last != 0;
    let both_are_the_range = first.key == second.key && first.first != first.last;
    first.protocol == second.protocol && same_host && same_port && !both_are_the_range
}

#[cfg(test)]
mod tests;
