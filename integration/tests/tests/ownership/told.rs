//! What people are told: the log says what happened and no more, and errors say what to do next.

use std::cell::RefCell;

use hv_core::{Iova, Perms};
use hv_iommu::{AttachFailed, Domain, DomainConfig, FlushSpan, UnitIndex};
use hv_tests::fake::Completion;
use log::{LevelFilter, Log, Metadata, Record};

use super::machine::{DISK, FAR, Machine, NIC, PLAIN, iovas, isolated, vm};

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

/// What was logged meanwhile.
fn logged<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    // Another test here may have been first.
    let _ = log::set_logger(&Keeper);
    log::set_max_level(LevelFilter::Warn);
    LINES.set(Some(Vec::new()));
    let done = work();
    (done, LINES.take().unwrap_or_default())
}

#[test]
fn an_override_is_logged_for_what_was_attached_by_it_and_for_nothing_else() {
    let mut machine = Machine::new();
    let first = machine.guest(NIC, vm(1));
    let group = machine.take(FAR).claim_for_guest(vm(2));
    let own = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    let word = isolated();
    let told = format!("OVERRIDE: {} is {}'s", group.id(), vm(2));
    let says = |lines: &[String]| lines.iter().any(|line| line.starts_with(&told));
    let (refused, lines) = logged(|| group.attach_for_guest(&first.domain, &word));
    let Err(AttachFailed::Refused { group, .. }) = refused else {
        panic!("attached to the domain of another");
    };
    assert!(!says(&lines), "{lines:?}");
    let (attached, lines) = logged(|| group.attach_for_guest(&own, &word));
    assert!(attached.is_ok() && says(&lines), "{lines:?}");
}

#[test]
fn what_a_wedged_unit_leaves_behind_names_the_way_out() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let frames = machine.host().frames(1);
    let pending = range.map(frames, Perms::ReadWrite).unwrap().unmap();
    machine.fake.completes(0, Completion::Never);
    let (refused, lines) = logged(|| pending.flush().unwrap_err());
    let way = "`Iommu::reset_unit`";
    assert!(refused.to_string().contains(way), "{refused}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("is wedged") && line.contains(way)),
        "{lines:?}"
    );
    let flushed = driver.domain.flush(FlushSpan::Domain).unwrap_err();
    assert!(flushed.to_string().contains(way), "{flushed}");
    // What it takes with it is told as well: a group that was to be attached meanwhile.
    let disk = machine.take(DISK).claim_for_hypervisor();
    let attached = disk
        .attach(&driver.domain)
        .err()
        .map(|error| error.to_string());
    assert!(
        attached.as_ref().is_some_and(|told| told.contains(way)),
        "{attached:?}"
    );
    // A reset that fails says that it may be tried again.
    let unit = UnitIndex::new(0).unwrap();
    let (failed, lines) = logged(|| machine.iommu.reset_unit(unit));
    if failed.is_err() {
        assert!(
            lines.iter().any(|line| line.contains("`reset_unit`")),
            "{lines:?}"
        );
    }
    let wedged = driver.group.detach().unwrap_err();
    let failed: AttachFailed<hv_core::KernelPaging, _> = AttachFailed::Wedged { group: wedged };
    let told = failed.to_string();
    assert!(
        told.contains(way) && told.contains("`Group::recover`"),
        "{told}"
    );
}

#[test]
fn a_range_that_cannot_be_had_says_why() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, DomainConfig::default()).unwrap();
    let _taken = domain.reserve(iovas(0x10_0000, 1)).unwrap();
    let told = |start| {
        let refused = domain.reserve(iovas(start, 1)).unwrap_err();
        refused.to_string()
    };
    let said = [told(0x10_0000), told(0xfee0_0000), told(1 << 39)];
    for (said, why) in said
        .iter()
        .zip(["taken before", "interrupt window", "address_bits"])
    {
        assert!(said.contains(why), "{said}");
    }
    assert!(domain.translate(Iova::new(0x10_0000)).is_none());
}

#[test]
fn a_witness_that_is_refused_says_what_to_do() {
    let mut machine = Machine::new();
    let refused = machine.take(NIC).interrupts_isolated().unwrap_err();
    let told = refused.to_string();
    assert!(
        told.contains("keep it for the hypervisor") && told.contains("override_unsafe_interrupts"),
        "{told}"
    );
}
