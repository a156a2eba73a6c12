//! The driver: starting a controller, reading and writing blocks, stopping it.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use hv_core::platform::{Clock, Mmio};
use hv_core::{Iova, OutOfBounds, PageSize};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::dma::{DmaBuffer, DmaMemory};
use super::error::{NvmeError, Wait};
use super::identify::{Answer, ControllerInfo, Namespace};
use super::queue::{ENTRIES, QUEUE_BYTES, QueuePair};
use super::spec::{
    ACQ, ADMIN_CREATE_COMPLETION_QUEUE, ADMIN_CREATE_SUBMISSION_QUEUE, ADMIN_IDENTIFY,
    ADMIN_SET_FEATURES, AQA, ASQ, CAP, CC, CC_ENABLE, CC_RUN, CSTS, CSTS_FATAL, CSTS_READY,
    Capabilities, Command, FEATURE_QUEUES, GONE, IDENTIFY_BYTES, IDENTIFY_CONTROLLER,
    IDENTIFY_NAMESPACE, IO_READ, IO_WRITE, QUEUE_CONTIGUOUS, Status, VS,
};

/// Memory page of the controller.
const PAGE: usize = PageSize::Size4K.bytes() as usize;
/// Page addresses that fit into the one page of the PRP list.
const LIST_ENTRIES: usize = PAGE / size_of::<U64>();
/// Most bytes that one list page can describe when the transfer starts on a page boundary.
const LIST_BYTES: usize = LIST_ENTRIES * PAGE;
/// The I/O queue pair.
const IO_QUEUE: u16 = 1;
/// The only namespace that is used.
const NAMESPACE: u32 = 1;
/// Unit of the controller's own limit for starting and stopping.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);

/// The number of a block of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lba(pub u64);

/// Which way data goes.
#[derive(Clone, Copy)]
enum Direction {
    /// From the disk: the device writes memory.
    Read,
    /// To the disk: the device reads memory.
    Write,
}

impl Direction {
    fn opcode(self) -> u8 {
        match self {
            Self::Read => IO_READ,
            Self::Write => IO_WRITE,
        }
    }
}

/// What a controller is driven with: its registers and the buffers of its queues.
pub struct Parts<R, B> {
    registers: R,
    admin: [B; 2],
    io: [B; 2],
    list: B,
}

impl<R, B: DmaBuffer> Parts<R, B> {
    /// Allocates the buffers: five pages.
    ///
    /// # Errors
    /// The memory's own error. Buffers that it gave before are dropped.
    pub fn alloc<M: DmaMemory<Buffer = B>>(registers: R, memory: &mut M) -> Result<Self, M::Error> {
        Ok(Self {
            registers,
            admin: [memory.alloc(QUEUE_BYTES)?, memory.alloc(QUEUE_BYTES)?],
            io: [memory.alloc(QUEUE_BYTES)?, memory.alloc(QUEUE_BYTES)?],
            list: memory.alloc(IDENTIFY_BYTES)?,
        })
    }

    /// The registers and the buffers, for taking them apart.
    pub fn into_inner(self) -> (R, [B; 5]) {
        let [a, b] = self.admin;
        let [c, d] = self.io;
        (self.registers, [a, b, c, d, self.list])
    }
}

/// A controller could not be started.
pub struct StartFailure<R, B> {
    /// Why.
    pub error: NvmeError,
    /// Whether it stopped again. If not, it may still use the buffers.
    pub stopped: Result<(), NvmeError>,
    /// What it was to be driven with.
    pub parts: Parts<R, B>,
}

impl<R, B> fmt::Debug for StartFailure<R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (stopped: {:?})", self.error, self.stopped)
    }
}

/// A controller could not be stopped: it may still use its buffers.
pub struct StopFailure<'c, R, B, C> {
    /// Why.
    pub error: NvmeError,
    /// The controller.
    pub controller: Controller<'c, R, B, C>,
}

impl<R, B, C> fmt::Debug for StopFailure<'_, R, B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

/// A running controller with one I/O queue pair.
///
/// `R` are its registers, `B` its buffers, `C` the clock of its deadlines. Dropping it leaves the
/// device running with its queues in memory; [`stop`](Self::stop) first.
pub struct Controller<'c, R, B, C> {
    registers: R,
    clock: &'c C,
    limit: Duration,
    admin: QueuePair<B>,
    io: QueuePair<B>,
    /// Takes identify data at the start, page addresses later.
    list: B,
    info: ControllerInfo,
    namespace: Namespace,
}

