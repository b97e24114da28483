//! Ports of this machine: free ones to listen on, and which are bound, as the kernel tells.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, UdpSocket},
    ops::{Range, RangeInclusive},
    sync::Mutex,
};

/// The lowest port handed out: well-known services of a build machine lie below.
const LOWEST: u16 = 10_000;

/// The ports handed out by this process, which may not be bound yet.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 that is free for TCP and for UDP. The kernel gives it to no outgoing connection, so that a server
/// that was killed finds it free again.
///
/// # Panics
/// When none is found.
pub fn free_port() -> u16 {
    free_ports(1)
}

/// The first of `count` consecutive ports, each as [`free_port`] promises.
///
/// # Panics
/// When there are none.
pub fn free_ports(count: u16) -> u16 {
    let mut taken = TAKEN.lock().expect("nobody panics while holding it");
    let range = chosen_by_nobody();
    for _ in 0..1000 {
        let first = rand::random_range(range.start..range.end - count);
        let mut ports = first..first + count;
        if ports.all(|port| !taken.contains(&port) && is_free(port)) {
            taken.extend(first..first + count);
            return first;
        }
    }
    panic!("no {count} consecutive ports of 127.0.0.1 are free for both TCP and UDP");
}

/// The ports below those from which the kernel chooses for sockets that name none.
fn chosen_by_nobody() -> Range<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|first| first.parse().ok());
    let end = first.unwrap_or(32_768);
    assert!(end > LOWEST + 1000, "the kernel chooses from nearly all ports: {text}");
    LOWEST..end
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

/// The UDP ports in `range` that any process of this machine has bound, in ascending order.
///
/// # Panics
/// When the kernel does not tell.
pub fn udp_ports_bound(range: RangeInclusive<u16>) -> Vec<u16> {
    let mut bound = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            // A machine without IPv6 has no such table.
            Err(_) if table.ends_with('6') => continue,
            Err(error) => panic!("{table}: {error}"),
        };
        // Format: "sl  local_address rem_address ...", the address as HEXIP:HEXPORT.
        let local = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        let ports = local.filter_map(|address| u16::from_str_radix(address.rsplit(':').next()?, 16).ok());
        bound.extend(ports.filter(|port| range.contains(port)));
    }
    bound.sort_unstable();
    bound.dedup();
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_seen_until_it_is_let_go() {
        let port = free_ports(2);
        let range = port..=port + 1;
        assert_eq!(udp_ports_bound(range.clone()), Vec::<u16>::new());
        let socket = UdpSocket::bind(("127.0.0.1", port + 1)).expect("the port is free");
        assert_eq!(udp_ports_bound(range.clone()), [port + 1]);
        drop(socket);
        assert_eq!(udp_ports_bound(range), Vec::<u16>::new());
    }

    #[test]
    fn no_port_is_handed_out_twice() {
        let handed_out: BTreeSet<u16> = (0..50).map(|_| free_port()).collect();
        assert_eq!(handed_out.len(), 50);
    }
}
