//! Who decides over mappings and memory, as types.

use core::fmt;

use crate::VmId;

mod sealed {
    pub trait Sealed {}
}

/// Who decides what a domain maps: [`KernelPaging`] or [`UserManaged`]. Closed.
pub trait Owner: sealed::Sealed + Send + Sync + 'static {
    /// The memory that may be mapped for this owner.
    type Memory: FrameOwner<Id = Self::Id>;
    /// Which owner of this kind: `()` for the hypervisor, a [`VmId`] for guests.
    type Id: Copy + Eq + fmt::Debug + Send + Sync + 'static;
    /// The identity as a value that fits both kinds.
    fn owner_id(id: Self::Id) -> OwnerId;
}

/// The hypervisor's own drivers decide, through the DMA API.
#[derive(Debug)]
pub enum KernelPaging {}

/// A guest or its VMM decides, for a passed-through device.
#[derive(Debug)]
pub enum UserManaged {}

/// Who owns a run of frames: [`Hypervisor`] or [`Guest`]. Closed.
pub trait FrameOwner: sealed::Sealed + Send + Sync + 'static {
    /// Which owner of this kind.
    type Id: Copy + Eq + fmt::Debug + Send + Sync + 'static;
    /// The owner's name in messages.
    const NAME: &'static str;
}

/// Memory of the hypervisor itself.
#[derive(Debug)]
pub enum Hypervisor {}

/// Memory of one guest.
#[derive(Debug)]
pub enum Guest {}

impl sealed::Sealed for KernelPaging {}
impl sealed::Sealed for UserManaged {}
impl sealed::Sealed for Hypervisor {}
impl sealed::Sealed for Guest {}

impl Owner for KernelPaging {
    type Memory = Hypervisor;
    type Id = ();
    fn owner_id((): ()) -> OwnerId {
        OwnerId::Hypervisor
    }
}

impl Owner for UserManaged {
    type Memory = Guest;
    type Id = VmId;
    fn owner_id(id: VmId) -> OwnerId {
        OwnerId::Vm(id)
    }
}

impl FrameOwner for Hypervisor {
    type Id = ();
    const NAME: &'static str = "hypervisor";
}

impl FrameOwner for Guest {
    type Id = VmId;
    const NAME: &'static str = "guest";
}

/// An owner as a value: for messages, fault reports and tables of mixed owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnerId {
    /// The hypervisor.
    Hypervisor,
    /// This guest.
    Vm(VmId),
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hypervisor => f.write_str("hypervisor"),
            Self::Vm(vm) => vm.fmt(f),
        }
    }
}
