//! Round trips of all profiles, agreement with an independent implementation, and hostile input.

use proptest::prelude::*;

use super::keys::KeySide;
use super::*;
use crate::media::header_extensions::ExtensionBlock;

const PROFILES: [SrtpProfile; 3] = [
    SrtpProfile::AeadAes256Gcm,
    SrtpProfile::AeadAes128Gcm,
    SrtpProfile::Aes128CmHmacSha1_80,
];

fn exported(profile: SrtpProfile) -> Vec<u8> {
    (0..2 * (profile.key_len() + profile.salt_len()))
        .map(|i| (i * 7 + 3) as u8)
        .collect()
}

fn pair(profile: SrtpProfile) -> (SrtpSender, SrtpReceiver) {
    let bytes = exported(profile);
    let server = KeyingMaterial::new(profile, &bytes, KeySide::Server).expect("right length");
    let client = KeyingMaterial::new(profile, &bytes, KeySide::Client).expect("right length");
    (SrtpSender::new(profile, &server), SrtpReceiver::new(profile, &client))
}

fn extensions() -> ExtensionBlock {
    let mut block = ExtensionBlock::default();
    block.push(1, &[7, 8]);
    block
}

fn packet<'a>(sequence: u64, extensions: &'a ExtensionBlock, payload: &'a [u8]) -> OutgoingRtp<'a> {
    OutgoingRtp {
        marker: true,
        payload_type: 96,
        sequence,
        timestamp: 90_000,
        ssrc: 0xCAFE_BABE,
        extensions,
        prefix: &[0x90],
        payload,
        padding: 0,
    }
}

#[test]
fn packets_open_once_and_only_unchanged() {
    let block = extensions();
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        for sequence in [65_535, 65_536, 65_540, 65_538] {
            let (mut clear, mut sealed) = (Vec::new(), vec![0xEE; 5]);
            let outgoing = packet(sequence, &block, b"payload");
            outgoing.write(&mut clear);
            assert!(sender.seal_rtp(&outgoing, &mut sealed));
            assert!(!sender.seal_rtp(&outgoing, &mut Vec::new()), "no number is used twice");
            let sealed = sealed.split_off(5);
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 0x10;
                assert!(
                    receiver.open_rtp(&mut changed).is_err(),
                    "{profile:?}: byte {at} changed"
                );
            }
            let mut opened = sealed.clone();
            let length = receiver.open_rtp(&mut opened).expect("authentic");
            assert_eq!(opened[..length], clear, "{profile:?}");
            assert_eq!(receiver.open_rtp(&mut sealed.clone()), Err(OpenError::Replayed));
        }
    }
}

#[test]
fn rtcp_opens_once_and_only_unchanged() {
    let compound = [&[0x81, 201, 0, 1, 0, 0, 0, 9][..], &[5; 24]].concat();
    for profile in PROFILES {
        let (mut sender, mut receiver) = pair(profile);
        for _ in 0..3 {
            let mut sealed = Vec::new();
            assert!(sender.seal_rtcp(&compound, &mut sealed));
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert!(
                    receiver.open_rtcp(&mut changed).is_err(),
                    "{profile:?}: byte {at} changed"
                );
            }
            let mut opened = sealed.clone();
            let length = receiver.open_rtcp(&mut opened).expect("authentic");
            assert_eq!(opened[..length], compound, "{profile:?}");
            assert_eq!(receiver.open_rtcp(&mut sealed), Err(OpenError::Replayed));
        }
    }
}

#[test]
fn forged_ssrcs_leave_no_state() {
    let (_, mut receiver) = pair(SrtpProfile::AeadAes128Gcm);
    for ssrc in 0..10_000_u32 {
        let mut forged = vec![0x80, 96, 0, 1, 0, 0, 0, 0];
        forged.extend_from_slice(&ssrc.to_be_bytes());
        forged.extend_from_slice(&[0; 40]);
        assert_eq!(receiver.open_rtp(&mut forged), Err(OpenError::NotAuthentic));
    }
    assert!(receiver.rtp.is_empty());
}

/// The independent implementation opens what we seal and seals what we open, under all profiles.
#[test]
fn agrees_with_an_independent_implementation() {
    use rtc_srtp::context::Context;
    use rtc_srtp::protection_profile::ProtectionProfile;

    let provider = rtc_srtp::crypto::default_provider().expect("the crate has a default");
    let block = extensions();
    for (profile, theirs) in PROFILES.into_iter().zip([
        ProtectionProfile::AeadAes256Gcm,
        ProtectionProfile::AeadAes128Gcm,
        ProtectionProfile::Aes128CmHmacSha1_80,
    ]) {
        let bytes = exported(profile);
        let keys = KeyingMaterial::new(profile, &bytes, KeySide::Server).expect("right length");
        let mut sender = SrtpSender::new(profile, &keys);
        let mut opener = Context::new(
            keys.local_key(),
            keys.local_salt(),
            theirs,
            None,
            None,
            provider.crypto(),
        )
        .expect("keys fit");
        let mut receiver = SrtpReceiver::new(profile, &keys);
        let mut sealer = Context::new(
            keys.remote_key(),
            keys.remote_salt(),
            theirs,
            None,
            None,
            provider.crypto(),
        )
        .expect("keys fit");
        for sequence in [65_534, 65_535, 65_536, 65_537] {
            let (mut clear, mut sealed) = (Vec::new(), Vec::new());
            let outgoing = packet(sequence, &block, b"some payload");
            outgoing.write(&mut clear);
            assert!(sender.seal_rtp(&outgoing, &mut sealed));
            assert_eq!(
                opener.decrypt_rtp(&sealed).expect("ours opens there")[..],
                clear[..],
                "{profile:?}"
            );
            let mut theirs = sealer.encrypt_rtp(&clear).expect("seals").to_vec();
            let length = receiver.open_rtp(&mut theirs).expect("theirs opens here");
            assert_eq!(theirs[..length], clear[..], "{profile:?}");

            let compound = [&[0x80, 200, 0, 6, 0, 0, 0, 9][..], &[sequence as u8; 20]].concat();
            let mut sealed = Vec::new();
            assert!(sender.seal_rtcp(&compound, &mut sealed));
            assert_eq!(
                opener.decrypt_rtcp(&sealed).expect("ours opens there")[..],
                compound[..],
                "{profile:?}"
            );
            let mut theirs = sealer.encrypt_rtcp(&compound).expect("seals").to_vec();
            let length = receiver.open_rtcp(&mut theirs).expect("theirs opens here");
            assert_eq!(theirs[..length], compound[..], "{profile:?}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), which in 0usize..3) {
        let (_, mut receiver) = pair(PROFILES[which]);
        prop_assert!(receiver.open_rtp(&mut bytes.clone()).is_err());
        prop_assert!(receiver.open_rtcp(&mut bytes.clone()).is_err());
    }
}
