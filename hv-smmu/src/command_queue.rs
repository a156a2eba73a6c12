//! The command queue of one unit: the ring and its registers. Submitters meet in [`hv_iommu::queue`].
//!
//! A CMD_SYNC has completed once the unit's index is past it, which it is only when all commands before it have had
//! their effect. That an ordinary command was read says nothing, and neither does the event that some units send then: it
//! ends a pause between two looks.

use core::time::Duration;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageSize};
use hv_iommu::queue::{
    Alive, Alone, Anew, CommandQueue, Completion, Ends, Going, Place, QueuePort, QueueShape,
    Refused,
};
use hv_iommu::{CommandCode, FlushTicket, UnitError, UnitIndex};
use log::error;

use crate::StreamId;
use crate::device_tlbs::DeviceTlbs;
use crate::error::BringUpError;
use crate::frames::Reach;
use crate::spec::command::{Command, SyncSignal, WORDS};
use crate::spec::queue::{
    COMMAND_BYTES, CommandError, QUEUE_ADDRESS_SHIFT, QueueBase, QueuePointer, QueueSize,
};
use crate::spec::quirks::{Quirk, Quirks};
use crate::spec::registers::{self, Gerror};
use crate::unit::{Behind, Regs, Telling};

/// Log2 of the entries: one page. A flush takes two, a binding four.
const LOG2: u8 = 8;

/// How long a submitter waits for room or for another CPU. A unit empties the queue in microseconds, but for syncs behind what
/// devices were told to forget.
pub(crate) const SUBMIT_DEADLINE: Duration = Duration::from_secs(1);

/// How long one waits while devices keep translations, for the first answer that is missing and for each further one:
/// PCI Express gives them 60 to 90 seconds to complete an invalidation (Base Specification 6.0, 10.3.1), and then the unit
/// says that one did not.
pub(crate) const DEVICE_DEADLINE: Duration = Duration::from_secs(200);

/// Commands that one submission may have.
pub(crate) const BATCH_MAX: usize = 64;

/// What a queue operation works with.
pub(crate) struct QueueContext<'a, P: Platform> {
    pub(crate) platform: &'a P,
    pub(crate) regs: &'a Regs<P::Block>,
    pub(crate) unit: UnitIndex,
    /// Whether the unit snoops the CPU's caches when it reads commands.
    pub(crate) coherent: bool,
    /// How the unit tells of completed syncs.
    pub(crate) telling: Telling,
    /// The devices that it waits for as well; `None` before it translates.
    pub(crate) behind: Option<Behind<'a>>,
}

/// A command queue.
///
/// # Invariants
/// `ring` is aligned to its size, used for nothing else, and never given back: the unit may read it for as long as it
/// runs.
pub(crate) struct Commands {
    ring: FrameRun<Hypervisor>,
    size: QueueSize,
    queue: CommandQueue,
}

/// A queue for the time of a call.
struct Port<'a, P: Platform> {
    commands: &'a Commands,
    context: &'a QueueContext<'a, P>,
}

impl Commands {
    /// A queue for a unit that takes 2^`most` entries, with both indices at zero.
    pub(crate) fn new<P: Platform>(
        reach: &Reach<'_, P>,
        most: u8,
        quirks: Quirks,
    ) -> Result<Self, BringUpError> {
        let refused = BringUpError::Unit(UnitError::Hardware {
            unit: reach.unit,
            what: "a command queue of too few entries (IDR1.CMDQS), log2",
            expected: 1,
            found: most.into(),
        });
        let size = QueueSize::new(most.min(LOG2)).ok_or(refused)?;
        let shape = QueueShape::new(size.log2(), Ends::WrapBit, SUBMIT_DEADLINE).ok_or(refused)?;
        let shape = match quirks.has(Quirk::SyncEveryBatch) {
            true => shape.with_sync_each(),
            false => shape,
        };
        let ring = reach.aligned_run(u64::from(size.entries()) * COMMAND_BYTES)?;
        reach.publish(ring.range().start(), ring.range().pages().bytes());
        // INVARIANT: the run is new.
        Ok(Self {
            ring,
            size,
            queue: CommandQueue::new(shape)?,
        })
    }

