//! Classes 5, 16, 17 and 18: reassignment, threads, memory of guests, leaks.

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GuestMemory, GuestMemoryError, Iova, PageSize, Perms, VmId};
use hv_iommu::{AttachFailed, Domain, InterruptsIsolated, MapError};
use hv_rig::{Machine, Outcome, Temper};

use crate::stand::{BAD, Stand, count, iovas, on_machines, pci, small};

#[test]
fn bc05_xsa_306_no_request_of_the_last_owner_reaches_the_next() {
    on_machines(
        60,
        |_| {},
        |stand| {
            for round in 0..6 {
                let group = stand.take(pci(0, 2, 0));
                let one = stand.kernel(group);
                // The same addresses lead to other frames each time, and the device goes on asking for them.
                let _mapped = one.map(iovas(0x10_0000, 1 + round % 3));
                stand.rig.idle(60);
                stand.groups.push(one.end());
                stand.rig.idle(60);
            }
        },
    );
}

#[test]
fn bc05_xsa_400_every_alias_moves_or_none() {
    // Wherever an attach fails, for want of frames or of an answer, nothing of it stays.
    on_machines(
        40,
        |_| {},
        |stand| {
            while let Some(group) = stand.groups.pop() {
                let members = group.members().to_vec();
                let mut claimed = group.claim_for_hypervisor();
                let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
                let tenant = stand.tenant();
                let mut attached = None;
                for successes in 0..8 {
                    stand.rig.fail_allocation_after(Some(successes));
                    stand.rig.attaching(&members, tenant);
                    match claimed.attach(&domain) {
                        Ok(group) => {
                            stand.rig.attached(&members, tenant);
                            attached = Some(group);
                            break;
                        }
                        Err(AttachFailed::Refused { group, .. }) => {
                            claimed = group;
                            stand.rig.detached(&members);
                            for member in &members {
                                let outcome =
                                    stand.rig.access(*member, Iova::new(0), Access::Write);
                                assert!(!matches!(outcome, Outcome::Reached { .. }));
                            }
                            continue;
                        }
                        Err(AttachFailed::Wedged { group }) => panic!("{:?}", group.error()),
                    }
                }
                stand.rig.fail_allocation_after(None);
                let attached = attached.expect("frames enough in the end");
                stand.rig.detaching(&members, tenant);
                drop(attached.detach().unwrap());
                stand.rig.detached(&members);
                assert_eq!(domain.destroy().unwrap().count(), 0);
            }
        },
    );
}

#[test]
fn bc16_xsa_467_threads_that_map_do_not_wait_for_one_that_detaches() {
    for seed in 0..6 {
        let mut machine = Machine::draw(seed);
        machine.temper = Temper {
            slow: false,
            steady_clock: true,
            ..BAD
        };
        let mut stand = Stand::new(machine);
        let (one, two) = (stand.take(pci(0, 1, 0)), stand.take(pci(0, 2, 0)));
        let one = stand.kernel(one);
        let stand = std::sync::Mutex::new(stand);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let one = &one;
                scope.spawn(move || {
                    for round in 0..25 {
                        // The ranges share tables with those of the other threads.
                        let mapped = one.map(iovas(0x10_0000 + thread * 0x8000, 1 + round % 5));
                        assert!(one.writes(0x10_0000 + thread * 0x8000));
                        one.unmap_and_free(mapped);
                    }
                });
            }
            scope.spawn(|| {
                let mut group = two;
                for _ in 0..10 {
                    let mut stand = stand.lock().unwrap();
                    let two = stand.kernel(group);
                    drop(two.map(iovas(0x10_0000, 3)));
                    stand.groups.push(two.end());
                    group = stand.take(pci(0, 2, 0));
                }
            });
        });
        drop(one.end());
        stand.into_inner().unwrap().check();
    }
}

