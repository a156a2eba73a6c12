//! What a user of a nested stream says about its own first stage: a stream table entry of its own, of which a few
//! fields are looked at and everything else has to be zero.
//!
//! Which fields a user may set: Linux `arm_smmu_validate_vste` (`iommu_hwpt_arm_smmuv3`), but for EATS, since device
//! TLBs are not driven, and for the attributes of context descriptor reads, which the second stage decides.

use super::words::{Word0, Word1};
use super::{
    CONFIG_FIRST, CONFIG_PASS, ContextTableFormat, FirstStageContexts, POINTER_BITS, WORDS,
    WithoutSubstream,
};
use crate::spec::user_unit::UserUnit;
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
    /// S1ContextPtr is wider than the addresses that the user is shown. The address.
    Pointer(u64),
    /// S1CDMAX is larger than substreams go. The code.
    Contexts(u8),
}

impl FirstStageContexts {
    /// The first stage that a user's entry describes; its context descriptors are at an address of the user's. `shown` is what
    /// the user sees as its unit, if it is shown one.
    ///
    /// What its unit ignores is ignored, and reserved codes are what they behave as (IHI 0070, 5.2: S1Fmt, S1CDMax, S1DSS, and
    /// `SteIllegal`): S1CDMax where there are no substreams, the other two with one descriptor.
    ///
    /// # Errors
    /// [`BadUserEntry`].
    pub const fn of_user(
        words: &[u64; WORDS],
        shown: Option<&UserUnit>,
        walk: Walk,
    ) -> Result<Self, BadUserEntry> {
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
        let (log2, bits) = match shown {
            Some(shown) if shown.idr1.ssidsize() == 0 => (0, shown.idr5.output_size().bits()),
            Some(shown) => (entry.s1cdmax(), shown.idr5.output_size().bits()),
            None => (entry.s1cdmax(), POINTER_BITS as u8),
        };
        let several = log2 != 0;
        let format = match entry.s1fmt() {
            1 if several => ContextTableFormat::TwoLevelsOfPages,
            2 if several => ContextTableFormat::TwoLevel,
            _ => ContextTableFormat::Linear,
        };
        let without = match Word1::from_bits(word1).s1dss() {
            1 if several => WithoutSubstream::Bypass,
            2 if several => WithoutSubstream::UseZero,
            _ => WithoutSubstream::Terminate,
        };
        let table = entry.s1contextptr() << super::S1CONTEXTPTR_SHIFT;
        if table >> bits != 0 {
            return Err(BadUserEntry::Pointer(table));
        }
        match Self::new(table, format, log2, without, walk) {
            Some(contexts) => Ok(contexts),
            None => Err(BadUserEntry::Contexts(log2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Regime, StreamOptions, StreamTableEntry};
    use super::*;
    use crate::Vmid;
    use crate::spec::id_registers::{Aidr, Idr0, Idr1, Idr3, Idr5, StallModel};

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
        FirstStageContexts::of_user(&words, None, Walk::Coherent)
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
        // 2^21 descriptors.
        assert_eq!(with(0, (4 ^ 21) << 59), BadUserEntry::Contexts(21));
    }

    /// What a unit ignores, and what its reserved codes are to it (IHI 0070, 5.2).
    #[test]
    fn what_a_users_unit_would_take_is_taken() {
        let shown = |ssidsize, output| {
            let (idr1, idr5) = (
                Idr1::new().with_ssidsize(ssidsize),
                Idr5::new().with_oas(output),
            );
            let registers = (Idr0::new(), idr1, Idr3::new(), idr5);
            UserUnit::of_unit(registers, Aidr::from_bits(0), true, idr5.output_size())
        };
        let of = |shown: Option<&UserUnit>, log2: u64, format: u64, without: u64| {
            let mut words = WORDS_OF_A_GUEST;
            words[0] = 0x1_2345_6000 | 0xb | log2 << 59 | format << 4;
            words[1] = without | 1 << 2 | 1 << 4;
            FirstStageContexts::of_user(&words, shown, Walk::Coherent)
        };
        let expect = |log2, format, without| {
            FirstStageContexts::new(0x1_2345_6000, format, log2, without, Walk::Coherent).unwrap()
        };
        let (linear, none) = (ContextTableFormat::Linear, WithoutSubstream::Terminate);
        let eight = shown(8, 5);
        let formats = [
            linear,
            ContextTableFormat::TwoLevelsOfPages,
            ContextTableFormat::TwoLevel,
            linear,
        ];
        let withouts = [
            none,
            WithoutSubstream::Bypass,
            WithoutSubstream::UseZero,
            none,
        ];
        for shown in [None, Some(&eight)] {
            for (format, expected) in (0..).zip(formats) {
                assert_eq!(of(shown, 7, format, 0), Ok(expect(7, expected, none)));
                assert_eq!(of(shown, 0, format, format), Ok(expect(0, linear, none)));
            }
            for (without, expected) in (0..).zip(withouts) {
                assert_eq!(of(shown, 7, 0, without), Ok(expect(7, linear, expected)));
            }
        }
        // Without substreams, nor is their number looked at.
        assert_eq!(
            of(Some(&shown(0, 5)), 31, 2, 1),
            Ok(expect(0, linear, none))
        );
        // The pointer is below 2^33: 36 bits take it, 32 do not.
        assert!(of(Some(&shown(8, 1)), 4, 0, 0).is_ok());
        let refused = Err(BadUserEntry::Pointer(0x1_2345_6000));
        assert_eq!(of(Some(&shown(8, 0)), 4, 0, 0), refused);
    }
}
