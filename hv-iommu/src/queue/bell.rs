//! The doorbell: one CPU at a time rings it, for everything that is published.

use hv_core::fault::Fault;
use hv_core::sync::{Ordering, fence};

use super::CommandQueue;
use super::port::QueuePort;
use super::words::{LEFT_BIT, RINGING_BIT, Tail, Turn};
use crate::backend::FlushTicket;

/// The right to ring, and to place syncs. Given up by [`CommandQueue::let_go`].
#[must_use = "nobody rings until it is given up"]
pub(super) struct Bell(());

impl Bell {
    /// That of who reserved with the bell.
    pub(super) const fn of_reservation() -> Self {
        Self(())
    }
}

impl CommandQueue {
    /// The bell, unless another CPU has it, with the tail as it was before. `with` says what else is taken, and that it is
    /// not wanted.
    pub(super) fn take_bell(&self, with: impl Fn(Tail) -> Option<Tail>) -> Option<(Bell, Tail)> {
        let mut tail = self.tail();
        while !tail.is_ringing() || Fault::BellIsFree.is_on() {
            // ORDERING: AcqRel: the doorbell was rung by the holders before, who have let go, and this CPU's write to the
            // tail register comes after; a sync is this CPU's to fill, behind everything that was reserved before.
            // Acquire on failure, as in `tail`.
            match self.tail.0.compare_exchange(
                tail.into_bits(),
                with(tail)?.into_bits(),
                Fault::BellRelaxed.weakens(Ordering::AcqRel),
                Ordering::Acquire,
            ) {
                Ok(_) => return Some((Bell::of_reservation(), tail)),
                Err(found) => tail = Tail::from_bits(found),
            }
        }
        None
    }

    /// Gives the bell up. Says whether somebody has published meanwhile and does not wait: the caller rings again then.
    #[must_use = "what nobody waits for has to be rung"]
    pub(super) fn let_go(&self, _bell: Bell) -> bool {
        // ORDERING: AcqRel: what this CPU wrote to the tail register comes before what the next holder writes: it
        // is a write of the same CPU before this store, and device writes of two CPUs that a release and an
        // acquire order arrive in that order. What was left was published before. A subtraction: the bit is this CPU's, and
        // on x86 that is one instruction where clearing it is a loop.
        let before = self
            .tail
            .0
            .fetch_sub(RINGING_BIT, Fault::LetGoRelaxed.weakens(Ordering::AcqRel));
        Tail::from_bits(before).is_left() && !Fault::SkipSecondLook.is_on()
    }

    /// What is published at `position`.
    pub(super) fn published(&self, position: u64) -> Option<Turn> {
        let word = self.turns.get(self.shape.place(position).index())?;
        // ORDERING: Acquire pairs with the Release in `publish`: the entries are there.
        Turn::at(position, word.load(Ordering::Acquire))
    }

    /// Rings for everything that is published, unless another CPU has the bell.
    pub(super) fn ring<P: QueuePort>(&self, port: &P) {
        while self.is_waited_for()
            && let Some((bell, tail)) = self.take_bell(|tail| Some(tail.with_bell()))
        {
            if tail.is_open() {
                let position = tail.position();
                let ticket = FlushTicket::alone(position + 1);
                let turn = Turn::with_sync(position, 0);
                match port.put(self.shape.place(position).index(), port.sync(ticket)) {
                    Ok(()) => self.publish(turn),
                    Err(_) => {
                        self.wedge();
                        self.publish(turn.void());
                    }
                }
            }
            self.ring_held(port, &bell);
            if !self.let_go(bell) {
                return;
            }
        }
    }

    /// Whether the bell is free and there is something to ring for.
    fn is_waited_for(&self) -> bool {
        let tail = self.tail();
        if tail.is_ringing() && !Fault::BellIsFree.is_on() {
            return false;
        }
        // ORDERING: Relaxed: who repairs stores it before it changes the tail, and looks itself after that.
        if self.told.again.load(Ordering::Relaxed) {
            return true;
        }
        // ORDERING: Relaxed: the tail says that the bell was let go of, and this was stored before that.
        let rung = self.told.given.load(Ordering::Relaxed);
        match self.published(rung) {
            Some(turn) => !turn.is_void(),
            // A sync alone: nothing is published for it.
            None => tail.is_open() && tail.position() == rung,
        }
    }

    /// Rings, as the holder of the bell, for all that is published up to the first gap.
    pub(super) fn ring_held<P: QueuePort>(&self, port: &P, _bell: &Bell) {
        // ORDERING: Relaxed: only holders of the bell store it.
        let rung = self.told.given.load(Ordering::Relaxed);
        let mut end = rung;
        let mut covered = None;
        while let Some(turn) = self.published(end).filter(|turn| !turn.is_void()) {
            end = turn.end();
            if turn.ends_in_sync() {
                covered = Some(end);
            }
        }
        if Fault::RingPastGap.is_on() {
            end = self.tail().position();
        }
        if end == rung {
            // ORDERING: Relaxed to look, Acquire to take it back, pairs with `ring_again`: the write there that has hardware go
            // on comes before this one of the doorbell.
            if self.told.again.load(Ordering::Relaxed)
                && self.told.again.swap(false, Ordering::Acquire)
            {
                port.ring(self.shape.place(rung));
            }
            return;
        }
        // ORDERING: Release: whoever sees hardware act on these entries finds that they were given.
        self.told.given.store(end, Ordering::Release);
        // ORDERING: Release: the entries, and all stores to tables that happened before them on any submitter's CPU
        // (each submitter's Release, this CPU's Acquire), come before the write that makes the unit look. What the
        // unit needs beyond what CPUs need is in the port's `ring`.
        fence(Ordering::Release);
        if Fault::TellBeforeSync.is_on() && covered == Some(end) {
            port.ring(self.shape.place(end - 1));
        }
        port.ring(self.shape.place(end));
        // ORDERING: Release: hardware was told before anybody blames it for what it has not read.
        self.told.rung.store(end, Ordering::Release);
        if let Some(sequence) = covered {
            // ORDERING: Release: the doorbell was rung before anybody counts on that.
            self.told.covered.store(sequence, Ordering::Release);
        }
    }

    /// Has hardware told once more of what it was told of. A write of the doorbell on another CPU may have come too early.
    pub(super) fn ring_again<P: QueuePort>(&self, port: &P) {
        // ORDERING: Release: what this CPU has written to hardware comes before what is rung for this. The change of the tail
        // that follows sees to it that it is: whoever has the bell then finds that when it lets go, and who takes it after that
        // finds this word, or has more to ring for.
        self.told.again.store(true, Ordering::Release);
        match Fault::BellIsNotRungAgain.is_on() {
            true => self.ring(port),
            false => self.leave(port),
        }
    }

    /// Has what this CPU has published rung for, although it does not wait any longer: by itself or by the holder of
    /// the bell.
    pub(super) fn leave<P: QueuePort>(&self, port: &P) {
        // ORDERING: AcqRel: the holder that lets go after this finds what was published; one that let go before has
        // rung for what it found, and says up to where.
        self.tail
            .0
            .fetch_or(LEFT_BIT, Fault::LeaveRelaxed.weakens(Ordering::AcqRel));
        self.ring(port);
    }
}
