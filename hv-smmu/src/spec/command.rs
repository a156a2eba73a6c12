//! Commands: what software asks of a unit. One that the unit calls illegal, or that means nothing, is not made.
//!
//! Commands of the secure side (TLBI_EL3_ALL 0x18, TLBI_EL3_VA 0x1a) are not ours to give, and have no constructor.
//! Source: Linux `arm-smmu-v3.h` (`CMDQ_OP_*`, `CMDQ_*`) and `arm-smmu-v3.c` (`arm_smmu_cmdq_build_cmd`), QEMU
//! `smmuv3-internal.h`. The response of a PRI_RESP is where Linux and Xen have it (13:12), not where QEMU reads it.

use core::fmt;

use hv_core::{Iova, PhysAddr};
use static_assertions::const_assert_eq;

use super::granule::Granule;
use super::id_registers::RangeInvalidation;
use super::queue::COMMAND_BYTES;
use super::registers::{MSI_ADDRESS, Shareability};
use crate::{Asid, StallTag, StreamId, SubstreamId, Vmid};

mod user;
mod words;

pub use user::{BadCommand, Takes, UserCommand};
use words::{ResponseWord, SizeWord, StreamWord, SyncWord, TlbWord0, TlbWord1};

/// 64-bit words of a command.
pub const WORDS: usize = 2;
const_assert_eq!((WORDS * size_of::<u64>()) as u64, COMMAND_BYTES);

/// The kind of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Read a stream's configuration ahead.
    PrefetchConfig = 0x01,
    /// Translate an address ahead.
    PrefetchAddress = 0x02,
    /// Forget a stream table entry.
    ConfigStream = 0x03,
    /// Forget a range of stream table entries, or all configuration (CFGI_STE_RANGE, CFGI_ALL).
    ConfigRange = 0x04,
    /// Forget a context descriptor.
    ConfigContext = 0x05,
    /// Forget all context descriptors of a stream.
    ConfigContextAll = 0x06,
    /// TLBI_NH_ALL.
    TlbFirstVmid = 0x10,
    /// TLBI_NH_ASID.
    TlbFirstAsid = 0x11,
    /// TLBI_NH_VA.
    TlbFirstAddress = 0x12,
    /// TLBI_NH_VAA.
    TlbFirstAddressAnyAsid = 0x13,
    /// TLBI_EL2_ALL.
    TlbEl2All = 0x20,
    /// TLBI_EL2_ASID.
    TlbEl2Asid = 0x21,
    /// TLBI_EL2_VA.
    TlbEl2Address = 0x22,
    /// TLBI_EL2_VAA.
    TlbEl2AddressAnyAsid = 0x23,
    /// TLBI_S12_VMALL.
    TlbVmid = 0x28,
    /// TLBI_S2_IPA.
    TlbSecondAddress = 0x2a,
    /// TLBI_NSNH_ALL.
    TlbAll = 0x30,
    /// ATC_INV.
    AtcInvalidate = 0x40,
    /// PRI_RESP.
    PageResponse = 0x41,
    /// RESUME.
    Resume = 0x44,
    /// STALL_TERM (IHI 0070, 4.7.2).
    StallTerminate = 0x45,
    /// CMD_SYNC.
    Sync = 0x46,
}

/// Low bits of an address that word 1 leaves out.
const PAGE_SHIFT: u32 = 12;
/// RESUME: Ac, to retry, and Ab, to abort (word 0, bits 12 and 13; IHI 0070, 4.7.1).
const RESUME_SHIFT: u32 = 12;
/// CFGI: only the entry or descriptor itself changed, no table on the way to it (word 1, bit 0).
const LEAF: u64 = 1;
/// CFGI_ALL: CFGI_STE_RANGE with the largest Range (word 1, bits 4:0).
const RANGE_ALL: u64 = 31;
/// ATC_INV: everything (word 1, bits 5:0).
const ATC_ALL: u8 = 52;
/// PREFETCH_ADDR: the largest size (word 1, bits 4:0).
const PREFETCH_SIZE_MAX: u8 = 31;
/// CMD_SYNC: completion is an interrupt, by a message if there is an address.
const SYNC_INTERRUPT: u8 = 1;
/// CMD_SYNC: completion is an event for CPUs that wait for one.
const SYNC_EVENT: u8 = 2;
/// Memory type of a message in memory: normal, write back.
const MSI_WRITE_BACK: u8 = 0xf;

