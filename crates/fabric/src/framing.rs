//! Datagrams on a byte stream: the two-byte length prefix of RFC 4571, as ICE-TCP (RFC 6544) uses it.
//!
//! Pure functions over buffers the caller owns; knows no socket. Bounded: a peer announces a frame larger than the
//! caller's limit and gets an error before a byte of it is stored.

use bytes::{Buf, BytesMut};

/// Length of the frame header: a big-endian `u16` payload length (RFC 4571 §2).
pub const HEADER_LEN: usize = 2;

/// A frame longer than the format or the caller's limit allows. On the receiving side the stream cannot be resynchronised
/// and must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTooLong {
    /// Announced or requested payload length in bytes.
    pub length: usize,
    /// The limit it exceeds, in bytes.
    pub limit: usize,
}

impl std::fmt::Display for FrameTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "frame of {} bytes exceeds the limit of {} bytes",
            self.length, self.limit
        )
    }
}

impl std::error::Error for FrameTooLong {}

/// The header that precedes a payload of `payload_len` bytes.
///
/// # Errors
/// When the length does not fit the 16-bit field.
pub fn header(payload_len: usize) -> Result<[u8; HEADER_LEN], FrameTooLong> {
    u16::try_from(payload_len)
        .map(u16::to_be_bytes)
        .map_err(|_| FrameTooLong {
            length: payload_len,
            limit: usize::from(u16::MAX),
        })
}

/// Appends `payload` with its header to `stream`.
///
/// # Errors
/// When the payload does not fit a frame; `stream` is then unchanged.
pub fn encode(payload: &[u8], stream: &mut BytesMut) -> Result<(), FrameTooLong> {
    let header = header(payload.len())?;
    stream.reserve(HEADER_LEN + payload.len());
    stream.extend_from_slice(&header);
    stream.extend_from_slice(payload);
    Ok(())
}

/// Takes the next whole payload off the front of `stream`, or `None` until more bytes have arrived.
///
/// Empty frames (permitted by RFC 4571 §2 as null packets) are skipped.
///
/// # Errors
/// When a frame announces more than `max_payload` bytes: close the connection.
pub fn decode(stream: &mut BytesMut, max_payload: usize) -> Result<Option<BytesMut>, FrameTooLong> {
    while let Some(prefix) = stream.first_chunk::<HEADER_LEN>() {
        let length = usize::from(u16::from_be_bytes(*prefix));
        if length > max_payload {
            return Err(FrameTooLong {
                length,
                limit: max_payload,
            });
        }
        if stream.len() < HEADER_LEN + length {
            stream.reserve(HEADER_LEN + length - stream.len());
            return Ok(None);
        }
        stream.advance(HEADER_LEN);
        if length > 0 {
            return Ok(Some(stream.split_to(length)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rejects_what_exceeds_the_limit_before_storing_it() {
        let mut stream = BytesMut::from(&[0x05, 0xdd, 1, 2][..]);
        assert_eq!(
            decode(&mut stream, 1500),
            Err(FrameTooLong {
                length: 1501,
                limit: 1500
            })
        );
        assert!(encode(&vec![0; 65_536], &mut stream).is_err());
    }

    #[test]
    fn skips_null_packets() {
        let mut stream = BytesMut::from(&[0, 0, 0, 0, 0, 1, 7, 0][..]);
        assert_eq!(decode(&mut stream, 10), Ok(Some(BytesMut::from(&[7][..]))));
        assert_eq!(decode(&mut stream, 10), Ok(None));
        assert_eq!(&stream[..], [0], "an incomplete header stays for the next read");
    }

    proptest! {
        #[test]
        fn payloads_survive_any_segmentation(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..12),
            segment in 1_usize..70,
        ) {
            let mut wire = BytesMut::new();
            for payload in &payloads {
                encode(payload, &mut wire).expect("shorter than a frame");
            }
            let mut stream = BytesMut::new();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for piece in wire.chunks(segment) {
                stream.extend_from_slice(piece);
                while let Some(payload) = decode(&mut stream, 300).expect("within the limit") {
                    seen.push(payload.to_vec());
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert!(stream.is_empty());
        }

        #[test]
        fn never_panics_on_hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), max in 0_usize..600) {
            let mut stream = BytesMut::from(&bytes[..]);
            while let Ok(Some(payload)) = decode(&mut stream, max) {
                prop_assert!(payload.len() <= max);
            }
        }
    }
}
