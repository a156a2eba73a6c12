//! A fake backend: units made of software, with caches that forget only what they are told to.
//!
//! [`Fake`] is a handle. One clone goes into `Iommu::new`, another stays with the test, which does
//! DMA as a device would ([`Fake::dma`]) and decides how units answer.

#![expect(unsafe_code, reason = "promises what the backend trait demands")]

mod failing;
mod format;
mod messages;
mod shapes;
mod unit;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hv_core::{Access, Iova, IovaRange, Pasid, PciAddress, PhysAddr};
use hv_iommu::{
    Backend, Binding, Dormant, FaultEvent, FlushRequest, FlushTicket, HwDomainId, Keeping,
    LeafNeeds, Level, MessageSource, NotIsolated, ReservedRegion, RootPointer, UnitCaps, UnitError,
    UnitIndex,
};

use failing::broken;
pub use format::FakeFormat;
pub use shapes::{FIRST_STAGE_WORDS, Features, Forget, Stage, UserStage};
pub use unit::FAULT_LOG;

use crate::heap;
use crate::host::{Host, lock};
use shapes::{Bound, Way};
use unit::{Effect, Unit, Who};

/// The root of a table of somebody else, for entries through which no device sends.
pub const fn some_root() -> RootPointer {
    // SAFETY: nobody walks there.
    unsafe { RootPointer::from_raw(PhysAddr::new(0x1000), Level::LEAF) }
}

/// When a unit completes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// At the first look after this many.
    AfterPolls(u32),
    /// Never; nor anything behind it.
    Never,
    /// It reports an error instead.
    Fails,
}

/// A kind of call to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Backend::bind`, and those for other shapes and for PASIDs.
    Bind,
    /// `Backend::unbind`, and that for PASIDs.
    Unbind,
    /// `Backend::submit`.
    Submit,
    /// `ReplaceBackend::rebind`.
    Rebind,
    /// `NestedBackend::submit_nested`.
    Nested,
    /// `Backend::reset`.
    Reset,
}

/// How a unit answers one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With an error; a bind or a flush has not happened, an unbound entry may still be cached.
    Refuses,
    /// With an error, after it did what was asked, but for the wait.
    RefusesLate,
    /// That others keep its queue busy; nothing has happened.
    Busy,
    /// A bind, with an error: nothing has happened, but a wait in the middle of it took too long, and the unit is wedged.
    TimesOut,
    /// With a ticket that completes like this.
    Completes(Completion),
}

/// One call that a unit will answer in a special way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    call: Call,
    /// How many calls of the kind come before it.
    after: usize,
    answer: Answer,
}

/// What a unit was asked, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    /// A requester was bound.
    Bind(PciAddress, HwDomainId),
    /// A requester was unbound.
    Unbind {
        /// Which.
        requester: PciAddress,
        /// Whether it could send requests at that moment; `None` for an id without a function.
        bus_master: Option<bool>,
    },
    /// A flush.
    Flush(FlushRequest),
    /// A requester was moved from one domain to another.
    Rebind(PciAddress, HwDomainId, HwDomainId),
    /// Something of a first stage on this domain was to be forgotten.
    Nested(HwDomainId),
    /// The unit was declared wedged.
    Wedge,
    /// A reset was tried on the unit while it was wedged.
    Reset,
}

/// Why a device's request did not reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaFault {
    /// The function's bus master bit is clear: it sends nothing.
    NotBusMaster,
    /// No unit translates for the requester.
    NoUnit,
    /// The requester is bound to no domain.
    NotBound,
    /// The address is wider than the domain's table.
    TooWide,
    /// Nothing is mapped there.
    NotMapped,
    /// The mapping does not allow the direction.
    NotPermitted,
    /// The unit cannot make sense of this table word.
    Malformed(u64),
}

/// What a fake is made of.
#[derive(Clone, Debug, Default)]
pub struct FakeConfig {
    /// The units.
    pub units: Vec<UnitCaps>,
    /// Buses, first and last, and the number of the unit that covers them.
    pub coverage: Vec<(u8, u8, usize)>,
    /// What no domain maps.
    pub reserved: Vec<IovaRange>,
    /// What firmware wants mapped, and for whom.
    pub regions: Vec<(PciAddress, ReservedRegion)>,
}

struct Inner {
    host: Host,
    coverage: Vec<(u8, u8, usize)>,
    reserved: Vec<IovaRange>,
    regions: Vec<(PciAddress, ReservedRegion)>,
    /// Who a requester is to which interrupt controller.
    sources: Mutex<Vec<(PciAddress, MessageSource)>>,
    units: Vec<Mutex<Unit>>,
    /// Whether translation is off: requests go through as they are.
    asleep: AtomicBool,
}

