//! The rules that the watcher knows, and what it says when one is broken.

use core::fmt;

/// A rule of the hardware or of this system that a driver must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Memory of another owner, or of none, was reached.
    ForeignMemory,
    /// Memory was reached after it was given back.
    FreedMemory,
    /// A translation was used that no longer is, never was, or allows less.
    StaleTranslation,
    /// A request went past a unit that did not translate.
    Untranslated,
    /// A request to a mapped address faulted, or was lost.
    MappedFaulted,
    /// Memory or an id was given back while hardware still held a translation of it.
    StillCached,
    /// Memory was given back while it was mapped.
    StillMapped,
    /// An entry wider than a store was live while it was being written.
    TornEntry,
    /// An entry that hardware read has a reserved bit or value.
    ReservedBits,
    /// A context entry names a domain, a width or a table that the unit does not have.
    BadContext,
    /// A domain id stood for two tables at once, or for a new one before the old was forgotten.
    DomainId,
    /// A register was written against its rule.
    Register,
    /// The command register was written against its rule.
    Command,
    /// The invalidation queue was used against its rules.
    Queue,
    /// A unit's state was changed while what passes it when it is off may go anywhere.
    OpenGate,
    /// A translation was replaced by another while the unit might hold the first.
    BreakBeforeMake,
    /// Memory is taken for registers, or registers for memory.
    MemoryType,
    /// A request went past the CPU's caches in a domain whose devices are to snoop them.
    NotSnooped,
    /// Translation was turned on before old translations were forgotten.
    EnabledEarly,
    /// A device behind a wedged unit may still send, or a device nobody attached.
    NotCutOff,
    /// The driver touched memory that it had given back, or never had.
    DriverMemory,
    /// Memory was given back twice, or was never given out.
    DoubleFree,
    /// Other frames came back than were taken.
    LostFrames,
    /// Memory, ids or frames are missing at the end.
    Leak,
    /// A call took longer than its deadline.
    Deadline,
    /// A call's answer is not what happened.
    WrongAnswer,
    /// A fault was not reported, or not as it happened.
    FaultReport,
    /// A device raised an interrupt of another tenant, and one of them was said to be isolated.
    ForeignInterrupt,
    /// The driver panicked.
    Panic,
}

impl Rule {
    /// The rule as a sentence.
    pub const fn says(self) -> &'static str {
        match self {
            Self::ForeignMemory => "a device reaches only memory that its present owner owns",
            Self::FreedMemory => "no device reaches memory after it was given back",
            Self::StaleTranslation => {
                "a device reaches what is mapped for it now, with the permissions that it has now"
            }
            Self::Untranslated => "nothing reaches memory past the IOMMU once it was brought up",
            Self::MappedFaulted => "a mapped address does not fault",
            Self::StillCached => {
                "nothing is given back before every unit was seen to have forgotten it"
            }
            Self::StillMapped => "memory that is mapped is not given back",
            Self::TornEntry => {
                "an entry goes live by one last store and comes down by one first store"
            }
            Self::ReservedBits => "reserved bits of an entry are zero",
            Self::BadContext => "a context entry names what its unit can do",
            Self::DomainId => "a domain id stands for one table until all of it is forgotten",
            Self::Register => "registers are written as the manual allows",
            Self::Command => {
                "one field of the command register changes per write, and each change is awaited"
            }
            Self::Queue => "the invalidation queue is used as the manual allows",
            Self::OpenGate => {
                "a unit lets nothing pass while it is off before its state is changed"
            }
            Self::BreakBeforeMake => {
                "a translation is taken down and forgotten before another one of its address is made"
            }
            Self::MemoryType => "memory is reached as memory, and registers as registers",
            Self::NotSnooped => {
                "in a domain that was asked for it, whatever devices send snoops the CPU's caches"
            }
            Self::EnabledEarly => "translation goes on after old translations were forgotten",
            Self::NotCutOff => {
                "devices that nobody attached, or whose unit is wedged, have no bus mastering"
            }
            Self::DriverMemory => "the driver touches only memory that it was given",
            Self::DoubleFree => "memory comes back once, to whom it was taken from",
            Self::LostFrames => "what was mapped comes back, and nothing else",
            Self::Leak => "at the end all memory and all ids are back",
            Self::Deadline => "every wait ends by its deadline",
            Self::WrongAnswer => "a call tells what happened",
            Self::FaultReport => "faults are reported as they happened",
            Self::ForeignInterrupt => {
                "a device whose interrupts are isolated raises those of its owner, and nobody else raises them"
            }
            Self::Panic => "the driver does not panic",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", self.says())
    }
}

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What happened.
    pub what: String,
    /// When, on the rig's clock, in nanoseconds.
    pub nanos: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {}", self.rule)?;
        write!(f, "broken at {} ns: {}", self.nanos, self.what)
    }
}
