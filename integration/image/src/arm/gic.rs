//! The interrupt controller, as far as CPUs wake one another by it and units tell of faults. Interrupts stay masked: a CPU
//! that sleeps wakes up when one is pending, and takes it by itself, as does one that looks for it.
#![expect(
    unsafe_code,
    reason = "claims the registers of the interrupt controller"
)]

use core::ptr::NonNull;

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicError, GicV3, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use arrayvec::ArrayVec;
use hv_iommu::InterruptId;
use spin::Mutex;
use thiserror::Error;

use crate::device_tree::{Gic, Mpidr};
use crate::memory::physical;

/// The interrupt that takes an idle CPU out of its sleep; it carries no other meaning.
const WAKE: IntId = IntId::sgi(0);
/// Lets interrupts of every priority through.
const ALL_PRIORITIES: u8 = 0xff;
/// Bytes of one redistributor's frames: two of them, or four where it serves virtual LPIs (Arm IHI 0069, 12.10).
const REDISTRIBUTOR_BYTES: u64 = 128 << 10;

/// Most interrupts of devices that are listened to: two of each of many units.
const MAX_WIRES: usize = 32;

/// The interrupt controller cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GicSetupError {
    /// The redistributors' registers end before those of all CPUs.
    #[error("the GIC has redistributors for {found} CPUs, but there are {cpus}")]
    Redistributors {
        /// Redistributors that there are.
        found: usize,
        /// CPUs.
        cpus: usize,
    },
    /// No redistributor is a CPU's.
    #[error("the GIC has no redistributor for the CPU {:#x}", .0.get())]
    NoRedistributor(Mpidr),
    /// Firmware names an interrupt that devices do not have.
    #[error("expected a shared peripheral interrupt, found number {0}")]
    NoSuchInterrupt(u32),
    /// More wires than are counted.
    #[error(
        "expected at most {MAX_WIRES} interrupts of devices to listen to, found number {0} beyond them"
    )]
    TooManyWires(u32),
    /// What the driver found.
    #[error("the GIC cannot be used: {0:?}")]
    Driver(GicError),
}

/// The controller.
struct Driver {
    gic: GicV3<'static>,
    /// How many redistributors there are: also those of CPUs that the tree says are not used, or does not list.
    redistributors: usize,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// Sets the controller up for `cpus` CPUs, and for the one that calls.
///
/// # Errors
/// [`GicSetupError`].
///
/// # Safety
/// Called once, by the CPU that booted, with the registers that the device tree names, mapped as device memory.
pub(super) unsafe fn init(found: &Gic, cpus: usize, boot: Mpidr) -> Result<(), GicSetupError> {
    let bytes = found.redistributors.pages().bytes();
    let room = (bytes / REDISTRIBUTOR_BYTES) as usize;
    if room < cpus {
        return Err(GicSetupError::Redistributors { found: room, cpus });
    }
    let driver = |redistributors| {
        let distributor = physical::pointer(found.distributor.start()).cast::<Gicd>();
        let distributor = NonNull::new(distributor).unwrap_or(NonNull::dangling());
        // SAFETY: the caller promises mapped registers, and that this runs once; of the drivers that are made here, each
        // is gone before the next one.
        let distributor = unsafe { UniqueMmioPointer::new(distributor) };
        let first = physical::pointer(found.redistributors.start()).cast::<GicrSgi>();
        let first = NonNull::new(first).unwrap_or(NonNull::dangling());
        // SAFETY: as above, and there are as many redistributors.
        let gic = unsafe { GicV3::new(distributor, first, redistributors) };
        gic.map_err(GicSetupError::Driver)
    };
    // The first one says how large each is, and each whether it is the last.
    let redistributors = count(&mut driver(room)?, bytes)?;
    if redistributors < cpus {
        let found = redistributors;
        return Err(GicSetupError::Redistributors { found, cpus });
    }
    let mut driver = Driver {
        gic: driver(redistributors)?,
        redistributors,
    };
    let index = driver.index_of(boot)?;
    driver.gic.setup(index);
    driver.accept_wakes(index)?;
    *DRIVER.lock() = Some(driver);
    Ok(())
}

/// How many redistributors have their registers in so many bytes, one behind the other.
fn count(gic: &mut GicV3<'static>, bytes: u64) -> Result<usize, GicSetupError> {
    let mut count = 0;
    let mut end = 0;
    loop {
        let kind = gic.gicr_typer(count).map_err(GicSetupError::Driver)?;
        let each = match kind.virtual_lpis_supported() {
            true => 2 * REDISTRIBUTOR_BYTES,
            false => REDISTRIBUTOR_BYTES,
        };
        end += each;
        if end > bytes {
            return Ok(count);
        }
        count += 1;
        if kind.last_redistributor() || end + each > bytes {
            return Ok(count);
        }
    }
}

/// Sets the controller up for one more CPU, which calls.
///
/// # Errors
/// [`GicSetupError`].
pub(super) fn init_cpu(cpu: Mpidr) -> Result<(), GicSetupError> {
    let mut driver = DRIVER.lock();
    let driver = driver.as_mut().ok_or(GicSetupError::NoRedistributor(cpu))?;
    let index = driver.index_of(cpu)?;
    driver.gic.init_cpu(index);
    GicCpuInterface::enable_group1(true);
    driver.accept_wakes(index)
}

impl Driver {
    /// Which redistributor is the CPU's.
    fn index_of(&mut self, cpu: Mpidr) -> Result<usize, GicSetupError> {
        (0..self.redistributors)
            .find(|index| {
                let kind = self.gic.gicr_typer(*index);
                kind.is_ok_and(|kind| Mpidr::new(kind.core_mpidr()) == cpu)
            })
            .ok_or(GicSetupError::NoRedistributor(cpu))
    }

