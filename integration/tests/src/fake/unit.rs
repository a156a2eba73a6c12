//! One unit of the fake: what it caches, what it was asked to forget, and its walk.
//!
//! It is the worst that the contract of `Backend` allows: it caches all that it reads, forgets only
//! at the moment of a completion, and then only what was asked for and was read before the request.

use std::collections::{HashMap, HashSet, VecDeque};

use hv_core::fault::Fault;
use hv_core::{Access, Iova, PageSize, Pasid, PciAddress, PhysAddr};
use hv_iommu::{
    Binding, FaultClass, FaultDetail, FlushDepth, FlushRequest, FlushSpan, HwDomainId, RawFault,
    UnitCaps,
};

use super::format::{ADDRESS, LINK, READ, RINGS, SNOOPED, WRITE, WRITTEN};
use super::shapes::{Bound, Features, Forget, Stage, Way};
use super::{Call, Completion, DmaFault, Logged, Plan};
use crate::host::Host;

/// How many faults a unit keeps before it loses some.
pub const FAULT_LOG: usize = 8;
/// What is added to the number of a fault with a PASID.
const PASID_FAULT: u16 = 0x100;

/// A cached item and when it was read.
struct Cached<V> {
    value: V,
    read_at: u64,
}

/// Where a cached item belongs: domain id, level, and the address divided by the span.
type Place = (u16, u8, u64);

#[derive(Clone, Copy)]
struct Leaf {
    to: u64,
    bits: u64,
}

/// Whose requests: a requester's, with or without a PASID.
pub(super) type Who = (PciAddress, Option<Pasid>);

/// What was translated through both stages: domain id, the first stage's table, the page.
type NestedPlace = (u16, u64, u64);

/// What another CPU does.
type Job = Box<dyn FnOnce() + Send>;

pub(super) enum Effect {
    Flush(FlushRequest),
    /// The binding of a requester, and all that is cached of the domain.
    Forget(Who, HwDomainId),
    /// That the requester was not bound.
    Bound(Who),
    /// Something of a user's first stage.
    Nested(HwDomainId, Forget),
}

pub(super) struct Request {
    pub(super) ticket: u64,
    pub(super) effect: Effect,
    pub(super) completion: Completion,
    /// Only what was read before this moment is forgotten.
    before: u64,
}

pub(super) struct Unit {
    pub(super) caps: UnitCaps,
    pub(super) features: Features,
    pub(super) bindings: HashMap<Who, Bound>,
    pub(super) queue: VecDeque<Request>,
    pub(super) submitted: u64,
    pub(super) completed: u64,
    pub(super) wedged: bool,
    pub(super) resetting: bool,
    pub(super) during_reset: Option<Job>,
    pub(super) after_refusal: Option<Job>,
    /// What another CPU does once the unit has been found to have failed.
    pub(super) failed: Option<Job>,
    pub(super) fails_again: bool,
    /// What another CPU does in the middle of a look at what was asked.
    pub(super) during_poll: Option<Job>,
    /// What another CPU does after a look in vain.
    pub(super) after_look: Option<Job>,
    /// What another CPU does in the middle of a call.
    pub(super) during_call: Option<(Call, Job)>,
    /// What another CPU does once a requester was bound.
    pub(super) after_bind: Option<(PciAddress, Job)>,
    /// After so many looks each that it finds out about one more device that does not answer, and how many those were.
    pub(super) finds_out: Option<(u32, u32)>,
    pub(super) completion: Completion,
    pub(super) plans: Vec<Plan>,
    pub(super) log: Vec<Logged>,
    pub(super) faults: VecDeque<RawFault>,
    pub(super) lost_faults: bool,
    /// Requesters whose faults are not recorded.
    pub(super) quiet: HashSet<PciAddress>,
    /// Requesters whose entries it was asked to read anew.
    pub(super) reread: Vec<PciAddress>,
    /// How many of these requests find the queue busy.
    pub(super) too_busy_to_reread: u32,
    /// Whether the next of them wedges the unit.
    pub(super) fails_at_reread: bool,
    contexts: HashMap<Who, Cached<Option<Bound>>>,
    leaves: HashMap<Place, Cached<Leaf>>,
    links: HashMap<Place, Cached<PhysAddr>>,
    /// Words that were found empty.
    absent: HashMap<Place, Cached<()>>,
    /// Pages of first stages, and where their tables are.
    nested: HashMap<NestedPlace, Cached<Leaf>>,
    stages: HashMap<(u16, u64), Cached<PhysAddr>>,
    reads: u64,
}

