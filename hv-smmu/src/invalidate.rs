//! From what has to be forgotten to commands.

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::{Iova, IovaRange, PageSize};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, HwDomainId};

use crate::command_queue::BATCH_MAX;
use crate::spec::command::{Command, Depth, TlbSpan};
use crate::spec::granule::Granule;
use crate::spec::id_registers::RangeInvalidation;
use crate::vmsa::Stage;
use crate::{Asid, Vmid};

/// Commands of one submission.
pub(crate) type Batch = ArrayVec<Command, BATCH_MAX>;

/// Addresses above which one command for all of the domain costs less than one for each page, on a unit that takes no
/// ranges.
const SINGLES_MOST: u64 = 16;
/// Log2 of how many units of a range one command can name.
const UNITS_SHIFT: u32 = TlbSpan::UNITS_MAX.ilog2();

/// Under which id a unit files a domain's translations, and of which stage they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filed {
    /// Of a first stage, under an ASID of [`FIRST_STAGE_VMID`].
    First(Asid),
    /// Of a second stage.
    Second(Vmid),
}

/// The VMID of streams with a first stage alone: those units have no others.
pub(crate) const FIRST_STAGE_VMID: Vmid = Vmid::new(0);

/// The VMID that invalidations of those streams name.
fn first_stage_vmid() -> Vmid {
    match Fault::FirstStageOtherVmid.is_on() {
        true => Vmid::new(1),
        false => FIRST_STAGE_VMID,
    }
}

impl Filed {
    /// Where a unit that translates by this stage files them.
    pub(crate) const fn of(domain: HwDomainId, stage: Stage) -> Self {
        match stage {
            Stage::First => Self::First(Asid::new(domain.get())),
            Stage::Second => Self::Second(vmid(domain)),
        }
    }

    /// Forget everything of the domain. Of a second stage, what was made of both as well. A unit without second stages
    /// stops at the command for one, and a first stage's alone would leave a second one's translations.
    pub(crate) fn all(self) -> Command {
        match self {
            Self::First(asid) => Command::tlb_first_asid(first_stage_vmid(), asid),
            Self::Second(vmid) => Command::tlb_vmid(vmid),
        }
    }

    /// Forget what translates `span`.
    fn address(self, span: &TlbSpan, depth: Depth) -> Command {
        match self {
            Self::First(asid) => Command::tlb_first_address(first_stage_vmid(), asid, span, depth),
            Self::Second(vmid) => Command::tlb_second_address(vmid, span, depth),
        }
    }
}

/// How translations are invalidated on a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalidator {
    pub(crate) granule: Granule,
    /// Of which stage they are.
    pub(crate) stage: Stage,
    /// Whether one command may name a range.
    pub(crate) ranges: Option<RangeInvalidation>,
    /// Addresses that are translated end below 2 to this, or before.
    pub(crate) input_bits: u8,
}

/// The id under which the unit files a domain's translations.
pub(crate) const fn vmid(domain: HwDomainId) -> Vmid {
    Vmid::new(domain.get())
}

impl Invalidator {
    /// The commands that make the unit forget what `request` names, possibly more.
    pub(crate) fn commands(&self, request: FlushRequest, batch: &mut Batch) {
        let other = u16::from(Fault::FlushOtherVmid.is_on());
        let domain = HwDomainId::new(request.domain.get().wrapping_add(other));
        let filed = Filed::of(domain, self.stage);
        let depth = match request.depth {
            FlushDepth::Leaves => Depth::Leaves,
            FlushDepth::WalkCaches => Depth::All,
        };
        let named = match request.span {
            FlushSpan::Domain => None,
            FlushSpan::Pages(range) => match self.ranges {
                Some(token) => self.by_range(token, range).map(|span| {
                    let mut batch = Batch::new();
                    let _ = batch.try_push(filed.address(&span, depth));
                    batch
                }),
                None => self.one_by_one(filed, depth, range),
            },
        };
        match named {
            Some(commands) if commands.len() <= batch.remaining_capacity() => {
                batch.extend(commands)
            }
            // Nothing that was made through the domain is left.
            _ => {
                let _ = batch.try_push(filed.all());
            }
        }
    }

    /// A command for each granule, where there are few.
    fn one_by_one(&self, filed: Filed, depth: Depth, range: IovaRange) -> Option<Batch> {
        let granules = granules(self.granule, range);
        if granules.count > SINGLES_MOST {
            return None;
        }
        let mut batch = Batch::new();
        let left_out = u64::from(Fault::SkipLastAddress.is_on() && granules.count > 1);
        for index in 0..granules.count - left_out {
            let address = granules.start + index * self.granule.bytes();
            let span = TlbSpan::address(Iova::new(address));
            batch.try_push(filed.address(&span, depth)).ok()?;
        }
        Some(batch)
    }

