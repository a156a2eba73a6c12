//! `nested`: the drive behind a first stage that a guest writes itself, on what the hypervisor maps for that guest. Where
//! the unit has not both stages, that is said.

mod first_stage;
mod spec;

use alloc::format;

use hv_core::platform::FrameSource;
use hv_core::{
    Access, FrameRun, Gpa, GpaRange, GuestMemory, Hypervisor, Iova, IovaRange, OwnerId, PageCount,
    PageSize, Perms, UserManaged,
};
use hv_iommu::{
    Claimed, Domain, DomainConfig, DomainError, FaultStage, Group, InvalidateRefusal, Mapped,
    Nested, ParentPaging, Range, UnitCaps,
};

use self::first_stage::{FirstStage, Space};
use super::blocked::{CANARY, SCRATCH_OFFSET, canary, is_canary};
use super::drive::{
    Driver, GuestBuffer, GuestHeap, check_doorbells, drive, let_go, stand_in_guest,
};
use super::faults::Expected;
use super::{Context, Failure, OrFail, Shown, ensure};
use crate::subsystem::Backend;

/// Where the guest has its memory.
const BASE: Gpa = Gpa::new(0x10_0000);
/// How much it has, in pages.
const PAGES: u64 = 256;
/// The first pages are for its driver's buffers, which its first stage maps where they are.
const BUFFERS: u64 = 240;
/// Its page that its drive reaches at first.
const WANTED: u64 = BUFFERS;
/// Its page that its drive reaches in its second address space.
const OTHER: u64 = WANTED + 1;
/// Its page that is in its first address space alone.
const LEFT: u64 = OTHER + 1;
/// Its page that the hypervisor maps, and its first stage does not.
const UNMAPPED: u64 = LEFT + 1;
/// Its pages with its first stage.
const STAGE: u64 = UNMAPPED + 1;
/// Its page that the hypervisor takes from its devices.
const TAKEN: u64 = PAGES - 1;
const _: () = assert!(STAGE + FirstStage::PAGES <= TAKEN);

/// Where its first stage has the page that its drive is to reach: none of its memory is there.
const HERE: Iova = Iova::new(0x5000);
/// Where its first address space has a page that the second one does not have.
const THERE: Iova = Iova::new(0x7000);
/// Where its first stage has the page that the hypervisor takes.
const KEPT: Iova = Iova::new(0x8000);
/// Where its first stage has the hypervisor's page, by its physical address.
const BEYOND: Iova = Iova::new(0x6000);

/// A parent domain of the guest.
type Parent = Domain<UserManaged, Backend, ParentPaging>;
/// The guest's first stage as a domain.
type Stage = Domain<UserManaged, Backend, Nested>;
/// Memory of the guest that is mapped in the parent.
type Part = Range<UserManaged, Backend, Mapped>;

/// The drive works through both stages: its queues, too. What the guest's first stage does not map is blocked though the
/// hypervisor maps it, and what the hypervisor does not map is blocked though the first stage names it. What the guest
/// takes out of its tables is out of reach once it said so; so is what it had in another address space, and what the
/// hypervisor takes out of its own, whatever the first stage says.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let caps = context.drives_unit()?;
    let platform = context.machine.platform;
    let mut guest = stand_in_guest()?;
    let (group, _) = context.take_drive()?;
    let claimed = group.claim_for_guest(guest.vm());
    let parent = match Domain::user_parent_alloc(&claimed, DomainConfig::default()) {
        Ok(parent) => parent,
        Err(error) => {
            let released = claimed.release();
            let idle = "nothing was attached, and the drive did nothing";
            context.rested(released.without_reset(idle))?;
            return refused(&caps, error);
        }
    };
    let pages = count(PAGES)?;
    let frames = platform
        .alloc_frames(pages, PageSize::Size4K)
        .or_fail("allocating guest memory")?;
    guest
        .give(BASE, frames)
        .map_err(|(_, error)| error)
        .or_fail("giving guest memory")?;
    let secret = canary(platform)?;
    let result = on_parent(context, claimed, parent, &guest, &secret);
    platform.free_frames(secret);
    let vm = guest.vm();
    result?;
    let frames = guest
        .take_back(BASE)
        .or_fail("taking the guest's memory back")?;
    platform.free_frames(frames);
    Ok(format!(
        "{vm} drives through both stages; what either does not map is blocked, with its fault; so is what the guest unmaps or \
         turns from, once it said so, and what the hypervisor unmaps, after the receipt"
    ))
}

/// What there is to show where users' first stages cannot be had: why.
fn refused(caps: &UnitCaps, error: DomainError) -> Shown {
    let is_why = match error {
        DomainError::NoSecondStage { .. } => !caps.second_stage,
        DomainError::Unmet { .. } => caps.second_stage && !caps.nested,
        _ => false,
    };
    ensure!(
        is_why,
        "the guest's parent domain is refused by {error:?} where the unit's second stage is {} and both at once {}",
        caps.second_stage,
        caps.nested
    );
    Ok(format!(
        "no guest can have a first stage of its own: {error}"
    ))
}

