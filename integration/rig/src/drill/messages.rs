//! Interrupt messages: a device raises what it was given, at the services that firmware names, and a group that was told to
//! be isolated nothing else.

use hv_core::{Iova, IovaRange, PageCount, PciAddress, Perms, PhysAddr, PhysRange};
use hv_iommu::{Domain, DomainConfig};
use hv_smmu::Smmu;

use crate::driver::Vendor;
use crate::ledger::Tenant;
use crate::life::bring_up;
use crate::machine::Machine;
use crate::rig::Rig;
use crate::rule::{Rule, Violation};
use crate::services::Message;

/// How many groups there are at most.
const GROUPS: usize = 4;
/// How many events are tried.
const EVENTS: u32 = 8;

/// All groups send all messages, some of them as writers that others are too.
pub(crate) fn messages(seed: u64) -> Option<Violation> {
    let mut machine = Machine::draw_of(Vendor::Smmu, seed);
    machine.set_services(1 + (seed >> 1) as usize % 2);
    let functions: Vec<PciAddress> = machine.functions.iter().map(|one| one.address).collect();
    if let [one, other, ..] = functions[..]
        && seed & 1 == 0
    {
        machine.same_writers = vec![(one, other)];
        if machine.check().is_err() {
            // Of two services.
            machine.same_writers.clear();
        }
    }
    let rig = Rig::new(machine).ok()?;
    if send_all(&rig).is_none() {
        rig.broken(Rule::WrongAnswer, "a drill with messages did not go on");
    }
    rig.judged()
}

fn send_all(rig: &Rig) -> Option<()> {
    let (iommu, groups) = bring_up::<Smmu<Rig>>(rig).ok()?;
    let (mut attached, mut senders) = (Vec::new(), Vec::new());
    for (number, group) in groups.into_iter().take(GROUPS).enumerate() {
        let group = group.claim_for_hypervisor();
        let members = group.members().to_vec();
        let config = DomainConfig {
            address_bits: 31,
            ..DomainConfig::default()
        };
        let domain = Domain::paging_domain_alloc(&group, config).ok()?;
        let tenant = Tenant(1 + number as u64);
        let (first, event) = (*members.first()?, number as u32);
        let register = rig.message_register(first)?.as_u64();
        let page = IovaRange::new(Iova::new(register & !0xfff), PageCount::ONE).ok()?;
        let frame = PhysRange::new(PhysAddr::new(register & !0xfff), PageCount::ONE).ok()?;
        let granted = match iommu.unit_caps(group.unit())?.write_only {
            true => Perms::Write,
            false => Perms::ReadWrite,
        };
        rig.mapping(tenant, page, frame, granted);
        rig.mapped(tenant, page, granted);
        rig.attaching(&members, tenant);
        let group = group.attach(&domain).ok()?;
        rig.attached(&members, tenant);
        if group.interrupts_isolated().is_ok() {
            rig.isolated(&members);
        }
        for member in &members {
            group.enable_bus_mastering(*member).ok()?;
            rig.give_event(*member, event, tenant);
            senders.push((*member, Iova::new(register), event, tenant));
        }
        attached.push((group, domain));
    }
    for (sender, register, own, tenant) in &senders {
        for event in 0..EVENTS {
            let became = rig.send_message(*sender, *register, event);
            let is_own =
                matches!(became, Message::Raised { tenant: raised, .. } if raised == *tenant);
            if event == *own && !is_own {
                let what =
                    format!("{sender} sent event {event} of its own, and that became {became:?}");
                rig.broken(Rule::WrongAnswer, what);
            }
        }
        rig.idle(20);
    }
    Some(())
}
