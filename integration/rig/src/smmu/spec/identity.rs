//! What a unit is: its identification registers, which no hardware contradicts, drawn from chance.

use super::super::pages::LOG2_MOST;
use super::super::stalls::STALL_MAX;
use super::command::CommandLimits;
use super::context::ContextLimits;
use super::stream::{StreamLimits, size_bits};

/// IIDR of Arm's MMU-600: ProductID in 31:20, Implementer in 11:0; between them variant and revision.
const MMU_600: u32 = 0x4830_043b;
/// IIDR of Arm's MMU-700.
const MMU_700: u32 = 0x4870_043b;
/// Product and implementer of IIDR.
const PART: u32 = 0xfff0_0fff;

/// Firmware's model of a HiSilicon Hi161x (IORT, ACPICA `actbl2.h`).
const HI161X: u32 = 1;
/// The same of a Cavium CN99xx.
const CN99XX: u32 = 2;

/// An SMMUv3: what its identification registers and firmware's description say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whether it snoops, as firmware says.
    pub coherent: bool,
    /// What its register says of that. Firmware is right.
    pub says_coherent: bool,
    /// The stream that requester 0 of its segment is.
    pub first_stream: u32,
    /// First stages (IDR0.S1P).
    pub first_stage: bool,
    /// Second stages (IDR0.S2P).
    pub second_stage: bool,
    /// Tables of AArch32 too (IDR0.TTF).
    pub aarch32: bool,
    /// IDR0.HTTU: 0 to 3.
    pub httu: u8,
    /// IDR0.HYP.
    pub hyp: bool,
    /// IDR0.MSI.
    pub msi: bool,
    /// IDR0.SEV.
    pub sev: bool,
    /// IDR0.ASID16.
    pub asid16: bool,
    /// Context descriptors in two levels (IDR0.CD2L).
    pub directories: bool,
    /// IIDR: whose product it is. Units drawn by chance are nobody's.
    pub part: u32,
    /// What firmware says that it is: 0 nothing special, 1 a HiSilicon Hi161x, 2 a Cavium CN99xx.
    pub model: u32,
    /// IDR0.VMID16.
    pub vmid16: bool,
    /// IDR0.STALL_MODEL: 0, 1 or 2.
    pub stall_model: u8,
    /// IDR0.ATS.
    pub ats: bool,
    /// IDR0.PRI.
    pub pri: bool,
    /// IDR0.TTENDIAN: 0 mixed, 2 little-endian.
    pub endian: u8,
    /// Two-level stream tables (IDR0.ST_LEVEL).
    pub two_level: bool,
    /// IDR1.SIDSIZE.
    pub stream_bits: u8,
    /// IDR1.SSIDSIZE: bits of a SubstreamID, which only first stages tell apart.
    pub substream_bits: u8,
    /// IDR1.CMDQS.
    pub commands: u8,
    /// IDR1.EVENTQS.
    pub events: u8,
    /// IDR3.XNX.
    pub xnx: bool,
    /// IDR3.FWB.
    pub fwb: bool,
    /// IDR3.RIL.
    pub ril: bool,
    /// IDR3.BBML.
    pub bbml: u8,
    /// IDR5.OAS.
    pub oas: u8,
    /// Input addresses of first stages have 52 bits, with pages of 64 KiB (IDR5.VAX).
    pub wide_input: bool,
    /// Whether its devices reach memory coherently whatever they say, No_snoop included, as firmware says (CANWBS).
    pub canwbs: bool,
    /// IDR5: granules of 16 KiB and 64 KiB, beside 4 KiB.
    pub large_granules: (bool, bool),
}

impl Identity {
    /// A unit that can do all that a driver of second stages may ask for.
    pub const PLAIN: Self = Self {
        coherent: true,
        says_coherent: true,
        first_stream: 0,
        first_stage: true,
        second_stage: true,
        aarch32: false,
        httu: 0,
        hyp: false,
        msi: false,
        sev: true,
        asid16: true,
        directories: true,
        part: 0,
        model: 0,
        vmid16: true,
        stall_model: 1,
        ats: false,
        pri: false,
        endian: 2,
        two_level: true,
        stream_bits: 16,
        substream_bits: 20,
        commands: 10,
        events: 8,
        xnx: true,
        fwb: false,
        ril: true,
        bbml: 2,
        oas: 4,
        wide_input: false,
        canwbs: false,
        large_granules: (true, true),
    };

