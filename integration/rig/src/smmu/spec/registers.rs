//! Registers of an SMMUv3: offsets, widths, and the fields that decide something.

use crate::bits::{bits, field};

// Offsets in bytes (Linux `ARM_SMMU_*`, QEMU `A_*`). Page 0.

/// Identification registers, six in a row.
pub(crate) const IDR0: u32 = 0x00;
pub(crate) const IDR1: u32 = 0x04;
pub(crate) const IDR2: u32 = 0x08;
pub(crate) const IDR3: u32 = 0x0c;
pub(crate) const IDR4: u32 = 0x10;
pub(crate) const IDR5: u32 = 0x14;
/// Who made it.
pub(crate) const IIDR: u32 = 0x18;
/// Version of the architecture.
pub(crate) const AIDR: u32 = 0x1c;
/// What is on, and what the unit has taken of that.
pub(crate) const CR0: u32 = 0x20;
pub(crate) const CR0ACK: u32 = 0x24;
/// Attributes of tables and queues.
pub(crate) const CR1: u32 = 0x28;
pub(crate) const CR2: u32 = 0x2c;
pub(crate) const STATUSR: u32 = 0x40;
/// What becomes of requests while the unit is off.
pub(crate) const GBPA: u32 = 0x44;
pub(crate) const AGBPA: u32 = 0x48;
pub(crate) const IRQ_CTRL: u32 = 0x50;
pub(crate) const IRQ_CTRL_ACK: u32 = 0x54;
/// Errors of the unit itself, and those that software has seen: active where they differ.
pub(crate) const GERROR: u32 = 0x60;
pub(crate) const GERRORN: u32 = 0x64;
pub(crate) const GERROR_IRQ_CFG0: u32 = 0x68;
pub(crate) const GERROR_IRQ_CFG1: u32 = 0x70;
pub(crate) const GERROR_IRQ_CFG2: u32 = 0x74;
pub(crate) const STRTAB_BASE: u32 = 0x80;
pub(crate) const STRTAB_BASE_CFG: u32 = 0x88;
pub(crate) const CMDQ_BASE: u32 = 0x90;
pub(crate) const CMDQ_PROD: u32 = 0x98;
pub(crate) const CMDQ_CONS: u32 = 0x9c;
pub(crate) const EVENTQ_BASE: u32 = 0xa0;
pub(crate) const EVENTQ_IRQ_CFG0: u32 = 0xb0;
pub(crate) const EVENTQ_IRQ_CFG1: u32 = 0xb8;
pub(crate) const EVENTQ_IRQ_CFG2: u32 = 0xbc;
pub(crate) const PRIQ_BASE: u32 = 0xc0;
pub(crate) const PRIQ_IRQ_CFG0: u32 = 0xd0;
pub(crate) const PRIQ_IRQ_CFG1: u32 = 0xd8;
pub(crate) const PRIQ_IRQ_CFG2: u32 = 0xdc;

// Page 1.

pub(crate) const EVENTQ_PROD: u32 = 0x1_00a8;
pub(crate) const EVENTQ_CONS: u32 = 0x1_00ac;
pub(crate) const PRIQ_PROD: u32 = 0x1_00c8;
pub(crate) const PRIQ_CONS: u32 = 0x1_00cc;

/// Bytes of the register frame: two pages of 64 KiB (Linux, device-tree binding).
pub(crate) const FRAME_BYTES: u64 = 0x2_0000;
/// Bytes of one of them.
pub(crate) const PAGE_BYTES: u64 = 0x1_0000;

/// The register that is at an offset of units which have those of page 1 in page 0 (Linux `ARM_SMMU_OPT_PAGE0_REGS_ONLY`).
pub(crate) const fn in_one_page(offset: u32) -> u32 {
    match offset {
        0xa8 => EVENTQ_PROD,
        0xac => EVENTQ_CONS,
        0xc8 => PRIQ_PROD,
        0xcc => PRIQ_CONS,
        other => other,
    }
}

/// The width in bits of the register at an offset. `None` where none begins.
pub(crate) const fn width(offset: u32) -> Option<u32> {
    match offset {
        GERROR_IRQ_CFG0 | STRTAB_BASE | CMDQ_BASE | EVENTQ_BASE | EVENTQ_IRQ_CFG0 | PRIQ_BASE
        | PRIQ_IRQ_CFG0 => Some(64),
        IDR0 | IDR1 | IDR2 | IDR3 | IDR4 | IDR5 | IIDR | AIDR | CR0 | CR0ACK | CR1 | CR2
        | STATUSR | GBPA | AGBPA | IRQ_CTRL | IRQ_CTRL_ACK | GERROR | GERRORN | GERROR_IRQ_CFG1
        | GERROR_IRQ_CFG2 | STRTAB_BASE_CFG | CMDQ_PROD | CMDQ_CONS | EVENTQ_IRQ_CFG1
        | EVENTQ_IRQ_CFG2 | PRIQ_IRQ_CFG1 | PRIQ_IRQ_CFG2 | EVENTQ_PROD | EVENTQ_CONS
        | PRIQ_PROD | PRIQ_CONS => Some(32),
        _ => None,
    }
}

