//! What a unit's registers say, for people and for decisions.

use core::fmt;

use hv_core::{PhysAddr, PhysRange};
use hv_iommu::UnitIndex;

use super::Telling;
use crate::caps::FirmwareSays;
use crate::firmware::{Interrupts, LeafNotes};
use crate::spec::id_registers::{Aidr, Idr0, Idr1, Idr3, Idr5, Iidr, StallModel};
use crate::spec::quirks::{Quirk, Quirks};
use crate::stream_table::StreamTable;

/// A unit as discovery found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its number.
    pub unit: UnitIndex,
    /// Where its registers are, all of them.
    pub registers: PhysRange,
    /// Whether it snoops the CPU's caches, as firmware says.
    pub coherent: bool,
    /// What it notes in leaves, as firmware says; `None` leaves that to IDR0.
    pub leaf_notes: Option<LeafNotes>,
    /// Whether, by firmware's word, what devices behind it ask about snooping makes no difference: every path to it is
    /// coherent whatever they send (CANWBS of all its root complexes).
    pub no_snoop_is_moot: bool,
    /// What is done differently for it.
    pub quirks: Quirks,
    /// How it tells that a sync is complete.
    pub telling: Telling,
    /// The highest StreamID of a requester that is known.
    pub last_stream: crate::StreamId,
    /// Its wires to the interrupt controller, as firmware tells them.
    pub interrupts: Interrupts,
    /// IDR0.
    pub idr0: Idr0,
    /// IDR1.
    pub idr1: Idr1,
    /// IDR3.
    pub idr3: Idr3,
    /// IDR5.
    pub idr5: Idr5,
    /// IIDR.
    pub iidr: Iidr,
    /// AIDR.
    pub aidr: Aidr,
}

impl UnitInfo {
    /// Where its registers start.
    pub fn base(&self) -> PhysAddr {
        self.registers.start()
    }

    /// Significant bits of an address that its second stages take (IAS; IHI 0070, 3.4).
    pub(crate) const fn intermediate_bits(&self) -> u8 {
        let bits = self.idr5.output_size().bits();
        // Of AArch32's tables addresses have 40 in any case.
        match self.idr0.has_aarch32() && bits < 40 {
            true => 40,
            false => bits,
        }
    }

    /// How many events the unit can hold in the queue that it is given.
    pub const fn event_records(&self) -> u32 {
        crate::event_queue::entries(self.idr1.eventqs())
    }

    /// What firmware says of it that decides on what it can do.
    pub(crate) fn firmware_says(&self) -> FirmwareSays {
        FirmwareSays {
            coherent: self.coherent,
            may_nest: !self.quirks.has(Quirk::NoNesting),
            may_note_writes: matches!(self.leaf_notes, None | Some(LeafNotes::Writes)),
            no_snoop_is_moot: self.no_snoop_is_moot,
        }
    }

    /// How many bits a StreamID may have to be in the stream table that the unit is given: those that it knows, or fewer where
    /// a table for all of them would take more memory than it is given (`stream_table`).
    pub fn stream_bits(&self) -> u8 {
        StreamTable::most_bits(self.idr1.sidsize(), self.idr0.has_two_levels())
    }

    /// Whether a stream may go through both stages.
    pub const fn nests(&self) -> bool {
        self.idr0.s1p() && self.idr0.s2p() && !self.quirks.has(Quirk::NoNesting)
    }

    /// Whether each fault of translation makes its transaction stand still until software answers.
    pub const fn always_stalls(&self) -> bool {
        matches!(self.idr0.stall_model(), Some(StallModel::Forced))
    }

    /// Whether a fault of translation may make its transaction stand still.
    pub const fn may_stall(&self) -> bool {
        matches!(
            self.idr0.stall_model(),
            Some(StallModel::Optional | StallModel::Forced)
        )
    }

    /// The names of what it can do or needs, in the order of the registers.
    pub fn features(&self) -> impl Iterator<Item = &'static str> + use<> {
        let (idr0, idr3, idr5) = (self.idr0, self.idr3, self.idr5);
        [
            ("stage-2", idr0.s2p()),
            ("stage-1", idr0.s1p()),
            ("coherent", self.coherent),
            ("ats", idr0.ats()),
            ("pri", idr0.pri()),
            ("always-stalls", self.always_stalls()),
            ("msi", idr0.msi()),
            ("completion-events", self.telling == Telling::Event),
            ("vmid16", idr0.vmid16()),
            ("two-level-streams", idr0.has_two_levels()),
            ("dirty", idr0.writes_dirty().is_some()),
            ("forced-write-back", idr3.fwb()),
            ("range-invalidation", idr3.ril()),
            ("live-resize", idr3.bbml() == 2),
            ("4K", idr5.gran4k()),
            ("16K", idr5.gran16k()),
            ("64K", idr5.gran64k()),
        ]
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
    }
}

impl fmt::Display for UnitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {}: SMMUv3.{}, {} stream bits, {} PASID bits, {} address bits,",
            self.unit,
            self.base(),
            self.aidr.minor(),
            self.idr1.sidsize(),
            self.idr1.ssidsize(),
            self.idr5.output_size().bits(),
        )?;
        for feature in self.features() {
            write!(f, " {feature}")?;
        }
        let wires = [
            ("events", self.interrupts.event),
            ("errors", self.interrupts.global_error),
            ("page requests", self.interrupts.page_request),
        ];
        for (what, wire) in wires {
            if let Some(wire) = wire {
                write!(f, "; {what}: {wire}")?;
            }
        }
        for quirk in self.quirks.iter() {
            write!(f, "; quirk: {quirk}")?;
        }
        Ok(())
    }
}
