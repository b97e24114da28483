//! Ports of this machine: free ones to listen on, and which are bound, as the kernel tells.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    ops::RangeInclusive,
};

/// A port of 127.0.0.1 that is free for TCP and for UDP at this moment.
pub fn free_port() -> u16 {
    for _ in 0..64 {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback has a free TCP port");
        let port = tcp.local_addr().expect("a bound socket has an address").port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of 127.0.0.1 is free for both TCP and UDP");
}

/// The UDP ports in `range` that any process of this machine has bound, in ascending order.
pub fn udp_ports_bound(range: RangeInclusive<u16>) -> Vec<u16> {
    let mut bound = Vec::new();
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        // Format: "sl  local_address rem_address ...", the address as HEXIP:HEXPORT.
        let local = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        let ports = local.filter_map(|address| u16::from_str_radix(address.rsplit(':').next()?, 16).ok());
        bound.extend(ports.filter(|port| range.contains(port)));
    }
    bound.sort_unstable();
    bound.dedup();
    bound
}
