//! Faults as a unit tells of them, before anybody looked whose they are.

use core::fmt;

use hv_core::{Access, Iova, Pasid, PciAddress};
use thiserror::Error;

/// What kind of mistake a fault shows, across vendors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// The address is not mapped, or not for this direction.
    NotPermitted,
    /// The device is bound to no domain.
    NotBound,
    /// The address is wider than the domain's tables.
    AddressTooWide,
    /// The request was of a kind that the binding blocks.
    RequestBlocked,
    /// A structure that software wrote is malformed.
    BadStructure,
    /// The unit could not read a structure.
    StructureAccess,
    /// An interrupt request was refused.
    Interrupt,
    /// A device asked for a page, which nobody let it do. It was told so.
    PageRequest,
    /// A code that is not known.
    Other,
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "not mapped or not permitted",
            Self::NotBound => "device bound to no domain",
            Self::AddressTooWide => "address wider than the tables",
            Self::RequestBlocked => "kind of request blocked",
            Self::BadStructure => "malformed table entry",
            Self::StructureAccess => "table not readable",
            Self::Interrupt => "interrupt request refused",
            Self::PageRequest => "page asked for",
            Self::Other => "unknown reason",
        })
    }
}

/// Which stage of translation refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStage {
    /// The first. On a [`Nested`](crate::Nested) domain the user's own: the fault is for the user to be told of.
    First,
    /// The second: what the request asked for, or what its first stage was to be read from. The user's own first stage led
    /// to what its parent does not map.
    Second,
}

impl fmt::Display for FaultStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first stage",
            Self::Second => "second stage",
        })
    }
}

/// One recorded fault, as the unit tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFault {
    /// Who sent the request.
    pub requester: PciAddress,
    /// The PASID that it carried, where the record tells that there was one.
    pub pasid: Option<Pasid>,
    /// The page that was asked for.
    pub address: Iova,
    /// In which direction.
    pub access: Access,
    /// What kind of mistake it is.
    pub class: FaultClass,
    /// Which stage refused it; `None` where it came to neither, or where records do not tell: of units with one stage.
    pub stage: Option<FaultStage>,
    /// The vendor's reason code.
    pub code: u16,
}

/// One recorded fault of a source that is no function of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrayFault {
    /// What the hardware calls the source.
    pub source: u32,
    /// The page that was asked for, where the record has one.
    pub address: Iova,
    /// In which direction.
    pub access: Access,
    /// What kind of mistake it is.
    pub class: FaultClass,
    /// The vendor's reason code.
    pub code: u16,
}

/// A log of a unit whose index is where it cannot be: it says that there are more records than the log has room for. So it
/// says nothing of which of them the unit has written since the last look, and none is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected at most {room} records in its {log}, found an index that says {found}")]
pub struct BadLog {
    /// Which of its logs.
    pub log: &'static str,
    /// How many records there is room for.
    pub room: u32,
    /// How many the index says there are.
    pub found: u32,
}

/// What a look at a unit's fault log gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEvent {
    /// One fault; its record is free again.
    Fault(RawFault),
    /// One fault of a source that is no function of the machine; its record is free again.
    Stray(StrayFault),
    /// Faults were lost because the log was full; the condition was cleared.
    Overflow,
    /// Nothing that the log holds can be believed, so all of it was dropped. Given once, until the log is believed again.
    BadLog(BadLog),
    /// The unit works no more until a reset, if then: the backend has wedged it for what it found. Given once for each
    /// time that it fails, and not where it was wedged already, nor for what a reset has ended.
    Failed,
    /// No event, and the end of this look: there may be more in the log, which is not taken, or of which no interrupt
    /// tells, while the unit does not take requests.
    Withheld,
}
