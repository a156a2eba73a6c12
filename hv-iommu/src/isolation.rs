//! The witness that a guest's device raises no interrupts but its own, and why there is none.

use alloc::vec::Vec;
use core::fmt;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::{OutOfMemory, PciAddress, UserManaged, VmId};
use thiserror::Error;

use crate::attach::AttachError;
use crate::backend::Backend;
use crate::domain::DomainUid;
use crate::group::{Claimed, Group, GroupId, Inner};
use crate::topology::group_plans;

/// Who a requester is to an interrupt controller that tells senders of messages apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageSource {
    /// Which of the machine's controllers takes its messages, as the backend numbers them.
    pub controller: u32,
    /// Its id there.
    pub id: u32,
}

impl fmt::Display for MessageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { controller, id } = self;
        write!(f, "sender {id:#x} of interrupt controller {controller}")
    }
}

/// Why a group's devices may be able to raise interrupts of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotIsolated {
    /// Nothing looks at who sent a message.
    #[error(
        "expected interrupt messages that are told apart by who sent them, found none for {requester}: it can raise any \
         interrupt, so keep it for the hypervisor; for a guest that is trusted with that there is \
         `InterruptsIsolated::override_unsafe_interrupts`"
    )]
    NotRemapped {
        /// The requester.
        requester: PciAddress,
    },
    /// Firmware does not say who the requester is to an interrupt controller, or says so twice.
    #[error(
        "expected firmware to name one interrupt controller that {requester} sends messages to, found none or several: \
         look whether all tables about that were read, and keep it for the hypervisor until it is one"
    )]
    NotTold {
        /// The requester.
        requester: PciAddress,
    },
    /// A requester of another group is the same.
    #[error(
        "expected {requester} to be a sender of its own, found {source_id}, which {other} is too: keep both for the \
         hypervisor, or take the other one out of the machine"
    )]
    Shared {
        /// The requester.
        requester: PciAddress,
        /// Who it is.
        source_id: MessageSource,
        /// The other one.
        other: PciAddress,
    },
    /// A requester of another group may be the same: firmware does not say who that is, or says so twice, and once it is.
    #[error(
        "expected {requester} to be a sender of its own, found {source_id}, which {other} may be too, as firmware tells it: \
         look whether all tables about that were read, and keep both for the hypervisor until it is one"
    )]
    MayBeShared {
        /// The requester.
        requester: PciAddress,
        /// Who it is.
        source_id: MessageSource,
        /// The other one.
        other: PciAddress,
    },
    /// Something that is no PCI function is the same: another device, or a unit.
    #[error(
        "expected {requester} to be a sender of its own, found {source_id}, which something beside PCI functions is too: \
         keep it for the hypervisor"
    )]
    SharedOutside {
        /// The requester.
        requester: PciAddress,
        /// Who it is.
        source_id: MessageSource,
    },
    /// There was no memory to look.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Proof that a guest's device can raise only the interrupts that it was given.
///
/// Without it a device can write any interrupt message and so reach any vector of any CPU. Where an interrupt controller
/// tells senders apart (by an id that comes with each write), the
/// [group gives it](Group::interrupts_isolated). Elsewhere the only way to have this witness is the override below, which
/// says so in its name and in the log.
#[derive(Debug)]
pub struct InterruptsIsolated {
    basis: Basis,
}

/// What a witness stands on.
#[derive(Debug)]
enum Basis {
    /// Somebody's word.
    Assumed(&'static str),
    /// No other group has a sender of this one, which is of this subsystem.
    Shown { group: GroupId, system: DomainUid },
}

impl InterruptsIsolated {
    /// Pretends isolation where there is none. `reason` is logged with every attachment that uses it.
    ///
    /// Fit for demonstrations and for guests that are trusted not to forge interrupts; for nothing
    /// else.
    pub fn override_unsafe_interrupts(reason: &'static str) -> Self {
        log::warn!("OVERRIDE: interrupt isolation is assumed, not had: {reason}");
        let basis = Basis::Assumed(reason);
        Self { basis }
    }

    /// Whether the witness is for this group, and still true.
    pub(crate) fn holds_for<B: Backend>(
        &self,
        group: &Group<B, Claimed<UserManaged>>,
    ) -> Result<(), AttachError> {
        match self.basis {
            Basis::Assumed(_) => Ok(()),
            Basis::Shown {
                group: witnessed,
                system,
            } if witnessed != group.id() || system != group.system().uid => {
                let group = group.id();
                Err(AttachError::OtherWitness { group, witnessed })
            }
            Basis::Shown { .. } => group
                .inner
                .check_senders()
                .map_err(AttachError::NotIsolated),
        }
    }

    /// Logs what was assumed, for a group that was attached by it.
    pub(crate) fn tell(&self, group: GroupId, owner: VmId) {
        if let Basis::Assumed(reason) = self.basis {
            log::warn!("OVERRIDE: {group} is {owner}'s without isolated interrupts: {reason}");
        }
    }
}

impl<B: Backend, S> Group<B, S> {
    /// The proof that no message of the group's devices is taken for one of another group's, where an interrupt
    /// controller tells senders apart. It counts for this group, and as long as no device comes that is told from them
    /// no more: attaching looks again.
    ///
    /// What a sender may raise is set up at the controller, by the hypervisor.
    ///
    /// # Errors
    /// [`NotIsolated`].
    pub fn interrupts_isolated(&self) -> Result<InterruptsIsolated, NotIsolated> {
        self.inner.check_senders()?;
        let (group, system) = (self.id(), self.system().uid);
        let basis = Basis::Shown { group, system };
        Ok(InterruptsIsolated { basis })
    }
}

impl<B: Backend> Inner<B> {
    /// Whether no other group has a sender of this one.
    fn check_senders(&self) -> Result<(), NotIsolated> {
        let backend = &self.system.backend;
        let mut own = Vec::new();
        for &requester in &self.requesters {
            push(&mut own, (backend.message_source(requester)?, requester))?;
        }
        let mut functions = Vec::new();
        let topology = self.system.topology.lock().copy()?;
        for known in &topology.functions {
            push(&mut functions, known.given)?;
        }
        for plan in group_plans(&functions)? {
            // Ports send messages of their own; those that are not apart from the members are of the group.
            let others = plan.requesters.iter().chain(&plan.ports).copied();
            let is_own = |id: &PciAddress| self.requesters.contains(id) || self.ports.contains(id);
            for other in others.filter(|id| !is_own(id)) {
                if Fault::SharedWriterIsolated.is_on() {
                    continue;
                }
                match backend.message_source(other) {
                    Ok(source) => {
                        let same = own.iter().find(|(own, _)| *own == source);
                        if let Some(&(source_id, requester)) = same {
                            return Err(NotIsolated::Shared {
                                requester,
                                source_id,
                                other,
                            });
                        }
                    }
                    // Any of its ways may be the one that is so.
                    Err(NotIsolated::NotTold { .. }) => {
                        let mut own = own.iter();
                        let same = own.find(|(own, _)| backend.may_send_as(other, *own));
                        if let Some(&(source_id, requester)) = same {
                            return Err(NotIsolated::MayBeShared {
                                requester,
                                source_id,
                                other,
                            });
                        }
                    }
                    Err(NotIsolated::OutOfMemory(error)) => return Err(error.into()),
                    // It writes to nobody who tells senders apart, or as something that would have been found with ours.
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }
}