// CR0 and CR0ACK.

/// The unit translates.
pub(crate) const SMMUEN: u32 = 1 << 0;
pub(crate) const PRIQEN: u32 = 1 << 1;
pub(crate) const EVENTQEN: u32 = 1 << 2;
pub(crate) const CMDQEN: u32 = 1 << 3;
pub(crate) const ATSCHK: u32 = 1 << 4;
/// VMW, [8:6]: groups of VMIDs.
const VMW: u32 = 0b111 << 6;
/// All bits of CR0 that are any (Linux `CR0_*`).
pub(crate) const CR0_KNOWN: u32 = SMMUEN | PRIQEN | EVENTQEN | CMDQEN | ATSCHK | VMW;

// GBPA.

pub(crate) const GBPA_UPDATE: u32 = 1 << 31;
pub(crate) const GBPA_ABORT: u32 = 1 << 20;
/// After reset requests pass with the attributes that they come with (QEMU `SMMU_GBPA_RESET_VAL`).
pub(crate) const GBPA_RESET: u32 = 0x1000;

/// IRQ_CTRL: global errors.
pub(crate) const IRQ_GERROR: u32 = 1 << 0;
/// IRQ_CTRL: page requests.
pub(crate) const IRQ_PRIQ: u32 = 1 << 1;
/// IRQ_CTRL: events.
pub(crate) const IRQ_EVENTQ: u32 = 1 << 2;
/// IRQ_CTRL: GERROR, PRIQ and EVENTQ.
pub(crate) const IRQ_KNOWN: u32 = 0b111;

// GERROR.

pub(crate) const GERROR_CMDQ: u32 = 1 << 0;
pub(crate) const GERROR_EVENTQ_ABT: u32 = 1 << 2;
/// GERROR: a message of the event queue was not taken.
pub(crate) const GERROR_MSI_EVENTQ: u32 = 1 << 5;
/// GERROR: a message of global errors was not taken.
pub(crate) const GERROR_MSI_GERROR: u32 = 1 << 7;
/// GERROR: the unit is in service failure mode.
pub(crate) const GERROR_SFM: u32 = 1 << 8;
/// All bits of GERROR that are any.
pub(crate) const GERROR_KNOWN: u32 = 0b1_1111_1101;

/// CR2: a stream outside the table is recorded as an event.
pub(crate) const CR2_RECINVSID: u32 = 1 << 1;
/// CR2: what CPUs broadcast is not listened to.
pub(crate) const CR2_PTM: u32 = 1 << 2;

// Reasons of a stop of the command queue, CMDQ_CONS [30:24].

pub(crate) const ERROR_ILLEGAL: u32 = 1;
pub(crate) const ERROR_ABORT: u32 = 2;
/// A device did not answer an invalidation before the sync that is next.
pub(crate) const ERROR_DEVICE: u32 = 3;
/// Where they stand.
pub(crate) const ERROR_SHIFT: u32 = 24;

/// Bit 31 of the index registers of the event queue: an overflow, and that it was seen.
pub(crate) const OVERFLOW: u32 = 1 << 31;

/// Whether accesses with the attributes of CR1 in bits `low + 5` to `low` snoop the CPU's caches: cacheable in
/// both halves (1 write-back, 2 write-through) and shareable (2 outer, 3 inner).
pub(crate) const fn snoops(cr1: u32, low: u32) -> bool {
    let inner = cr1 >> low & 0b11;
    let outer = cr1 >> (low + 2) & 0b11;
    let shareable = cr1 >> (low + 4) & 0b11;
    is_cached(inner) && is_cached(outer) && shareable >= 2
}

const fn is_cached(code: u32) -> bool {
    code == 1 || code == 2
}

/// Where CR1 has the attributes of queues, and of tables.
pub(crate) const CR1_QUEUES: u32 = 0;
pub(crate) const CR1_TABLES: u32 = 6;

/// A queue's base register: address and log2 of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueBase {
    pub(crate) base: u64,
    pub(crate) log2: u8,
}

