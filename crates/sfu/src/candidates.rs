//! The ICE candidates offered to every client: where the media ports can be reached. Pure but for the list of interfaces,
//! which is handed in.

use std::net::{IpAddr, SocketAddr};

use crate::config::Config;

/// Addresses worth offering, best first: those the operator named, then those of the machine.
pub(crate) fn addresses(config: &Config, interfaces: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = config.external_ips.clone();
    if config.candidate_ips.is_empty() {
        let local = || interfaces.iter().copied().filter(|ip| !is_link_local(*ip));
        addresses.extend(local().filter(|ip| !ip.is_loopback()));
        if config.offer_loopback || addresses.is_empty() {
            addresses.extend(local().filter(IpAddr::is_loopback));
        }
    } else {
        addresses.extend(&config.candidate_ips);
    }
    let mut seen = Vec::new();
    addresses.retain(|ip| {
        let new = !seen.contains(ip);
        seen.push(*ip);
        new
    });
    addresses
}

/// The addresses under which `bound` can be reached, with its port. A socket bound to an address that is not among them is
/// reachable there at least: who listens on loopback wants to be called there.
pub(crate) fn reachable(addresses: &[IpAddr], bound: &[SocketAddr], external: &[IpAddr]) -> Vec<SocketAddr> {
    let mut reachable = Vec::new();
    for socket in bound {
        let candidates = addresses.iter().filter(|ip| {
            ip.is_ipv4() == socket.is_ipv4()
                && (socket.ip().is_unspecified() || socket.ip() == **ip || external.contains(ip))
        });
        let before = reachable.len();
        reachable.extend(candidates.map(|ip| SocketAddr::new(*ip, socket.port())));
        if reachable.len() == before && !socket.ip().is_unspecified() {
            reachable.push(*socket);
        }
    }
    reachable
}

/// Candidate lines without `a=` (RFC 8839 §5.1): UDP before TCP.
pub(crate) fn lines(udp: &[SocketAddr], tcp: &[SocketAddr]) -> Vec<String> {
    let mut lines = Vec::new();
    // RFC 8445 §5.1.2.1: type preference 126 for host candidates; TCP below every UDP candidate.
    for (index, address) in udp.iter().enumerate() {
        let priority = (126 << 24) | ((65_535 - index as u32) << 8) | 255;
        lines.push(format!(
            "candidate:{} 1 udp {priority} {} {} typ host",
            index + 1,
            address.ip(),
            address.port()
        ));
    }
    for (index, address) in tcp.iter().enumerate() {
        let priority = (90 << 24) | ((65_535 - index as u32) << 8) | 255;
        let (ip, port) = (address.ip(), address.port());
        lines.push(format!(
            "candidate:{} 1 tcp {priority} {ip} {port} typ host tcptype passive",
            index + 101
        ));
    }
    lines
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        // A link-local address means nothing without its zone, which SDP cannot carry.
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_machines_addresses_are_offered_and_loopback_only_when_asked_or_alone() {
        let interfaces = ips(&[
            "127.0.0.1",
            "192.168.1.5",
            "169.254.3.4",
            "fe80::1",
            "2001:db8::5",
            "::1",
        ]);
        let config = Config {
            external_ips: ips(&["203.0.113.9"]),
            ..Config::default()
        };
        assert_eq!(
            addresses(&config, &interfaces),
            ips(&["203.0.113.9", "192.168.1.5", "2001:db8::5"])
        );
        let config = Config {
            offer_loopback: true,
            ..Config::default()
        };
        assert_eq!(
            addresses(&config, &interfaces),
            ips(&["192.168.1.5", "2001:db8::5", "127.0.0.1", "::1"])
        );
        assert_eq!(addresses(&Config::default(), &ips(&["127.0.0.1"])), ips(&["127.0.0.1"]));
        let config = Config {
            candidate_ips: ips(&["10.0.0.1"]),
            ..Config::default()
        };
        assert_eq!(addresses(&config, &interfaces), ips(&["10.0.0.1"]));
    }

    #[test]
    fn a_socket_bound_to_one_address_is_offered_there_and_outside() {
        let all = ips(&["203.0.113.9", "192.168.1.5", "10.0.0.1"]);
        let bound = ["192.168.1.5:7882".parse().unwrap()];
        let expected: Vec<SocketAddr> = vec!["203.0.113.9:7882".parse().unwrap(), "192.168.1.5:7882".parse().unwrap()];
        assert_eq!(reachable(&all, &bound, &ips(&["203.0.113.9"])), expected);
        let loopback = ["127.0.0.1:7882".parse().unwrap()];
        assert_eq!(reachable(&all, &loopback, &[]), loopback, "the one place where it is");
    }

    #[test]
    fn candidate_lines_prefer_udp_and_the_first_address() {
        let lines = lines(
            &["192.0.2.1:7882".parse().unwrap()],
            &["192.0.2.1:7881".parse().unwrap()],
        );
        assert_eq!(lines[0], "candidate:1 1 udp 2130706431 192.0.2.1 7882 typ host");
        assert!(lines[1].ends_with("typ host tcptype passive"));
    }
}
