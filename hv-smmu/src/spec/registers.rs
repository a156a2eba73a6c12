//! Register offsets, and the bits of the registers that software writes.
//!
//! Offsets are from the base of page 0. Source of offsets and bits: Linux `arm-smmu-v3.h`, in agreement with QEMU
//! `smmuv3-internal.h` and, where it has them, TF-A `smmu_v3.h`. What only one of them has says so.

use bitfield_struct::bitfield;

/// [`Idr0`](super::id_registers::Idr0), 32 bits, read only.
pub const IDR0: u32 = 0x00;
/// [`Idr1`](super::id_registers::Idr1), 32 bits, read only.
pub const IDR1: u32 = 0x04;
/// [`Idr2`](super::id_registers::Idr2), 32 bits, read only.
pub const IDR2: u32 = 0x08;
/// [`Idr3`](super::id_registers::Idr3), 32 bits, read only.
pub const IDR3: u32 = 0x0c;
/// Implementation defined, 32 bits, read only.
pub const IDR4: u32 = 0x10;
/// [`Idr5`](super::id_registers::Idr5), 32 bits, read only.
pub const IDR5: u32 = 0x14;
/// [`Iidr`](super::id_registers::Iidr), 32 bits, read only. QEMU before 8.1 had it at 0x1c.
pub const IIDR: u32 = 0x18;
/// [`Aidr`](super::id_registers::Aidr), 32 bits, read only.
pub const AIDR: u32 = 0x1c;
/// [`Cr0`], 32 bits.
pub const CR0: u32 = 0x20;
/// [`Cr0`] as far as the unit has taken it, 32 bits, read only.
pub const CR0ACK: u32 = 0x24;
/// [`Cr1`], 32 bits. Changes only while the unit and its queues are off.
pub const CR1: u32 = 0x28;
/// [`Cr2`], 32 bits. Changes only while the unit is off.
pub const CR2: u32 = 0x2c;
/// Status, 32 bits, read only.
pub const STATUSR: u32 = 0x40;
/// [`Gbpa`], 32 bits: what happens to transactions while the unit is off.
pub const GBPA: u32 = 0x44;
/// [`IrqCtrl`], 32 bits.
pub const IRQ_CTRL: u32 = 0x50;
/// [`IrqCtrl`] as far as the unit has taken it, 32 bits, read only.
pub const IRQ_CTRL_ACK: u32 = 0x54;
/// [`Gerror`], 32 bits, read only: a bit that differs from GERRORN's is an error.
pub const GERROR: u32 = 0x60;
/// [`Gerror`], 32 bits: software makes it equal to what it read from GERROR, and writes it at no other time.
pub const GERRORN: u32 = 0x64;
/// Global errors: [`MSI_ADDRESS`], 64 bits.
pub const GERROR_IRQ_CFG0: u32 = 0x68;
/// Global errors: the message, 32 bits.
pub const GERROR_IRQ_CFG1: u32 = 0x70;
/// Global errors: [`MsiAttributes`], 32 bits.
pub const GERROR_IRQ_CFG2: u32 = 0x74;
/// [`StreamTableBase`](super::stream_table::StreamTableBase), 64 bits. Changes only while the unit is off.
pub const STRTAB_BASE: u32 = 0x80;
/// [`StreamTableConfig`](super::stream_table::StreamTableConfig), 32 bits. Changes only while the unit is off.
pub const STRTAB_BASE_CFG: u32 = 0x88;
/// Commands: [`QueueBase`](super::queue::QueueBase), 64 bits. Changes only while the queue is off, as for all queues.
pub const CMDQ_BASE: u32 = 0x90;
/// Commands: where software writes next, 32 bits.
pub const CMDQ_PROD: u32 = 0x98;
/// Commands: what the unit reads next, and [why it stopped](super::queue::CommandError), 32 bits.
pub const CMDQ_CONS: u32 = 0x9c;
/// Events: [`QueueBase`](super::queue::QueueBase), 64 bits.
pub const EVENTQ_BASE: u32 = 0xa0;
/// Events: where the unit writes next, 32 bits, in page 1.
pub const EVENTQ_PROD: u32 = PAGE_1 + 0xa8;
/// Events: what software reads next, 32 bits, in page 1.
pub const EVENTQ_CONS: u32 = PAGE_1 + 0xac;
/// Events: [`MSI_ADDRESS`], 64 bits.
pub const EVENTQ_IRQ_CFG0: u32 = 0xb0;
/// Events: the message, 32 bits.
pub const EVENTQ_IRQ_CFG1: u32 = 0xb8;
/// Events: [`MsiAttributes`], 32 bits.
pub const EVENTQ_IRQ_CFG2: u32 = 0xbc;
/// Page requests: [`QueueBase`](super::queue::QueueBase), 64 bits.
pub const PRIQ_BASE: u32 = 0xc0;
/// Page requests: where the unit writes next, 32 bits, in page 1.
pub const PRIQ_PROD: u32 = PAGE_1 + 0xc8;
/// Page requests: what software reads next, 32 bits, in page 1.
pub const PRIQ_CONS: u32 = PAGE_1 + 0xcc;
/// Page requests: [`MSI_ADDRESS`], 64 bits.
pub const PRIQ_IRQ_CFG0: u32 = 0xd0;
/// Page requests: the message, 32 bits.
pub const PRIQ_IRQ_CFG1: u32 = 0xd8;
/// Page requests: [`MsiAttributes`], 32 bits.
pub const PRIQ_IRQ_CFG2: u32 = 0xdc;

