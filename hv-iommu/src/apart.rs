//! Whether a group is still kept apart from the others: looked at again after every reset.
//!
//! A reset clears what a function was set to, its access control (ACS) too, and that of the functions below a
//! bridge that is reset. What was set at first is set again and read back; then the functions are sorted into groups
//! once more, with what is read now. A group that does not come out as it was reaches no memory.

use alloc::vec::Vec;

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::list::push;

use crate::attach::AttachError;
use crate::backend::Backend;
use crate::group::Inner;
use crate::topology::{IsolationError, IsolationFact, Known, PciFunction, group_plans};

impl<B: Backend> Inner<B> {
    /// Looks, where a reset came, or may have, since the last look. One at which some function of the group did not
    /// answer does not count: it is looked at again before it [sends](Self::look_before_sending).
    ///
    /// # Errors
    /// [`IsolationError`].
    pub(crate) fn look_if_unseen(&mut self) -> Result<(), IsolationError> {
        if self.is_unseen {
            let any = |id| self.members.contains(&id) || self.ports.contains(&id);
            self.is_unseen = self.look_at_isolation(any)?.is_some();
        }
        Ok(())
    }

    /// Looks before `member` sends, where the last look could not see all.
    ///
    /// # Errors
    /// [`AttachError::NotApart`]; [`AttachError::Gone`] when it, or what is on its way, does not answer yet.
    pub(crate) fn look_before_sending(&self, member: PciAddress) -> Result<(), AttachError> {
        if !self.is_unseen {
            return Ok(());
        }
        match self.look_at_isolation(|id| id == member) {
            Ok(None) => Ok(()),
            Ok(Some(silent)) => {
                // Of a virtual function it is said by the one that has it.
                let is_port = self.upstream.contains(&silent);
                let function = if is_port { silent } else { member };
                Err(AttachError::Gone { function })
            }
            Err(error) => Err(AttachError::NotApart(error)),
        }
    }

    /// Looks at the functions of the group, at the bridges on their way and at the neighbours of both. Gives the first
    /// function that could not be looked at and is one of `those`, has one as its virtual function, or is on the way.
    ///
    /// # Errors
    /// [`IsolationError`].
    fn look_at_isolation(
        &self,
        those: impl Fn(PciAddress) -> bool,
    ) -> Result<Option<PciAddress>, IsolationError> {
        if Fault::IsolationNotReread.is_on() {
            return Ok(None);
        }
        let config = self.system.backend.platform();
        let known = self.system.topology.lock().copy()?.functions;
        let mut near: Vec<PciAddress> = Vec::new();
        for own in known.iter().filter(|known| self.is_own(known)) {
            push(&mut near, own.given.address)?;
        }
        let mut facts: Vec<PciFunction> = Vec::new();
        let (mut first, mut silent) = (None, None);
        for known in &known {
            let (at, own) = (known.given.address, self.is_own(known));
            let beside =
                |other: &PciAddress| (other.segment(), other.bus()) == (at.segment(), at.bus());
            if !near.iter().any(beside) {
                push(&mut facts, known.given)?;
                continue;
            }
            let look = known.look(config, own);
            let look = look.map_err(|fact| self.lost(at, fact))?;
            let has_one = known.given.virtual_ids().any(&those);
            let is_one = has_one || those(at) || self.upstream.contains(&at);
            if look.silent && is_one || look.virtual_off && has_one {
                silent = silent.or(Some(at));
            }
            first = first.or(look.changed.map(|fact| (at, fact)));
            push(&mut facts, look.now)?;
        }
        let Some((function, fact)) = first else {
            return Ok(silent);
        };
        let plans = group_plans(&facts)?;
        let is_as_before = plans.iter().any(|plan| {
            plan.members == self.members
                && plan.requesters == self.requesters
                && plan.upstream == self.upstream
        });
        if is_as_before {
            return Ok(silent);
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