/// Stops the controller, whatever ran it before, so that it starts no transfers.
///
/// # Errors
/// [`NvmeError::Timeout`] when it does not stop within the time that it promises,
/// [`NvmeError::Gone`].
pub fn disable(registers: &impl Mmio, clock: &impl Clock) -> Result<(), NvmeError> {
    let configuration = registers.read32(CC);
    if configuration == GONE {
        return Err(NvmeError::Gone);
    }
    registers.write32(CC, configuration & !CC_ENABLE);
    wait_ready(registers, clock, false)
}

/// Waits until the ready bit is `ready`.
fn wait_ready(registers: &impl Mmio, clock: &impl Clock, ready: bool) -> Result<(), NvmeError> {
    let what = if ready { Wait::Ready } else { Wait::Stop };
    let units = Capabilities(registers.read64(CAP)).timeout_units().max(1);
    let limit = TIMEOUT_UNIT * u32::from(units);
    let end = clock.now().after(limit);
    loop {
        let late = clock.now() > end;
        let csts = registers.read32(CSTS);
        if csts == GONE {
            return Err(NvmeError::Gone);
        }
        if (csts & CSTS_READY != 0) == ready {
            return Ok(());
        }
        // A failed controller still stops.
        if ready && csts & CSTS_FATAL != 0 {
            return Err(NvmeError::Fatal { what, csts });
        }
        if late {
            return Err(NvmeError::Timeout { what, limit, csts });
        }
        core::hint::spin_loop();
    }
}

impl<'c, R: Mmio, B: DmaBuffer, C: Clock> Controller<'c, R, B, C> {
    /// Resets the controller, sets its queues up and asks who it is.
    ///
    /// The device must be able to reach the buffers: bus mastering is on, and the domain it is
    /// attached to maps them. `limit` bounds the wait for each command.
    ///
    /// # Errors
    /// [`StartFailure`] when the controller cannot do what the driver needs, or does not do it in
    /// time.
    pub fn start(
        parts: Parts<R, B>,
        clock: &'c C,
        limit: Duration,
    ) -> Result<Self, StartFailure<R, B>> {
        let capabilities = Capabilities(parts.registers.read64(CAP));
        let stride = capabilities.doorbell_stride();
        let mut controller = Self {
            admin: QueuePair::new(0, stride, parts.admin),
            io: QueuePair::new(IO_QUEUE, stride, parts.io),
            registers: parts.registers,
            clock,
            limit,
            list: parts.list,
            info: ControllerInfo::default(),
            namespace: Namespace::default(),
        };
        match controller.set_up(capabilities) {
            Ok(()) => Ok(controller),
            Err(error) => Err(StartFailure {
                error,
                stopped: disable(&controller.registers, clock),
                parts: controller.into_parts(),
            }),
        }
    }

    fn into_parts(self) -> Parts<R, B> {
        Parts {
            registers: self.registers,
            admin: self.admin.into_buffers(),
            io: self.io.into_buffers(),
            list: self.list,
        }
    }

    fn set_up(&mut self, capabilities: Capabilities) -> Result<(), NvmeError> {
        disable(&self.registers, self.clock)?;
        check(capabilities)?;
        self.admin.clear()?;
        self.io.clear()?;
        let entries = u32::from(ENTRIES - 1);
        self.registers.write32(AQA, entries << 16 | entries);
        self.registers
            .write64(ASQ, self.admin.submissions().iova().as_u64());
        self.registers
            .write64(ACQ, self.admin.completions().iova().as_u64());
        self.registers.write32(CC, CC_RUN);
        wait_ready(&self.registers, self.clock, true)?;

        let answer = self.identify(IDENTIFY_CONTROLLER, 0)?;
        self.info = answer.controller(capabilities.min_page_shift(), LIST_BYTES);
        self.namespace = self.identify(IDENTIFY_NAMESPACE, NAMESPACE)?.namespace()?;
        // One queue of each kind: zero, as counts are stored minus one.
        self.admin_command(Command {
            opcode: ADMIN_SET_FEATURES,
            dwords: dwords([FEATURE_QUEUES, 0, 0]),
            ..Command::default()
        })?;
        let size_and_number = u32::from(ENTRIES - 1) << 16 | u32::from(IO_QUEUE);
        self.admin_command(Command {
            opcode: ADMIN_CREATE_COMPLETION_QUEUE,
            prp1: self.io.completions().iova().as_u64().into(),
            dwords: dwords([size_and_number, QUEUE_CONTIGUOUS, 0]),
            ..Command::default()
        })?;
        let completes_to = u32::from(IO_QUEUE) << 16;
        self.admin_command(Command {
            opcode: ADMIN_CREATE_SUBMISSION_QUEUE,
            prp1: self.io.submissions().iova().as_u64().into(),
            dwords: dwords([size_and_number, completes_to | QUEUE_CONTIGUOUS, 0]),
            ..Command::default()
        })
    }

