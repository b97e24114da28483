//! Encoding of signalling messages: protobuf in binary frames, protobuf's JSON form in text frames. A connection answers in
//! the form in which it was last spoken to.

use livekit_protocol::{SignalRequest, SignalResponse, signal_request, signal_response};
use prost::Message as _;

/// Longest signalling message read, in bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// How messages of a connection are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Protobuf, binary frames.
    #[default]
    Binary,
    /// JSON, text frames.
    Json,
}

/// Why a message is not understood.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not protobuf.
    #[error("not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// Not JSON of the expected shape.
    #[error("not a JSON message: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a binary frame; `None` for a message kind that is not known.
pub fn decode_binary(bytes: &[u8]) -> Result<Option<signal_request::Message>, CodecError> {
    Ok(SignalRequest::decode(bytes)?.message)
}

/// Reads a text frame.
pub fn decode_json(text: &str) -> Result<Option<signal_request::Message>, CodecError> {
    Ok(serde_json::from_str::<SignalRequest>(text)?.message)
}

/// Writes a message as a binary frame's content.
pub fn encode_binary(message: signal_response::Message) -> Vec<u8> {
    SignalResponse { message: Some(message) }.encode_to_vec()
}

/// Writes a message as a text frame's content.
pub fn encode_json(message: signal_response::Message) -> Result<String, CodecError> {
    Ok(serde_json::to_string(&SignalResponse { message: Some(message) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_carry_the_same_request() {
        let request = SignalRequest {
            message: Some(signal_request::Message::Ping(7)),
        };
        let binary = decode_binary(&request.encode_to_vec()).unwrap();
        assert_eq!(binary, decode_json(r#"{"ping":"7"}"#).unwrap());
        assert_eq!(binary, Some(signal_request::Message::Ping(7)));
    }

    #[test]
    fn unknown_message_kinds_are_passed_over_and_rubbish_is_an_error() {
        // Field 200, varint 1.
        assert_eq!(decode_binary(&[0xc0, 0x0c, 0x01]).unwrap(), None);
        assert!(decode_binary(&[0xff; 12]).is_err());
        assert!(decode_json("{").is_err());
    }
}
