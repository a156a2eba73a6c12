//! Whether a group is still kept apart from the others: looked at again after every reset.
//!
//! A reset clears what a function was set to, its access control (ACS) too, and that of the functions below a
//! bridge that is reset. What was set at first is set again and read back; then the functions are sorted into groups
//! once more, with what is read now. A group that does not come out as it was reaches no memory.

use alloc::vec::Vec;

use hv_core::PciAddress;
use hv_core::fault::Fault;

use crate::backend::Backend;
use crate::group::{Inner, push};
use crate::topology::{IsolationError, IsolationFact, Known, PciFunction, group_plans};

impl<B: Backend> Inner<B> {
    /// Looks, where a reset came, or may have, since the last look.
    ///
    /// # Errors
    /// [`IsolationError`].
    pub(crate) fn look_if_unseen(&mut self) -> Result<(), IsolationError> {
        if self.is_unseen {
            self.look_at_isolation()?;
            self.is_unseen = false;
        }
        Ok(())
    }

    /// Looks at the functions of the group, at the bridges on their way and at the neighbours of both.
    ///
    /// # Errors
    /// [`IsolationError`].
    pub(crate) fn look_at_isolation(&self) -> Result<(), IsolationError> {
        if Fault::IsolationNotReread.is_on() {
            return Ok(());
        }
        let config = self.system.backend.platform();
        let known = self.system.topology.lock().copy()?.functions;
        let mut near: Vec<PciAddress> = Vec::new();
        for own in known.iter().filter(|known| self.is_own(known)) {
            push(&mut near, own.given.address)?;
        }
        let mut facts: Vec<PciFunction> = Vec::new();
        let mut first = None;
        for known in &known {
            let (at, own) = (known.given.address, self.is_own(known));
            let beside =
                |other: &PciAddress| (other.segment(), other.bus()) == (at.segment(), at.bus());
            let (now, changed) = if near.iter().any(beside) {
                known
                    .look(config, own)
                    .map_err(|fact| self.lost(at, fact))?
            } else {
                (known.given, None)
            };
            first = first.or(changed.map(|fact| (at, fact)));
            push(&mut facts, now)?;
        }
        let Some((function, fact)) = first else {
            return Ok(());
        };
        let plans = group_plans(&facts)?;
        let is_as_before = plans.iter().any(|plan| {
            plan.members == self.members
                && plan.requesters == self.requesters
                && plan.upstream == self.upstream
        });
        if is_as_before {
            return Ok(());
        }
        Err(self.lost(function, fact))
    }

    /// Whether it is a function of the group, has one as its virtual function, or is on the way to one.
    fn is_own(&self, known: &Known) -> bool {
        let function = &known.given;
        let mut ids = function.virtual_ids();
        self.members.contains(&function.address)
            || self.ports.contains(&function.address)
            || self.upstream.contains(&function.address)
            || ids.any(|id| self.members.contains(&id))
    }

    fn lost(&self, function: PciAddress, fact: IsolationFact) -> IsolationError {
        let group = self.id;
        IsolationError::Lost {
            group,
            function,
            fact,
        }
    }
}
