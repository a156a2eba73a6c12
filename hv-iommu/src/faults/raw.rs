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

/// What a unit was at when it refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultStep {
    /// Finding the first stage of the request: the context that leads to it.
    Context,
    /// Reading a table of the first stage.
    Table,
    /// Translating what the request asked for.
    Input,
}

impl fmt::Display for FaultStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Context => "a context",
            Self::Table => "a table",
            Self::Input => "a request",
        })
    }
}

/// What a record tells beside the page and the direction: what a user has to be told of a fault of its own first stage. What a
/// record does not tell is `None`, or `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultDetail {
    /// The address that was asked for, to the byte.
    pub address: Option<Iova>,
    /// Whether the request was a privileged one.
    pub is_privileged: bool,
    /// Whether it was to fetch instructions.
    pub is_instruction: bool,
    /// What the unit was at.
    pub step: Option<FaultStep>,
    /// The page that the second stage was asked for, where that refused it: on a [`Nested`](crate::Nested) domain an address
    /// of its parent, which the user takes for memory.
    pub second_stage_page: Option<Iova>,
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
    /// What else the record tells.
    pub detail: FaultDetail,
    /// The vendor's reason code.
    pub code: u16,
}

impl RawFault {
    /// Of a device on a [`Nested`](crate::Nested) domain: whether what the user wrote is what refused the request, so that the
    /// user's own unit would have told it of that. Otherwise its parent did, or the request itself is one that no domain lets
    /// through.
    pub fn is_of_users_stage(&self) -> bool {
        match self.stage {
            Some(stage) => stage == FaultStage::First,
            None => self.detail.step == Some(FaultStep::Context),
        }
    }
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
