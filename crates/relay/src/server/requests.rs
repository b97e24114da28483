//! The requests: Binding (RFC 8489), Allocate, Refresh, CreatePermission, ChannelBind (RFC 8656).

use super::{
    authentication::{Authenticated, finish},
    *,
};
use crate::{
    allocation::{Relay, Relays},
    channel::{Channels, Refused},
    peer_policy::Reach,
    permission::Permissions,
    ports::{Parity, PortLease},
    quota::{Bandwidth, Exhausted},
};

/// IP protocol number of UDP, the only transport to peers.
const UDP: u8 = 17;

/// A success response, and what must come true before it may be sent.
struct Success {
    response: Encoder,
    /// Relayed addresses whose sockets must be opened first.
    open: SmallVec<[SocketAddr; 2]>,
}

impl From<Encoder> for Success {
    fn from(response: Encoder) -> Self {
        Self {
            response,
            open: SmallVec::new(),
        }
    }
}

impl Server {
    /// RFC 8489 §12: tells the client its address as seen from here.
    pub(super) fn binding(&mut self, from: FiveTuple, message: &Message<'_>) {
        let response = if message.unknown.is_empty() {
            Encoder::new(Class::Success, message.method, message.transaction_id).xor_mapped_address(from.client)
        } else {
            unknown_attributes(message)
        };
        let response = finish(response, message, None);
        self.respond(from, response);
    }

    pub(super) fn authenticated_request(&mut self, now: Now, from: FiveTuple, message: &Message<'_>) {
        let authenticated = match self.authenticate(now, from, message) {
            Ok(authenticated) => authenticated,
            Err(code) => return self.refuse(now, from, message, code),
        };
        let key = &authenticated.key;
        if !message.unknown.is_empty() {
            let response = finish(unknown_attributes(message), message, Some(key));
            return self.respond(from, response);
        }
        let result = if message.malformed {
            Err(ErrorCode::BadRequest)
        } else {
            match message.method {
                Method::Allocate => self.allocate(now, from, message, &authenticated),
                Method::Refresh => self.refresh(now.instant, from, message, &authenticated),
                Method::CreatePermission => self.create_permission(now.instant, from, message, &authenticated),
                _ => self.channel_bind(now.instant, from, message, &authenticated),
            }
        };
        match result {
            // Only Allocate says so after the integrity was found right: the credentials have expired.
            Err(ErrorCode::Unauthenticated) => self.refuse(now, from, message, ErrorCode::Unauthenticated),
            Err(code) => self.respond(from, finish(error(message, code), message, Some(key))),
            Ok(Success { response, open }) if open.is_empty() => {
                self.respond(from, finish(response, message, Some(key)));
            }
            Ok(Success { response, open }) => self.commands.push_back(Command::OpenSockets {
                relayed: open,
                to: from,
                opened: finish(response, message, Some(key)),
                failed: finish(error(message, ErrorCode::InsufficientCapacity), message, Some(key)),
            }),
        }
    }