/// A family of software IOMMUs. `T` makes several backends of it that the compiler tells apart.
pub struct Fake<T = ()> {
    inner: Arc<Inner>,
    tag: PhantomData<fn() -> T>,
}

impl<T> Clone for Fake<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            tag: PhantomData,
        }
    }
}

impl<T> Fake<T> {
    /// Units as configured, on this platform.
    pub fn new(host: Host, config: FakeConfig) -> Self {
        let units = config.units.into_iter().map(Unit::new).map(Mutex::new);
        let inner = Inner {
            host,
            coverage: config.coverage,
            reserved: config.reserved,
            regions: config.regions,
            sources: Mutex::new(Vec::new()),
            units: units.collect(),
            asleep: AtomicBool::new(false),
        };
        Self {
            inner: Arc::new(inner),
            tag: PhantomData,
        }
    }

    /// The platform.
    pub fn host(&self) -> &Host {
        &self.inner.host
    }

    /// A device's request, with the requester id that it puts on it. Gives the address that it
    /// reached.
    ///
    /// # Errors
    /// [`DmaFault`]; recorded in the unit's log unless the request never got there.
    pub fn dma(
        &self,
        requester: PciAddress,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        self.access((requester, None), at, access, |_, _| ())
            .map(|(to, ())| to)
    }

    /// As [`dma`](Self::dma), with a PASID on the request.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn dma_with(
        &self,
        requester: PciAddress,
        pasid: Pasid,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        self.access((requester, Some(pasid)), at, access, |_, _| ())
            .map(|(to, ())| to)
    }

    /// Whether a device's read of `at` snoops, although it asks not to.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn is_snooped(&self, requester: PciAddress, at: Iova) -> Result<bool, DmaFault> {
        let unit = self.index_of(requester).ok_or(DmaFault::NoUnit)?;
        lock(&self.inner.units[unit]).is_snooped(self.host(), requester, at)
    }

    /// A device reads the 64-bit word at `at`.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn dma_read(&self, requester: PciAddress, at: Iova) -> Result<u64, DmaFault> {
        let read = |host: &Host, to| host.device_read(to);
        self.access((requester, None), at, Access::Read, read)
            .map(|(_, word)| word)
    }

    /// A device writes the 64-bit word at `at`.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn dma_write(&self, requester: PciAddress, at: Iova, word: u64) -> Result<(), DmaFault> {
        let write = |host: &Host, to| host.device_write(to, word);
        self.access((requester, None), at, Access::Write, write)
            .map(drop)
    }

    /// Translates and touches memory in one step: what a completed flush waits for. A device that
    /// reaches memory which was given back ends the test.
    fn access<R>(
        &self,
        who: Who,
        at: Iova,
        access: Access,
        touch: impl FnOnce(&Host, PhysAddr) -> R,
    ) -> Result<(PhysAddr, R), DmaFault> {
        let (requester, _) = who;
        if self.host().bus_master(requester) == Some(false) {
            return Err(DmaFault::NotBusMaster);
        }
        // ORDERING: SeqCst pairs with the store of `wake`; the strongest there is.
        if self.inner.asleep.load(Ordering::SeqCst) {
            let to = PhysAddr::new(at.as_u64());
            return Ok((to, touch(self.host(), to)));
        }
        let unit = self.index_of(requester).ok_or(DmaFault::NoUnit)?;
        let mut unit = lock(&self.inner.units[unit]);
        let to = unit.translate(self.host(), who, at, access)?;
        assert!(
            self.host().is_out(to),
            "{requester} reached {to}, which was given back"
        );
        let result = touch(self.host(), to);
        Ok((to, result))
    }

    /// Puts an entry of another domain in place, as a bug elsewhere would.
    pub fn occupy(&self, requester: PciAddress, binding: Binding) {
        if let Some(unit) = self.index_of(requester) {
            let bound = Bound {
                way: Way::Tables(binding),
            };
            self.lock_unit(unit)
                .bindings
                .insert((requester, None), bound);
        }
    }

    /// How the unit completes requests from now on.
    pub fn completes(&self, unit: usize, completion: Completion) {
        self.lock_unit(unit).completion = completion;
    }

    /// How the unit answers one call: that which comes after `after` more of its kind.
    pub fn plan(&self, unit: usize, call: Call, after: usize, answer: Answer) {
        let plan = Plan {
            call,
            after,
            answer,
        };
        self.lock_unit(unit).plans.push(plan);
    }

    /// What the unit was asked since the last look, in order.
    pub fn take_log(&self, unit: usize) -> Vec<Logged> {
        std::mem::take(&mut self.lock_unit(unit).log)
    }

    /// What the requester is bound to.
    pub fn bound(&self, requester: PciAddress) -> Option<HwDomainId> {
        let unit = self.lock_unit(self.index_of(requester)?);
        let bound = unit.bindings.get(&(requester, None));
        bound.map(Bound::domain)
    }

    /// How many translations of a domain the unit has cached.
    pub fn cached(&self, unit: usize, domain: HwDomainId) -> usize {
        self.lock_unit(unit).cached_leaves(domain)
    }

    fn index_of(&self, requester: PciAddress) -> Option<usize> {
        let covers = |(first, last, _): &&(u8, u8, usize)| {
            (*first..=*last).contains(&requester.bus()) && requester.segment().0 == 0
        };
        let (_, _, unit) = self.inner.coverage.iter().find(covers)?;
        Some(*unit)
    }

    fn lock_unit(&self, unit: usize) -> std::sync::MutexGuard<'_, Unit> {
        lock(&self.inner.units[unit])
    }

    fn unit(&self, unit: UnitIndex) -> Result<std::sync::MutexGuard<'_, Unit>, UnitError> {
        let found = self.inner.units.get(unit.index());
        found.map(lock).ok_or(UnitError::NoSuchUnit { unit })
    }

    /// The unit, if it takes requests, and how it answers this one.
    fn called(
        &self,
        index: UnitIndex,
        call: Call,
    ) -> Result<(std::sync::MutexGuard<'_, Unit>, Answer), UnitError> {
        let mut unit = self.interrupted(index, call)?;
        let mut answer = Answer::Completes(unit.completion);
        unit.plans.retain_mut(|plan| {
            if plan.call != call {
                return true;
            }
            let now = plan.after == 0;
            if now {
                answer = plan.answer;
            }
            plan.after = plan.after.saturating_sub(1);
            !now
        });
        Ok((unit, answer))
    }
}