    fn accept_wakes(&mut self, index: usize) -> Result<(), GicSetupError> {
        GicCpuInterface::set_priority_mask(ALL_PRIORITIES);
        self.gic
            .enable_interrupt(WAKE, Some(index), true)
            .map_err(GicSetupError::Driver)
    }
}

/// Has the wake-up interrupt become pending at a CPU.
///
/// # Errors
/// [`GicError`] when the CPU cannot be named.
pub(super) fn wake(cpu: Mpidr) -> Result<(), WakeError> {
    let [affinity3, affinity2, affinity1, affinity0] = cpu.fields();
    // A message names sixteen CPUs of a cluster.
    let target_list = 1u16
        .checked_shl(affinity0.into())
        .ok_or(WakeError { cpu })?;
    let target = SgiTarget::List {
        affinity3,
        affinity2,
        affinity1,
        target_list,
    };
    GicCpuInterface::send_sgi(WAKE, target, SgiTargetGroup::CurrentGroup1)
        .map_err(|_| WakeError { cpu })
}

/// A CPU cannot be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no message names the CPU {:#x}", .cpu.get())]
pub struct WakeError {
    /// The CPU.
    pub cpu: Mpidr,
}

/// Has a device's interrupt, an edge, go to a CPU, and counts it from then on.
///
/// # Errors
/// [`GicSetupError`].
pub(super) fn listen(interrupt: InterruptId, cpu: Mpidr) -> Result<(), GicSetupError> {
    let InterruptId(number) = interrupt;
    let known = IntId::try_from(number).ok();
    let id = known.filter(|id| id.is_spi() || id.is_espi());
    let id = id.ok_or(GicSetupError::NoSuchInterrupt(number))?;
    let mut wires = WIRES.lock();
    if wires.iter().all(|wire| wire.id != id) {
        let wire = Wire { id, taken: 0 };
        wires
            .try_push(wire)
            .map_err(|_| GicSetupError::TooManyWires(number))?;
    }
    drop(wires);
    let mut driver = DRIVER.lock();
    let driver = driver.as_mut().ok_or(GicSetupError::NoRedistributor(cpu))?;
    let set = |driver: &mut Driver| {
        driver.gic.enable_interrupt(id, None, false)?;
        driver.gic.set_trigger(id, None, Trigger::Edge)?;
        driver.gic.distributor().set_routing(id, Some(cpu.get()))?;
        driver.gic.enable_interrupt(id, None, true)
    };
    set(driver).map_err(GicSetupError::Driver)
}

/// A wire that is listened to.
struct Wire {
    id: IntId,
    /// How many of its interrupts were taken.
    taken: u64,
}

/// The wires that are listened to.
static WIRES: Mutex<ArrayVec<Wire, MAX_WIRES>> = Mutex::new(ArrayVec::new_const());

/// How many interrupts of the wire came so far, those included that are pending at the CPU that calls.
pub(super) fn taken(interrupt: InterruptId) -> u64 {
    take_pending();
    let wires = WIRES.lock();
    let mut found = wires
        .iter()
        .filter(|wire| u32::from(wire.id) == interrupt.0);
    found.next().map_or(0, |wire| wire.taken)
}

/// Takes every interrupt that is pending at the CPU that calls.
pub(super) fn take_pending() {
    let group = InterruptGroup::Group1;
    while let Some(interrupt) = GicCpuInterface::get_and_acknowledge_interrupt(group) {
        let mut wires = WIRES.lock();
        if let Some(wire) = wires.iter_mut().find(|wire| wire.id == interrupt) {
            wire.taken += 1;
        }
        drop(wires);
        GicCpuInterface::end_interrupt(interrupt, group);
    }
}
