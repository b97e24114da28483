//! Damaged messages: what a parser of strangers' bytes is fed besides pure noise, which rarely passes its first check.

use proptest::{collection::vec, prelude::*, sample::Index};

/// One act of damage; positions are taken modulo the length.
#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Lengths and counts break at their edges.
    let byte = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7F), Just(0x80), Just(0xFF)];
    prop_oneof![
        4 => (any::<Index>(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        4 => (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        2 => (any::<Index>(), 1_usize..9).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (any::<Index>(), 1_usize..64).prop_map(|(at, count)| Damage::Repeat(at, count)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let at = |index: &Index| index.index(bytes.len() + 1);
    match damage {
        Damage::Set(index, byte) => {
            let at = at(index);
            if let Some(target) = bytes.get_mut(at) {
                *target = *byte;
            }
        }
        Damage::Flip(index, bit) => {
            let at = at(index);
            if let Some(target) = bytes.get_mut(at) {
                *target ^= 1 << bit;
            }
        }
        Damage::Insert(index, inserted) => {
            let at = at(index);
            bytes.splice(at..at, inserted.iter().copied());
        }
        Damage::Remove(index, count) => {
            let at = at(index);
            bytes.drain(at..bytes.len().min(at + count));
        }
        Damage::Repeat(index, count) => {
            let at = at(index);
            let repeated = bytes[at..bytes.len().min(at + count)].to_vec();
            bytes.splice(at..at, repeated);
        }
        Damage::Cut(index) => bytes.truncate(index.index(bytes.len() + 1)),
    }
}

/// One of `samples` with up to eight acts of damage, or noise of up to 300 bytes.
pub fn hostile(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (proptest::sample::select(samples), vec(damage(), 0..8)).prop_map(|(mut bytes, acts)| {
        acts.iter().for_each(|act| apply(&mut bytes, act));
        bytes
    });
    prop_oneof![4 => damaged, 1 => vec(any::<u8>(), 0..300)]
}
