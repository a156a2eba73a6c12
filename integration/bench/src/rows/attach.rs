//! Rows of devices that change hands, on the rig: claim, attach, detach and release beside the bare stores and flushes.

#![expect(
    unsafe_code,
    reason = "a floor binds a device to a table without asking whose they are"
)]

use hv_core::{KernelPaging, PciAddress};
use hv_iommu::table::{Geometry, Table};
use hv_iommu::{
    AtRest, Backend, Binding, Config, Domain, DomainConfig, FlushTicket, Group, HwDomainId, Iommu,
    LeafNeeds, Level, NeedsReset, RootTables, UnitIndex,
};
use hv_rig::{Machine, Rig};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

use super::{BLANK, Job, Row, Scale};
use crate::lane::{Lane, Mapped, Subject};
use crate::results::Who;

/// How often a device is attached and detached in a round.
const TURNS: u64 = 256;

type Units = Vtd<Rig>;

fn bring_up() -> (Rig, Units) {
    let rig = Rig::new(Machine::calm()).expect("a calm machine can be played");
    let table = dmar::parse(&rig.dmar().expect("VT-d units")).expect("the rig's own table");
    let functions = rig.functions();
    let discovery = Vtd::discover(rig.clone(), &table, &functions, CoveragePolicy::Strict)
        .expect("every function is covered");
    (rig, discovery.bring_up().expect("a calm unit comes up"))
}

/// The stores of an entry and the flushes that it needs, and nothing else.
struct Bare {
    units: Units,
    unit: UnitIndex,
    device: PciAddress,
    binding: Binding,
}

impl Bare {
    fn new() -> Self {
        let (rig, units) = bring_up();
        let device = rig.endpoints()[0];
        let unit = units.unit_of(device).expect("the device is covered");
        let caps = units.unit_caps(unit).expect("the unit is there");
        let root = caps.levels.iter().next().expect("some depth");
        let geometry = Geometry {
            root,
            root_tables: RootTables::ONE,
            largest_leaf: Level::LEAF,
            coherent: caps.coherent,
            live_resize: false,
            dirty: false,
        };
        let memory: &'static Rig = Box::leak(Box::new(rig));
        // SAFETY: nobody walks this table by software, so there are no guards at all.
        let table =
            unsafe { Table::new(units.format(&caps, LeafNeeds::default()), geometry, memory) };
        let table: &'static _ = Box::leak(Box::new(table.expect("the rig has frames")));
        let root = table.root().expect("the table has not ended");
        let domain = HwDomainId::new(7);
        Self {
            units,
            unit,
            device,
            binding: Binding {
                root,
                domain,
                leaves: LeafNeeds::default(),
            },
        }
    }

    fn wait(&self, ticket: FlushTicket) {
        while !self
            .units
            .poll(self.unit, ticket)
            .expect("the unit is well")
        {
            std::hint::spin_loop();
        }
    }

    #[inline(never)]
    fn turn(&self) {
        for _ in 0..TURNS {
            // SAFETY: the table is leaked and empty.
            let bound = unsafe { self.units.bind(self.unit, self.device, self.binding) };
            if let Some(ticket) = bound.expect("nobody else has the device") {
                self.wait(ticket);
            }
            let ticket = self
                .units
                .unbind(self.unit, self.device, self.binding.domain);
            self.wait(ticket.expect("the device is bound"));
        }
    }
}

impl Subject for Bare {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

/// The same device as a group that changes hands.
struct Whole {
    domain: Domain<KernelPaging, Units>,
    group: Option<Group<Units, NeedsReset<KernelPaging>>>,
    _iommu: Iommu<Units>,
}

impl Whole {
    fn new() -> Self {
        let (rig, units) = bring_up();
        let (iommu, groups) =
            Iommu::new(units, &rig.functions(), Config::default()).expect("the host has memory");
        let mut groups = groups.into_iter().flat_map(AtRest::claimable);
        let group = groups.next().expect("a device");
        let group = group.claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&group, DomainConfig::default())
            .expect("the unit has 39 bits");
        Self {
            domain,
            group: Some(group.release()),
            _iommu: iommu,
        }
    }

    #[inline(never)]
    fn turn(&mut self) {
        for _ in 0..TURNS {
            let group = self.group.take().expect("the group is at rest");
            let attached = group.claim_for_hypervisor().attach(&self.domain);
            let group = attached.expect("the unit is well").detach();
            self.group = Some(group.expect("the unit is well").release());
        }
    }
}

impl Subject for Whole {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

fn change_hands(_scale: &Scale) -> Vec<Lane> {
    vec![
        Lane::new(Who::Floor, TURNS, Bare::new(), |_| {}, |bare| bare.turn()),
        Lane::new(
            Who::Engine,
            TURNS,
            Whole::new(),
            |_| {},
            |whole| whole.turn(),
        ),
    ]
}

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-A1",
    workload: "claim, attach, detach, release",
    floor: "the backend's bind and unbind, with their waits",
    unit: "turn",
    remark: "on the rig, whose own time is in both: a share of what hardware would take, not a time of hardware",
    job: Job::Lanes(change_hands),
    ..BLANK
}];
