//! Second-stage tables: of what a device asks for, and of what a first stage reads and gives.

use hv_core::Access;

use super::super::Unit;
use super::super::caches::{Cached, Kind, Tag};
use super::super::spec::event::{self, At, Class};
use super::super::spec::stage_two::{self, Descriptor, DescriptorLimits, Leaf, Memory};
use super::super::spec::stream::Tables;
use super::first::spans;
use super::{Walk, allows};
use crate::bus::Bus;
use crate::request::{Request, Step};
use crate::rule::Rule;

/// Where the walk for an address of the guest is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Below {
    address: u64,
    level: u8,
    pub(super) table: u64,
}

impl Unit {
    /// Where the second stage has an address of the guest: one fetch, or look into the caches, at a time. `None` while it
    /// is not known yet.
    pub(super) fn second(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        tables: &Tables,
        address: u64,
        class: Class,
    ) -> Result<Option<(u8, Cached)>, Step> {
        if let Some((known, span, leaf)) = walk.resolved
            && known >> span == address >> span
        {
            return Ok(Some((span, leaf)));
        }
        let at = At::Second { address, class };
        if let Some((noted, span, leaf)) = walk.noting.take()
            && noted == address
        {
            return Ok(self.note(bus, walk, tables, address, (span, leaf)));
        }
        let below = walk.below.filter(|below| below.address == address);
        let found = match below {
            Some(below) => self.second_descriptor(bus, request, walk, tables, below, at)?,
            None => self.second_begun(bus, request, walk, tables, address, at)?,
        };
        let Some((span, leaf)) = found else {
            return Ok(None);
        };
        walk.below = None;
        let refused = |unit: &mut Self, bus: &mut Bus, code| {
            Err(unit.refuse(bus, request, code, tables.records, at))
        };
        if leaf.to >> tables.shape.output_bits != 0 {
            return refused(self, bus, event::ADDRESS_SIZE);
        }
        let access = match class {
            Class::Input => request.access,
            Class::Context | Class::Table => Access::Read,
        };
        // Descriptors do not lie in registers (S2PTW).
        let device = leaf.memory == Kind::Device;
        let hidden = class != Class::Input && device && tables.protects_walks;
        if !allows(access, (leaf.read, leaf.write)) || hidden {
            return refused(self, bus, event::PERMISSION);
        }
        if access == Access::Write && leaf.clean.is_some() {
            // That is a step of its own, after whatever was read.
            walk.noting = Some((address, span, leaf));
            return Ok(None);
        }
        walk.resolved = Some((address, span, leaf));
        Ok(Some((span, leaf)))
    }

    /// Sets S2AP\[1\] in the descriptor that a write goes through, if that still is what it was, and gives the leaf then;
    /// walks again otherwise. When that happens, after whatever was read, is the unit's.
    fn note(
        &mut self,
        bus: &mut Bus,
        walk: &mut Walk,
        tables: &Tables,
        address: u64,
        (span, leaf): (u8, Cached),
    ) -> Option<(u8, Cached)> {
        let (at, read) = leaf.clean?;
        let written = read | stage_two::WRITTEN;
        if !bus.memory.note(at, read, written, &mut bus.rng) {
            // By the tables: what is cached of the leaf may be of before for as long as nobody has it forgotten.
            walk.below = Some(Below {
                address,
                level: tables.shape.start,
                table: tables.root,
            });
            return None;
        }
        let clean = None;
        let leaf = Cached { clean, ..leaf };
        let tag = Tag::Second { vmid: tables.vmid };
        self.caches.keep_leaf(tag, span, address, leaf);
        walk.resolved = Some((address, span, leaf));
        Some((span, leaf))
    }

    fn second_begun(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        tables: &Tables,
        address: u64,
        at: At,
    ) -> Result<Option<(u8, Cached)>, Step> {
        let (shape, tag) = (tables.shape, Tag::Second { vmid: tables.vmid });
        if address >> shape.input_bits != 0 {
            let code = event::TRANSLATION;
            return Err(self.refuse(bus, request, code, tables.records, at));
        }
        let spans = spans(&shape);
        if !bus.rng.one_in(8)
            && let Some(found) = self.caches.leaf(tag, &spans, address, &mut bus.rng)
        {
            return Ok(Some(found));
        }
        let (mut level, mut table) = (shape.start, tables.root);
        if !bus.rng.one_in(4)
            && let Some((span, link)) = self.caches.link(tag, &spans, address, &mut bus.rng)
        {
            let above = (shape.start..3).find(|level| shape.granule.span(*level) == span);
            if let Some(above) = above {
                (level, table) = (above + 1, link.to);
            }
        }
        walk.below = Some(Below {
            address,
            level,
            table,
        });
        Ok(None)
    }

