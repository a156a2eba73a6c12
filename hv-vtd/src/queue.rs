//! The invalidation queue of one unit: many submitters, waits that cannot be mistaken.
//!
//! A batch of descriptors goes in under a short spin lock, each with a wait behind it. A wait writes a
//! growing sequence to a status word that lives as long as the unit; nothing ever writes it but
//! the unit, so a completion of an older wait can only move it to an older sequence. That holds
//! across a reset too: sequences go on, and waits that the ring lost are never given again.

#![expect(
    unsafe_code,
    reason = "reads the status word that the unit writes into a frame of ours"
)]

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::{AtomicBool, AtomicU64, Ordering, fence, spin_hint};
use hv_core::{EntryCell, FrameRun, Hypervisor};
use hv_iommu::{FlushTicket, UnitError, UnitIndex};
use log::error;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::descriptor::Descriptor;
use crate::ring::RingIndex;
use crate::spec::invalidation::{DESCRIPTOR_BYTES, DESCRIPTORS_PER_PAGE, QUEUE_OFFSET};
use crate::spec::registers;
use crate::unit::Regs;

/// Entries of the queue: one page. Each flush takes two, a binding up to six, and a submitter that finds the
/// queue full only waits, so more would buy nothing but latency for the last in line.
pub(crate) const ENTRIES: usize = DESCRIPTORS_PER_PAGE;

/// How long a submitter waits for room or for the lock. An idle unit empties the queue in
/// microseconds; a device TLB may hold it up for long, but this version asks none.
pub(crate) const SUBMIT_DEADLINE: Duration = Duration::from_secs(1);

/// Descriptors that one submission may have, the wait not counted.
pub(crate) const BATCH_MAX: usize = 4;

/// What a queue operation works with.
pub(crate) struct QueueContext<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) regs: &'a Regs<P::Block>,
    pub(crate) unit: UnitIndex,
}

/// Who uses the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Refused while the unit is wedged.
    Anyone,
    /// The one reset of a wedged unit.
    Reset,
}

/// The producer's side of the ring.
struct Producer {
    /// The next entry to fill.
    tail: RingIndex<ENTRIES>,
    /// The next entry that the unit reads, as last seen: it can only be further on.
    head: RingIndex<ENTRIES>,
}

/// An invalidation queue.
///
/// # Invariants
/// `ring` and `status` are one page each, used for nothing else, and never given back: the unit
/// may read and write them for as long as it runs. Sequence `submitted` and all before it have been
/// given to the unit or are about to be by the holder of the lock; none after it has.
pub(crate) struct Queue {
    ring: FrameRun<Hypervisor>,
    status: FrameRun<Hypervisor>,
    producer: SpinMutex<Producer>,
    submitted: AtomicU64,
    wedged: AtomicBool,
}

impl Queue {
    /// A queue in two zeroed frames, whose unit has head and tail at zero.
    pub(crate) fn new(ring: FrameRun<Hypervisor>, status: FrameRun<Hypervisor>) -> Self {
        Self {
            ring,
            status,
            producer: SpinMutex::new(Producer {
                tail: RingIndex::START,
                head: RingIndex::START,
            }),
            submitted: AtomicU64::new(0),
            wedged: AtomicBool::new(false),
        }
    }

    /// Where the ring is, for the unit's register.
    pub(crate) fn ring_address(&self) -> u64 {
        self.ring.range().start().as_u64()
    }

    /// From now on every request is refused.
    pub(crate) fn wedge(&self) {
        // ORDERING: Release, what led to the wedging happened before anybody sees it.
        self.wedged.store(true, Ordering::Release);
    }

    /// Refuses if the unit is wedged.
    pub(crate) fn check_alive(&self, unit: UnitIndex) -> Result<(), UnitError> {
        // ORDERING: Acquire, pairs with the Release in `wedge`.
        if self.wedged.load(Ordering::Acquire) {
            return Err(UnitError::Wedged { unit });
        }
        Ok(())
    }

