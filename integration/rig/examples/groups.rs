//! A hypervisor's table of groups in every state: each is taken out, moved on, and put back.

use std::collections::BTreeMap;
use std::error::Error;
use std::mem::replace;

use hv_core::{KernelPaging, PciAddress, UserManaged, VmId};
use hv_iommu::{
    AtRest, Attached, Config, Domain, DomainConfig, Group, GroupId, GroupTable, InterruptsIsolated,
    Iommu, Parked, Wedged, Whereabouts,
};
use hv_rig::{Machine, Rig};
use hv_vtd::{CoveragePolicy, Vtd, dmar};

type Backend = Vtd<Rig>;
type Failed = Box<dyn Error>;

/// Where a group that somebody holds is. A state that can do more than another is another type, so what comes out
/// of here can be used for just what it is.
enum Slot {
    Driver(
        Group<Backend, Attached<KernelPaging, Backend>>,
        Domain<KernelPaging, Backend>,
    ),
    Guest(
        Group<Backend, Attached<UserManaged, Backend>>,
        Domain<UserManaged, Backend>,
    ),
    Resetting(
        Group<Backend, Parked<UserManaged, Backend>>,
        Domain<UserManaged, Backend>,
    ),
    /// Kept until its unit is reset; `wedged.rs` shows that.
    Stuck(Group<Backend, Wedged<Backend>>),
    /// Taken out, or never here.
    Empty,
}

struct Groups {
    at_rest: GroupTable<Backend>,
    held: BTreeMap<GroupId, Slot>,
    isolated: InterruptsIsolated,
}

impl Groups {
    fn take(&mut self, id: GroupId) -> Slot {
        let slot = self.held.get_mut(&id);
        slot.map_or(Slot::Empty, |slot| replace(slot, Slot::Empty))
    }

    /// Lets the hypervisor's own driver use a device.
    fn drive(&mut self, id: GroupId) -> Result<(), Failed> {
        let claimed = self.at_rest.claim_for_hypervisor(id)?;
        let domain = Domain::paging_domain_alloc(&claimed, DomainConfig::default())?;
        let group = claimed.attach(&domain)?;
        for member in group.members() {
            group.enable_bus_mastering(*member)?;
        }
        self.held.insert(id, Slot::Driver(group, domain));
        Ok(())
    }

    /// Where the group of a function is, and who has it.
    fn find(&self, function: PciAddress) -> Result<Whereabouts, Failed> {
        let found = self.at_rest.find(function);
        found.ok_or_else(|| format!("no group has {function}").into())
    }

    /// Passes a device through. Who asks for one that is taken hears who has it.
    fn give(&mut self, id: GroupId, vm: VmId) -> Result<(), Failed> {
        let claimed = self.at_rest.claim_for_guest(id, vm)?;
        let domain = Domain::user_domain_alloc(&claimed, DomainConfig::default())?;
        let group = claimed.attach_for_guest(&domain, &self.isolated)?;
        for member in group.members() {
            group.enable_bus_mastering(*member)?;
        }
        self.held.insert(id, Slot::Guest(group, domain));
        Ok(())
    }

    /// A guest asks for a reset of its device, which takes some time: nothing is reached meanwhile.
    fn begin_reset(&mut self, id: GroupId) {
        let slot = match self.take(id) {
            Slot::Guest(group, domain) => match group.park() {
                Ok(group) => Slot::Resetting(group, domain),
                Err(group) => Slot::Stuck(group),
            },
            other => other,
        };
        self.held.insert(id, slot);
    }

    fn end_reset(&mut self, id: GroupId) -> Result<(), Failed> {
        let slot = match self.take(id) {
            Slot::Resetting(group, domain) => {
                let group = group.unpark()?;
                // It was taken with the park, and the reset itself does as much.
                for member in group.members() {
                    group.enable_bus_mastering(*member)?;
                }
                Slot::Guest(group, domain)
            }
            other => other,
        };
        self.held.insert(id, slot);
        Ok(())
    }

    /// Takes a device from whoever has it, and resets it if that was a guest.
    fn take_back(&mut self, id: GroupId) -> Result<(), Failed> {
        let rest = match self.take(id) {
            Slot::Driver(group, domain) => match group.detach() {
                Ok(claimed) => {
                    domain.destroy()?.for_each(drop);
                    claimed.release().into()
                }
                Err(stuck) => return self.keep(id, stuck),
            },
            Slot::Guest(group, domain) => match group.detach() {
                Ok(claimed) => {
                    domain.destroy()?.for_each(drop);
                    let reset = claimed.release().reset_members(reset_function);
                    let reset = reset.map_err(|failed| failed.to_string())?;
                    reset.all().or_else(|gone| {
                        println!("  {gone:?}");
                        Ok::<_, Failed>(
                            gone.without_them("it was pulled out, and is new when it is back"),
                        )
                    })?
                }
                Err(stuck) => return self.keep(id, stuck),
            },
            Slot::Stuck(group) => match group.recover() {
                Ok(rest) => rest,
                Err(stuck) => return self.keep(id, stuck),
            },
            other => {
                self.held.insert(id, other);
                return Err("nothing to take back".into());
            }
        };
        let stranger = |rest: AtRest<Backend>| format!("{rest:?} is not of this table");
        Ok(self.at_rest.put_back(rest).map_err(stranger)?)
    }

    /// Keeps a group that its unit has not let go of.
    fn keep(&mut self, id: GroupId, stuck: Group<Backend, Wedged<Backend>>) -> Result<(), Failed> {
        let why = stuck.error();
        self.held.insert(id, Slot::Stuck(stuck));
        Err(why.into())
    }
}

/// A hypervisor would use what the function has: function-level reset, or its bus.
fn reset_function(function: PciAddress) -> Result<(), Failed> {
    println!("  reset {function}");
    Ok(())
}

fn main() -> Result<(), Failed> {
    run()
}

pub(crate) fn run() -> Result<(), Failed> {
    let rig = Rig::new(Machine::calm())?;
    let functions = rig.functions();
    let table = dmar::parse(&rig.dmar()?)?;
    let discovery = Vtd::discover(rig.clone(), &table, &functions, CoveragePolicy::Strict)?;
    let (_iommu, groups) = Iommu::new(discovery.bring_up()?, &functions, Config::default())?;
    let ids: Vec<_> = groups.iter().map(AtRest::id).collect();
    let [nic, disk] = <[_; 2]>::try_from(ids).map_err(|_| "the machine has two devices")?;
    let mut groups = Groups {
        at_rest: GroupTable::new(groups).map_err(|(_, error)| error)?,
        held: BTreeMap::new(),
        isolated: InterruptsIsolated::override_unsafe_interrupts("an example"),
    };
    let vm = |number| VmId::new(number).ok_or("guests are numbered from 1");

    groups.drive(disk)?;
    groups.give(nic, vm(1)?)?;
    for (id, by) in [(nic, vm(2)?), (disk, vm(1)?)] {
        let refused = groups.give(id, by).err().ok_or("two have one group")?;
        println!("{by} asks: {refused}");
    }
    groups.begin_reset(nic);
    println!("{} and being reset", groups.find(functions[0].address)?);
    groups.end_reset(nic)?;

    // The card is pulled out of its slot: nobody waits for it, and there is nothing to reset.
    rig.plug(functions[0].address, false);
    groups.take_back(nic)?;
    rig.plug(functions[0].address, true);
    groups.give(nic, vm(2)?)?;
    println!("now {}", groups.find(functions[0].address)?);
    groups.take_back(nic)?;
    groups.take_back(disk)?;
    Ok(rig.verdict()?)
}