/// Maps the guest's memory in the parent, has the drive work behind the guest's first stage, and ends both domains.
fn on_parent(
    context: &mut Context<'_>,
    claimed: Group<Backend, Claimed<UserManaged>>,
    parent: Parent,
    guest: &GuestMemory,
    secret: &FrameRun<Hypervisor>,
) -> Result<(), Failure> {
    let platform = context.machine.platform;
    let rest = map(&parent, guest, BASE, TAKEN)?;
    let mut apart = Some(map(&parent, guest, page(TAKEN)?, 1)?);
    check_doorbells(claimed.reserved_regions(), |at| parent.translate(at))?;
    let raw = secret.range().start().as_u64();
    ensure!(
        parent.translate(Iova::new(raw)).is_none(),
        "{raw:#x} happens to be mapped for the guest"
    );

    let stage = FirstStage::new(guest, platform, page(STAGE)?)?;
    let buffers = count(BUFFERS)?;
    for (space, wanted) in [(Space::First, WANTED), (Space::Second, OTHER)] {
        stage.map_as_they_are(space, BASE, buffers)?;
        stage.map(space, HERE, page(wanted)?)?;
        stage.map(space, BEYOND, Gpa::new(raw))?;
        stage.map(space, KEPT, page(TAKEN)?)?;
    }
    stage.map(Space::First, THERE, page(LEFT)?)?;
    stage.set_context(Space::First)?;
    let nested =
        Domain::alloc_nested(&parent, &stage.entry()).or_fail("taking the guest's first stage")?;
    let isolated = context.witness(&claimed)?;
    let attached = claimed
        .attach_for_guest(&nested, &isolated)
        .or_fail("attaching the drive to the guest's first stage")?;
    let heap = GuestHeap::new(guest, platform, BASE);
    let requester = drive(context.machine)?;
    let scene = Scene {
        context,
        guest,
        stage: &stage,
        nested: &nested,
        secret,
    };
    let result = context.with_driver(&attached, requester, heap, |driver| {
        scene.all(driver, &mut apart)
    });
    let released = let_go(&result, attached.detach())?.release();
    context
        .rested(released.without_reset("each driver resets the controller before it uses it"))?;
    nested.destroy().or_fail("ending the guest's first stage")?;
    for part in [Some(rest), apart].into_iter().flatten() {
        unmap(guest, part)?;
    }
    let leftover = parent
        .destroy()
        .or_fail("ending the guest's parent domain")?
        .count();
    ensure!(
        leftover == 0,
        "{leftover} runs were still mapped for the guest"
    );
    result
}

/// Maps memory of the guest in the parent, where the guest has it.
fn map(parent: &Parent, guest: &GuestMemory, at: Gpa, pages: u64) -> Result<Part, Failure> {
    let pages = count(pages)?;
    let gpas = GpaRange::new(at, pages).or_fail("naming the guest's memory")?;
    let space = IovaRange::new(at.into(), pages).or_fail("naming the guest's addresses")?;
    let pinned = guest.pin(gpas).or_fail("pinning the guest's memory")?;
    parent
        .reserve(space)
        .or_fail("reserving the guest's addresses")?
        .map(pinned, Perms::ReadWrite)
        .or_fail("mapping the guest's memory")
}

/// Unmaps it, with the receipt.
fn unmap(guest: &GuestMemory, part: Part) -> Result<(), Failure> {
    let (range, pinned) = part
        .unmap()
        .flush()
        .or_fail("unmapping the guest's memory")?;
    guest
        .unpin(pinned)
        .map_err(|(_, error)| error)
        .or_fail("unpinning the guest's memory")?;
    range
        .release()
        .map_err(|(_, error)| error)
        .or_fail("releasing the guest's addresses")
}

/// A page of the guest's, by number.
fn page(number: u64) -> Result<Gpa, Failure> {
    BASE.checked_add(number * PageSize::Size4K.bytes())
        .ok_or_else(|| Failure::new("a guest's page beyond all addresses"))
}

fn count(pages: u64) -> Result<PageCount, Failure> {
    PageCount::new(pages).ok_or_else(|| Failure::new("a guest has memory"))
}

/// What is shown while the drive runs.
struct Scene<'c, 'm> {
    context: &'c Context<'m>,
    guest: &'c GuestMemory,
    stage: &'c FirstStage<'c>,
    nested: &'c Stage,
    secret: &'c FrameRun<Hypervisor>,
}

impl Scene<'_, '_> {
    fn all(
        &self,
        driver: &mut Driver<GuestBuffer<'_>>,
        apart: &mut Option<Part>,
    ) -> Result<(), Failure> {
        let failed = "the drive did not reach the guest's page through both stages";
        self.reaches(driver, HERE, WANTED, failed)?;
        self.blocked_by_each_stage(driver)?;
        self.unmapped(driver)?;
        self.turned(driver)?;
        self.taken(driver, apart)
    }