/// Log2 of the bytes that one word of a table of `level` spans.
fn shift(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}

impl Unit {
    pub(super) fn new(caps: UnitCaps) -> Self {
        Self {
            caps,
            features: Features::ALL,
            bindings: HashMap::new(),
            queue: VecDeque::new(),
            during_poll: None,
            after_look: None,
            during_call: None,
            after_bind: None,
            finds_out: None,
            submitted: 0,
            completed: 0,
            wedged: false,
            resetting: false,
            during_reset: None,
            after_refusal: None,
            failed: None,
            fails_again: false,
            completion: Completion::AfterPolls(0),
            plans: Vec::new(),
            log: Vec::new(),
            faults: VecDeque::new(),
            lost_faults: false,
            quiet: HashSet::new(),
            reread: Vec::new(),
            too_busy_to_reread: 0,
            fails_at_reread: false,
            contexts: HashMap::new(),
            leaves: HashMap::new(),
            links: HashMap::new(),
            absent: HashMap::new(),
            nested: HashMap::new(),
            stages: HashMap::new(),
            reads: 0,
        }
    }

    /// Queues a request that completes when the unit likes; gives its ticket.
    pub(super) fn enqueue(&mut self, effect: Effect, completion: Completion) -> u64 {
        self.submitted += 1;
        self.queue.push_back(Request {
            ticket: self.submitted,
            effect,
            completion,
            before: self.reads,
        });
        self.submitted
    }

    /// Does what a request asked for.
    pub(super) fn apply(&mut self, request: &Request) {
        let before = request.before;
        match &request.effect {
            Effect::Flush(_) if Fault::SkipIotlbFlush.is_on() => {}
            Effect::Flush(flush) => self.flush(*flush, before),
            Effect::Forget(requester, domain) => {
                if !Fault::SkipContextFlush.is_on() {
                    self.contexts
                        .retain(|who, cached| who != requester || cached.read_at >= before);
                }
                let whole = FlushRequest {
                    domain: *domain,
                    span: FlushSpan::Domain,
                    depth: FlushDepth::WalkCaches,
                };
                self.flush(whole, before);
            }
            Effect::Bound(requester) => self
                .contexts
                .retain(|who, cached| who != requester || cached.read_at >= before),
            Effect::Nested(domain, forget) => {
                let named = |place: &NestedPlace, read_at| {
                    let page = match forget {
                        Forget::All => true,
                        Forget::Page(page) => place.2 == *page,
                    };
                    place.0 == domain.get() && page && read_at < before
                };
                self.nested
                    .retain(|place, cached| !named(place, cached.read_at));
            }
        }
    }

    fn flush(&mut self, request: FlushRequest, before: u64) {
        let named = |place: &Place, span: u32, read_at: u64| {
            let (domain, _, index) = *place;
            let first = index << span;
            let last = first | ((1 << span) - 1);
            let inside = match request.span {
                FlushSpan::Domain => true,
                FlushSpan::Pages(pages) => {
                    pages.start().as_u64() <= last && first <= pages.last().as_u64()
                }
            };
            domain == request.domain.get() && inside && read_at < before
        };
        let deep = request.depth == FlushDepth::WalkCaches;
        self.leaves
            .retain(|place, cached| !named(place, shift(place.1), cached.read_at));
        self.absent.retain(|place, cached| {
            (place.1 > 1 && !deep) || !named(place, shift(place.1), cached.read_at)
        });
        if deep {
            // A table of a level spans what one word above it does.
            self.links
                .retain(|place, cached| !named(place, shift(place.1 + 1), cached.read_at));
        }
        if request.span == FlushSpan::Domain {
            // Filed under the addresses of the first stage: no flush of pages names them.
            let domain = request.domain.get();
            let kept = |of: u16, read_at| of != domain || read_at >= before;
            self.nested
                .retain(|place, cached| kept(place.0, cached.read_at));
            if deep {
                self.stages
                    .retain(|place, cached| kept(place.0, cached.read_at));
            }
        }
    }

    /// Forgets all that was cached, and what it was asked for.
    pub(super) fn forget_all(&mut self) {
        self.queue.clear();
        self.contexts.clear();
        self.leaves.clear();
        self.links.clear();
        self.absent.clear();
        self.nested.clear();
        self.stages.clear();
    }

    /// How many leaves of a domain are cached.
    pub(super) fn cached_leaves(&self, domain: HwDomainId) -> usize {
        let of_domain = |place: &&Place| place.0 == domain.get();
        self.leaves.keys().filter(of_domain).count()
    }

