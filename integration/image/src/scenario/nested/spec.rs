//! What a guest writes for a first stage of its own: stream table entry, context descriptor, tables, commands.
//!
//! Sources: Arm IHI 0070, 5.2 (stream table entry), 5.4 (context descriptor), 4.3 and 4.4 (commands); Arm ARM, D8.3
//! (descriptors of stage 1, 4 KiB granule).

/// Words of a stream table entry, and of a context descriptor.
pub(super) const ENTRY_WORDS: usize = 8;
/// Words of a command.
pub(super) const COMMAND_WORDS: usize = 2;
/// Entries of a table.
pub(super) const TABLE_ENTRIES: u64 = 512;
/// The level whose entries are pages; the tables begin at level 1.
pub(super) const LAST_LEVEL: u64 = 3;

/// STE word 0: V, and Config 0b101, a first stage and no second one: that of the hypervisor is not the guest's to name.
const STREAM_FIRST_STAGE: u64 = 1 | 0b101 << 1;
/// STE word 1: S1CIR and S1COR, context descriptors are read as write-back memory; S1CSH, inner shareable.
const STREAM_READS: u64 = 1 << 2 | 1 << 4 | 3 << 6;

/// CD word 0: T0SZ, addresses of 39 bits.
const ADDRESSES: u64 = 64 - 39;
/// CD word 0: IR0, OR0 and SH0, tables are read as write-back memory, inner shareable; EPD1, no upper half.
const WALKS: u64 = 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30;
/// CD word 0: V.
const CONTEXT_VALID: u64 = 1 << 31;
/// CD word 0: IPS, 36 bits of output; AA64.
const TABLES: u64 = 1 << 32 | 1 << 41;
/// CD word 0: R and A, faults are recorded and abort; ASET, CPUs do not invalidate.
const FAULTS: u64 = 1 << 45 | 1 << 46 | 1 << 47;
/// CD word 0: where the ASID begins.
const ASID_SHIFT: u32 = 48;
/// CD word 3, as MAIR_EL1: attribute index 0 is write-back memory.
const MEMORY: u64 = 0xff;

/// A descriptor that leads to a table, or at the last level to a page.
const VALID: u64 = 0b11;
/// A leaf's AP[1], SH and AF: also for the unprivileged, inner shareable, accessed; nG, of one ASID.
const LEAF: u64 = 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11;

/// A stream table entry that leads to one context descriptor.
pub(super) const fn stream(context: u64) -> [u64; ENTRY_WORDS] {
    [STREAM_FIRST_STAGE | context, STREAM_READS, 0, 0, 0, 0, 0, 0]
}

/// A context descriptor that leads to a table of level 1.
pub(super) const fn context(root: u64, asid: u16) -> [u64; ENTRY_WORDS] {
    let asid = (asid as u64) << ASID_SHIFT;
    let word0 = ADDRESSES | WALKS | CONTEXT_VALID | TABLES | FAULTS | asid;
    [word0, root, 0, MEMORY, 0, 0, 0, 0]
}

/// An entry that leads to a finer table.
pub(super) const fn link(table: u64) -> u64 {
    table | VALID
}

/// An entry of the last level: a page to be read and written.
pub(super) const fn page(to: u64) -> u64 {
    to | LEAF | VALID
}

/// CFGI_CD: forget the stream's context descriptor. The stream that it would name is one of the guest's numbering.
pub(super) const FORGET_CONTEXT: [u64; COMMAND_WORDS] = [0x05, 1];

/// TLBI_NH_VA, leaves: forget a page of an address space.
pub(super) const fn forget_page(asid: u16, address: u64) -> [u64; COMMAND_WORDS] {
    [0x12 | (asid as u64) << ASID_SHIFT, address | 1]
}

/// TLBI_NSNH_ALL: forget everything of everybody. No guest may.
pub(super) const FORGET_ALL_OF_EVERYBODY: [u64; COMMAND_WORDS] = [0x30, 0];
