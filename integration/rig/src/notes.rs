//! What a test tells the watcher about who owns what: before it asks the driver for a step, and after.

use hv_core::{IovaRange, Pasid, PciAddress, Perms, PhysRange};
use hv_iommu::table::Mapping;

use crate::bus::Gap;
use crate::ledger::{Earlier, Phase, Run, Tenant};
use crate::memory::frame_of;
use crate::rig::Rig;
use crate::rule::Rule;

impl Rig {
    /// From now on every request is judged by the ledger, and devices that nobody has must be off the bus.
    ///
    /// So from now on the test notes each step before it asks the driver for it, and again when the driver has
    /// answered: [`attaching`](Self::attaching) and [`attached`](Self::attached), [`mapping`](Self::mapping) and
    /// [`mapped`](Self::mapped), and so on. What is not noted looks like a mistake of the driver.
    pub fn watch(&self) {
        let mut state = self.core.quiet();
        let state = &mut *state;
        state.bus.watching = true;
        state.bus.judge_cut_off();
        for unit in &mut state.units {
            unit.brought_up(&mut state.bus);
        }
    }

    /// These devices run on through bring-up, attached to a tenant already as far as the ledger goes: what is mapped there
    /// works for them from now on, at every moment, but for the one that a unit takes which firmware left translating.
    pub fn keep_running(&self, functions: &[PciAddress], tenant: Tenant) {
        self.attached(functions, tenant);
        let mut state = self.core.quiet();
        let bus = &mut state.bus;
        let known = bus.functions.iter().enumerate();
        let kept = known.filter(|(_, function)| functions.contains(&function.address));
        bus.kept = kept.map(|(index, _)| index).collect();
    }

    /// The moments in which such devices were aborted.
    pub fn gap(&self) -> Gap {
        self.core.quiet().bus.gap
    }

    fn hold(&self, functions: &[PciAddress], pasid: Option<Pasid>, tenant: Tenant, phase: Phase) {
        let mut state = self.core.quiet();
        let now = state.bus.tick;
        for index in 0..state.bus.functions.len() {
            if functions.contains(&state.bus.functions[index].address) {
                let substream = pasid.map(Pasid::get);
                state.bus.ledger.hold(index, substream, tenant, phase, now);
            }
        }
    }

    /// Devices are about to be attached.
    pub fn attaching(&self, functions: &[PciAddress], tenant: Tenant) {
        self.hold(functions, None, tenant, Phase::Coming);
    }

    /// Devices were attached: what is mapped works for them.
    pub fn attached(&self, functions: &[PciAddress], tenant: Tenant) {
        self.hold(functions, None, tenant, Phase::Live);
    }

    /// Devices are about to be detached, or their detach failed.
    pub fn detaching(&self, functions: &[PciAddress], tenant: Tenant) {
        self.hold(functions, None, tenant, Phase::Going);
    }

    /// Devices were detached: they reach nothing and have no bus mastering.
    pub fn detached(&self, functions: &[PciAddress]) {
        self.let_go(functions, None);
    }

    /// A PASID of these devices is about to be attached.
    pub fn attaching_pasid(&self, functions: &[PciAddress], pasid: Pasid, tenant: Tenant) {
        self.hold(functions, Some(pasid), tenant, Phase::Coming);
    }

    /// It was: what is mapped works for requests that carry it.
    pub fn attached_pasid(&self, functions: &[PciAddress], pasid: Pasid, tenant: Tenant) {
        self.hold(functions, Some(pasid), tenant, Phase::Live);
    }

    /// It is about to be detached, or its detach failed.
    pub fn detaching_pasid(&self, functions: &[PciAddress], pasid: Pasid, tenant: Tenant) {
        self.hold(functions, Some(pasid), tenant, Phase::Going);
    }

    /// It was detached: requests that carry it reach nothing.
    pub fn detached_pasid(&self, functions: &[PciAddress], pasid: Pasid) {
        self.let_go(functions, Some(pasid));
    }

    fn let_go(&self, functions: &[PciAddress], pasid: Option<Pasid>) {
        let mut state = self.core.quiet();
        for index in 0..state.bus.functions.len() {
            if functions.contains(&state.bus.functions[index].address) {
                state.bus.ledger.let_go(index, pasid.map(Pasid::get));
                state.bus.functions[index].silent &= pasid.is_some();
                if pasid.is_none() {
                    state.bus.services.let_go(|device| device == index);
                }
            }
        }
        state.bus.judge_cut_off();
    }

    /// A tenant was told that whatever its devices send snoops the CPU's caches, also where they ask not to.
    pub fn snoops(&self, tenant: Tenant) {
        self.core.quiet().bus.ledger.snoop(tenant);
    }

    /// A range is about to be mapped.
    pub fn mapping(&self, tenant: Tenant, range: IovaRange, to: PhysRange, perms: Perms) {
        let mut state = self.core.quiet();
        let run = Run {
            pages: range.pages().get(),
            frame: frame_of(to.start().as_u64()),
            perms,
            earlier: Earlier::default(),
            phase: Phase::Coming,
            since: state.bus.tick,
        };
        // From here on the ledger knows what was lent.
        let lent = (run.frame, run.pages);
        state
            .bus
            .lent
            .retain(|(_, first, pages)| (*first, *pages) != lent);
        state
            .bus
            .ledger
            .begin(tenant, frame_of(range.start().as_u64()), run);
    }

