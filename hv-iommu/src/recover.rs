//! Wedging a unit, and the way out: the reset of a unit, then the recovery of the groups behind it.
//!
//! What a unit cached when it was wedged is gone only after a reset that began later. So a failure
//! that comes while a reset is under way makes that reset count as failed; both sides decide under
//! the registry's lock, which no hardware wait happens under.

use alloc::vec::Vec;
use core::time::Duration;

use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering};

use crate::backend::{Backend, UnitError, UnitIndex};
use crate::bind::unregister;
use crate::group::{Group, Inner, Wedged, clear_bus_mastering};
use crate::rest::AtRest;
use crate::system::{Iommu, Registry, System};

/// Which units were declared wedged, read without a lock.
///
/// # Invariants
/// Changed only under the registry's lock.
pub(crate) struct WedgedUnits {
    /// One bit for each unit.
    units: AtomicU64,
    /// Of each unit, its resets that succeeded.
    resets: Vec<AtomicU64>,
}

impl WedgedUnits {
    /// None of so many is wedged.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn new(units: usize) -> Result<Self, OutOfMemory> {
        let mut resets = Vec::new();
        resets.try_reserve_exact(units).map_err(|_| OutOfMemory {
            bytes: units.saturating_mul(size_of::<AtomicU64>()),
        })?;
        resets.extend((0..units).map(|_| AtomicU64::new(0)));
        Ok(Self {
            units: AtomicU64::new(0),
            resets,
        })
    }

    /// Whether a unit was declared wedged and not reset since.
    pub(crate) fn has(&self, unit: UnitIndex) -> bool {
        // ORDERING: SeqCst pairs with `note`: who lets a device send and then looks here either sees
        // the bit, or did it before the devices are cut off.
        self.units.load(Ordering::SeqCst) & bit(unit) != 0
    }

    /// Notes that a unit is wedged, before its devices are cut off. Says whether that is new.
    fn note(&self, unit: UnitIndex) -> bool {
        // ORDERING: SeqCst, as in `has`.
        self.units.fetch_or(bit(unit), Ordering::SeqCst) & bit(unit) == 0
    }

    /// Notes that a unit was reset.
    fn forget(&self, unit: UnitIndex) {
        if let Some(resets) = self.resets.get(unit.index()) {
            // ORDERING: Release pairs with `resets`; before the bit, so that who sees neither asked a
            // unit that was wedged otherwise. The registry's lock orders writers.
            resets.fetch_add(1, Ordering::Release);
        }
        // ORDERING: SeqCst, as in `has`; also all that the reset did happens before.
        self.units.fetch_and(!bit(unit), Ordering::SeqCst);
    }

    /// How many resets of a unit have succeeded so far.
    pub(crate) fn resets(&self, unit: UnitIndex) -> u64 {
        let resets = self.resets.get(unit.index());
        // ORDERING: Acquire pairs with `forget`: who counted a reset finds its unit reset.
        resets.map_or(0, |resets| resets.load(Ordering::Acquire))
    }
}

/// Resets that are under way: one bit for each unit.
#[derive(Default)]
pub(crate) struct Resets {
    running: u64,
    /// Units on which something failed since their reset began.
    spoilt: u64,
}

const fn bit(unit: UnitIndex) -> u64 {
    1 << unit.index()
}

impl<B: Backend> System<B> {
    /// Wedges a unit and takes bus mastering from every device that is bound behind it. A reset of it
    /// that is under way comes too early for what failed, and fails too.
    pub(crate) fn cut_off(&self, unit: UnitIndex) {
        self.cut_off_if(unit, |_| true);
    }

    /// As [`cut_off`](Self::cut_off), for a failure that the backend has found, and wedged the unit for, some time ago. Says
    /// whether that still holds: a reset has ended it, or one that is under way will. (One that is all but over finds at
    /// its end that the unit failed again.)
    pub(crate) fn cut_off_failed(&self, unit: UnitIndex) -> bool {
        self.cut_off_if(unit, |registry| {
            registry.resets.running & bit(unit) == 0 && self.backend.is_wedged(unit)
        })
    }

    fn cut_off_if(&self, unit: UnitIndex, holds: impl FnOnce(&Registry<B>) -> bool) -> bool {
        let mut registry = self.registry.lock();
        if !holds(&registry) {
            return false;
        }
        self.backend.wedge(unit);
        registry.resets.spoilt |= bit(unit);
        let new = self.wedged.note(unit);
        self.silence(&mut registry, unit);
        drop(registry);
        // ORDERING: Relaxed, it is for what people read.
        if new && !self.ended.load(Ordering::Relaxed) {
            log::error!(
                "{unit} is wedged; its devices were cut off from memory until `Iommu::reset_unit` brings it back"
            );
        }
        true
    }