/// Where page 1 starts.
pub const PAGE_1: u32 = 0x1_0000;
/// Bytes of both pages. Source: the device-tree binding.
pub const FRAME_BYTES: u64 = 0x2_0000;
/// Bytes of the one page of units that have page 1's registers in page 0 (see [`super::quirks`]).
pub const FRAME_BYTES_ONE_PAGE: u64 = 0x1_0000;

/// The offset of a register of page 1 on units that have it in page 0.
pub const fn in_page_0(register: u32) -> u32 {
    register % PAGE_1
}

/// Address bits of a message (51:2). All zero: the interrupt is a wire.
pub const MSI_ADDRESS: u64 = 0x000f_ffff_ffff_fffc;

/// Control 0. One bit changes per write, and CR0ACK follows before the next (Linux, TF-A).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr0 {
    /// Transactions are translated (bit 0).
    pub smmuen: bool,
    /// The page request queue is on (bit 1).
    pub priqen: bool,
    /// The event queue is on (bit 2).
    pub eventqen: bool,
    /// The command queue is on (bit 3).
    pub cmdqen: bool,
    /// Translated requests of devices are looked at (bit 4).
    pub atschk: bool,
    __: bool,
    /// How many low bits of a VMID are ignored by some invalidations (bits 8:6).
    #[bits(3)]
    pub vmw: u8,
    #[bits(23)]
    __: u32,
}

/// Cacheability of what the unit itself reads and writes: CR1 only, entries of tables have another code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cacheability {
    /// Not cached.
    NonCacheable = 0,
    /// Write back.
    WriteBack = 1,
    /// Write through.
    WriteThrough = 2,
}

impl Cacheability {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::WriteBack,
            2 => Self::WriteThrough,
            _ => Self::NonCacheable,
        }
    }
}

/// Who shares what is cached. The same code in registers, entries and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shareability {
    /// Nobody.
    None = 0,
    /// The outer domain.
    Outer = 2,
    /// The inner domain.
    Inner = 3,
}

impl Shareability {
    pub(crate) const fn into_bits(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_bits(bits: u8) -> Self {
        match bits {
            2 => Self::Outer,
            3 => Self::Inner,
            _ => Self::None,
        }
    }
}

/// Control 1: how the unit reads tables and queues.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr1 {
    /// Queues, inner (bits 1:0).
    #[bits(2)]
    pub queue_ic: Cacheability,
    /// Queues, outer (bits 3:2).
    #[bits(2)]
    pub queue_oc: Cacheability,
    /// Queues (bits 5:4).
    #[bits(2)]
    pub queue_sh: Shareability,
    /// Stream table, inner (bits 7:6).
    #[bits(2)]
    pub table_ic: Cacheability,
    /// Stream table, outer (bits 9:8).
    #[bits(2)]
    pub table_oc: Cacheability,
    /// Stream table (bits 11:10).
    #[bits(2)]
    pub table_sh: Shareability,
    #[bits(20)]
    __: u32,
}

