//! Registers of a VT-d unit: offsets, widths, bits, and which values of RTADDR, IQA and IQT are valid.

use thiserror::Error;

use super::{above, bits, field};

// Offsets in bytes (VT-d manual, register descriptions).

/// Version Register: major in 7:4, minor in 3:0.
pub(crate) const VER: u32 = 0x00;
/// Capability Register.
pub(crate) const CAP: u32 = 0x08;
/// Extended Capability Register.
pub(crate) const ECAP: u32 = 0x10;
/// Global Command Register, for writes only.
pub(crate) const GCMD: u32 = 0x18;
/// Global Status Register, for reads only.
pub(crate) const GSTS: u32 = 0x1c;
/// Root Table Address Register.
pub(crate) const RTADDR: u32 = 0x20;
/// Context Command Register: invalidation without the queue.
pub(crate) const CCMD: u32 = 0x28;
/// Fault Status Register.
pub(crate) const FSTS: u32 = 0x34;
/// Fault Event Control Register.
pub(crate) const FECTL: u32 = 0x38;
/// Fault Event Data Register.
pub(crate) const FEDATA: u32 = 0x3c;
/// Fault Event Address Register.
pub(crate) const FEADDR: u32 = 0x40;
/// Fault Event Upper Address Register.
pub(crate) const FEUADDR: u32 = 0x44;
/// Protected Memory Enable Register.
pub(crate) const PMEN: u32 = 0x64;
/// Protected Low-Memory Base Register.
pub(crate) const PLMBASE: u32 = 0x68;
/// Protected Low-Memory Limit Register.
pub(crate) const PLMLIMIT: u32 = 0x6c;
/// Protected High-Memory Base Register.
pub(crate) const PHMBASE: u32 = 0x70;
/// Protected High-Memory Limit Register.
pub(crate) const PHMLIMIT: u32 = 0x78;
/// Invalidation Queue Head Register.
pub(crate) const IQH: u32 = 0x80;
/// Invalidation Queue Tail Register.
pub(crate) const IQT: u32 = 0x88;
/// Invalidation Queue Address Register.
pub(crate) const IQA: u32 = 0x90;
/// Invalidation Completion Status Register.
pub(crate) const ICS: u32 = 0x9c;
/// Invalidation Event Control Register.
pub(crate) const IECTL: u32 = 0xa0;
/// Invalidation Event Data Register.
pub(crate) const IEDATA: u32 = 0xa4;
/// Invalidation Event Address Register.
pub(crate) const IEADDR: u32 = 0xa8;
/// Invalidation Event Upper Address Register.
pub(crate) const IEUADDR: u32 = 0xac;
/// Invalidation Queue Error Record Register.
pub(crate) const IQERCD: u32 = 0xb0;
/// Interrupt Remapping Table Address Register.
pub(crate) const IRTA: u32 = 0xb8;

/// Where the registers at fixed places end: the last that every unit may have is PEUADDR at 0xec (VT-d
/// manual). The registers of extensions that come after it are none of a unit in legacy mode.
pub(crate) const FIXED_END: u32 = 0xf0;
/// Bytes of IVA and IOTLB together, which lie at ECAP.IRO (VT-d manual, IOTLB registers).
pub(crate) const IOTLB_BYTES: u32 = 16;

/// The width in bits of the register at a fixed offset, which accesses must have (VT-d manual, software
/// access to registers). `None` where no register begins that a driver in legacy mode has use for.
pub(crate) const fn width(offset: u32) -> Option<u32> {
    match offset {
        CAP | ECAP | RTADDR | CCMD | PHMBASE | PHMLIMIT | IQH | IQT | IQA | IQERCD | IRTA => {
            Some(64)
        }
        VER | GCMD | GSTS | FSTS | FECTL | FEDATA | FEADDR | FEUADDR | PMEN | PLMBASE
        | PLMLIMIT | ICS | IECTL | IEDATA | IEADDR | IEUADDR => Some(32),
        _ => None,
    }
}

