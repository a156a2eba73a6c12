//! The doorbell: one CPU at a time rings it, for everything that is published.

use hv_core::fault::Fault;
use hv_core::sync::{Ordering, fence};

use super::CommandQueue;
use super::port::QueuePort;
use super::words::{Tail, Turn};
use crate::backend::FlushTicket;

/// The right to ring, and to place syncs. Given up by [`CommandQueue::let_go`].
#[must_use = "nobody rings until it is given up"]
pub(super) struct Bell {
    /// Up to where the doorbell was rung.
    pub(super) rung: u64,
}

impl CommandQueue {
    /// The bell, unless another CPU has it.
    pub(super) fn take_bell(&self) -> Option<Bell> {
        // ORDERING: Relaxed, only a guess for the CAS.
        let free = self.bell.0.load(Ordering::Relaxed) & !1;
        if Fault::BellIsFree.is_on() {
            return Some(Bell { rung: free >> 1 });
        }
        // ORDERING: Acquire pairs with the Release in `let_go`: the doorbell was rung by the one before, and this
        // CPU's write to the tail register comes after. Relaxed on failure, nothing is done.
        self.bell
            .0
            .compare_exchange(free, free | 1, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|free| Bell { rung: free >> 1 })
    }

    /// Gives the bell up, for others to ring from `bell.rung` on.
    pub(super) fn let_go(&self, bell: Bell) {
        // ORDERING: Release: what this CPU wrote to the tail register comes before what the next holder writes: it
        // is a write of the same CPU before this store, and device writes of two CPUs that a release and an
        // acquire order arrive in that order.
        self.bell.0.store(bell.rung << 1, Ordering::Release);
    }

    /// What is published at `position`.
    pub(super) fn published(&self, position: u64) -> Option<Turn> {
        let word = self.turns.get(self.shape.place(position).index())?;
        // ORDERING: Acquire pairs with the Release in `publish`: the entries are there.
        Turn::at(position, word.load(Ordering::Acquire))
    }

    /// Rings for everything that is published, unless another CPU is at it, which then does that.
    pub(super) fn ring<P: QueuePort>(&self, port: &P) {
        loop {
            // ORDERING: SeqCst pairs with the fence below: who finds the bell taken here has published before the
            // holder's last look.
            fence(Ordering::SeqCst);
            let Some(mut bell) = self.take_bell() else {
                return;
            };
            bell.rung = self.ring_held(port, bell.rung);
            let rung = bell.rung;
            self.let_go(bell);
            // ORDERING: SeqCst pairs with the fence above: whoever finds the bell taken has published before that,
            // and is seen here, or has come after the bell was let go of, and takes it itself.
            fence(Ordering::SeqCst);
            if !self.is_waited_for(rung) || Fault::SkipSecondLook.is_on() {
                return;
            }
        }
    }

    /// Whether somebody waits for the bell behind `rung`.
    fn is_waited_for(&self, rung: u64) -> bool {
        match self.published(rung) {
            Some(turn) => !turn.is_void(),
            // A sync alone: nothing is published for it.
            None => {
                let tail = self.tail();
                tail.is_open() && tail.position() == rung
            }
        }
    }

    /// Rings, as the holder of the bell, from `rung` on, and gives the position up to which it has.
    fn ring_held<P: QueuePort>(&self, port: &P, rung: u64) -> u64 {
        if !self.is_waited_for(rung) {
            return rung;
        }
        if let Some(position) = self.reserve_sync() {
            let ticket = FlushTicket {
                sequence: position + 1,
            };
            let turn = Turn::sync(position);
            match port.put(self.shape.place(position).index(), port.sync(ticket)) {
                Ok(()) => self.publish(turn),
                Err(_) => {
                    self.wedge();
                    self.publish(turn.void());
                }
            }
        }
        let mut end = rung;
        let mut covered = None;
        while let Some(turn) = self.published(end).filter(|turn| !turn.is_void()) {
            end = turn.end();
            if turn.is_sync() {
                covered = Some(end);
            }
        }
        if end == rung {
            return rung;
        }
        // ORDERING: Release: whoever sees hardware act on these entries finds that they were given.
        self.given.store(end, Ordering::Release);
        // ORDERING: SeqCst: the entries, and all stores to tables that happened before them on any submitter's CPU
        // (each submitter's Release, this CPU's Acquire), come before the write that makes the unit look.
        fence(Ordering::SeqCst);
        port.ring(self.shape.place(end));
        if let Some(sequence) = covered {
            // ORDERING: Release: the doorbell was rung before anybody counts on that.
            self.covered.store(sequence, Ordering::Release);
        }
        end
    }

    /// Reserves the place of the sync that is owed. There is room: every reservation has left it.
    fn reserve_sync(&self) -> Option<u64> {
        let mut tail = self.tail();
        while tail.is_open() {
            // ORDERING: AcqRel: the place is this CPU's, behind everything that was reserved before. Acquire on
            // failure, as in `tail`.
            match self.tail.0.compare_exchange(
                tail.into_bits(),
                tail.with_sync().into_bits(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(tail.position()),
                Err(found) => tail = Tail::from_bits(found),
            }
        }
        None
    }
}