impl Cr1 {
    /// For a unit that snoops the CPU's caches.
    pub const COHERENT: Self = Self::with_all(Cacheability::WriteBack, Shareability::Inner);
    /// For a unit that does not: what it reads has to be written back by software.
    pub const NON_COHERENT: Self = Self::with_all(Cacheability::NonCacheable, Shareability::Outer);

    /// The same for queues, and for tables as `other` has it.
    pub const fn with_tables_of(self, other: Self) -> Self {
        self.with_table_ic(other.table_ic())
            .with_table_oc(other.table_oc())
            .with_table_sh(other.table_sh())
    }

    const fn with_all(cacheability: Cacheability, shareability: Shareability) -> Self {
        Self::new()
            .with_queue_ic(cacheability)
            .with_queue_oc(cacheability)
            .with_queue_sh(shareability)
            .with_table_ic(cacheability)
            .with_table_oc(cacheability)
            .with_table_sh(shareability)
    }
}

/// Control 2.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cr2 {
    /// The EL2 regime has ASIDs (bit 0).
    pub e2h: bool,
    /// StreamIDs out of range are recorded (bit 1).
    pub recinvsid: bool,
    /// Invalidations that CPUs broadcast are ignored (bit 2).
    pub ptm: bool,
    #[bits(29)]
    __: u32,
}

/// What happens to transactions while the unit is off. Written only while UPDATE is 0, with UPDATE as 1, which the
/// unit clears once the rest holds (Linux, TF-A). Fields other than ABORT and UPDATE: QEMU has SHCFG, the others are
/// recalled and only ever kept as read.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gbpa {
    /// Memory type, if MTCFG (bits 3:0).
    #[bits(4)]
    pub mem_attr: u8,
    /// The memory type is overridden (bit 4).
    pub mtcfg: bool,
    #[bits(3)]
    __: u8,
    /// Allocation hints (bits 11:8).
    #[bits(4)]
    pub alloc_cfg: u8,
    /// Shareability (bits 13:12); 1: as it comes.
    #[bits(2)]
    pub sh_cfg: u8,
    #[bits(2)]
    __: u8,
    /// Privilege (bits 17:16).
    #[bits(2)]
    pub priv_cfg: u8,
    /// Instruction or data (bits 19:18).
    #[bits(2)]
    pub inst_cfg: u8,
    /// Transactions end with an abort (bit 20); otherwise they go through as they are.
    pub abort: bool,
    #[bits(10)]
    __: u16,
    /// The register is being taken (bit 31).
    pub update: bool,
}

/// Which interrupts the unit raises. IRQ_CTRL_ACK follows, as with CR0.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IrqCtrl {
    /// Global errors (bit 0).
    pub gerror: bool,
    /// The page request queue (bit 1).
    pub priq: bool,
    /// The event queue (bit 2).
    pub eventq: bool,
    #[bits(29)]
    __: u32,
}

/// Global errors: GERROR and GERRORN.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Gerror {
    /// A command was refused and the queue stands (bit 0).
    pub cmdq_err: bool,
    __: bool,
    /// An event could not be written (bit 2). QEMU says so too when its queue is full.
    pub eventq_abt_err: bool,
    /// A page request could not be written (bit 3).
    pub priq_abt_err: bool,
    /// The message of a CMD_SYNC could not be written (bit 4).
    pub msi_cmdq_abt_err: bool,
    /// The message of the event queue could not be written (bit 5).
    pub msi_eventq_abt_err: bool,
    /// The message of the page request queue could not be written (bit 6).
    pub msi_priq_abt_err: bool,
    /// The message of global errors could not be written (bit 7).
    pub msi_gerror_abt_err: bool,
    /// The unit has failed and serves nobody (bit 8).
    pub sfm_err: bool,
    #[bits(23)]
    __: u32,
}

