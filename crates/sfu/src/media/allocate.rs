//! Which layer of each video a subscriber gets for the bandwidth it has: first a small picture of everything, the most
//! important first, then better ones as far as it reaches. Pure; a function of its arguments.

use super::layers::{Layer, MAX_LAYERS};

/// What is kept free of the estimate: rates vary from frame to frame.
const HEADROOM: f64 = 0.95;
/// To go up, more room is wanted than to stay: without it a layer at the edge would flap.
const UPGRADE_MARGIN: f64 = 1.2;

/// One video that a subscriber wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoWish {
    /// The best layer that is of use to the subscriber.
    pub wanted: Layer,
    /// Bits per second of each layer at present; 0 for a layer that is not live.
    pub bit_rates: [u64; MAX_LAYERS],
    /// What it gets at present.
    pub current: Option<Layer>,
    /// Greater is served first; the subscriber's own setting, or screen before camera.
    pub priority: u32,
}

/// The layer for each wish, in the same order; `None` means paused. `reserved` is what audio and data take.
pub fn allocate(estimate_bps: u64, reserved_bps: u64, wishes: &[VideoWish]) -> Vec<Option<Layer>> {
    let mut left = ((estimate_bps as f64 * HEADROOM) as u64).saturating_sub(reserved_bps);
    let mut order = (0..wishes.len()).collect::<Vec<_>>();
    order.sort_by_key(|i| std::cmp::Reverse(wishes[*i].priority));
    let mut given: Vec<Option<Layer>> = vec![None; wishes.len()];
    for index in &order {
        let wish = &wishes[*index];
        // A track whose layers are all silent costs nothing; it is kept ready for when it begins.
        let Some(lowest) = usable(wish).next() else {
            given[*index] = Some(wish.wanted);
            continue;
        };
        if let Some(rest) = left.checked_sub(price(wish, lowest)) {
            left = rest;
            given[*index] = Some(lowest);
        }
    }
    for index in &order {
        let wish = &wishes[*index];
        let Some(mut layer) = given[*index].filter(|_| usable(wish).next().is_some()) else {
            continue;
        };
        for better in usable(wish) {
            if better <= layer {
                continue;
            }
            let extra = price(wish, better).saturating_sub(price(wish, layer));
            let Some(rest) = left.checked_sub(extra) else { break };
            left = rest;
            layer = better;
            given[*index] = Some(layer);
        }
    }
    given
}

/// The layers that are live and of use, from the smallest.
fn usable(wish: &VideoWish) -> impl Iterator<Item = Layer> {
    let live = move |layer: &Layer| wish.bit_rates[layer.index()] > 0;
    let best = (0..MAX_LAYERS).filter_map(Layer::new);
    let has_wanted_or_less = best.clone().any(|l| l <= wish.wanted && live(&l));
    // When only better layers than wanted are live, the least of them has to do.
    let limit = if has_wanted_or_less {
        Some(wish.wanted)
    } else {
        best.clone().find(live)
    };
    best.filter(move |l| Some(*l) <= limit && live(l))
}

fn price(wish: &VideoWish, layer: Layer) -> u64 {
    let rate = wish.bit_rates[layer.index()];
    // What flows already has proven that it fits.
    if wish.current >= Some(layer) {
        rate
    } else {
        (rate as f64 * UPGRADE_MARGIN) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATES: [u64; 3] = [150_000, 450_000, 1_700_000];

    fn wish(wanted: Layer, current: Option<Layer>, priority: u32) -> VideoWish {
        VideoWish {
            wanted,
            bit_rates: RATES,
            current,
            priority,
        }
    }

    #[test]
    fn small_pictures_for_all_come_before_large_ones_for_some() {
        let (low, medium, high) = (Some(Layer::LOW), Some(Layer::MEDIUM), Some(Layer::HIGH));
        let two = [wish(Layer::HIGH, None, 1), wish(Layer::HIGH, None, 2)];
        for (estimate, expected) in [
            (10_000_000, [high, high]),
            (3_000_000, [medium, high]),
            (1_000_000, [low, medium]),
            (420_000, [low, low]),
            (300_000, [None, low]),
            (50_000, [None, None]),
        ] {
            assert_eq!(allocate(estimate, 0, &two), expected, "{estimate}");
        }
        assert_eq!(allocate(10_000_000, 0, &[wish(Layer::MEDIUM, None, 0)]), [medium]);
    }

    #[test]
    fn what_flows_is_kept_where_an_upgrade_would_not_be_tried() {
        let rates = allocate(1_900_000, 0, &[wish(Layer::HIGH, Some(Layer::HIGH), 0)]);
        assert_eq!(rates, [Some(Layer::HIGH)]);
        assert_eq!(
            allocate(1_900_000, 0, &[wish(Layer::HIGH, Some(Layer::LOW), 0)]),
            [Some(Layer::MEDIUM)]
        );
    }

    #[test]
    fn layers_that_are_off_are_passed_over() {
        let only_high = VideoWish {
            bit_rates: [0, 0, 900_000],
            ..wish(Layer::LOW, None, 0)
        };
        assert_eq!(allocate(5_000_000, 0, &[only_high]), [Some(Layer::HIGH)]);
        let silent = VideoWish {
            bit_rates: [0; 3],
            ..wish(Layer::MEDIUM, None, 0)
        };
        assert_eq!(allocate(0, 0, &[silent]), [Some(Layer::MEDIUM)]);
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(estimate in 0u64..20_000_000, reserved in 0u64..1_000_000, wishes in proptest::collection::vec((0usize..3, proptest::option::of(0usize..3), 0u32..4, any::<[u16; 3]>()), 0..12)) {
            let wishes = wishes.iter().map(|(wanted, current, priority, rates)| VideoWish {
                wanted: Layer::new(*wanted).expect("below three"),
                current: current.and_then(Layer::new),
                priority: *priority,
                bit_rates: rates.map(|r| u64::from(r) * 50),
            }).collect::<Vec<_>>();
            let given = allocate(estimate, reserved, &wishes);
            let total: u64 = given.iter().zip(&wishes).filter_map(|(layer, wish)| layer.map(|l| wish.bit_rates[l.index()])).sum();
            prop_assert!(total + reserved <= estimate.max(reserved));
        }
    }
}
