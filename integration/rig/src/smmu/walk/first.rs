//! First-stage tables.

use hv_core::Access;

use super::super::Unit;
use super::super::caches::{Cached, Kind, Tag};
use super::super::spec::context::{Context, FirstTables, Half};
use super::super::spec::event::{self, At, Class};
use super::super::spec::stage_one::{self, FirstLimits};
use super::super::spec::stage_two::{Descriptor, Leaf, Memory, Shape};
use super::super::spec::stream::Stages;
use super::{Doing, Given, Place, Walk, allows};
use crate::bus::Bus;
use crate::request::{Request, Step};
use crate::rule::Rule;

/// What of a walk decides how its descriptors are kept.
#[derive(Clone, Copy)]
struct Filed {
    vmid: u16,
    context: FirstTables,
    half: Half,
    is_guests: bool,
}

impl Filed {
    fn tag(&self, global: bool) -> Tag {
        let vmid = self.vmid;
        match global {
            true => Tag::Global {
                vmid,
                set: self.context.set,
            },
            false => Tag::First {
                vmid,
                asid: self.context.asid,
            },
        }
    }

    fn cached(&self, leaf: &Leaf, span: u8) -> Cached {
        Cached {
            root: self.half.root,
            to: leaf.to,
            read: leaf.read,
            write: leaf.write,
            size: span,
            combined: false,
            memory: match leaf.memory {
                Memory::Indexed(kind) if self.context.is_device(kind) => Kind::Device,
                Memory::Indexed(kind) if !self.context.is_cached(kind) => Kind::Uncached,
                _ => Kind::Cached,
            },
            clean: None,
        }
    }
}

/// The spans that entries of tables can have, the largest first.
pub(super) fn spans(shape: &Shape) -> arrayvec::ArrayVec<u8, 8> {
    (shape.start..=3)
        .map(|level| shape.granule.span(level))
        .collect()
}

impl Unit {
    /// The context is known: what is kept of its tables, or where they begin.
    pub(super) fn translate_first(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
        context: Context,
    ) -> Result<(), Step> {
        let Context::Tables(context) = context else {
            return Err(self.refuse(bus, request, event::BAD_CONTEXT, true, At::First));
        };
        let Some((half, low)) = context.half_of(request.address) else {
            let code = event::TRANSLATION;
            return Err(self.refuse(bus, request, code, context.records, At::First));
        };
        let is_guests = stages.second.is_some();
        let filed = Filed {
            vmid: stages.vmid,
            context,
            half,
            is_guests,
        };
        let own = spans(&half.shape);
        let mut sizes = own.clone();
        if let Some(tables) = stages.second {
            // What both stages gave is as small as the smaller of them.
            for span in spans(&tables.shape) {
                if !sizes.contains(&span) {
                    let _ = sizes.try_push(span);
                }
            }
        }
        if !bus.rng.one_in(8) {
            let global = bus.rng.one_in(2);
            let either = [filed.tag(global), filed.tag(!global)];
            let found = either.into_iter().find_map(|tag| {
                let found = self
                    .caches
                    .leaf(tag, &sizes, request.address, &mut bus.rng)?;
                Some((tag, found))
            });
            // A page that was clean is written by way of its descriptor.
            let usable = |leaf: &Cached| leaf.clean.is_none() || request.access == Access::Read;
            if let Some((tag, (span, leaf))) = found.filter(|(_, (_, leaf))| usable(leaf)) {
                if !allows(request.access, (leaf.read, leaf.write)) {
                    let code = event::PERMISSION;
                    return Err(self.refuse(bus, request, code, context.records, At::First));
                }
                return Err(self.reach(bus, request, tag, span, &leaf, is_guests));
            }
        }
        let root = match is_guests {
            true => Place::Guests(half.root),
            false => Place::Known(half.root),
        };
        let (mut level, mut table) = (half.shape.start, root);
        if !bus.rng.one_in(4)
            && let Some((span, link)) =
                self.caches
                    .link(filed.tag(false), &own, request.address, &mut bus.rng)
        {
            let above = (half.shape.start..3).find(|level| half.shape.granule.span(*level) == span);
            if let Some(above) = above {
                (level, table) = (above + 1, Place::Known(link.to));
            }
        }
        walk.resolved = None;
        walk.doing = Doing::First {
            context,
            half,
            low,
            level,
            table,
        };
        Ok(())
    }

