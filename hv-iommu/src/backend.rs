//! What a hardware backend provides: its units, how a device is bound, flushes, faults.

#![expect(
    unsafe_code,
    reason = "declares the trait on whose word memory is given back"
)]

use core::fmt;

use hv_core::platform::Platform;
use hv_core::sync::spin_hint;
use hv_core::{IovaRange, PageSize, PciAddress};

use crate::coherency::Coherency;
use crate::faults::FaultEvent;
use crate::format::{Format, Level, RootPointer, RootTables};
use crate::isolation::{MessageSource, NotIsolated};
use crate::reserved::ReservedRegion;
use crate::troubles::UnitTroubles;

mod error;

pub use error::{CommandCode, UnitError};

/// One IOMMU of the machine, numbered from 0 in the order of discovery; at most 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitIndex(u8);

impl UnitIndex {
    /// How many units a machine may have.
    pub const LIMIT: usize = 64;

    /// The unit with this number, or `None` from 64 on.
    pub const fn new(index: usize) -> Option<Self> {
        if index < Self::LIMIT {
            Some(Self(index as u8))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for UnitIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}", self.0)
    }
}

/// The number under which units cache a domain's translations, and whether those are of first-stage tables: a unit that
/// walks both kinds caches them apart. Zero is never given to a domain, and no two domains have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HwDomainId {
    number: u16,
    first_stage: bool,
}

impl HwDomainId {
    /// The id with this number, of a domain whose tables are second-stage ones, or none.
    pub const fn new(number: u16) -> Self {
        let first_stage = false;
        Self {
            number,
            first_stage,
        }
    }

    /// The same number for a domain whose tables are first-stage ones.
    #[must_use]
    pub const fn of_first_stage(self) -> Self {
        let first_stage = true;
        Self {
            first_stage,
            ..self
        }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.number
    }

    /// Whether the domain's tables are first-stage ones.
    pub const fn is_of_first_stage(self) -> bool {
        self.first_stage
    }
}

impl fmt::Display for HwDomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain id {}", self.number)
    }
}

/// A set of table depths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LevelSet(u8);

impl LevelSet {
    /// No depth.
    pub const EMPTY: Self = Self(0);

    /// This set with tables of `root` level added.
    #[must_use]
    pub const fn with(self, root: Level) -> Self {
        Self(self.0 | 1 << root.number())
    }

    /// Whether tables whose root is at `root` are in the set.
    pub const fn has(self, root: Level) -> bool {
        self.0 & (1 << root.number()) != 0
    }

    /// Depths that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The root levels in the set, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Level> {
        (1..=Level::MAX.number())
            .filter_map(Level::new)
            .filter(move |level| self.has(*level))
    }
}

/// What a unit can do, as far as domains care. Fixed after discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitCaps {
    /// Depths of domains' tables that the unit walks.
    pub levels: LevelSet,
    /// Whether domains' tables are second-stage ones, which a guest's domain has to be. Where they are not, a hypervisor's
    /// domain is translated by first-stage ones: on units that have no others, and where PASIDs take them
    /// ([`Backend::pasid_caps`]).
    pub second_stage: bool,
    /// How many tables of such a depth may stand side by side as a root.
    pub root_tables: RootTables,
    /// The largest page that a leaf may map.
    pub largest_page: PageSize,
    /// Whether table walks snoop the CPU's caches.
    pub coherent: bool,
    /// Whether leaves can make what devices send snoop the CPU's caches, whatever a device asks for.
    pub snoop_control: bool,
    /// How many domain ids there are, id 0 included.
    pub domain_ids: u32,
    /// Significant bits of an address that a device may send.
    pub iova_bits: u8,
    /// Significant bits of a physical address.
    pub phys_bits: u8,
    /// Whether a new mapping must be flushed before a device uses it (it caches what is not
    /// present, or has a write buffer).
    pub sync_on_map: bool,
    /// Whether a write-only mapping works fully; otherwise it is widened to read and write.
    pub write_only: bool,
    /// Whether a large page may be replaced by a table of smaller ones that means the same, and the other
    /// way round, while the unit uses it.
    pub live_resize: bool,
    /// Whether the unit can translate twice: by a user's own first stage, then by the domain's tables.
    pub nested: bool,
    /// Whether the unit notes in leaves what devices write, for bindings that ask for it. Only a unit
    /// that snoops can.
    pub dirty: bool,
}

