//! The invalidation queue of one unit: the ring, its registers, and the status word that waits write.
//!
//! Submitters meet in [`hv_iommu::queue`]. A wait writes its sequence to a status word that lives as long as the
//! unit; nothing ever writes it but the unit, so a completion of an older wait can only move it to an older
//! sequence. That holds across a reset too: sequences go on, and waits that the ring lost are never given again.

#![expect(
    unsafe_code,
    reason = "reads the status word that the unit writes into a frame of ours"
)]

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, OutOfMemory};
use hv_iommu::queue::{
    Alive, Anew, CommandQueue, Completion, Ends, Going, Place, QueuePort, QueueShape, Refused,
};
use hv_iommu::{CommandCode, FlushTicket, UnitError, UnitIndex};
use log::error;

use crate::descriptor::Descriptor;
use crate::spec::invalidation::{
    DESCRIPTOR_BYTES, DESCRIPTORS_PER_PAGE, DESCRIPTORS_PER_PAGE_LOG2, QUEUE_OFFSET,
};
use crate::spec::registers;
use crate::unit::Regs;

/// Entries of the queue: one page. Each flush takes two, a binding up to six, and a submitter that finds the
/// queue full only waits, so more would buy nothing but latency for the last in line.
pub(crate) const ENTRIES: usize = DESCRIPTORS_PER_PAGE;

/// How long a submitter waits for room or for another CPU. An idle unit empties the queue in
/// microseconds; a device TLB may hold it up for long, but this version asks none.
pub(crate) const SUBMIT_DEADLINE: Duration = Duration::from_secs(1);

/// Descriptors that one submission may have, the waits not counted.
pub(crate) const BATCH_MAX: usize = 4;

const SHAPE: QueueShape =
    match QueueShape::new(DESCRIPTORS_PER_PAGE_LOG2, Ends::OneFree, SUBMIT_DEADLINE) {
        Some(shape) => shape,
        None => panic!("a page is too small for a queue"),
    };

/// What a queue operation works with.
pub(crate) struct QueueContext<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) regs: &'a Regs<P::Block>,
    pub(crate) unit: UnitIndex,
}

/// An invalidation queue.
///
/// # Invariants
/// `ring` and `status` are one page each, used for nothing else, and never given back: the unit
/// may read and write them for as long as it runs.
pub(crate) struct Queue {
    ring: FrameRun<Hypervisor>,
    status: FrameRun<Hypervisor>,
    commands: CommandQueue,
}

/// A queue for the time of a call.
struct Port<'a, P: Platform> {
    queue: &'a Queue,
    context: &'a QueueContext<'a, P>,
}

