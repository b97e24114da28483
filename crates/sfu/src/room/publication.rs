//! A published track as its participant announced it, and how it is found in an offer.

use std::collections::HashSet;

use livekit_protocol::{
    AddTrackRequest, SimulcastCodecInfo, TrackInfo, TrackSource, TrackType, VideoLayer, VideoQuality,
};

use crate::{
    clock,
    media::{header_extensions::ExtensionMap, speakers::SpeakerMeter, up_track::UpTrack},
    sdp::{
        Kind, Section,
        codecs::{self, Codec},
    },
};

/// Most tracks one participant may publish.
pub(crate) const MAX_PUBLICATIONS: usize = 32;
/// Longest client-chosen text in a track's description, in bytes.
const MAX_TEXT: usize = 1024;
/// Longest codec name and longest name of an RTP stream, in bytes.
const MAX_CODEC: usize = 64;
const MAX_RID: usize = 16;
/// Most entries of the lists in a track's description.
const MAX_LAYERS: usize = 8;
const MAX_CODECS: usize = 4;
const MAX_FEATURES: usize = 32;

/// One track of a participant.
pub(crate) struct Publication {
    /// Key of the publishing participant.
    pub(crate) owner: usize,
    pub(crate) kind: Kind,
    pub(crate) info: TrackInfo,
    /// Names by which the client may call the track in its offer.
    pub(crate) cids: Vec<String>,
    /// The codec the client said it would use.
    pub(crate) declared: Option<Codec>,
    /// Opus discontinuous transmission wanted.
    pub(crate) dtx: bool,
    pub(crate) stereo: bool,
    /// Media state; present once an offer carried the track.
    pub(crate) up: Option<UpTrack>,
    /// What receivers negotiate: codec and its format parameters.
    pub(crate) codec: Option<(Codec, String)>,
    /// Who receives it: participant key and subscription key.
    pub(crate) subscribers: Vec<(usize, usize)>,
    /// Header extension ids of the publisher's connection, for packets taken from the cache.
    pub(crate) extensions: ExtensionMap,
    pub(crate) meter: SpeakerMeter,
    /// Which layers the publisher is asked to send.
    pub(crate) demand: super::demand::Demand,
    /// The publisher was told that somebody subscribed.
    pub(crate) subscription_told: bool,
}

/// Why a track is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unacceptable {
    /// Not audio or video.
    Type,
    /// A text or list beyond the limit, or a name that is not a token.
    Text,
}

