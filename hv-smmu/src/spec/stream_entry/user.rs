//! What a user of a nested stream says about its own first stage: a stream table entry of its own, of which a few
//! fields are looked at and everything else has to be zero.
//!
//! Which fields a user may set: Linux `arm_smmu_validate_vste` (`iommu_hwpt_arm_smmuv3`), but for EATS, since device
//! TLBs are not driven, and for the attributes of context descriptor reads, which the second stage decides.

use super::words::{Word0, Word1};
use super::{
    CONFIG_FIRST, CONFIG_PASS, ContextTableFormat, FirstStageContexts, WORDS, WithoutSubstream,
};
use crate::spec::walk::Walk;

/// Why a user's entry is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadUserEntry {
    /// It is valid and lets requests bypass, or aborts them, or it is not valid (V and Config of word 0). The word.
    NoFirstStage(u64),
    /// It asks for a second stage, which no user is shown (Config of word 0). The word.
    Config(u64),
    /// A bit is set that means nothing, or that is not the user's to set. In which word, and the bits.
    Reserved(usize, u64),
    /// S1FMT is reserved, or needs another size. The code.
    Format(u8),
    /// S1DSS is reserved. The code.
    WithoutSubstream(u8),
    /// S1CDMAX is larger than substreams go. The code.
    Contexts(u8),
}

impl FirstStageContexts {
    /// The first stage that a user's entry describes; its context descriptors are at an address of the user's.
    ///
    /// # Errors
    /// [`BadUserEntry`].
    pub const fn of_user(words: &[u64; WORDS], walk: Walk) -> Result<Self, BadUserEntry> {
        let [word0, word1, rest @ ..] = words;
        let (word0, word1) = (*word0, *word1);
        let entry = Word0::from_bits(word0);
        match (entry.v(), entry.config()) {
            (true, config) if config == CONFIG_PASS | CONFIG_FIRST => {}
            (true, config) if config > CONFIG_PASS => return Err(BadUserEntry::Config(word0)),
            _ => return Err(BadUserEntry::NoFirstStage(word0)),
        }
        let kept = Word0::new()
            .with_v(true)
            .with_config(u8::MAX >> 5)
            .with_s1fmt(3)
            .with_s1contextptr(u64::MAX >> 18)
            .with_s1cdmax(u8::MAX >> 3)
            .into_bits();
        if word0 & !kept != 0 {
            return Err(BadUserEntry::Reserved(0, word0 & !kept));
        }
        let kept = Word1::new()
            .with_s1dss(3)
            .with_s1cir(3)
            .with_s1cor(3)
            .with_s1csh(3)
            .with_s1stalld(true)
            .into_bits();
        if word1 & !kept != 0 {
            return Err(BadUserEntry::Reserved(1, word1 & !kept));
        }
        let mut left: &[u64] = rest;
        let mut number = 2;
        while let [word, others @ ..] = left {
            if *word != 0 {
                return Err(BadUserEntry::Reserved(number, *word));
            }
            (left, number) = (others, number + 1);
        }
        let format = match entry.s1fmt() {
            0 => ContextTableFormat::Linear,
            // One descriptor needs no second level.
            2 if entry.s1cdmax() != 0 => ContextTableFormat::TwoLevel,
            other => return Err(BadUserEntry::Format(other)),
        };
        let without = match Word1::from_bits(word1).s1dss() {
            0 => WithoutSubstream::Terminate,
            1 => WithoutSubstream::Bypass,
            2 => WithoutSubstream::UseZero,
            other => return Err(BadUserEntry::WithoutSubstream(other)),
        };
        let table = entry.s1contextptr() << super::S1CONTEXTPTR_SHIFT;
        match Self::new(table, format, entry.s1cdmax(), without, walk) {
            Some(contexts) => Ok(contexts),
            None => Err(BadUserEntry::Contexts(entry.s1cdmax())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Regime, StreamOptions, StreamTableEntry};
    use super::*;
    use crate::Vmid;
    use crate::spec::id_registers::StallModel;

    /// A guest's entry: valid, first stage, 2^4 descriptors at 0x1_2345_6000, substream 0 for requests without one.
    const WORDS_OF_A_GUEST: [u64; WORDS] = [
        4 << 59 | 0x1_2345_6000 | 0xb,
        2 | 1 << 2 | 1 << 4,
        0,
        0,
        0,
        0,
        0,
        0,
    ];

    fn of(words: [u64; WORDS]) -> Result<FirstStageContexts, BadUserEntry> {
        FirstStageContexts::of_user(&words, Walk::Coherent)
    }

    #[test]
    fn a_guests_entry_becomes_the_first_stage_of_ours() {
        let format = ContextTableFormat::Linear;
        let without = WithoutSubstream::UseZero;
        let expected = FirstStageContexts::new(0x1_2345_6000, format, 4, without, Walk::Coherent);
        assert_eq!(of(WORDS_OF_A_GUEST).ok(), expected);
        // What this crate says of such a stage is what a guest would say.
        let options = StreamOptions {
            on_fault: StallModel::Never.terminate().unwrap(),
            translation_requests: None,
            merge_events: false,
        };
        let ours =
            StreamTableEntry::first_stage(&expected.unwrap(), Regime::El1, Vmid::new(0), &options);
        assert_eq!(ours.words()[0], WORDS_OF_A_GUEST[0]);
    }

    /// Shows: bc08.
    #[test]
    fn what_is_not_a_users_to_say_is_refused() {
        let with = |word: usize, bits: u64| {
            let mut words = WORDS_OF_A_GUEST;
            words[word] ^= bits;
            of(words).unwrap_err()
        };
        // Not valid, abort (in two ways), bypass: there is no first stage.
        for config in [0x0b ^ 0x0a, 0x0b ^ 0x01, 0x0b ^ 0x03, 0x0b ^ 0x09] {
            let word0 = WORDS_OF_A_GUEST[0] ^ config;
            assert_eq!(with(0, config), BadUserEntry::NoFirstStage(word0));
        }
        // Second stage, both.
        for config in [0x0b ^ 0x0d, 0x0b ^ 0x0f] {
            let word0 = WORDS_OF_A_GUEST[0] ^ config;
            assert_eq!(with(0, config), BadUserEntry::Config(word0));
        }
        assert_eq!(with(0, 1 << 52), BadUserEntry::Reserved(0, 1 << 52));
        // Device TLBs, regime, memory types, instruction overrides.
        for bit in [19, 25, 28, 29, 30, 31, 36, 44, 46, 48, 50] {
            assert_eq!(with(1, 1 << bit), BadUserEntry::Reserved(1, 1 << bit));
        }
        // VMID, second stage and everything behind.
        for word in 2..WORDS {
            assert_eq!(with(word, 1), BadUserEntry::Reserved(word, 1));
        }
        assert_eq!(with(0, 3 << 4), BadUserEntry::Format(3));
        assert_eq!(with(0, 1 << 4), BadUserEntry::Format(1));
        assert_eq!(with(1, 1), BadUserEntry::WithoutSubstream(3));
        // 2^21 descriptors.
        assert_eq!(with(0, (4 ^ 21) << 59), BadUserEntry::Contexts(21));
    }
}