impl Queue {
    /// A queue in two zeroed frames, whose unit has head and tail at zero.
    pub(crate) fn new(
        ring: FrameRun<Hypervisor>,
        status: FrameRun<Hypervisor>,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self {
            ring,
            status,
            commands: CommandQueue::new(SHAPE)?,
        })
    }

    /// Where the ring is, for the unit's register.
    pub(crate) fn ring_address(&self) -> u64 {
        self.ring.range().start().as_u64()
    }

    /// From now on every request is refused.
    pub(crate) fn wedge(&self) {
        self.commands.wedge();
    }

    /// See [`CommandQueue::alive`].
    pub(crate) fn alive(&self) -> Option<Alive> {
        self.commands.alive()
    }

    /// See [`CommandQueue::wedge_as_seen`].
    pub(crate) fn wedge_as_seen(&self, seen: Alive) -> bool {
        self.commands.wedge_as_seen(seen)
    }

    /// Refuses if the unit is wedged.
    pub(crate) fn check_alive(&self, unit: UnitIndex) -> Result<(), UnitError> {
        self.commands.check_alive(unit)
    }

    fn port<'a, P: Platform>(&'a self, context: &'a QueueContext<'a, P>) -> Port<'a, P> {
        Port {
            queue: self,
            context,
        }
    }

    /// Hands up to [`BATCH_MAX`] descriptors to the unit, to be done in this order, each with a wait behind
    /// it.
    ///
    /// Units may do descriptors in any order but for those behind a fencing wait. An IOTLB flush that
    /// overtook the flush of a context entry would leave what a device cached through that entry between
    /// the two. The ticket is that of the last wait, which other submitters may share.
    ///
    /// Every store to tables that happened before is visible to the unit when it reads them.
    pub(crate) fn submit<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
    ) -> Result<FlushTicket, UnitError> {
        self.commands.submit(&self.port(context), batch)
    }

    /// As [`submit`](Self::submit), for what follows an entry that was taken down.
    pub(crate) fn submit_patiently<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
    ) -> Result<FlushTicket, UnitError> {
        self.commands.submit_patiently(&self.port(context), batch)
    }

    /// Whether the wait with `ticket` has completed, or a reset has done all that it stood for.
    pub(crate) fn poll<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        ticket: FlushTicket,
    ) -> Result<bool, UnitError> {
        self.commands.poll(&self.port(context), ticket)
    }

    /// Submits and waits for completion: for bring-up, when nothing else can be done meanwhile.
    pub(crate) fn submit_and_wait<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
        what: &'static str,
    ) -> Result<(), UnitError> {
        self.commands
            .submit_and_wait(&self.port(context), batch, what)
    }

    /// See [`CommandQueue::repair`].
    pub(crate) fn repair<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<bool, UnitError> {
        self.commands.repair(&self.port(context))
    }

    /// See [`CommandQueue::refusals`].
    pub(crate) fn refusals(&self) -> (u64, u64) {
        self.commands.refusals()
    }

    /// Takes the ring from everybody else, and starts it anew, for a unit that is wedged and whose
    /// queue the caller turns off and on again.
    pub(crate) fn restart<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<Anew<'_>, UnitError> {
        self.commands.restart(&self.port(context))
    }

    /// As [`submit_and_wait`](Self::submit_and_wait), for the reset of a wedged unit.
    pub(crate) fn submit_anew<P: Platform>(
        &self,
        anew: &Anew<'_>,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
        what: &'static str,
    ) -> Result<(), UnitError> {
        anew.submit_and_wait(&self.port(context), batch, what)
    }

    /// Plays a queue that has been at it for long; its unit is to have head and tail at zero.
    #[cfg(test)]
    pub(crate) fn skip_past<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        ticket: FlushTicket,
    ) -> Result<(), UnitError> {
        self.wedge();
        let anew = self.restart(context)?;
        anew.skip_past(context.unit, ticket)?;
        anew.revive();
        Ok(())
    }
}

impl<'a, P: Platform> Port<'a, P> {
    /// The words of a place of the ring.
    fn cells(&self, index: usize) -> Result<&'a [P::Cell; 2], UnitError> {
        let QueueContext { platform, unit, .. } = *self.context;
        let cells = self.queue.ring.cells(platform, 0).unwrap_or_default();
        let place = cells.get(index.saturating_mul(2)..);
        let words = place.and_then(|cells| cells.first_chunk());
        words.ok_or(UnitError::Hardware {
            unit,
            what: "a queue page that is too short, in words",
            expected: (ENTRIES * 2) as u64,
            found: cells.len() as u64,
        })
    }
}

