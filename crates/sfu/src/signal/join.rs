//! The query string with which a client asks to join: `join_request` of the single-connection protocol (`/rtc/v1`), or the
//! separate parameters of the older one (`/rtc`).

use std::{collections::HashMap, io::Read as _};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use livekit_protocol::{
    AddTrackRequest, ClientInfo, JoinRequest, SessionDescription, SyncState, WrappedJoinRequest, client_info,
    wrapped_join_request::Compression,
};
use prost::Message as _;

/// Most bytes a compressed join request may inflate to.
pub const MAX_INFLATED: u64 = 256 * 1024;
/// Longest metadata and longest sum of attributes, in bytes, as LiveKit limits them.
const MAX_METADATA: usize = 64 * 1024;
/// Most tracks announced with the join: as many as one participant may publish.
const MAX_TRACKS: usize = 32;

/// How the client wants its connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JoinParameters {
    /// One peer connection for both ways, the client offers (`/rtc/v1`).
    pub single_connection: bool,
    /// What the client says of itself.
    pub client: ClientInfo,
    /// Subscribe to every track without being asked.
    pub auto_subscribe: bool,
    /// The client reports the sizes of its pictures.
    pub adaptive_stream: bool,
    /// The server may pause video when the line is too thin.
    pub allow_pause: bool,
    /// The server is to send checks of its own.
    pub disable_ice_lite: bool,
    /// Initial metadata.
    pub metadata: String,
    /// Initial attributes.
    pub attributes: HashMap<String, String>,
    /// Tracks announced with the join.
    pub add_tracks: Vec<AddTrackRequest>,
    /// The first offer.
    pub offer: Option<SessionDescription>,
    /// The session to resume: a participant sid.
    pub resume: Option<String>,
    /// State of a resumed session.
    pub sync_state: Option<SyncState>,
}

/// Why a join request cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Not base64.
    #[error("join_request is not base64")]
    Base64,
    /// Not a protobuf message.
    #[error("join_request is not a protobuf message")]
    Protobuf,
    /// Gzip data that is broken or inflates beyond [`MAX_INFLATED`].
    #[error("join_request is not valid gzip data or too large")]
    Inflate,
    /// Metadata or attributes beyond the limit.
    #[error("metadata or attributes exceed the limit")]
    Metadata,
    /// More announced tracks than one participant may publish.
    #[error("too many tracks are announced")]
    Tracks,
    /// The newer path without a join request.
    #[error("join_request is missing")]
    Missing,
}

const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the parameters of `/rtc/v1`.
pub fn single_connection(query: &HashMap<String, String>) -> Result<JoinParameters, JoinError> {
    let encoded = query.get("join_request").ok_or(JoinError::Missing)?;
    // Clients that take the standard alphabet are as easily read.
    let encoded = encoded.replace('+', "-").replace('/', "_").replace(' ', "-");
    let wrapped = URL_SAFE.decode(encoded).map_err(|_| JoinError::Base64)?;
    let wrapped = WrappedJoinRequest::decode(wrapped.as_slice()).map_err(|_| JoinError::Protobuf)?;
    let request = if wrapped.compression == Compression::Gzip as i32 {
        let mut inflated = Vec::new();
        flate2::read::GzDecoder::new(wrapped.join_request.as_slice())
            .take(MAX_INFLATED + 1)
            .read_to_end(&mut inflated)
            .map_err(|_| JoinError::Inflate)?;
        if inflated.len() as u64 > MAX_INFLATED {
            return Err(JoinError::Inflate);
        }
        inflated
    } else {
        wrapped.join_request
    };
    let request = JoinRequest::decode(request.as_slice()).map_err(|_| JoinError::Protobuf)?;
    if request.add_track_requests.len() > MAX_TRACKS {
        return Err(JoinError::Tracks);
    }
    let settings = request.connection_settings.unwrap_or_default();
    let parameters = JoinParameters {
        single_connection: true,
        client: request.client_info.unwrap_or_default(),
        auto_subscribe: settings.auto_subscribe,
        adaptive_stream: settings.adaptive_stream,
        allow_pause: settings.subscriber_allow_pause.unwrap_or(settings.adaptive_stream),
        disable_ice_lite: settings.disable_ice_lite,
        metadata: request.metadata,
        attributes: request.participant_attributes,
        add_tracks: request.add_track_requests,
        offer: request.publisher_offer,
        resume: request.reconnect.then_some(request.participant_sid),
        sync_state: request.sync_state,
    };
    check_metadata(&parameters.metadata, &parameters.attributes)?;
    Ok(parameters)
}