    /// RFC 8656 §7.2.
    fn allocate(
        &mut self,
        now: Now,
        from: FiveTuple,
        message: &Message<'_>,
        by: &Authenticated<'_>,
    ) -> Result<Success, ErrorCode> {
        if let Some(&id) = self.by_client.get(&from) {
            let allocation = &self.allocations[id];
            if allocation.transaction_id == message.transaction_id && allocation.quota.user() == by.presented.user_id {
                return Ok(allocated(allocation, now.instant).into());
            }
            return Err(ErrorCode::AllocationMismatch);
        }
        let revoked = self.revoked.get(by.presented.user_id);
        if by.presented.is_expired(now.unix) || revoked.is_some_and(|until| by.presented.expires_at_unix <= *until) {
            return Err(ErrorCode::Unauthenticated);
        }
        let wish = Wish::read(message)?;
        let ip = match wish {
            // The reserved port brings its address along.
            Wish::Reserved(_) => None,
            Wish::New { family, .. } => Some(
                self.relay_ip(family, &from)
                    .ok_or(ErrorCode::AddressFamilyNotSupported)?,
            ),
        };
        let quota = self
            .quota
            .lease(by.presented.user_id)
            .map_err(|exhausted| match exhausted {
                Exhausted::User => ErrorCode::AllocationQuotaReached,
                Exhausted::Total => ErrorCode::InsufficientCapacity,
            })?;
        let expires = now.instant + seconds(self.lifetime(message.lifetime));
        let mut relays = Relays::default();
        let mut reservation = None;
        let mut additional_error = None;
        match (wish, ip) {
            (Wish::New { parity, additional, .. }, Some(ip)) => {
                let relay = self.relay(ip, parity, expires).ok_or(ErrorCode::InsufficientCapacity)?;
                if parity == Parity::EvenWithNext {
                    let token = self.ports.reserve_next(ip, &relay.port, now.instant, &mut self.rng);
                    reservation = Some(token.ok_or(ErrorCode::InsufficientCapacity)?);
                }
                *relays.slot(Family::of(ip)) = Some(relay);
                if additional {
                    match self.additional_relay(&from, expires) {
                        Ok(relay) => *relays.slot(Family::V6) = Some(relay),
                        Err(code) => additional_error = Some((Family::V6, code)),
                    }
                }
            }
            (Wish::Reserved(token), _) => {
                let (ip, port) = self
                    .ports
                    .redeem(token, now.instant)
                    .ok_or(ErrorCode::InsufficientCapacity)?;
                let relay = self
                    .relay_at(ip, port, expires)
                    .ok_or(ErrorCode::InsufficientCapacity)?;
                *relays.slot(Family::of(ip)) = Some(relay);
            }
            (Wish::New { .. }, None) => return Err(ErrorCode::AddressFamilyNotSupported),
        }
        let id = self.insert(Allocation {
            client: from,
            transaction_id: message.transaction_id,
            quota,
            relays,
            reservation,
            additional_error,
            permissions: Permissions::default(),
            channels: Channels::default(),
            bandwidth: Bandwidth::new(self.max_bytes_per_second, now.instant),
        });
        Ok(allocated(&self.allocations[id], now.instant).into())
    }

    fn additional_relay(&mut self, from: &FiveTuple, expires: Instant) -> Result<Relay, ErrorCode> {
        let ip = self
            .relay_ip(Family::V6, from)
            .ok_or(ErrorCode::AddressFamilyNotSupported)?;
        self.relay(ip, Parity::Any, expires)
            .ok_or(ErrorCode::InsufficientCapacity)
    }

    /// A relayed address on a free port, reachable inside the process from here on.
    fn relay(&mut self, ip: IpAddr, parity: Parity, expires: Instant) -> Option<Relay> {
        let mut attachment = None;
        let port = self.ports.lease(Family::of(ip), parity, &mut self.rng, |port| {
            attachment = self.switch.attach(SocketAddr::new(ip, port), self.inbox.clone()).ok();
            attachment.is_some()
        })?;
        let address = SocketAddr::new(ip, port.port());
        Some(Relay {
            address,
            expires,
            port,
            socket_open: false,
            attachment: attachment?,
        })
    }

    fn relay_at(&mut self, ip: IpAddr, port: PortLease, expires: Instant) -> Option<Relay> {
        let address = SocketAddr::new(ip, port.port());
        let attachment = self.switch.attach(address, self.inbox.clone()).ok()?;
        Some(Relay {
            address,
            expires,
            port,
            socket_open: false,
            attachment,
        })
    }

    fn insert(&mut self, allocation: Allocation) -> usize {
        let client = allocation.client;
        let id = self.allocations.insert(allocation);
        self.by_client.insert(client, id);
        for relay in self.allocations[id].relays.iter() {
            self.by_relayed.insert(relay.address, id);
            *self.relayed_ips.entry(relay.address.ip()).or_default() += 1;
        }
        self.reschedule(id);
        id
    }

