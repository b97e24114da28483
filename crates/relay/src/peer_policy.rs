//! Whom a client may reach through the relay.
//!
//! Denied unless granted: what lives in this process (through the in-process switch, never through a socket) and the
//! networks the administrator lists. A listed network never grants special-purpose addresses or those of this machine by
//! accident: `0.0.0.0/0` opens the internet, not the loopback interface and not the services beside us.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// How a peer address may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Through the in-process switch.
    pub(crate) inside: bool,
    /// Through a socket.
    pub(crate) outside: bool,
}

impl Reach {
    pub(crate) fn is_denied(self) -> bool {
        !self.inside && !self.outside
    }
}

/// The policy of one relay.
#[derive(Debug)]
pub(crate) struct PeerPolicy {
    inside: HashSet<IpAddr>,
    /// Addresses of this machine, but for loopback, whose whole network is ours.
    own: HashSet<IpAddr>,
    allowed: Vec<IpNet>,
}

impl PeerPolicy {
    /// `inside`: addresses of this process besides those of allocations. `allowed`: the administrator's networks.
    pub(crate) fn new(inside: impl IntoIterator<Item = IpAddr>, allowed: &[IpNet]) -> Self {
        Self {
            inside: inside.into_iter().map(|ip| ip.to_canonical()).collect(),
            own: HashSet::new(),
            allowed: allowed.iter().map(canonical_net).collect(),
        }
    }

    /// The addresses that this machine has at present.
    pub(crate) fn set_own(&mut self, own: impl IntoIterator<Item = IpAddr>) {
        self.own.clear();
        self.own.extend(own.into_iter().map(|ip| ip.to_canonical()));
    }

    /// Whether any peer can need a socket.
    pub(crate) fn reaches_outside(&self) -> bool {
        !self.allowed.is_empty()
    }

    /// How this address may be reached; `is_relayed`: an allocation of this process has it.
    pub(crate) fn reach(&self, peer: IpAddr, is_relayed: bool) -> Reach {
        let peer = peer.to_canonical();
        Reach {
            inside: is_relayed || self.inside.contains(&peer),
            outside: self.is_allowed(peer),
        }
    }

    fn is_allowed(&self, peer: IpAddr) -> bool {
        let special = special_purpose_net(peer);
        // Behind such an address are services that trust what comes from their own machine, or that a firewall hides.
        let is_own = !peer.is_loopback() && (self.own.contains(&peer) || self.inside.contains(&peer));
        self.allowed.iter().any(|net| {
            net.contains(&peer)
                && special.is_none_or(|special| special.contains(net))
                && (!is_own || net.prefix_len() == net.max_prefix_len())
        })
    }
}

/// `::ffff:a.b.c.d/n` means the IPv4 network.
fn canonical_net(net: &IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(ip), Some(prefix)) if net.addr().is_ipv6() => IpNet::V4(Ipv4Net::new_assert(ip, prefix)),
        _ => *net,
    }
}

/// Networks that mean something else than "a host on the internet" (IANA special-purpose registries, RFC 6890), and those
/// that embed an IPv4 address and would lead around every rule about it.
const SPECIAL_V4: &[Ipv4Net] = &[
    v4(Ipv4Addr::new(0, 0, 0, 0), 8),
    v4(Ipv4Addr::new(10, 0, 0, 0), 8),
    v4(Ipv4Addr::new(100, 64, 0, 0), 10),
    v4(Ipv4Addr::new(127, 0, 0, 0), 8),
    v4(Ipv4Addr::new(169, 254, 0, 0), 16),
    v4(Ipv4Addr::new(172, 16, 0, 0), 12),
    v4(Ipv4Addr::new(192, 0, 0, 0), 24),
    v4(Ipv4Addr::new(192, 168, 0, 0), 16),
    v4(Ipv4Addr::new(198, 18, 0, 0), 15),
    v4(Ipv4Addr::new(224, 0, 0, 0), 4),
    v4(Ipv4Addr::new(240, 0, 0, 0), 4),
];

const SPECIAL_V6: &[Ipv6Net] = &[
    v6([0, 0], 96),         // unspecified, loopback, IPv4-compatible
    v6([0x64, 0xff9b], 32), // NAT64, well-known and local-use
    v6([0x100, 0], 64),     // discard
    v6([0x2001, 0], 32),    // Teredo
    v6([0x2002, 0], 16),    // 6to4
    v6([0xfc00, 0], 7),     // unique local
    v6([0xfe80, 0], 10),    // link-local
    v6([0xfec0, 0], 10),    // site-local, deprecated
    v6([0xff00, 0], 8),     // multicast
];

