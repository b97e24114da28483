//! Which receiving section of a client carries which subscription, and which sections the client must still offer.
//!
//! With one connection for both ways the client always offers: a track can be delivered only in a section that the client
//! offered to receive in, and the client is asked for missing ones (`media_sections_requirement`). Pure; knows neither text
//! nor tracks.

use std::collections::HashMap;

use livekit_protocol::MediaSectionsRequirement;

use crate::sdp::{
    Description, Extension, Kind,
    codecs::{self, Negotiated},
};

/// What a section carries to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Nothing: may be taken.
    Nothing,
    /// The subscription of this key.
    Subscription(usize),
    /// It carried something that ended. It must be answered inactive once before it is taken again, or browsers would
    /// not notice that another track began.
    Clearing,
}

/// One audio or video section of the client.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) mid: String,
    pub(crate) kind: Kind,
    /// The client offered to receive in it.
    pub(crate) receives: bool,
    pub(crate) carries: Carries,
    /// It carried something before: the client's track keeps the name that the first one had.
    pub(crate) reused: bool,
    pub(crate) codecs: Vec<Negotiated>,
    pub(crate) extensions: Vec<Extension>,
}

/// The sections of one client.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// In the order of the descriptions.
    slots: Vec<Slot>,
    by_mid: HashMap<String, usize>,
    /// Sections asked for and not offered yet.
    asked: [usize; 2],
    /// A plain new offer was asked for.
    asked_again: bool,
}

fn index(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Audio => Some(0),
        Kind::Video => Some(1),
        Kind::Application | Kind::Other => None,
    }
}

impl Slots {
    /// Takes in an offer: from here on the sections are those it has. Returns the subscriptions that lost their section.
    pub(crate) fn offered(&mut self, offer: &Description) -> Vec<usize> {
        self.asked_again = false;
        let mut lost = Vec::new();
        let mut before: HashMap<String, Slot> = std::mem::take(&mut self.slots)
            .into_iter()
            .map(|slot| (slot.mid.clone(), slot))
            .collect();
        self.by_mid.clear();
        for section in &offer.sections {
            let Some(kind) = index(section.kind) else { continue };
            let receives = section.direction.receives() && !section.rejected;
            let known = before.remove(&section.mid);
            if known.is_none() && receives {
                self.asked[kind] = self.asked[kind].saturating_sub(1);
            }
            let (mut carries, reused) = known.map_or((Carries::Nothing, false), |slot| (slot.carries, slot.reused));
            if !receives && let Carries::Subscription(key) = carries {
                lost.push(key);
                carries = Carries::Nothing;
            }
            self.push(Slot {
                mid: section.mid.clone(),
                // A section may be recycled for another kind (RFC 8829 §5.2.2).
                kind: section.kind,
                receives,
                carries,
                reused,
                codecs: codecs::negotiate(section),
                extensions: codecs::extensions(section),
            });
        }
        lost.extend(before.into_values().filter_map(|slot| match slot.carries {
            Carries::Subscription(key) => Some(key),
            Carries::Nothing | Carries::Clearing => None,
        }));
        lost
    }

    fn push(&mut self, slot: Slot) {
        self.by_mid.insert(slot.mid.clone(), self.slots.len());
        self.slots.push(slot);
    }