#[test]
fn bc17_xsa_379_memory_of_a_guest_stays_its_own_until_the_receipt() {
    on_machines(
        40,
        |_| {},
        |stand| {
            let (vm, other) = (VmId::new(1).unwrap(), VmId::new(2).unwrap());
            let mut memory = GuestMemory::new(vm);
            let frames = stand.rig.alloc_frames(count(16), PageSize::Size4K).unwrap();
            let slot = memory.give(Gpa::new(0), frames).unwrap();
            let group = stand.take(pci(0, 2, 0)).claim_for_guest(vm);
            let members = group.members().to_vec();
            let domain = Domain::user_domain_alloc(&group, small()).unwrap();
            let isolated = InterruptsIsolated::override_unsafe_interrupts("a test");
            let tenant = stand.tenant();
            stand.rig.attaching(&members, tenant);
            let group = group.attach_for_guest(&domain, &isolated).unwrap();
            stand.rig.attached(&members, tenant);
            group.enable_bus_mastering(members[0]).unwrap();

            let range = iovas(0x10_0000, 16);
            let pinned = memory.pin(slot).unwrap();
            stand
                .rig
                .mapping(tenant, range, pinned.range(), Perms::ReadWrite);
            let mapped = domain
                .reserve(range)
                .unwrap()
                .map(pinned, Perms::ReadWrite)
                .unwrap();
            stand.rig.mapped(tenant, range, mapped.granted());
            let write = |at| stand.rig.access(members[0], Iova::new(at), Access::Write);
            assert!(matches!(write(0x10_3000), Outcome::Reached { .. }));

            // Ballooned, given away, mapped for another guest: all refused while the device may reach it.
            let pinned = |memory: &mut GuestMemory| {
                matches!(
                    memory.take_back(Gpa::new(0)),
                    Err(GuestMemoryError::Pinned { .. })
                )
            };
            assert!(pinned(&mut memory));
            stand.rig.unmapping(tenant, range);
            let pending = mapped.unmap();
            assert!(pinned(&mut memory), "unmapped is not forgotten");
            let (free, frames) = pending.flush().unwrap();
            stand.rig.returned(tenant, range);
            assert!(pinned(&mut memory), "the run is still out");
            memory.unpin(frames).unwrap();

            // The frames go to another guest, and the first one's device does not come with them.
            let frames = memory.take_back(Gpa::new(0)).unwrap();
            let mut next = GuestMemory::new(other);
            let slot = next.give(Gpa::new(0), frames).unwrap();
            assert!(!matches!(write(0x10_3000), Outcome::Reached { .. }));
            let foreign = free.map(next.pin(slot).unwrap(), Perms::Read).unwrap_err();
            let MapError::Refused { frames, .. } = foreign else {
                panic!("{foreign}")
            };
            next.unpin(frames).unwrap();
            stand.rig.idle(100);
        },
    );
}

#[test]
fn bc18_xsa_207_a_failure_anywhere_leaks_nothing() {
    on_machines(
        30,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            let spare = stand.take(pci(0, 1, 0)).claim_for_hypervisor();
            let out = stand.rig.frames_out();
            let ids = stand.iommu.domains_in_use();
            for successes in 0..12 {
                let frames = stand.rig.alloc_frames(count(1), PageSize::Size4K).unwrap();
                stand.rig.fail_allocation_after(Some(successes));
                // A range over a boundary, so that tables of several levels are missing.
                let start = (successes + 1) << 30;
                if start >> 31 == 0 {
                    let range = iovas(start, 1);
                    stand
                        .rig
                        .mapping(one.tenant, range, frames.range(), Perms::ReadWrite);
                    match one
                        .domain
                        .reserve(range)
                        .unwrap()
                        .map(frames, Perms::ReadWrite)
                    {
                        Ok(mapped) => {
                            stand.rig.mapped(one.tenant, range, mapped.granted());
                            one.unmap_and_free(mapped);
                        }
                        Err(MapError::Refused {
                            range: free,
                            frames,
                            ..
                        }) => {
                            stand.rig.returned(one.tenant, range);
                            free.release().unwrap();
                            stand.rig.free_frames(frames);
                        }
                        Err(error) => panic!("{error}"),
                    }
                } else {
                    stand.rig.free_frames(frames);
                }
                if let Ok(domain) = Domain::paging_domain_alloc(&spare, small()) {
                    assert_eq!(domain.destroy().unwrap().count(), 0);
                }
                stand.rig.fail_allocation_after(None);
                assert_eq!(stand.iommu.domains_in_use(), ids);
            }
            drop(one.end());
            let context_tables = 1;
            assert!(
                stand.rig.frames_out() < out + context_tables,
                "tables of the domain came back"
            );
        },
    );
}