    /// The allocation that a request of an existing client is about.
    fn allocation_of(&self, from: FiveTuple, by: &Authenticated<'_>) -> Result<usize, ErrorCode> {
        let &id = self.by_client.get(&from).ok_or(ErrorCode::AllocationMismatch)?;
        // The user is what must stay the same; it may come back with fresher credentials.
        if self.allocations[id].quota.user() != by.presented.user_id {
            return Err(ErrorCode::WrongCredentials);
        }
        Ok(id)
    }

    /// RFC 8656 §8.2.
    fn refresh(
        &mut self,
        now: Instant,
        from: FiveTuple,
        message: &Message<'_>,
        by: &Authenticated<'_>,
    ) -> Result<Success, ErrorCode> {
        let id = self.allocation_of(from, by)?;
        let lifetime = match message.lifetime {
            Some(0) => 0,
            requested => self.lifetime(requested),
        };
        let families: SmallVec<[Family; 2]> = match message.requested_family {
            None => [Family::V4, Family::V6].into_iter().collect(),
            Some(Some(family)) if self.allocations[id].relays.get(family).is_some() => [family].into_iter().collect(),
            Some(_) => return Err(ErrorCode::PeerAddressFamilyMismatch),
        };
        if let Some(deadline) = self.allocations[id].relays.next_expiry() {
            self.deadlines.remove(&(deadline, id));
        }
        for family in families {
            if lifetime == 0 {
                self.remove_relay(id, family);
            } else if let Some(relay) = self.allocations[id].relays.slot(family) {
                relay.expires = now + seconds(lifetime);
            }
        }
        self.reschedule(id);
        Ok(success(message).lifetime(lifetime).into())
    }

    /// RFC 8656 §10.2: all peers or none.
    fn create_permission(
        &mut self,
        now: Instant,
        from: FiveTuple,
        message: &Message<'_>,
        by: &Authenticated<'_>,
    ) -> Result<Success, ErrorCode> {
        let id = self.allocation_of(from, by)?;
        if message.peers.is_empty() {
            return Err(ErrorCode::BadRequest);
        }
        let mut grants: SmallVec<[Reach; 2]> = SmallVec::new();
        for peer in &message.peers {
            grants.push(self.grant(id, peer.ip())?);
        }
        let allocation = &mut self.allocations[id];
        if !allocation
            .permissions
            .has_room_for(message.peers.iter().map(SocketAddr::ip), now)
        {
            return Err(ErrorCode::InsufficientCapacity);
        }
        let mut open = SmallVec::new();
        for (peer, reach) in message.peers.iter().zip(grants) {
            allocation.permissions.install(peer.ip(), reach, now);
            open.extend(open_if_outside(allocation, peer, reach));
        }
        Ok(Success {
            response: success(message),
            open,
        })
    }

    /// RFC 8656 §12.2.
    fn channel_bind(
        &mut self,
        now: Instant,
        from: FiveTuple,
        message: &Message<'_>,
        by: &Authenticated<'_>,
    ) -> Result<Success, ErrorCode> {
        let id = self.allocation_of(from, by)?;
        let (Some(number), &[peer]) = (message.channel_number, &message.peers[..]) else {
            return Err(ErrorCode::BadRequest);
        };
        if !channel::NUMBERS.contains(&number) || peer.port() == 0 {
            return Err(ErrorCode::BadRequest);
        }
        let reach = self.grant(id, peer.ip())?;
        let allocation = &mut self.allocations[id];
        allocation
            .channels
            .check(number, peer, now)
            .map_err(|refused| match refused {
                Refused::BoundOtherwise => ErrorCode::BadRequest,
                Refused::TooMany => ErrorCode::InsufficientCapacity,
            })?;
        if !allocation.permissions.has_room_for(std::iter::once(peer.ip()), now) {
            return Err(ErrorCode::InsufficientCapacity);
        }
        allocation.channels.bind(number, peer, reach, now);
        allocation.permissions.install(peer.ip(), reach, now);
        let open = open_if_outside(allocation, &peer, reach).into_iter().collect();
        Ok(Success {
            response: success(message),
            open,
        })
    }