    /// Takes bus mastering from every device that is bound behind a unit, and what it was let ask for.
    fn silence(&self, registry: &mut Registry<B>, unit: UnitIndex) {
        let behind = registry.bound.iter_mut().filter(|bound| bound.unit == unit);
        for bound in behind {
            if !Fault::SkipCutOff.is_on() {
                clear_bus_mastering(self.backend.platform(), bound.requester);
            }
            bound.stop_asking(self.backend.platform());
        }
    }

    /// Cuts a unit off because a request failed, unless that says nothing new about it. `resets` of it were
    /// counted before the request. Says whether the failure counts: `false` where it is of before a reset that has succeeded
    /// meanwhile.
    ///
    /// Only for requests whose failure leaves nothing behind that a reset under way might miss: no
    /// entry that was just taken down.
    pub(crate) fn request_failed(&self, unit: UnitIndex, error: UnitError, resets: u64) -> bool {
        match error {
            UnitError::Busy { .. } | UnitError::NoAnswer { .. } => true,
            // Refused because the unit is wedged, or was before a reset that has succeeded meanwhile:
            // callers that keep trying must neither spoil a reset nor wedge the unit again after it.
            UnitError::Wedged { .. } if self.wedged.has(unit) => true,
            // Under the lock that a reset ends under. One that has failed again by itself since is found by the next request.
            _ => self.cut_off_if(unit, |_| self.wedged.resets(unit) == resets),
        }
    }

    /// Starts a reset: of a wedged unit, one at a time. Its devices are cut off once more.
    fn begin_reset(&self, unit: UnitIndex) -> Result<(), UnitError> {
        let mut registry = self.registry.lock();
        if !self.wedged.has(unit) {
            return Err(UnitError::NotWedged { unit });
        }
        if registry.resets.running & bit(unit) != 0 {
            return Err(UnitError::Busy {
                unit,
                waited: Duration::ZERO,
            });
        }
        registry.resets.running |= bit(unit);
        registry.resets.spoilt &= !bit(unit);
        self.silence(&mut registry, unit);
        Ok(())
    }

    /// Ends a reset that the backend has done or not.
    fn end_reset(&self, unit: UnitIndex, done: Result<(), UnitError>) -> Result<(), UnitError> {
        let mut registry = self.registry.lock();
        registry.resets.running &= !bit(unit);
        let spoilt = registry.resets.spoilt & bit(unit) != 0;
        // A unit that failed again by itself is wedged in the backend alone so far, see `cut_off_failed`.
        if done.is_ok() && !spoilt && !self.backend.is_wedged(unit) {
            self.wedged.forget(unit);
            return Ok(());
        }
        // What failed meanwhile may be cached, though the backend is content.
        self.backend.wedge(unit);
        done.and(Err(UnitError::Wedged { unit }))
    }
}

impl<B: Backend> Iommu<B> {
    /// The units that are wedged now. A call that fails names one unit, and may have wedged more: a flush
    /// goes to every unit that its domain reaches.
    pub fn wedged_units(&self) -> impl Iterator<Item = UnitIndex> + use<'_, B> {
        let units = (0..self.0.backend.unit_count()).filter_map(UnitIndex::new);
        units.filter(|unit| self.0.wedged.has(*unit))
    }

    /// Brings a wedged unit back: cuts the devices behind it off once more, then has the backend
    /// restart the unit, which forgets all that it had cached. Waits for that.
    ///
    /// Attached groups stay attached, without bus mastering until their holders turn it on again.
    /// What was pending stays pending: it opens with a flush of its own, which the unit takes now.
    /// Wedged groups [`recover`](Group::recover). Interrupts go where they went, and tell of no fault that the unit kept
    /// back until now: who relies on them [looks](Self::take_faults) once.
    ///
    /// # Errors
    /// [`UnitError`]: [`UnitError::NotWedged`], [`UnitError::NoSuchUnit`], [`UnitError::ShutDown`], [`UnitError::Busy`] while
    /// another call resets the unit; else what the unit did not do, or [`UnitError::Wedged`] when
    /// another request to it failed meanwhile. It stays wedged then; try again.
    pub fn reset_unit(&self, unit: UnitIndex) -> Result<(), UnitError> {
        let system = &self.0;
        if unit.index() >= system.backend.unit_count() {
            return Err(UnitError::NoSuchUnit { unit });
        }
        system.begin_reset(unit)?;
        let done = system.away(|| system.backend.reset(unit));
        let ended = system.end_reset(unit, done);
        match ended {
            Ok(()) => log::warn!(
                "{unit} was reset; its devices stay cut off until let out again (`enable_bus_mastering`; `recover` for \
                 wedged groups)"
            ),
            Err(error @ UnitError::ShutDown { .. }) => log::error!("{error}"),
            Err(error) => {
                log::error!(
                    "{unit} was not reset and stays wedged, until another `reset_unit`: {error}"
                );
            }
        }
        ended
    }
}