    /// A unit by chance: `pick` gives a number below its argument. Page sizes that may change live are the
    /// machine's choice.
    pub(crate) fn draw(pick: &mut impl FnMut(u64) -> u64, bbml: u8) -> Self {
        let mut chance = |of: u64| pick(of) == of - 1;
        let coherent = !chance(2);
        let says_coherent = coherent != chance(8);
        let (first_stage, aarch32, hyp, msi, sev) =
            (chance(2), chance(4), chance(2), chance(2), chance(2));
        let (vmid16, two_level, mixed, can_stall) = (chance(2), chance(2), chance(2), chance(3));
        let (xnx, fwb, ril) = (chance(2), chance(3), !chance(3));
        let large_granules = (chance(2), chance(2));
        // A linear table of more than 2^16 streams takes more memory than drivers give it.
        let moved = two_level && chance(3);
        // Where there are two, some note accesses in what leads to leaves too (IHI 0070, 6.3.1).
        let httu = match pick(3) as u8 {
            2 if xnx => 3,
            other => other,
        };
        let stream_bits = if moved { 17 + pick(6) as u8 } else { 16 };
        let first_stream = if moved { 0x1_0000 } else { 0 };
        // Eight commands at the least: shorter queues have tests of their own.
        let (commands, events) = (3 + pick(8) as u8, 2 + pick(8) as u8);
        // 36 bits and more: the rig's memory ends at 2^33.
        let oas = 1 + pick(6) as u8;
        // Firmware that knows of it comes with units that do.
        let canwbs = fwb && !msi;
        Self {
            coherent,
            says_coherent,
            first_stream,
            first_stage,
            second_stage: true,
            aarch32,
            httu,
            hyp,
            msi,
            sev,
            asid16: false,
            directories: false,
            part: 0,
            model: 0,
            vmid16,
            stall_model: u8::from(!can_stall),
            // Not drawn for itself, so that seeds give the machines that they always gave.
            ats: xnx,
            pri: xnx && sev,
            endian: if mixed { 0 } else { 2 },
            two_level,
            stream_bits,
            substream_bits: 0,
            commands,
            events,
            xnx,
            fwb,
            ril,
            bbml,
            oas,
            // As `ats`.
            wide_input: oas == 6 && ril,
            canwbs,
            large_granules,
        }
    }

    /// What only first stages have, by chance as in [`draw`](Self::draw); of a unit that has no other, if `alone`.
    pub(crate) fn draw_first(&mut self, alone: bool, pick: &mut impl FnMut(u64) -> u64) {
        if alone {
            (self.first_stage, self.second_stage) = (true, false);
        }
        self.asid16 = self.first_stage && pick(2) != 0;
        self.directories = self.first_stage && pick(2) != 0;
        self.substream_bits = match self.first_stage && pick(3) != 0 {
            true => 1 + pick(20) as u8,
            false => 0,
        };
    }

    /// Refuses what no hardware is, or what the rig does not play.
    pub(crate) fn check(&self) -> Result<(), String> {
        let rule = |kept: bool, what: &str| if kept { Ok(()) } else { Err(what.to_owned()) };
        rule(self.httu <= 3, "expected IDR0.HTTU of 0 to 3")?;
        rule(self.bbml <= 2, "expected IDR3.BBML of 0 to 2")?;
        rule(self.stall_model <= 2, "expected IDR0.STALL_MODEL of 0 to 2")?;
        rule(self.model <= CN99XX, "expected a model of 0 to 2")?;
        rule(self.ats || !self.pri, "expected IDR0.ATS where IDR0.PRI is")?;
        rule(
            matches!(self.endian, 0 | 2),
            "expected IDR0.TTENDIAN of 0 or 2: the rig's memory is little-endian",
        )?;
        rule(
            self.stream_bits <= 32,
            "expected IDR1.SIDSIZE of at most 32",
        )?;
        rule(
            self.substream_bits <= 20 && (self.first_stage || self.substream_bits == 0),
            "expected IDR1.SSIDSIZE of at most 20, and of 0 without first stages (IHI 0070, 6.3.2)",
        )?;
        rule(
            self.commands <= 19 && self.events <= 19,
            "expected queues of at most 2^19 entries (IDR1)",
        )?;
        rule(
            (1..=6).contains(&self.oas),
            "expected IDR5.OAS of 36 to 52 bits: the rig's memory ends at 2^33",
        )?;
        rule(
            self.first_stage || self.second_stage,
            "expected a stage (IDR0.S1P, IDR0.S2P)",
        )?;
        rule(
            u64::from(self.first_stream) + 0xffff < 1 << self.stream_bits,
            "expected every requester to be a stream that IDR1.SIDSIZE knows",
        )
    }