    /// Reads a descriptor.
    pub(super) fn first_step(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        walk: &mut Walk,
        stages: Stages,
    ) -> Result<(), Step> {
        let Doing::First {
            context,
            half,
            low,
            level,
            table,
        } = walk.doing.clone()
        else {
            return Ok(());
        };
        let (stream, address) = (self.stream_of(request.requester), request.address);
        let is_guests = stages.second.is_some();
        let filed = Filed {
            vmid: stages.vmid,
            context,
            half,
            is_guests,
        };
        let granule = half.shape.granule;
        let at = match (table, stages.second) {
            (Place::Guests(table), Some(tables)) => {
                let wanted = half.shape.word_at(table, level, low);
                let class = Class::Table;
                let Some((span, leaf)) = self.second(bus, request, walk, &tables, wanted, class)?
                else {
                    return Ok(());
                };
                if span >= granule.0 && level > half.shape.start {
                    // Where the whole table is: kept, and no address of the guest finds it.
                    let link = Cached {
                        root: half.root,
                        to: leaf.to + (table & ((1 << span) - 1)),
                        read: true,
                        write: true,
                        size: granule.0,
                        combined: true,
                        memory: Kind::Cached,
                        clean: None,
                    };
                    let above = granule.span(level - 1);
                    self.caches
                        .keep_link(filed.tag(false), above, address, link);
                }
                leaf.to + (wanted & ((1 << span) - 1))
            }
            (Place::Known(table) | Place::Guests(table), _) => {
                half.shape.word_at(table, level, low)
            }
        };
        if !self.can_read(bus, stream, at, is_guests) {
            return Err(self.refuse(bus, request, event::WALK_ABORT, true, At::First));
        }
        let word = bus.fetch(self.view, at);
        if bus.temper.neighbours && !is_guests && bus.rng.one_in(4) {
            self.keep_first_neighbours(bus, &filed, level, at, address);
        }
        let refused = |unit: &mut Self, bus: &mut Bus, code| {
            Err(unit.refuse(bus, request, code, context.records, At::First))
        };
        match self.first_decoded(bus, &filed, level, address, word) {
            Err(why) => {
                if !is_guests {
                    let what = format!("first-stage level {level} descriptor at {at:#x}: {why}");
                    bus.broken(Rule::ReservedBits, what);
                }
                refused(self, bus, event::TRANSLATION)
            }
            Ok(Descriptor::Absent) => refused(self, bus, event::TRANSLATION),
            Ok(Descriptor::Table { at }) if at >> context.output_bits != 0 => {
                refused(self, bus, event::ADDRESS_SIZE)
            }
            Ok(Descriptor::Table { at }) => {
                walk.resolved = None;
                walk.doing = Doing::First {
                    context,
                    half,
                    low,
                    level: level + 1,
                    table: match is_guests {
                        true => Place::Guests(at),
                        false => Place::Known(at),
                    },
                };
                Ok(())
            }
            Ok(Descriptor::Leaf(leaf)) => {
                self.caches.make_room(&mut bus.rng);
                if leaf.to >> context.output_bits != 0 {
                    return refused(self, bus, event::ADDRESS_SIZE);
                }
                if !leaf.accessed && !context.ignores_access_flag {
                    return refused(self, bus, event::ACCESS_FLAG);
                }
                if !allows(request.access, (leaf.read, leaf.write)) {
                    return refused(self, bus, event::PERMISSION);
                }
                let span = granule.span(level);
                let given = Given {
                    tag: filed.tag(leaf.global),
                    span,
                    leaf: filed.cached(&leaf, span),
                };
                walk.resolved = None;
                walk.doing = Doing::Out {
                    first: Some(given),
                    address: leaf.to + (address & ((1 << span) - 1)),
                };
                Ok(())
            }
        }
    }

    /// Decodes a descriptor and keeps what it says, unless that is nothing, or needs a second stage's word.
    fn first_decoded(
        &mut self,
        bus: &mut Bus,
        filed: &Filed,
        level: u8,
        address: u64,
        word: u64,
    ) -> Result<Descriptor, String> {
        let granule = filed.half.shape.granule;
        let limits = FirstLimits {
            no_table: self.identity.bbml != 0,
            long: filed.half.shape.is_long(),
        };
        let decoded = stage_one::decode(word, level, granule, &limits)?;
        let span = granule.span(level);
        match &decoded {
            _ if filed.is_guests => {}
            Descriptor::Absent => {}
            Descriptor::Table { at } => {
                let link = Cached {
                    root: filed.half.root,
                    to: *at,
                    read: true,
                    write: true,
                    size: granule.0,
                    combined: false,
                    memory: Kind::Cached,
                    clean: None,
                };
                self.caches.keep_link(filed.tag(false), span, address, link);
            }
            Descriptor::Leaf(leaf) if !leaf.accessed && !filed.context.ignores_access_flag => {}
            Descriptor::Leaf(leaf) => {
                let tag = filed.tag(leaf.global);
                self.judge_conflict(bus, tag, span, address, leaf.to);
                self.caches
                    .keep_leaf(tag, span, address, filed.cached(leaf, span));
            }
        }
        Ok(decoded)
    }

    /// Keeps the descriptors that lie in the same line of memory as the one that was asked for.
    fn keep_first_neighbours(
        &mut self,
        bus: &mut Bus,
        filed: &Filed,
        level: u8,
        at: u64,
        address: u64,
    ) {
        let shape = filed.half.shape;
        let span = shape.granule.span(level);
        let line = at / 64 * 64;
        for other in (line..line + 64).step_by(8).filter(|other| *other != at) {
            let word = bus.fetch(self.view, other);
            let index = (address >> span)
                .wrapping_add(other / 8)
                .wrapping_sub(at / 8);
            // What is malformed there was not asked for; a small root may end inside the line.
            let near = index << span;
            let same = near >> shape.input_bits == address >> shape.input_bits;
            if same && index >> (64 - u32::from(span)) == 0 {
                let _ = self.first_decoded(bus, filed, level, near, word);
            }
        }
    }
}