impl<B: Backend> Iommu<B> {
    /// Ends it, for whoever has the machine next (a reboot that keeps memory, another kernel): cuts every device off, turns
    /// every unit off, and leaves interrupts and queues off. From the first unit on every request is refused, and no unit
    /// is reset again; values of before can be dropped, and none of their memory is read or written by a unit any more.
    ///
    /// Devices have no bus mastering, as before bring-up. Some units let nothing through when they are off, either: until
    /// somebody says otherwise. Others let everything through, so behind those a device that ignores its bus master bit is
    /// not stopped: keep the machine's memory from such devices by not calling this, or by a reset of theirs. The backend's
    /// crate says which its units are.
    ///
    /// All units are tried, whatever becomes of one. Devices that were kept running for firmware stop. What is attached or
    /// mapped is never detached or destroyed in order any more: drop it. [`wedged_units`](Self::wedged_units) lists all.
    ///
    /// # Errors
    /// What the first unit did not do that was not turned off; it may go on reading its tables. [`UnitError::Busy`] while
    /// another call resets it: try again.
    pub fn shut_down(&self) -> Result<(), UnitError> {
        let system = &self.0;
        let units = || (0..system.backend.unit_count()).filter_map(UnitIndex::new);
        // ORDERING: Relaxed, as in `cut_off_if`.
        system.ended.store(true, Ordering::Relaxed);
        // Everybody is cut off before the first unit stops standing between devices and memory.
        units().for_each(|unit| system.cut_off(unit));
        let mut ended = Ok(());
        for unit in units() {
            let done = system.away(|| system.backend.shut_down(unit));
            match done {
                Ok(()) => log::warn!("{unit} is off"),
                Err(error) => log::error!("{unit} was not turned off: {error}"),
            }
            ended = ended.and(done);
        }
        ended
    }
}

impl<B: Backend> Group<B, Wedged<B>> {
    /// Gives the group back, at rest, once its unit was [reset](Iommu::reset_unit): no entry of it is
    /// left in memory or in the unit, and its domain can be destroyed as far as this group goes.
    /// Whoever wants it claims it anew, and resets its devices before they get bus mastering.
    ///
    /// # Errors
    /// The group, while its unit is wedged, or when the unit did not forget an entry that was still
    /// present.
    pub fn recover(self) -> Result<AtRest<B>, Self> {
        let Self { inner, mut state } = self;
        // The unit was cut off after the last entry of this group was taken down, so the bit is clear
        // only after a reset that began later: what is not present now was forgotten by that.
        if inner.system.wedged.has(inner.unit) {
            return Err(Self { inner, state });
        }
        inner.silence();
        if let Err(error) = take_down(&inner, &state) {
            inner.system.cut_off(inner.unit);
            state.error = error;
            return Err(Self { inner, state });
        }
        // Here and not one by one above: a recovery that fails half-way is tried again as a whole.
        for hold in &state.holds {
            for _ in 0..hold.entered {
                hold.anchor.leave(inner.unit);
            }
            unregister(&inner, &hold.anchor);
        }
        let owner = state.holds.iter().find_map(|hold| hold.anchor.entries());
        Ok(match owner {
            Some((_, owner)) => inner.rest_after(owner),
            None => inner.rest(),
        })
    }
}

/// Takes down what is left of the group's entries, and waits until the unit has forgotten each.
fn take_down<B: Backend>(inner: &Inner<B>, state: &Wedged<B>) -> Result<(), UnitError> {
    let (system, unit) = (&inner.system, inner.unit);
    let mut failed = None;
    for hold in &state.holds {
        let Some((id, _)) = hold.anchor.entries() else {
            continue;
        };
        for requester in inner.requesters.iter().take(hold.bound) {
            let asked = system.away(|| system.backend.unbind(unit, *requester, id));
            let unbound = match asked {
                Ok(ticket) => system.wait(unit, ticket, "the unbinding of a device"),
                Err(UnitError::NotBound { .. }) => Ok(()),
                Err(error) => Err(error),
            };
            failed = failed.or(unbound.err());
        }
    }
    failed.map_or(Ok(()), Err)
}
