//! From id registers to what domains ask about.

use hv_core::PageSize;
use hv_core::fault::Fault;
use hv_iommu::{RootTables, UnitCaps};

use crate::change::BlockChanges;
use crate::spec::granule::{Granule, OutputSize};
use crate::spec::id_registers::{Idr0, Idr3, Idr5};
use crate::vmsa::{Stage, Tables};

/// Which stage domains are translated with on a unit with this register: the second where there is one, since guests' are
/// as well; `None` where there is neither.
pub(crate) const fn stage(idr0: Idr0) -> Option<Stage> {
    match (idr0.s1p(), idr0.s2p()) {
        (_, true) => Some(Stage::Second),
        (true, false) => Some(Stage::First),
        (false, false) => None,
    }
}

/// What firmware says of a unit beside its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirmwareSays {
    /// It snoops the CPU's caches.
    pub(crate) coherent: bool,
    /// It may be had to note writes: nothing said against what its register says.
    pub(crate) may_note_writes: bool,
    /// Its streams may go through both stages, if its registers say that they can.
    pub(crate) may_nest: bool,
    /// No device behind it gets past the caches by asking not to snoop.
    pub(crate) no_snoop_is_moot: bool,
}

/// What a unit with these registers can do with tables of format `F` in this stage.
pub(crate) fn unit_caps<F: Tables>(
    (idr0, idr3, idr5): (Idr0, Idr3, Idr5),
    stage: Stage,
    says: FirmwareSays,
) -> UnitCaps {
    let coherent = says.coherent;
    let phys_bits = address_bits(idr5, F::GRANULE);
    let (iova_bits, root_tables, id_bits) = match stage {
        // Input addresses of a first stage are no physical ones of anybody.
        Stage::First => (
            idr5.input_bits(F::GRANULE),
            RootTables::ONE,
            idr0.asid_bits(),
        ),
        Stage::Second => (phys_bits, F::MOST_ROOT_TABLES, idr0.vmid_bits()),
    };
    UnitCaps {
        levels: F::starts(stage, iova_bits),
        second_stage: stage == Stage::Second,
        root_tables,
        largest_page: largest_page(F::GRANULE, phys_bits),
        coherent,
        // S2FWB alone is not enough: it keeps a first stage from choosing another kind of memory, and a PCI device's
        // No_snoop comes after it (IHI 0070, 13.1.6 and 13.6.1.1). That the latter is of no effect is firmware's to say.
        snoop_control: stage == Stage::Second
            && coherent
            && idr3.forced_write_back().is_some()
            && (says.no_snoop_is_moot || Fault::NoSnoopUnasked.is_on()),
        domain_ids: 1 << id_bits,
        iova_bits,
        phys_bits,
        // What is not present is not kept (recalled), and stores are not buffered.
        sync_on_map: false,
        // A first stage has a bit against writing, and none against reading.
        write_only: stage == Stage::Second,
        live_resize: BlockChanges::from_bbml(idr3.bbml()) == BlockChanges::AtOnce
            || Fault::ResizeAnywhere.is_on(),
        nested: stage == Stage::Second && idr0.s1p() && says.may_nest,
        // A unit that does not snoop could not set a bit in what the CPU has cached.
        dirty: stage == Stage::Second
            && coherent
            && idr0.writes_dirty().is_some()
            && says.may_note_writes,
    }
}

/// Significant bits of input and output addresses of second stages: as many as physical addresses have (Linux). More
/// than the granule's descriptors tell are not used.
pub(crate) const fn address_bits(idr5: Idr5, granule: Granule) -> u8 {
    output_size(idr5, granule).bits()
}

/// The output size that stream table entries and context descriptors say of tables with this granule.
pub(crate) const fn output_size(idr5: Idr5, granule: Granule) -> OutputSize {
    match idr5.output_size() {
        OutputSize::Bits52 if granule.address_bits() < OutputSize::Bits52.bits() => {
            OutputSize::Bits48
        }
        other => other,
    }
}

