//! What a guest has by number.

use alloc::vec::Vec;
use core::mem;

use hv_core::{GpaRange, GuestMemory, IovaRange, OutOfMemory, UserManaged, guest_index};

use super::Code;
use crate::backend::Backend;
use crate::destroy::DestroyRefusal;
use crate::shape::Pages;
use crate::space::{AddressSpace, SpaceTeardown};

/// The bits of a number that are its index; those above are the generation.
const INDEX_BITS: u32 = 16;

/// One call ends so much of a space: steps, and the table words that each looks at at most.
const STEPS_AT_ONCE: usize = 4096;
const WORDS_A_STEP: usize = 64;

/// Why a window is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowKind {
    Allowed,
    Reserved,
}

/// A range that the guest allowed or reserved in a space.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowObject {
    pub(super) space: u32,
    pub(super) range: IovaRange,
    pub(super) kind: WindowKind,
}

pub(super) enum Object<B: Backend, S: Pages<UserManaged, B>> {
    None,
    Space(AddressSpace<B, S>),
    /// A space that is on its way out.
    Ending(SpaceTeardown<B>),
    Window(WindowObject),
}

struct Entry<B: Backend, S: Pages<UserManaged, B>> {
    /// Never 0, so that no number is 0; another one with each object.
    generation: u16,
    object: Object<B, S>,
}

/// # Invariants
/// A number leads to an object only if its generation is that of the entry.
pub(super) struct Objects<B: Backend, S: Pages<UserManaged, B>> {
    entries: Vec<Entry<B, S>>,
}

impl<B: Backend, S: Pages<UserManaged, B>> Objects<B, S> {
    pub(super) fn new(count: usize) -> Result<Self, OutOfMemory> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(count).map_err(|_| OutOfMemory {
            bytes: count.saturating_mul(size_of::<Entry<B, S>>()),
        })?;
        for _ in 0..count {
            entries.push(Entry {
                generation: 1,
                object: Object::None,
            });
        }
        Ok(Self { entries })
    }

    pub(super) fn count(&self) -> usize {
        let used = |entry: &&Entry<B, S>| !matches!(entry.object, Object::None);
        self.entries.iter().filter(used).count()
    }

    /// Whether another object has room.
    pub(super) fn check_room(&self) -> Result<(), Code> {
        match self.count() < self.entries.len() {
            true => Ok(()),
            false => Err(Code::TooManyObjects),
        }
    }

    /// The index that a number leads to: the one place where a guest's number becomes one.
    fn index(&self, id: u32) -> Option<usize> {
        let index = guest_index(id & ((1 << INDEX_BITS) - 1), self.entries.len())?;
        let entry = self.entries.get(index)?;
        (u32::from(entry.generation) == id >> INDEX_BITS).then_some(index)
    }

    pub(super) fn find(&self, id: u32) -> Option<&Object<B, S>> {
        let object = &self.entries.get(self.index(id)?)?.object;
        (!matches!(object, Object::None)).then_some(object)
    }

    pub(super) fn find_mut(&mut self, id: u32) -> Option<&mut Object<B, S>> {
        let index = self.index(id)?;
        let object = &mut self.entries.get_mut(index)?.object;
        (!matches!(object, Object::None)).then_some(object)
    }

    pub(super) fn space(&self, id: u32) -> Result<&AddressSpace<B, S>, Code> {
        match self.find(id) {
            Some(Object::Space(space)) => Ok(space),
            Some(Object::Window(_)) => Err(Code::WrongKind),
            Some(Object::None | Object::Ending(_)) | None => Err(Code::UnknownId),
        }
    }

    pub(super) fn space_mut(&mut self, id: u32) -> Result<&mut AddressSpace<B, S>, Code> {
        match self.find_mut(id) {
            Some(Object::Space(space)) => Ok(space),
            Some(Object::Window(_)) => Err(Code::WrongKind),
            Some(Object::None | Object::Ending(_)) | None => Err(Code::UnknownId),
        }
    }

    pub(super) fn window(&self, id: u32) -> Result<WindowObject, Code> {
        match self.find(id) {
            Some(Object::Window(window)) => Ok(*window),
            Some(Object::Space(_)) => Err(Code::WrongKind),
            Some(Object::None | Object::Ending(_)) | None => Err(Code::UnknownId),
        }
    }

    /// Puts an object into a free entry and gives its number.
    pub(super) fn insert(&mut self, object: Object<B, S>) -> Result<u32, (Object<B, S>, Code)> {
        let free = |entry: &Entry<B, S>| matches!(entry.object, Object::None);
        let index = self.entries.iter().position(free);
        let Some((index, entry)) =
            index.and_then(|index| Some((index, self.entries.get_mut(index)?)))
        else {
            return Err((object, Code::TooManyObjects));
        };
        let Ok(low) = u32::try_from(index) else {
            return Err((object, Code::TooManyObjects));
        };
        entry.object = object;
        Ok(u32::from(entry.generation) << INDEX_BITS | low)
    }

    /// Takes an object out; its number leads nowhere from now on.
    pub(super) fn remove(&mut self, id: u32) -> Option<Object<B, S>> {
        let index = self.index(id)?;
        self.entries.get_mut(index).map(Entry::take)
    }

    /// Ends a space, or goes on with that; whether it is done.
    pub(super) fn destroy(
        &mut self,
        id: u32,
        memory: &GuestMemory,
        written: &mut dyn FnMut(GpaRange),
    ) -> Result<bool, Code> {
        let index = self.index(id).ok_or(Code::UnknownId)?;
        let entry = self.entries.get_mut(index).ok_or(Code::UnknownId)?;
        match mem::replace(&mut entry.object, Object::None) {
            Object::Space(space) => match space.destroy() {
                Ok(teardown) => entry.object = Object::Ending(teardown),
                Err((space, refusal)) => {
                    entry.object = Object::Space(space);
                    return Err(refusal.into());
                }
            },
            Object::None => return Err(Code::UnknownId),
            Object::Ending(teardown) => entry.object = Object::Ending(teardown),
            window @ Object::Window(_) => {
                entry.object = window;
                return Err(Code::WrongKind);
            }
        }
        // Its windows go first: they are no use without it.
        self.drop_windows_of(id);
        let entry = self.entries.get_mut(index).ok_or(Code::UnknownId)?;
        if let Object::Ending(teardown) = &mut entry.object {
            let mut step = || teardown.step_noting(memory, WORDS_A_STEP, written);
            let done = (0..STEPS_AT_ONCE).any(|_| step());
            if !done {
                return Ok(false);
            }
        }
        entry.take();
        Ok(true)
    }

    pub(super) fn end_all(&mut self, memory: &GuestMemory) -> Result<(), DestroyRefusal> {
        for entry in &mut self.entries {
            match mem::replace(&mut entry.object, Object::None) {
                Object::Space(space) => match space.destroy() {
                    Ok(teardown) => teardown.finish(memory),
                    Err((space, refusal)) => {
                        entry.object = Object::Space(space);
                        return Err(refusal);
                    }
                },
                Object::Ending(teardown) => teardown.finish(memory),
                Object::None | Object::Window(_) => {}
            }
        }
        Ok(())
    }

    fn drop_windows_of(&mut self, space: u32) {
        for entry in &mut self.entries {
            if matches!(&entry.object, Object::Window(window) if window.space == space) {
                entry.take();
            }
        }
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> Entry<B, S> {
    fn take(&mut self) -> Object<B, S> {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        mem::replace(&mut self.object, Object::None)
    }
}