/// How deep an invalidation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Leaves only: what leads to them did not change.
    Leaves,
    /// Whatever led to the translation too.
    All,
}

impl Depth {
    const fn is_leaf(self) -> bool {
        matches!(self, Self::Leaves)
    }
}

/// The addresses of a TLB invalidation.
///
/// # Invariants
/// One address, or a range whose encoding is not reserved: NUM, SCALE and TTL are not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlbSpan {
    page: u64,
    num: u8,
    scale: u8,
    ttl: u8,
    tg: u8,
}

impl TlbSpan {
    /// How many granules, in units of 2^scale, one range can have.
    pub const UNITS_MAX: u8 = 32;
    /// The largest scale.
    pub const SCALE_MAX: u8 = 31;

    /// Whatever translates this address.
    pub const fn address(address: Iova) -> Self {
        let page = address.as_u64() >> PAGE_SHIFT;
        Self {
            page,
            num: 0,
            scale: 0,
            ttl: 0,
            tg: 0,
        }
    }

    /// `units` times 2^`scale` granules from `start`. `leaf_level` is where all leaves of the range are, if that is
    /// known.
    ///
    /// `None` for what cannot be said: no unit or more than [`UNITS_MAX`](Self::UNITS_MAX), a scale above
    /// [`SCALE_MAX`](Self::SCALE_MAX), a start that is not aligned to the granule or to the leaves, a level without
    /// leaves, and the reserved case of one granule whose level is not known, for which
    /// [`address`](Self::address) serves.
    pub const fn range(
        _: RangeInvalidation,
        granule: Granule,
        start: Iova,
        units: u8,
        scale: u8,
        leaf_level: Option<u8>,
    ) -> Option<Self> {
        Self::of_any_unit(granule, start, units, scale, leaf_level)
    }

    /// As [`range`](Self::range), where the unit is known to take ranges otherwise.
    const fn of_any_unit(
        granule: Granule,
        start: Iova,
        units: u8,
        scale: u8,
        leaf_level: Option<u8>,
    ) -> Option<Self> {
        let start = start.as_u64();
        let (ttl, aligned_to) = match leaf_level {
            None => (0, granule.shift()),
            Some(level) => match granule.leaf_shift(level) {
                Some(shift) => (level, shift),
                None => return None,
            },
        };
        let reserved = units == 1 && scale == 0 && ttl == 0;
        // INVARIANT: checked here.
        if reserved || units == 0 || units > Self::UNITS_MAX || scale > Self::SCALE_MAX {
            return None;
        }
        if !start.is_multiple_of(1 << aligned_to) {
            return None;
        }
        let page = start >> PAGE_SHIFT;
        Some(Self {
            page,
            num: units - 1,
            scale,
            ttl,
            tg: granule.command(),
        })
    }

    const fn words(&self, opcode: Opcode, depth: Option<Depth>) -> (TlbWord0, TlbWord1) {
        let word0 = TlbWord0::new()
            .with_opcode(opcode as u8)
            .with_num(self.num)
            .with_scale(self.scale);
        let leaf = match depth {
            Some(depth) => depth.is_leaf(),
            None => false,
        };
        let word1 = TlbWord1::new()
            .with_leaf(leaf)
            .with_ttl(self.ttl)
            .with_tg(self.tg)
            .with_page(self.page);
        (word0, word1)
    }
}

/// The addresses of an invalidation in a device.
///
/// # Invariants
/// All, or 2^size pages whose first is a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtcSpan {
    page: u64,
    size: u8,
}

impl AtcSpan {
    /// All addresses.
    pub const ALL: Self = Self {
        page: 0,
        size: ATC_ALL,
    };

    /// The least that has both addresses in it.
    pub const fn around(first: Iova, last: Iova) -> Self {
        let (first, last) = (first.as_u64() >> PAGE_SHIFT, last.as_u64() >> PAGE_SHIFT);
        // Where two page numbers differ in a bit, one piece of twice its weight has both.
        let size = (u64::BITS - (first ^ last).leading_zeros()) as u8;
        // INVARIANT: page numbers have 52 bits, so the size is at most that, and the shift is below 64.
        Self {
            page: first >> size << size,
            size,
        }
    }

