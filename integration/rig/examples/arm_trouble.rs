//! Two SMMUs and two guests, and what goes wrong: a unit that stops, a device that does nothing but fault, the end.
//!
//! `wedged.rs` is the same of a hypervisor's own devices on VT-d, on machines drawn from seeds.

use std::error::Error;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageCount, PageSize, PciAddress, Perms, Segment,
    UserManaged, VmId,
};
use hv_iommu::{
    AtRest, Blocked, Claimed, Config, Domain, DomainConfig, FaultBudget, FaultNotice, FunctionKind,
    Group, InterruptsIsolated, Iommu, Mapped, Range,
};
use hv_rig::{FunctionModel, Machine, Rig, UnitModel, Vendor};
use hv_smmu::{CoveragePolicy, Smmu, iort};

type Failed = Box<dyn Error>;
type Backend = Smmu<Rig>;

/// The first function of a device on bus 0.
const fn device(number: u16) -> PciAddress {
    PciAddress::from_requester(Segment(0), number << 3)
}

/// Two units: one for the device 00:01.0, the other for 00:02.0 and 00:03.0.
fn machine() -> Machine {
    let mut machine = Machine::calm_of(Vendor::Smmu);
    let second = machine.units[0].clone();
    let scopes = Some(vec![device(1)]);
    machine.units.insert(0, UnitModel { scopes, ..second });
    let third = FunctionModel::new(device(3), FunctionKind::Endpoint);
    machine.functions.push(third);
    machine
}

/// A guest with two pages of memory and a domain that maps each of them.
struct Guest {
    memory: GuestMemory,
    domain: Domain<UserManaged, Backend>,
    page: Range<UserManaged, Backend, Mapped>,
    kept: Range<UserManaged, Backend, Mapped>,
}

const PAGE: Iova = Iova::new(0x1000);
const KEPT: Iova = Iova::new(0x2000);
const NOWHERE: Iova = Iova::new(0x10_0000);

impl Guest {
    /// The guest that has this group. Other groups of it may be attached to the same domain, behind whichever unit.
    fn new(
        rig: &Rig,
        group: &Group<Backend, Claimed<UserManaged>>,
        vm: VmId,
    ) -> Result<Self, Failed> {
        let mut memory = GuestMemory::new(vm);
        for at in [PAGE, KEPT] {
            let frames = rig.alloc_frames(PageCount::ONE, PageSize::Size4K)?;
            let given = memory.give(Gpa::new(at.as_u64()), frames);
            given.map_err(|(_, error)| error)?;
        }
        let domain = Domain::user_domain_alloc(group, DomainConfig::default())?;
        let map = |at: Iova| -> Result<_, Failed> {
            let range = domain.reserve(IovaRange::new(at, PageCount::ONE)?)?;
            let gpas = GpaRange::new(Gpa::new(at.as_u64()), PageCount::ONE)?;
            Ok(range.map(memory.pin(gpas)?, Perms::ReadWrite)?)
        };
        let (page, kept) = (map(PAGE)?, map(KEPT)?);
        Ok(Self {
            memory,
            domain,
            page,
            kept,
        })
    }
}

fn main() -> Result<(), Failed> {
    run()
}

