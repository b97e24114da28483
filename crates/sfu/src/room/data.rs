//! Data packets: what one participant sends over its data channels to some or all of the others. The sender's name is ours to
//! write; contents, encrypted or not, pass untouched.

use std::time::Instant;

use bytes::Bytes;
use livekit_protocol::{DataPacket, data_packet};
use prost::Message as _;

use super::{actor::Room, participant::Stage};
use crate::transport::{ChannelId, MessageKind, SendMessageError};

/// Label of the ordered, reliable channel.
pub(crate) const RELIABLE: &str = "_reliable";
/// Label of the unordered channel without retransmission.
pub(crate) const LOSSY: &str = "_lossy";

impl Room {
    /// A message of participant `key` on one of its channels.
    pub(crate) fn data_message(&mut self, key: usize, reliable: bool, data: Bytes, now: Instant) {
        let sender = &mut self.participants[key];
        if !sender.permission.publish_data {
            return;
        }
        let Ok(mut packet) = DataPacket::decode(data) else {
            metrics::counter!("sfu_data_unreadable_total").increment(1);
            return;
        };
        // The server alone speaks of speakers, and metrics are for it.
        #[expect(deprecated, reason = "the kind is refused, not used")]
        if matches!(
            packet.value,
            None | Some(data_packet::Value::Speaker(_) | data_packet::Value::Metrics(_))
        ) {
            return;
        }
        if reliable && packet.sequence != 0 {
            // Resent after a resume (CALLS: deduplicated per sender).
            if packet.sequence <= sender.last_reliable {
                return;
            }
            sender.last_reliable = packet.sequence;
        }
        stamp(&mut packet, &sender.sid, &sender.identity, reliable);
        let destinations = std::mem::take(&mut packet.destination_identities);
        let encoded = packet.encode_to_vec();
        let targets: Vec<usize> = if destinations.is_empty() {
            self.participants
                .iter()
                .map(|(other, _)| other)
                .filter(|other| *other != key)
                .collect()
        } else {
            let mut named: Vec<usize> = destinations
                .iter()
                .filter_map(|name| self.by_identity.get(name).copied())
                .collect();
            named.sort_unstable();
            named.dedup();
            named
        };
        for target in targets {
            self.send_data(target, reliable, &encoded, now);
        }
    }

    fn send_data(&mut self, key: usize, reliable: bool, encoded: &[u8], now: Instant) {
        let participant = &mut self.participants[key];
        if participant.stage != Stage::Active {
            return;
        }
        let Some(peer) = participant.receiving() else { return };
        let Some(channel) = (if reliable { peer.reliable } else { peer.lossy }) else {
            metrics::counter!("sfu_data_dropped_total").increment(1);
            return;
        };
        match peer.transport.send_message(now, channel, MessageKind::Binary, encoded) {
            Ok(()) => {}
            Err(SendMessageError::NotOpen | SendMessageError::TooLarge | SendMessageError::Full) => {
                metrics::counter!("sfu_data_dropped_total").increment(1);
            }
        }
        self.touch_all(key);
    }

    /// Remembers the channels by which data packets travel.
    pub(crate) fn channel_opened(&mut self, key: usize, side: super::actor::Side, id: ChannelId, label: &str) {
        let Some(peer) = self.participants[key].peer(side) else {
            return;
        };
        match label {
            RELIABLE => peer.reliable = Some(id),
            LOSSY => peer.lossy = Some(id),
            _ => {}
        }
    }
}

/// Writes who sent `packet`, over whatever the client claimed.
#[expect(
    deprecated,
    reason = "clients before the fields moved to the packet read those of the user packet"
)]
fn stamp(packet: &mut DataPacket, sid: &str, identity: &str, reliable: bool) {
    packet.participant_sid = sid.to_owned();
    packet.participant_identity = identity.to_owned();
    packet.kind = if reliable {
        data_packet::Kind::Reliable
    } else {
        data_packet::Kind::Lossy
    } as i32;
    if let Some(data_packet::Value::User(user)) = &mut packet.value {
        user.participant_sid = sid.to_owned();
        user.participant_identity = identity.to_owned();
        if packet.destination_identities.is_empty() {
            packet.destination_identities = std::mem::take(&mut user.destination_identities);
        }
    }
}

#[cfg(test)]
mod tests {
    use livekit_protocol::UserPacket;

    use super::*;

    #[test]
    fn a_sender_cannot_speak_for_another() {
        let mut packet = DataPacket {
            participant_sid: "PA_other".into(),
            participant_identity: "@other:example.org".into(),
            value: Some(data_packet::Value::User(UserPacket {
                payload: b"hello".to_vec(),
                topic: Some("t".into()),
                ..UserPacket::default()
            })),
            ..DataPacket::default()
        };
        stamp(&mut packet, "PA_me", "@me:example.org", false);
        assert_eq!(
            (packet.participant_sid.as_str(), packet.participant_identity.as_str()),
            ("PA_me", "@me:example.org")
        );
        let Some(data_packet::Value::User(user)) = packet.value else {
            panic!("kind changed")
        };
        assert_eq!(
            (user.payload.as_slice(), user.topic.as_deref()),
            (b"hello".as_slice(), Some("t"))
        );
    }
}
