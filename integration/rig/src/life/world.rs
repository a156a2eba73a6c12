//! The machine of a random life: its groups, domains and guests, and what each operation does to them.

use std::collections::BTreeMap;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, KernelPaging, PageCount, UserManaged, VmId};
use hv_iommu::{
    Attached, Blocked, Claimed, Config, FaultBudget, FlushError, Group, InterruptsIsolated, Iommu,
    UnitError, Wedged,
};

use super::addresses::Home;
use super::granule::Lives;
use super::op::{Kind, Op};
use super::space::{Done, Space};
use crate::driver::Driver;
use crate::ledger::Tenant;
use crate::rig::Rig;
use crate::rule::Rule;

/// How many guests there are.
pub(crate) const GUESTS: u16 = 3;
/// Pages of each guest's memory at least: there is room for a large page in any case.
const GUEST_PAGES: u64 = 2048;
/// How long a unit may take, as the subsystem is told.
const WAIT: Duration = Duration::from_millis(100);

/// Memory that mappings are made of.
pub(crate) struct Memories {
    pub(crate) rig: Rig,
    guests: Vec<GuestMemory>,
    /// Pages of each of them.
    pub(crate) guest_pages: u64,
}

impl Memories {
    pub(crate) fn guest(&self, vm: VmId) -> Option<&GuestMemory> {
        self.guests.iter().find(|guest| guest.vm() == vm)
    }
}

/// A group in whatever state it is.
pub(crate) enum Held<B: Lives> {
    Blocked(Group<B, Blocked>),
    Kernel(Group<B, Claimed<KernelPaging>>),
    Guest(Group<B, Claimed<UserManaged>>),
    KernelOn(Group<B, Attached<KernelPaging, B>>, Tenant),
    GuestOn(Group<B, Attached<UserManaged, B>>, Tenant),
    Wedged(Group<B, Wedged<B>>, Tenant),
    /// With a guest that has a first stage of its own: one of [`World::nests`].
    Away,
    /// In the middle of an operation.
    Moving,
}

/// Everything that lives.
pub(crate) struct World<B: Lives> {
    pub(crate) memories: Memories,
    pub(crate) iommu: Iommu<B>,
    pub(crate) groups: Vec<Held<B>>,
    pub(crate) kernel: BTreeMap<u64, Space<KernelPaging, B>>,
    pub(crate) guest: BTreeMap<u64, Space<UserManaged, B>>,
    /// Guests with first stages of their own, on SMMUs.
    pub(crate) nests: Vec<B::Nest>,
    /// Address spaces of guests that wedged groups are in.
    pub(crate) homes: Vec<Home<B>>,
    pub(crate) witness: InterruptsIsolated,
    pub(crate) next_tenant: u64,
    /// Frames that were out when the machine was up.
    pub(crate) baseline: u64,
    /// Units that the subsystem declared wedged.
    pub(crate) wedged: Vec<usize>,
    /// A unit that stopped answering for good: what it holds never comes back.
    pub(crate) lost: Option<usize>,
}

/// The subsystem and the groups that nobody has.
pub(crate) type BroughtUp<B> = (Iommu<B>, Vec<Group<B, Blocked>>);

/// Brings a machine up, whatever firmware left on.
pub(crate) fn bring_up<B: Driver>(rig: &Rig) -> Result<BroughtUp<B>, String> {
    let backend = B::start(rig)?;
    let functions = rig.functions();
    rig.watch();
    let config = Config {
        wait: WAIT,
        // Lives are all faults; what a budget does has a test of its own.
        faults: FaultBudget::UNLIMITED,
        ..Config::default()
    };
    let (iommu, groups) =
        Iommu::new(backend, &functions, config).map_err(|error| error.to_string())?;
    let free = groups
        .into_iter()
        .filter_map(|group| group.claimable().ok());
    Ok((iommu, free.collect()))
}

