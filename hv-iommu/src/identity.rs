//! Identity domains: a device of the hypervisor that is let through untranslated, by name.

use hv_core::{KernelPaging, Owner, Shared};

use crate::anchor::Ties;
use crate::attach::{AttachError, AttachFailed, attach};
use crate::backend::Backend;
use crate::capability::{IdentityBackend, Unmet};
use crate::destroy::DestroyError;
use crate::domain::{Domain, DomainError};
use crate::group::{AttachedGroup, Claimed, Group, GroupId};
use crate::shape::Identity;
use crate::states::HeldBy;
use crate::system::System;

/// What a unit lacks that always translates.
pub(crate) const NO_PASS_THROUGH: Unmet = Unmet::absent("passing requests through untranslated");

/// The part of an identity domain that its attachments share.
pub struct IdentityCore<B: Backend> {
    pub(crate) ties: Shared<Ties>,
    pub(crate) system: Shared<System<B>>,
}

impl<B: Backend> Clone for IdentityCore<B> {
    fn clone(&self) -> Self {
        Self {
            ties: self.ties.clone(),
            system: self.system.clone(),
        }
    }
}

/// Somebody's word that the devices of one group may reach all memory.
///
/// It is the only way to an identity domain, and to a [device TLB](Group::enable_ats); who gives it, and why, is in the log. It counts for the claim in which it
/// was given: once the group was released, others may have had the devices. A device that others
/// can plug in, or whose firmware others can write, is never to be trusted.
#[must_use = "trust that is not used is better not given"]
pub struct TrustedDevice<B: Backend> {
    group: GroupId,
    /// In which claim of the group it was given.
    claim: u64,
    system: Shared<System<B>>,
    reason: &'static str,
}

impl<B: Backend> TrustedDevice<B> {
    /// Vouches for every device of `group`. `reason` is logged, now and when it is used.
    pub fn vouch_for(group: &Group<B, impl HeldBy<KernelPaging>>, reason: &'static str) -> Self {
        log::warn!(
            "BYPASS: {} {:?} are trusted with all memory: {reason}",
            group.id(),
            group.members()
        );
        Self {
            group: group.id(),
            claim: group.inner.claims,
            system: group.system().clone(),
            reason,
        }
    }

    /// Whether it was given for this group, in its present claim.
    ///
    /// # Errors
    /// [`AttachError::NotVouchedFor`].
    pub(crate) fn counts_for<S>(&self, group: &Group<B, S>) -> Result<(), AttachError> {
        let same = Shared::ptr_eq(group.system(), &self.system)
            && group.id() == self.group
            && group.inner.claims == self.claim;
        match same {
            true => Ok(()),
            false => Err(AttachError::NotVouchedFor {
                group: group.id(),
                trusted: self.group,
            }),
        }
    }

    /// Why, in the words of who gave it.
    pub(crate) const fn reason(&self) -> &'static str {
        self.reason
    }
}

impl<B: IdentityBackend> Domain<KernelPaging, B, Identity> {
    /// A domain that translates nothing, for the hypervisor's driver of the group that `trusted` names.
    ///
    /// # Errors
    /// [`DomainError`]: [`DomainError::Unmet`] when the group's unit translates always.
    pub fn identity_domain_alloc(
        group: &Group<B, impl HeldBy<KernelPaging>>,
        trusted: &TrustedDevice<B>,
    ) -> Result<Self, DomainError> {
        let system = group.system();
        if !system.backend.passes_through(group.unit()) {
            let (unit, unmet) = (group.unit(), NO_PASS_THROUGH);
            return Err(DomainError::Unmet { unit, unmet });
        }
        log::warn!(
            "BYPASS: a domain without translation for {}: {}",
            trusted.group,
            trusted.reason
        );
        let held = system.ids.take().ok_or(DomainError::NoDomainId)?;
        let ties = Ties::new(KernelPaging::owner_id(()), held.id());
        let ties = match Shared::try_new(ties) {
            Ok(ties) => ties,
            Err((_, error)) => {
                system.ids.give_back(held);
                return Err(error.into());
            }
        };
        let system = system.clone();
        let core = IdentityCore { ties, system };
        Ok(Self {
            core,
            owner: (),
            held,
        })
    }
}

impl<B: IdentityBackend> Group<B, Claimed<KernelPaging>> {
    /// Lets the group's devices reach all memory, untranslated. Bus mastering stays off.
    ///
    /// # Errors
    /// [`AttachFailed`], with the group: [`AttachError::NotVouchedFor`] when `trusted` is of another one.
    pub fn attach_untranslated(
        self,
        domain: &Domain<KernelPaging, B, Identity>,
        trusted: TrustedDevice<B>,
    ) -> Result<AttachedGroup<KernelPaging, B, Identity>, AttachFailed<KernelPaging, B>> {
        if let Err(error) = trusted.counts_for(&self) {
            return Err(AttachFailed::Refused { group: self, error });
        }
        log::warn!(
            "BYPASS: {} is attached without translation: {}",
            self.id(),
            trusted.reason
        );
        attach(self, domain)
    }
}

/// Ends an identity domain: its id is free.
pub(crate) fn end<B: IdentityBackend>(
    domain: Domain<KernelPaging, B, Identity>,
) -> Result<(), DestroyError<KernelPaging, B, Identity>> {
    match domain.core.ties.attachments.count() {
        0 => {
            // No group is attached, and each detach waited for the unit to forget the id.
            domain.core.system.ids.give_back(domain.held);
            Ok(())
        }
        attachments => {
            let IdentityCore { ties, system } = &domain.core;
            let group = system.attached_to(ties.uid);
            Err(DestroyError::attached(domain, attachments, group))
        }
    }
}