    /// The drive writes the page that the first stage has at `at`.
    fn reaches(
        &self,
        driver: &mut Driver<GuestBuffer<'_>>,
        at: Iova,
        wanted: u64,
        failed: &str,
    ) -> Result<(), Failure> {
        self.fill(wanted)?;
        driver.raw_read(SCRATCH_OFFSET, at)?;
        ensure!(!self.is_intact(wanted)?, "{failed}");
        Ok(())
    }

    /// One address that only the hypervisor maps, and one that only the guest does.
    fn blocked_by_each_stage(&self, driver: &mut Driver<GuestBuffer<'_>>) -> Result<(), Failure> {
        self.fill(UNMAPPED)?;
        let unmapped = page(UNMAPPED)?.into();
        self.context.forget_faults();
        driver.raw_read(SCRATCH_OFFSET, unmapped)?;
        ensure!(
            self.is_intact(UNMAPPED)?,
            "the drive reached a page that the guest's first stage does not map"
        );
        self.expect_fault(unmapped, FaultStage::First)?;
        driver.raw_read(SCRATCH_OFFSET, BEYOND)?;
        ensure!(
            is_canary(self.context.machine.platform, self.secret),
            "the guest's first stage led the drive to the hypervisor's memory"
        );
        self.expect_fault(BEYOND, FaultStage::Second)
    }

    /// The guest takes the page out, and says so; what it may not say is refused, and nothing behind it is done.
    fn unmapped(&self, driver: &mut Driver<GuestBuffer<'_>>) -> Result<(), Failure> {
        self.fill(WANTED)?;
        self.stage.unmap(Space::First, HERE)?;
        let forget = spec::forget_page(Space::First.asid(), HERE.as_u64());
        let refused = self
            .nested
            .invalidate(&[spec::FORGET_ALL_OF_EVERYBODY, forget]);
        let is_refused = |error: &hv_iommu::InvalidateError| {
            error.done == 0 && matches!(error.reason, InvalidateRefusal::Embedders(_))
        };
        ensure!(
            refused.as_ref().is_err_and(is_refused),
            "the guest asked that everything of everybody is forgotten, and the answer is {refused:?}"
        );
        self.invalidate(forget)?;
        driver.raw_read(SCRATCH_OFFSET, HERE)?;
        ensure!(
            self.is_intact(WANTED)?,
            "the drive reached the page at {HERE} after the guest had it forgotten"
        );
        self.expect_fault(HERE, FaultStage::First)
    }

    /// The guest turns to its other address space.
    fn turned(&self, driver: &mut Driver<GuestBuffer<'_>>) -> Result<(), Failure> {
        let failed = "the drive did not reach a page of the guest's first address space";
        self.reaches(driver, THERE, LEFT, failed)?;
        self.stage.clear_context()?;
        self.invalidate(spec::FORGET_CONTEXT)?;
        self.stage.set_context(Space::Second)?;
        self.invalidate(spec::FORGET_CONTEXT)?;
        let failed = "the drive went on in the address space that the guest had turned from";
        self.reaches(driver, HERE, OTHER, failed)?;
        self.fill(LEFT)?;
        driver.raw_read(SCRATCH_OFFSET, THERE)?;
        ensure!(
            self.is_intact(LEFT)?,
            "the drive reached a page of the address space that the guest had turned from"
        );
        self.expect_fault(THERE, FaultStage::First)
    }

    /// The hypervisor takes a page, which the guest's first stage goes on naming.
    fn taken(
        &self,
        driver: &mut Driver<GuestBuffer<'_>>,
        apart: &mut Option<Part>,
    ) -> Result<(), Failure> {
        let failed = "the drive did not reach the page that the hypervisor maps apart";
        self.reaches(driver, KEPT, TAKEN, failed)?;
        if let Some(part) = apart.take() {
            unmap(self.guest, part)?;
        }
        self.fill(TAKEN)?;
        driver.raw_read(SCRATCH_OFFSET, KEPT)?;
        ensure!(
            self.is_intact(TAKEN)?,
            "the drive reached the page that the hypervisor unmapped, after the receipt"
        );
        self.expect_fault(KEPT, FaultStage::Second)
    }

    fn invalidate(&self, command: hv_smmu::UserCommandWords) -> Result<(), Failure> {
        self.nested
            .invalidate(&[command])
            .or_fail("doing what the guest commands")
    }

    fn expect_fault(&self, address: Iova, stage: FaultStage) -> Result<(), Failure> {
        let expected = Expected {
            requester: drive(self.context.machine)?,
            address,
            access: Access::Write,
            owner: OwnerId::Vm(self.guest.vm()),
        };
        let of = (self.nested.uid(), stage);
        self.context.expect_fault_of(expected, Some(of))
    }

    fn fill(&self, number: u64) -> Result<(), Failure> {
        let platform = self.context.machine.platform;
        self.guest
            .write(platform, page(number)?, &CANARY)
            .or_fail("filling guest memory")
    }

    fn is_intact(&self, number: u64) -> Result<bool, Failure> {
        let mut bytes = [0; CANARY.len()];
        self.guest
            .read(self.context.machine.platform, page(number)?, &mut bytes)
            .or_fail("reading guest memory")?;
        Ok(bytes == CANARY)
    }
}