/// What becomes of requests that ask not to snoop the CPU's caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snoop {
    /// They do not.
    #[default]
    AsAsked,
    /// They snoop all the same. Only for units with [`UnitCaps::snoop_control`].
    Forced,
}

/// What a domain wants of its leaves, beside address and permissions, and of whatever makes units go by them. Fixed for the
/// domain's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafNeeds {
    /// What becomes of requests that ask not to snoop.
    pub snoop: Snoop,
    /// Whether units have to note in leaves what devices write. Only for units with [`UnitCaps::dirty`].
    pub dirty: bool,
}

/// What a device is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The domain's tables.
    pub root: RootPointer,
    /// The domain's id on the unit.
    pub domain: HwDomainId,
    /// What its leaves were made for, and the unit has to take them for.
    pub leaves: LeafNeeds,
}

/// Which cached translations of a domain a flush removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushSpan {
    /// All of the domain.
    Domain,
    /// Those of these pages, possibly more.
    Pages(IovaRange),
}

/// How deep a flush reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlushDepth {
    /// Cached leaves. Enough where only leaves went from present to not present.
    Leaves,
    /// Cached links to tables as well.
    WalkCaches,
}

/// A flush to do on one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushRequest {
    /// Whose translations.
    pub domain: HwDomainId,
    /// Which of them.
    pub span: FlushSpan,
    /// How deep.
    pub depth: FlushDepth,
}

/// Stands for a submitted wait: completed once everything submitted to the unit before it is done.
///
/// Sequences of a unit only grow and are never reused, so a late completion of an older request
/// cannot complete a newer one. Where the unit refuses one of the requests that it is for, the ticket fails
/// ([`UnitError::Refused`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushTicket {
    /// The position in the unit's order of requests.
    pub sequence: u64,
    /// The position of the first of the requests that it is for.
    pub first: u64,
    /// The position behind the last of them.
    pub end: u64,
}

impl FlushTicket {
    /// Of a wait alone, for no request.
    pub const fn alone(sequence: u64) -> Self {
        Self {
            sequence,
            first: sequence,
            end: sequence,
        }
    }

    /// For the requests of `earlier` as well, which was submitted before.
    #[must_use]
    pub const fn and(self, earlier: Self) -> Self {
        let first = earlier.first;
        Self { first, ..self }
    }
}