// Bits of GCMD, and at the same places of GSTS (VT-d manual, Global Command and Global Status Register).

/// Translation is on.
pub(crate) const TE: u32 = 1 << 31;
/// Set the root table pointer; in GSTS: it is set.
pub(crate) const SRTP: u32 = 1 << 30;
/// Set the fault log pointer.
const SFL: u32 = 1 << 29;
/// The advanced fault log is on.
const EAFL: u32 = 1 << 28;
/// Flush the write buffer; in GSTS: that is under way.
pub(crate) const WBF: u32 = 1 << 27;
/// The invalidation queue is on.
pub(crate) const QIE: u32 = 1 << 26;
/// Interrupt remapping is on.
const IRE: u32 = 1 << 25;
/// Set the interrupt table pointer.
const SIRTP: u32 = 1 << 24;
/// Interrupts in compatibility format pass.
const CFI: u32 = 1 << 23;

/// The bits that say what is to be in force from now on: a write that leaves one out turns it off.
pub(crate) const LEVELS: u32 = TE | EAFL | QIE | IRE | CFI;
/// The bits that ask for something to be done once.
pub(crate) const ONE_SHOTS: u32 = SRTP | SFL | WBF | SIRTP;

// Bits of FSTS (VT-d manual, Fault Status Register).

/// A fault was lost because all records were full.
pub(crate) const FSTS_PFO: u32 = 1 << 0;
/// Some record is full: the records' F bits, or'ed.
pub(crate) const FSTS_PPF: u32 = 1 << 1;
/// The advanced fault log overflowed.
const FSTS_AFO: u32 = 1 << 2;
/// The advanced fault log has something.
const FSTS_APF: u32 = 1 << 3;
/// Invalidation queue error: the head is at a descriptor that was refused.
pub(crate) const FSTS_IQE: u32 = 1 << 4;
/// A device's invalidation completion was not understood.
const FSTS_ICE: u32 = 1 << 5;
/// A device did not complete an invalidation in time.
const FSTS_ITE: u32 = 1 << 6;
/// The bits that writing a one clears.
pub(crate) const FSTS_CLEARABLE: u32 =
    FSTS_PFO | FSTS_AFO | FSTS_APF | FSTS_IQE | FSTS_ICE | FSTS_ITE;
/// The conditions for which the fault event is sent, each only while none of the others is up (VT-d manual, Fault Event
/// Control Register, IP; PFO comes up where PPF is already).
pub(crate) const FSTS_CONDITIONS: u32 =
    FSTS_PFO | FSTS_PPF | FSTS_AFO | FSTS_APF | FSTS_IQE | FSTS_ICE | FSTS_ITE;
/// Where the index of the first full record begins, in 15:8.
pub(crate) const FSTS_FRI_SHIFT: u32 = 8;

// Bits of the fault event's registers (VT-d manual, Fault Event Control, Data, Address and Upper Address Register).

/// FECTL: the message is masked.
pub(crate) const FECTL_IM: u32 = 1 << 31;
/// FECTL, for reads only: a message is kept.
pub(crate) const FECTL_IP: u32 = 1 << 30;
/// FEDATA: 15:0. What is above is for units with data of 32 bits, and nothing of it means anything to a local APIC.
pub(crate) const FEDATA_KNOWN: u32 = 0xffff;
/// FEADDR: 31:2.
pub(crate) const FEADDR_KNOWN: u32 = !0b11;
/// FEADDR: the message is of the format that interrupt remapping translates. What units send of their own is not remapped
/// (VT-d manual, Interrupt Remapping; Linux `intel_irq_remapping.c`, address bit 4).
pub(crate) const FEADDR_REMAPPABLE: u32 = 1 << 4;
/// FEUADDR, on units with ECAP.EIM: 31:8, the APIC id from its bit 8 on.
pub(crate) const FEUADDR_KNOWN: u32 = !0xff;

