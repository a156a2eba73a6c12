//! The NVMe drive as the scenarios use it: behind the IOMMU, in a domain of one owner or the other.

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use hv_core::platform::{FrameSource, Registers};
use hv_core::{
    FrameRun, Gpa, GpaRange, GuestMemory, GuestMemoryError, Hypervisor, Iova, IovaRange,
    KernelPaging, OutOfBounds, Owner, PageCount, PageSize, PciAddress, Perms, UserManaged, VmId,
};
use hv_iommu::table::Translation;
use hv_iommu::{
    AtRest, Attached, Blocked, BufferRequest, Claimed, CoherentBuffer, Domain, DomainConfig,
    DomainError, Group, InterruptsIsolated, LetsThrough, ReservedKind, ReservedRegion, UnitCaps,
    Wedged,
};

use super::{Context, Failure, OrFail, ensure};
use crate::machine::Machine;
use crate::nvme::{
    self, Controller, DmaBuffer, DmaMemory, DomainMemory, Lba, NvmeError, Parts, Status,
};
use crate::pci::{Class, Function, memory_bar};
use crate::platform::BareMetal;
use crate::subsystem::Backend;

/// Address bits of the widest tables that are tried.
const WIDEST: u8 = 48;
/// How long the drive may take for one command: far longer than it takes on a host that is busy with other things. One
/// whose queue is blocked says so long before that.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// A buffer of the domain with that alignment, which is also its largest page.
pub(super) fn buffer(
    domain: &Domain<KernelPaging, Backend>,
    pages: PageCount,
    align: PageSize,
    perms: Perms,
) -> Result<CoherentBuffer<Backend>, Failure> {
    let request = BufferRequest {
        pages,
        align,
        perms,
    };
    domain
        .alloc_coherent(request)
        .or_fail("allocating a DMA buffer")
}

/// Memory for a driver in a stand-in guest: page after page of the guest's memory, which the
/// device addresses as the guest does.
pub(super) struct GuestHeap<'g> {
    guest: &'g GuestMemory,
    platform: &'static BareMetal,
    next: Gpa,
}

/// A piece of the guest's memory.
pub(super) struct GuestBuffer<'g> {
    guest: &'g GuestMemory,
    platform: &'static BareMetal,
    gpa: Gpa,
    pages: PageCount,
}

impl GuestBuffer<'_> {
    /// Where an access goes, and the error for the case that the guest has no memory there.
    fn place(&self, offset: usize, bytes: usize) -> Result<(Gpa, OutOfBounds), OutOfBounds> {
        let error = OutOfBounds {
            offset: offset as u64,
            bytes: bytes as u64,
            end: self.pages.bytes(),
        };
        OutOfBounds::check(error.offset, bytes, error.end)?;
        Ok((self.gpa.checked_add(error.offset).ok_or(error)?, error))
    }
}

impl DmaBuffer for GuestBuffer<'_> {
    fn iova(&self) -> Iova {
        self.gpa.into()
    }
    fn bytes(&self) -> usize {
        usize::try_from(self.pages.bytes()).unwrap_or(usize::MAX)
    }
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let (from, error) = self.place(offset, out.len())?;
        self.guest.read(self.platform, from, out).map_err(|_| error)
    }
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfBounds> {
        let (to, error) = self.place(offset, data.len())?;
        self.guest.write(self.platform, to, data).map_err(|_| error)
    }
    fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        let (from, error) = self.place(offset, size_of::<u32>())?;
        self.guest.read_u32(self.platform, from).map_err(|_| error)
    }
}

impl<'g> GuestHeap<'g> {
    /// The guest's memory from `start` on.
    pub(super) const fn new(
        guest: &'g GuestMemory,
        platform: &'static BareMetal,
        start: Gpa,
    ) -> Self {
        Self {
            guest,
            platform,
            next: start,
        }
    }
}

impl<'g> DmaMemory for GuestHeap<'g> {
    type Buffer = GuestBuffer<'g>;
    type Error = GuestMemoryError;
    fn alloc(&mut self, bytes: usize) -> Result<Self::Buffer, GuestMemoryError> {
        let pages = PageCount::for_bytes(bytes as u64).unwrap_or(PageCount::ONE);
        let range = GpaRange::new(self.next, pages)?;
        // Shows that the guest has all of it.
        self.guest.read(self.platform, range.last(), &mut [0])?;
        let not_memory = GuestMemoryError::NotMemory { wanted: range };
        self.next = self.next.checked_add(pages.bytes()).ok_or(not_memory)?;
        Ok(GuestBuffer {
            guest: self.guest,
            platform: self.platform,
            gpa: range.start(),
            pages,
        })
    }
}