    fn turn(&self, tenant: Tenant, range: IovaRange, phase: Phase, perms: Option<Perms>) {
        let mut state = self.core.quiet();
        let (page, pages) = (frame_of(range.start().as_u64()), range.pages().get());
        let now = state.bus.tick;
        state
            .bus
            .ledger
            .turn(tenant, page, pages, phase, perms, now);
    }

    /// A range was mapped with these permissions: it works from now on.
    pub fn mapped(&self, tenant: Tenant, range: IovaRange, granted: Perms) {
        self.turn(tenant, range, Phase::Live, Some(granted));
    }

    /// The permissions of a mapped range are about to change. A unit without write-only mappings widens those.
    pub fn protecting(&self, tenant: Tenant, range: IovaRange, perms: Perms) {
        self.protect(tenant, range, |run| {
            run.earlier = run.earlier.with(perms);
            if perms == Perms::Write {
                run.earlier = run.earlier.with(Perms::ReadWrite);
            }
        });
    }

    /// They did. Devices may go by what they were until [`settled`](Self::settled).
    pub fn protected(&self, tenant: Tenant, range: IovaRange, granted: Perms) {
        self.protect(tenant, range, |run| run.perms = granted);
    }

    fn protect(&self, tenant: Tenant, range: IovaRange, change: impl Fn(&mut Run)) {
        let mut state = self.core.quiet();
        let (page, pages) = (frame_of(range.start().as_u64()), range.pages().get());
        state.bus.ledger.protect(tenant, page, pages, change);
    }

    /// There is a receipt for earlier page sizes and permissions of a range: no unit has anything of it but
    /// these leaves, which are what its domain says now.
    pub fn settled(&self, tenant: Tenant, range: IovaRange, leaves: &[Mapping]) {
        let mut state = self.core.quiet();
        let (page, pages) = (frame_of(range.start().as_u64()), range.pages().get());
        let now = state.bus.tick;
        state.bus.ledger.settle(tenant, page, pages, now);
        state.judge_settled(tenant, leaves);
    }

    /// A range is about to be unmapped.
    pub fn unmapping(&self, tenant: Tenant, range: IovaRange) {
        self.turn(tenant, range, Phase::Going, None);
    }

    /// A range was unmapped, with a receipt, or was not mapped in the end: its frames are free for
    /// anything.
    pub fn returned(&self, tenant: Tenant, range: IovaRange) {
        let mut state = self.core.quiet();
        let (page, pages) = (frame_of(range.start().as_u64()), range.pages().get());
        state.judge_pages(tenant, page, pages);
        for (frame, pages) in state.bus.ledger.end(tenant, page, pages) {
            if state.bus.ledger.holder(frame, pages).is_none() {
                state.judge_return(frame, pages, "given back to their owner");
            }
        }
    }

    /// The driver is about to take frames and map them in this tenant's domain by itself: those of its next
    /// allocation. `None` when it has answered.
    pub fn lending(&self, tenant: Option<Tenant>) {
        self.core.quiet().bus.lending = tenant;
    }

    /// The driver keeps these frames, and may map them in this tenant's domain again by itself.
    pub fn kept(&self, tenant: Tenant, frames: PhysRange) {
        let first = frame_of(frames.start().as_u64());
        let lent = (tenant, first, frames.pages().get());
        self.core.quiet().bus.lent.push(lent);
    }

    /// A range is about to be unmapped by a driver that gives its frames to the platform by itself.
    pub fn leaving(&self, tenant: Tenant, range: IovaRange) {
        self.turn(tenant, range, Phase::Leaving, None);
    }

    /// The frames that an unmap gave back are those that were mapped, all of them.
    pub fn expect_frames(&self, tenant: Tenant, range: IovaRange, frames: PhysRange) {
        let mut state = self.core.quiet();
        let page = frame_of(range.start().as_u64());
        let found = state.bus.ledger.run_at(tenant, page);
        let expected = found.map(|(start, run)| run.frame + (page - start));
        let first = frame_of(frames.start().as_u64());
        if expected != Some(first) || frames.pages() != range.pages() {
            let what = format!("{range} was mapped to frame {expected:x?}, and {frames} came back");
            state.bus.broken(Rule::LostFrames, what);
        }
    }

    /// A tenant ended: nothing is mapped for it any more.
    pub fn ended(&self, tenant: Tenant) {
        let mut state = self.core.quiet();
        for (frame, pages) in state.bus.ledger.end_all(tenant) {
            if state.bus.ledger.holder(frame, pages).is_none() {
                state.judge_return(frame, pages, "given back to their owner");
            }
        }
    }

    /// The driver declared a unit wedged, or brought it back. A wedged one's devices must be off the bus.
    pub fn wedged(&self, unit: usize, wedged: bool) {
        let mut state = self.core.quiet();
        if wedged {
            state.bus.wedged |= 1 << unit;
            state.bus.judge_cut_off();
        } else {
            state.bus.wedged &= !(1 << unit);
            let now = state.bus.nanos;
            if let Some(unit) = state.units.get_mut(unit) {
                unit.health_mut().recovered(now);
            }
        }
    }
}