    /// What the unit's register says of the ring.
    pub(crate) fn base(&self) -> QueueBase {
        QueueBase::new()
            .with_address(self.ring.range().start().as_u64() >> QUEUE_ADDRESS_SHIFT)
            .with_log2size(self.size.log2())
            .with_allocate(true)
    }

    /// How many commands the queue takes at once, beside their sync.
    pub(crate) fn batch_most(&self) -> usize {
        let longest = self.queue.shape().longest();
        usize::try_from(longest).unwrap_or(BATCH_MAX).min(BATCH_MAX)
    }

    /// See [`CommandQueue::mending_steps`].
    pub(crate) fn mending_steps(&self) -> u64 {
        self.queue.mending_steps()
    }

    /// The words of a place of the ring.
    fn entry<'a, P: Platform>(
        &'a self,
        context: &QueueContext<'a, P>,
        index: usize,
    ) -> Result<&'a [P::Cell; WORDS], UnitError> {
        let QueueContext { platform, unit, .. } = *context;
        let per_page = PageSize::Size4K.bytes() / COMMAND_BYTES;
        let (page, place) = (index as u64 / per_page, index as u64 % per_page);
        let cells = self.ring.cells(platform, page).unwrap_or_default();
        let word = usize::try_from(place)
            .unwrap_or(usize::MAX)
            .saturating_mul(WORDS);
        let entry = cells.get(word..).and_then(|cells| cells.first_chunk());
        entry.ok_or(UnitError::Hardware {
            unit,
            what: "a queue page that is too short, in words",
            expected: (word + WORDS) as u64,
            found: cells.len() as u64,
        })
    }

    /// Whether a sync may wait for a device.
    pub(crate) fn waits_for(&self, devices: &DeviceTlbs) -> bool {
        !devices.is_empty() || !self.queue.has_read(devices.last_to_answer())
    }

    /// From now on every request is refused.
    pub(crate) fn wedge(&self) {
        self.queue.wedge();
    }

    /// See [`CommandQueue::alive`].
    pub(crate) fn alive(&self) -> Option<Alive> {
        self.queue.alive()
    }

    /// See [`CommandQueue::wedge_as_seen`].
    pub(crate) fn wedge_as_seen(&self, seen: Alive) -> bool {
        self.queue.wedge_as_seen(seen)
    }

    /// Refuses if the unit is wedged.
    pub(crate) fn check_alive(&self, unit: UnitIndex) -> Result<(), UnitError> {
        self.queue.check_alive(unit)
    }

    fn port<'a, P: Platform>(&'a self, context: &'a QueueContext<'a, P>) -> Port<'a, P> {
        Port {
            commands: self,
            context,
        }
    }

    /// Hands up to [`BATCH_MAX`] commands to the unit, with a sync behind them. Those between two syncs are done in any
    /// order. What is longer than the queue goes in pieces, each with a sync behind it: more order than was asked for. So does
    /// what is of different kinds, on a unit that needs a sync between those.
    ///
    /// Every store to tables that happened before is visible to the unit when it reads them.
    pub(crate) fn submit<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Command],
    ) -> Result<FlushTicket, UnitError> {
        let port = self.port(context);
        self.in_pieces(batch, |piece| self.queue.submit(&port, piece))
    }

    /// As [`submit`](Self::submit), for what follows an entry that was taken down.
    pub(crate) fn submit_patiently<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Command],
    ) -> Result<FlushTicket, UnitError> {
        let port = self.port(context);
        self.in_pieces(batch, |piece| self.queue.submit_patiently(&port, piece))
    }

    /// What goes at once of a batch, and the rest: of an empty one nothing, with a sync behind it.
    fn first_piece<'b>(&self, batch: &'b [Command]) -> (&'b [Command], &'b [Command]) {
        let mut most = batch.len().min(self.batch_most().max(1));
        if self.queue.shape().has_sync_each() && !Fault::MixKinds.is_on() {
            let mixes = |pair: &[Command]| match pair {
                [one, next] => one.code() != next.code() && !one.is_sync() && !next.is_sync(),
                _ => false,
            };
            let of_a_kind = batch.windows(2).position(mixes);
            most = of_a_kind.map_or(most, |last| most.min(last + 1));
        }
        batch.split_at_checked(most).unwrap_or((batch, &[]))
    }

    /// Hands pieces that fit the queue to `submit`, in order. The ticket is for all of them.
    fn in_pieces(
        &self,
        batch: &[Command],
        submit: impl Fn(&[Command]) -> Result<FlushTicket, UnitError>,
    ) -> Result<FlushTicket, UnitError> {
        let (mut rest, mut earlier) = (batch, None);
        loop {
            let (piece, behind) = self.first_piece(rest);
            let ticket = submit(piece)?;
            let ticket = earlier.map_or(ticket, |earlier| ticket.and(earlier));
            if behind.is_empty() {
                return Ok(ticket);
            }
            (rest, earlier) = (behind, Some(ticket));
        }
    }

    /// Whether the sync with `ticket` has completed, or a reset has done all that it stood for.
    pub(crate) fn poll<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        ticket: FlushTicket,
    ) -> Result<bool, UnitError> {
        self.queue.poll(&self.port(context), ticket)
    }

    /// Submits and waits for completion.
    pub(crate) fn submit_and_wait<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
        batch: &[Command],
        what: &'static str,
    ) -> Result<(), UnitError> {
        let port = self.port(context);
        let (mut piece, mut rest) = self.first_piece(batch);
        loop {
            self.queue.submit_and_wait(&port, piece, what)?;
            if rest.is_empty() {
                return Ok(());
            }
            (piece, rest) = self.first_piece(rest);
        }
    }

    /// See [`CommandQueue::repair`].
    pub(crate) fn repair<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<bool, UnitError> {
        self.queue.repair(&self.port(context))
    }

    /// See [`CommandQueue::refusals`].
    pub(crate) fn refusals(&self) -> (u64, u64) {
        self.queue.refusals()
    }

    /// Takes the ring of a wedged unit from everybody else and starts it anew.
    pub(crate) fn restart<P: Platform>(
        &self,
        context: &QueueContext<'_, P>,
    ) -> Result<Anew<'_>, UnitError> {
        self.queue.restart(&self.port(context))
    }

    /// As [`submit_and_wait`](Self::submit_and_wait), for the reset of a wedged unit.
    pub(crate) fn submit_anew<P: Platform>(
        &self,
        anew: &Anew<'_>,
        context: &QueueContext<'_, P>,
        batch: &[Command],
        what: &'static str,
    ) -> Result<(), UnitError> {
        anew.submit_and_wait(&self.port(context), batch, what)
    }
}