/// Registers of the drive.
pub(super) type Block = <BareMetal as Registers>::Block;

/// The controller of the drive, with queues in buffers `B`.
type Drive<B> = Controller<'static, Block, B, BareMetal>;

/// A running driver of the drive.
pub(super) struct Driver<B>(Drive<B>);

impl<B: DmaBuffer> Driver<B> {
    /// Reads `bytes` bytes of the drive from `at` into the start of `buffer`.
    pub(super) fn read(&mut self, at: u64, bytes: usize, buffer: &B) -> Result<(), Failure> {
        self.pieces(at, bytes, |drive, lba, blocks, offset| {
            drive.read(lba, blocks, buffer, offset)
        })
    }

    /// Writes `bytes` bytes of the drive from `at` out of the start of `buffer`.
    pub(super) fn write(&mut self, at: u64, bytes: usize, buffer: &B) -> Result<(), Failure> {
        self.pieces(at, bytes, |drive, lba, blocks, offset| {
            drive.write(lba, blocks, buffer, offset)
        })
    }

    /// Reads one page of the drive to a device address of the caller's choice. How the drive says the
    /// command ended is not looked at: it reports success for blocked transfers too.
    pub(super) fn raw_read(&mut self, at: u64, page: Iova) -> Result<(), Failure> {
        self.raw(at, |drive, lba, blocks| {
            drive.read_raw(lba, blocks, &[page])
        })
    }

    /// Writes one page of the drive from a device address of the caller's choice, likewise.
    pub(super) fn raw_write(&mut self, at: u64, page: Iova) -> Result<(), Failure> {
        self.raw(at, |drive, lba, blocks| {
            drive.write_raw(lba, blocks, &[page])
        })
    }

    fn raw(
        &mut self,
        at: u64,
        command: impl FnOnce(&mut Drive<B>, Lba, u32) -> Result<Status, NvmeError>,
    ) -> Result<(), Failure> {
        let block = u64::from(self.0.namespace().block_bytes);
        let blocks = (PageSize::Size4K.bytes() / block) as u32;
        command(&mut self.0, Lba(at / block), blocks).or_fail("a raw command to the drive")?;
        Ok(())
    }

    /// Cuts a transfer into commands.
    fn pieces(
        &mut self,
        at: u64,
        bytes: usize,
        mut one: impl FnMut(&mut Drive<B>, Lba, u32, usize) -> Result<(), NvmeError>,
    ) -> Result<(), Failure> {
        let block = self.0.namespace().block_bytes as usize;
        let most = self.0.max_blocks() as usize * block;
        let mut done = 0;
        while done < bytes {
            let step = most.min(bytes - done);
            let lba = Lba((at + done as u64) / block as u64);
            one(&mut self.0, lba, (step / block) as u32, done).or_fail("a command to the drive")?;
            done += step;
        }
        Ok(())
    }
}

/// The drive's function.
pub(super) fn drive_function(machine: &Machine) -> Result<&Function, Failure> {
    let found = machine
        .functions
        .iter()
        .find(|function| function.class == Class::NVME);
    found.ok_or_else(|| Failure::new("there is no NVMe drive on any bus"))
}

/// The drive's registers.
pub(super) fn drive_registers(machine: &Machine) -> Result<Block, Failure> {
    let (platform, function) = (machine.platform, drive_function(machine)?);
    let bar = memory_bar(platform, function, 0).or_fail("finding the drive's registers")?;
    let pages = bar
        .pages()
        .ok_or_else(|| Failure::new("the drive's registers are not whole pages"))?;
    platform
        .map_registers(pages)
        .or_fail("mapping the drive's registers")
}

/// Where the drive is.
pub(super) fn drive(machine: &Machine) -> Result<PciAddress, Failure> {
    Ok(drive_function(machine)?.address)
}

