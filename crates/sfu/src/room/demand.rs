//! Which simulcast layers somebody wants ("dynacast"): a publisher that is told so does not encode and send the others.

use std::time::{Duration, Instant};

use livekit_protocol::{
    SubscribedCodec, SubscribedQuality, SubscribedQualityUpdate, VideoQuality, signal_response::Message as SignalOut,
};

use super::{actor::Room, forwarding::wanted_layer};

/// How long a layer is kept after nobody wants it: windows are dragged and tabs are switched back and forth.
const LINGER: Duration = Duration::from_secs(5);

/// The highest layer wanted of one track, `None` for no layer at all.
type Wanted = Option<usize>;

/// What a publisher was told, and what it is about to be told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    /// Before anything is told every layer is sent.
    told: Option<Wanted>,
    /// Since when less is wanted than was told.
    less_since: Option<Instant>,
}

impl Demand {
    /// What to tell the publisher, if anything: more at once, less after a while.
    fn change(&mut self, wanted: Wanted, highest: usize, now: Instant) -> Option<Wanted> {
        let told = self.told.unwrap_or(Some(highest));
        if wanted >= told {
            self.less_since = None;
            if wanted == told {
                return None;
            }
        } else if now.duration_since(*self.less_since.get_or_insert(now)) < LINGER {
            return None;
        }
        self.less_since = None;
        self.told = Some(wanted);
        Some(wanted)
    }
}

impl Room {
    /// Tells publishers of simulcast tracks which layers are of use.
    pub(crate) fn tell_demand(&mut self, now: Instant) {
        let Self {
            participants,
            publications,
            ..
        } = self;
        for (_, publication) in publications.iter_mut() {
            let layers = publication.up.as_ref().map_or(0, |up| up.layer_count());
            // While nobody has received it yet, who comes first should find every layer.
            if layers < 2 || !publication.subscription_told {
                continue;
            }
            let wanted = publication
                .subscribers
                .iter()
                .filter_map(|(participant, subscription)| {
                    participants.get(*participant)?.subscriptions.get(*subscription)
                })
                .filter(|entry| !entry.settings.disabled)
                .map(|entry| wanted_layer(entry, publication, layers).index())
                .max();
            let Some(wanted) = publication.demand.change(wanted, layers - 1, now) else {
                continue;
            };
            let codec = publication
                .codec
                .as_ref()
                .map_or("vp8", |(codec, _)| codec.name())
                .to_ascii_lowercase();
            let qualities = qualities(wanted, layers);
            let update = SubscribedQualityUpdate {
                track_sid: publication.sid().to_owned(),
                subscribed_codecs: vec![SubscribedCodec { codec, qualities }],
                ..SubscribedQualityUpdate::default()
            };
            if let Some(publisher) = participants.get_mut(publication.owner) {
                publisher.send(SignalOut::SubscribedQualityUpdate(update));
            }
        }
    }
}

/// Clients name their layers low, medium and high from the smallest; of two the upper one answers to medium and high.
fn qualities(wanted: Wanted, layers: usize) -> Vec<SubscribedQuality> {
    [VideoQuality::Low, VideoQuality::Medium, VideoQuality::High]
        .into_iter()
        .enumerate()
        .map(|(layer, quality)| SubscribedQuality {
            quality: quality as i32,
            enabled: wanted.is_some_and(|wanted| layer.min(layers - 1) <= wanted),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn more_is_told_at_once_and_less_after_a_while() {
        let (start, mut demand) = (clock::now(), Demand::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(demand.change(Some(2), 2, at(0)), None, "all layers are on at first");
        assert_eq!(demand.change(Some(0), 2, at(1)), None);
        assert_eq!(demand.change(Some(0), 2, at(6)), Some(Some(0)));
        assert_eq!(demand.change(Some(2), 2, at(7)), Some(Some(2)));
        assert_eq!(demand.change(None, 2, at(8)), None);
        assert_eq!(demand.change(Some(2), 2, at(9)), None, "it was wanted again in time");
        assert_eq!(demand.change(None, 2, at(12)), None);
        assert_eq!(demand.change(None, 2, at(17)), Some(None));
        assert_eq!(demand.change(None, 2, at(30)), None);
    }

    #[test]
    fn two_layers_answer_to_three_qualities() {
        let enabled = |wanted, layers| {
            qualities(wanted, layers)
                .iter()
                .map(|quality| quality.enabled)
                .collect::<Vec<_>>()
        };
        assert_eq!(enabled(Some(1), 3), [true, true, false]);
        assert_eq!(enabled(Some(0), 2), [true, false, false]);
        assert_eq!(enabled(Some(1), 2), [true, true, true]);
        assert_eq!(enabled(None, 3), [false; 3]);
    }
}