/// Does something with one of the domains, whoever owns it.
macro_rules! on_space {
    ($world:ident, $choice:expr, |$memories:ident, $space:ident| $work:expr) => {{
        let done = {
            let World {
                memories: $memories,
                kernel,
                guest,
                ..
            } = &mut *$world;
            let count = kernel.len();
            match $choice.checked_rem((count + guest.len()) as u64) {
                None => Done::Fine,
                Some(index) if (index as usize) < count => {
                    match kernel.values_mut().nth(index as usize) {
                        Some($space) => $work,
                        None => Done::Fine,
                    }
                }
                Some(index) => match guest.values_mut().nth(index as usize - count) {
                    Some($space) => $work,
                    None => Done::Fine,
                },
            }
        };
        if let Done::Unit(FlushError::Unit(error)) = done {
            $world.failed(error);
        }
    }};
}

impl<B: Lives> World<B> {
    /// Brings the machine up.
    pub(crate) fn new(rig: Rig) -> Result<Self, String> {
        let (iommu, groups) = bring_up(&rig)?;
        let (mut guests, guest_pages) = (Vec::new(), GUEST_PAGES.max(B::LARGE));
        for vm in (1..=GUESTS).filter_map(VmId::new) {
            let mut memory = GuestMemory::new(vm);
            let pages = PageCount::new(guest_pages).unwrap_or(PageCount::ONE);
            if let Ok(frames) = rig.alloc_frames(pages, B::large()) {
                drop(memory.give(Gpa::new(0), frames));
            }
            guests.push(memory);
        }
        let baseline = rig.frames_out();
        Ok(Self {
            memories: Memories {
                rig,
                guests,
                guest_pages,
            },
            iommu,
            groups: groups.into_iter().map(Held::Blocked).collect(),
            kernel: BTreeMap::new(),
            guest: BTreeMap::new(),
            nests: Vec::new(),
            homes: Vec::new(),
            witness: InterruptsIsolated::override_unsafe_interrupts("a random life"),
            next_tenant: 1,
            baseline,
            wedged: Vec::new(),
            lost: None,
        })
    }

    pub(crate) fn rig(&self) -> &Rig {
        &self.memories.rig
    }

    /// Does one operation. Whatever broke is noted in the rig.
    pub(crate) fn perform(&mut self, op: Op) {
        let choice = op.choice;
        match op.kind {
            Kind::Claim => self.claim(choice),
            Kind::Release => self.release(choice),
            Kind::Allocate => self.allocate(choice),
            Kind::Attach => self.attach(choice),
            Kind::Detach => self.detach_some(choice[0]),
            Kind::Reassign => self.reassign(choice),
            Kind::Map => on_space!(self, choice[2], |memories, space| space
                .map(memories, choice)),
            Kind::MapLarge => on_space!(self, choice[2], |memories, space| space
                .map_large(memories, choice)),
            Kind::Unmap => {
                on_space!(self, choice[2], |memories, space| space
                    .unmap(memories, choice[0], true));
            }
            Kind::UnmapLater => {
                on_space!(self, choice[2], |memories, space| space
                    .unmap(memories, choice[0], false));
            }
            Kind::Flush => on_space!(self, choice[2], |memories, space| space
                .flush(memories, choice[0])),
            Kind::FlushPages => {
                on_space!(self, choice[2], |memories, space| space
                    .flush_pages(memories, choice));
            }
            Kind::Split => on_space!(self, choice[2], |_memories, space| {
                space.split(choice);
                Done::Fine
            }),
            Kind::Cut => on_space!(self, choice[2], |memories, space| space
                .cut(memories, choice)),
            Kind::Merge => on_space!(self, choice[2], |memories, space| space
                .merge(memories, choice)),
            Kind::Protect => on_space!(self, choice[2], |memories, space| space
                .protect(memories, choice)),
            Kind::Join => on_space!(self, choice[2], |memories, space| space
                .join(memories, choice)),
            Kind::Settle => on_space!(self, choice[2], |memories, space| space
                .settle(memories, choice)),
            Kind::Reclaim => on_space!(self, choice[2], |memories, space| space.reclaim(memories)),
            Kind::Sow => on_space!(self, choice[2], |memories, space| space
                .sow(memories, choice)),
            Kind::Nest => on_space!(self, choice[2], |memories, space| space
                .nest(memories, choice)),
            Kind::DeviceTlb => B::device_tlb(self, choice),
            Kind::Guest => B::nested(self, choice),
            Kind::UnmapWalked => on_space!(self, choice[2], |memories, space| space
                .unmap_walked(memories, choice)),
            Kind::Share => {
                on_space!(self, choice[2], |memories, space| space
                    .share(memories, choice));
            }
            Kind::Forget => on_space!(self, choice[2], |_memories, space| {
                space.forget(choice);
                Done::Fine
            }),
            Kind::Buffer => self.buffer(choice),
            Kind::BusMaster => self.bus_master(choice),
            Kind::Destroy => self.destroy(choice),
            Kind::Send => self.send(choice),
            Kind::Storm => self.storm(choice),
            Kind::Written => self.written(choice),
            Kind::AddressSpace => self.address_space(choice),
            Kind::Faults => self.take_faults(),
            Kind::FailAllocation => self.rig().fail_allocation_after(Some(choice[0] % 4)),
            Kind::Hang => self.hang(choice),
            Kind::Reset => self.reset(choice[0] & 1 == 0),
            Kind::Plug => self.plug(choice),
            Kind::LoseUnit => {
                let units = self.iommu_units() as u64;
                let unit = (choice[0] % units) as usize;
                self.lost = Some(unit);
                self.rig().say(format!("unit {unit} stops answering"));
                self.rig().lose_unit(unit);
            }
            Kind::Idle => self.rig().idle((choice[0] % 64) as u32),
        }
    }

