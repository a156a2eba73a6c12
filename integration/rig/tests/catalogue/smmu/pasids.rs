//! PASIDs: substreams of a stream that is translated by a first stage, on units with that alone and on units with both.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, Pasid, PciAddress};
use hv_iommu::{
    Domain, DomainRequest, FaultBudget, FaultClass, FaultNotice, Needs, PasidAttachment, PasidGroup,
};
use hv_rig::{Machine, Outcome, Temper, Tenant};

use super::Backend;
use super::stand::{Kernel, REMEMBERS, Stand, iovas, on_machines, pci, small};

/// A device whose machine says that it sends PASIDs.
const DEVICE: PciAddress = pci(0, 2, 0);
const AT: u64 = 0x10_0000;

/// Units that know substreams of 16 bits: with first stages alone, or with both stages; with tables of descriptors in two
/// levels, or not.
pub(super) fn with_pasids(machine: &mut Machine) {
    machine.pasid_bits = 20;
    let (alone, two_levels) = (machine.seed & 1 != 0, machine.seed & 2 != 0);
    for unit in &mut machine.units {
        let identity = unit.smmu().unwrap();
        (identity.first_stage, identity.second_stage) = (true, !alone);
        (identity.substream_bits, identity.directories) = (16, two_levels);
    }
}

fn request() -> DomainRequest {
    small().with(Needs {
        pasids: true,
        ..Needs::default()
    })
}

pub(super) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

pub(super) type Open = PasidGroup<KernelPaging, Backend>;

/// A device with open PASIDs in a domain of its own, and two domains more.
pub(super) struct Opened {
    pub(super) group: Open,
    pub(super) members: Vec<PciAddress>,
    pub(super) own: Kernel,
    pub(super) more: [Kernel; 2],
}

pub(super) fn open(stand: &mut Stand) -> Opened {
    let group = stand.take(DEVICE).claim_for_hypervisor();
    let kernel = || Kernel {
        rig: stand.rig.clone(),
        domain: Domain::paging_domain_alloc(&group, request()).unwrap(),
        tenant: stand.tenant(),
        group: None,
    };
    let (own, more) = (kernel(), [kernel(), kernel()]);
    let members = group.members().to_vec();
    let group = stand.attach(group, &own.domain, own.tenant);
    let group = group.open_pasids().unwrap();
    Opened {
        group,
        members,
        own,
        more,
    }
}

impl Opened {
    fn attach(&self, stand: &Stand, number: u32, to: &Kernel) -> Held {
        let device = [DEVICE];
        stand.rig.attaching_pasid(&device, pasid(number), to.tenant);
        let held = self
            .group
            .attach_pasid(DEVICE, pasid(number), &to.domain)
            .unwrap();
        stand.rig.attached_pasid(&device, pasid(number), to.tenant);
        Held(held, to.tenant)
    }

    fn detach(&self, stand: &Stand, held: Held) {
        let (device, pasid) = ([DEVICE], held.0.pasid());
        stand.rig.detaching_pasid(&device, pasid, held.1);
        self.group.detach_pasid(held.0).unwrap();
        stand.rig.detached_pasid(&device, pasid);
    }

    /// Closes the PASIDs, detaches the device and ends the domains.
    pub(super) fn end(self, stand: &mut Stand) {
        let group = self.group.close_pasids().unwrap();
        stand.rig.detaching(&self.members, self.own.tenant);
        let group = group.detach().unwrap();
        stand.rig.detached(&self.members);
        let rest = group.release().without_reset(REMEMBERS);
        stand.groups.push(rest.claimable().unwrap());
        for kernel in [self.own].into_iter().chain(self.more) {
            let teardown = kernel.domain.destroy().unwrap();
            stand.rig.ended(kernel.tenant);
            teardown.for_each(|run| stand.rig.free_frames(run));
        }
    }
}

/// An attached PASID, and whose it is to the ledger.
struct Held(PasidAttachment<KernelPaging, Backend>, Tenant);

fn writes(stand: &Stand, number: Option<u32>, at: u64) -> Outcome {
    let number = number.map(pasid);
    stand
        .rig
        .access_as(DEVICE, number, Iova::new(at), Access::Write)
}

fn reached(outcome: Outcome) -> Option<u64> {
    match outcome {
        Outcome::Reached { at } => Some(at),
        _ => None,
    }
}