/// PMEN: protected memory is asked for (VT-d manual, Protected Memory Enable Register).
pub(crate) const PMEN_EPM: u32 = 1 << 31;
/// PMEN: protected memory is in force.
pub(crate) const PMEN_PRS: u32 = 1 << 0;

// What IQERCD bits 3:0 say about a refused descriptor (VirtualBox, IQERCD fields).

/// The type is none, or none that this unit has.
pub(crate) const IQEI_TYPE: u8 = 3;
/// IQERCD error code: a descriptor could not be fetched (VirtualBox).
pub(crate) const IQEI_FETCH: u8 = 2;
/// A reserved field was not zero.
pub(crate) const IQEI_RESERVED: u8 = 4;

/// A register's value that hardware does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum BadRegister {
    /// Bits are set that must be zero.
    #[error("expected zero in reserved bits, found {found:#x} ({rule})")]
    Reserved {
        /// Those bits.
        found: u64,
        /// Which rule.
        rule: &'static str,
    },
    /// The tables are not legacy mode's.
    #[error(
        "expected translation table mode 0, found {found}: 1 needs ECAP.SMTS, 2 is reserved, 3 needs \
         ECAP.ADMS (VT-d manual, Root Table Address Register)"
    )]
    TableMode {
        /// Bits 11:10.
        found: u8,
    },
    /// The queue does not start at a multiple of its size.
    #[error(
        "expected a multiple of the queue's {bytes:#x} bytes, found {found:#x} (VT-d manual, Invalidation \
         Queue Address Register)"
    )]
    QueueAlignment {
        /// The queue's address.
        found: u64,
        /// The queue's size.
        bytes: u64,
    },
}

const fn zero(found: u64, rule: &'static str) -> Result<(), BadRegister> {
    match found {
        0 => Ok(()),
        _ => Err(BadRegister::Reserved { found, rule }),
    }
}

/// The root table that a value of RTADDR names: 63:12, with the mode in 11:10 and 9:0 reserved.
pub(crate) fn root_table(value: u64, host_address_bits: u8) -> Result<u64, BadRegister> {
    zero(value & bits(9, 0), "VT-d manual, RTADDR bits 9:0")?;
    match field(value, 11, 10) as u8 {
        0 => {}
        found => return Err(BadRegister::TableMode { found }),
    }
    zero(
        value & above(host_address_bits),
        "VT-d manual, RTADDR above the host address width",
    )?;
    Ok(value & bits(63, 12))
}

/// An invalidation queue as IQA describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// The first descriptor's address.
    pub(crate) base: u64,
    /// How many descriptors there are room for, one of which stays free.
    pub(crate) entries: u64,
    /// Whether descriptors have 256 bits rather than 128, which needs scalable mode.
    pub(crate) wide: bool,
}

/// The queue that a value of IQA names: base in 63:12, DW in 11, size in 2:0 as a power of two of pages;
/// 10:3 are reserved. How far the base must be aligned is read strictly: to the whole queue's size.
pub(crate) fn queue_address(value: u64, host_address_bits: u8) -> Result<Queue, BadRegister> {
    zero(value & bits(10, 3), "VT-d manual, IQA bits 10:3")?;
    zero(
        value & above(host_address_bits),
        "VT-d manual, IQA above the host address width",
    )?;
    let base = value & bits(63, 12);
    let bytes = 4096 << field(value, 2, 0);
    if !base.is_multiple_of(bytes) {
        return Err(BadRegister::QueueAlignment { found: base, bytes });
    }
    let wide = field(value, 11, 11) == 1;
    let entries = bytes / if wide { 32 } else { 16 };
    Ok(Queue {
        base,
        entries,
        wide,
    })
}

/// The byte offset that a value of IQT names: 18:4, all else reserved.
pub(crate) fn queue_tail(value: u64) -> Result<u64, BadRegister> {
    zero(value & !bits(18, 4), "VT-d manual, IQT bits outside 18:4")?;
    Ok(value)
}

#[cfg(test)]
mod tests;