    fn iommu_units(&self) -> usize {
        self.rig().machine().units.len()
    }

    /// A unit failed: it is wedged, and the rig looks whether its devices were cut off.
    pub(crate) fn failed(&mut self, error: UnitError) {
        let unit = match error {
            UnitError::Wedged { unit } | UnitError::Timeout { unit, .. } => unit,
            UnitError::Hardware { unit, .. } => unit,
            UnitError::Busy { unit, .. } => {
                let what = format!("{unit} was busy on a machine of one CPU");
                self.rig().broken(Rule::WrongAnswer, what);
                return;
            }
            other => {
                self.rig().broken(
                    Rule::WrongAnswer,
                    format!("a healthy request failed: {other}"),
                );
                return;
            }
        };
        let units: Vec<usize> = self.iommu.wedged_units().map(|unit| unit.index()).collect();
        if !units.contains(&unit.index()) {
            let what = format!("{error}, and the subsystem does not have it as wedged");
            self.rig().broken(Rule::WrongAnswer, what);
        }
        // One call may have wedged several.
        for index in units {
            if !self.wedged.contains(&index) {
                self.wedged.push(index);
            }
            if !self.rig().was_ill(index) {
                let what = format!("unit {index} is well and was declared wedged: {error}");
                self.rig().broken(Rule::WrongAnswer, what);
            }
            self.rig().wedged(index, true);
        }
    }

    /// At the end all that was taken is back.
    pub(crate) fn judge_leaks(&self) {
        let rig = self.rig();
        let (out, tables) = (rig.frames_out(), rig.binding_frames());
        let expected = self.baseline + tables.start()..=self.baseline + tables.end();
        if !expected.contains(&out) {
            let what = format!(
                "{out} frames are out, expected {expected:?}: those of bring-up and context tables"
            );
            rig.broken(Rule::Leak, what);
        }
        let ids = self.iommu.domains_in_use();
        if ids != 0 {
            rig.broken(
                Rule::Leak,
                format!("{ids} domain ids are taken, and there is no domain"),
            );
        }
        let pinned: u64 = self
            .memories
            .guests
            .iter()
            .map(GuestMemory::pinned_pages)
            .sum();
        if pinned != 0 {
            rig.broken(
                Rule::Leak,
                format!("{pinned} pages of guests are pinned, and nothing is mapped"),
            );
        }
    }
}