    fn stamp<V>(&mut self, value: V) -> Cached<V> {
        self.reads += 1;
        Cached {
            value,
            read_at: self.reads - 1,
        }
    }

    /// Where a request leads, through caches first and tables second. Faults are logged.
    pub(super) fn translate(
        &mut self,
        host: &Host,
        who: Who,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        let (requester, pasid) = who;
        let result = self.look_up(host, who, at, access);
        if let Err(fault) = result {
            let class = match fault {
                DmaFault::NotBound => FaultClass::NotBound,
                DmaFault::TooWide => FaultClass::AddressTooWide,
                DmaFault::Malformed(_) => FaultClass::BadStructure,
                _ => FaultClass::NotPermitted,
            };
            let fault = RawFault {
                requester,
                pasid,
                address: at.align_down(PageSize::Size4K),
                access,
                class,
                stage: None,
                detail: FaultDetail::default(),
                // That a PASID is bound to nothing has a number of its own.
                code: class as u16 + if pasid.is_some() { PASID_FAULT } else { 0 },
            };
            if self.quiet.contains(&requester) {
                return result;
            }
            if self.faults.len() < FAULT_LOG {
                self.faults.push_back(fault);
            } else {
                self.lost_faults = true;
            }
        }
        result
    }

    /// Whether a read that asks not to snoop does all the same. Of an entry that leads to tables.
    pub(super) fn is_snooped(
        &mut self,
        host: &Host,
        requester: PciAddress,
        at: Iova,
    ) -> Result<bool, DmaFault> {
        Ok(self.leaf_of(host, requester, at, Access::Read)? & SNOOPED != 0)
    }

    /// Whether a write goes through a leaf that says that no memory is there. Of an entry that leads to tables.
    pub(super) fn rings(
        &mut self,
        host: &Host,
        requester: PciAddress,
        at: Iova,
    ) -> Result<bool, DmaFault> {
        Ok(self.leaf_of(host, requester, at, Access::Write)? & RINGS != 0)
    }

    /// The bits of the leaf that an access goes through.
    fn leaf_of(
        &mut self,
        host: &Host,
        requester: PciAddress,
        at: Iova,
        access: Access,
    ) -> Result<u64, DmaFault> {
        let who = (requester, None);
        self.translate(host, who, at, access)?;
        let domain = self.context(who).ok_or(DmaFault::NotBound)?.domain().get();
        let place = |level: u8| (domain, level, at.as_u64() >> shift(level));
        let leaf = (1..=3).find_map(|level| self.leaves.get(&place(level)));
        Ok(leaf.map_or(0, |leaf| leaf.value.bits))
    }

    fn look_up(
        &mut self,
        host: &Host,
        who: Who,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        match self.context(who).ok_or(DmaFault::NotBound)?.way {
            Way::Tables(binding) => self.second_stage(host, binding, at, access),
            Way::Nested(parent, stage) => self.both_stages(host, parent, stage, at, access),
            Way::Untranslated(_) => Ok(PhysAddr::new(at.as_u64())),
        }
    }

    /// Through a first stage, whose table and pages are addresses of the second.
    fn both_stages(
        &mut self,
        host: &Host,
        parent: Binding,
        stage: Stage,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        let (domain, table) = (parent.domain.get(), stage.table.as_u64());
        let (page, inside) = (at.as_u64() >> 12, at.as_u64() & 0xfff);
        let wanted = match access {
            Access::Read => READ,
            Access::Write => WRITE,
        };
        if let Some(leaf) = self.nested.get(&(domain, table, page))
            && leaf.value.bits & wanted != 0
        {
            return Ok(PhysAddr::new(leaf.value.to + inside));
        }
        if page >= 512 {
            return Err(DmaFault::TooWide);
        }
        let known = self.stages.get(&(domain, table)).map(|found| found.value);
        let words = match known {
            Some(words) => words,
            None => {
                let words = self.second_stage(host, parent, stage.table.into(), Access::Read)?;
                let cached = self.stamp(words);
                self.stages.insert((domain, table), cached);
                words
            }
        };
        let word = host.device_read(PhysAddr::new(words.as_u64() + page * 8));
        if word & wanted == 0 {
            return Err(DmaFault::NotMapped);
        }
        let to = self.second_stage(host, parent, Iova::new(word & ADDRESS), access)?;
        let leaf = Leaf {
            to: to.as_u64(),
            bits: wanted,
        };
        let cached = self.stamp(leaf);
        self.nested.insert((domain, table, page), cached);
        Ok(PhysAddr::new(to.as_u64() + inside))
    }