    /// One range: at most 2^[`UNITS_SHIFT`] units of a power of two of granules, which is at most a sixteenth more than was
    /// asked for. A second command would cost more than what is read again. What is more lies behind the range, or where
    /// there are no addresses there, before it.
    fn by_range(&self, token: RangeInvalidation, range: IovaRange) -> Option<TlbSpan> {
        let Granules { start, count } = granules(self.granule, range);
        if count <= 1 {
            // One granule whose level is not known is no range.
            return Some(TlbSpan::address(Iova::new(start)));
        }
        let last = count - 1;
        let scale = last.ilog2().saturating_sub(UNITS_SHIFT - 1);
        let units = (last >> scale) + 1;
        let bytes = (units << scale).checked_mul(self.granule.bytes())?;
        let room = (1_u64 << self.input_bits).saturating_sub(bytes);
        let start = Iova::new(start.min(room));
        let (units, scale) = (u8::try_from(units).ok()?, u8::try_from(scale).ok()?);
        let granule = match Fault::RangeBySmallPages.is_on() {
            true => Granule::Size4K,
            false => self.granule,
        };
        TlbSpan::range(token, granule, start, units, scale, None)
    }
}

/// Whole granules.
struct Granules {
    start: u64,
    count: u64,
}

/// The granules that a range touches.
fn granules(granule: Granule, range: IovaRange) -> Granules {
    let bytes = granule.bytes();
    let start = range.start().as_u64() / bytes * bytes;
    let pages = range.pages().get();
    let end = range
        .start()
        .as_u64()
        .saturating_add(pages.saturating_mul(PageSize::Size4K.bytes()));
    let count = end.saturating_sub(start).div_ceil(bytes);
    Granules { start, count }
}

#[cfg(test)]
mod tests {
    use hv_core::PageCount;

    use super::*;
    use crate::spec::id_registers::Idr3;

    const DOMAIN: HwDomainId = HwDomainId::new(7);