impl<P: Platform> Port<'_, P> {
    /// The command, or a sync in the place of one for a device that was struck out since it was made: its submitter may have
    /// waited for the very mending that gave the device up, which nobody should wait for once more.
    ///
    /// What closes an entry stands in the queue when its stream is struck out, and hardware was told of it. So all that was
    /// reserved in front of it had been published by then, and this place is behind it.
    fn unless_gone(&self, command: Command) -> Command {
        let [word0, _] = command.words();
        let (stream, behind) = (Command::device(word0), &self.context.behind);
        match (stream, behind) {
            (Some(stream), Some(behind))
                if !behind.devices.has(stream) && !Fault::MendAsksAll.is_on() =>
            {
                Command::sync(SyncSignal::None)
            }
            _ => command,
        }
    }
}

impl<P: Platform> Port<'_, P> {
    /// What stands at a place, which hardware was told of.
    fn command_at(&self, index: usize) -> Result<Command, UnitError> {
        let entry = self.commands.entry(self.context, index)?;
        // ORDERING: Relaxed: the caller has seen it published.
        let words = entry.each_ref().map(|word| word.load(Ordering::Relaxed));
        Ok(Command::read_back(words))
    }

    /// The streams whose devices were asked between the sync at which the unit stood and the one before. The one before was
    /// complete, so who did not answer is one of them (IHI 0070, 3.9.1.4). None, where others have filled their places.
    fn unanswered(&self, alone: &Alone<'_, '_, Self>) -> ArrayVec<StreamId, BATCH_MAX> {
        let mut asked = ArrayVec::new();
        for index in alone.in_front() {
            match self.command_at(index) {
                Ok(command) if !command.is_sync() => {
                    let [word0, _] = command.words();
                    if let Some(stream) = Command::device(word0)
                        && !asked.contains(&stream)
                        && asked.try_push(stream).is_err()
                    {
                        break;
                    }
                }
                _ => return asked,
            }
        }
        // The sync before is not there any more: nor may be others.
        ArrayVec::new()
    }
}

