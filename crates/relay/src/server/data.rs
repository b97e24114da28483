//! The data path: no allocation, no lock, nothing but table lookups between a packet and where it goes.

use std::{net::SocketAddr, time::Instant};

use super::*;
use crate::peer_policy::Reach;

/// Length in bytes of the ChannelData header.
const CHANNEL_HEADER_LEN: usize = 4;

impl Server {
    /// ChannelData from the client (RFC 8656 §12.6). Over UDP the padding is optional and ignored.
    pub(super) fn channel_data<'a>(&mut self, now: Instant, from: FiveTuple, packet: &'a [u8]) -> Outcome<'a> {
        let Some((header, rest)) = packet.split_first_chunk::<CHANNEL_HEADER_LEN>() else {
            return Outcome::Dropped(Dropped::Malformed);
        };
        let number = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let Some(payload) = rest.get(..length) else {
            return Outcome::Dropped(Dropped::Malformed);
        };
        let Some(&id) = self.by_client.get(&from) else {
            return Outcome::Dropped(Dropped::NoAllocation);
        };
        let Some((peer, reach)) = self.allocations[id].channels.peer(number, now) else {
            return Outcome::Dropped(Dropped::NoChannel);
        };
        self.forward(now, id, peer, reach, payload)
    }

    /// A Send indication from the client (RFC 8656 §11.2). Datagrams always leave with DF set, so DONT-FRAGMENT asks for
    /// nothing more.
    pub(super) fn send_indication<'a>(&mut self, now: Instant, from: FiveTuple, message: &Message<'a>) -> Outcome<'a> {
        let (&[peer], Some(payload), true, false) = (
            &message.peers[..],
            message.data,
            message.unknown.is_empty(),
            message.malformed,
        ) else {
            return Outcome::Dropped(Dropped::Malformed);
        };
        let Some(&id) = self.by_client.get(&from) else {
            return Outcome::Dropped(Dropped::NoAllocation);
        };
        let Some(reach) = self.allocations[id].permissions.reach(peer.ip(), now) else {
            return Outcome::Dropped(Dropped::NoPermission);
        };
        self.forward(now, id, peer, reach, payload)
    }

    fn forward<'a>(
        &mut self,
        now: Instant,
        id: usize,
        peer: SocketAddr,
        reach: Reach,
        payload: &'a [u8],
    ) -> Outcome<'a> {
        let allocation = &mut self.allocations[id];
        let Some(relay) = allocation
            .relays
            .get(Family::of(peer.ip()))
            .filter(|relay| relay.expires > now)
        else {
            return Outcome::Dropped(Dropped::NoAllocation);
        };
        if !allocation.bandwidth.take(payload.len(), now) {
            return Outcome::Dropped(Dropped::Bandwidth);
        }
        let relayed = relay.address;
        // Another allocation of this very server: no need to leave it.
        if reach.inside && self.by_relayed.contains_key(&peer) {
            return self.deliver(now, peer, relayed, payload);
        }
        let outside = reach.outside && relay.socket_open;
        Outcome::ToPeer(ToPeer {
            relayed,
            peer,
            inside: reach.inside,
            outside,
            payload,
        })
    }

    /// A peer's datagram at a relayed address (RFC 8656 §11.3, §12.7).
    pub(super) fn deliver<'a>(
        &mut self,
        now: Instant,
        relayed: SocketAddr,
        from: SocketAddr,
        payload: &'a [u8],
    ) -> Outcome<'a> {
        let Some(&id) = self.by_relayed.get(&relayed) else {
            return Outcome::Dropped(Dropped::NoAllocation);
        };
        let allocation = &self.allocations[id];
        let client = allocation.client;
        if allocation
            .relays
            .get(Family::of(relayed.ip()))
            .is_none_or(|relay| relay.expires <= now)
        {
            return Outcome::Dropped(Dropped::NoAllocation);
        }
        if allocation.permissions.reach(from.ip(), now).is_none() {
            return Outcome::Dropped(Dropped::NoPermission);
        }
        let header = match allocation.channels.number(from, now) {
            Some(number) => DataHeader::channel_data(number, payload.len(), client.transport == Transport::Tcp),
            None => DataHeader::data_indication(self.next_indication(), from, payload.len()),
        };
        match header {
            Some(header) => Outcome::ToClient(ToClient {
                client,
                header,
                payload,
            }),
            // Too long to be framed.
            None => Outcome::Dropped(Dropped::Malformed),
        }
    }
}
