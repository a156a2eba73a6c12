//! The DMAR table: the units of a machine, which devices each covers, and reserved regions.
//!
//! [`parse`] turns the bytes of the table into a [`Dmar`]. What could lose a unit or a reserved
//! region is an error; what affects only optional structures is a warning that names them.

mod finding;
mod parse;
mod show;

use alloc::vec::Vec;

use hv_core::{PhysAddr, PhysRange, Segment};

pub use finding::{Defect, DmarError, Expected, Finding, Place, RecordKind};
pub use parse::parse;

use crate::spec::dmar as spec;

/// A DMAR table, decoded.
///
/// # Invariants
/// At least one unit; no two units with the same base; at most one INCLUDE_PCI_ALL unit for each
/// segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmar {
    /// What the header says.
    pub header: Header,
    /// Remapping units (DRHD), in the order of the table.
    pub units: Vec<Drhd>,
    /// Reserved memory regions (RMRR).
    pub regions: Vec<Rmrr>,
    /// Root ports that support ATS (ATSR).
    pub ats_ports: Vec<Atsr>,
    /// Proximity domains of units (RHSA).
    pub proximities: Vec<Rhsa>,
    /// ACPI devices by number (ANDD).
    pub devices: Vec<Andd>,
    /// Integrated devices with translation caches (SATC).
    pub caches: Vec<Satc>,
    /// Properties of integrated devices (SIDP).
    pub properties: Vec<Sidp>,
    /// What is wrong but loses neither unit nor region.
    pub warnings: Vec<Finding>,
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
    /// Significant bits of a host address, 2 to 64 (the table holds one less).
    pub host_address_bits: u8,
    /// The table's flags.
    pub flags: TableFlags,
}

/// Flags of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFlags(pub u8);

impl TableFlags {
    /// The platform supports interrupt remapping.
    pub const fn interrupt_remapping(self) -> bool {
        self.0 & spec::FLAG_INTR_REMAP != 0
    }

    /// Firmware asks not to use x2APIC.
    pub const fn x2apic_opt_out(self) -> bool {
        self.0 & spec::FLAG_X2APIC_OPT_OUT != 0
    }

    /// Firmware asks for DMA protection by the system.
    pub const fn dma_opt_in(self) -> bool {
        self.0 & spec::FLAG_DMA_OPT_IN != 0
    }
}

/// A remapping unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drhd {
    /// Where it stands in the table.
    pub place: Place,
    /// Its flags as they stand; bit 0 is INCLUDE_PCI_ALL.
    pub flags: u8,
    /// Its register size byte as it stands; bits 3:0 are log2 of the pages.
    pub size: u8,
    /// Its PCI segment.
    pub segment: Segment,
    /// The pages of its registers, as far as the table tells; a page at least.
    pub registers: PhysRange,
    /// The devices that it names.
    pub scopes: Vec<Scope>,
}

impl Drhd {
    /// Where its registers are: page aligned, neither zero nor all ones.
    pub fn base(&self) -> PhysAddr {
        self.registers.start()
    }

    /// Whether it covers all functions of its segment that no other unit names.
    pub const fn include_all(&self) -> bool {
        self.flags & spec::DRHD_INCLUDE_ALL != 0
    }
}

/// A reserved memory region: devices need it mapped one to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rmrr {
    /// Where it stands in the table.
    pub place: Place,
    /// The PCI segment of its devices.
    pub segment: Segment,
    /// The region, in whole pages.
    pub region: PhysRange,
    /// The devices that need it.
    pub scopes: Vec<Scope>,
}

/// Root ports behind which devices may use ATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atsr {
    /// Where it stands in the table.
    pub place: Place,
    /// Its flags as they stand; bit 0 is ALL_PORTS.
    pub flags: u8,
    /// The PCI segment.
    pub segment: Segment,
    /// The ports.
    pub scopes: Vec<Scope>,
}

impl Atsr {
    /// Whether all root ports of the segment are meant.
    pub const fn all_ports(&self) -> bool {
        self.flags & spec::ATSR_ALL_PORTS != 0
    }
}

/// The proximity domain of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhsa {
    /// Where it stands in the table.
    pub place: Place,
    /// The unit's registers.
    pub base: PhysAddr,
    /// The domain's number.
    pub domain: u32,
}

/// An ACPI device that scopes name by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Andd {
    /// Where it stands in the table.
    pub place: Place,
    /// The number.
    pub number: u8,
    /// The path in the ACPI namespace, without its final zero.
    pub name: Vec<u8>,
}

/// Integrated devices with translation caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Satc {
    /// Where it stands in the table.
    pub place: Place,
    /// Its flags as they stand; bit 0 is ATC_REQUIRED.
    pub flags: u8,
    /// The PCI segment.
    pub segment: Segment,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Properties of integrated devices, in the flags of each scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidp {
    /// Where it stands in the table.
    pub place: Place,
    /// The PCI segment.
    pub segment: Segment,
    /// The devices.
    pub scopes: Vec<Scope>,
}

/// Which kind of device a scope names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// A PCI endpoint (1).
    Endpoint,
    /// A PCI bridge and all that is behind it (2).
    Bridge,
    /// An IOAPIC; the path gives the requester id of its interrupts (3).
    Ioapic,
    /// An HPET; likewise (4).
    Hpet,
    /// An ACPI device; likewise (5).
    Namespace,
}

impl ScopeKind {
    /// The kind with this number, or `None` for an unknown one.
    pub const fn from_number(kind: u8) -> Option<Self> {
        Some(match kind {
            spec::SCOPE_ENDPOINT => Self::Endpoint,
            spec::SCOPE_BRIDGE => Self::Bridge,
            spec::SCOPE_IOAPIC => Self::Ioapic,
            spec::SCOPE_HPET => Self::Hpet,
            spec::SCOPE_NAMESPACE => Self::Namespace,
            _ => return None,
        })
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Endpoint => spec::SCOPE_ENDPOINT,
            Self::Bridge => spec::SCOPE_BRIDGE,
            Self::Ioapic => spec::SCOPE_IOAPIC,
            Self::Hpet => spec::SCOPE_HPET,
            Self::Namespace => spec::SCOPE_NAMESPACE,
        }
    }

    /// Whether it is a function of the PCI tree, whose DMA the unit translates.
    pub const fn is_pci(self) -> bool {
        matches!(self, Self::Endpoint | Self::Bridge)
    }
}

/// A device, named by a path through bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Where it stands in the table, in bytes from the start.
    pub offset: usize,
    /// What kind of device it is.
    pub kind: ScopeKind,
    /// Its flags as they stand.
    pub flags: u8,
    /// IOAPIC id, HPET number or ANDD number.
    pub enumeration_id: u8,
    /// The bus at which the path starts.
    pub start_bus: u8,
    /// The steps, at least one: bridges, and at the end the device.
    pub path: Vec<PathStep>,
}

/// One step of a scope's path. The numbers are as the table has them, in range or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStep {
    /// The device number.
    pub device: u8,
    /// The function number.
    pub function: u8,
}