/// Reads the parameters of `/rtc`.
pub fn dual_connection(query: &HashMap<String, String>) -> Result<JoinParameters, JoinError> {
    let text = |key: &str| query.get(key).cloned().unwrap_or_default();
    let flag = |key: &str| query.get(key).map(|value| matches!(value.as_str(), "1" | "true"));
    let number = |key: &str| query.get(key).and_then(|value| value.parse().ok()).unwrap_or(0);
    let sdk = client_info::Sdk::from_str_name(&text("sdk").to_ascii_uppercase()).unwrap_or(client_info::Sdk::Unknown);
    let adaptive_stream = flag("adaptive_stream").unwrap_or(false);
    Ok(JoinParameters {
        client: ClientInfo {
            sdk: sdk as i32,
            version: text("version"),
            protocol: number("protocol"),
            client_protocol: number("client_protocol"),
            os: text("os"),
            os_version: text("os_version"),
            device_model: text("device_model"),
            browser: text("browser"),
            browser_version: text("browser_version"),
            network: text("network"),
            ..ClientInfo::default()
        },
        auto_subscribe: flag("auto_subscribe").unwrap_or(true),
        adaptive_stream,
        allow_pause: flag("subscriber_allow_pause").unwrap_or(adaptive_stream),
        disable_ice_lite: flag("disable_ice_lite").unwrap_or(false),
        resume: flag("reconnect").unwrap_or(false).then(|| text("sid")),
        ..JoinParameters::default()
    })
}

/// Whether metadata and attributes are of acceptable size.
pub fn check_metadata(metadata: &str, attributes: &HashMap<String, String>) -> Result<(), JoinError> {
    let attributes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata.len() > MAX_METADATA || attributes > MAX_METADATA {
        Err(JoinError::Metadata)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use livekit_protocol::ConnectionSettings;
    use proptest::prelude::*;

    use super::*;

    fn request() -> JoinRequest {
        JoinRequest {
            client_info: Some(ClientInfo {
                protocol: 17,
                ..ClientInfo::default()
            }),
            connection_settings: Some(ConnectionSettings {
                auto_subscribe: true,
                ..ConnectionSettings::default()
            }),
            metadata: "m".repeat(300),
            ..JoinRequest::default()
        }
    }

    fn wrap(request: &JoinRequest, compression: Compression) -> Vec<u8> {
        let plain = request.encode_to_vec();
        let join_request = match compression {
            Compression::None => plain,
            Compression::Gzip => gzip(&plain),
        };
        WrappedJoinRequest {
            compression: compression as i32,
            join_request,
        }
        .encode_to_vec()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn query(value: String) -> HashMap<String, String> {
        HashMap::from([("join_request".to_owned(), value)])
    }

    #[test]
    fn every_form_in_use_is_read() {
        for compression in [Compression::None, Compression::Gzip] {
            let bytes = wrap(&request(), compression);
            for text in [
                base64::engine::general_purpose::URL_SAFE.encode(&bytes),
                URL_SAFE_NO_PAD.encode(&bytes),
                STANDARD.encode(&bytes),
            ] {
                let parameters = single_connection(&query(text)).unwrap();
                assert!(parameters.auto_subscribe && parameters.single_connection);
                assert_eq!(parameters.client.protocol, 17);
                assert_eq!(parameters.resume, None);
            }
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = gzip(&vec![0; 8 * 1024 * 1024]);
        let wrapped = WrappedJoinRequest {
            compression: Compression::Gzip as i32,
            join_request: bomb,
        };
        let text = URL_SAFE_NO_PAD.encode(wrapped.encode_to_vec());
        assert_eq!(single_connection(&query(text)), Err(JoinError::Inflate));
    }

    #[test]
    fn oversized_metadata_is_refused() {
        let large = JoinRequest {
            metadata: "m".repeat(MAX_METADATA + 1),
            ..request()
        };
        let text = URL_SAFE_NO_PAD.encode(wrap(&large, Compression::Gzip));
        assert_eq!(single_connection(&query(text)), Err(JoinError::Metadata));
    }

    #[test]
    fn too_many_tracks_are_refused() {
        let announcing = |count| JoinRequest {
            add_track_requests: vec![AddTrackRequest::default(); count],
            ..request()
        };
        let read = |count| {
            let text = URL_SAFE_NO_PAD.encode(wrap(&announcing(count), Compression::Gzip));
            single_connection(&query(text)).map(|parameters| parameters.add_tracks.len())
        };
        assert_eq!(read(MAX_TRACKS), Ok(MAX_TRACKS));
        assert_eq!(read(MAX_TRACKS + 1), Err(JoinError::Tracks));
    }

    #[test]
    fn the_older_query_has_livekits_defaults() {
        let parameters = dual_connection(&HashMap::new()).unwrap();
        assert!(parameters.auto_subscribe && !parameters.adaptive_stream && !parameters.single_connection);
        let pairs = [
            ("sdk", "js"),
            ("protocol", "16"),
            ("auto_subscribe", "0"),
            ("reconnect", "1"),
            ("sid", "PA_x"),
        ];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let parameters = dual_connection(&HashMap::from(pairs)).unwrap();
        assert!(!parameters.auto_subscribe);
        assert_eq!(
            (parameters.client.protocol, parameters.client.sdk),
            (16, client_info::Sdk::Js as i32)
        );
        assert_eq!(parameters.resume.as_deref(), Some("PA_x"));
    }

    proptest! {
        #[test]
        fn hostile_join_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), gz in any::<bool>()) {
            let wrapped = WrappedJoinRequest { compression: i32::from(gz), join_request: bytes.clone() }.encode_to_vec();
            for bytes in [bytes, wrapped] {
                let _ = single_connection(&query(URL_SAFE_NO_PAD.encode(bytes)));
            }
        }
    }
}