    fn identify(&mut self, what: u32, namespace: u32) -> Result<Answer, NvmeError> {
        self.admin_command(Command {
            opcode: ADMIN_IDENTIFY,
            namespace: namespace.into(),
            prp1: self.list.iova().as_u64().into(),
            dwords: dwords([what, 0, 0]),
            ..Command::default()
        })?;
        Answer::read(&self.list)
    }

    fn admin_command(&mut self, command: Command) -> Result<(), NvmeError> {
        let what = Wait::Admin(command.opcode);
        let status = self
            .admin
            .execute(&self.registers, self.clock, self.limit, what, command)?;
        succeeded(what, status)
    }

    /// Who the controller is, and how much one command moves.
    pub fn info(&self) -> &ControllerInfo {
        &self.info
    }

    /// The namespace.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// The version register: major (31:16), minor (15:8), tertiary (7:0).
    pub fn version(&self) -> u32 {
        self.registers.read32(VS)
    }

    /// Most blocks of one command.
    pub fn max_blocks(&self) -> u32 {
        let blocks = self.info.max_transfer_bytes as u64 / u64::from(self.namespace.block_bytes);
        // A command counts blocks in 16 bits, minus one.
        blocks.min(1 << 16) as u32
    }

    /// Changes the limit of each wait for a command.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Gives an identify command whose answer goes to `page`, an address of the caller's choice (a
    /// multiple of 4 KiB).
    ///
    /// # Errors
    /// [`NvmeError`] when the command does not end; how it ended is the value.
    pub fn identify_raw(&mut self, page: Iova) -> Result<Status, NvmeError> {
        let command = Command {
            opcode: ADMIN_IDENTIFY,
            prp1: page.as_u64().into(),
            dwords: dwords([IDENTIFY_CONTROLLER, 0, 0]),
            ..Command::default()
        };
        let what = Wait::Admin(ADMIN_IDENTIFY);
        self.admin
            .execute(&self.registers, self.clock, self.limit, what, command)
    }

    /// Reads `blocks` blocks from `lba` into `buffer` at `offset` (a multiple of 4 KiB).
    ///
    /// # Errors
    /// [`NvmeError`] for a range that does not fit, and for a command that fails or does not end.
    pub fn read(
        &mut self,
        lba: Lba,
        blocks: u32,
        buffer: &impl DmaBuffer,
        offset: usize,
    ) -> Result<(), NvmeError> {
        self.transfer(Direction::Read, lba, blocks, buffer, offset)
    }

    /// Writes `blocks` blocks from `lba` out of `buffer` at `offset` (a multiple of 4 KiB).
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write(
        &mut self,
        lba: Lba,
        blocks: u32,
        buffer: &impl DmaBuffer,
        offset: usize,
    ) -> Result<(), NvmeError> {
        self.transfer(Direction::Write, lba, blocks, buffer, offset)
    }

    /// Reads `blocks` blocks from `lba` into pages of the caller's choice, one address per page
    /// touched.
    ///
    /// The addresses go to the device as they are: whether it may reach them is what the caller
    /// wants to know. The first one may point into a page, the others should be multiples of 4
    /// KiB.
    ///
    /// # Errors
    /// [`NvmeError`] for a range or number of pages that does not fit, and for a command that does
    /// not end. How it ended is the value.
    pub fn read_raw(&mut self, lba: Lba, blocks: u32, pages: &[Iova]) -> Result<Status, NvmeError> {
        self.command(Direction::Read, lba, blocks, pages)
    }

    /// Writes `blocks` blocks from `lba` out of pages of the caller's choice, as
    /// [`read_raw`](Self::read_raw) does.
    ///
    /// # Errors
    /// As for [`read_raw`](Self::read_raw).
    pub fn write_raw(
        &mut self,
        lba: Lba,
        blocks: u32,
        pages: &[Iova],
    ) -> Result<Status, NvmeError> {
        self.command(Direction::Write, lba, blocks, pages)
    }

    fn transfer(
        &mut self,
        direction: Direction,
        lba: Lba,
        blocks: u32,
        buffer: &impl DmaBuffer,
        offset: usize,
    ) -> Result<(), NvmeError> {
        if !offset.is_multiple_of(PAGE) {
            return Err(NvmeError::Unaligned { offset });
        }
        let bytes = self.transfer_bytes(lba, blocks)?;
        let out_of_bounds = OutOfBounds {
            offset: offset as u64,
            bytes: bytes as u64,
            end: buffer.bytes() as u64,
        };
        OutOfBounds::check(offset as u64, bytes, buffer.bytes() as u64)?;
        let mut pages = Vec::new();
        for page in (offset..offset + bytes).step_by(PAGE) {
            let address = buffer.iova().checked_add(page as u64);
            pages.push(address.ok_or(out_of_bounds)?);
        }
        let status = self.command(direction, lba, blocks, &pages)?;
        succeeded(Wait::Io(direction.opcode()), status)
    }

