//! Who owns what, as the test knows it and not as the driver's tables say.
//!
//! The test notes each step before it asks the driver for it and again when the driver has answered. In
//! between both the old and the new state are right.

use std::collections::{BTreeMap, BTreeSet};

use hv_core::{Access, Perms};

/// One address space of one owner: a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub u64);

/// How far a mapping or an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Being made: may work or not.
    Coming,
    /// Made: must work.
    Live,
    /// Being taken away: may still work.
    Going,
    /// As `Going`, until the frames come back to the platform: the driver gives them back by itself.
    Leaving,
}

/// Permissions that a run had before: hardware may go by any of them until a receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Earlier(u8);

impl Earlier {
    const ALL: [Perms; 3] = [Perms::Read, Perms::Write, Perms::ReadWrite];

    /// These as well.
    pub(crate) fn with(self, perms: Perms) -> Self {
        let at = Self::ALL.iter().position(|known| *known == perms);
        Self(self.0 | 1 << at.unwrap_or(0))
    }

    fn each(self) -> impl Iterator<Item = Perms> {
        let bits = self.0;
        let known = Self::ALL.into_iter().enumerate();
        known.filter_map(move |(at, perms)| (bits >> at & 1 != 0).then_some(perms))
    }
}

/// A run of pages that a tenant has mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Pages of 4 KiB.
    pub(crate) pages: u64,
    /// The first frame.
    pub(crate) frame: u64,
    pub(crate) perms: Perms,
    pub(crate) earlier: Earlier,
    pub(crate) phase: Phase,
    /// When it came into this phase.
    pub(crate) since: u64,
}

/// Where a device stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holding {
    pub(crate) tenant: Tenant,
    pub(crate) phase: Phase,
    pub(crate) since: u64,
}

/// What a request that reached memory, or faulted, was entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entitled {
    /// To nothing: it must fault.
    Nothing,
    /// To this frame, if it gets through; a fault is right as well.
    Maybe { frame: u64 },
    /// To this frame and no fault.
    Surely { frame: u64 },
}

/// The ledger.
#[derive(Default)]
pub(crate) struct Ledger {
    mappings: BTreeMap<(Tenant, u64), Run>,
    /// Where devices stand: for requests without a PASID, and for those with each PASID that was attached.
    devices: BTreeMap<(usize, Option<u32>), Holding>,
    /// Whose devices are to snoop the CPU's caches with whatever they send.
    snooping: BTreeSet<Tenant>,
    /// Pages that were mapped not long ago, for devices that come back to them.
    ghosts: Vec<(Tenant, u64)>,
}

/// How many former pages are remembered.
const GHOSTS: usize = 64;

fn permits(perms: Perms, access: Access) -> bool {
    match access {
        Access::Read => perms.readable(),
        Access::Write => perms.writable(),
    }
}

impl Ledger {
    /// Where this device stands with requests that carry this PASID, or none.
    pub(crate) fn holding(&self, device: usize, substream: Option<u32>) -> Option<Holding> {
        self.devices.get(&(device, substream)).copied()
    }

    /// Where this device stands, with whatever requests.
    pub(crate) fn holdings(&self, device: usize) -> impl Iterator<Item = (Option<u32>, Holding)> {
        let mine = self
            .devices
            .range((device, None)..=(device, Some(u32::MAX)));
        mine.map(|((_, substream), holding)| (*substream, *holding))
    }

    /// A device comes to a tenant with requests like these, settles there, or begins to leave.
    pub(crate) fn hold(
        &mut self,
        device: usize,
        substream: Option<u32>,
        tenant: Tenant,
        phase: Phase,
        now: u64,
    ) {
        let holding = Holding {
            tenant,
            phase,
            since: now,
        };
        self.devices.insert((device, substream), holding);
    }

    /// A device belongs to nobody from now on, with requests like these.
    pub(crate) fn let_go(&mut self, device: usize, substream: Option<u32>) {
        self.devices.remove(&(device, substream));
    }

    /// Whatever a tenant's devices send is to snoop the CPU's caches.
    pub(crate) fn snoop(&mut self, tenant: Tenant) {
        self.snooping.insert(tenant);
    }

    /// Whether it is.
    pub(crate) fn snoops(&self, tenant: Tenant) -> bool {
        self.snooping.contains(&tenant)
    }

    /// A mapping begins.
    pub(crate) fn begin(&mut self, tenant: Tenant, page: u64, run: Run) {
        self.mappings.insert((tenant, page), run);
    }

    /// Splits runs so that one starts at `page`.
    fn cut(&mut self, tenant: Tenant, page: u64) {
        let before = self.mappings.range_mut(..(tenant, page)).next_back();
        let Some((&(owner, start), run)) = before else {
            return;
        };
        if owner != tenant || start + run.pages <= page {
            return;
        }
        let mut rest = *run;
        run.pages = page - start;
        rest.pages -= run.pages;
        rest.frame += run.pages;
        self.mappings.insert((tenant, page), rest);
    }