    /// IDR0 to IDR5.
    pub(crate) fn registers(&self) -> [u32; 6] {
        let flag = |on: bool, bit: u32| u32::from(on) << bit;
        let zero = flag(self.second_stage, 0)
            | flag(self.first_stage, 1)
            | if self.aarch32 { 3 << 2 } else { 2 << 2 }
            | flag(self.says_coherent, 4)
            | u32::from(self.httu) << 6
            | flag(self.hyp, 9)
            | flag(self.ats, 10)
            | flag(self.pri, 16)
            | flag(self.msi, 13)
            | flag(self.sev, 14)
            | flag(self.asid16, 12)
            | flag(self.vmid16, 18)
            | flag(self.directories, 19)
            | u32::from(self.endian) << 21
            | u32::from(self.stall_model) << 24
            // TERM_MODEL: a faulting request is aborted.
            | 1 << 26
            | flag(self.two_level, 27);
        let requests = if self.pri { LOG2_MOST } else { 0 };
        let one = u32::from(self.stream_bits)
            | u32::from(requests) << 11
            | u32::from(self.substream_bits) << 6
            | u32::from(self.events) << 16
            | u32::from(self.commands) << 21;
        let three =
            flag(self.xnx, 4) | flag(self.fwb, 8) | flag(self.ril, 10) | u32::from(self.bbml) << 11;
        let stalls = if self.stall_model == 1 { 0 } else { STALL_MAX };
        let five = u32::from(self.oas)
            | u32::from(stalls) << 16
            | 1 << 4
            | flag(self.wide_input, 10)
            | flag(self.large_granules.0, 5)
            | flag(self.large_granules.1, 6);
        [zero, one, 0, three, 0, five]
    }

    /// Whether an event for waiting CPUs comes when a sync asks for one. MMU-600 before r0p3 says so and has erratum 1076982
    /// (Linux `arm-smmu-v3.c`): events get lost, so none is counted on.
    pub(crate) const fn sends_events(&self) -> bool {
        let (variant, revision) = (self.part >> 16 & 0xf, self.part >> 12 & 0xf);
        self.sev && !(self.is_mmu_600() && variant == 0 && revision <= 2)
    }

    const fn is_mmu_600(&self) -> bool {
        self.part & PART == MMU_600
    }

    /// Whether it is an MMU-700, with erratum 2812531 (Linux, commit 309a15cb16bb): commands of different kinds need a sync
    /// between them, and CPUs' broadcasts are not to be listened to.
    pub(crate) const fn is_mmu_700(&self) -> bool {
        self.part & PART == MMU_700
    }

    /// Whether a stream may go through both stages: not on an MMU-600 before r2p0 (erratum 1209401), nor on an MMU-700
    /// (2268618, 2812531; Linux `arm-smmu-v3.c`).
    const fn nests(&self) -> bool {
        let variant = self.part >> 16 & 0xf;
        !(self.is_mmu_600() && variant < 2 || self.is_mmu_700())
    }

    /// Whether prefetches, and syncs that write, are not for it (Linux `ARM_SMMU_OPT_SKIP_PREFETCH`; binding `arm,smmu-v3`;
    /// its message is 8 bytes).
    pub(crate) const fn is_hi161x(&self) -> bool {
        self.model == HI161X
    }

    /// Whether the registers of page 1 are in page 0, at the same offsets there, and all interrupts are one wire (Linux
    /// `ARM_SMMU_OPT_PAGE0_REGS_ONLY`, `acpi_smmu_get_options`, `arm_smmu_v3_is_combined_irq`).
    pub(crate) const fn is_cn99xx(&self) -> bool {
        self.model == CN99XX
    }

    /// Significant bits of an address.
    pub const fn address_bits(&self) -> u8 {
        size_bits(self.oas)
    }

    /// Significant bits of an address between the stages (IAS; IHI 0070, 3.4).
    pub(crate) const fn intermediate_bits(&self) -> u8 {
        let bits = self.address_bits();
        if self.aarch32 && bits < 40 { 40 } else { bits }
    }

    const fn asid_bits(&self) -> u8 {
        if self.asid16 { 16 } else { 8 }
    }

    const fn vmid_bits(&self) -> u8 {
        if self.vmid16 { 16 } else { 8 }
    }

    const fn granules(&self) -> [u8; 3] {
        let (middle, large) = self.large_granules;
        [12, if middle { 14 } else { 0 }, if large { 16 } else { 0 }]
    }