    /// The bytes of a transfer, if one command can do it.
    fn transfer_bytes(&self, lba: Lba, blocks: u32) -> Result<usize, NvmeError> {
        let max_blocks = self.max_blocks();
        let capacity = self.namespace.blocks;
        let end = lba.0.checked_add(blocks.into());
        if blocks == 0 || blocks > max_blocks || end.is_none_or(|end| end > capacity) {
            return Err(NvmeError::BlockRange {
                lba: lba.0,
                blocks,
                max_blocks,
                capacity,
            });
        }
        // At most the transfer limit, which fits.
        Ok(blocks as usize * self.namespace.block_bytes as usize)
    }

    fn command(
        &mut self,
        direction: Direction,
        lba: Lba,
        blocks: u32,
        pages: &[Iova],
    ) -> Result<Status, NvmeError> {
        let bytes = self.transfer_bytes(lba, blocks)?;
        let into_page = pages.first().map_or(0, |page| page.as_u64() % PAGE as u64);
        let expected = (into_page as usize + bytes).div_ceil(PAGE);
        let wrong_count = NvmeError::PageCount {
            found: pages.len(),
            expected,
        };
        if pages.len() != expected || pages.len() > LIST_ENTRIES + 1 {
            return Err(wrong_count);
        }
        let (prp1, prp2) = match pages {
            [] => return Err(wrong_count),
            [only] => (*only, 0),
            [first, second] => (*first, second.as_u64()),
            [first, rest @ ..] => {
                let list: Vec<U64> = rest.iter().map(|page| page.as_u64().into()).collect();
                self.list.write(0, list.as_bytes())?;
                (*first, self.list.iova().as_u64())
            }
        };
        let [low, high] = [lba.0 as u32, (lba.0 >> 32) as u32];
        let command = Command {
            opcode: direction.opcode(),
            namespace: NAMESPACE.into(),
            prp1: prp1.as_u64().into(),
            prp2: prp2.into(),
            dwords: dwords([low, high, blocks - 1]),
            ..Command::default()
        };
        let what = Wait::Io(command.opcode);
        self.io
            .execute(&self.registers, self.clock, self.limit, what, command)
    }

    /// Stops the controller and gives back what drove it; the device uses none of the buffers any
    /// more.
    ///
    /// A controller that is stuck after a time-out can be stopped, and started again with the same
    /// parts.
    ///
    /// # Errors
    /// [`StopFailure`] with the controller when it does not stop: its buffers must not be reused
    /// then.
    #[expect(
        clippy::result_large_err,
        reason = "the controller comes back by value; stopping is rare"
    )]
    pub fn stop(self) -> Result<Parts<R, B>, StopFailure<'c, R, B, C>> {
        match disable(&self.registers, self.clock) {
            Ok(()) => Ok(self.into_parts()),
            Err(error) => Err(StopFailure {
                error,
                controller: self,
            }),
        }
    }
}

/// Command dwords 10 to 12; the others are zero in every command given here.
fn dwords([ten, eleven, twelve]: [u32; 3]) -> [zerocopy::little_endian::U32; 6] {
    [ten, eleven, twelve, 0, 0, 0].map(Into::into)
}

fn succeeded(command: Wait, status: Status) -> Result<(), NvmeError> {
    if status.is_success() {
        return Ok(());
    }
    Err(NvmeError::Command { command, status })
}

/// Whether the controller can do what the driver needs.
fn check(capabilities: Capabilities) -> Result<(), NvmeError> {
    let needs = [
        (
            "queue entries supported",
            capabilities.max_entries() >= ENTRIES.into(),
            u64::from(capabilities.max_entries()),
            u64::from(ENTRIES),
        ),
        (
            "log2 of the smallest memory page",
            capabilities.min_page_shift() == PageSize::Size4K.shift(),
            u64::from(capabilities.min_page_shift()),
            u64::from(PageSize::Size4K.shift()),
        ),
        (
            "NVM command set support",
            capabilities.nvm_command_set(),
            u64::from(capabilities.nvm_command_set()),
            1,
        ),
    ];
    match needs.into_iter().find(|(_, met, ..)| !met) {
        None => Ok(()),
        Some((what, _, found, expected)) => Err(NvmeError::Unsupported {
            what,
            found,
            expected,
        }),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