const fn v4(ip: Ipv4Addr, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(ip, prefix)
}

const fn v6(front: [u16; 2], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(front[0], front[1], 0, 0, 0, 0, 0, 0), prefix)
}

fn special_purpose_net(ip: IpAddr) -> Option<IpNet> {
    match ip {
        IpAddr::V4(ip) => SPECIAL_V4.iter().find(|net| net.contains(&ip)).copied().map(IpNet::V4),
        IpAddr::V6(ip) => SPECIAL_V6.iter().find(|net| net.contains(&ip)).copied().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    fn outside(allowed: &[&str], peer: &str) -> bool {
        let allowed: Vec<IpNet> = allowed.iter().map(|net| net.parse().expect("literal")).collect();
        PeerPolicy::new([], &allowed).reach(ip(peer), false).outside
    }

    #[test]
    fn nobody_is_reachable_by_default() {
        for peer in [
            "127.0.0.1",
            "8.8.8.8",
            "10.0.0.1",
            "::1",
            "2606:4700::1111",
            "169.254.169.254",
        ] {
            assert!(PeerPolicy::new([], &[]).reach(ip(peer), false).is_denied(), "{peer}");
        }
    }

    #[test]
    fn a_wide_network_grants_no_special_address() {
        let everything = ["0.0.0.0/0", "::/0"];
        for peer in ["8.8.8.8", "2606:4700::1111", "192.0.2.1", "::ffff:8.8.8.8"] {
            assert!(outside(&everything, peer), "{peer}");
        }
        for peer in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.0.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:0:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!outside(&everything, peer), "{peer}");
        }
    }

    #[test]
    fn a_special_address_is_granted_by_its_own_network() {
        for (net, peer, expected) in [
            ("127.0.0.0/8", "127.0.0.1", true),
            ("127.0.0.1/32", "127.0.0.2", false),
            ("10.0.0.0/8", "10.1.1.1", true),
            ("10.5.0.0/16", "10.5.0.9", true),
            ("8.0.0.0/6", "10.5.0.9", false),
            ("::1/128", "::1", true),
            ("fd00::/8", "fd00::1", true),
            ("::ffff:10.0.0.0/104", "10.1.1.1", true),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
        ] {
            assert_eq!(outside(&[net], peer), expected, "{peer} by {net}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_granted_by_its_own_name_alone() {
        let outside = |allowed: &[&str], peer: &str| {
            let allowed: Vec<IpNet> = allowed.iter().map(|net| net.parse().expect("literal")).collect();
            let mut policy = PeerPolicy::new([ip("203.0.113.7")], &allowed);
            policy.set_own([
                ip("198.51.100.2"),
                ip("192.168.1.5"),
                ip("2001:db8::5"),
                ip("127.0.0.1"),
            ]);
            policy.reach(ip(peer), false).outside
        };
        for (net, peer, expected) in [
            ("0.0.0.0/0", "198.51.100.2", false),
            ("0.0.0.0/0", "::ffff:198.51.100.2", false),
            ("198.51.100.0/24", "198.51.100.2", false),
            ("0.0.0.0/0", "198.51.100.3", true),
            ("0.0.0.0/0", "203.0.113.7", false),
            ("192.168.0.0/16", "192.168.1.5", false),
            ("192.168.0.0/16", "192.168.1.6", true),
            ("::/0", "2001:db8::5", false),
            ("::/0", "2001:db8::6", true),
            ("198.51.100.2/32", "198.51.100.2", true),
            ("203.0.113.7/32", "203.0.113.7", true),
            ("192.168.1.5/32", "192.168.1.5", true),
            ("2001:db8::5/128", "2001:db8::5", true),
            ("127.0.0.0/8", "127.0.0.1", true),
        ] {
            assert_eq!(outside(&[net], peer), expected, "{peer} by {net}");
        }
    }

    #[test]
    fn what_lives_here_is_reached_inside_only() {
        let policy = PeerPolicy::new([ip("203.0.113.7")], &[]);
        assert_eq!(
            policy.reach(ip("203.0.113.7"), false),
            Reach {
                inside: true,
                outside: false
            }
        );
        assert_eq!(
            policy.reach(ip("::ffff:203.0.113.7"), false),
            Reach {
                inside: true,
                outside: false
            }
        );
        assert_eq!(
            policy.reach(ip("203.0.113.8"), true),
            Reach {
                inside: true,
                outside: false
            }
        );
        assert!(policy.reach(ip("203.0.113.8"), false).is_denied());
    }
}