    /// Gives `subscription` a free section of `kind` that accepts it.
    pub(crate) fn assign(&mut self, kind: Kind, subscription: usize, accepts: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.kind == kind && slot.receives && slot.carries == Carries::Nothing && accepts(slot))?;
        slot.carries = Carries::Subscription(subscription);
        Some(slot)
    }

    /// A further section of our own, where the server offers.
    pub(crate) fn add(
        &mut self,
        kind: Kind,
        subscription: usize,
        codecs: Vec<Negotiated>,
        extensions: Vec<Extension>,
    ) -> &Slot {
        let mid = self.slots.len().to_string();
        let carries = Carries::Subscription(subscription);
        self.push(Slot {
            mid,
            kind,
            receives: true,
            carries,
            reused: false,
            codecs,
            extensions,
        });
        self.slots.last().expect("just pushed")
    }

    /// How many sections there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Every section, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Ends what `subscription` was given; whether it had a section.
    pub(crate) fn release(&mut self, subscription: usize) -> bool {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.carries == Carries::Subscription(subscription));
        let found = slot.is_some();
        if let Some(slot) = slot {
            slot.carries = Carries::Clearing;
        }
        found
    }

    /// Whether the client has receiving sections of `kind` and none of them can carry it.
    pub(crate) fn cannot_carry(&self, kind: Kind, accepts: impl Fn(&Slot) -> bool) -> bool {
        let mut candidates = self
            .slots
            .iter()
            .filter(|slot| slot.kind == kind && slot.receives)
            .peekable();
        candidates.peek().is_some() && !candidates.any(accepts)
    }

    /// The answer was written: sections answered inactive are free again.
    pub(crate) fn answered(&mut self) {
        for slot in &mut self.slots {
            if slot.carries == Carries::Clearing {
                slot.carries = Carries::Nothing;
                slot.reused = true;
            }
        }
    }

    /// The section of this name.
    pub(crate) fn slot(&self, mid: &str) -> Option<&Slot> {
        self.by_mid.get(mid).map(|slot| &self.slots[*slot])
    }

    /// What to ask the client for when so many subscriptions of each kind wait for a section. Does not ask twice.
    pub(crate) fn requirement(
        &mut self,
        waiting_audio: usize,
        waiting_video: usize,
    ) -> Option<MediaSectionsRequirement> {
        let mut more = [0; 2];
        for (kind, waiting) in [(Kind::Audio, waiting_audio), (Kind::Video, waiting_video)] {
            let slot = usize::from(kind == Kind::Video);
            let usable = |candidate: &&Slot| {
                candidate.kind == kind && candidate.receives && !matches!(candidate.carries, Carries::Subscription(_))
            };
            let free = self.slots.iter().filter(usable).count();
            more[slot] = waiting.saturating_sub(free + self.asked[slot]);
        }
        let clearing = self.slots.iter().any(|slot| slot.carries == Carries::Clearing);
        let wanted = waiting_audio + waiting_video > 0 || clearing;
        let outstanding = self.asked_again || self.asked != [0; 2];
        if more == [0; 2] && (!wanted || outstanding) {
            return None;
        }
        self.asked[0] += more[0];
        self.asked[1] += more[1];
        self.asked_again = true;
        Some(MediaSectionsRequirement {
            num_audios: more[0] as u32,
            num_videos: more[1] as u32,
        })
    }

    /// Forgets what was asked, so that it is asked again: the client did not react, or began anew.
    pub(crate) fn forget_requests(&mut self) {
        self.asked = [0; 2];
        self.asked_again = false;
    }

    /// Whether something was asked and did not come yet.
    pub(crate) fn is_outstanding(&self) -> bool {
        self.asked_again || self.asked != [0; 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sdp;

    fn offer(sections: &[(&str, &str)]) -> Description {
        let mut text = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-ufrag:abcd\r\n\
            a=ice-pwd:abcdefghijklmnopqrstuvwx\r\na=fingerprint:sha-256 11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11:11\r\na=setup:actpass\r\n"
            .to_owned();
        for (mid, (kind, direction)) in sections.iter().enumerate() {
            text.push_str(&format!(
                "m={kind} 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:{mid}\r\na={direction}\r\n"
            ));
        }
        sdp::parse(&text).unwrap()
    }

    fn take(slots: &mut Slots, kind: Kind, key: usize) -> Option<String> {
        slots.assign(kind, key, |_| true).map(|slot| slot.mid.clone())
    }

    fn numbers(requirement: Option<MediaSectionsRequirement>) -> Option<(u32, u32)> {
        requirement.map(|requirement| (requirement.num_audios, requirement.num_videos))
    }

    #[test]
    fn free_sections_need_only_a_new_offer_and_missing_ones_are_asked_for_once() {
        let mut slots = Slots::default();
        slots.offered(&offer(&[("audio", "recvonly"), ("video", "recvonly")]));
        slots.answered();
        assert_eq!(numbers(slots.requirement(0, 0)), None);
        assert_eq!(numbers(slots.requirement(1, 1)), Some((0, 0)));
        assert_eq!(numbers(slots.requirement(1, 1)), None);
        // A second track arrives before the client reacted: exactly one more section.
        assert_eq!(numbers(slots.requirement(1, 2)), Some((0, 1)));
        assert_eq!(numbers(slots.requirement(1, 2)), None);
        slots.offered(&offer(&[
            ("audio", "recvonly"),
            ("video", "recvonly"),
            ("video", "recvonly"),
        ]));
        assert_eq!(take(&mut slots, Kind::Video, 7).as_deref(), Some("1"));
        assert_eq!(take(&mut slots, Kind::Video, 8).as_deref(), Some("2"));
        assert_eq!(take(&mut slots, Kind::Video, 9), None);
        assert_eq!(take(&mut slots, Kind::Audio, 6).as_deref(), Some("0"));
        assert!(!slots.is_outstanding());
    }

    #[test]
    fn a_section_is_answered_inactive_before_it_is_taken_again() {
        let mut slots = Slots::default();
        let one = offer(&[("video", "recvonly")]);
        slots.offered(&one);
        take(&mut slots, Kind::Video, 1).unwrap();
        slots.answered();
        assert!(slots.release(1));
        assert_eq!(numbers(slots.requirement(0, 0)), Some((0, 0)));
        slots.offered(&one);
        assert_eq!(take(&mut slots, Kind::Video, 2), None);
        slots.answered();
        // The waiting one gets it with the next offer.
        assert_eq!(numbers(slots.requirement(0, 1)), Some((0, 0)));
        slots.offered(&one);
        assert_eq!(take(&mut slots, Kind::Video, 2).as_deref(), Some("0"));
    }

    #[test]
    fn a_section_that_stops_receiving_frees_its_subscription() {
        let mut slots = Slots::default();
        slots.offered(&offer(&[("audio", "recvonly")]));
        take(&mut slots, Kind::Audio, 3).unwrap();
        assert_eq!(slots.offered(&offer(&[("audio", "inactive")])), [3]);
        assert_eq!(slots.slot("0").unwrap().carries, Carries::Nothing);
        assert_eq!(numbers(slots.requirement(1, 0)), Some((1, 0)));
    }

    #[test]
    fn sections_that_are_gone_are_forgotten_with_what_they_carried() {
        let renamed = |prefix: &str| {
            let mut offer = offer(&[("audio", "recvonly"), ("video", "recvonly")]);
            for section in &mut offer.sections {
                section.mid.insert_str(0, prefix);
            }
            offer
        };
        let mut slots = Slots::default();
        slots.offered(&renamed("a"));
        take(&mut slots, Kind::Video, 7).unwrap();
        for round in 0..100 {
            let lost = slots.offered(&renamed(&round.to_string()));
            assert_eq!(lost, if round == 0 { vec![7] } else { vec![] });
            assert_eq!(slots.len(), 2);
        }
        assert!(slots.slot("a1").is_none());
    }

    #[test]
    fn sending_sections_of_the_client_do_not_count() {
        let mut slots = Slots::default();
        slots.offered(&offer(&[("audio", "sendonly"), ("video", "sendonly")]));
        assert_eq!(numbers(slots.requirement(1, 0)), Some((1, 0)));
        // The client publishes another track in between: the request is still open.
        slots.offered(&offer(&[
            ("audio", "sendonly"),
            ("video", "sendonly"),
            ("audio", "sendonly"),
        ]));
        assert!(slots.is_outstanding());
        assert_eq!(numbers(slots.requirement(1, 0)), None);
    }
}
