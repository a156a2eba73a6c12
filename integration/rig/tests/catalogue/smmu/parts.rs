//! Parts with errata, and models that firmware names: they get the same work done, without what must not be asked of them.

use std::cell::RefCell;

use hv_core::{Access, Iova};
use hv_iommu::{InterruptRoute, InterruptSource, TrustedDevice};
use hv_rig::{Cause, Identity, Interrupt, Machine, Outcome, Refusing, Rig, Signal};
use hv_smmu::spec::quirks::{BY_PROPERTY, Quirk};
use hv_smmu::{CoveragePolicy, Smmu};
use log::{LevelFilter, Log, Metadata, Record};

use super::device_tlbs::with_ats;
use super::only::all;
use super::silent::one_is_silent;
use super::stand::{Kernel, Stand, drawn, iovas, on_machines, pci, small};
use super::telling::{ERRORS, FAULTS, Said, fault, look, quiet, route, with_one};

/// IIDR of MMU-700, r0p0 and r1p1, and of MMU-600, r1p0.
const MMU_700: [u32; 2] = [0x4870_043b, 0x4871_143b];
const MMU_600: u32 = 0x4831_043b;
/// Models of firmware.
const HI161X: u32 = 1;
const CN99XX: u32 = 2;

/// A device comes, works, and goes, twice: also as one that keeps translations.
fn work(stand: &mut Stand, keeps: bool) {
    let function = pci(0, 2, 0);
    for _ in 0..2 {
        let claimed = stand.take(function).claim_for_hypervisor();
        let claimed = claimed.trust("a test");
        let trusted = TrustedDevice::vouch_for(&claimed, "a test");
        let domain = hv_iommu::Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let tenant = stand.tenant();
        let mut group = stand.attach(claimed, &domain, tenant);
        if keeps {
            group.enable_ats(function, &trusted).unwrap();
        }
        let one = Kernel {
            rig: stand.rig.clone(),
            domain,
            tenant,
            group: Some(group),
        };
        for pages in [1, 5, 40] {
            let mapped = one.map(iovas(0x10_0000, pages));
            let last = 0x10_0000 + (pages - 1) * 0x1000;
            assert!(one.writes(last));
            if keeps {
                let asked = stand.rig.ask(function, Iova::new(last), Access::Write);
                assert!(matches!(asked, Outcome::Reached { .. }), "{asked:?}");
            }
            one.unmap_and_free(mapped);
            assert!(!one.writes(last));
            // What stands still is answered, so that the device goes on.
            stand.iommu.take_faults(|_| ());
            let units = 0..stand.rig.machine().units.len();
            if units.map(|unit| stand.rig.stalled(unit)).sum::<usize>() != 0 {
                stand.rig.idle(20_000);
            }
        }
        stand.groups.push(one.end());
    }
}

/// Of whatever stages it has, and where requests stand still, which ends in one more kind of command.
#[test]
fn bc12_a_part_that_needs_it_finds_a_sync_behind_each_batch_and_between_kinds() {
    for part in MMU_700 {
        for (second, stalls, commands) in [
            (true, false, 8),
            (false, false, 8),
            (true, true, 8),
            (true, false, 1),
            (false, false, 2),
        ] {
            let change = |machine: &mut Machine| {
                all(machine, |identity| {
                    (identity.part, identity.commands) = (part, commands);
                    (identity.first_stage, identity.second_stage) = (true, second);
                    identity.stall_model = if stalls { 2 } else { 1 };
                    (identity.ats, identity.pri) = (true, false);
                });
                machine.functions.iter_mut().for_each(|one| one.ats = true);
                machine.temper.background &= !stalls;
            };
            for keeps in [false, !stalls] {
                on_machines(6, change, |stand| work(stand, keeps));
            }
        }
    }
}

/// A device that does not answer, and commands that are refused, in a queue whose batches have a sync each.
#[test]
fn bc01_a_part_with_a_sync_behind_each_batch_is_mended_and_repaired_as_any() {
    let mmu_700 = |machine: &mut Machine| {
        with_ats(machine);
        all(machine, |identity| identity.part = MMU_700[0]);
    };
    on_machines(20, mmu_700, one_is_silent);
    on_machines(20, mmu_700, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        stand.rig.refuse(unit.index(), Refusing::Pages);
        let mapped = one.map(iovas(0x10_0000, 3));
        assert!(one.writes(0x10_2000));
        one.unmap_and_free(mapped);
        assert!(!one.writes(0x10_2000));
        stand.rig.refuse(unit.index(), Refusing::Nothing);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        drop(one.end());
    });
}