impl Publication {
    #[expect(deprecated, reason = "clients before protocol 9 read the old fields of TrackInfo")]
    pub(crate) fn new(owner: usize, request: &AddTrackRequest) -> Result<Self, Unacceptable> {
        let kind = match TrackType::try_from(request.r#type) {
            Ok(TrackType::Audio) => Kind::Audio,
            Ok(TrackType::Video) => Kind::Video,
            _ => return Err(Unacceptable::Type),
        };
        if !is_acceptable(request) {
            return Err(Unacceptable::Text);
        }
        let source = TrackSource::try_from(request.source).unwrap_or(TrackSource::Unknown);
        let first = request.simulcast_codecs.first();
        let declared = first
            .and_then(|codec| codecs::named(&codec.codec))
            .filter(|codec| codecs::kind(*codec) == kind);
        let mime_type = declared.map_or_else(
            || {
                if kind == Kind::Audio {
                    codecs::mime(Codec::Opus).to_owned()
                } else {
                    String::new()
                }
            },
            |codec| codecs::mime(codec).to_owned(),
        );
        let mut layers = first
            .map(|codec| codec.layers.clone())
            .filter(|layers| !layers.is_empty());
        if layers.is_none() {
            layers = Some(request.layers.clone());
        }
        let mut layers = layers.unwrap_or_default();
        if layers.is_empty() && kind == Kind::Video {
            layers.push(VideoLayer {
                quality: VideoQuality::High as i32,
                width: request.width,
                height: request.height,
                ..VideoLayer::default()
            });
        }
        let stream = if request.stream.is_empty() {
            default_stream(source).to_owned()
        } else {
            request.stream.clone()
        };
        let codecs = if kind == Kind::Video || first.is_some() {
            vec![SimulcastCodecInfo {
                mime_type: mime_type.clone(),
                cid: first.map_or_else(|| request.cid.clone(), |codec| codec.cid.clone()),
                layers: layers.clone(),
                video_layer_mode: first.map_or(0, |codec| codec.video_layer_mode),
                ..SimulcastCodecInfo::default()
            }]
        } else {
            Vec::new()
        };
        let mut cids = vec![request.cid.clone()];
        cids.extend(request.simulcast_codecs.iter().map(|codec| codec.cid.clone()));
        cids.retain(|cid| !cid.is_empty());
        let features =
            |feature: livekit_protocol::AudioTrackFeature| request.audio_features.contains(&(feature as i32));
        let no_dtx = request.disable_dtx || features(livekit_protocol::AudioTrackFeature::TfNoDtx);
        let stereo = request.stereo || features(livekit_protocol::AudioTrackFeature::TfStereo);
        Ok(Self {
            owner,
            kind,
            info: TrackInfo {
                sid: track_sid(kind, source),
                r#type: request.r#type,
                name: request.name.clone(),
                muted: request.muted,
                width: request.width,
                height: request.height,
                simulcast: layers.len() > 1,
                disable_dtx: no_dtx,
                source: source as i32,
                layers,
                mime_type,
                codecs,
                stereo,
                // RED is never negotiated.
                disable_red: true,
                // Echoed exactly: a receiver that is told "none" would play ciphertext.
                encryption: request.encryption,
                stream,
                version: Some(livekit_protocol::TimedVersion {
                    unix_micro: clock::unix_millis() * 1000,
                    ticks: 0,
                }),
                audio_features: request.audio_features.clone(),
                backup_codec_policy: request.backup_codec_policy,
                packet_trailer_features: request.packet_trailer_features.clone(),
                ..TrackInfo::default()
            },
            cids,
            declared,
            dtx: !no_dtx,
            stereo,
            up: None,
            codec: None,
            subscribers: Vec::new(),
            extensions: ExtensionMap::default(),
            meter: SpeakerMeter::default(),
            demand: super::demand::Demand::default(),
            subscription_told: false,
        })
    }

    pub(crate) fn sid(&self) -> &str {
        &self.info.sid
    }

    /// The others know of it.
    pub(crate) fn is_announced(&self) -> bool {
        self.up.is_some()
    }

    /// Whether `section` is plainly named as this track.
    pub(crate) fn is_named_in(&self, section: &Section) -> bool {
        section.kind == self.kind
            && section
                .msid
                .as_ref()
                .is_some_and(|(_, track)| self.cids.iter().any(|cid| cid == track))
    }

    /// Whether any of these track names, each with its kind, is plainly this track's.
    pub(crate) fn is_named_among(&self, names: &HashSet<(Kind, &str)>) -> bool {
        self.cids.iter().any(|cid| names.contains(&(self.kind, cid.as_str())))
    }

    /// The stream part of the msid under which receivers get the track.
    pub(crate) fn stream(&self) -> &str {
        &self.info.stream
    }

    /// Width and height of the layers announced, smallest first, with the name of their RTP stream.
    #[expect(deprecated, reason = "layers of TrackInfo are what every client fills")]
    pub(crate) fn layers(&self) -> &[VideoLayer] {
        &self.info.layers
    }

    /// Opus format parameters for the answer that accepts this track.
    pub(crate) fn opus_format(&self, offered: &str) -> String {
        let mut format = if offered.is_empty() {
            "minptime=10;useinbandfec=1".to_owned()
        } else {
            offered.to_owned()
        };
        if self.dtx && !format.contains("usedtx") {
            format.push_str(";usedtx=1");
        }
        if self.stereo && !format.contains("stereo=1") {
            format.push_str(";stereo=1;maxaveragebitrate=510000");
        }
        format
    }
}

