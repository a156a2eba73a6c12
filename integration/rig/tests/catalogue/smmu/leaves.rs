//! What units note in leaves, and of what kind leaves are: the permission that the unit sets, memory that is write-back by
//! force.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{DirtyBitmap, Domain, FlushSpan, Needs};
use hv_rig::{Machine, Outcome, UnitRegisters};

use super::only::all;
use super::stand::{Kernel, REMEMBERS, Stand, count, iovas, on_machines, pci, small};

/// Units that note writes, whatever else they are.
fn notes(machine: &mut Machine) {
    machine.host_bridge = None;
    all(machine, |identity| {
        (identity.coherent, identity.says_coherent) = (true, true);
        (identity.httu, identity.bbml) = (2, 2);
    });
}

/// A domain whose units do this, attached and sending.
fn with(stand: &mut Stand, needs: Needs) -> Kernel {
    let claimed = stand
        .take(pci(0, 2, 0))
        .claim_for_hypervisor()
        .trust("the rig's own");
    let domain = Domain::paging_domain_alloc(&claimed, small().with(needs)).unwrap();
    let tenant = stand.tenant();
    let group = stand.attach(claimed, &domain, tenant);
    Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: Some(group),
    }
}

fn noting(stand: &mut Stand) -> Kernel {
    with(
        stand,
        Needs {
            dirty_tracking: true,
            ..Needs::default()
        },
    )
}

/// Which of the pages from `start` on are told as written, and no more then.
fn told(one: &Kernel, start: u64, pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    let mut bitmap = DirtyBitmap::new(iovas(start, pages), &mut words).unwrap();
    one.domain
        .dirty()
        .unwrap()
        .read_and_clear(&mut bitmap)
        .unwrap();
    (0..pages)
        .filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0)
        .collect()
}

