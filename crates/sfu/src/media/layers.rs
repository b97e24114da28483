//! Simulcast layers: their order, their names on the wire, and which of them suits a picture size. Pure values.

/// Layers of one simulcast track.
pub const MAX_LAYERS: usize = 3;

/// A simulcast layer, counted from the smallest picture. A track without simulcast has layer 0 alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Layer(u8);

impl Layer {
    pub const LOW: Self = Self(0);
    pub const MEDIUM: Self = Self(1);
    pub const HIGH: Self = Self(2);

    /// `None` beyond [`MAX_LAYERS`].
    pub fn new(index: usize) -> Option<Self> {
        (index < MAX_LAYERS).then_some(Self(index as u8))
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub fn lower(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// All layers up to and including this one, best first.
    pub fn down(self) -> impl Iterator<Item = Self> {
        (0..=self.0).rev().map(Self)
    }
}

/// The rids of a track in ascending order of quality, as its SDP lists them: `q`, `h`, `f`. Empty without simulcast.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rids(Vec<String>);

impl Rids {
    /// In the order of `a=simulcast:send`. Rids of LiveKit's naming are put into their order by name, whatever the SDP
    /// says; beyond [`MAX_LAYERS`] they are ignored.
    pub fn new(rids: impl IntoIterator<Item = String>) -> Self {
        let mut rids = rids.into_iter().take(MAX_LAYERS).collect::<Vec<_>>();
        if rids.iter().all(|rid| rank(rid).is_some()) {
            rids.sort_by_key(|rid| rank(rid));
        }
        Self(rids)
    }

    pub fn layer(&self, rid: &str) -> Option<Layer> {
        self.0.iter().position(|known| known == rid).and_then(Layer::new)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many layers the track has: at least one.
    pub fn layer_count(&self) -> usize {
        self.0.len().max(1)
    }
}

fn rank(rid: &str) -> Option<usize> {
    ["q", "h", "f"].iter().position(|known| *known == rid)
}

/// The picture size of a layer, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dimensions {
    pub width: u32,
    pub height: u32,
}

/// The smallest layer that covers the wanted picture, or the largest there is. `layers` ascends.
pub fn layer_for(layers: &[Dimensions], wanted: Dimensions) -> Layer {
    let covers = |have: &Dimensions| {
        // Orientation may differ between what was declared and what is sent.
        let (have_long, have_short) = (have.width.max(have.height), have.width.min(have.height));
        let (want_long, want_short) = (wanted.width.max(wanted.height), wanted.width.min(wanted.height));
        have_long >= want_long && have_short >= want_short
    };
    let index = layers.iter().position(covers).unwrap_or(layers.len().saturating_sub(1));
    Layer::new(index.min(MAX_LAYERS - 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rids_order_by_quality() {
        let rids = Rids::new(["f", "q", "h"].map(str::to_owned));
        assert_eq!(rids.layer("q"), Some(Layer::LOW));
        assert_eq!(rids.layer("f"), Some(Layer::HIGH));
        assert_eq!(rids.layer("x"), None);
        let other = Rids::new(["2", "1"].map(str::to_owned));
        assert_eq!(
            other.layer("2"),
            Some(Layer::LOW),
            "unknown names keep the order of the SDP"
        );
        assert_eq!(Rids::default().layer_count(), 1);
    }

    #[test]
    fn the_smallest_covering_layer_is_taken() {
        let layers = [(320, 180), (640, 360), (1280, 720)].map(|(width, height)| Dimensions { width, height });
        for (width, height, expected) in [
            (100, 100, Layer::LOW),
            (320, 180, Layer::LOW),
            (321, 180, Layer::MEDIUM),
            (360, 640, Layer::MEDIUM),
            (4000, 3000, Layer::HIGH),
        ] {
            assert_eq!(
                layer_for(&layers, Dimensions { width, height }),
                expected,
                "{width}x{height}"
            );
        }
        assert_eq!(layer_for(&[], Dimensions::default()), Layer::LOW);
    }
}
