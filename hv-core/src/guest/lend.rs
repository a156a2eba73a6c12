//! Memory that two guests share on purpose: lent by one, accepted by the other, counted on both sides.

use alloc::vec::Vec;
use core::fmt;

use super::slot::{Backing, SlotKind};
use super::{GuestMemory, GuestMemoryError};
use crate::sync::Mutex;
use crate::{FrameRun, Gpa, GpaRange, Guest, OutOfMemory, PageSize, PhysRange, Shared, VmId};

/// Which frames of one lender are accepted, and by whom.
///
/// # Invariants
/// No two entries of one guest overlap: no two of its memories have the same frames, so a pin can be given back
/// only to the memory that it is of. (What a guest owns is in one memory, since a run of frames is.)
pub(super) struct Accepted(Mutex<Vec<(PhysRange, VmId)>>);

impl Accepted {
    pub(super) fn nothing() -> Self {
        // INVARIANT: empty.
        Self(Mutex::new(Vec::new()))
    }

    fn enter(&self, range: PhysRange, by: VmId) -> Result<(), GuestMemoryError> {
        let mut list = self.0.lock();
        let clash = |(other, to): &(PhysRange, VmId)| *to == by && other.overlaps(&range);
        if list.iter().any(clash) {
            return Err(GuestMemoryError::GivenTwice { range });
        }
        list.try_reserve(1).map_err(|_| OutOfMemory {
            bytes: size_of::<(PhysRange, VmId)>(),
        })?;
        // INVARIANT: looked at just now, under the lock.
        list.push((range, by));
        Ok(())
    }

    fn leave(&self, range: PhysRange, by: VmId) {
        let mut list = self.0.lock();
        if let Some(index) = list.iter().position(|entry| *entry == (range, by)) {
            list.swap_remove(index);
        }
    }
}

/// Memory of one guest that another one may use too, from [`GuestMemory::lend`] until
/// [`GuestMemory::end_loan`]. Both are named in it.
///
/// It is a pin: while it exists, its lender's memory can be neither freed, nor taken back, nor given away. The
/// borrower's memory holds it while it is accepted, and gives it out again only when no device of the borrower
/// reaches it any more. Dropping it frees nothing: the memory stays with its lender, pinned.
#[must_use = "the lender's memory stays pinned until the loan ends"]
pub struct Loan {
    run: FrameRun<Guest>,
    to: VmId,
    accepted: Shared<Accepted>,
}

impl Loan {
    /// Whose memory it is.
    pub fn from(&self) -> VmId {
        self.run.owner()
    }

    /// Who may use it.
    pub fn to(&self) -> VmId {
        self.to
    }

    /// The frames.
    pub fn range(&self) -> PhysRange {
        self.run.range()
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, from, to) = (self.range(), self.from(), self.to);
        write!(f, "loan of {range} from {from} to {to}")
    }
}

impl GuestMemory {
    /// Lends `range`, which must lie in one slot of the guest's own memory, to another guest, for reading and
    /// writing. The hypervisor decides that this is wanted: it is the one way in which two guests get to the
    /// same frames.
    ///
    /// # Errors
    /// [`GuestMemoryError::NotForThisGuest`] for a loan to itself, [`GuestMemoryError::Lent`] for what is lent
    /// already by another, [`GuestMemoryError::Registers`], [`GuestMemoryError::NotMemory`].
    pub fn lend(&self, range: GpaRange, to: VmId) -> Result<Loan, GuestMemoryError> {
        if to == self.vm {
            return Err(GuestMemoryError::NotForThisGuest { to, vm: self.vm });
        }
        let slot = self.slot_of(range)?;
        match slot.kind() {
            SlotKind::Ram => {}
            SlotKind::Lent { from } => {
                let range = slot.gpa;
                return Err(GuestMemoryError::Lent { range, from });
            }
            SlotKind::Registers => return Err(GuestMemoryError::Registers { range: slot.gpa }),
        }
        let accepted = self.accepted()?;
        let run = self.pin_in(slot, range)?;
        Ok(Loan { run, to, accepted })
    }

    /// Lets the guest see what another one lends it, at `gpa`.
    ///
    /// # Errors
    /// The loan, with the reason: [`GuestMemoryError::NotForThisGuest`], [`GuestMemoryError::Overlap`],
    /// [`GuestMemoryError::OutOfMemory`], [`GuestMemoryError::GivenTwice`] when frames of it were accepted by this
    /// guest already, by this memory or another one.
    pub fn accept(&mut self, gpa: Gpa, loan: Loan) -> Result<GpaRange, (Loan, GuestMemoryError)> {
        if loan.to != self.vm {
            let (to, vm) = (loan.to, self.vm);
            return Err((loan, GuestMemoryError::NotForThisGuest { to, vm }));
        }
        let room = self.room_for(gpa, loan.range(), PageSize::Size2M);
        let room = room.and_then(|room| {
            loan.accepted.enter(loan.range(), loan.to)?;
            Ok(room)
        });
        match room {
            Ok((gpa, book)) => {
                self.insert(gpa, Backing::Lent(loan), book, 0);
                Ok(gpa)
            }
            Err(error) => Err((loan, error)),
        }
    }

    /// Hands back what was accepted at `gpa`.
    ///
    /// # Errors
    /// [`GuestMemoryError::Pinned`] while a device of this guest may reach it,
    /// [`GuestMemoryError::NotLent`], [`GuestMemoryError::NoSuchSlot`].
    pub fn hand_back(&mut self, gpa: Gpa) -> Result<Loan, GuestMemoryError> {
        let no_slot = GuestMemoryError::NoSuchSlot(gpa);
        let slot = self.slots.get(self.slot_at(gpa)?).ok_or(no_slot)?;
        let kind @ SlotKind::Lent { .. } = slot.kind() else {
            return Err(GuestMemoryError::NotLent { range: slot.gpa });
        };
        match self.remove_unpinned(gpa, kind)? {
            Backing::Lent(loan) => {
                loan.accepted.leave(loan.range(), loan.to);
                Ok(loan)
            }
            // The kind was looked at.
            _ => Err(no_slot),
        }
    }

    /// Ends a loan of this guest's memory, which it has for itself again.
    ///
    /// # Errors
    /// The loan, when it is of another guest's memory.
    pub fn end_loan(&self, loan: Loan) -> Result<(), (Loan, GuestMemoryError)> {
        let Loan { run, to, accepted } = loan;
        self.unpin(run)
            .map_err(|(run, error)| (Loan { run, to, accepted }, error))
    }
}
