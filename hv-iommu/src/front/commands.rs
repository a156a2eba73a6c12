//! From bytes to calls: every field is checked before anything is touched.

use hv_core::platform::PhysMemory;
use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageCount, PageRange, PageSize, Perms, RangeError,
    UserManaged,
};
use zerocopy::FromBytes;

use super::bitmap::Bitmap;
use super::objects::{Object, WindowKind, WindowObject};
use super::wire::{self, command, flag};
use super::{Code, Front, SpaceMaker};
use crate::backend::Backend;
use crate::dirty::leaf_at;
use crate::shape::Pages;
use crate::space::{
    AddressSpace, AddressSpaceError, MappingKind, ReservedFor, SpaceMapping, Unmapping,
};

/// The most bytes that one call tells dirty pages of.
const DIRTY_AT_ONCE: u64 = 1 << 30;

type Values = [u64; 4];

impl<B: Backend, S: Pages<UserManaged, B>> Front<B, S> {
    pub(super) fn act<M: PhysMemory>(
        &mut self,
        memory: &GuestMemory,
        platform: &M,
        spaces: &mut dyn SpaceMaker<B, S>,
        request: &[u8],
        written: &mut dyn FnMut(GpaRange),
    ) -> Result<Values, Code> {
        let (header, _) = wire::Header::read_from_prefix(request).map_err(|_| Code::TooShort)?;
        if header.version.get() != wire::VERSION {
            return Err(Code::UnknownVersion);
        }
        let bytes = usize::try_from(header.bytes.get()).unwrap_or(usize::MAX);
        let number = header.command.get();
        if !(command::CREATE..=command::RETRY).contains(&number) {
            return Err(Code::UnknownCommand);
        }
        if bytes > wire::LONGEST {
            return Err(Code::TooLong);
        }
        let request = request.get(..bytes).ok_or(Code::TooShort)?;
        match number {
            command::CREATE => self.create(spaces, decode(request)?),
            command::DESTROY => {
                let id = one(decode(request)?)?;
                let done = self.objects.destroy(id, memory, written)?;
                Ok(value(u64::from(done)))
            }
            command::MAP => self.map(memory, decode(request)?),
            command::UNMAP => {
                let (id, range) = span(decode(request)?)?;
                let space = self.objects.space_mut(id)?;
                space.check_memory(memory)?;
                let begun = space.begin_unmap(range)?;
                finish(space, memory, &begun, written)
            }
            command::UNMAP_ALL => {
                let id = one(decode(request)?)?;
                let space = self.objects.space_mut(id)?;
                space.check_memory(memory)?;
                let begun = space.begin_unmap_all();
                finish(space, memory, &begun, written)
            }
            command::RETRY => {
                let id = one(decode(request)?)?;
                let space = self.objects.space_mut(id)?;
                space.check_memory(memory)?;
                let begun = space.begin_retry();
                finish(space, memory, &begun, written)
            }
            command::SPLIT => {
                let (id, at) = at(decode(request)?)?;
                self.objects.space_mut(id)?.split(at)?;
                Ok([0; 4])
            }
            command::COPY => self.copy(memory, decode(request)?),
            command::ALLOW => self.open_window(decode(request)?, WindowKind::Allowed),
            command::RESERVE => self.open_window(decode(request)?, WindowKind::Reserved),
            command::DROP_WINDOW => self.drop_window(decode(request)?),
            command::QUERY => {
                let (id, at) = at(decode(request)?)?;
                let found = self.objects.space(id)?.find(at);
                let found = found.ok_or(Code::NotMapped)?;
                let flags = flags_of(&found);
                Ok([
                    found.span.start().as_u64(),
                    found.span.pages().bytes(),
                    found.gpa.start().as_u64(),
                    flags,
                ])
            }
            command::DIRTY => self.dirty(memory, platform, decode(request)?),
            _ => Err(Code::UnknownCommand),
        }
    }

    fn create(
        &mut self,
        spaces: &mut dyn SpaceMaker<B, S>,
        request: wire::Create,
    ) -> Result<Values, Code> {
        zero(request.reserved.get())?;
        let bits = u8::try_from(request.address_bits.get()).map_err(|_| Code::NoSuchSpace)?;
        // Before anything is made that could not be kept.
        self.objects.check_room()?;
        let space = spaces.make(bits)?;
        match self.objects.insert(Object::Space(space)) {
            Ok(id) => Ok(value(id.into())),
            // There was room.
            Err((_, code)) => Err(code),
        }
    }

    fn map(&mut self, memory: &GuestMemory, request: wire::Map) -> Result<Values, Code> {
        let flags = request.flags.get();
        let known = flag::READ | flag::WRITE | flag::REGISTERS;
        let perms = perms(flags, known)?;
        let at = Iova::new(request.at.get());
        let bytes = request.bytes.get();
        // Both ranges, before the space is looked for.
        let gpa: GpaRange = range(Gpa::new(request.gpa.get()), bytes)?;
        let _: IovaRange = range(at, bytes)?;
        let kind = match flags & flag::REGISTERS {
            0 => MappingKind::Memory,
            _ => MappingKind::Registers,
        };
        let space = self.objects.space_mut(request.id.get())?;
        let mapped = space.map_kind(memory, at, gpa, perms, kind)?;
        Ok(value(flags_of(&mapped)))
    }

    fn copy(&mut self, memory: &GuestMemory, request: wire::Copy) -> Result<Values, Code> {
        zero(request.reserved.get())?;
        let perms = perms(request.flags.get(), flag::READ | flag::WRITE)?;
        let at = Iova::new(request.at.get());
        let bytes = request.bytes.get();
        let from: IovaRange = range(Iova::new(request.from.get()), bytes)?;
        let _: IovaRange = range(at, bytes)?;
        let id = request.id.get();
        self.objects.space(id)?;
        let source = self.objects.space(request.source.get())?;
        let (gpa, kind) = source.source_of(from, perms)?;
        let space = self.objects.space_mut(id)?;
        let mapped = space.map_kind(memory, at, gpa, perms, kind)?;
        Ok(value(flags_of(&mapped)))
    }