/// Nothing that it stumbles over is asked of it: prefetches, and completion by messages.
#[test]
fn bc12_a_part_that_stumbles_over_hints_is_given_none() {
    let change = |machine: &mut Machine| {
        all(machine, |identity| {
            (identity.model, identity.msi) = (HI161X, true);
        });
    };
    on_machines(20, change, |stand| work(stand, false));
}

/// Events are read, and told of by the one wire, with all registers in one page.
fn one_page(stand: &mut Stand) {
    let (one, unit) = with_one(stand);
    let sources = [FAULTS, ERRORS, InterruptSource::PageRequests];
    let [wire, others @ ..] = sources.map(|source| stand.iommu.wired_interrupt(unit, source));
    assert!(wire.is_some() && others == [wire; 2], "{wire:?} {others:?}");
    for source in [FAULTS, ERRORS] {
        assert_eq!(route(stand, unit, source, InterruptRoute::Wired), []);
    }
    let edge = Interrupt {
        unit: unit.index(),
        cause: Cause::Faults,
        signal: Signal::Wire,
    };
    for page in 0x100..0x140 {
        fault(stand, page);
        assert_eq!(stand.rig.take_interrupts(), [edge]);
        assert_eq!(look(stand), [Said::Page(page)]);
    }
    stand.groups.push(one.end());
    work(stand, false);
}

#[test]
fn bc12_a_unit_with_one_page_of_registers_is_driven_by_that_alone() {
    let change = |machine: &mut Machine| {
        quiet(machine, false);
        all(machine, |identity| {
            (identity.model, identity.events) = (CN99XX, 3);
            (identity.ats, identity.pri) = (true, true);
        });
    };
    on_machines(20, change, one_page);
}

/// A device tree says it by a property of a node, and has the one wire by a name.
#[test]
fn bc12_a_unit_with_one_page_is_told_by_a_device_tree_too() {
    let (property, quirks) = BY_PROPERTY[1];
    assert_eq!(property, "cavium,cn9900-broken-page1-regspace");
    for seed in 0..8 {
        let mut machine = drawn(seed);
        quiet(&mut machine, false);
        all(&mut machine, |identity| {
            (identity.model, identity.events) = (CN99XX, 3);
        });
        let rig = Rig::new(machine).unwrap();
        let mut firmware = rig.smmu_firmware().unwrap();
        for unit in &mut firmware.units {
            assert!(unit.quirks.has(Quirk::OneInterrupt));
            unit.quirks = quirks;
        }
        let functions = rig.functions();
        let strict = CoveragePolicy::Strict;
        let found = Smmu::discover(rig.clone(), firmware, &functions, strict).unwrap();
        let backend = found.bring_up().map_err(|error| error.to_string());
        let mut stand = Stand::of(rig, backend);
        one_page(&mut stand);
        stand.check();
    }
}

thread_local! {
    /// What was logged on this thread since a test here asked for it.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Keeps lines for the threads that asked.
struct Keeper;

impl Log for Keeper {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        LINES.with_borrow(Option::is_some)
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| {
            if let Some(lines) = lines {
                lines.push(record.args().to_string());
            }
        });
    }

    fn flush(&self) {}
}

/// What is logged of quirks while such a machine is brought up.
fn said(change: impl Fn(&mut Identity)) -> Vec<String> {
    let mut machine = Machine::calm_of(hv_rig::Vendor::Smmu);
    all(&mut machine, change);
    let _ = log::set_logger(&Keeper);
    log::set_max_level(LevelFilter::Info);
    LINES.set(Some(Vec::new()));
    drop(Stand::new(machine));
    let lines = LINES.take().unwrap_or_default();
    let of_quirks = |line: &String| line.contains("quirk applied");
    lines.into_iter().filter(of_quirks).collect()
}

#[test]
fn what_is_done_for_a_part_is_logged_with_part_and_number() {
    assert_eq!(said(|_| ()), Vec::<String>::new());
    let unit = "SMMUv3 unit 0: quirk applied: ";
    assert_eq!(
        said(|identity| identity.part = MMU_700[1]),
        [
            "no broadcast invalidation, for MMU-700 (IIDR), erratum 2812531",
            "a sync ends every batch, for MMU-700 (IIDR), erratum 2812531",
            "no nested stages, for MMU-700 (IIDR), erratum 2268618, 2812531",
        ]
        .map(|what| format!("{unit}{what}"))
    );
    assert_eq!(
        said(|identity| identity.part = MMU_600),
        [format!(
            "{unit}no nested stages, for MMU-600 (IIDR), erratum 1209401"
        )]
    );
    assert_eq!(
        said(|identity| identity.model = CN99XX),
        ["registers in one page", "one interrupt"]
            .map(|what| format!("{unit}{what}, by firmware's description"))
    );
}
