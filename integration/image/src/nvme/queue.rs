//! A submission queue and its completion queue.

use hv_core::platform::{Clock, Mmio};
use zerocopy::IntoBytes;

use core::time::Duration;

use super::dma::DmaBuffer;
use super::error::{NvmeError, Wait};
use super::spec::{
    COMMAND_BYTES, COMPLETION_BYTES, COMPLETION_LAST_WORD, COMPLETION_PHASE, CSTS, CSTS_FATAL,
    Command, DOORBELLS, GONE, Status,
};

/// Entries of each queue: one page of submissions.
pub(super) const ENTRIES: u16 = 64;
/// Bytes of each queue's buffer.
pub(super) const QUEUE_BYTES: usize = ENTRIES as usize * COMMAND_BYTES;

/// How often the controller's status is looked at while a command is out: a failed controller ends none.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A pair of queues with one command out at most.
///
/// # Invariants
/// `tail` and `head` are below [`ENTRIES`]. `phase` is the phase bit that the next completion at
/// `head` will carry.
pub(super) struct QueuePair<B> {
    submissions: B,
    completions: B,
    submission_doorbell: u32,
    completion_doorbell: u32,
    tail: u16,
    head: u16,
    phase: bool,
    next_id: u16,
    /// A command ran into its deadline, or the controller failed meanwhile: it may still complete.
    stuck: bool,
}

impl<B: DmaBuffer> QueuePair<B> {
    /// Queue pair number `index` (0 for admin) on two buffers.
    pub(super) fn new(
        index: u16,
        doorbell_stride: u32,
        [submissions, completions]: [B; 2],
    ) -> Self {
        let first = DOORBELLS + 2 * u32::from(index) * doorbell_stride;
        // INVARIANT: empty queues; the device's first pass writes phase one.
        Self {
            submissions,
            completions,
            submission_doorbell: first,
            completion_doorbell: first + doorbell_stride,
            tail: 0,
            head: 0,
            phase: true,
            next_id: 0,
            stuck: false,
        }
    }

    /// Clears the buffers: a stale phase bit would pass for a completion.
    pub(super) fn clear(&self) -> Result<(), NvmeError> {
        self.submissions.write(0, &[0; QUEUE_BYTES])?;
        self.completions
            .write(0, &[0; ENTRIES as usize * COMPLETION_BYTES])?;
        Ok(())
    }

    /// The buffer of the submission queue.
    pub(super) fn submissions(&self) -> &B {
        &self.submissions
    }

    /// The buffer of the completion queue.
    pub(super) fn completions(&self) -> &B {
        &self.completions
    }

    /// Both buffers, for a controller that was stopped.
    pub(super) fn into_buffers(self) -> [B; 2] {
        [self.submissions, self.completions]
    }

    /// Gives a command to the device and waits for its end.
    pub(super) fn execute(
        &mut self,
        registers: &impl Mmio,
        clock: &impl Clock,
        limit: Duration,
        what: Wait,
        mut command: Command,
    ) -> Result<Status, NvmeError> {
        if self.stuck {
            return Err(NvmeError::Stuck);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        command.id = id.into();
        let at = usize::from(self.tail) * COMMAND_BYTES;
        self.submissions.write(at, command.as_bytes())?;
        self.tail = (self.tail + 1) % ENTRIES;
        registers.write32(self.submission_doorbell, self.tail.into());

        let word = self.wait(registers, clock, limit, what)?;
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        registers.write32(self.completion_doorbell, self.head.into());
        let [low, high, ..] = word.to_le_bytes();
        let found = u16::from_le_bytes([low, high]);
        if found != id {
            self.stuck = true;
            return Err(NvmeError::WrongCompletion {
                expected: id,
                found,
            });
        }
        Ok(Status::from_word(word))
    }

    /// Polls for the next completion and gives its last word.
    fn wait(
        &mut self,
        registers: &impl Mmio,
        clock: &impl Clock,
        limit: Duration,
        what: Wait,
    ) -> Result<u32, NvmeError> {
        let at = usize::from(self.head) * COMPLETION_BYTES + COMPLETION_LAST_WORD;
        let begin = clock.now();
        let end = begin.after(limit);
        let mut look = begin.after(LOOK_EVERY);
        loop {
            // The time is taken first: a completion that is there at the last moment still counts.
            let now = clock.now();
            let late = now > end;
            let word = self.completions.read_u32(at)?;
            if (word & COMPLETION_PHASE != 0) == self.phase {
                return Ok(word);
            }
            if late || now > look {
                look = now.after(LOOK_EVERY);
                let error = match registers.read32(CSTS) {
                    GONE => Some(NvmeError::Gone),
                    csts if csts & CSTS_FATAL != 0 => Some(NvmeError::Fatal { what, csts }),
                    csts => late.then_some(NvmeError::Timeout { what, limit, csts }),
                };
                if let Some(error) = error {
                    self.stuck = true;
                    return Err(error);
                }
            }
            core::hint::spin_loop();
        }
    }
}
