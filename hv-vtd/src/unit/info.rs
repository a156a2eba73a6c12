//! What a unit's registers say, for people and for decisions.

use core::fmt;

use hv_core::{PhysAddr, PhysRange, Segment};
use hv_iommu::UnitIndex;
use thiserror::Error;

use crate::caps;
use crate::spec::capability::{Cap, Ecap};
use crate::spec::registers::{GlobalStatus, Version};

/// Why this version does not drive a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnitRefusal {
    /// There is no unit at that address.
    #[error("expected capability registers, found all ones: no unit is there")]
    Absent,
    /// No queued invalidation.
    #[error("expected queued invalidation (ECAP bit 1), found ECAP {ecap:#x}")]
    NoQueue {
        /// The extended capability register.
        ecap: u64,
    },
    /// No second-stage tables.
    #[error("expected second-stage tables of 3, 4 or 5 levels (CAP 12:8), found SAGAW {sagaw:#x}")]
    NoLevels {
        /// The SAGAW field.
        sagaw: u8,
    },
    /// The number of domain ids is the reserved value.
    #[error("expected a number of domains (CAP 2:0) of 0 to 6, found {nd}")]
    DomainIds {
        /// The ND field.
        nd: u8,
    },
    /// The fault records lie over other registers.
    #[error("expected fault records from {expected:#x} on, found them at {found:#x}")]
    FaultRecords {
        /// The end of the registers at fixed offsets.
        expected: u32,
        /// Where CAP.FRO puts the records.
        found: u32,
    },
    /// The register block is too large to be one.
    #[error("expected registers below 2^64, found {bytes:#x} bytes of them")]
    RegisterSize {
        /// The size that capability registers and table ask for.
        bytes: u64,
    },
    /// Firmware or an earlier kernel left it running.
    #[error(
        "expected translation, interrupt remapping and queue to be off, found {left_on} \
         (GSTS {status:#x}): turn off the firmware's DMA protection (pre-boot DMA, kernel DMA \
         guard), or start from a cold boot"
    )]
    LeftOn {
        /// What is on.
        left_on: &'static str,
        /// The global status register.
        status: u32,
    },
}

impl UnitRefusal {
    /// Refuses a status in which something is on.
    pub(crate) const fn left_on(status: GlobalStatus) -> Result<(), Self> {
        let left_on = if status.tes() {
            "translation on"
        } else if status.ires() {
            "interrupt remapping on"
        } else if status.qies() {
            "the invalidation queue on"
        } else {
            return Ok(());
        };
        let status = status.into_bits();
        Err(Self::LeftOn { left_on, status })
    }
}

/// A unit as discovery found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitInfo {
    /// Its number.
    pub unit: UnitIndex,
    /// Where its registers are, all of them.
    pub registers: PhysRange,
    /// The PCI segment of its requesters.
    pub segment: Segment,
    /// Whether it covers all functions of its segment that no other unit names.
    pub include_all: bool,
    /// Significant bits of a host address, as the table says.
    pub host_address_bits: u8,
    /// The version register.
    pub version: Version,
    /// The capability register.
    pub cap: Cap,
    /// The extended capability register.
    pub ecap: Ecap,
}

impl UnitInfo {
    /// Where its registers start.
    pub fn base(&self) -> PhysAddr {
        self.registers.start()
    }

    /// The names of what it can do or needs, in the order of the manual's registers.
    pub fn features(&self) -> impl Iterator<Item = &'static str> + use<> {
        let (cap, ecap) = (self.cap, self.ecap);
        [
            ("write-buffer-flush", cap.rwbf()),
            ("protected-low-memory", cap.plmr()),
            ("protected-high-memory", cap.phmr()),
            ("caching-mode", cap.cm()),
            ("zero-length-read", cap.zlr()),
            ("page-selective", cap.psi()),
            ("drain-write", cap.dwd()),
            ("drain-read", cap.drd()),
            ("posted-interrupts", cap.pi()),
            ("root-flushes", cap.esrtps()),
            ("coherent", ecap.c()),
            ("queue", ecap.qi()),
            ("device-tlb", ecap.dt()),
            ("interrupt-remapping", ecap.ir()),
            ("x2apic", ecap.eim()),
            ("pass-through", ecap.pt()),
            ("snoop-control", ecap.sc()),
            ("nested", ecap.nest()),
            ("page-requests", ecap.prs()),
            ("pasid", ecap.pasid()),
            ("scalable-mode", ecap.smts()),
            ("second-stage-dirty", ecap.ssads()),
            ("abort-dma", ecap.adms()),
        ]
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
    }
}

impl fmt::Display for UnitInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {}, segment {:04x}{}, version {}.{}, CAP {:#018x}, ECAP {:#018x}: ",
            self.unit,
            self.base(),
            self.segment.0,
            if self.include_all {
                ", all other functions"
            } else {
                ""
            },
            self.version.major(),
            self.version.minor(),
            self.cap.into_bits(),
            self.ecap.into_bits(),
        )?;
        for (index, level) in caps::levels(self.cap).iter().enumerate() {
            let separator = if index == 0 { "" } else { "/" };
            write!(f, "{separator}{}", level.number())?;
        }
        write!(
            f,
            "-level tables, {}-bit IOVAs",
            self.cap.guest_address_bits()
        )?;
        if let Some(ids) = self.cap.domain_ids() {
            write!(f, ", {ids} domains")?;
        }
        let records = self.cap.fault_record_count();
        write!(f, ", {records} fault record")?;
        if records != 1 {
            f.write_str("s")?;
        }
        for feature in self.features() {
            write!(f, ", {feature}")?;
        }
        Ok(())
    }
}