    /// 2^`log2` pages of 4 KiB from `start`; `None` if `start` is not aligned to that, or there are more than exist.
    pub const fn pages(start: Iova, log2: u8) -> Option<Self> {
        // INVARIANT: checked here.
        if log2 >= ATC_ALL
            || !start
                .as_u64()
                .is_multiple_of(1 << (log2 as u32 + PAGE_SHIFT))
        {
            return None;
        }
        Some(Self {
            page: start.as_u64() >> PAGE_SHIFT,
            size: log2,
        })
    }
}

/// Whose translations a device forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtcScope {
    /// Those of requests without a substream.
    WithoutSubstream,
    /// Those of a substream.
    Substream(SubstreamId),
    /// All.
    AllSubstreams,
}

/// What a device is told about pages that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageResponse {
    /// It may not ask.
    Deny = 0,
    /// They are not there.
    Fail = 1,
    /// They are there now.
    Success = 2,
}

/// What becomes of a stalled transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Resume {
    /// It ends as if it had been done: reads give zeros. An abort where the unit has nothing else (IDR0.TERM_MODEL).
    Terminate = 0,
    /// It is tried again.
    Retry = 1,
    /// It is aborted.
    Abort = 2,
}

/// How the completion of a [`Command::sync`] is told, beside by CMDQ_CONS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncSignal {
    /// Not at all.
    None,
    /// By the wired interrupt.
    Interrupt,
    /// By an event to CPUs that wait for one (IDR0.SEV; see [quirks](super::quirks)).
    Event,
    /// By writing `data` to memory that the CPU's caches snoop (IDR0.MSI).
    Message(SyncMessage),
}

/// Where a completion is written, and what.
///
/// # Invariants
/// The address is a multiple of 4, below 2^52 and not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncMessage {
    address: u64,
    data: u32,
}

impl SyncMessage {
    /// Four bytes at `address`; `None` if that is not a multiple of 4, too high, or 0, which means a wire.
    pub const fn new(address: PhysAddr, data: u32) -> Option<Self> {
        let address = address.as_u64();
        // INVARIANT: checked here.
        if address == 0 || address & !MSI_ADDRESS != 0 {
            return None;
        }
        Some(Self { address, data })
    }
}

/// A command, in words as the unit reads them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Command([u64; WORDS]);

impl Command {
    /// The words, lowest address first.
    pub const fn words(&self) -> [u64; WORDS] {
        self.0
    }

    /// The stream whose device the command with this first word has [forget](Self::atc_invalidate), if it does that.
    pub const fn device(word0: u64) -> Option<StreamId> {
        let word0 = StreamWord::from_bits(word0);
        match word0.opcode() == Opcode::AtcInvalidate as u8 {
            true => Some(StreamId::new(word0.sid())),
            false => None,
        }
    }

