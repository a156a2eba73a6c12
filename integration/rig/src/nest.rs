//! A guest with a first stage of its own, on a parent that maps its memory: each step noted for the watcher.

mod taken;

use hv_core::platform::FrameSource;
use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, PageCount, PageSize, Pasid, PciAddress, Perms,
    PhysAddr, PhysRange, UserManaged, VmId,
};
use hv_iommu::shape::Shape;
use hv_iommu::{
    AtRest, Attached, Blocked, Claimed, Domain, DomainConfig, Group, InterruptsIsolated, Mapped,
    Needs, Nested, ParentPaging, Range, ReplaceFailed, Wedged,
};
use hv_smmu::Smmu;

pub use self::taken::{Back, Taken};
use crate::ledger::Tenant;
use crate::rig::Rig;
use crate::smmu::GuestStage;

type Backend = Smmu<Rig>;

/// Why no device needs a reset.
const REMEMBERS: &str = "the rig's devices remember nothing";
/// Pages of the guest's memory; its first stage lies in the first of them.
const PAGES: u64 = 32;
/// The page of its memory that is mapped apart from the others.
const APART: u64 = 16;
/// The ledger's names: what the guest's memory is, and what its devices reach through its first stage.
const PARENT: Tenant = Tenant(0x1000);
const DEVICE: Tenant = Tenant(0x1001);
/// What requests with a PASID reach.
const WITH_PASID: Tenant = Tenant(0x1002);

/// The guest, its parent domain, its nested domain and its device.
pub struct Nest {
    rig: Rig,
    /// The guest's memory.
    memory: GuestMemory,
    frames: PhysRange,
    parent: Domain<UserManaged, Backend, ParentPaging>,
    apart: Option<Range<UserManaged, Backend, Mapped>>,
    rest: Vec<Range<UserManaged, Backend, Mapped>>,
    /// Its first stage, in its memory.
    pub stage: GuestStage,
    /// The domain that the device is on.
    pub nested: Domain<UserManaged, Backend, Nested>,
    /// The device, while it is attached.
    pub group: Option<Group<Backend, Attached<UserManaged, Backend, Nested>>>,
    /// The same while it goes by the parent alone.
    pub on_parent: Option<Group<Backend, Attached<UserManaged, Backend, ParentPaging>>>,
    /// The same while it is attached nowhere.
    outside: Option<Group<Backend, Claimed<UserManaged>>>,
    wedged: Option<Group<Backend, Wedged<Backend>>>,
    members: Vec<PciAddress>,
}

/// A page at a number.
fn page(number: u64) -> IovaRange {
    IovaRange::new(Iova::new(number << 12), PageCount::ONE).expect("a page below 2^52")
}

impl Nest {
    /// Whose its devices are, in the ledger, with requests that carry no PASID.
    pub const DEVICES: Tenant = DEVICE;