    fn second_descriptor(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        tables: &Tables,
        below: Below,
        stage: At,
    ) -> Result<Option<(u8, Cached)>, Step> {
        let (level, address) = (below.level, below.address);
        let at = tables.shape.word_at(below.table, level, address);
        let stream = self.stream_of(request.requester);
        if !self.can_read(bus, stream, at, false) {
            return Err(self.refuse(bus, request, event::WALK_ABORT, true, stage));
        }
        let word = bus.fetch(self.view, at);
        if bus.temper.neighbours && bus.rng.one_in(4) {
            self.keep_neighbours(bus, tables, level, at, address);
        }
        match self.decode_and_keep(bus, tables, level, address, (at, word)) {
            Err(why) => {
                let what = format!("level {level} descriptor at {at:#x}: {why}");
                bus.broken(Rule::ReservedBits, what);
                Err(self.refuse(bus, request, event::TRANSLATION, tables.records, stage))
            }
            Ok(Descriptor::Absent) => {
                Err(self.refuse(bus, request, event::TRANSLATION, tables.records, stage))
            }
            Ok(Descriptor::Table { at }) => {
                walk.below = Some(Below {
                    address,
                    level: level + 1,
                    table: at,
                });
                Ok(None)
            }
            Ok(Descriptor::Leaf(leaf)) => {
                self.caches.make_room(&mut bus.rng);
                let needs = !tables.ignores_access_flag && !tables.updates_access_flag;
                if !leaf.accessed && needs {
                    let code = event::ACCESS_FLAG;
                    return Err(self.refuse(bus, request, code, tables.records, stage));
                }
                let span = tables.shape.granule.span(level);
                Ok(Some((span, cached(&leaf, tables, span, (at, word)))))
            }
        }
    }

    /// Decodes a descriptor and keeps what it says, unless that is nothing.
    fn decode_and_keep(
        &mut self,
        bus: &mut Bus,
        tables: &Tables,
        level: u8,
        address: u64,
        (at, word): (u64, u64),
    ) -> Result<Descriptor, String> {
        let granule = tables.shape.granule;
        let limits = DescriptorLimits {
            dirty: tables.dirty,
            forced: tables.forced,
            two_xn: self.identity.xnx,
            no_table: self.identity.bbml != 0,
            long: tables.shape.is_long(),
        };
        let decoded = stage_two::decode(word, level, granule, &limits)?;
        let (span, tag) = (granule.span(level), Tag::Second { vmid: tables.vmid });
        match &decoded {
            Descriptor::Absent => {}
            Descriptor::Table { at: below } => {
                let link = Cached {
                    root: tables.root,
                    to: *below,
                    read: true,
                    write: true,
                    size: granule.0,
                    combined: false,
                    memory: Kind::Cached,
                    clean: None,
                };
                self.caches.keep_link(tag, span, address, link);
            }
            Descriptor::Leaf(leaf) if !leaf.accessed && !tables.ignores_access_flag => {}
            Descriptor::Leaf(leaf) => {
                self.judge_conflict(bus, tag, span, address, leaf.to);
                let kept = cached(leaf, tables, span, (at, word));
                self.caches.keep_leaf(tag, span, address, kept);
            }
        }
        Ok(decoded)
    }

    /// A translation is about to be kept beside others: none of them contradicts it.
    pub(super) fn judge_conflict(&self, bus: &mut Bus, tag: Tag, span: u8, address: u64, to: u64) {
        let sizes = self.identity.bbml < 2;
        if let Some(other) = self.caches.conflict(tag, span, address, to, sizes) {
            let what = format!(
                "a translation of 2^{span} bytes for {:#x} under {tag} to {to:#x} was made valid while the unit holds \
                 {other}",
                address >> span << span,
            );
            bus.broken(Rule::BreakBeforeMake, what);
        }
    }

    /// Keeps the descriptors that lie in the same line of memory as the one that was asked for.
    fn keep_neighbours(
        &mut self,
        bus: &mut Bus,
        tables: &Tables,
        level: u8,
        at: u64,
        address: u64,
    ) {
        let span = tables.shape.granule.span(level);
        let line = at / 64 * 64;
        for other in (line..line + 64).step_by(8).filter(|other| *other != at) {
            let word = bus.fetch(self.view, other);
            let index = (address >> span)
                .wrapping_add(other / 8)
                .wrapping_sub(at / 8);
            // What is malformed there was not asked for; a small root may end inside the line.
            if index << span >> tables.shape.input_bits == 0 {
                let _ = self.decode_and_keep(bus, tables, level, index << span, (other, word));
            }
        }
    }
}

fn cached(leaf: &Leaf, tables: &Tables, span: u8, descriptor: (u64, u64)) -> Cached {
    Cached {
        clean: leaf.clean.then_some(descriptor),
        root: tables.root,
        to: leaf.to,
        read: leaf.read,
        write: leaf.write,
        size: span,
        combined: false,
        memory: match leaf.memory {
            Memory::Device => Kind::Device,
            Memory::Normal | Memory::Indexed(_) if tables.forced => Kind::Forced,
            Memory::Normal | Memory::Indexed(_) => Kind::Cached,
        },
    }
}