impl Gerror {
    /// The errors that are not acknowledged: where GERROR, this, differs from GERRORN.
    #[must_use]
    pub const fn active(self, gerrorn: Self) -> Self {
        Self::from_bits((self.into_bits() ^ gerrorn.into_bits()) & Self::KNOWN)
    }

    /// The bits that have a meaning.
    const KNOWN: u32 = 0x1fd;
}

/// The registers that say where the messages of one source go. Written only while the source is off in IRQ_CTRL and
/// IRQ_CTRL_ACK: before SMMUv3.2 the unit may do anything otherwise (IHI 0070, 6.3.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRegisters {
    /// [`MSI_ADDRESS`], 64 bits.
    pub address: u32,
    /// The message, 32 bits.
    pub data: u32,
    /// [`MsiAttributes`], 32 bits.
    pub attributes: u32,
}

/// Those of the event queue.
pub const EVENTQ_MESSAGES: MessageRegisters = MessageRegisters {
    address: EVENTQ_IRQ_CFG0,
    data: EVENTQ_IRQ_CFG1,
    attributes: EVENTQ_IRQ_CFG2,
};
/// Those of global errors.
pub const GERROR_MESSAGES: MessageRegisters = MessageRegisters {
    address: GERROR_IRQ_CFG0,
    data: GERROR_IRQ_CFG1,
    attributes: GERROR_IRQ_CFG2,
};
/// Those of the page request queue.
pub const PRIQ_MESSAGES: MessageRegisters = MessageRegisters {
    address: PRIQ_IRQ_CFG0,
    data: PRIQ_IRQ_CFG1,
    attributes: PRIQ_IRQ_CFG2,
};

/// How a message is written.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiAttributes {
    /// Memory type (bits 3:0), [`MSI_DEVICE_NGNRE`].
    #[bits(4)]
    pub mem_attr: u8,
    /// Shareability (bits 5:4).
    #[bits(2)]
    pub sh: Shareability,
    #[bits(26)]
    __: u32,
}