impl<P: Platform> QueuePort for Port<'_, P> {
    type Entry = Command;
    type Clock = P;

    // Where commands have to be done in order, the batch has a sync between them.
    const FENCED: bool = false;

    fn clock(&self) -> &P {
        self.context.platform
    }

    fn unit(&self) -> UnitIndex {
        self.context.unit
    }

    fn put(&self, index: usize, command: Command) -> Result<(), UnitError> {
        let entry = self.commands.entry(self.context, index)?;
        let command = self.unless_gone(command);
        for (cell, value) in entry.iter().zip(command.words()) {
            // ORDERING: Relaxed, published by the turn word, and by the fence before the doorbell; the unit does not
            // look here until then. Likewise what is spared, by the fence before the unit goes on.
            cell.store(value, Ordering::Relaxed);
        }
        let at = self.commands.ring.range().start();
        if let Some(at) = at.checked_add(index as u64 * COMMAND_BYTES)
            && !self.context.coherent
            && !Fault::SkipCommandWriteBack.is_on()
        {
            self.context.platform.write_back(at, COMMAND_BYTES);
        }
        Ok(())
    }

    fn sync(&self, _ticket: FlushTicket) -> Command {
        Command::sync(self.context.telling.signal())
    }

    fn pause(&self) {
        self.context.telling.pause(self.context.platform);
    }

    fn ring(&self, tail: Place) {
        // Entries and tables, of this CPU and of those whose turns it saw, before the unit looks.
        self.context.platform.walker_fence();
        let size = self.commands.size;
        let wraps = tail.wrap() && !Fault::DropWrapBit.is_on();
        let wrap = if wraps { size.entries() } else { 0 };
        let pointer = tail.index() as u32 | wrap;
        self.context.regs.write32(registers::CMDQ_PROD, pointer);
    }

    fn head(&self) -> Result<Place, UnitError> {
        let found = self.context.regs.read32(registers::CMDQ_CONS);
        if found == u32::MAX {
            return Err(UnitError::Hardware {
                unit: self.context.unit,
                what: "a command index that reads as all ones (CMDQ_CONS): the unit is gone; at most",
                expected: (2 * u64::from(self.commands.size.entries())) - 1,
                found: found.into(),
            });
        }
        // Bits above the wrap bit are an error code that stays, or reserved.
        let size = self.commands.size;
        let mut position = size.position(QueuePointer::from_bits(found));
        if Fault::SyncByConsumption.is_on() {
            let tail = self.context.regs.read32(registers::CMDQ_PROD);
            let tail = size.position(QueuePointer::from_bits(tail));
            let next = (position + 1) % (2 * size.entries());
            if next == tail {
                // Only the last sync is left.
                position = next;
            }
        }
        let index = (position % size.entries()) as usize;
        Ok(Place::new(index, position >= size.entries()))
    }

    fn completion(&self) -> Completion {
        Completion::Head
    }

    fn deadline(&self, shape: QueueShape) -> Duration {
        let behind = self.context.behind.as_ref();
        match behind.is_some_and(|behind| self.commands.waits_for(behind.devices)) {
            true => DEVICE_DEADLINE,
            false => shape.deadline(),
        }
    }

    /// One that could not be read leaves caches as they were, and says that memory is no more what it was: the unit is wedged
    /// rather than coaxed on. A command that was called illegal has had no effect, nor had any behind it, and each is fetched
    /// anew once the error is acknowledged (IHI 0070, 4.1.3 and 7.1): that is left to who repairs. A device that did not answer is another's mistake: the sync goes on past
    /// the error once that is acknowledged, and would count as complete (IHI 0070, 3.9.1.4 and 7.1), so that is left to who
    /// mends.
    fn check(&self) -> Result<Going, UnitError> {
        let QueueContext { regs, unit, .. } = *self.context;
        let words = || [registers::GERROR, registers::GERRORN].map(|word| regs.read32(word));
        let before @ [now, seen] = words();
        let errors = Gerror::from_bits(now).active(Gerror::from_bits(seen));
        if !errors.cmdq_err() && !errors.sfm_err() {
            return Ok(Going::On);
        }
        let cons = QueuePointer::from_bits(regs.read32(registers::CMDQ_CONS));
        if !errors.sfm_err() {
            // The code means nothing unless the error is active (IHI 0070, 6.3.28), and who mends may have acknowledged
            // it meanwhile. Looked at again, then.
            match cons.command_error() {
                _ if words() != before => return Ok(Going::On),
                CommandError::AtcTimeout => return Ok(Going::Unanswered),
                CommandError::Illegal => return Ok(Going::Refused),
                _ => {}
            }
        }
        error!(
            "SMMUv3 {unit}: the command queue stopped: {errors:?}, {:?} at {:#x}",
            cons.command_error(),
            cons.into_bits()
        );
        Err(UnitError::Hardware {
            unit,
            what: "a global error (GERROR)",
            expected: 0,
            found: errors.into_bits().into(),
        })
    }

    /// A sync comes in the place of an ATC_INV. While the error is active, software may change the command at which the unit
    /// stopped and those behind it: they have had no effect, what was fetched of them is discarded, and they are fetched
    /// anew once it is acknowledged (IHI 0070, 7.1). A sync is what each unit takes at any place, asks for nothing
    /// (ComplSignal SIG_NONE; 4.7.3), and is no hint that parts stumble over, as PREFETCH is.
    fn spare(&self, index: usize) -> Result<(), UnitError> {
        let [word0, _] = self.command_at(index)?.words();
        match Command::device(word0) {
            Some(_) => self.put(index, Command::sync(SyncSignal::None)),
            None => Ok(()),
        }
    }

    fn refused(&self, index: usize) -> Result<Refused<Command>, UnitError> {
        let entry = self.command_at(index)?;
        Ok(Refused {
            entry,
            code: CommandCode(entry.code()),
            is_waited_for: entry.is_looked_after(),
        })
    }

    fn resume(&self) {
        let QueueContext { platform, regs, .. } = *self.context;
        // What this CPU has stored, before the unit goes on.
        platform.walker_fence();
        regs.acknowledge(Gerror::new().with_cmdq_err(true));
    }

    fn settle(&self, alone: &Alone<'_, '_, Self>) -> Result<(), UnitError> {
        let QueueContext { platform, unit, .. } = *self.context;
        let ask = |batch: &[Command], what| alone.ask(batch, what);
        match &self.context.behind {
            Some(behind) => behind.settle(platform, unit, &self.unanswered(alone), ask),
            // At bring-up nobody was told to forget anything, but by whoever had the unit before: what is consumed goes on
            // when the queue is turned off (IHI 0070, 6.3.9.3). Every stream aborts, so nothing depends on the answer.
            None => Ok(()),
        }
    }
}
