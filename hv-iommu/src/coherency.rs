//! Whether what a device sends to memory is coherent with the CPU's caches, by firmware's word, and what follows for guests.
//!
//! A guest takes its devices for coherent, and nobody else writes caches back for it: behind a device that is not it would read
//! what was there before, which may have been another owner's. So such a device is for the hypervisor's drivers, which lend it
//! memory by mappings that write lines back ([`Snooping::DoesNotSnoop`]), unless somebody says that this guest copes. A domain of
//! theirs that was made for such a device, or has one attached, gives no buffers that CPU and device see at once.

use hv_core::PciAddress;
use hv_core::UserManaged;
use thiserror::Error;

use crate::attach::AttachError;
use crate::backend::Backend;
use crate::dma::Snooping;
use crate::domain::DomainCore;
use crate::group::{Claimed, Group, Inner};

/// What firmware says of what a device sends to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherency {
    /// It sees what is in the CPU's caches, and the CPU sees it.
    Coherent,
    /// It goes past them.
    NotCoherent {
        /// What firmware has said, or left out.
        said: &'static str,
    },
}

/// Why a device is not fit for a guest: what it sends goes past the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "expected {requester} to be coherent with the CPU's caches, found that firmware says it is not ({said}): keep it for the \
     hypervisor, whose DMA API writes caches back for it; for a guest that does so itself there is \
     `Group::override_incoherent_dma`"
)]
pub struct NotCoherent {
    /// The requester.
    pub requester: PciAddress,
    /// What firmware has said, or left out.
    pub said: &'static str,
}

impl<B: Backend> Inner<B> {
    /// Whether firmware calls all that the group sends coherent.
    pub(crate) fn check_coherent(&self) -> Result<(), NotCoherent> {
        let backend = &self.system.backend;
        for &requester in &self.requesters {
            if let Coherency::NotCoherent { said } = backend.coherency(requester) {
                return Err(NotCoherent { requester, said });
            }
        }
        Ok(())
    }

    /// The same for an attach to a guest's domain, for which somebody may have given their word.
    pub(crate) fn look_at_coherency(&self) -> Result<(), AttachError> {
        match self.has_incoherent_word {
            true => Ok(()),
            false => self.check_coherent().map_err(AttachError::NotCoherent),
        }
    }
}

impl<B: Backend> DomainCore<B> {
    /// What is known of the domain's devices: the one that it was made for, and all that are attached now.
    pub(crate) fn snooping(&self) -> Snooping {
        let backend = &self.system.backend;
        let registry = self.system.registry.lock();
        let mut ours = registry
            .bound
            .iter()
            .filter(|bound| bound.domain == self.uid);
        let goes_past = ours.any(|bound| backend.coherency(bound.requester) != Coherency::Coherent);
        match goes_past || !self.was_for_coherent {
            true => Snooping::DoesNotSnoop,
            false => Snooping::Snoops,
        }
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Whether the group's devices see what is in the CPU's caches, as firmware says. A [`DmaConfig`](crate::DmaConfig) that
    /// says more of them is taken for this.
    pub fn snooping(&self) -> Snooping {
        match self.inner.check_coherent() {
            Ok(()) => Snooping::Snoops,
            Err(_) => Snooping::DoesNotSnoop,
        }
    }
}

impl<B: Backend> Group<B, Claimed<UserManaged>> {
    /// Lets the group be attached for a guest although firmware says that what its devices send is not coherent. It counts
    /// for this claim, and is logged with the reason: the guest has to write its caches back, and have been given no memory
    /// with lines of others in them.
    pub fn override_incoherent_dma(mut self, reason: &'static str) -> Self {
        if let Err(why) = self.inner.check_coherent() {
            let (group, owner) = (self.id(), self.owner());
            let NotCoherent { requester, said } = why;
            log::warn!(
                "OVERRIDE: {group} is {owner}'s although firmware says that {requester} is not coherent ({said}): {reason}"
            );
        }
        self.inner.has_incoherent_word = true;
        self
    }
}
