//! The local APIC of the CPU that calls: identity, end of interrupt, interrupts to other CPUs.
//!
//! Works in the mode in which firmware left it: xAPIC registers in memory, or x2APIC registers as
//! MSRs.
#![expect(
    unsafe_code,
    reason = "reads and writes interrupt controller registers"
)]

use core::time::Duration;

use hv_core::platform::Mmio;
use hv_core::{PageCount, PhysAddr, PhysRange};
use hv_iommu::{InterruptMessage, MessageData};
use thiserror::Error;
use x86_64::registers::model_specific::{ApicBase, ApicBaseFlags, Msr};

use super::clock;
use super::traps::SPURIOUS;
use crate::acpi::LapicId;
use crate::mmio::MmioBlock;

/// Register offsets of xAPIC mode; the MSR of a register in x2APIC mode is 0x800 plus a sixteenth
/// of it.
const ID: u32 = 0x020;
const END_OF_INTERRUPT: u32 = 0x0b0;
const SPURIOUS_VECTOR: u32 = 0x0f0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const X2APIC_MSR_BASE: u32 = 0x800;

/// Spurious vector register bit 8: the APIC is on.
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Interrupt command bit 12: the last one is still on its way (xAPIC only).
const DELIVERY_PENDING: u32 = 1 << 12;
/// Interrupt command bit 14: assert.
const ASSERT: u32 = 1 << 14;
/// Interrupt command bits 10:8, delivery mode INIT.
const MODE_INIT: u32 = 0b101 << 8;
/// Interrupt command bits 10:8, delivery mode start-up.
const MODE_STARTUP: u32 = 0b110 << 8;
/// xAPIC ids and destinations sit in the top byte of their registers.
const XAPIC_ID_SHIFT: u32 = 24;

/// Where devices write interrupt messages, for the CPU with APIC id 0.
const MESSAGES: u64 = 0xfee0_0000;
/// The place of an APIC id in such an address.
const MESSAGE_ID_SHIFT: u32 = 12;

/// How long an interrupt may be on its way before the APIC is taken for broken.
const DELIVERY_LIMIT: Duration = Duration::from_millis(100);

/// An interrupt to another CPU was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The command register stayed busy.
    #[error("local APIC: interrupt to APIC id {} still pending after {:?}", .to.0, DELIVERY_LIMIT)]
    Stuck {
        /// Whom it was for.
        to: LapicId,
    },
    /// The id does not fit into an xAPIC destination.
    #[error("local APIC: APIC id {} needs x2APIC mode, which firmware left off", .to.0)]
    Unreachable {
        /// Whom it was for.
        to: LapicId,
    },
}

/// What to send to another CPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    /// Reset it and let it wait for a start-up message.
    Init,
    /// Start it in real mode at this 4 KiB page below 1 MiB.
    Startup(u8),
    /// Interrupt it with this vector.
    Interrupt(u8),
}

enum Registers {
    Memory(MmioBlock),
    Msr,
}

impl Registers {
    fn of_this_cpu() -> Self {
        let (frame, flags) = ApicBase::read();
        if flags.contains(ApicBaseFlags::X2APIC_ENABLE) {
            return Self::Msr;
        }
        let base = PhysAddr::new(frame.start_address().as_u64());
        match PhysRange::new(base, PageCount::ONE) {
            // SAFETY: the CPU says that its APIC's registers are there, below 512 GiB on every
            // known machine, so mapped; the APIC does no DMA.
            Ok(range) => Self::Memory(unsafe { MmioBlock::new(range) }),
            Err(_) => Self::Msr,
        }
    }

    fn msr(offset: u32) -> Msr {
        Msr::new(X2APIC_MSR_BASE + offset / 16)
    }

    fn read(&self, offset: u32) -> u32 {
        match self {
            Self::Memory(block) => block.read32(offset),
            // SAFETY: in x2APIC mode these MSRs exist; reading the ones named in this file changes
            // nothing.
            Self::Msr => unsafe { Self::msr(offset).read() as u32 },
        }
    }

    fn write(&self, offset: u32, value: u32) {
        match self {
            Self::Memory(block) => block.write32(offset, value),
            // SAFETY: in x2APIC mode these MSRs exist; this file writes only the spurious vector
            // and end of interrupt registers, which affect interrupt delivery alone.
            Self::Msr => unsafe { Self::msr(offset).write(value.into()) },
        }
    }
}

/// Switches the APIC of the CPU that calls on, so that it can be woken.
pub(super) fn enable() {
    Registers::of_this_cpu().write(SPURIOUS_VECTOR, SOFTWARE_ENABLE | u32::from(SPURIOUS));
}

/// The id of the CPU that calls.
pub(super) fn id() -> LapicId {
    let registers = Registers::of_this_cpu();
    let id = registers.read(ID);
    LapicId(match registers {
        Registers::Memory(_) => id >> XAPIC_ID_SHIFT,
        Registers::Msr => id,
    })
}

/// What a device writes, and where, to interrupt the CPU that calls with a vector: a message of fixed delivery, to the one
/// CPU of that id (Intel SDM volume 3, message signalled interrupts). An id of more than eight bits goes on in the upper half
/// of the address, for those who can say it.
pub(super) fn message(vector: u8) -> InterruptMessage {
    let LapicId(id) = id();
    let [low, rest @ ..] = id.to_le_bytes();
    let [second, third, fourth] = rest;
    let upper = u64::from(u32::from_le_bytes([0, second, third, fourth])) << u32::BITS;
    InterruptMessage {
        address: PhysAddr::new(upper | MESSAGES | u64::from(low) << MESSAGE_ID_SHIFT),
        data: MessageData(vector.into()),
    }
}

/// Tells the APIC that the handler of the present interrupt is done.
pub(super) fn end_of_interrupt() {
    Registers::of_this_cpu().write(END_OF_INTERRUPT, 0);
}

/// Sends a message to one CPU and waits until it is on its way.
///
/// # Errors
/// [`SendError`] when it cannot be addressed or the APIC stays busy.
pub(super) fn send(to: LapicId, message: Message) -> Result<(), SendError> {
    let command = match message {
        Message::Init => MODE_INIT | ASSERT,
        Message::Startup(page) => MODE_STARTUP | ASSERT | u32::from(page),
        Message::Interrupt(vector) => ASSERT | u32::from(vector),
    };
    let registers = Registers::of_this_cpu();
    match &registers {
        Registers::Memory(block) => {
            let destination = u8::try_from(to.0).map_err(|_| SendError::Unreachable { to })?;
            block.write32(COMMAND_HIGH, u32::from(destination) << XAPIC_ID_SHIFT);
            block.write32(COMMAND_LOW, command);
            let limit = clock::now().after(DELIVERY_LIMIT);
            while block.read32(COMMAND_LOW) & DELIVERY_PENDING != 0 {
                if clock::now() > limit {
                    return Err(SendError::Stuck { to });
                }
                core::hint::spin_loop();
            }
        }
        Registers::Msr => {
            let value = u64::from(to.0) << 32 | u64::from(command);
            // The MSR write is not serialising: stores that the receiver is to see go first.
            // ORDERING: SeqCst, publishes all earlier stores to the CPU that the interrupt wakes.
            hv_core::sync::fence(hv_core::sync::Ordering::SeqCst);
            // SAFETY: the interrupt command register exists in x2APIC mode. What it starts is
            // decided by this module's callers: CPUs that run the trampoline, or CPUs
            // of ours that handle the vector.
            unsafe { Registers::msr(COMMAND_LOW).write(value) };
        }
    }
    Ok(())
}
