//! A UDP peer that answers every datagram with itself, on two consecutive ports as RTP and RTCP have them.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

use crate::free_port;

/// A running echo peer.
#[derive(Debug)]
pub struct UdpEcho {
    ip: Ipv4Addr,
    port: u16,
    heard: Arc<AtomicU64>,
    _echoes: JoinSet<()>,
}

impl UdpEcho {
    /// Starts on 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// Starts at an address of this machine, on a free even port and the one above it.
    pub async fn start_at(ip: Ipv4Addr) -> Self {
        loop {
            let port = free_port() & !1;
            let Some(next) = port.checked_add(1) else { continue };
            let (Ok(first), Ok(second)) = (UdpSocket::bind((ip, port)).await, UdpSocket::bind((ip, next)).await) else {
                continue;
            };
            let heard = Arc::new(AtomicU64::new(0));
            let mut echoes = JoinSet::new();
            for socket in [first, second] {
                echoes.spawn(echo(socket, heard.clone()));
            }
            return Self {
                ip,
                port,
                heard,
                _echoes: echoes,
            };
        }
    }

    /// Where it listens.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// The first of the two ports.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many datagrams have come.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

async fn echo(socket: UdpSocket, heard: Arc<AtomicU64>) {
    let mut buffer = vec![0; 65_535];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        heard.fetch_add(1, Ordering::Relaxed);
        if socket.send_to(&buffer[..length], from).await.is_err() {
            return;
        }
    }
}
