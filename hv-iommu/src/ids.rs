//! Domain ids of the hardware: given out once, given back only with proof that nothing is cached. And the
//! counts of those who keep a domain, and so its id, from ending.
//!
//! The loom models `bc07_an_id_is_reused_after_its_last_user` and `bc07_an_id_has_one_domain` pin both.

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, AtomicUsize, Ordering};

use crate::backend::HwDomainId;

/// Which ids are taken: one bit each.
///
/// # Invariants
/// Id 0 is always taken: units that cache what is not present file it under 0.
pub struct DomainIds {
    words: Vec<AtomicU64>,
}

/// An id in use. Not cloneable; dropping it keeps the id taken for good.
#[must_use = "a dropped lease keeps its id taken for good"]
pub struct IdLease(HwDomainId);

impl IdLease {
    /// The id.
    pub fn id(&self) -> HwDomainId {
        self.0
    }
}

impl DomainIds {
    /// Ids 1 to `count` - 1, all free; at most 65536.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(count: u32) -> Result<Self, OutOfMemory> {
        let count = count.min(1 << 16);
        let len = count.div_ceil(u64::BITS) as usize;
        let mut words = Vec::new();
        words.try_reserve_exact(len).map_err(|_| OutOfMemory {
            bytes: len * size_of::<AtomicU64>(),
        })?;
        words.extend((0..len as u32).map(|index| {
            let valid = count - index * u64::BITS;
            let beyond = if valid >= u64::BITS {
                0
            } else {
                u64::MAX << valid
            };
            // INVARIANT: id 0 is taken from the start.
            AtomicU64::new(beyond | u64::from(index == 0 && !Fault::DomainIdZero.is_on()))
        }));
        Ok(Self { words })
    }

    /// Takes the lowest free id.
    pub fn take(&self) -> Option<IdLease> {
        for (index, word) in self.words.iter().enumerate() {
            // ORDERING: Relaxed, the CAS checks it again.
            let mut taken = word.load(Ordering::Relaxed);
            while taken != u64::MAX {
                let bit = taken.trailing_ones();
                let with = if Fault::FreeIdEarly.is_on() {
                    taken
                } else {
                    taken | 1 << bit
                };
                // ORDERING: AcqRel: the new owner sees all that the former one did with the id, the
                // flush that freed it included. Relaxed on failure: the value is only tried again.
                let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
                match word.compare_exchange(taken, with, success, failure) {
                    Ok(_) => {
                        let number = index as u32 * u64::BITS + bit;
                        let number = u16::try_from(number).ok()?;
                        return Some(IdLease(HwDomainId::new(number)));
                    }
                    Err(found) => taken = found,
                }
            }
        }
        None
    }

    /// Gives an id back. The caller has seen the flush of everything cached under it.
    pub fn give_back(&self, lease: IdLease) {
        let number = usize::from(lease.0.get());
        if let Some(word) = self.words.get(number / 64) {
            // ORDERING: Release publishes the flush to the next owner's Acquire.
            word.fetch_and(!(1 << (number % 64)), Ordering::Release);
        }
    }

    /// How many ids are taken, id 0 not counted.
    pub fn in_use(&self, count: u32) -> u32 {
        let free: u32 = self
            .words
            .iter()
            // ORDERING: Relaxed, a snapshot for people and tests.
            .map(|word| word.load(Ordering::Relaxed).count_zeros())
            .sum();
        count.min(1 << 16).saturating_sub(1).saturating_sub(free)
    }
}

/// How many use a domain: groups whose entries may name it, or nested domains that stand on it.
///
/// Whoever begins to use it has `&Domain`, or is counted already; whoever ends it has it by value. So a
/// count of zero that the end has seen stays zero.
pub struct Users(AtomicUsize);

impl Default for Users {
    fn default() -> Self {
        Self::none()
    }
}

impl Users {
    /// Nobody.
    pub fn none() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// One more.
    pub fn enter(&self) {
        // ORDERING: Relaxed, the end happens after this, by the domain's value, or sees the caller's own
        // count.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less. All that it did with the domain has happened: units forgot its entries.
    pub fn leave(&self) {
        // ORDERING: Release publishes that to the end's Acquire.
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// How many there are, for the one who has the domain by value.
    pub fn count(&self) -> usize {
        // ORDERING: Acquire pairs with `leave`: who is not counted any more has finished.
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    #[test]
    fn zero_and_what_is_beyond_are_never_given() {
        let ids = DomainIds::new(70).unwrap();
        let mut leases: Vec<_> = core::iter::from_fn(|| ids.take()).collect();
        assert_eq!(leases.len(), 69);
        assert!(
            leases
                .iter()
                .all(|lease| (1..70).contains(&lease.id().get()))
        );
        assert_eq!(ids.in_use(70), 69);
        ids.give_back(leases.remove(4));
        assert_eq!(ids.take().unwrap().id().get(), 5);
    }
}