/// Memory type of messages: device memory, early acknowledgement allowed. What is the target's own is then outer
/// shareable whatever SH says (IHI 0070, 6.3.23).
pub const MSI_DEVICE_NGNRE: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_read_otherwise_while_tables_are_read_as_before() {
        let (ours, theirs) = (Cr1::COHERENT, Cr1::NON_COHERENT);
        let mixed = ours.with_tables_of(theirs).into_bits();
        assert_eq!(mixed & 0x3f, ours.into_bits() & 0x3f);
        assert_eq!(mixed & 0xfc0, theirs.into_bits() & 0xfc0);
        assert_ne!(ours.into_bits() & 0xfc0, theirs.into_bits() & 0xfc0);
    }

    #[test]
    fn offsets_match_an_independent_table() {
        let table = [
            (IDR0, 0x0),
            (IDR1, 0x4),
            (IDR2, 0x8),
            (IDR3, 0xc),
            (IDR4, 0x10),
            (IDR5, 0x14),
            (IIDR, 0x18),
            (AIDR, 0x1c),
            (CR0, 0x20),
            (CR0ACK, 0x24),
            (CR1, 0x28),
            (CR2, 0x2c),
            (STATUSR, 0x40),
            (GBPA, 0x44),
            (IRQ_CTRL, 0x50),
            (IRQ_CTRL_ACK, 0x54),
            (GERROR, 0x60),
            (GERRORN, 0x64),
            (GERROR_IRQ_CFG0, 0x68),
            (GERROR_IRQ_CFG1, 0x70),
            (GERROR_IRQ_CFG2, 0x74),
            (STRTAB_BASE, 0x80),
            (STRTAB_BASE_CFG, 0x88),
            (CMDQ_BASE, 0x90),
            (CMDQ_PROD, 0x98),
            (CMDQ_CONS, 0x9c),
            (EVENTQ_BASE, 0xa0),
            (EVENTQ_PROD, 0x1_00a8),
            (EVENTQ_CONS, 0x1_00ac),
            (EVENTQ_IRQ_CFG0, 0xb0),
            (EVENTQ_IRQ_CFG1, 0xb8),
            (EVENTQ_IRQ_CFG2, 0xbc),
            (PRIQ_BASE, 0xc0),
            (PRIQ_PROD, 0x1_00c8),
            (PRIQ_CONS, 0x1_00cc),
            (PRIQ_IRQ_CFG0, 0xd0),
            (PRIQ_IRQ_CFG1, 0xd8),
            (PRIQ_IRQ_CFG2, 0xdc),
        ];
        for (ours, literal) in table {
            assert_eq!(ours, literal);
        }
        let one_page = [EVENTQ_PROD, EVENTQ_CONS, PRIQ_PROD, PRIQ_CONS].map(in_page_0);
        assert_eq!(one_page, [0xa8, 0xac, 0xc8, 0xcc]);
        assert_eq!(in_page_0(CMDQ_CONS), 0x9c);
    }

    #[test]
    fn control_bits_match_an_independent_table() {
        let table = [
            (Cr0::new().with_smmuen(true), 0x1),
            (Cr0::new().with_priqen(true), 0x2),
            (Cr0::new().with_eventqen(true), 0x4),
            (Cr0::new().with_cmdqen(true), 0x8),
            (Cr0::new().with_atschk(true), 0x10),
            (Cr0::new().with_vmw(7), 0x1c0),
        ];
        for (ours, literal) in table {
            assert_eq!(ours.into_bits(), literal);
        }
        assert_eq!(Cr2::new().with_e2h(true).into_bits(), 1);
        assert_eq!(Cr2::new().with_recinvsid(true).into_bits(), 2);
        assert_eq!(Cr2::new().with_ptm(true).into_bits(), 4);
        assert_eq!(IrqCtrl::new().with_gerror(true).into_bits(), 1);
        assert_eq!(IrqCtrl::new().with_priq(true).into_bits(), 2);
        assert_eq!(IrqCtrl::new().with_eventq(true).into_bits(), 4);
        let gbpa = Gbpa::new().with_abort(true).with_update(true);
        assert_eq!(gbpa.into_bits(), 1 << 31 | 1 << 20);
    }

    #[test]
    fn values_seen_in_an_emulator_decode() {
        // QEMU 10: what a coherent bring-up wrote to CR1, and GBPA after reset: bypass, as it comes.
        assert_eq!(Cr1::COHERENT.into_bits(), 0xd75);
        assert_eq!(Cr1::NON_COHERENT.into_bits(), 0x820);
        let gbpa = Gbpa::from_bits(0x1000);
        assert!(!gbpa.abort() && !gbpa.update());
        assert_eq!(gbpa.sh_cfg(), 1);
    }

    #[test]
    fn errors_are_where_the_two_registers_differ() {
        let table = [
            (Gerror::new().with_cmdq_err(true), 0x1),
            (Gerror::new().with_eventq_abt_err(true), 0x4),
            (Gerror::new().with_priq_abt_err(true), 0x8),
            (Gerror::new().with_msi_cmdq_abt_err(true), 0x10),
            (Gerror::new().with_msi_eventq_abt_err(true), 0x20),
            (Gerror::new().with_msi_priq_abt_err(true), 0x40),
            (Gerror::new().with_msi_gerror_abt_err(true), 0x80),
            (Gerror::new().with_sfm_err(true), 0x100),
        ];
        let mut all = 0;
        for (ours, literal) in table {
            assert_eq!(ours.into_bits(), literal);
            assert_eq!(ours.active(Gerror::new()), ours);
            assert_eq!(ours.active(ours), Gerror::new());
            assert_eq!(Gerror::new().active(ours), ours);
            all |= literal;
        }
        assert_eq!(Gerror::KNOWN, all);
        let reserved = Gerror::from_bits(!Gerror::KNOWN);
        assert_eq!(reserved.active(Gerror::new()), Gerror::new());
    }

    #[test]
    fn message_bits_match_an_independent_table() {
        assert_eq!(MSI_ADDRESS, (1 << 52) - 4);
        let attributes = MsiAttributes::new().with_mem_attr(MSI_DEVICE_NGNRE);
        assert_eq!(attributes.into_bits(), 1);
        assert_eq!(attributes.with_sh(Shareability::Outer).into_bits(), 0x21);
    }
}
