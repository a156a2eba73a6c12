//! How a VT-d unit translates: one fetch at a time, so that the driver's stores fall between any two.

use hv_core::Access;

use super::Unit;
use super::caches::{Cached, CachedContext};
use super::spec::entries::{
    self, BadContext, Context, ContextKind, INTERRUPT_WINDOW, SecondStage, context_index,
    root_index, span_bits, table_index,
};
use super::spec::fault;
use super::structures::ENTRY_BYTES;
use crate::bus::Bus;
use crate::request::{Mark, Progress, Reach, Request, Step};
use crate::rule::Rule;

/// How far a walk is.
#[derive(Clone, Debug)]
pub(crate) enum Walk {
    /// The context table is known; its entry is fetched in two halves. The low one, which says whether
    /// the entry is present, comes first: in the other order no two stores could make an entry live, and
    /// that is how Linux does it.
    Context { entry: u64, low: Option<u64> },
    /// The domain is known.
    Bound { context: Context },
    /// The table of this level is known.
    Tables {
        context: Context,
        level: u8,
        table: u64,
        read: bool,
        write: bool,
    },
}

impl Walk {
    /// The domain that the walk is for, once that is known.
    pub(crate) fn domain(&self) -> Option<u16> {
        match self {
            Self::Context { .. } => None,
            Self::Bound { context } | Self::Tables { context, .. } => Some(context.domain),
        }
    }

    /// The frame that the walk reads next.
    pub(crate) fn frame(&self) -> u64 {
        let at = match self {
            Self::Context { entry, .. } => *entry,
            Self::Bound { context } => context.table,
            Self::Tables { table, .. } => *table,
        };
        at >> span_bits(1)
    }
}

/// Whether the entry that a request goes through says that its faults are not recorded, or the one that is not present. (In
/// root entries nothing says so: QEMU `intel_iommu.c`, `vtd_qualified_faults`.)
pub(super) fn is_quiet(request: &Request) -> bool {
    match &request.progress {
        Progress::Vtd(Walk::Bound { context } | Walk::Tables { context, .. }) => {
            context.fault_processing_disabled
        }
        Progress::Vtd(Walk::Context { low: Some(low), .. }) => absent_and_quiet(*low),
        _ => false,
    }
}

/// Whether the first half of an entry says that it is not present, and that faults are not recorded.
const fn absent_and_quiet(low: u64) -> bool {
    low & 1 == 0 && low & entries::FAULT_PROCESSING_DISABLE != 0
}

/// The same of an entry that is known to be absent.
const fn absent(is_quiet: bool) -> Progress {
    let low = match is_quiet {
        true => entries::FAULT_PROCESSING_DISABLE,
        false => 0,
    };
    Progress::Vtd(Walk::Context {
        entry: 0,
        low: Some(low),
    })
}

/// Index of an address inside a table page, in bytes.
const fn word_at(table: u64, index: u64) -> u64 {
    table + index * 8
}

impl Unit {
    /// Does one step of a request.
    pub(super) fn walk(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        let walk = match &request.progress {
            Progress::Translated(reach) => return Step::Translated(*reach),
            Progress::Vtd(walk) => walk.clone(),
            _ => return self.begin(bus, request),
        };
        match walk {
            Walk::Context { entry, low } => self.context_half(bus, request, entry, low),
            Walk::Bound { context } => self.look_up(bus, request, context),
            Walk::Tables {
                context,
                level,
                table,
                read,
                write,
            } => self.entry(bus, request, context, level, table, (read, write)),
        }
    }

    /// Whether memory is protected from a request. Not what firmware goes on using: it protects other memory.
    fn protects_from(&self, bus: &Bus, request: &Request) -> bool {
        self.protects() && !bus.is_kept(request)
    }

    fn begin(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        if !self.translates() {
            return if self.protects_from(bus, request) {
                Step::Lost {
                    why: "protected memory",
                }
            } else {
                Step::Untranslated
            };
        }
        if request.substream.is_some() {
            return Step::Lost {
                why: "a PASID, which legacy mode has not",
            };
        }
        if INTERRUPT_WINDOW.contains(&request.address) {
            return Step::Lost {
                why: "an interrupt request",
            };
        }
        if let Some(is_quiet) = self.caches.unbound(request.requester) {
            request.progress = absent(is_quiet);
            return self.fault(bus, request, fault::CONTEXT_NOT_PRESENT);
        }
        if !bus.rng.one_in(8)
            && let Some(cached) = self.caches.context(request.requester, &mut bus.rng)
        {
            let Some(context) = cached.entry.clone() else {
                request.progress = absent(cached.is_quiet);
                return self.fault(bus, request, fault::CONTEXT_NOT_PRESENT);
            };
            request.progress = Progress::Vtd(Walk::Bound { context });
            return Step::Again;
        }
        let Some(root) = self.root else {
            return self.fault(bus, request, fault::ROOT_NOT_PRESENT);
        };
        let at = root + root_index(request.requester) * ENTRY_BYTES;
        let (low, high) = (bus.fetch(self.view, at), bus.fetch(self.view, at + 8));
        match entries::root(low, high, &self.limits) {
            Err(reserved) => {
                bus.broken(
                    Rule::ReservedBits,
                    format!("root entry at {at:#x}: {reserved}"),
                );
                self.fault(bus, request, fault::ROOT_RESERVED)
            }
            Ok(None) => {
                self.keep_absent_context(request.requester, false);
                self.fault(bus, request, fault::ROOT_NOT_PRESENT)
            }
            Ok(Some(table)) => {
                let entry = table + context_index(request.requester) * ENTRY_BYTES;
                request.progress = Progress::Vtd(Walk::Context { entry, low: None });
                Step::Again
            }
        }
    }