    fn open_window(&mut self, request: wire::Span, kind: WindowKind) -> Result<Values, Code> {
        let (id, range) = span(request)?;
        self.objects.space(id)?;
        self.objects.check_room()?;
        let space = self.objects.space_mut(id)?;
        match kind {
            WindowKind::Allowed => space.allow(range)?,
            WindowKind::Reserved => space.reserve(range, ReservedFor::User)?,
        }
        let window = WindowObject {
            space: id,
            range,
            kind,
        };
        match self.objects.insert(Object::Window(window)) {
            Ok(id) => Ok(value(id.into())),
            // There was room.
            Err((_, code)) => Err(code),
        }
    }

    fn drop_window(&mut self, request: wire::One) -> Result<Values, Code> {
        let id = one(request)?;
        let window = self.objects.window(id)?;
        let space = self.objects.space_mut(window.space)?;
        match window.kind {
            WindowKind::Allowed => space.disallow(window.range)?,
            WindowKind::Reserved => space.unreserve(window.range)?,
        }
        self.objects.remove(id);
        Ok([0; 4])
    }

    fn dirty<M: PhysMemory>(
        &mut self,
        memory: &GuestMemory,
        platform: &M,
        request: wire::Dirty,
    ) -> Result<Values, Code> {
        let flags = request.flags.get();
        zero(flags & !flag::KEEP)?;
        let range = range(Iova::new(request.at.get()), request.bytes.get())?;
        if range.pages().bytes() > DIRTY_AT_ONCE {
            return Err(Code::TooLong);
        }
        let space = self.objects.space_mut(request.id.get())?;
        let bitmap = Bitmap::new(memory, platform, Gpa::new(request.bitmap.get()), range)?;
        let mut failed = None;
        let mut pages = 0;
        let show = |page, level| {
            pages += 1;
            // The table has such leaves, so this one ends.
            if let Some(leaf) = leaf_at::<B::Format>(page, level) {
                failed = failed.or(bitmap.set(leaf).err());
            }
        };
        match flags & flag::KEEP {
            0 => space.dirty_and_clear(range, show)?,
            _ => space.dirty(range, show)?,
        }
        match failed {
            Some(code) => Err(code),
            None => Ok(value(pages)),
        }
    }
}

/// Flushes what was taken out of a space, and tells of what was written there.
fn finish<B: Backend, S: Pages<UserManaged, B>>(
    space: &mut AddressSpace<B, S>,
    memory: &GuestMemory,
    begun: &Unmapping<B>,
    written: &mut dyn FnMut(GpaRange),
) -> Result<Values, Code> {
    let flushed = begun.flush().map_err(AddressSpaceError::from)?;
    Ok(value(space.finish_noting(memory, &flushed, written)?))
}

/// The layout at the begin of a request, all further bytes of which are zero.
fn decode<T: FromBytes>(request: &[u8]) -> Result<T, Code> {
    let fields = request.get(..size_of::<T>()).ok_or(Code::TooShort)?;
    let further = request.get(size_of::<T>()..).unwrap_or(&[]);
    if further.iter().any(|byte| *byte != 0) {
        return Err(Code::UnknownFields);
    }
    T::read_from_bytes(fields).map_err(|_| Code::TooShort)
}

fn value(value: u64) -> Values {
    [value, 0, 0, 0]
}

fn zero(reserved: u32) -> Result<(), Code> {
    match reserved {
        0 => Ok(()),
        _ => Err(Code::UnknownFlags),
    }
}

fn one(request: wire::One) -> Result<u32, Code> {
    zero(request.reserved.get())?;
    Ok(request.id.get())
}

fn span(request: wire::Span) -> Result<(u32, IovaRange), Code> {
    zero(request.reserved.get())?;
    let range = range(Iova::new(request.at.get()), request.bytes.get())?;
    Ok((request.id.get(), range))
}

fn at(request: wire::At) -> Result<(u32, Iova), Code> {
    zero(request.reserved.get())?;
    Ok((request.id.get(), Iova::new(request.at.get())))
}

/// The range of `bytes` bytes from `start`.
fn range<A: hv_core::Address>(start: A, bytes: u64) -> Result<PageRange<A>, Code> {
    if bytes == 0 {
        return Err(Code::Empty);
    }
    if !bytes.is_multiple_of(PageSize::Size4K.bytes()) {
        return Err(Code::Unaligned);
    }
    let pages = PageCount::new(bytes / PageSize::Size4K.bytes()).ok_or(Code::Overflow)?;
    PageRange::new(start, pages).map_err(|error| match error {
        RangeError::Unaligned { .. } => Code::Unaligned,
        RangeError::Overflow { .. } => Code::Overflow,
    })
}

fn perms(flags: u32, known: u32) -> Result<Perms, Code> {
    zero(flags & !known)?;
    let readable = flags & flag::READ != 0;
    let writable = flags & flag::WRITE != 0;
    Perms::from_rights(readable, writable).ok_or(Code::UnknownFlags)
}

fn flags_of(mapping: &SpaceMapping) -> u64 {
    let mut flags = 0;
    if mapping.perms.readable() {
        flags |= flag::READ;
    }
    if mapping.perms.writable() {
        flags |= flag::WRITE;
    }
    if mapping.kind == MappingKind::Registers {
        flags |= flag::REGISTERS;
    }
    flags.into()
}
