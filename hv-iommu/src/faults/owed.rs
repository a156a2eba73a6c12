//! Entries that were made quiet, until their units have read that.

use hv_core::PciAddress;
use hv_core::fault::Fault;

use crate::backend::{Backend, UnitError, UnitIndex};
use crate::system::{Registry, System};

impl<B: Backend> System<B> {
    /// Has units read the entries anew that were made quiet. Without the lock: a full queue, and who mends it, is waited for.
    ///
    /// What a unit does not take is owed still, and asked for again at the next look: until it has read the entry, its device
    /// is recorded for ever. A unit that fails meanwhile is wedged for everybody, not for this look alone.
    pub(super) fn reread_owed(&self) {
        let mut refused = 0;
        loop {
            let entry = {
                let mut registry = self.registry.lock();
                let mut owed = registry.rereads().filter(|(.., owes)| **owes);
                owed.nth(refused).map(|(unit, requester, owes)| {
                    *owes = false;
                    (unit, requester)
                })
            };
            let Some((unit, requester)) = entry else {
                return;
            };
            let resets = self.wedged.resets(unit);
            // Nobody waits for its end: until then a few more faults are recorded.
            match self.away(|| self.backend.reread(unit, requester)) {
                // Of one that has no entry there is none to read.
                Ok(()) | Err(UnitError::NotBound { .. }) => continue,
                Err(_) if Fault::RereadOnce.is_on() => continue,
                Err(error) => {
                    self.request_failed(unit, error, resets);
                }
            }
            let mut registry = self.registry.lock();
            let its = registry
                .rereads()
                .find(|(on, of, _)| (*on, *of) == (unit, requester));
            if let Some((.., owes)) = its {
                *owes = true;
                refused += 1;
            }
        }
    }
}

impl<B: Backend> Registry<B> {
    /// Requesters on units, with whether those have to read their entries anew.
    fn rereads(&mut self) -> impl Iterator<Item = (UnitIndex, PciAddress, &mut bool)> {
        let bound = self.bound.iter_mut();
        let bound = bound.map(|bound| (bound.unit, bound.requester, &mut bound.owes_reread));
        bound.chain(self.strangers.rereads())
    }
}