impl Context<'_> {
    /// A domain with the deepest tables that the drive's unit walks, of those that are tried.
    pub(super) fn widest(&self) -> Result<DomainConfig, Failure> {
        Ok(DomainConfig {
            address_bits: self.drives_unit()?.iova_bits.min(WIDEST),
            ..DomainConfig::default()
        })
    }

    /// What the unit of the drive can do.
    pub(super) fn drives_unit(&self) -> Result<UnitCaps, Failure> {
        let unit = self.iommu.unit_of(drive(self.machine)?);
        let caps = unit.and_then(|unit| self.iommu.unit_caps(unit));
        caps.ok_or_else(|| Failure::new("no unit covers the drive"))
    }

    /// Asks for a domain of a guest where the drive's unit has no second stage. What is said to that.
    pub(super) fn refused_guest(&mut self, guest: &GuestMemory) -> Result<DomainError, Failure> {
        let (group, _) = self.take_drive()?;
        let claimed = group.claim_for_guest(guest.vm());
        let answer = Domain::user_domain_alloc(&claimed, DomainConfig::default());
        let released = claimed.release();
        self.rested(released.without_reset("nothing was attached, and the drive did nothing"))?;
        match answer {
            Err(error) => Ok(error),
            Ok(domain) => {
                let made = format!("{domain:?}");
                domain
                    .destroy()
                    .or_fail("ending the guest's domain")?
                    .for_each(drop);
                Err(Failure::new(format_args!(
                    "{made} was made for a guest, whose addresses nothing here translates"
                )))
            }
        }
    }

    /// Takes the group of the drive out of those at rest.
    pub(super) fn take_drive(&mut self) -> Result<(Group<Backend, Blocked>, PciAddress), Failure> {
        let drive = drive(self.machine)?;
        let index = self
            .groups
            .iter()
            .position(|group| group.members().contains(&drive));
        let missing = || Failure::new(format_args!("the group of {drive} is not at rest"));
        let index = index.ok_or_else(missing)?;
        Ok((self.groups.swap_remove(index), drive))
    }

    /// Resets the drive, lets it on the bus, and runs `body` with a driver on it that takes its memory
    /// from `memory`. In this order: what its last owner armed it with must not reach this domain.
    pub(super) fn with_driver<O: Owner, S: LetsThrough<O, Backend>, M: DmaMemory, R>(
        &self,
        attached: &Group<Backend, Attached<O, Backend, S>>,
        drive: PciAddress,
        mut memory: M,
        body: impl FnOnce(&mut Driver<M::Buffer>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let platform = self.machine.platform;
        let registers = drive_registers(self.machine)?;
        nvme::disable(&registers, platform).or_fail("resetting the drive")?;
        attached
            .enable_bus_mastering(drive)
            .or_fail("enabling the drive")?;
        let parts =
            Parts::alloc(registers, &mut memory).or_fail("allocating the drive's queues")?;
        let controller =
            Controller::start(parts, platform, COMMAND_LIMIT).or_fail("starting the drive")?;
        let mut driver = Driver(controller);
        let result = body(&mut driver);
        // The buffers of the queues go with their domain.
        driver.0.stop().or_fail("stopping the drive")?;
        result
    }

    /// Runs `body` with the drive attached to a fresh domain of the hypervisor, and ends both. What is
    /// still mapped then is freed.
    pub(super) fn with_kernel_drive<R>(
        &mut self,
        config: DomainConfig,
        body: impl FnOnce(
            &Self,
            &Domain<KernelPaging, Backend>,
            &mut Driver<CoherentBuffer<Backend>>,
        ) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let platform = self.machine.platform;
        self.with_kernel_drive_until(config, body, |frames| platform.free_frames(frames))
    }

    /// Likewise, but `leftover` gets the frames of what is still mapped when the domain ends.
    pub(super) fn with_kernel_drive_until<R>(
        &mut self,
        config: DomainConfig,
        body: impl FnOnce(
            &Self,
            &Domain<KernelPaging, Backend>,
            &mut Driver<CoherentBuffer<Backend>>,
        ) -> Result<R, Failure>,
        leftover: impl FnMut(FrameRun<Hypervisor>),
    ) -> Result<R, Failure> {
        let (group, drive) = self.take_drive()?;
        let claimed = group.claim_for_hypervisor();
        let domain =
            Domain::paging_domain_alloc(&claimed, config).or_fail("allocating a domain")?;
        check_doorbells(claimed.reserved_regions(), |at| domain.translate(at))?;
        let attached = claimed.attach(&domain).or_fail("attaching the drive")?;
        let result = self.with_driver(&attached, drive, DomainMemory(&domain), |driver| {
            body(self, &domain, driver)
        });
        let released = let_go(&result, attached.detach())?.release();
        self.rested(released.without_reset("each driver resets the controller before it uses it"))?;
        domain
            .destroy()
            .or_fail("ending the domain")?
            .for_each(leftover);
        result
    }

    /// The witness that the guest's drive raises no interrupts but its own. An interrupt translation service tells senders
    /// apart: where the machine has one, there is nothing to be assumed.
    pub(super) fn witness(
        &self,
        claimed: &Group<Backend, Claimed<UserManaged>>,
    ) -> Result<InterruptsIsolated, Failure> {
        match claimed.interrupts_isolated() {
            Ok(isolated) => Ok(isolated),
            Err(why) if self.machine.platform.tells_senders_apart() => {
                Err(Failure::new(format_args!(
                    "the machine has an interrupt translation service, and no witness for the drive: {why}"
                )))
            }
            Err(why) => {
                log::info!("no witness for interrupts: {why}");
                Ok(InterruptsIsolated::override_unsafe_interrupts(
                    "the stand-in guest runs hypervisor code and its drive is polled",
                ))
            }
        }
    }

    /// Puts a group back to those at rest.
    pub(super) fn rested(&mut self, group: AtRest<Backend>) -> Result<(), Failure> {
        let group = group.claimable().or_fail("having the drive's group back")?;
        self.groups.push(group);
        Ok(())
    }

    /// Runs `body` with the drive attached to a fresh domain of the guest that owns `guest`, in
    /// which `space` is mapped one to one with the guest's addresses, and ends both.
    pub(super) fn with_guest_drive<R>(
        &mut self,
        guest: &GuestMemory,
        space: IovaRange,
        body: impl FnOnce(
            &Self,
            &Domain<UserManaged, Backend>,
            &mut Driver<GuestBuffer<'_>>,
        ) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let (group, drive) = self.take_drive()?;
        let claimed = group.claim_for_guest(guest.vm());
        let config = DomainConfig::default();
        let domain =
            Domain::user_domain_alloc(&claimed, config).or_fail("allocating a guest's domain")?;
        let start = Gpa::new(space.start().as_u64());
        let gpas = GpaRange::new(start, space.pages()).or_fail("naming the guest's memory")?;
        let pinned = guest.pin(gpas).or_fail("pinning the guest's memory")?;
        let range = domain
            .reserve(space)
            .or_fail("reserving the guest's addresses")?;
        let mapped = range
            .map(pinned, Perms::ReadWrite)
            .or_fail("mapping the guest's memory")?;
        check_doorbells(claimed.reserved_regions(), |at| domain.translate(at))?;
        let isolated = self.witness(&claimed)?;
        let attached = claimed
            .attach_for_guest(&domain, &isolated)
            .or_fail("attaching the drive for the guest")?;
        let heap = GuestHeap::new(guest, self.machine.platform, start);
        let result = self.with_driver(&attached, drive, heap, |driver| body(self, &domain, driver));
        let (range, pinned) = mapped
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
            .or_fail("releasing the guest's addresses")?;
        // Nothing but the reset that its driver begins with is left to do.
        let released = let_go(&result, attached.detach())?.release();
        self.rested(released.without_reset("each driver resets the controller before it uses it"))?;
        let leftover = domain
            .destroy()
            .or_fail("ending the guest's domain")?
            .count();
        ensure!(
            leftover == 0,
            "{leftover} runs were still mapped for the guest"
        );
        result
    }
}