    /// Under caching mode it is kept that a requester is bound to nothing, under domain 0: in the
    /// context cache, and (Xen flushes it there) in the IOTLB.
    fn keep_absent_context(&mut self, requester: u16, is_quiet: bool) {
        if self.cap.cm {
            let absent = CachedContext {
                domain: 0,
                entry: None,
                is_quiet,
            };
            self.caches.keep_context(requester, absent);
            self.caches.keep_unbound(requester, is_quiet);
        }
    }

    fn context_half(
        &mut self,
        bus: &mut Bus,
        request: &mut Request,
        entry: u64,
        low: Option<u64>,
    ) -> Step {
        let Some(low) = low else {
            let low = Some(bus.fetch(self.view, entry));
            request.progress = Progress::Vtd(Walk::Context { entry, low });
            return Step::Again;
        };
        let high = bus.fetch(self.view, entry + 8);
        if low & 1 != 0 && !self.structures.was_whole(entry, low, high) {
            let what = format!(
                "the walker read {low:#x} and {high:#x} at {entry:#x}, which were never live together"
            );
            bus.broken(Rule::TornEntry, what);
        }
        match entries::context(low, high, &self.limits) {
            Err(why) => {
                let reason = match why {
                    BadContext::Reserved(_) => fault::CONTEXT_RESERVED,
                    _ => fault::CONTEXT_INVALID,
                };
                let what = format!("context entry at {entry:#x}: {why}");
                bus.broken(Rule::BadContext, what);
                self.fault(bus, request, reason)
            }
            Ok(None) => {
                self.keep_absent_context(request.requester, absent_and_quiet(low));
                self.fault(bus, request, fault::CONTEXT_NOT_PRESENT)
            }
            Ok(Some(context)) => {
                let kept = CachedContext {
                    domain: context.domain,
                    entry: Some(context.clone()),
                    is_quiet: false,
                };
                self.caches.keep_context(request.requester, kept);
                request.progress = Progress::Vtd(Walk::Bound { context });
                Step::Again
            }
        }
    }

    fn look_up(&mut self, bus: &mut Bus, request: &mut Request, context: Context) -> Step {
        if context.kind == ContextKind::PassThrough {
            return Step::Translated(Reach {
                to: request.address,
                tag: Mark::Vtd(context.domain),
                span: span_bits(1) as u8,
                past_caches: request.no_snoop,
            });
        }
        let width = span_bits(context.levels + 1).min(self.cap.mgaw.into());
        if request.address >> width != 0 {
            return self.fault(bus, request, fault::ADDRESS_BEYOND_WIDTH);
        }
        let (domain, address) = (context.domain, request.address);
        if !bus.rng.one_in(8)
            && let Some((level, cached)) = self.caches.leaf(domain, address, &mut bus.rng)
        {
            return match cached.to {
                Some(_) => self.reach(bus, request, domain, level, &cached),
                None => self.refuse(bus, request),
            };
        }
        let (mut level, mut table) = (context.levels, context.table);
        let (mut read, mut write) = (true, true);
        if !bus.rng.one_in(4)
            && let Some((at, link)) = self.caches.link(domain, level, address, &mut bus.rng)
        {
            let Some(to) = link.to else {
                return self.refuse(bus, request);
            };
            (level, table, read, write) = (at - 1, to, link.read, link.write);
        }
        request.progress = Progress::Vtd(Walk::Tables {
            context,
            level,
            table,
            read,
            write,
        });
        Step::Again
    }