    /// How this allocation may reach the peer, or why not.
    fn grant(&self, id: usize, peer: IpAddr) -> Result<Reach, ErrorCode> {
        let relay = self.allocations[id]
            .relays
            .get(Family::of(peer))
            .ok_or(ErrorCode::PeerAddressFamilyMismatch)?;
        let mut reach = self.policy.reach(peer, self.relayed_ips.contains_key(&peer));
        if reach.is_denied() {
            return Err(ErrorCode::Forbidden);
        }
        reach.outside &= relay.port.is_bindable();
        // Allowed, but every port that a socket may use is taken.
        if reach.is_denied() {
            Err(ErrorCode::InsufficientCapacity)
        } else {
            Ok(reach)
        }
    }
}

/// The relayed address that needs a socket now, if it had none.
fn open_if_outside(allocation: &mut Allocation, peer: &SocketAddr, reach: Reach) -> Option<SocketAddr> {
    let relay = allocation.relays.slot(Family::of(peer.ip())).as_mut()?;
    let opens = reach.outside && !relay.socket_open;
    relay.socket_open |= opens;
    opens.then_some(relay.address)
}

/// What an Allocate asks for, once its attributes are found to go together.
#[derive(Clone, Copy)]
enum Wish {
    Reserved([u8; 8]),
    New {
        family: Family,
        parity: Parity,
        additional: bool,
    },
}

impl Wish {
    /// RFC 8656 §7.2, steps 3 to 9.
    fn read(message: &Message<'_>) -> Result<Self, ErrorCode> {
        match message.requested_transport {
            None => return Err(ErrorCode::BadRequest),
            Some(UDP) => {}
            Some(_) => return Err(ErrorCode::UnsupportedTransportProtocol),
        }
        let parity = match message.even_port {
            None => Parity::Any,
            Some(false) => Parity::Even,
            Some(true) => Parity::EvenWithNext,
        };
        match (
            message.reservation_token,
            message.requested_family,
            message.additional_family,
        ) {
            (Some(token), None, None) if parity == Parity::Any => Ok(Self::Reserved(token)),
            (Some(_), ..) | (None, Some(_), Some(_)) => Err(ErrorCode::BadRequest),
            (None, Some(None), None) => Err(ErrorCode::AddressFamilyNotSupported),
            (None, None, Some(additional)) => {
                // The additional family is always IPv6, and no port is reserved across two families.
                if additional != Some(Family::V6) || parity == Parity::EvenWithNext {
                    return Err(ErrorCode::BadRequest);
                }
                Ok(Self::New {
                    family: Family::V4,
                    parity,
                    additional: true,
                })
            }
            (None, Some(Some(family)), None) => Ok(Self::New {
                family,
                parity,
                additional: false,
            }),
            (None, None, None) => Ok(Self::New {
                family: Family::V4,
                parity,
                additional: false,
            }),
        }
    }
}

/// The success response to the Allocate that made, or asks again for, this allocation.
fn allocated(allocation: &Allocation, now: Instant) -> Encoder {
    let mut response = Encoder::new(Class::Success, Method::Allocate, allocation.transaction_id);
    for relay in allocation.relays.iter() {
        response = response.xor_relayed_address(relay.address);
    }
    let remaining = allocation
        .relays
        .next_expiry()
        .map_or(0, |expires| expires.saturating_duration_since(now).as_secs());
    response = response.lifetime(u32::try_from(remaining).unwrap_or(u32::MAX));
    if let Some(token) = allocation.reservation {
        response = response.reservation_token(token);
    }
    if let Some((family, code)) = allocation.additional_error {
        response = response.address_error_code(family, code);
    }
    response.xor_mapped_address(allocation.client.client)
}

fn success(message: &Message<'_>) -> Encoder {
    Encoder::new(Class::Success, message.method, message.transaction_id)
}

fn error(message: &Message<'_>, code: ErrorCode) -> Encoder {
    Encoder::new(Class::Error, message.method, message.transaction_id).error_code(code)
}

fn unknown_attributes(message: &Message<'_>) -> Encoder {
    error(message, ErrorCode::UnknownAttribute).unknown_attributes(&message.unknown)
}