/// The group of a drive that was detached. Where the unit did not let go of it, that is told behind what failed before.
pub(super) fn let_go<O: Owner, R>(
    result: &Result<R, Failure>,
    detached: Result<Group<Backend, Claimed<O>>, Group<Backend, Wedged<Backend>>>,
) -> Result<Group<Backend, Claimed<O>>, Failure> {
    detached.map_err(|group| {
        let before = match result {
            Ok(_) => String::new(),
            Err(failure) => format!("{failure}; then "),
        };
        Failure::new(format_args!(
            "{before}detaching the drive: {}",
            group.error()
        ))
    })
}

/// Whether a domain leads the drive's interrupt messages to where they go.
pub(super) fn check_doorbells(
    regions: impl Iterator<Item = ReservedRegion>,
    translate: impl Fn(Iova) -> Option<Translation>,
) -> Result<(), Failure> {
    for region in regions.filter(|region| region.kind == ReservedKind::Doorbell) {
        let at = region.range.start();
        let leads = translate(at)
            .is_some_and(|found| found.to.as_u64() == at.as_u64() && found.perms.writable());
        ensure!(leads, "{region} is not mapped for messages");
    }
    Ok(())
}

/// A guest that stands in for a real one.
pub(super) fn stand_in_guest() -> Result<GuestMemory, Failure> {
    let vm = VmId::new(1).ok_or_else(|| Failure::new("1 is a VM id"))?;
    Ok(GuestMemory::new(vm))
}