    /// The command with these words, as it was read back from a queue.
    pub const fn read_back(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// Its [`Opcode`], whatever it is.
    pub const fn code(&self) -> u8 {
        StreamWord::from_bits(self.0[0]).opcode()
    }

    /// Whether it is a sync.
    pub const fn is_sync(&self) -> bool {
        self.code() == Opcode::Sync as u8
    }

    /// Whether who gives it looks at the sync behind it: not so of answers to devices that wait.
    pub const fn is_looked_after(&self) -> bool {
        let code = self.code();
        let answers = code == Opcode::PageResponse as u8 || code == Opcode::Resume as u8;
        !answers && !self.is_sync()
    }

    /// Read a stream's configuration ahead. A hint, and [not for every unit](super::quirks).
    pub const fn prefetch_config(stream: StreamId) -> Self {
        Self([Self::stream(Opcode::PrefetchConfig, stream).into_bits(), 0])
    }

    /// Translate the 2^`log2` pages from `start` ahead. A hint.
    pub const fn prefetch_address(stream: StreamId, start: Iova, log2: u8) -> Option<Self> {
        let Some(AtcSpan { page, size }) = AtcSpan::pages(start, log2) else {
            return None;
        };
        if size > PREFETCH_SIZE_MAX {
            return None;
        }
        let word1 = SizeWord::new().with_size(size).with_page(page);
        Some(Self([
            Self::stream(Opcode::PrefetchAddress, stream).into_bits(),
            word1.into_bits(),
        ]))
    }

    /// Forget a stream table entry; what led to it too, unless only leaves changed.
    pub const fn config_stream(stream: StreamId, depth: Depth) -> Self {
        let word1 = if depth.is_leaf() { LEAF } else { 0 };
        Self([
            Self::stream(Opcode::ConfigStream, stream).into_bits(),
            word1,
        ])
    }

    /// Forget 2^`log2` stream table entries from `first` on, 1 to 31; `None` if `first` is not a multiple of that.
    pub const fn config_streams(first: StreamId, log2: u8) -> Option<Self> {
        if log2 == 0 || log2 as u64 > RANGE_ALL || !first.get().is_multiple_of(1 << log2) {
            return None;
        }
        let word0 = Self::stream(Opcode::ConfigRange, first).into_bits();
        Some(Self([word0, log2 as u64 - 1]))
    }

    /// Forget all configuration.
    pub const fn config_all() -> Self {
        Self([Opcode::ConfigRange as u64, RANGE_ALL])
    }

    /// Forget a context descriptor; what led to it too, unless only leaves changed.
    pub const fn config_context(stream: StreamId, substream: SubstreamId, depth: Depth) -> Self {
        let word0 = Self::stream(Opcode::ConfigContext, stream).with_ssid(substream.get());
        Self([word0.into_bits(), if depth.is_leaf() { LEAF } else { 0 }])
    }

    /// Forget all context descriptors of a stream.
    pub const fn config_contexts(stream: StreamId) -> Self {
        Self([
            Self::stream(Opcode::ConfigContextAll, stream).into_bits(),
            0,
        ])
    }

    /// Forget what first stages under `vmid` gave, combined or not.
    pub const fn tlb_first_vmid(vmid: Vmid) -> Self {
        Self([
            Self::tlb(Opcode::TlbFirstVmid)
                .with_vmid(vmid.get())
                .into_bits(),
            0,
        ])
    }

    /// Of them, what was cached under `asid`.
    pub const fn tlb_first_asid(vmid: Vmid, asid: Asid) -> Self {
        let word0 = Self::tlb(Opcode::TlbFirstAsid);
        Self([
            word0
                .with_vmid(vmid.get())
                .with_asid(asid.get())
                .into_bits(),
            0,
        ])
    }

    /// Of them, what translates `span`.
    pub const fn tlb_first_address(vmid: Vmid, asid: Asid, span: &TlbSpan, depth: Depth) -> Self {
        let (word0, word1) = span.words(Opcode::TlbFirstAddress, Some(depth));
        let word0 = word0.with_vmid(vmid.get()).with_asid(asid.get());
        Self([word0.into_bits(), word1.into_bits()])
    }

    /// What translates `span` under any ASID of `vmid`.
    pub const fn tlb_first_address_any_asid(vmid: Vmid, span: &TlbSpan, depth: Depth) -> Self {
        let (word0, word1) = span.words(Opcode::TlbFirstAddressAnyAsid, Some(depth));
        Self([word0.with_vmid(vmid.get()).into_bits(), word1.into_bits()])
    }

    /// Forget what the EL2 regime gave. Illegal without IDR0.HYP.
    pub const fn tlb_el2_all() -> Self {
        Self([Opcode::TlbEl2All as u64, 0])
    }

    /// Of it, what was cached under `asid`.
    pub const fn tlb_el2_asid(asid: Asid) -> Self {
        Self([
            Self::tlb(Opcode::TlbEl2Asid)
                .with_asid(asid.get())
                .into_bits(),
            0,
        ])
    }

    /// Of that, what translates `span`.
    pub const fn tlb_el2_address(asid: Asid, span: &TlbSpan, depth: Depth) -> Self {
        let (word0, word1) = span.words(Opcode::TlbEl2Address, Some(depth));
        Self([word0.with_asid(asid.get()).into_bits(), word1.into_bits()])
    }

    /// What translates `span` for the EL2 regime under any ASID.
    pub const fn tlb_el2_address_any_asid(span: &TlbSpan, depth: Depth) -> Self {
        let (word0, word1) = span.words(Opcode::TlbEl2AddressAnyAsid, Some(depth));
        Self([word0.into_bits(), word1.into_bits()])
    }

    /// Forget everything under `vmid`, of both stages.
    pub const fn tlb_vmid(vmid: Vmid) -> Self {
        Self([
            Self::tlb(Opcode::TlbVmid).with_vmid(vmid.get()).into_bits(),
            0,
        ])
    }

    /// Forget what second-stage tables under `vmid` say about `span`. What was combined of both stages stays
    /// (recalled): a nested stream needs [`tlb_first_vmid`](Self::tlb_first_vmid) too.
    pub const fn tlb_second_address(vmid: Vmid, span: &TlbSpan, depth: Depth) -> Self {
        let (word0, word1) = span.words(Opcode::TlbSecondAddress, Some(depth));
        Self([word0.with_vmid(vmid.get()).into_bits(), word1.into_bits()])
    }

    /// Forget everything but the EL2 regime's.
    pub const fn tlb_all() -> Self {
        Self([Opcode::TlbAll as u64, 0])
    }

    /// The device forgets translations. Behind a [`sync`](Self::sync) that follows invalidations of the unit's own.
    pub const fn atc_invalidate(stream: StreamId, scope: AtcScope, span: &AtcSpan) -> Self {
        let word0 = Self::stream(Opcode::AtcInvalidate, stream);
        let word0 = match scope {
            AtcScope::WithoutSubstream => word0,
            AtcScope::Substream(substream) => word0.with_ssv(true).with_ssid(substream.get()),
            // G counts with a substream only.
            AtcScope::AllSubstreams => word0.with_ssv(true).with_g(true),
        };
        let word1 = SizeWord::new().with_size(span.size).with_page(span.page);
        Self([word0.into_bits(), word1.into_bits()])
    }

    /// Answers a page request; `None` for a group above 511.
    pub const fn page_response(
        stream: StreamId,
        substream: Option<SubstreamId>,
        group: u16,
        response: PageResponse,
    ) -> Option<Self> {
        if group > super::page_request::GROUP_MAX {
            return None;
        }
        let word0 = Self::stream(Opcode::PageResponse, stream);
        let word0 = match substream {
            Some(substream) => word0.with_ssv(true).with_ssid(substream.get()),
            None => word0,
        };
        let word1 = ResponseWord::new()
            .with_group(group)
            .with_response(response as u8);
        Some(Self([word0.into_bits(), word1.into_bits()]))
    }

    /// Lets go of a stalled transaction.
    pub const fn resume(stream: StreamId, tag: StallTag, resume: Resume) -> Self {
        let word0 = Self::stream(Opcode::Resume, stream).into_bits();
        Self([word0 | (resume as u64) << RESUME_SHIFT, tag.get() as u64])
    }

    /// Aborts all stalled transactions of a stream. Only once its entry aborts, and the unit has said that it read that
    /// (IHI 0070, 4.7.2).
    pub const fn stall_terminate(stream: StreamId) -> Self {
        Self([Self::stream(Opcode::StallTerminate, stream).into_bits(), 0])
    }

    /// Done when all commands before it are, and what they took away is used no more.
    pub const fn sync(signal: SyncSignal) -> Self {
        let word0 = SyncWord::new().with_opcode(Opcode::Sync as u8);
        let (word0, word1) = match signal {
            SyncSignal::None => (word0, 0),
            SyncSignal::Interrupt => (word0.with_cs(SYNC_INTERRUPT), 0),
            SyncSignal::Event => (word0.with_cs(SYNC_EVENT), 0),
            SyncSignal::Message(message) => {
                let word0 = word0
                    .with_cs(SYNC_INTERRUPT)
                    .with_msh(Shareability::Inner.into_bits())
                    .with_msi_attr(MSI_WRITE_BACK)
                    .with_msi_data(message.data);
                (word0, message.address)
            }
        };
        Self([word0.into_bits(), word1])
    }

    const fn stream(opcode: Opcode, stream: StreamId) -> StreamWord {
        StreamWord::new()
            .with_opcode(opcode as u8)
            .with_sid(stream.get())
    }

    const fn tlb(opcode: Opcode) -> TlbWord0 {
        TlbWord0::new().with_opcode(opcode as u8)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [word0, word1] = self.0;
        write!(f, "Command({word0:#018x}, {word1:#018x})")
    }
}

#[cfg(test)]
mod tests;
