//! From id registers to what domains ask about.

use hv_core::PageSize;
use hv_core::fault::Fault;
use hv_iommu::UnitCaps;

use crate::change::BlockChanges;
use crate::second_stage::StageTwo;
use crate::spec::granule::OutputSize;
use crate::spec::id_registers::{Idr0, Idr3, Idr5};
use crate::spec::second_stage::ADDRESS_BITS;

/// What a unit with these registers can do with tables of format `F`. Firmware says whether it is `coherent`.
pub(crate) fn unit_caps<F: StageTwo>(
    (idr0, idr3, idr5): (Idr0, Idr3, Idr5),
    coherent: bool,
) -> UnitCaps {
    let bits = address_bits(idr5);
    UnitCaps {
        levels: F::starts(bits),
        root_tables: F::MOST_ROOT_TABLES,
        // The format has none larger than its highest level's, whatever is asked for.
        largest_page: PageSize::Size1G,
        coherent,
        // S2FWB would do that, an entry at a time; entries do not say so yet.
        snoop_control: false,
        domain_ids: 1 << idr0.vmid_bits(),
        iova_bits: bits,
        phys_bits: bits,
        // What is not present is not kept (recalled), and stores are not buffered.
        sync_on_map: false,
        write_only: true,
        live_resize: BlockChanges::from_bbml(idr3.bbml()) == BlockChanges::AtOnce
            || Fault::ResizeAnywhere.is_on(),
        nested: idr0.s1p() && idr0.s2p(),
        dirty: false,
    }
}

/// Significant bits of input and output addresses of second stages: as many as physical addresses have (Linux). More
/// than the format can name are not used.
pub(crate) const fn address_bits(idr5: Idr5) -> u8 {
    let bits = idr5.output_size().bits();
    if bits as u32 > ADDRESS_BITS {
        ADDRESS_BITS as u8
    } else {
        bits
    }
}

/// The output size that stream table entries say.
pub(crate) const fn output_size(idr5: Idr5) -> OutputSize {
    match idr5.output_size() {
        OutputSize::Bits52 => OutputSize::Bits48,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecondStage;

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
        let caps = unit_caps::<SecondStage>(registers, true);
        assert_eq!((caps.iova_bits, caps.phys_bits), (44, 44));
        assert_eq!(caps.domain_ids, 65536);
        assert!(caps.coherent && caps.write_only && caps.live_resize && !caps.sync_on_map);
        let narrow = registers.0.with_vmid16(false);
        let caps = unit_caps::<SecondStage>((narrow, registers.1.with_bbml(1), at(6)), false);
        assert_eq!((caps.domain_ids, caps.iova_bits), (256, 48));
        assert!(!caps.live_resize && !caps.coherent);
    }
}