    fn entry(
        &mut self,
        bus: &mut Bus,
        request: &mut Request,
        context: Context,
        level: u8,
        table: u64,
        (mut read, mut write): (bool, bool),
    ) -> Step {
        let (address, domain) = (request.address, context.domain);
        let index = table_index(address, level);
        let at = word_at(table, index);
        let word = bus.fetch(self.view, at);
        if bus.temper.neighbours && bus.rng.one_in(4) {
            self.keep_neighbours(bus, &context, level, table, address, (read, write));
        }
        match self.decode_and_keep(&context, level, address, word, (read, write)) {
            Err(what) => {
                bus.broken(
                    Rule::ReservedBits,
                    format!("level {level} entry at {at:#x}: {what}"),
                );
                self.fault(bus, request, fault::ENTRY_RESERVED)
            }
            Ok(SecondStage::Absent) => self.refuse(bus, request),
            Ok(SecondStage::Table {
                at: below,
                read: may_read,
                write: may_write,
            }) => {
                read &= may_read;
                write &= may_write;
                request.progress = Progress::Vtd(Walk::Tables {
                    context,
                    level: level - 1,
                    table: below,
                    read,
                    write,
                });
                Step::Again
            }
            Ok(SecondStage::Leaf {
                at: to,
                read: may_read,
                write: may_write,
                snoops,
            }) => {
                if may_write && !may_read && !self.cap.zlr {
                    let what = format!(
                        "level {level} entry at {at:#x} is write-only, and the unit has no zero-length reads of \
                         such pages (VT-d manual, CAP.ZLR)"
                    );
                    bus.broken(Rule::ReservedBits, what);
                }
                self.caches.make_room(&mut bus.rng);
                let leaf = Cached {
                    root: context.table,
                    to: Some(to),
                    read: read && may_read,
                    write: write && may_write,
                    snoops,
                };
                self.reach(bus, request, domain, level, &leaf)
            }
        }
    }

    /// Decodes an entry and keeps what it says; what it says is absent only under caching mode.
    fn decode_and_keep(
        &mut self,
        context: &Context,
        level: u8,
        address: u64,
        word: u64,
        (read, write): (bool, bool),
    ) -> Result<SecondStage, String> {
        let entry = entries::second_stage(word, level, &self.limits);
        let entry = entry.map_err(|reserved| reserved.to_string())?;
        let (domain, root) = (context.domain, context.table);
        match &entry {
            SecondStage::Absent if self.cap.cm => {
                let absent = Cached {
                    root,
                    to: None,
                    read: false,
                    write: false,
                    snoops: false,
                };
                if level == 1 {
                    self.caches.keep_leaf(domain, level, address, absent);
                } else {
                    self.caches.keep_link(domain, level, address, absent);
                }
            }
            SecondStage::Absent => {}
            SecondStage::Table {
                at,
                read: may_read,
                write: may_write,
            } => {
                let link = Cached {
                    root,
                    to: Some(*at),
                    read: read && *may_read,
                    write: write && *may_write,
                    snoops: false,
                };
                self.caches.keep_link(domain, level, address, link);
            }
            SecondStage::Leaf {
                at,
                read: may_read,
                write: may_write,
                snoops,
            } => {
                let leaf = Cached {
                    root,
                    to: Some(*at),
                    read: read && *may_read,
                    write: write && *may_write,
                    snoops: *snoops,
                };
                self.caches.keep_leaf(domain, level, address, leaf);
            }
        }
        Ok(entry)
    }

    /// Keeps the entries that lie in the same line of memory as the one that was asked for.
    fn keep_neighbours(
        &mut self,
        bus: &mut Bus,
        context: &Context,
        level: u8,
        table: u64,
        address: u64,
        rights: (bool, bool),
    ) {
        let index = table_index(address, level);
        let line = index / 8 * 8;
        for other in (line..line + 8).filter(|other| *other != index) {
            let word = bus.fetch(self.view, word_at(table, other));
            let shift = span_bits(level);
            let there = address & !(0x1ff << shift) | other << shift;
            // What is malformed there was not asked for.
            let _ = self.decode_and_keep(context, level, there, word, rights);
        }
    }

    /// A leaf says where the request goes, if it may.
    fn reach(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        domain: u16,
        level: u8,
        leaf: &Cached,
    ) -> Step {
        let permitted = match request.access {
            Access::Read => leaf.read,
            Access::Write => leaf.write,
        };
        if !permitted {
            return self.refuse(bus, request);
        }
        let offset = request.address & ((1 << span_bits(level)) - 1);
        let to = leaf.to.unwrap_or(0) + offset;
        if INTERRUPT_WINDOW.contains(&to) {
            return self.fault(bus, request, fault::OUTPUT_IN_INTERRUPT_WINDOW);
        }
        if self.protects_from(bus, request) {
            return Step::Lost {
                why: "protected memory",
            };
        }
        Step::Translated(Reach {
            to,
            tag: Mark::Vtd(domain),
            span: span_bits(level) as u8,
            past_caches: request.no_snoop && !leaf.snoops,
        })
    }

    fn refuse(&mut self, bus: &mut Bus, request: &Request) -> Step {
        let reason = match request.access {
            Access::Read => fault::NO_READ,
            Access::Write => fault::NO_WRITE,
        };
        self.fault(bus, request, reason)
    }
}