/// Reads a queue's base register: entries of `entry` bytes, at most 2^`most`, addresses of `address_bits` bits.
pub(crate) fn queue_base(
    word: u64,
    entry: u64,
    most: u8,
    address_bits: u8,
) -> Result<QueueBase, String> {
    let log2 = field(word, 4, 0) as u8;
    let base = word & bits(51, 5);
    if word & (bits(61, 52) | bits(63, 63)) != 0 {
        return Err("reserved bits are set".to_owned());
    }
    if log2 > most {
        return Err(format!("expected at most 2^{most} entries, found 2^{log2}"));
    }
    let bytes = (entry << log2).max(32);
    if !base.is_multiple_of(bytes) {
        return Err(format!("{base:#x} is not a multiple of its {bytes} bytes"));
    }
    if base >> address_bits != 0 {
        return Err(format!("{base:#x} has more than {address_bits} bits"));
    }
    Ok(QueueBase { base, log2 })
}

/// An index of a queue: place and wrap bit, counted together.
pub(crate) const fn position(register: u32, log2: u8) -> u64 {
    (register as u64) & ((2 << log2) - 1)
}

/// How far it is from one position to another, around the ring.
pub(crate) const fn distance(from: u64, to: u64, log2: u8) -> u64 {
    to.wrapping_sub(from) & ((2 << log2) - 1)
}

/// The stream table that the two registers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamTable {
    pub(crate) base: u64,
    /// Log2 of the streams.
    pub(crate) log2: u8,
    /// Bits of a stream number that the second level resolves; zero for a linear table.
    pub(crate) split: u8,
}

/// Reads STRTAB_BASE and STRTAB_BASE_CFG.
pub(crate) fn stream_table(
    base: u64,
    config: u32,
    two_level: bool,
    stream_bits: u8,
    address_bits: u8,
) -> Result<StreamTable, String> {
    let config = u64::from(config);
    let (log2, split) = (field(config, 5, 0) as u8, field(config, 10, 6) as u8);
    if log2 > stream_bits {
        return Err(format!(
            "expected at most 2^{stream_bits} streams, found 2^{log2}"
        ));
    }
    let (split, bytes) = match field(config, 17, 16) {
        0 => (0, 64 << log2),
        1 if !two_level => return Err("the unit has linear tables only".to_owned()),
        1 if !matches!(split, 6 | 8 | 10) => {
            return Err(format!("expected a split of 6, 8 or 10, found {split}"));
        }
        1 if split > log2 => return Err(format!("a split of {split} of {log2} bits")),
        1 => (split, 8 << (log2 - split)),
        format => {
            return Err(format!(
                "expected a linear or two-level table, found {format}"
            ));
        }
    };
    let address = base & bits(51, 6);
    if base & !(bits(51, 6) | bits(62, 62)) != 0 {
        return Err("reserved bits are set".to_owned());
    }
    if !address.is_multiple_of(bytes) {
        return Err(format!(
            "{address:#x} is not a multiple of its {bytes} bytes"
        ));
    }
    if address >> address_bits != 0 {
        return Err(format!("{address:#x} has more than {address_bits} bits"));
    }
    Ok(StreamTable {
        base: address,
        log2,
        split,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_bases_and_tables_are_checked() {
        let found = queue_base(1 << 62 | 0x1_0000_1000 | 8, 16, 10, 40).unwrap();
        assert_eq!((found.base, found.log2), (0x1_0000_1000, 8));
        assert!(
            queue_base(0x1_0000_0800 | 8, 16, 10, 40).is_err(),
            "alignment"
        );
        assert!(
            queue_base(0x1_0000_1000 | 11, 16, 10, 40).is_err(),
            "too many"
        );
        let linear = stream_table(0x1_0000_0000, 10, false, 16, 40).unwrap();
        assert_eq!((linear.log2, linear.split), (10, 0));
        let two = stream_table(0x1_0000_0000, 1 << 16 | 8 << 6 | 16, true, 16, 40).unwrap();
        assert_eq!((two.log2, two.split), (16, 8));
        assert!(stream_table(0, 1 << 16 | 7 << 6 | 16, true, 16, 40).is_err());
        assert!(stream_table(0x1_0000_0000, 17, true, 16, 40).is_err());
    }

    #[test]
    fn positions_count_around_with_their_wrap_bit() {
        assert_eq!(distance(position(0x1f, 4), position(0x01, 4), 4), 2);
        assert_eq!(distance(position(0x03, 4), position(0x13, 4), 4), 16);
        assert!(snoops(0b11_01_01, CR1_QUEUES) && !snoops(0b10_01_00, CR1_QUEUES));
        assert!(snoops(0b11_01_01 << 6, CR1_TABLES));
    }
}