impl<P: Platform> QueuePort for Port<'_, P> {
    type Entry = Descriptor;
    type Clock = P;

    const FENCED: bool = true;

    fn clock(&self) -> &P {
        self.context.platform
    }

    fn unit(&self) -> UnitIndex {
        self.context.unit
    }

    /// Queue reads snoop (Linux and Xen rely on it), so no write-back.
    fn put(&self, index: usize, descriptor: Descriptor) -> Result<(), UnitError> {
        let [low, high] = self.cells(index)?;
        // ORDERING: Relaxed, published by the turn word, and by the fence before the doorbell; the unit does not
        // look here until then.
        low.store(descriptor.low, Ordering::Relaxed);
        // ORDERING: Relaxed, as above.
        high.store(descriptor.high, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self, ticket: FlushTicket) -> Descriptor {
        let mut data = ticket.sequence as u32;
        if Fault::ReuseStatusWord.is_on() {
            data = 1;
        }
        Descriptor::wait(self.queue.status.range().start(), data)
    }

    fn ring(&self, tail: Place) {
        let mut place = tail.index();
        if Fault::TailPastRing.is_on() && place == 0 {
            place = ENTRIES;
        }
        let offset = place as u64 * DESCRIPTOR_BYTES;
        // Entries and tables, of this CPU and of those whose turns it saw, before the unit looks.
        self.context.platform.walker_fence();
        self.context.regs.write64(registers::IQT, offset);
    }

    fn head(&self) -> Result<Place, UnitError> {
        let found = self.context.regs.read64(registers::IQH);
        let place = usize::try_from((found & QUEUE_OFFSET) / DESCRIPTOR_BYTES);
        match place {
            Ok(index) if index < ENTRIES && found & !QUEUE_OFFSET == 0 => {
                Ok(Place::new(index, false))
            }
            _ => Err(UnitError::Hardware {
                unit: self.context.unit,
                what: "a queue head (IQH) outside its queue",
                expected: (ENTRIES as u64 - 1) * DESCRIPTOR_BYTES,
                found,
            }),
        }
    }

    fn completion(&self) -> Completion {
        let platform = self.context.platform;
        // SAFETY: the word lies in the frame `status`, which this queue owns and never gives back;
        // a frame's address is a multiple of 4.
        let word = unsafe { platform.read_u32(self.queue.status.range().start()) };
        Completion::Word(word)
    }

    /// A lost answer leaves caches unflushed, and a descriptor that could not be fetched says that memory is no more what it
    /// was: the unit is wedged rather than coaxed on. One that was refused (IQE) stands at the head, and nothing behind it was
    /// begun (Linux, `qi_check_fault`): that is left to who repairs.
    fn check(&self) -> Result<Going, UnitError> {
        let QueueContext { regs, unit, .. } = *self.context;
        let found = regs.read32(registers::FSTS);
        // All ones also when the unit is gone.
        if found & registers::FSTS_QUEUE_ERRORS == 0 {
            return Ok(Going::On);
        }
        let record = regs.read64(registers::IQERCD);
        if found & registers::FSTS_QUEUE_ERRORS == registers::FSTS_IQE
            && registers::is_refusal(record & registers::IQERCD_IQEI)
        {
            return Ok(Going::Refused);
        }
        let head = regs.read64(registers::IQH);
        error!(
            "VT-d {unit}: invalidation queue stopped: FSTS {found:#x}, IQH {head:#x}, IQERCD {record:#x}"
        );
        Err(UnitError::Hardware {
            unit,
            what: "an invalidation queue error (FSTS)",
            expected: (found & !registers::FSTS_QUEUE_ERRORS).into(),
            found: found.into(),
        })
    }

    fn refused(&self, index: usize) -> Result<Refused<Descriptor>, UnitError> {
        let [low, high] = self.cells(index)?;
        // ORDERING: Relaxed, both: the caller has seen it published.
        let (low, high) = (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed));
        let entry = Descriptor { low, high };
        Ok(Refused {
            entry,
            code: CommandCode(entry.kind()),
            is_waited_for: !entry.is_wait(),
        })
    }

    fn resume(&self) {
        let QueueContext { platform, regs, .. } = *self.context;
        // What this CPU has stored, before the unit goes on.
        platform.walker_fence();
        // What is written as ones is cleared, and nothing else.
        regs.write32(registers::FSTS, registers::FSTS_IQE);
    }

    // QEMU's unit goes on at the next write of IQT (`intel_iommu.c`); that clearing the error is enough, no manual says.
    fn awaits_bell(&self) -> bool {
        true
    }
}