    fn starts(&mut self, tenant: Tenant, page: u64, pages: u64) -> Vec<u64> {
        self.cut(tenant, page);
        self.cut(tenant, page + pages);
        let range = (tenant, page)..(tenant, page + pages);
        self.mappings
            .range(range)
            .map(|((_, page), _)| *page)
            .collect()
    }

    /// The pages of a mapping come into another phase, with these permissions if they changed.
    pub(crate) fn turn(
        &mut self,
        tenant: Tenant,
        page: u64,
        pages: u64,
        phase: Phase,
        perms: Option<Perms>,
        now: u64,
    ) {
        for start in self.starts(tenant, page, pages) {
            if let Some(run) = self.mappings.get_mut(&(tenant, start)) {
                run.phase = phase;
                run.perms = perms.unwrap_or(run.perms);
                run.since = now;
            }
        }
    }

    /// The permissions of the pages are about to become one of these, or just did; what they were counts on until
    /// [`settle`](Self::settle).
    pub(crate) fn protect(
        &mut self,
        tenant: Tenant,
        page: u64,
        pages: u64,
        change: impl Fn(&mut Run),
    ) {
        for start in self.starts(tenant, page, pages) {
            if let Some(run) = self.mappings.get_mut(&(tenant, start)) {
                run.earlier = run.earlier.with(run.perms);
                change(run);
            }
        }
    }

    /// What the pages' permissions were before is forgotten.
    pub(crate) fn settle(&mut self, tenant: Tenant, page: u64, pages: u64, now: u64) {
        for start in self.starts(tenant, page, pages) {
            if let Some(run) = self.mappings.get_mut(&(tenant, start)) {
                run.earlier = Earlier::default();
                run.since = now;
            }
        }
    }

    /// The pages are mapped no more. Gives the frames that they held.
    pub(crate) fn end(&mut self, tenant: Tenant, page: u64, pages: u64) -> Vec<(u64, u64)> {
        let mut frames = Vec::new();
        for start in self.starts(tenant, page, pages) {
            if let Some(run) = self.mappings.remove(&(tenant, start)) {
                frames.push((run.frame, run.pages));
                if self.ghosts.len() == GHOSTS {
                    self.ghosts.remove(0);
                }
                self.ghosts.push((tenant, start));
            }
        }
        frames
    }

    /// Everything of a tenant ends. Gives the frames that were held.
    pub(crate) fn end_all(&mut self, tenant: Tenant) -> Vec<(u64, u64)> {
        self.end(tenant, 0, u64::MAX)
    }

    /// What `device` is entitled to at this page with requests like these, for one that began at `began`.
    pub(crate) fn entitled(
        &self,
        device: usize,
        substream: Option<u32>,
        page: u64,
        access: Access,
        began: u64,
    ) -> Entitled {
        let Some(holding) = self.devices.get(&(device, substream)) else {
            return Entitled::Nothing;
        };
        let Some((start, run)) = self.run_at(holding.tenant, page) else {
            return Entitled::Nothing;
        };
        let frame = run.frame + (page - start);
        let now = permits(run.perms, access);
        let mut earlier = run.earlier.each().map(|perms| permits(perms, access));
        if !now && !earlier.any(|permitted| permitted) {
            return Entitled::Nothing;
        }
        let mut earlier = run.earlier.each().map(|perms| permits(perms, access));
        let always = now && earlier.all(|permitted| permitted);
        let settled = |phase: Phase, since: u64| phase == Phase::Live && since <= began;
        if always && settled(run.phase, run.since) && settled(holding.phase, holding.since) {
            Entitled::Surely { frame }
        } else {
            Entitled::Maybe { frame }
        }
    }

    /// The run of a tenant that covers this page.
    pub(crate) fn run_at(&self, tenant: Tenant, page: u64) -> Option<(u64, &Run)> {
        let ((owner, start), run) = self.mappings.range(..=(tenant, page)).next_back()?;
        (*owner == tenant && page - start < run.pages).then_some((*start, run))
    }

    /// Who has one of these frames mapped.
    pub(crate) fn holder(&self, first: u64, pages: u64) -> Option<(Tenant, u64)> {
        let overlaps = |run: &Run| run.frame < first + pages && first < run.frame + run.pages;
        let found = self.mappings.iter().find(|(_, run)| overlaps(run));
        found.map(|(key, _)| *key)
    }

    /// Ends what was to end when these frames come back.
    pub(crate) fn left_with(&mut self, first: u64, pages: u64) {
        self.mappings.retain(|_, run| {
            let overlaps = run.frame < first + pages && first < run.frame + run.pages;
            !(overlaps && run.phase == Phase::Leaving)
        });
    }

