//! The Data Channel Establishment Protocol (RFC 8832): two messages. A pure codec.

const ACK: u8 = 0x02;
const OPEN: u8 = 0x03;
const OPEN_HEADER_LEN: usize = 12;
/// Bit of the channel type: messages may arrive out of order.
const UNORDERED: u8 = 0x80;
/// Labels longer than this are refused.
const MAX_LABEL: usize = 1024;

/// How much a data channel insists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reliability {
    Reliable,
    /// A message is sent at most this many times more after its first transmission.
    MaxRetransmits(u32),
    /// A message is given up after this many milliseconds.
    MaxLifetimeMs(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Dcep {
    Open {
        label: String,
        protocol: String,
        ordered: bool,
        reliability: Reliability,
    },
    Ack,
}

impl Dcep {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match *bytes.first()? {
            ACK => Some(Self::Ack),
            OPEN => {
                let header: &[u8; OPEN_HEADER_LEN] = bytes.first_chunk()?;
                let parameter = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let reliability = match header[1] & !UNORDERED {
                    0 => Reliability::Reliable,
                    1 => Reliability::MaxRetransmits(parameter),
                    2 => Reliability::MaxLifetimeMs(parameter),
                    _ => return None,
                };
                let label_len = usize::from(u16::from_be_bytes([header[8], header[9]]));
                let protocol_len = usize::from(u16::from_be_bytes([header[10], header[11]]));
                if label_len > MAX_LABEL || protocol_len > MAX_LABEL {
                    return None;
                }
                let label_end = OPEN_HEADER_LEN + label_len;
                let text = |range| std::str::from_utf8(bytes.get(range)?).ok().map(str::to_owned);
                Some(Self::Open {
                    label: text(OPEN_HEADER_LEN..label_end)?,
                    protocol: text(label_end..label_end + protocol_len)?,
                    ordered: header[1] & UNORDERED == 0,
                    reliability,
                })
            }
            _ => None,
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        match self {
            Self::Ack => vec![ACK],
            Self::Open {
                label,
                protocol,
                ordered,
                reliability,
            } => {
                let (kind, parameter) = match reliability {
                    Reliability::Reliable => (0, 0),
                    Reliability::MaxRetransmits(n) => (1, *n),
                    Reliability::MaxLifetimeMs(ms) => (2, *ms),
                };
                let mut out = vec![OPEN, kind | if *ordered { 0 } else { UNORDERED }, 0, 0];
                out.extend_from_slice(&parameter.to_be_bytes());
                out.extend_from_slice(&(label.len() as u16).to_be_bytes());
                out.extend_from_slice(&(protocol.len() as u16).to_be_bytes());
                out.extend_from_slice(label.as_bytes());
                out.extend_from_slice(protocol.as_bytes());
                out
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_round_trip(label in ".{0,40}", protocol in ".{0,10}", ordered: bool, kind in 0..3, n: u32) {
            let reliability = match kind {
                0 => Reliability::Reliable,
                1 => Reliability::MaxRetransmits(n),
                _ => Reliability::MaxLifetimeMs(n),
            };
            let open = Dcep::Open { label, protocol, ordered, reliability };
            prop_assert_eq!(Dcep::parse(&open.write()), Some(open));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            Dcep::parse(&bytes);
        }
    }
}
