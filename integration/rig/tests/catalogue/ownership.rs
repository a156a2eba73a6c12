//! Classes 5, 16 and 18: reassignment, threads, leaks.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{AttachFailed, Domain, MapError, PhantomBits};
use hv_rig::{Machine, Outcome, Temper};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::stand::{BAD, Stand, WAIT, count, iovas, on_machines, pci, small, two_units};

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
fn bc05_xsa_449_phantom_functions_come_and_go_with_their_function() {
    // The device picks one of its eight ids for each request.
    let phantoms = |machine: &mut Machine| {
        machine.functions[0].phantoms = PhantomBits::from_device_capabilities(3 << 3);
    };
    on_machines(20, phantoms, |stand| {
        let group = stand.take(pci(0, 1, 0));
        assert_eq!(group.members(), [pci(0, 1, 0)]);
        let one = stand.kernel(group);
        let mapped = one.map(iovas(0x10_0000, 1));
        for _ in 0..40 {
            assert!(one.writes(0x10_0000));
        }
        one.unmap_and_free(mapped);
        stand.groups.push(one.end());
        for _ in 0..40 {
            let outcome = stand
                .rig
                .access(pci(0, 1, 0), Iova::new(0x10_0000), Access::Write);
            assert!(!matches!(outcome, Outcome::Reached { .. }));
        }
    });
}

#[test]
fn bc16_xsa_467_threads_that_map_do_not_wait_for_one_that_detaches() {
    for seed in 0..6 {
        let mut machine = two_units(seed);
        machine.temper = Temper {
            slow: false,
            steady_clock: true,
            ..BAD
        };
        let mut stand = Stand::new(machine);
        let (one, two) = (stand.take(pci(0, 1, 0)), stand.take(pci(0, 2, 0)));
        let (one, mut two) = (stand.kernel(one), stand.kernel(two));
        let mapping = AtomicUsize::new(3);
        // The unit of the second group takes its time over the detach: more than half of what it may.
        stand.rig.hang(1, WAIT * 6 / 10);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (one, mapping) = (&one, &mapping);
                scope.spawn(move || {
                    for round in 0..20 {
                        // The ranges share tables with those of the other threads.
                        let mapped = one.map(iovas(0x10_0000 + thread * 0x8000, 1 + round % 5));
                        assert!(one.writes(0x10_0000 + thread * 0x8000));
                        one.unmap_and_free(mapped);
                    }
                    // ORDERING: SeqCst, a test.
                    mapping.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let mapping = &mapping;
            scope.spawn(move || {
                drop(two.detach());
                // ORDERING: SeqCst, as above.
                let still = mapping.load(Ordering::SeqCst);
                assert_eq!(still, 0, "seed {seed}: threads were held up by the detach");
            });
        });
        drop(one.end());
        stand.check();
    }
}

#[test]
fn bc18_xsa_207_a_failure_anywhere_leaks_nothing() {
    on_machines(
        30,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let claimed = group.claim_for_hypervisor();
            let before = (stand.rig.frames_out(), stand.iommu.domains_in_use());
            // A range over a boundary of 1 GiB needs up to five tables; the domain needs its root.
            let range = iovas((1 << 30) - 0x2000, 4);
            let (mut failures, mut least) = (0, 4);
            for successes in 0..12 {
                stand.rig.fail_allocation_after(Some(successes));
                let Ok(domain) = Domain::paging_domain_alloc(&claimed, small()) else {
                    failures += 1;
                    assert_eq!(stand.rig.frames_out(), before.0, "after {successes}");
                    continue;
                };
                if domain.geometry().root.number() == 2 {
                    // A root of two tables, and one below each.
                    least = 3;
                }
                let frames = stand.rig.alloc_frames(count(4), PageSize::Size4K);
                let frames = frames.or_else(|_| stand.rig.alloc_frames(count(4), PageSize::Size4K));
                let free = domain.reserve(range).unwrap();
                let frames = match free.map(frames.unwrap(), Perms::ReadWrite) {
                    Ok(mapped) => mapped.unmap().flush().unwrap().1,
                    Err(MapError::Refused { frames, .. }) => {
                        failures += 1;
                        frames
                    }
                    Err(error) => panic!("{error}"),
                };
                stand.rig.free_frames(frames);
                assert_eq!(domain.destroy().unwrap().count(), 0);
                // Tables that were linked before the failure went with the domain; so did its id.
                let after = (stand.rig.frames_out(), stand.iommu.domains_in_use());
                assert_eq!(after, before, "after {successes} allocations");
            }
            stand.rig.fail_allocation_after(None);
            assert!(failures >= least, "{failures} failures");
        },
    );
}