/// A family of IOMMUs with all its units, brought up.
///
/// # Safety
/// Memory is given back to its owner on the word of an implementation:
/// * A requester that is not bound reaches no memory.
/// * After [`bind`](Self::bind), and after its ticket where it gave one, the requester translates
///   by the binding. Its entry became live in one store.
/// * [`unbind`](Self::unbind) takes the entry down in one store, then asks for the entry and all
///   translations of the domain to be forgotten. When its ticket completes, the unit holds
///   nothing of the binding for this requester.
/// * When the ticket of [`submit`](Self::submit) completes, the unit holds no translation that the
///   request names and that was read before the submission; requests in flight that used one have
///   reached memory.
/// * The ticket of a request that the unit refused, or of one that it refused a part of, never completes: it fails.
/// * A flush submitted after a store to a table sees that store: `submit` orders it.
/// * When [`reset`](Self::reset) gives `Ok`, the unit holds nothing that it cached before the call;
///   requests in flight that used something of it have reached memory. Tickets of before the call
///   count as completed then, or fail; until then none of them completes because of the reset.
///   At each moment translation was on, or everything was aborted.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no backend whose units are up",
    note = "the backend's crate gives one at the end of bringing its units up"
)]
pub unsafe trait Backend: Send + Sync + Sized + 'static {
    /// The hypervisor's platform.
    type Platform: Platform;
    /// The format of domains' tables, of whichever stage.
    type Format: Format;

    /// The platform: the same one at each call.
    fn platform(&self) -> &Self::Platform;

    /// How many units there are; they are numbered from 0.
    fn unit_count(&self) -> usize;

    /// What a unit can do.
    fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps>;

    /// What a unit can do for domains whose groups open PASIDs ([`Needs::pasids`](crate::Needs::pasids)), and for domains
    /// of PASIDs: not always what it can do for others, since some tell PASIDs apart by first-stage tables alone. `None`
    /// where it looks at no PASID. Fixed after discovery.
    fn pasid_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        let _ = unit;
        None
    }

    /// The unit that translates for `requester`, or `None` when no unit covers it.
    fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex>;

    /// Ranges that all devices use for something else than memory, such as interrupt messages: no
    /// domain maps them.
    fn reserved(&self) -> &[IovaRange];

    /// What firmware wants mapped for `requester`, one to one, each region as firmware gave it; and, where its units
    /// translate interrupt messages, the [doorbells](crate::ReservedKind::Doorbell) that its own go to, as whole pages of the
    /// format. Always the same, and no [windows](Self::reserved).
    fn reserved_for(&self, requester: PciAddress) -> impl Iterator<Item = ReservedRegion>;

    /// Who `requester` is to the interrupt controller that takes its messages. The controller tells senders apart by that
    /// alone, in hardware, and each of them raises only interrupts that the hypervisor set up for it there.
    ///
    /// # Errors
    /// [`NotIsolated`] where there is no such controller, or nobody knows who the requester is to it, or where something
    /// that is no requester of the machine is the same to it. That is what a backend says which does not say anything.
    fn message_source(&self, requester: PciAddress) -> Result<MessageSource, NotIsolated> {
        Err(NotIsolated::NotRemapped { requester })
    }

    /// Whether `requester` may be that sender, where it is not told who it is ([`NotIsolated::NotTold`]): by any of the ways in
    /// which firmware speaks of it. A backend that does not look says that it may.
    fn may_send_as(&self, requester: PciAddress, source: MessageSource) -> bool {
        let _ = (requester, source);
        true
    }

    /// The format of domains' tables on a unit with such capabilities, of the stage that [`UnitCaps::second_stage`] says,
    /// whose leaves are made for that.
    fn format(&self, caps: &UnitCaps, leaves: LeafNeeds) -> Self::Format;

    /// Binds `requester` to a domain.
    ///
    /// # Errors
    /// [`UnitError`]. The entry may be live then, for instance when the unit did not take the flush
    /// that has to follow it: [`unbind`](Self::unbind) tells by [`UnitError::NotBound`] that it is not.
    /// [`UnitError::Timeout`] and [`UnitError::Wedged`] say that the unit failed, others that this was refused.
    ///
    /// # Safety
    /// The root is that of a table in this backend's format, which lives, and maps only memory that
    /// the device may reach, until the ticket of a later [`unbind`](Self::unbind) has completed.
    unsafe fn bind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError>;

    /// Takes the binding of `requester` to `domain` down.
    ///
    /// # Errors
    /// [`UnitError`]. With [`UnitError::NotBound`] nothing was changed; with any other error the
    /// entry is down but may still be cached.
    fn unbind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError>;

    /// Asks a unit for a flush and a wait behind it. Does not wait for its completion.
    ///
    /// # Errors
    /// [`UnitError`]. With [`UnitError::Busy`] the unit is well. With any error, what was asked for may or may not
    /// happen.
    fn submit(&self, unit: UnitIndex, request: FlushRequest) -> Result<FlushTicket, UnitError>;

    /// Whether the request behind `ticket` has completed.
    ///
    /// # Errors
    /// [`UnitError`] when it never will.
    fn poll(&self, unit: UnitIndex, ticket: FlushTicket) -> Result<bool, UnitError>;

    /// What a CPU does between two [`poll`](Self::poll)s of a request that is not done:
    /// [`Clock::pause`](hv_core::platform::Clock::pause) where the unit sends waiting CPUs an event when it is. Returns
    /// soon, and says nothing of the request.
    fn pause(&self, unit: UnitIndex) {
        let _ = unit;
        spin_hint();
    }

    /// Marks a unit as wedged: from now on it refuses every request. Called under a lock: it waits
    /// for nothing.
    fn wedge(&self, unit: UnitIndex);

    /// Whether a unit refuses every request, by [`wedge`](Self::wedge) or by what the backend found itself. Called under
    /// a lock: it waits for nothing.
    fn is_wedged(&self, unit: UnitIndex) -> bool;

    /// Tries to bring a wedged unit back, and waits for that. It refuses every request until the end.
    ///
    /// Entries present in memory bind as before. The unit has forgotten all that it cached before the
    /// call, and no ticket of before the call stays pending for ever.
    ///
    /// # Errors
    /// [`UnitError`]: [`UnitError::NotWedged`], [`UnitError::Busy`] while another context resets the
    /// unit, else what the unit did not do. It is wedged as before then.
    fn reset(&self, unit: UnitIndex) -> Result<(), UnitError>;

    /// Turns a wedged unit off for good, for whoever has the machine next, and waits for that: it reads and writes no
    /// memory of ours and interrupts nobody any more. Where units can, nothing passes one that is off; elsewhere
    /// everything does, and only its devices' bus mastering is off.
    ///
    /// # Errors
    /// [`UnitError`]: [`UnitError::NotWedged`], [`UnitError::Busy`] while another context resets the unit, else what the
    /// unit did not do: it may go on then.
    fn shut_down(&self, unit: UnitIndex) -> Result<(), UnitError>;

    /// Notes in the entry of a requester that no more faults of it are recorded, until it is bound anew: also where it is
    /// unbound meanwhile, or is bound to nothing now. Its requests reach no more than before; the unit may abort them all.
    /// Called under a lock: it waits for nothing and asks the unit for nothing.
    ///
    /// # Errors
    /// [`UnitError`]: faults of it may go on being recorded.
    fn quiet(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), UnitError>;

    /// Asks a unit to read the entry of a requester anew. Does not wait for its completion.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); [`UnitError::NotBound`] where it has none.
    fn reread(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), UnitError>;

    /// Whether what a requester sends is coherent with the CPU's caches, by firmware's word, or by the platform's nature.
    fn coherency(&self, _requester: PciAddress) -> Coherency {
        Coherency::Coherent
    }

    /// Whether faults with this code, in the vendor's numbers, are recorded no more once their requester is
    /// [`quiet`](Self::quiet) and its unit has read that. For others it is not asked to [read](Self::reread) anything.
    fn heeds_quiet(&self, _code: u16) -> bool {
        true
    }

    /// Whether faults with this code are what a requester brings about whose entries are down, and that no requester of a live entry
    /// can: those of a gap that the hypervisor made itself ([`replace_with_gap`](crate::Group::replace_with_gap)).
    fn is_of_gap(&self, _code: u16) -> bool {
        false
    }

    /// Whether a unit waits for devices as well, which may take as long as their bus gives them
    /// ([`Config::device_wait`](crate::Config::device_wait)).
    fn waits_for_devices(&self, _unit: UnitIndex) -> bool {
        false
    }

    /// Changes with each device that was given its time while a unit finds out which do not answer: waits begin anew then.
    fn mending_steps(&self, _unit: UnitIndex) -> u64 {
        0
    }

    /// What has gone wrong with a unit and was put right.
    fn troubles(&self, _unit: UnitIndex) -> UnitTroubles {
        UnitTroubles::default()
    }

    /// Whether [`take_silent`](Self::take_silent) would give something. Cheap: asked after each wait.
    fn has_silent(&self, _unit: UnitIndex) -> bool {
        false
    }

    /// A requester whose device was told to forget translations that it keeps, and did not say that it did. The unit lets
    /// nothing of it through since, until it is bound anew, and went on: what waited for the device is done. Each time that
    /// this happens it is given once. Called under a lock: it waits for nothing.
    fn take_silent(&self, _unit: UnitIndex) -> Option<PciAddress> {
        None
    }

    /// Takes one event from the unit's fault log, if there is one. `None` says that the log was empty during the call: what
    /// another CPU is taking at the time is waited for. However many faults there are, a failure of the unit itself is
    /// found by one of the calls that take them, each so many.
    fn take_fault(&self, unit: UnitIndex) -> Option<FaultEvent>;
}
