//! The IORT: the SMMUs of a machine, and how ids travel from devices through them to interrupt services.
//!
//! [`parse`] turns the bytes of the table into an [`Iort`]. What could lose a unit is an error. Anything else is a
//! finding: a node with a damaged id mapping keeps none of its mappings, so that its devices belong to no unit and
//! nobody can claim them, and a strict policy refuses the machine.

mod describe;
mod finding;
mod nodes;
mod parse;
mod show;

use alloc::vec::Vec;

use hv_core::{PhysAddr, PhysRange, Segment};
use hv_iommu::Coherency;

pub use finding::{Defect, Expected, Finding, IortError, NodeKind, Place};
pub use parse::parse;
pub(crate) use show::Ascii;

use crate::spec::iort as spec;
use crate::window::IdWindow;

/// An IORT, decoded.
///
/// # Invariants
/// No two units with the same base. Each mapping leads to a node of the table that it may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iort {
    /// What the header says.
    pub header: Header,
    /// Interrupt translation services.
    pub its_groups: Vec<ItsGroup>,
    /// Devices of the ACPI namespace.
    pub components: Vec<NamedComponent>,
    /// PCI host bridges.
    pub root_complexes: Vec<RootComplex>,
    /// SMMUs of older architectures.
    pub old_units: Vec<OldSmmu>,
    /// SMMUv3s, in the order of the table.
    pub units: Vec<SmmuV3>,
    /// Performance counter groups.
    pub counters: Vec<CounterGroup>,
    /// Reserved memory.
    pub reserved: Vec<ReservedMemory>,
    /// Interrupt wire bridges: where they stand.
    pub wire_bridges: Vec<Place>,
    /// What is wrong but loses no unit.
    pub findings: Vec<Finding>,
}

/// The table's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the table.
    pub length: u32,
    /// Revision of the table.
    pub revision: u8,
    /// The checksum byte as it stands.
    pub checksum: u8,
    /// Who made the machine.
    pub oem_id: [u8; 6],
    /// The maker's name for the table.
    pub oem_table_id: [u8; 8],
    /// The maker's revision.
    pub oem_revision: u32,
    /// Which tool made the table.
    pub creator_id: [u8; 4],
    /// The tool's revision.
    pub creator_revision: u32,
    /// How many nodes there are.
    pub node_count: u32,
    /// Where the first is.
    pub node_offset: u32,
}

/// What every node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Where it stands.
    pub place: Place,
    /// Bytes of it.
    pub length: u16,
    /// Its revision.
    pub revision: u8,
    /// Its number; older tables have 0 everywhere.
    pub identifier: u32,
}

/// An id mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it stands, in bytes from the start of the table.
    pub offset: usize,
    /// The first id.
    pub input_base: u32,
    /// How many ids, less one; some firmware stored how many.
    pub count: u32,
    /// What the first id becomes.
    pub output_base: u32,
    /// Where it goes.
    pub output: Place,
    /// Whatever comes in, the output is `output_base`.
    pub single: bool,
}

impl Mapping {
    /// Which ids it takes, and what it makes of them.
    pub const fn window(&self) -> IdWindow {
        if self.single {
            IdWindow::any(self.output_base)
        } else {
            IdWindow::with_loose_end(self.input_base, self.count, self.output_base)
        }
    }
}

/// A group of interrupt translation services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItsGroup {
    /// What every node has.
    pub node: NodeInfo,
    /// The services' ids, as the MADT has them.
    pub ids: Vec<u32>,
}

/// How a device reaches memory, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Fully coherent.
    pub coherent: bool,
    /// Allocation hints as they stand.
    pub hints: u8,
    /// Memory access flags as they stand.
    pub flags: u8,
}

impl MemoryAccess {
    /// What the table says of it in all: a path that is coherent is not enough, where a device's attributes are not.
    pub const fn coherency(&self) -> Coherency {
        match self.coherent {
            true => Coherency::Coherent,
            false => Coherency::NotCoherent {
                said: "CCA is not 1 in the IORT",
            },
        }
    }
}

impl From<spec::MemoryProperties> for MemoryAccess {
    fn from(raw: spec::MemoryProperties) -> Self {
        Self {
            coherent: raw.cca.get() == spec::CCA_COHERENT,
            hints: raw.hints,
            flags: raw.flags,
        }
    }
}

/// A device of the ACPI namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedComponent {
    /// What every node has.
    pub node: NodeInfo,
    /// Its flags as they stand.
    pub flags: u32,
    /// How it reaches memory.
    pub memory: MemoryAccess,
    /// Bits of an address that it can send.
    pub address_bits: u8,
    /// Its path, without the final zero.
    pub name: Vec<u8>,
    /// Where its ids go.
    pub mappings: Vec<Mapping>,
}

/// A PCI host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootComplex {
    /// What every node has.
    pub node: NodeInfo,
    /// How its devices reach memory.
    pub memory: MemoryAccess,
    /// Its ATS attributes as they stand: translations, pages, PASIDs.
    pub ats: u32,
    /// Its segment.
    pub segment: Segment,
    /// Bits of an address that its devices can send; 0 if the node is too old to say.
    pub address_bits: u8,
    /// Bits of a PASID.
    pub pasid_bits: u8,
    /// Where the requester ids go.
    pub mappings: Vec<Mapping>,
}

/// An SMMU of an older architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldSmmu {
    /// What every node has.
    pub node: NodeInfo,
    /// Its registers.
    pub base: PhysAddr,
    /// Its model.
    pub model: u32,
}

/// An SMMUv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmmuV3 {
    /// What every node has.
    pub node: NodeInfo,
    /// Its registers.
    pub registers: PhysRange,
    /// Its flags as they stand.
    pub flags: u32,
    /// Its VATOS registers, or 0.
    pub vatos: u64,
    /// Its model.
    pub model: u32,
    /// Interrupts of the event queue, page requests, global errors, CMD_SYNC; 0 for none.
    pub interrupts: [u32; 4],
    /// Its proximity domain, if it has one.
    pub proximity: Option<u32>,
    /// The field that says which mapping is for its own messages, valid or not.
    pub device_id_mapping: u32,
    /// Where its own messages go, if they are messages.
    pub own_messages: Option<Mapping>,
    /// Where its streams' messages go.
    pub mappings: Vec<Mapping>,
}

impl SmmuV3 {
    /// Whether it snoops the CPU's caches: firmware's word, which wins over IDR0.COHACC.
    pub const fn coherent(&self) -> bool {
        self.flags & spec::SMMU_COHACC_OVERRIDE != 0
    }
}

/// A performance counter group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterGroup {
    /// What every node has.
    pub node: NodeInfo,
    /// Its registers.
    pub base: PhysAddr,
    /// Its interrupt; 0 for none.
    pub interrupt: u32,
    /// The node whose events it counts: its offset in the table as it stands.
    pub reference: u32,
}

/// Memory that firmware goes on using through some streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedMemory {
    /// What every node has.
    pub node: NodeInfo,
    /// Its flags as they stand.
    pub flags: u32,
    /// The ranges, in whole pages.
    pub ranges: Vec<PhysRange>,
    /// The streams: those that its mappings put out.
    pub mappings: Vec<Mapping>,
}

impl ReservedMemory {
    /// Whether the ranges may be mapped elsewhere: firmware is done with them once the device is reset.
    pub const fn remap_permitted(&self) -> bool {
        self.flags & spec::RMR_REMAP_PERMITTED != 0
    }
}