/// Whether everything in a description is of bounded size, and what goes into session descriptions is a token.
fn is_acceptable(request: &AddTrackRequest) -> bool {
    let layers =
        |layers: &[VideoLayer]| layers.len() <= MAX_LAYERS && layers.iter().all(|layer| is_token(&layer.rid, MAX_RID));
    request.name.len() <= MAX_TEXT
        && is_token(&request.cid, MAX_TEXT)
        && is_token(&request.stream, MAX_TEXT)
        && layers(&request.layers)
        && request.simulcast_codecs.len() <= MAX_CODECS
        && request
            .simulcast_codecs
            .iter()
            .all(|codec| is_token(&codec.codec, MAX_CODEC) && is_token(&codec.cid, MAX_TEXT) && layers(&codec.layers))
        && request.audio_features.len() <= MAX_FEATURES
        && request.packet_trailer_features.len() <= MAX_FEATURES
}

/// Whether a text can stand as one word of a session description: no white space, no line end, and no `|`, which parts
/// participant and stream in the names that subscribers read. No text at all is fine.
fn is_token(text: &str, max: usize) -> bool {
    text.len() <= max && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'|')
}

/// Tracks of one stream are played in step: camera with microphone, both tracks of a shared screen.
fn default_stream(source: TrackSource) -> &'static str {
    match source {
        TrackSource::Camera | TrackSource::Microphone => "camera",
        TrackSource::ScreenShare | TrackSource::ScreenShareAudio => "screen",
        TrackSource::Unknown => "unknown",
    }
}

fn track_sid(kind: Kind, source: TrackSource) -> String {
    let kind = if kind == Kind::Audio { 'A' } else { 'V' };
    let source = match source {
        TrackSource::Camera => "C",
        TrackSource::Microphone => "M",
        TrackSource::ScreenShare => "S",
        TrackSource::ScreenShareAudio => "s",
        TrackSource::Unknown => "",
    };
    clock::sid(&format!("TR_{kind}{source}"))
}

#[cfg(test)]
mod tests {
    use livekit_protocol::SimulcastCodec;

    use super::*;

    fn camera() -> AddTrackRequest {
        let layer = |quality: VideoQuality, width, rid: &str| VideoLayer {
            quality: quality as i32,
            width,
            height: width * 9 / 16,
            rid: rid.to_owned(),
            ..VideoLayer::default()
        };
        AddTrackRequest {
            cid: "cam".into(),
            r#type: TrackType::Video as i32,
            source: TrackSource::Camera as i32,
            width: 1280,
            height: 720,
            layers: vec![
                layer(VideoQuality::Low, 320, "q"),
                layer(VideoQuality::Medium, 640, "h"),
                layer(VideoQuality::High, 1280, "f"),
            ],
            simulcast_codecs: vec![SimulcastCodec {
                codec: "vp8".into(),
                cid: "cam".into(),
                ..Default::default()
            }],
            encryption: 1,
            ..AddTrackRequest::default()
        }
    }

    #[test]
    fn a_camera_is_described_as_clients_expect() {
        let publication = Publication::new(0, &camera()).unwrap();
        let info = &publication.info;
        assert!(info.sid.starts_with("TR_VC") && info.sid.len() == 17, "{}", info.sid);
        assert_eq!(
            (info.mime_type.as_str(), info.stream.as_str(), info.encryption),
            ("video/VP8", "camera", 1)
        );
        assert_eq!(info.codecs[0].layers.len(), 3);
        assert_eq!(
            (info.codecs[0].cid.as_str(), info.codecs[0].mime_type.as_str()),
            ("cam", "video/VP8")
        );
    }