#[test]
fn bc05_xsa_306_requests_with_a_pasid_reach_its_domain_and_no_other() {
    on_machines(48, with_pasids, |stand| {
        for _ in 0..3 {
            let opened = open(stand);
            let frames = |kernel: &Kernel| {
                let mapped = kernel.map(iovas(AT, 1));
                let at = kernel.domain.translate(Iova::new(AT)).unwrap().to.as_u64();
                (mapped, at)
            };
            let (_own, own_at) = frames(&opened.own);
            let (in_one, one_at) = frames(&opened.more[0]);
            let (_in_two, two_at) = frames(&opened.more[1]);
            let [one, two] = &opened.more;
            let first = opened.attach(stand, 1, one);
            let last = opened.attach(stand, 63, two);
            let to = |number| reached(writes(stand, number, AT));
            assert_eq!(
                [to(Some(1)), to(Some(63)), to(None)].map(Option::unwrap),
                [one_at, two_at, own_at]
            );
            assert_eq!(
                (to(Some(2)), to(Some(0xffff)), to(Some(0x1_0001))),
                (None, None, None)
            );
            // What is unmapped is reached with no PASID, and what is left with others.
            one.unmap_and_free(in_one);
            assert_eq!((to(Some(1)), to(Some(63))), (None, Some(two_at)));
            opened.detach(stand, last);
            assert_eq!((to(Some(63)), to(None)), (None, Some(own_at)));
            opened.detach(stand, first);
            opened.end(stand);
        }
    });
}

#[test]
fn bc04_a_stream_takes_its_first_pasid_while_requests_without_one_go_on() {
    let busy = |machine: &mut Machine| {
        with_pasids(machine);
        machine.temper.background = true;
    };
    // Devices send at any moment, and that a mapped address does not fault is a rule of the rig.
    on_machines(64, busy, |stand| {
        let opened = open(stand);
        let _own = opened.own.map(iovas(AT, 4));
        let _one = opened.more[0].map(iovas(AT, 4));
        let two_levels = stand.rig.machine().seed & 2 != 0;
        let numbers: &[u32] = if two_levels { &[0x4001, 1] } else { &[1, 2] };
        for number in numbers {
            stand.rig.idle(40);
            let held = opened.attach(stand, *number, &opened.more[0]);
            for page in 0..4 {
                let at = AT + page * 0x1000;
                assert!(reached(writes(stand, None, at)).is_some());
                assert!(reached(writes(stand, Some(*number), at)).is_some());
            }
            stand.rig.idle(40);
            opened.detach(stand, held);
        }
        opened.end(stand);
    });
}

#[test]
fn bc19_a_storm_with_pasids_that_nobody_bound_is_told_with_them_and_cut_off() {
    let calm = |machine: &mut Machine| {
        with_pasids(machine);
        // Nobody else's faults are between.
        machine.temper = Temper::CALM;
    };
    on_machines(4, calm, |stand| {
        let opened = open(stand);
        let held = opened.attach(stand, 1, &opened.more[0]);
        let (mut told, mut cut) = (0, 0);
        for round in 0..FaultBudget::default().faults + 50 {
            // One that nobody bound, and one that is bound and has nothing mapped.
            let number = 1 + round % 2;
            writes(stand, Some(number), AT);
            stand.iommu.take_faults(|notice| match notice {
                FaultNotice::Fault(report) => {
                    let class = match number {
                        1 => FaultClass::NotPermitted,
                        _ => FaultClass::NotBound,
                    };
                    let fault = report.fault;
                    assert_eq!(
                        (fault.requester, fault.pasid),
                        (DEVICE, Some(pasid(number)))
                    );
                    assert_eq!(fault.class, class);
                    told += 1;
                }
                FaultNotice::CutOff(who) => {
                    assert_eq!(who.requester, DEVICE);
                    cut += 1;
                }
                other => panic!("{other:?}"),
            });
        }
        assert_eq!((told, cut), (FaultBudget::default().faults + 1, 1));
        let refused = opened
            .group
            .attach_pasid(DEVICE, pasid(3), &opened.more[0].domain);
        assert!(refused.is_err(), "it is cut off");
        opened.detach(stand, held);
        opened.end(stand);
        // Attached anew it is as any other.
        let opened = open(stand);
        let _mapped = opened.own.map(iovas(AT, 1));
        assert!(reached(writes(stand, None, AT)).is_some());
        opened.end(stand);
    });
}