    /// The guest has the group's devices on a first stage in which nothing is mapped yet: context 0 leads to space 0
    /// under ASID 1. With 2^`log2` contexts.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn new(rig: &Rig, group: Group<Backend, Blocked>, log2: u8) -> Result<Self, String> {
        Self::needing(rig, group, log2, Needs::default())
    }

    /// The same on a parent that is asked for more than its size.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn needing(
        rig: &Rig,
        group: Group<Backend, Blocked>,
        log2: u8,
        needs: Needs,
    ) -> Result<Self, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let vm = VmId::new(1).ok_or("no guest")?;
        let group: Group<Backend, Claimed<UserManaged>> = group.claim_for_guest(vm);
        let config = DomainConfig {
            address_bits: 31,
            ..DomainConfig::default()
        };
        let parent = Domain::user_parent_alloc(&group, config.with(needs));
        let parent = parent.map_err(|error| said(&error))?;
        let count = PageCount::new(PAGES).ok_or("no pages")?;
        let run = rig
            .alloc_frames(count, PageSize::Size4K)
            .map_err(|_| "no frames")?;
        let frames = run.range();
        let mut memory = GuestMemory::new(vm);
        memory
            .give_watched(Gpa::new(0), run, PageSize::Size4K)
            .map_err(|_| "memory that is not taken")?;
        let mut ranges = Vec::new();
        for (first, pages) in [(0, APART), (APART, 1), (APART + 1, PAGES - APART - 1)] {
            let count = PageCount::new(pages).ok_or("no pages")?;
            let at = first << 12;
            let range = IovaRange::new(Iova::new(at), count).map_err(|error| said(&error))?;
            let free = parent.reserve(range).map_err(|error| said(&error))?;
            let gpas = GpaRange::new(Gpa::new(at), count).map_err(|error| said(&error))?;
            let pin = memory.pin(gpas).map_err(|error| said(&error))?;
            rig.mapping(PARENT, range, pin.range(), Perms::ReadWrite);
            let mapped = free.map(pin, Perms::ReadWrite);
            let mapped = mapped.map_err(|error| said(&error))?;
            rig.mapped(PARENT, range, mapped.granted());
            ranges.push(mapped);
        }
        let apart = ranges.remove(1);
        let pages = PageCount::new(GuestStage::PAGES).ok_or("no pages")?;
        let tables = PhysRange::new(frames.start(), pages).map_err(|error| said(&error))?;
        let stage = GuestStage::new(rig, Gpa::new(0), tables);
        stage.set_context(0, 1, 0);
        let nested = Domain::alloc_nested(&parent, &stage.entry(log2));
        let nested = nested.map_err(|error| said(&error))?;
        let members = group.members().to_vec();
        if needs.coherent_dma {
            rig.snoops(DEVICE);
        }
        rig.attaching(&members, DEVICE);
        let isolated = InterruptsIsolated::override_unsafe_interrupts("the rig's own");
        let group = group.attach_for_guest(&nested, &isolated);
        let group = group.map_err(|error| said(&error))?;
        rig.attached(&members, DEVICE);
        for member in &members {
            group
                .enable_bus_mastering(*member)
                .map_err(|error| said(&error))?;
        }
        Ok(Self {
            rig: rig.clone(),
            memory,
            frames,
            parent,
            apart: Some(apart),
            rest: ranges,
            stage,
            nested,
            group: Some(group),
            on_parent: None,
            outside: None,
            wedged: None,
            members,
        })
    }

    /// The device goes by the parent alone from now on, without a gap.
    ///
    /// # Errors
    /// What went wrong, in words; the device is where it was.
    pub fn to_parent(&mut self) -> Result<(), String> {
        let group = self.group.take().ok_or("it is on no first stage")?;
        let gapless = group.gapless().ok_or("no witness")?;
        match group.replace(&self.parent, &gapless) {
            Ok(group) => self.on_parent = Some(group),
            Err(ReplaceFailed::Refused { group, error }) => {
                self.group = Some(group);
                return Err(error.to_string());
            }
            Err(failed) => return Err(self.stuck(failed)),
        }
        self.rig.attached(&self.members, PARENT);
        Ok(())
    }

    /// The device goes by the guest's first stage from now on, without a gap.
    ///
    /// # Errors
    /// As [`to_parent`](Self::to_parent).
    pub fn to_nested(&mut self) -> Result<(), String> {
        let group = self.on_parent.take().ok_or("it is not on the parent")?;
        let gapless = group.gapless().ok_or("no witness")?;
        match group.replace(&self.nested, &gapless) {
            Ok(group) => self.group = Some(group),
            Err(ReplaceFailed::Refused { group, error }) => {
                self.on_parent = Some(group);
                return Err(error.to_string());
            }
            Err(failed) => return Err(self.stuck(failed)),
        }
        self.rig.attached(&self.members, DEVICE);
        Ok(())
    }

    /// The device goes by another first stage of the guest, without a gap. The domain of the one that it was on ends.
    ///
    /// # Errors
    /// As [`to_parent`](Self::to_parent).
    pub fn to_other(&mut self, entry: &[u64; 8]) -> Result<(), String> {
        let other = Domain::alloc_nested(&self.parent, entry);
        let other = other.map_err(|error| error.to_string())?;
        let group = self.group.take().ok_or("it is on no first stage")?;
        let gapless = group.gapless().ok_or("no witness")?;
        let moved = group.replace(&other, &gapless);
        let (group, left, error) = match moved {
            Ok(group) => (group, std::mem::replace(&mut self.nested, other), None),
            Err(ReplaceFailed::Refused { group, error }) => (group, other, Some(error)),
            Err(failed) => return Err(self.stuck(failed)),
        };
        self.group = Some(group);
        left.destroy().map_err(|error| error.reason.to_string())?;
        error.map_or(Ok(()), |error| Err(error.to_string()))
    }

    /// The unit did not finish, so the device is on neither: says why.
    fn stuck<S: Shape<UserManaged, Backend>>(
        &mut self,
        failed: ReplaceFailed<UserManaged, Backend, S>,
    ) -> String {
        let why = failed.to_string();
        if let ReplaceFailed::Wedged { group } = failed {
            self.rig.detaching(&self.members, DEVICE);
            self.wedged = Some(group);
        }
        why
    }

    /// After the unit's reset: the device leaves both domains that it may be cached in, and everything ends.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn recover(mut self) -> Result<AtRest<Backend>, String> {
        let wedged = self.wedged.take().ok_or("it is not wedged")?;
        let rest = wedged.recover();
        let rest = rest.map_err(|group| group.error().to_string())?;
        self.rig.detached(&self.members);
        self.end_domains()?;
        Ok(match rest {
            AtRest::AfterDriver(used) => used.without_reset(REMEMBERS),
            AtRest::ToReset(used) => used.without_reset(REMEMBERS),
            other => other,
        })
    }

    /// The first device.
    pub fn device(&self) -> PciAddress {
        self.members[0]
    }

    /// The page of the guest's memory that is mapped by itself.
    pub const fn apart(&self) -> u64 {
        APART
    }

    const fn tenant(pasid: Option<Pasid>) -> Tenant {
        match pasid {
            None => DEVICE,
            Some(_) => WITH_PASID,
        }
    }

    /// Requests with this PASID are the guest's from now on.
    pub fn let_in(&self, pasid: Pasid) {
        self.rig.attaching_pasid(&self.members, pasid, WITH_PASID);
        self.rig.attached_pasid(&self.members, pasid, WITH_PASID);
    }

    /// The guest maps a page of its own in a space; from then on requests reach it.
    pub fn map(&self, pasid: Option<Pasid>, space: u64, at: u64, to: u64) {
        self.coming(pasid, at, to);
        self.stage.map(space, page(at).start(), Gpa::new(to << 12));
        self.came(pasid, at);
    }

    /// A page of the guest's is about to be where its devices reach it.
    pub fn coming(&self, pasid: Option<Pasid>, at: u64, to: u64) {
        let start = self.frames.start().as_u64() + (to << 12);
        let to = PhysRange::new(PhysAddr::new(start), PageCount::ONE).expect("one of its pages");
        self.rig
            .mapping(Self::tenant(pasid), page(at), to, Perms::ReadWrite);
    }

    /// It is.
    pub fn came(&self, pasid: Option<Pasid>, at: u64) {
        self.rig
            .mapped(Self::tenant(pasid), page(at), Perms::ReadWrite);
    }

    /// A page is about to be where no device reaches it.
    pub fn going(&self, pasid: Option<Pasid>, at: u64) {
        self.rig.unmapping(Self::tenant(pasid), page(at));
    }

    /// It is, with a receipt: nothing of it is left in any unit.
    pub fn gone(&self, pasid: Option<Pasid>, at: u64) {
        self.rig.returned(Self::tenant(pasid), page(at));
    }

    /// The guest gives commands, and waits for them.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn command(&self, commands: &[[u64; 2]]) -> Result<(), String> {
        let done = self.nested.invalidate(commands);
        done.map_err(|error| error.to_string())
    }

    /// The same for all its first stages, whichever its devices are on.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn command_everywhere(&self, commands: &[[u64; 2]]) -> Result<(), String> {
        let done = self.parent.invalidate(commands);
        done.map_err(|error| error.to_string())
    }

    /// All of its first stages is forgotten.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn forget_first_stages(&self) -> Result<(), String> {
        let done = self.parent.forget_first_stages();
        done.map_err(|error| error.to_string())
    }

    /// The hypervisor takes the page that is mapped apart: it is unmapped, and given to the platform with the receipt.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn take_apart(&mut self, seen_at: &[u64]) -> Result<(), String> {
        let flushed = self.begin_taking(seen_at)?.flush();
        let back = flushed.map_err(|(_, why)| why)?;
        self.end_taking(back)
    }

    /// The device leaves the guest, and everything ends. Gives the group.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn end(mut self) -> Result<AtRest<Backend>, String> {
        let left = match (self.group.take(), self.on_parent.take()) {
            (Some(group), _) => {
                self.rig.detaching(&self.members, DEVICE);
                group.detach()
            }
            (None, Some(group)) => {
                self.rig.detaching(&self.members, PARENT);
                group.detach()
            }
            (None, None) => return Err("it left".to_owned()),
        };
        let left = left.map_err(|group| group.error().to_string())?;
        self.rig.detached(&self.members);
        self.end_domains()?;
        Ok(left.release().without_reset(REMEMBERS))
    }

    fn end_domains(self) -> Result<(), String> {
        self.rig.ended(DEVICE);
        self.rig.ended(WITH_PASID);
        self.nested
            .destroy()
            .map_err(|error| error.reason.to_string())?;
        drop(self.rest);
        let teardown = self.parent.destroy();
        drop(teardown.map_err(|error| error.reason.to_string())?);
        self.rig.ended(PARENT);
        Ok(())
    }
}