/// The largest page of a granule's tables: blocks of 4 TiB come with addresses of 52 bits (Linux `io-pgtable-arm.c`).
const fn largest_page(granule: Granule, phys_bits: u8) -> PageSize {
    match granule {
        Granule::Size4K => PageSize::Size1G,
        Granule::Size16K => PageSize::Size32M,
        Granule::Size64K if phys_bits == OutputSize::Bits52.bits() => PageSize::Size4T,
        Granule::Size64K => PageSize::Size512M,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Vmsa, Vmsa16K, Vmsa64K};

    fn snooping(coherent: bool) -> FirmwareSays {
        FirmwareSays {
            coherent,
            may_note_writes: true,
            may_nest: true,
            no_snoop_is_moot: true,
        }
    }

    fn at(oas: u8) -> Idr5 {
        Idr5::new().with_oas(oas)
    }

    #[test]
    fn an_emulators_registers_become_capabilities() {
        let registers = (
            Idr0::from_bits(0x0d44_101b),
            Idr3::from_bits(0x1414),
            Idr5::from_bits(0x74),
        );
        let caps = unit_caps::<Vmsa>(registers, Stage::Second, snooping(true));
        assert!(caps.second_stage && caps.nested);
        assert_eq!((caps.iova_bits, caps.phys_bits), (44, 44));
        assert_eq!(caps.domain_ids, 65536);
        assert!(caps.coherent && caps.write_only && caps.live_resize && !caps.sync_on_map);
        let narrow = registers.0.with_vmid16(false);
        let registers = (narrow, registers.1.with_bbml(1), at(6));
        let caps = unit_caps::<Vmsa>(registers, Stage::Second, snooping(false));
        assert_eq!((caps.domain_ids, caps.iova_bits), (256, 48));
        assert!(!caps.live_resize && !caps.coherent);
    }

    /// Addresses of 52 bits are those of pages of 64 KiB; input ones of a first stage have a bit of their own.
    #[test]
    fn long_addresses_are_those_of_the_largest_granule() {
        fn of<F: Tables>(stage: Stage, oas: u8, vax: u8) -> (u8, u8, PageSize) {
            let registers = (
                Idr0::from_bits(0x0d44_101b),
                Idr3::new(),
                at(oas).with_vax(vax),
            );
            let caps = unit_caps::<F>(registers, stage, snooping(true));
            (caps.iova_bits, caps.phys_bits, caps.largest_page)
        }
        let (first, second) = (Stage::First, Stage::Second);
        assert_eq!(of::<Vmsa>(second, 6, 1), (48, 48, PageSize::Size1G));
        assert_eq!(of::<Vmsa16K>(second, 6, 1), (48, 48, PageSize::Size32M));
        assert_eq!(of::<Vmsa64K>(second, 6, 0), (52, 52, PageSize::Size4T));
        assert_eq!(of::<Vmsa64K>(second, 5, 1), (48, 48, PageSize::Size512M));
        // The reserved code, as CPUs have it.
        assert_eq!(of::<Vmsa64K>(second, 7, 0), (52, 52, PageSize::Size4T));
        assert_eq!(of::<Vmsa64K>(first, 6, 0), (48, 52, PageSize::Size4T));
        assert_eq!(of::<Vmsa64K>(first, 4, 1), (52, 44, PageSize::Size512M));
        assert_eq!(of::<Vmsa64K>(first, 4, 3).0, 48);
        assert_eq!(of::<Vmsa>(first, 6, 1), (48, 48, PageSize::Size1G));
        let output = |granule| output_size(at(6), granule);
        let granules = [Granule::Size4K, Granule::Size16K, Granule::Size64K];
        assert_eq!(granules.map(output).map(OutputSize::code), [5, 5, 6]);
    }

    #[test]
    fn the_second_stage_is_taken_where_there_is_one() {
        // QEMU's three kinds, and neither.
        let of = |bits| stage(Idr0::from_bits(bits));
        assert_eq!(of(0x0d44_101b), Some(Stage::Second));
        assert_eq!(of(0x0d44_1019), Some(Stage::Second));
        assert_eq!(of(0x0d44_101a), Some(Stage::First));
        assert_eq!(of(0x0d44_1018), None);
    }

    #[test]
    fn a_unit_with_a_first_stage_alone_has_what_that_has() {
        let idr0 = Idr0::from_bits(0x0d44_101a);
        let registers = (idr0, Idr3::from_bits(0x1404), Idr5::from_bits(0x74));
        let caps = unit_caps::<Vmsa>(registers, Stage::First, snooping(true));
        assert!(!caps.second_stage && !caps.write_only && !caps.nested);
        assert_eq!((caps.iova_bits, caps.phys_bits), (48, 44));
        assert_eq!(caps.root_tables, RootTables::ONE);
        let levels: Vec<u8> = caps.levels.iter().map(|level| level.number()).collect();
        assert_eq!(levels, [2, 3, 4]);
        assert_eq!(caps.domain_ids, 65536);
        // ASIDs count, not VMIDs.
        let few = (idr0.with_asid16(false), registers.1, registers.2);
        assert_eq!(
            unit_caps::<Vmsa>(few, Stage::First, snooping(true)).domain_ids,
            256
        );
    }

    /// Writes are noted, and snooping is forced, by a second stage of a unit that snoops, whose registers and firmware
    /// both say so.
    #[test]
    fn what_leaves_can_do_takes_registers_and_firmware() {
        let idr0 = Idr0::from_bits(0x0d44_101b).with_httu(2);
        let registers = (idr0, Idr3::new().with_fwb(true), at(5));
        let can = |registers, stage, says| {
            let caps = unit_caps::<Vmsa>(registers, stage, says);
            (caps.dirty, caps.snoop_control, caps.nested)
        };
        let (second, all) = (Stage::Second, snooping(true));
        assert_eq!(can(registers, second, all), (true, true, true));
        assert_eq!(
            can(registers, second, snooping(false)),
            (false, false, true)
        );
        assert_eq!(can(registers, Stage::First, all), (false, false, false));
        // What leads to leaves may be noted, too (IHI 0070, 6.3.1): entries ask for nothing of that.
        let more = (idr0.with_httu(3), registers.1, registers.2);
        assert_eq!(can(more, second, all), (true, true, true));
        let accesses_only = (idr0.with_httu(1), registers.1, registers.2);
        assert_eq!(can(accesses_only, second, all), (false, true, true));
        let unforced = (idr0, Idr3::new(), registers.2);
        assert_eq!(can(unforced, second, all), (true, false, true));
        let silent = FirmwareSays {
            may_note_writes: false,
            may_nest: false,
            no_snoop_is_moot: false,
            ..all
        };
        assert_eq!(can(registers, second, silent), (false, false, false));
    }
}