/// Goes the whole way.
///
/// # Errors
/// Where it did not go on, or the rule of the rig that was broken.
pub(crate) fn run() -> Result<(), Failed> {
    let rig = Rig::new(machine())?;
    let functions = rig.functions();
    let firmware = iort::parse(&rig.iort()?)?.describe()?;
    let policy = CoveragePolicy::Strict;
    let discovery = Smmu::discover(rig.clone(), firmware, &functions, policy)?;
    let config = Config {
        // Faults in one look at most before a device is cut off; a thousand a second are allowed otherwise.
        faults: FaultBudget {
            faults: 16,
            within: Duration::from_secs(1),
        },
        ..Config::default()
    };
    let (iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, config)?;
    let free: Vec<Group<Backend, Blocked>> =
        groups.into_iter().flat_map(AtRest::claimable).collect();
    let [near, far, other] = <[_; 3]>::try_from(free).map_err(|_| "the machine has 3 devices")?;
    let isolated = InterruptsIsolated::override_unsafe_interrupts("an example without interrupts");
    let writes = |what: &str, of: u16, at: Iova| {
        let sent = rig.device_write(device(of), at, b"here");
        let became = sent.map_or_else(|blocked| blocked.to_string(), |()| "reached".to_owned());
        println!("{what}: {} at {at}: {became}", device(of));
    };

    // The first guest has a device behind each unit, in one domain: what it unmaps is forgotten by both.
    let (one, two) = (
        VmId::new(1).ok_or("from 1 on")?,
        VmId::new(2).ok_or("from 1 on")?,
    );
    let (near, far) = (near.claim_for_guest(one), far.claim_for_guest(one));
    let first = Guest::new(&rig, &near, one)?;
    let near = near.attach_for_guest(&first.domain, &isolated)?;
    let far = far.attach_for_guest(&first.domain, &isolated)?;
    let other = other.claim_for_guest(two);
    let second = Guest::new(&rig, &other, two)?;
    let other = other.attach_for_guest(&second.domain, &isolated)?;
    near.enable_bus_mastering(device(1))?;
    far.enable_bus_mastering(device(2))?;
    other.enable_bus_mastering(device(3))?;
    for number in 1..=3 {
        writes("at work", number, PAGE);
    }

    // The unit of the first device stops. The unmap that waits for it names it; its devices lose bus mastering, and the page
    // stays pinned. Whoever is behind the other unit goes on, a device of the same guest as well.
    let unit = near.unit();
    rig.hang(unit.index(), Duration::from_secs(60));
    let failed = first.page.unmap().flush().err();
    let failed = failed.ok_or("a flush by a unit that hangs")?;
    println!("unmap: {failed}");
    println!("wedged: {:?}", iommu.wedged_units().collect::<Vec<_>>());
    for number in 1..=3 {
        writes("beside a wedged unit", number, KEPT);
    }

    // It answers again. What is attached stays so; bus mastering is its holder's to turn on, and what was pending is
    // flushed anew.
    rig.wake(unit.index());
    iommu.reset_unit(unit)?;
    iommu.take_faults(|notice| println!("fault: {notice}"));
    near.enable_bus_mastering(device(1))?;
    let (range, frames) = failed.pending.flush()?;
    let page = range.map(frames, Perms::ReadWrite)?;
    writes("after the reset", 1, PAGE);

    // A device of the second guest does nothing but fault, until it is cut off, which its owner is told of once.
    let mut cut_off = None;
    let mut sent = 0;
    while cut_off.is_none() && sent < 100 {
        sent += 1;
        let _ = rig.device_write(device(3), NOWHERE, b"a storm");
        iommu.take_faults(|notice| {
            if let FaultNotice::CutOff(group) = notice {
                cut_off = Some(group);
            }
        });
    }
    println!(
        "after {sent} faults: {}",
        cut_off.ok_or("nobody was cut off")?
    );
    writes("cut off", 3, PAGE);
    writes("beside it", 2, PAGE);
    println!(
        "as it is: {}",
        other
            .enable_bus_mastering(device(3))
            .err()
            .ok_or("it sends on")?
    );

    // It comes back by a detach, a reset of the device (the rig's remember nothing) and an attach.
    let other = other.detach().map_err(|group| group.error())?;
    let other = other.attach_for_guest(&second.domain, &isolated)?;
    other.enable_bus_mastering(device(3))?;
    writes("attached anew", 3, PAGE);

    // The end, for whoever has the machine next: units are off, and let nothing through. What is attached is dropped.
    iommu.shut_down()?;
    for number in 1..=3 {
        writes("shut down", number, PAGE);
    }
    println!(
        "and then: {}",
        iommu.reset_unit(unit).err().ok_or("it came back")?
    );
    let verdict = rig.verdict();
    drop((near, far, other));
    drop((first.domain, page, first.kept, first.memory, second));
    rig.retire();
    Ok(verdict?)
}
