//! Memory that two guests share on purpose: lent by one, accepted by the other, counted on both sides.

use core::fmt;

use super::slot::{Backing, SlotKind};
use super::{GuestMemory, GuestMemoryError};
use crate::{FrameRun, Gpa, GpaRange, Guest, PageSize, PhysRange, VmId};

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
        let run = self.pin_in(slot, range)?;
        Ok(Loan { run, to })
    }

    /// Lets the guest see what another one lends it, at `gpa`.
    ///
    /// # Errors
    /// The loan, with the reason: [`GuestMemoryError::NotForThisGuest`], [`GuestMemoryError::Overlap`],
    /// [`GuestMemoryError::GivenTwice`], [`GuestMemoryError::OutOfMemory`].
    pub fn accept(&mut self, gpa: Gpa, loan: Loan) -> Result<GpaRange, (Loan, GuestMemoryError)> {
        if loan.to != self.vm {
            let (to, vm) = (loan.to, self.vm);
            return Err((loan, GuestMemoryError::NotForThisGuest { to, vm }));
        }
        match self.room_for(gpa, loan.range(), PageSize::Size2M) {
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
            Backing::Lent(loan) => Ok(loan),
            // The kind was looked at.
            _ => Err(no_slot),
        }
    }

    /// Ends a loan of this guest's memory, which it has for itself again.
    ///
    /// # Errors
    /// The loan, when it is of another guest's memory.
    pub fn end_loan(&self, loan: Loan) -> Result<(), (Loan, GuestMemoryError)> {
        let to = loan.to;
        self.unpin(loan.run)
            .map_err(|(run, error)| (Loan { run, to }, error))
    }
}