    fn range(start: u64, pages: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), PageCount::new(pages).unwrap()).unwrap()
    }

    fn flush(
        ranges: bool,
        (stage, granule): (Stage, Granule),
        span: FlushSpan,
        depth: FlushDepth,
    ) -> Vec<[u64; 2]> {
        let ranges = Idr3::new().with_ril(ranges).range_invalidation();
        let request = FlushRequest {
            domain: DOMAIN,
            span,
            depth,
        };
        let mut batch = Batch::new();
        let invalidator = Invalidator {
            granule,
            stage,
            ranges,
            input_bits: granule.address_bits(),
        };
        invalidator.commands(request, &mut batch);
        batch.iter().map(Command::words).collect()
    }

    const STAGES: [Stage; 2] = [Stage::First, Stage::Second];

    /// What a command of a stage covers, decoded by hand: first byte and length, `None` for the whole domain.
    fn covered(stage: Stage, [w0, w1]: [u64; 2]) -> Option<(u64, u64)> {
        let (whole, pages) = match stage {
            Stage::First => {
                assert_eq!(w0 >> 32, 7 << 16, "the domain's ASID, VMID 0");
                (0x11, 0x12)
            }
            Stage::Second => {
                assert_eq!(w0 >> 32, 7, "the domain's VMID, no ASID");
                (0x28, 0x2a)
            }
        };
        match w0 & 0xff {
            code if code == whole => None,
            code if code == pages => {
                let start = w1 & !0xfff;
                let granule: u64 = match w1 >> 10 & 3 {
                    0 => {
                        assert_eq!(w0 & 0x1f1_f000, 0);
                        return Some((start, 4096));
                    }
                    1 => 1 << 12,
                    2 => 1 << 14,
                    _ => 1 << 16,
                };
                let (num, scale) = (w0 >> 12 & 0x1f, w0 >> 20 & 0x1f);
                assert!(num != 0 || scale != 0 || w1 >> 8 & 3 != 0, "reserved");
                Some((start, (num + 1) << scale << granule.trailing_zeros()))
            }
            other => panic!("opcode {other:#x}"),
        }
    }

    #[test]
    fn commands_cover_the_range_and_name_no_reserved_form() {
        let pages = [
            1,
            2,
            3,
            15,
            31,
            32,
            33,
            63,
            512,
            513,
            4095,
            65536,
            1 << 24,
            (1 << 28) - 1,
        ];
        let granules = [Granule::Size4K, Granule::Size16K, Granule::Size64K];
        let formats = STAGES.map(|stage| granules.map(|granule| (stage, granule)));
        for (stage, granule) in formats.concat() {
            for count in pages {
                for start in [0, 0x5000, 0x4000_0000, 0x7fff_f000] {
                    let span = FlushSpan::Pages(range(start, count));
                    for depth in [FlushDepth::Leaves, FlushDepth::WalkCaches] {
                        for ranges in [false, true] {
                            let commands = flush(ranges, (stage, granule), span, depth);
                            let mut at = start / granule.bytes() * granule.bytes();
                            for command in &commands {
                                let Some((first, bytes)) = covered(stage, *command) else {
                                    assert_eq!(commands.len(), 1);
                                    at = u64::MAX;
                                    break;
                                };
                                assert_eq!(first, at, "no gap, no overlap");
                                if ranges {
                                    assert_eq!(commands.len(), 1, "{count} pages");
                                    let asked = (start + count * 4096 - at).max(granule.bytes());
                                    let most = (asked + asked / 16).max(asked + granule.bytes());
                                    assert!(bytes <= most, "{count} pages: {bytes:#x}");
                                }
                                assert_eq!(command[1] & 1 == 1, depth == FlushDepth::Leaves);
                                at += bytes.max(granule.bytes());
                            }
                            assert!(at >= start + count * 4096, "{count} pages from {start:#x}");
                            assert!(commands.len() <= 16);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_range_at_the_end_of_the_addresses_is_rounded_towards_their_beginning() {
        let (pages, top) = (513, 1_u64 << 48);
        let start = top - pages * 4096;
        let span = FlushSpan::Pages(range(start, pages));
        let format = (Stage::First, Granule::Size4K);
        let commands = flush(true, format, span, FlushDepth::Leaves);
        let [command] = commands[..] else {
            panic!("{commands:x?}")
        };
        let (first, bytes) = covered(Stage::First, command).unwrap();
        assert_eq!((first + bytes, bytes), (top, 544 * 4096));
        // All addresses there are.
        let span = FlushSpan::Pages(range(0, top / 4096));
        let commands = flush(true, format, span, FlushDepth::Leaves);
        assert_eq!(commands.len(), 1);
        assert_eq!(covered(Stage::First, commands[0]), Some((0, top)));
        // Long addresses: one that ends where short ones do goes on there, and one behind is not taken for one before.
        for (start, end) in [
            (top - 0x210_0000, top),
            (top, top + 0x210_0000),
            ((16 * top) - 0x210_0000, 16 * top),
        ] {
            let span = FlushSpan::Pages(range(start, 0x2100));
            let format = (Stage::Second, Granule::Size64K);
            let commands = flush(true, format, span, FlushDepth::Leaves);
            let (first, bytes) = covered(Stage::Second, commands[0]).unwrap();
            assert!(first <= start && first + bytes >= end, "{first:#x}");
            assert!(first + bytes <= 16 * top && bytes < 2 * 0x210_0000);
        }
    }

    #[test]
    fn a_whole_domain_is_one_command() {
        for ranges in [false, true] {
            // Of both stages for a second one; a unit that has only the first stops at that.
            for (stage, word) in [
                (Stage::First, 7 << 48 | 0x11),
                (Stage::Second, 7 << 32 | 0x28),
            ] {
                let format = (stage, Granule::Size4K);
                let commands = flush(ranges, format, FlushSpan::Domain, FlushDepth::Leaves);
                assert_eq!(commands, [[word, 0]]);
            }
        }
    }

    #[test]
    fn pages_one_by_one_are_few() {
        let of_stage = |stage, pages| {
            let span = FlushSpan::Pages(range(0x1000, pages));
            flush(false, (stage, Granule::Size4K), span, FlushDepth::Leaves)
        };
        assert_eq!(of_stage(Stage::First, 1), [[7 << 48 | 0x12, 0x1001]]);
        assert_eq!(of_stage(Stage::First, 17), [[7 << 48 | 0x11, 0]]);
        let of = |pages| of_stage(Stage::Second, pages);
        assert_eq!(of(1), [[7 << 32 | 0x2a, 0x1001]]);
        assert_eq!(of(16).len(), 16);
        assert_eq!(of(17), [[7 << 32 | 0x28, 0]]);
    }
}