/// A fake whose units do not translate yet.
pub struct Asleep<T = ()>(Fake<T>);

impl<T> Asleep<T> {
    /// Puts the units to sleep.
    pub fn new(fake: Fake<T>) -> Self {
        // ORDERING: SeqCst, as in `access`.
        fake.inner.asleep.store(true, Ordering::SeqCst);
        Self(fake)
    }
}

// SAFETY: until `wake` every request goes through as it is; entries are put and taken as ever, and count from then on.
unsafe impl<T: 'static> Dormant for Asleep<T> {
    type Backend = Fake<T>;

    fn into_backend(self, _: Keeping) -> Fake<T> {
        self.0
    }

    fn wake(backend: &Fake<T>) -> Result<(), UnitError> {
        // ORDERING: SeqCst, as in `access`.
        backend.inner.asleep.store(false, Ordering::SeqCst);
        Ok(())
    }
}

// SAFETY: a requester without an entry is refused; an entry is live with one insertion and dead with
// one removal. What is cached of a binding or a translation before a request is gone when its ticket
// completes, and accesses to memory happen under the lock that a completion takes, so none that used
// it is in flight then. Table words are read when a device asks, so after any earlier store. A reset
// forgets everything under that lock too, and completes old tickets when it ends.
unsafe impl<T: 'static> Backend for Fake<T> {
    type Platform = Host;
    type Format = FakeFormat;

    fn platform(&self) -> &Host {
        self.host()
    }

    fn unit_count(&self) -> usize {
        self.inner.units.len()
    }

    fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.unit(unit).ok().map(|unit| unit.caps)
    }

    fn pasid_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.caps_with_pasids(unit)
    }

    fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex> {
        UnitIndex::new(self.index_of(requester)?)
    }

    fn reserved(&self) -> &[IovaRange] {
        &self.inner.reserved
    }

    fn reserved_for(&self, requester: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        let regions = self.inner.regions.iter();
        let of = regions.filter(move |(other, _)| *other == requester);
        of.map(|(_, region)| *region)
    }

    fn message_source(&self, requester: PciAddress) -> Result<MessageSource, NotIsolated> {
        self.source_of(requester)
    }

    fn may_send_as(&self, requester: PciAddress, source: MessageSource) -> bool {
        self.is_told_as(requester, source)
    }

    fn format(&self, _caps: &UnitCaps, LeafNeeds { snoop, .. }: LeafNeeds) -> FakeFormat {
        FakeFormat::with(snoop)
    }

    unsafe fn bind(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let _exempt = heap::exempt();
        let way = Way::Tables(binding);
        self.put(index, (requester, None), Bound { way })
    }

    fn unbind(
        &self,
        index: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let _exempt = heap::exempt();
        self.take(index, (requester, None), domain)
    }

    fn submit(&self, index: UnitIndex, request: FlushRequest) -> Result<FlushTicket, UnitError> {
        let _exempt = heap::exempt();
        let (mut unit, answer) = self.called(index, Call::Submit)?;
        if unit.wedged {
            let job = unit.after_refusal.take();
            drop(unit);
            if let Some(job) = job {
                job();
            }
            return Err(UnitError::Wedged { unit: index });
        }
        if answer == Answer::Busy {
            let waited = Duration::from_millis(1);
            return Err(UnitError::Busy {
                unit: index,
                waited,
            });
        }
        unit.log.push(Logged::Flush(request));
        let Answer::Completes(completion) = answer else {
            return Err(broken(index));
        };
        let sequence = unit.enqueue(Effect::Flush(request), completion);
        Ok(FlushTicket::alone(sequence))
    }

    fn poll(&self, index: UnitIndex, ticket: FlushTicket) -> Result<bool, UnitError> {
        let _exempt = heap::exempt();
        let mut unit = self.looked_at(index)?;
        while unit.completed < ticket.sequence {
            if unit.wedged {
                return Err(UnitError::Wedged { unit: index });
            }
            let Some(front) = unit.queue.front_mut() else {
                return Ok(false);
            };
            match &mut front.completion {
                Completion::AfterPolls(0) => {}
                Completion::AfterPolls(left) => {
                    *left -= 1;
                    return Ok(false);
                }
                Completion::Never => return Self::in_vain(unit),
                Completion::Fails => return Err(broken(index)),
            }
            if let Some(request) = unit.queue.pop_front() {
                unit.apply(&request);
                unit.completed = request.ticket;
            }
        }
        Ok(true)
    }

    fn is_of_gap(&self, code: u16) -> bool {
        code == hv_iommu::FaultClass::NotBound as u16
    }

    fn waits_for_devices(&self, index: UnitIndex) -> bool {
        self.unit(index).is_ok_and(|unit| unit.finds_out.is_some())
    }

    fn mending_steps(&self, index: UnitIndex) -> u64 {
        self.found_out(index)
    }

    fn wedge(&self, index: UnitIndex) {
        let _exempt = heap::exempt();
        if let Ok(mut unit) = self.unit(index) {
            unit.wedged = true;
            unit.log.push(Logged::Wedge);
        }
    }

    fn is_wedged(&self, index: UnitIndex) -> bool {
        let _exempt = heap::exempt();
        self.unit(index).is_ok_and(|unit| unit.wedged)
    }

    fn reset(&self, index: UnitIndex) -> Result<(), UnitError> {
        let _exempt = heap::exempt();
        let (mut unit, answer) = self.called(index, Call::Reset)?;
        if !unit.wedged {
            return Err(UnitError::NotWedged { unit: index });
        }
        if unit.resetting {
            let waited = Duration::ZERO;
            return Err(UnitError::Busy {
                unit: index,
                waited,
            });
        }
        unit.log.push(Logged::Reset);
        let Answer::Completes(Completion::AfterPolls(_)) = answer else {
            return Err(broken(index));
        };
        unit.resetting = true;
        unit.forget_all();
        let job = unit.during_reset.take();
        drop(unit);
        if let Some(job) = job {
            job();
        }
        let mut unit = self.unit(index)?;
        unit.resetting = false;
        unit.wedged = std::mem::take(&mut unit.fails_again);
        // What was asked for before is done, and more.
        unit.completed = unit.submitted;
        Ok(())
    }

    fn shut_down(&self, index: UnitIndex) -> Result<(), UnitError> {
        self.turned_off(index)
    }

    fn quiet(&self, index: UnitIndex, requester: PciAddress) -> Result<(), UnitError> {
        self.made_quiet(index, requester)
    }

    fn reread(&self, index: UnitIndex, requester: PciAddress) -> Result<(), UnitError> {
        let _exempt = heap::exempt();
        self.reread_asked(index, requester)?;
        Ok(())
    }

    fn take_fault(&self, index: UnitIndex) -> Option<FaultEvent> {
        self.taken(index)
    }
}