    /// What decides about stream table entries.
    pub(crate) const fn stream_limits(&self) -> StreamLimits {
        StreamLimits {
            first_stage: self.first_stage,
            second_stage: self.second_stage,
            nests: self.nests(),
            vmid_bits: self.vmid_bits(),
            address_bits: self.address_bits(),
            granules: self.granules(),
            ats: self.ats,
            updates: self.httu,
            forced: self.fwb,
            big_endian: self.endian == 0,
            stalls: self.stall_model != 1,
            always_stalls: self.stall_model == 2,
            substream_bits: self.substream_bits,
            directories: self.directories,
            coherent: self.coherent,
        }
    }

    /// What decides about context descriptors.
    pub(crate) const fn context_limits(&self) -> ContextLimits {
        ContextLimits {
            asid_bits: self.asid_bits(),
            address_bits: self.address_bits(),
            wide: self.wide_input,
            granules: self.granules(),
            updates: self.httu,
            stalls: self.stall_model != 1,
            always_stalls: self.stall_model == 2,
        }
    }

    /// What decides about commands.
    pub(crate) const fn command_limits(&self) -> CommandLimits {
        CommandLimits {
            first_stage: self.first_stage,
            second_stage: self.second_stage,
            asid_bits: self.asid_bits(),
            vmid_bits: self.vmid_bits(),
            stream_bits: self.stream_bits,
            ranges: self.ril,
            hyp: self.hyp,
            ats: self.ats,
            pri: self.pri,
            stalls: self.stall_model != 1,
            msi: self.msi,
            granules: self.granules(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn every_drawn_unit_is_possible_and_they_differ() {
        let mut rng = Rng::new(1);
        let (mut narrow, mut linear, mut blind, mut single) = (0, 0, 0, 0);
        for _ in 0..5000 {
            let unit = Identity::draw(&mut |end| rng.below(end), 1);
            assert_eq!(unit.check(), Ok(()), "{unit:?}");
            narrow += u32::from(unit.address_bits() < 40);
            linear += u32::from(!unit.two_level);
            blind += u32::from(!unit.coherent);
            single += u32::from(!unit.ril);
        }
        assert!(narrow > 500 && linear > 1500 && blind > 1500 && single > 1000);
        assert_eq!(Identity::PLAIN.check(), Ok(()));
    }

    #[test]
    fn what_no_hardware_is_is_refused() {
        let with = |change: fn(&mut Identity)| {
            let mut unit = Identity::PLAIN;
            change(&mut unit);
            unit.check().is_err()
        };
        assert!(with(|unit| unit.oas = 0) && with(|unit| unit.oas = 7));
        assert!(with(|unit| unit.first_stream = 1) && with(|unit| unit.bbml = 3));
        assert!(with(|unit| unit.stall_model = 3) && with(|unit| unit.endian = 3));
    }

    #[test]
    fn events_come_from_units_that_send_them_and_do_not_lose_them() {
        let sends = |sev, part| {
            Identity {
                sev,
                part,
                ..Identity::PLAIN
            }
            .sends_events()
        };
        assert!(sends(true, 0) && !sends(false, 0));
        assert!(!sends(true, 0x4830_043b) && !sends(true, 0x4830_243b));
        assert!(sends(true, 0x4830_343b) && sends(true, 0x4831_043b) && sends(true, 0x4870_043b));
    }

    #[test]
    fn parts_have_their_errata() {
        let is = |part, model| Identity {
            part,
            model,
            ..Identity::PLAIN
        };
        for (part, nests) in [
            (0, true),
            (0x4830_043b, false),
            (0x4831_f43b, false),
            (0x4832_043b, true),
            (0x4870_043b, false),
            (0x487f_f43b, false),
            (0x4870_043c, true),
        ] {
            assert_eq!(is(part, 0).stream_limits().nests, nests, "{part:#x}");
            assert_eq!(is(part, 0).is_mmu_700(), part >> 20 == 0x487 && !nests);
        }
        assert!(is(0, 1).is_hi161x() && !is(0, 2).is_hi161x());
        assert!(is(0, 2).is_cn99xx() && is(0, 3).check().is_err());
    }

    #[test]
    fn registers_are_those_of_an_emulator() {
        // QEMU's machine with both stages: IDR1 and IDR5, and of IDR0 what the rig has too.
        let unit = Identity {
            stall_model: 1,
            vmid16: true,
            stream_bits: 16,
            substream_bits: 0,
            commands: 19,
            events: 19,
            sev: false,
            ..Identity::PLAIN
        };
        let [zero, one, _, three, _, five] = unit.registers();
        assert_eq!(zero & !(1 << 19), 0x0d44_101b);
        assert_eq!(one, 19 << 21 | 19 << 16 | 16);
        assert_eq!((three & 0x1c00, five), (0x1400, 0x74));
    }
}