    fn second_stage(
        &mut self,
        host: &Host,
        binding: Binding,
        at: Iova,
        access: Access,
    ) -> Result<PhysAddr, DmaFault> {
        let (domain, root) = (binding.domain.get(), binding.root);
        let notes = binding.leaves.dirty && access == Access::Write;
        let top = shift(root.level().number() + 1);
        let bits = (top + u32::from(root.tables().log2())).min(self.caps.iova_bits.into());
        if at.as_u64() >> bits != 0 {
            return Err(DmaFault::TooWide);
        }
        let wanted = match access {
            Access::Read => READ,
            Access::Write => WRITE,
        };
        let place = |level: u8| (domain, level, at.as_u64() >> shift(level));
        for level in 1..=root.level().number() {
            if let Some(leaf) = self.leaves.get(&place(level)) {
                let (leaf, span) = (leaf.value, 1 << shift(level));
                if notes && leaf.bits & WRITE != 0 && leaf.bits & WRITTEN == 0 {
                    // It has to be noted first: to the table once more.
                    self.leaves.remove(&place(level));
                    break;
                }
                return if leaf.bits & wanted == 0 {
                    Err(DmaFault::NotPermitted)
                } else {
                    Ok(PhysAddr::new(leaf.to + at.as_u64() % span))
                };
            }
        }
        if (1..=root.level().number()).any(|level| self.absent.contains_key(&place(level))) {
            return Err(DmaFault::NotMapped);
        }
        // Of several root tables, the one that the upper bits choose.
        let first = root.page().as_u64() + ((at.as_u64() >> top) << 12);
        let (mut level, mut table) = (root.level().number(), PhysAddr::new(first));
        for below in 1..root.level().number() {
            let place = (domain, below, at.as_u64() >> shift(below + 1));
            if let Some(link) = self.links.get(&place) {
                (level, table) = (below, link.value);
                break;
            }
        }
        loop {
            assert!(host.is_out(table), "walked the freed table {table}");
            let index = at.as_u64() >> shift(level) & 0x1ff;
            let from = PhysAddr::new(table.as_u64() + index * 8);
            let mut word = host.device_read(from);
            let to = word & ADDRESS;
            if word & LINK != 0 && level > 1 {
                level -= 1;
                table = PhysAddr::new(to);
                let place = (domain, level, at.as_u64() >> shift(level + 1));
                let link = self.stamp(table);
                self.links.insert(place, link);
            } else if word & (READ | WRITE) != 0 {
                self.check_leaf(word, level)?;
                if notes && word & WRITE != 0 && word & WRITTEN == 0 {
                    if !host.device_swap(from, word, word | WRITTEN) {
                        continue;
                    }
                    word |= WRITTEN;
                }
                let leaf = Leaf {
                    to,
                    bits: word & (READ | WRITE | WRITTEN | SNOOPED | RINGS),
                };
                let cached = self.stamp(leaf);
                self.leaves.insert(place(level), cached);
                return if leaf.bits & wanted == 0 {
                    Err(DmaFault::NotPermitted)
                } else {
                    Ok(PhysAddr::new(to + at.as_u64() % (1 << shift(level))))
                };
            } else {
                if self.caps.sync_on_map {
                    let cached = self.stamp(());
                    self.absent.insert(place(level), cached);
                }
                return Err(DmaFault::NotMapped);
            }
        }
    }

    /// Whether the unit can use this leaf at all.
    fn check_leaf(&self, word: u64, level: u8) -> Result<(), DmaFault> {
        let to = word & ADDRESS;
        let size = 1_u64 << shift(level);
        let too_large = size > self.caps.largest_page.bytes();
        let write_only = word & READ == 0 && !self.caps.write_only;
        let too_far = to >> self.caps.phys_bits != 0;
        let uncontrolled = word & SNOOPED != 0 && !self.caps.snoop_control;
        if too_large || write_only || too_far || uncontrolled || !to.is_multiple_of(size) {
            return Err(DmaFault::Malformed(word));
        }
        Ok(())
    }

    fn context(&mut self, who: Who) -> Option<Bound> {
        if let Some(cached) = self.contexts.get(&who) {
            return cached.value;
        }
        let found = self.bindings.get(&who).copied();
        if found.is_some() || self.caps.sync_on_map {
            let cached = self.stamp(found);
            self.contexts.insert(who, cached);
        }
        found
    }
}
