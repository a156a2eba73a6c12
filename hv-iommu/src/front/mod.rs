//! The front that a guest talks to: requests in bytes, with numbers for names, over the typed address spaces.
//!
//! A hypervisor takes a request out of guest memory **once**, gives the copy to [`Front::call`], and hands the
//! [`Reply`] back. Every request has a version, a command and its own length; every refusal has a code of its own
//! ([`Code`]) and changes nothing, but for [`Code::UnitFailed`], after which what was unmapped stays pinned until a
//! [`Code::Pending`] place is retried by [`wire::command::RETRY`].
//!
//! Numbers of objects are chosen by the front and given back by the guest, so they are looked up in one place
//! ([`hv_core::guest_index`]) and carry a generation: a stale one is not another object's.

mod bitmap;
mod code;
mod commands;
mod objects;
pub mod wire;

use core::fmt;

use hv_core::platform::PhysMemory;
use hv_core::{GpaRange, GuestMemory, OutOfMemory, UserManaged};

use crate::backend::Backend;
use crate::destroy::DestroyRefusal;
use crate::shape::{Pages, Paging};
use crate::space::AddressSpace;
use objects::{Object, Objects};

pub use code::{Code, Reply};

/// Makes the address spaces that a guest asks for: a domain for a group that the guest holds, within its quota.
pub trait SpaceMaker<B: Backend, S: Pages<UserManaged, B> = Paging> {
    /// An empty address space with at least this many address bits.
    ///
    /// # Errors
    /// The code that the guest is told.
    fn make(&mut self, address_bits: u8) -> Result<AddressSpace<B, S>, Code>;
}

/// The address spaces of one guest, by number.
pub struct Front<B: Backend, S: Pages<UserManaged, B> = Paging> {
    objects: Objects<B, S>,
}

impl<B: Backend, S: Pages<UserManaged, B>> Front<B, S> {
    /// The most objects that a guest has at once: spaces, and ranges that it allowed or reserved.
    pub const MOST_OBJECTS: usize = 64;

    /// A front without objects, and with room for all that there may be.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(Self {
            objects: Objects::new(Self::MOST_OBJECTS)?,
        })
    }

    /// Does what a request asks for, or tells why not.
    ///
    /// What devices wrote through mappings that the request takes out is forgotten, where units note that:
    /// [`call_noting`](Self::call_noting) tells.
    pub fn call<M: PhysMemory>(
        &mut self,
        memory: &GuestMemory,
        platform: &M,
        spaces: &mut dyn SpaceMaker<B, S>,
        request: &[u8],
    ) -> Reply {
        self.call_noting(memory, platform, spaces, request, &mut |_| ())
    }

    /// As [`call`](Self::call), and tells of the guest's pages that devices wrote through mappings which the request
    /// took out, or through a space that it ended: what a migration has to copy although no space names it any more.
    pub fn call_noting<M: PhysMemory>(
        &mut self,
        memory: &GuestMemory,
        platform: &M,
        spaces: &mut dyn SpaceMaker<B, S>,
        request: &[u8],
        written: &mut dyn FnMut(GpaRange),
    ) -> Reply {
        match self.act(memory, platform, spaces, request, written) {
            Ok(values) => Reply::done(values),
            Err(code) => Reply::refused(code),
        }
    }

    /// The space with this number, to attach groups to it.
    pub fn space(&self, id: u32) -> Option<&AddressSpace<B, S>> {
        match self.objects.find(id) {
            Some(Object::Space(space)) => Some(space),
            _ => None,
        }
    }

    /// As [`space`](Self::space), for what the hypervisor does in it by itself.
    pub fn space_mut(&mut self, id: u32) -> Option<&mut AddressSpace<B, S>> {
        match self.objects.find_mut(id) {
            Some(Object::Space(space)) => Some(space),
            _ => None,
        }
    }

    /// How many objects there are.
    pub fn objects(&self) -> usize {
        self.objects.count()
    }

    /// Ends all spaces: the guest is gone.
    ///
    /// # Errors
    /// The front, with what is left, when a device is attached to one.
    pub fn end(mut self, memory: &GuestMemory) -> Result<(), (Self, DestroyRefusal)> {
        match self.objects.end_all(memory) {
            Ok(()) => Ok(()),
            Err(refusal) => Err((self, refusal)),
        }
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> fmt::Debug for Front<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "front with {} objects", self.objects.count())
    }
}