    #[test]
    fn a_microphone_gets_discontinuous_transmission_unless_refused() {
        let request = AddTrackRequest {
            cid: "mic".into(),
            r#type: TrackType::Audio as i32,
            source: TrackSource::Microphone as i32,
            ..AddTrackRequest::default()
        };
        let publication = Publication::new(0, &request).unwrap();
        assert!(publication.sid().starts_with("TR_AM"));
        assert_eq!(
            publication.opus_format("minptime=10;useinbandfec=1"),
            "minptime=10;useinbandfec=1;usedtx=1"
        );
        let quiet = AddTrackRequest {
            audio_features: vec![
                livekit_protocol::AudioTrackFeature::TfNoDtx as i32,
                livekit_protocol::AudioTrackFeature::TfStereo as i32,
            ],
            ..request
        };
        let publication = Publication::new(0, &quiet).unwrap();
        assert_eq!(publication.opus_format("a=1"), "a=1;stereo=1;maxaveragebitrate=510000");
    }

    #[test]
    fn names_are_tokens() {
        let of_stream = |stream: &str| {
            let stream = stream.to_owned();
            Publication::new(0, &AddTrackRequest { stream, ..camera() }).err()
        };
        let of_cid = |cid: &str| {
            let cid = cid.to_owned();
            Publication::new(0, &AddTrackRequest { cid, ..camera() }).err()
        };
        for good in [
            "",
            "camera",
            "screen",
            "screen_share",
            "0b6fd8c5-9a3c-4d14-8e3b-0f6f5b0d2a11",
            "{0b6fd8c5-9a3c-4d14-8e3b-0f6f5b0d2a11}",
        ] {
            assert_eq!((of_stream(good), of_cid(good)), (None, None), "{good}");
        }
        let refused = Some(Unacceptable::Text);
        for bad in ["a b", "a\r\na=candidate:1", "a\n", "a|b", "a\0", "\u{e9}"] {
            assert_eq!((of_stream(bad), of_cid(bad)), (refused, refused), "{bad:?}");
        }
    }

    #[test]
    fn descriptions_are_bounded() {
        let codec = camera().simulcast_codecs.remove(0);
        let layer = |rid: &str| VideoLayer {
            rid: rid.to_owned(),
            ..VideoLayer::default()
        };
        let with_codec = |codec| AddTrackRequest {
            simulcast_codecs: vec![codec],
            ..camera()
        };
        let too_much = [
            with_codec(SimulcastCodec {
                layers: vec![layer("q"); MAX_LAYERS + 1],
                ..codec.clone()
            }),
            with_codec(SimulcastCodec {
                codec: "x".repeat(MAX_CODEC + 1),
                ..codec.clone()
            }),
            with_codec(SimulcastCodec {
                cid: "x".repeat(MAX_TEXT + 1),
                ..codec.clone()
            }),
            AddTrackRequest {
                simulcast_codecs: vec![codec; MAX_CODECS + 1],
                ..camera()
            },
            AddTrackRequest {
                layers: vec![layer(&"x".repeat(MAX_RID + 1))],
                ..camera()
            },
            AddTrackRequest {
                audio_features: vec![0; MAX_FEATURES + 1],
                ..camera()
            },
            AddTrackRequest {
                packet_trailer_features: vec![0; MAX_FEATURES + 1],
                ..camera()
            },
        ];
        for request in too_much {
            assert_eq!(Publication::new(0, &request).err(), Some(Unacceptable::Text));
        }
    }

    #[test]
    fn what_is_neither_audio_nor_video_is_refused() {
        let request = AddTrackRequest {
            r#type: TrackType::Data as i32,
            ..camera()
        };
        assert_eq!(Publication::new(0, &request).err(), Some(Unacceptable::Type));
        let request = AddTrackRequest {
            name: "x".repeat(MAX_TEXT + 1),
            ..camera()
        };
        assert_eq!(Publication::new(0, &request).err(), Some(Unacceptable::Text));
    }
}