    /// Some run of a tenant, the `choice`-th around.
    pub(crate) fn some_run(&self, tenant: Tenant, choice: u64) -> Option<(u64, Run)> {
        let runs = self.mappings.range((tenant, 0)..=(tenant, u64::MAX));
        let count = runs.clone().count() as u64;
        let nth = choice.checked_rem(count)?;
        let mut runs = runs;
        let ((_, page), run) = runs.nth(nth as usize)?;
        Some((*page, *run))
    }

    /// Some page that was mapped not long ago, by whomever.
    pub(crate) fn some_ghost(&self, choice: u64) -> Option<u64> {
        let index = choice.checked_rem(self.ghosts.len() as u64)?;
        self.ghosts.get(index as usize).map(|(_, page)| *page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pages: u64, frame: u64) -> Run {
        Run {
            pages,
            frame,
            perms: Perms::Read,
            earlier: Earlier::default(),
            phase: Phase::Coming,
            since: 1,
        }
    }

    #[test]
    fn earlier_permissions_count_until_they_are_settled() {
        let one = Tenant(1);
        let mut ledger = Ledger::default();
        ledger.begin(one, 10, run(4, 100));
        ledger.turn(one, 10, 4, Phase::Live, Some(Perms::ReadWrite), 1);
        ledger.hold(0, None, one, Phase::Live, 0);
        let ask = |ledger: &Ledger, access| ledger.entitled(0, None, 12, access, 9);
        assert_eq!(ask(&ledger, Access::Write), Entitled::Surely { frame: 102 });
        ledger.protect(one, 12, 1, |run| run.perms = Perms::Read);
        assert_eq!(ask(&ledger, Access::Write), Entitled::Maybe { frame: 102 });
        assert_eq!(ask(&ledger, Access::Read), Entitled::Surely { frame: 102 });
        ledger.settle(one, 12, 1, 2);
        assert_eq!(ask(&ledger, Access::Write), Entitled::Nothing);
        ledger.protect(one, 10, 4, |run| run.perms = Perms::ReadWrite);
        assert_eq!(ask(&ledger, Access::Write), Entitled::Maybe { frame: 102 });
        ledger.settle(one, 10, 4, 3);
        assert_eq!(ask(&ledger, Access::Write), Entitled::Surely { frame: 102 });
    }

    #[test]
    fn a_request_is_entitled_to_what_is_mapped_for_its_holder() {
        let (one, two) = (Tenant(1), Tenant(2));
        let mut ledger = Ledger::default();
        ledger.begin(one, 10, run(4, 100));
        ledger.hold(0, None, one, Phase::Live, 0);
        ledger.hold(1, None, two, Phase::Live, 0);
        let read =
            |ledger: &Ledger, device, page| ledger.entitled(device, None, page, Access::Read, 5);
        assert_eq!(read(&ledger, 0, 11), Entitled::Maybe { frame: 101 });
        ledger.turn(one, 10, 4, Phase::Live, None, 6);
        assert_eq!(
            read(&ledger, 0, 11),
            Entitled::Maybe { frame: 101 },
            "it began before"
        );
        ledger.turn(one, 10, 4, Phase::Live, None, 4);
        assert_eq!(read(&ledger, 0, 13), Entitled::Surely { frame: 103 });
        assert_eq!(read(&ledger, 0, 14), Entitled::Nothing);
        assert_eq!(
            read(&ledger, 1, 11),
            Entitled::Nothing,
            "another tenant's device"
        );
        assert_eq!(
            ledger.entitled(0, None, 11, Access::Write, 5),
            Entitled::Nothing
        );
        ledger.hold(0, Some(7), two, Phase::Live, 0);
        let with = |pasid| ledger.entitled(0, Some(pasid), 13, Access::Read, 5);
        assert_eq!((with(7), with(8)), (Entitled::Nothing, Entitled::Nothing));
        assert_eq!(ledger.holdings(0).count(), 2);
    }

    #[test]
    fn runs_are_cut_where_parts_of_them_end() {
        let one = Tenant(1);
        let mut ledger = Ledger::default();
        ledger.begin(one, 10, run(8, 100));
        assert_eq!(ledger.end(one, 12, 2), [(102, 2)]);
        assert!(ledger.run_at(one, 12).is_none());
        assert_eq!(ledger.run_at(one, 14).unwrap().1.frame, 104);
        assert_eq!(ledger.holder(103, 1), None);
        assert_eq!(ledger.holder(101, 2), Some((one, 10)));
        ledger.turn(one, 10, 2, Phase::Leaving, None, 2);
        ledger.left_with(101, 1);
        assert_eq!(ledger.end_all(one), [(104, 4)]);
        assert!(ledger.mappings.is_empty());
    }
}