    /// Refuses if the unit is wedged and the caller is not who resets it.
    fn admit(&self, unit: UnitIndex, caller: Caller) -> Result<(), UnitError> {
        match caller {
            Caller::Anyone => self.check_alive(unit),
            Caller::Reset => Ok(()),
        }
    }

    /// Hands up to [`BATCH_MAX`] descriptors to the unit, to be done in this order, each with a wait behind
    /// it.
    ///
    /// Units may do descriptors in any order but for those behind a fencing wait. An IOTLB flush that
    /// overtook the flush of a context entry would leave what a device cached through that entry between
    /// the two. The ticket is that of the last wait.
    ///
    /// Every store to tables that happened before is visible to the unit when it reads them.
    pub(crate) fn submit<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
    ) -> Result<FlushTicket, UnitError> {
        self.submit_for(Caller::Anyone, context, batch)
    }

    fn submit_for<P: Platform>(
        &self,
        caller: Caller,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
    ) -> Result<FlushTicket, UnitError> {
        let start = context.platform.now();
        let mut moved = start;
        // Where the head was when the queue was seen full; `None` while it was not.
        let mut full_at = None;
        let needed = batch.len().max(1).saturating_mul(2);
        loop {
            self.admit(context.unit, caller)?;
            let now = context.platform.now();
            let expired = now > moved.after(SUBMIT_DEADLINE);
            // The lock is held for a few stores and two register accesses, never for a wait.
            let Some(mut producer) = self.producer.try_lock() else {
                if expired {
                    // Whoever has the lock is to blame, not the unit.
                    return Err(UnitError::Busy {
                        unit: context.unit,
                        waited: now.since(start),
                    });
                }
                spin_hint();
                continue;
            };
            // Once more under the lock: a reset takes it after the unit was wedged, and from then on the
            // ring is its own.
            self.admit(context.unit, caller)?;
            if producer.tail.free(producer.head) < needed {
                producer.head = self.read_head(context)?;
            }
            if producer.tail.free(producer.head) >= needed || Fault::QueueNeverFull.is_on() {
                return self.put(context, &mut producer, batch);
            }
            let head = producer.head;
            drop(producer);
            self.check_errors(context)?;
            if full_at != Some(head) {
                // The unit goes on reading: others were faster with the room that it made.
                full_at = Some(head);
                moved = now;
            } else if expired {
                self.wedge();
                return Err(UnitError::Timeout {
                    unit: context.unit,
                    what: "reading its invalidation queue, which stayed full",
                    waited: now.since(moved),
                });
            }
            spin_hint();
        }
    }

    /// Fills entries for the batch and its waits and moves the tail. There is room.
    fn put<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        producer: &mut SpinMutexGuard<'_, Producer>,
        batch: &[Descriptor],
    ) -> Result<FlushTicket, UnitError> {
        // ORDERING: Relaxed, the lock orders submitters; only they write it.
        let mut sequence = self.submitted.load(Ordering::Relaxed);
        let mut tail = producer.tail;
        // An empty batch is a wait alone.
        let last = batch.len().saturating_sub(1);
        for index in 0..=last {
            if let Some(descriptor) = batch.get(index) {
                self.fill(context, tail, *descriptor)?;
                tail = tail.next();
            }
            if Fault::SkipFence.is_on() && index < last {
                continue;
            }
            sequence = sequence.wrapping_add(1);
            self.fill(context, tail, self.wait_for(sequence))?;
            tail = tail.next();
        }
        // ORDERING: Release, before the doorbell: whoever sees the unit complete this sequence
        // finds that it was submitted.
        self.submitted.store(sequence, Ordering::Release);
        // ORDERING: SeqCst, the descriptors, and all table stores that happened before, are
        // visible to the unit before the doorbell makes it look.
        fence(Ordering::SeqCst);
        producer.tail = tail;
        let mut offset = tail.get() as u64 * DESCRIPTOR_BYTES;
        if Fault::TailPastRing.is_on() && tail == RingIndex::START {
            offset = ENTRIES as u64 * DESCRIPTOR_BYTES;
        }
        context.regs.write64(registers::IQT, offset);
        Ok(FlushTicket { sequence })
    }

    /// The wait that completes with this sequence.
    fn wait_for(&self, sequence: u64) -> Descriptor {
        let mut data = sequence as u32;
        if Fault::ReuseStatusWord.is_on() {
            data = 1;
        }
        Descriptor::wait(self.status.range().start(), data)
    }

    /// Writes one entry. Queue reads snoop (Linux and Xen rely on it), so no write-back.
    fn fill<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        at: RingIndex<ENTRIES>,
        descriptor: Descriptor,
    ) -> Result<(), UnitError> {
        let word = at.get() * 2;
        let cells = self.ring.cells(context.platform, 0).unwrap_or_default();
        let Some([low, high]) = cells.get(word..word.saturating_add(2)) else {
            return Err(UnitError::Hardware {
                unit: context.unit,
                what: "a queue page that is too short, in words",
                expected: (ENTRIES * 2) as u64,
                found: cells.len() as u64,
            });
        };
        // ORDERING: Relaxed, published by the fence before the doorbell; the unit does not look
        // here until then.
        low.store(descriptor.low, Ordering::Relaxed);
        // ORDERING: Relaxed, as above.
        high.store(descriptor.high, Ordering::Relaxed);
        Ok(())
    }

    /// The unit's place in the ring.
    fn read_head<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<RingIndex<ENTRIES>, UnitError> {
        let found = context.regs.read64(registers::IQH);
        let place = (found & QUEUE_OFFSET) / DESCRIPTOR_BYTES;
        let head = usize::try_from(place).ok().and_then(RingIndex::new);
        match head {
            Some(head) if found & !QUEUE_OFFSET == 0 => Ok(head),
            _ => {
                self.wedge();
                Err(UnitError::Hardware {
                    unit: context.unit,
                    what: "a queue head (IQH) outside its queue",
                    expected: (ENTRIES as u64 - 1) * DESCRIPTOR_BYTES,
                    found,
                })
            }
        }
    }

    /// Whether the wait with `ticket` has completed, or a reset has done all that it stood for.
    pub(crate) fn poll<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        ticket: FlushTicket,
    ) -> Result<bool, UnitError> {
        self.poll_for(Caller::Anyone, context, ticket)
    }

    fn poll_for<P: Platform>(
        &self,
        caller: Caller,
        context: &QueueContext<'_, P>,
        ticket: FlushTicket,
    ) -> Result<bool, UnitError> {
        self.admit(context.unit, caller)?;
        let mut needed = ticket.sequence;
        if Fault::ReuseStatusWord.is_on() {
            needed = 1;
        }
        if self.completed(context)? >= needed {
            // Once more after the look at the word, which is an acquire load: a reset drops waits and
            // moves the word past their sequences with the first of its two flushes. Who is admitted
            // here read the word before the unit was wedged, or comes after both flushes.
            self.admit(context.unit, caller)?;
            return Ok(true);
        }
        self.check_errors(context)?;
        Ok(false)
    }

    /// The last sequence whose wait has completed.
    fn completed<P: Platform>(&self, context: &QueueContext<'_, P>) -> Result<u64, UnitError> {
        // ORDERING: Acquire, pairs with the Release in `put`; near the status word in sequence,
        // which is all that telling its upper half takes.
        let near = self.submitted.load(Ordering::Acquire);
        // SAFETY: the word lies in the frame `status`, which this queue owns and never gives back;
        // a frame's address is a multiple of 4.
        let word = unsafe { context.platform.read_u32(self.status.range().start()) };
        // At most `ENTRIES` waits are in flight, so the low halves of the two are close: signed.
        let distance = word.wrapping_sub(near as u32).cast_signed();
        let completed = near.wrapping_add_signed(distance.into());
        if completed > near {
            // ORDERING: Acquire, pairs with the Release in `put`: the unit can complete only what
            // was submitted before, so this load finds at least that.
            let submitted = self.submitted.load(Ordering::Acquire);
            if completed > submitted {
                self.wedge();
                return Err(UnitError::Hardware {
                    unit: context.unit,
                    what: "a completion of a wait that was never submitted",
                    expected: submitted,
                    found: word.into(),
                });
            }
        }
        Ok(completed)
    }

    /// Looks for errors of the queue. A refused descriptor is a mistake of this crate and a lost
    /// answer leaves caches unflushed, so the unit is wedged rather than coaxed on.
    fn check_errors<P: Platform>(&self, context: &QueueContext<'_, P>) -> Result<(), UnitError> {
        let found = context.regs.read32(registers::FSTS);
        // All ones also when the unit is gone.
        if found & registers::FSTS_QUEUE_ERRORS == 0 {
            return Ok(());
        }
        self.wedge();
        let head = context.regs.read64(registers::IQH);
        let record = context.regs.read64(registers::IQERCD);
        error!(
            "VT-d {}: invalidation queue stopped: FSTS {found:#x}, IQH {head:#x}, IQERCD {record:#x}",
            context.unit
        );
        Err(UnitError::Hardware {
            unit: context.unit,
            what: "an invalidation queue error (FSTS)",
            expected: (found & !registers::FSTS_QUEUE_ERRORS).into(),
            found: found.into(),
        })
    }

    /// Plays a queue that has been at it for long.
    #[cfg(test)]
    pub(crate) fn skip_to(&self, sequence: u64) {
        // ORDERING: Relaxed, a test on one thread.
        self.submitted.store(sequence, Ordering::Relaxed);
    }

    /// Plays another context that keeps the queue locked while `job` runs.
    #[cfg(test)]
    pub(crate) fn while_held<R>(&self, job: impl FnOnce() -> R) -> R {
        let _held = self.producer.lock();
        job()
    }

    /// Takes the ring from everybody else, and starts it anew, for a unit that is wedged and whose
    /// queue the caller turns off and on again.
    ///
    /// Sequences go on. At most [`ENTRIES`] waits are lost with the old ring, and two with each reset
    /// that fails; none of them is given again, and each is older than any that comes. So one that
    /// completes late can move the status word only to a sequence below all new ones, and one that is
    /// near enough for its upper half to be told.
    pub(crate) fn restart<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<(), UnitError> {
        let start = context.platform.now();
        let deadline = start.after(SUBMIT_DEADLINE);
        loop {
            let now = context.platform.now();
            if let Some(mut producer) = self.producer.try_lock() {
                producer.tail = RingIndex::START;
                producer.head = RingIndex::START;
                return Ok(());
            }
            if now > deadline {
                return Err(UnitError::Busy {
                    unit: context.unit,
                    waited: now.since(start),
                });
            }
            spin_hint();
        }
    }

    /// From now on requests are taken again. The unit has forgotten all that any request of before
    /// asked it to forget, so what those stand for is done.
    pub(crate) fn revive(&self) {
        // ORDERING: Release pairs with `check_alive`: whoever is admitted again comes after the
        // completed flushes of the reset.
        self.wedged.store(false, Ordering::Release);
    }

    /// Submits and waits for completion: for bring-up, when nothing else can be done meanwhile.
    pub(crate) fn submit_and_wait<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
        what: &'static str,
    ) -> Result<(), UnitError> {
        self.submit_and_wait_for(Caller::Anyone, context, batch, what)
    }

    /// As [`submit_and_wait`](Self::submit_and_wait), for the reset of a wedged unit.
    pub(crate) fn submit_and_wait_wedged<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
        what: &'static str,
    ) -> Result<(), UnitError> {
        self.submit_and_wait_for(Caller::Reset, context, batch, what)
    }

    fn submit_and_wait_for<P: Platform>(
        &self,
        caller: Caller,
        context: &QueueContext<'_, P>,
        batch: &[Descriptor],
        what: &'static str,
    ) -> Result<(), UnitError> {
        let ticket = self.submit_for(caller, context, batch)?;
        let start = context.platform.now();
        let deadline = start.after(SUBMIT_DEADLINE);
        while !self.poll_for(caller, context, ticket)? {
            let now = context.platform.now();
            if now > deadline {
                self.wedge();
                return Err(UnitError::Timeout {
                    unit: context.unit,
                    what,
                    waited: now.since(start),
                });
            }
            spin_hint();
        }
        Ok(())
    }
}
