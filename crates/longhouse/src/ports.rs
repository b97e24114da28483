//! `longhouse ports`: every listener the configuration opens, and the lines that open it in three firewalls. Pure text.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::config::Config;

/// A port, or a range of them, that the process listens on or may open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// The setting that asks for it.
    pub(crate) key: &'static str,
    /// `tcp` or `udp`.
    pub(crate) protocol: &'static str,
    pub(crate) ip: IpAddr,
    pub(crate) first: u16,
    pub(crate) last: u16,
    purpose: &'static str,
}

impl Port {
    fn new(key: &'static str, protocol: &'static str, address: SocketAddr, purpose: &'static str) -> Self {
        Self {
            key,
            protocol,
            ip: address.ip(),
            first: address.port(),
            last: address.port(),
            purpose,
        }
    }

    /// Loopback listeners need no line in a firewall.
    fn is_open_to_others(&self) -> bool {
        !self.ip.is_loopback()
    }

    fn range(&self, separator: char) -> String {
        range(self.first, self.last, separator)
    }
}

/// Every one that the configuration asks for, as often as it does.
pub(crate) fn listeners(config: &Config) -> Vec<Port> {
    let mut ports = Vec::new();
    for address in &config.listen.addresses {
        ports.push(Port::new(
            "listen.addresses",
            "tcp",
            *address,
            "HTTP: clients, call signalling, the page",
        ));
    }
    for address in &config.tls.addresses {
        ports.push(Port::new("tls.addresses", "tcp", *address, "HTTPS and TURN over TLS"));
    }
    if config.metrics.enabled {
        ports.push(Port::new("metrics.address", "tcp", config.metrics.address, "metrics"));
    }
    if config.turn.enabled {
        for address in &config.turn.listen {
            ports.push(Port::new("turn.listen", "udp", *address, "STUN and TURN"));
            if config.turn.tcp {
                ports.push(Port::new(
                    "turn.listen",
                    "tcp",
                    *address,
                    "TURN for networks without UDP",
                ));
            }
        }
        for address in &config.turn.listen {
            let range = &config.turn.relay_ports;
            ports.push(Port {
                key: "turn.relay_ports",
                protocol: "udp",
                ip: address.ip(),
                first: range.first(),
                last: range.last(),
                purpose: "relayed calls with peers outside this server",
            });
        }
    }
    if config.sfu.enabled {
        let (udp, tcp) = (config.sfu.udp_listen, config.sfu.tcp_listen);
        ports.extend(udp.map(|address| Port::new("sfu.udp_listen", "udp", address, "media of group calls")));
        ports
            .extend(tcp.map(|address| Port::new("sfu.tcp_listen", "tcp", address, "media of group calls without UDP")));
    }
    ports
}

/// The table and the firewall lines.
pub(crate) fn text(config: &Config) -> String {
    let mut ports = listeners(config);
    let mut seen = Vec::new();
    ports.retain(|port| {
        let new = !seen.contains(port);
        seen.push(port.clone());
        new
    });
    let mut text = String::new();
    for port in &ports {
        line(
            &mut text,
            &format!(
                "{:<4} {:<12} {:<17} {}",
                port.protocol,
                port.range('-'),
                port.ip,
                port.purpose
            ),
        );
    }
    let mut open: Vec<(&str, u16, u16)> = ports
        .iter()
        .filter(|port| port.is_open_to_others())
        .map(|port| (port.protocol, port.first, port.last))
        .collect();
    open.sort_unstable();
    open.dedup();
    if open.is_empty() {
        line(&mut text, "\nAll of them are on loopback: no firewall line is needed.");
        return text;
    }
    line(&mut text, "\n# ufw");
    for (protocol, first, last) in &open {
        line(
            &mut text,
            &format!("ufw allow {}/{protocol}", range(*first, *last, ':')),
        );
    }
    line(&mut text, "\n# firewalld");
    for (protocol, first, last) in &open {
        line(
            &mut text,
            &format!(
                "firewall-cmd --permanent --add-port={}/{protocol}",
                range(*first, *last, '-')
            ),
        );
    }
    line(&mut text, "firewall-cmd --reload");
    line(&mut text, "\n# nftables, in the input chain");
    for protocol in ["tcp", "udp"] {
        let of_protocol: Vec<String> = open
            .iter()
            .filter(|(of, ..)| *of == protocol)
            .map(|(_, first, last)| range(*first, *last, '-'))
            .collect();
        if !of_protocol.is_empty() {
            line(
                &mut text,
                &format!("{protocol} dport {{ {} }} accept", of_protocol.join(", ")),
            );
        }
    }
    text
}

fn range(first: u16, last: u16, separator: char) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}{separator}{last}")
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_open_what_calls_need() {
        let text = text(&Config::default());
        for part in [
            "tcp  8008         127.0.0.1         HTTP",
            "ufw allow 3478/tcp",
            "ufw allow 3478/udp",
            "ufw allow 7882/udp",
            "firewall-cmd --permanent --add-port=7881/tcp",
            "ufw allow 49160:49200/udp",
            "udp dport { 3478, 7882, 49160-49200 } accept",
        ] {
            assert!(text.contains(part), "lacks {part}: {text}");
        }
        assert!(
            !text.contains("allow 8008"),
            "loopback listeners need no firewall line: {text}"
        );
    }
}