/// The unit sets the permission itself, from whatever it has cached of the leaf, and other devices' requests and evictions
/// come in between; what it set is told once, and set again by the next write.
#[test]
fn bc03_a_write_is_noted_by_the_unit_and_told_once() {
    on_machines(40, notes, |stand| {
        let one = noting(stand);
        let at = 0x10_0000;
        let mapped = one.map(iovas(at, 40));
        // What the device does by itself, in the background, is for other pages as well.
        let sure = |written: &[u64], told: &[u64]| {
            assert!(
                written.iter().all(|page| told.contains(page)),
                "{written:?} were written, {told:?} told"
            );
        };
        for round in 0..4 {
            let device = one.device();
            let read = stand.rig.access(device, Iova::new(at), Access::Read);
            assert!(matches!(read, Outcome::Reached { .. }));
            let written = [round, 7, 8, 39 - round];
            for page in written {
                assert!(one.writes(at + page * 0x1000), "page {page}");
            }
            sure(&written, &told(&one, at, 40));
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// What was written is told although the pages are for reading now, and that it was lets nobody write.
#[test]
fn bc09_a_page_that_was_written_and_is_made_read_only_is_told_and_read_only() {
    on_machines(40, notes, |stand| {
        let one = noting(stand);
        let at = 0x10_0000;
        let range = iovas(at, 8);
        let mut mapped = one.map(range);
        for page in [0, 3, 7] {
            assert!(one.writes(at + page * 0x1000));
        }
        one.rig.protecting(one.tenant, range, Perms::Read);
        mapped.protect(Perms::Read).unwrap();
        mapped.settle().unwrap();
        one.rig.protected(one.tenant, range, Perms::Read);
        for page in 0..8 {
            assert!(
                !one.writes(at + page * 0x1000),
                "page {page} is for reading"
            );
        }
        let known = told(&one, at, 8);
        assert!(
            [0, 3, 7].iter().all(|page| known.contains(page)),
            "{known:?}"
        );
        assert!(told(&one, at, 8).is_empty(), "nobody could write since");
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// Pages are split, merged and unmapped while the device writes: each write is told.
#[test]
fn bc09_a_write_is_told_whatever_becomes_of_its_page() {
    on_machines(30, notes, |stand| {
        let one = noting(stand);
        let at = 0x20_0000;
        for round in 0..3 {
            let frames = stand.rig.alloc_frames(count(512), PageSize::Size2M);
            let mapped = one.map_to(iovas(at, 512), frames.unwrap(), PageSize::Size1G);
            assert!(one.writes(at + round * 0x1000));
            // All of the large page counts, in each of its parts.
            let (low, high) = mapped.split_large_at(count(100)).unwrap();
            assert_eq!(told(&one, at, 512).len(), 512);
            assert!(one.writes(at + 5 * 0x1000) && one.writes(at + 500 * 0x1000));
            let mut mapped = low.join(high).unwrap();
            if round == 1 {
                assert_eq!(mapped.merge(), (1, Ok(())));
                assert!(one.writes(at + 9 * 0x1000));
            }
            // The leaves that are pending, and those of a table that went as one, keep it.
            let pending = one.unmap(mapped);
            let receipt = one.domain.flush(FlushSpan::Pages(pending.flush_span()));
            let mut words = vec![0; 8];
            let mut bitmap = DirtyBitmap::new(iovas(at, 512), &mut words).unwrap();
            let (free, frames) = pending
                .redeem_noting(&receipt.unwrap(), &mut bitmap)
                .unwrap();
            let found = |page: u64| words[(page / 64) as usize] >> (page % 64) & 1 != 0;
            assert!(found(5) && found(500), "round {round}");
            one.returned(free.span(), &frames);
            stand.give_back(frames);
            free.release().unwrap();
            one.domain.reclaim().unwrap();
        }
        drop(one.end());
    });
}

/// A unit is asked to note writes, or to force write-back, only where its registers and firmware both say so.
#[test]
fn bc12_what_registers_or_firmware_do_not_say_is_not_done() {
    let needs = |dirty_tracking, coherent_dma| Needs {
        dirty_tracking,
        coherent_dma,
        ..Needs::default()
    };
    on_machines(
        60,
        |_| {},
        |stand| {
            let claimed = stand.take(pci(0, 2, 0)).claim_for_hypervisor();
            let unit = &stand.rig.machine().units[claimed.unit().index()];
            let segment = unit.segment;
            let UnitRegisters::Smmu(identity) = unit.registers else {
                panic!("an SMMU");
            };
            let units = stand.rig.machine().units.iter();
            let mut beside = units.filter(|other| other.segment == segment);
            let moot = beside
                .all(|other| matches!(other.registers, UnitRegisters::Smmu(other) if other.canwbs));
            let can = [
                (needs(true, false), identity.coherent && identity.httu >= 2),
                (
                    needs(false, true),
                    // Forced write-back alone leaves No_snoop its way past the caches.
                    identity.coherent && identity.fwb && moot,
                ),
            ];
            for (needs, can) in can {
                let domain = Domain::paging_domain_alloc(&claimed, small().with(needs));
                assert_eq!(domain.is_ok(), can, "{needs:?} of {identity:?}");
                if let Ok(domain) = domain {
                    assert_eq!(domain.dirty().is_some(), needs.dirty_tracking);
                    assert_eq!(domain.snoops().is_some(), needs.coherent_dma);
                    drop(domain.destroy().unwrap());
                }
            }
            stand.groups.push(
                claimed
                    .release()
                    .without_reset(REMEMBERS)
                    .claimable()
                    .unwrap(),
            );
        },
    );
}

/// Leaves and the entries that lead to them are of one kind, which the unit looks at on each walk.
#[test]
fn bc12_a_domain_that_forces_write_back_works_beside_one_that_does_not() {
    let forces = |machine: &mut Machine| {
        notes(machine);
        all(machine, |identity| {
            (identity.fwb, identity.canwbs) = (true, true);
        });
    };
    on_machines(30, forces, |stand| {
        let plain = stand.take(pci(0, 1, 0));
        let plain = stand.kernel(plain);
        let needs = Needs {
            coherent_dma: true,
            dirty_tracking: true,
            ..Needs::default()
        };
        let forced = with(stand, needs);
        for one in [&plain, &forced] {
            let mapped = one.map(iovas(0x10_0000, 600));
            assert!(one.writes(0x10_0000) && one.writes(0x10_0000 + 599 * 0x1000));
            one.unmap_and_free(mapped);
        }
        drop((plain.end(), forced.end()));
    });
}
