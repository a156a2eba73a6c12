//! Which devices may see more than their buffers: a word that is given for a group, and what it means for a domain.
//!
//! All devices of a domain reach what one of them was lent. So its DMA API trusts a device only where every group that is
//! attached is trusted, and from then on no other group comes in.

use core::fmt;

use hv_core::KernelPaging;
use hv_core::sync::Mutex;
use thiserror::Error;

use super::DmaOwner;
use super::device::{DmaConfig, DmaDevice};
use crate::attach::AttachError;
use crate::backend::Backend;
use crate::domain::{Domain, DomainUid};
use crate::group::{Claimed, Group, GroupId};

/// Whether devices may see bytes beside their buffers, and keep a buffer for a moment longer (deferred flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trust {
    /// They see the bytes of their buffers and zeros, nothing else: plugged in by anybody, or with firmware from
    /// elsewhere.
    #[default]
    Untrusted,
    /// They may see what shares a page with a buffer, and keep a buffer for a moment longer where their driver
    /// asks for that.
    Trusted,
}

/// Why a domain's DMA API trusts no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TrustRefusal {
    /// Devices that are not trusted would reach the same memory.
    #[error(
        "{untrusted} groups or PASIDs in {domain} are not trusted with what shares pages with buffers: give each \
         group's word by `Group::trust` before it is attached, or use `Domain::dma_device`, which trusts none"
    )]
    UntrustedAttached {
        /// The domain.
        domain: DomainUid,
        /// How many groups, and PASIDs of groups.
        untrusted: usize,
    },
}

/// Who is attached to a domain, and whether it may hold what only trusted devices may reach.
///
/// # Invariants
/// Not both: `untrusted` is 0 where `trusting` is set. Once set it stays, since mappings, dropped ones too, and what waits
/// for a deferred flush outlive the device that they were made through.
pub(crate) struct Gate(Mutex<GateState>);

struct GateState {
    untrusted: usize,
    trusting: bool,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(Mutex::new(GateState {
            untrusted: 0,
            trusting: false,
        }))
    }

    /// Counts a group, or a PASID of it, that is about to be attached. Whether it may be.
    pub(crate) fn enter(&self, trust: Trust) -> bool {
        let mut state = self.0.lock();
        match (trust, state.trusting) {
            (Trust::Trusted, _) => true,
            (Trust::Untrusted, true) => false,
            (Trust::Untrusted, false) => {
                state.untrusted += 1;
                true
            }
        }
    }

    /// Takes back what [`enter`](Self::enter) counted.
    pub(crate) fn leave(&self, trust: Trust) {
        if trust == Trust::Untrusted {
            let mut state = self.0.lock();
            state.untrusted = state.untrusted.saturating_sub(1);
        }
    }

    /// From now on trusted groups alone. How many others there are, otherwise.
    fn trust(&self) -> Result<(), usize> {
        let mut state = self.0.lock();
        match state.untrusted {
            0 => {
                // INVARIANT: nobody else is attached, and `enter` refuses who comes.
                state.trusting = true;
                Ok(())
            }
            untrusted => Err(untrusted),
        }
    }
}

impl AttachError {
    /// That a group's devices would reach what they are not trusted with.
    pub(crate) const fn exposed(group: GroupId, domain: DomainUid) -> Self {
        Self::Exposed { group, domain }
    }
}

impl<B: Backend> Group<B, Claimed<KernelPaging>> {
    /// Gives one's word that every device of the group may see what shares pages with its drivers' buffers, and keep buffers
    /// for a moment longer. It counts for this claim, and is logged with the reason. A device that others can plug in, or
    /// whose firmware others can write, is never to be trusted.
    pub fn trust(mut self, reason: &'static str) -> Self {
        log::warn!(
            "{} {:?} are trusted with what shares pages with their buffers: {reason}",
            self.id(),
            self.members()
        );
        self.inner.trust = Trust::Trusted;
        self
    }
}

impl<B: Backend, S> Group<B, S> {
    /// Whether somebody gave their word for the group in its present claim.
    pub fn trusted(&self) -> Trust {
        self.inner.trust
    }
}

impl<B: Backend, O: DmaOwner> Domain<O, B> {
    /// As [`dma_device`](Self::dma_device), for a device that is trusted: no page is bounced for its sake, and its mappings
    /// may put off their flush. For the rest of its life the domain then takes trusted groups alone, whichever device is
    /// gone by then: make a domain of its own for others.
    ///
    /// # Errors
    /// [`TrustRefusal`], while a group is attached that nobody gave their word for.
    pub fn trusting_dma_device(&self, config: DmaConfig) -> Result<DmaDevice<B>, TrustRefusal> {
        let domain = self.uid();
        self.core
            .dma
            .gate
            .trust()
            .map_err(|untrusted| TrustRefusal::UntrustedAttached { domain, untrusted })?;
        log::info!("{domain}: a device is trusted with what shares pages with its buffers");
        Ok(DmaDevice::new(&self.core, config, Trust::Trusted))
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untrusted => "untrusted",
            Self::Trusted => "trusted",
        })
    }
}
