//! From what has to be forgotten to commands.

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::{Iova, IovaRange, PageSize};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, HwDomainId};

use crate::Vmid;
use crate::command_queue::BATCH_MAX;
use crate::spec::command::{Command, Depth, TlbSpan};
use crate::spec::granule::Granule;
use crate::spec::id_registers::RangeInvalidation;

/// Commands of one submission.
pub(crate) type Batch = ArrayVec<Command, BATCH_MAX>;

/// Addresses above which one command for all of the domain costs less than one for each page, on a unit that takes no
/// ranges.
const SINGLES_MOST: u64 = 16;

/// How translations are invalidated on a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invalidator {
    pub(crate) granule: Granule,
    /// Whether one command may name a range.
    pub(crate) ranges: Option<RangeInvalidation>,
}

/// The id under which the unit files a domain's translations.
pub(crate) const fn vmid(domain: HwDomainId) -> Vmid {
    Vmid::new(domain.get())
}

impl Invalidator {
    /// The commands that make the unit forget what `request` names, possibly more.
    pub(crate) fn commands(&self, request: FlushRequest, batch: &mut Batch) {
        let other = u16::from(Fault::FlushOtherVmid.is_on());
        let vmid = vmid(HwDomainId::new(request.domain.get().wrapping_add(other)));
        let depth = match request.depth {
            FlushDepth::Leaves => Depth::Leaves,
            FlushDepth::WalkCaches => Depth::All,
        };
        let named = match request.span {
            FlushSpan::Domain => None,
            FlushSpan::Pages(range) => match self.ranges {
                Some(token) => self.by_ranges(token, vmid, depth, range),
                None => self.one_by_one(vmid, depth, range),
            },
        };
        match named {
            Some(commands) if commands.len() <= batch.remaining_capacity() => {
                batch.extend(commands)
            }
            // Of both stages: nothing that was made through the domain is left.
            _ => {
                let _ = batch.try_push(Command::tlb_vmid(vmid));
            }
        }
    }

    /// A command for each granule, where there are few.
    fn one_by_one(&self, vmid: Vmid, depth: Depth, range: IovaRange) -> Option<Batch> {
        let granules = granules(self.granule, range);
        if granules.count > SINGLES_MOST {
            return None;
        }
        let mut batch = Batch::new();
        let left_out = u64::from(Fault::SkipLastAddress.is_on() && granules.count > 1);
        for index in 0..granules.count - left_out {
            let address = granules.start + index * self.granule.bytes();
            let span = TlbSpan::address(Iova::new(address));
            batch
                .try_push(Command::tlb_second_address(vmid, &span, depth))
                .ok()?;
        }
        Some(batch)
    }

    /// Ranges of at most [`TlbSpan::UNITS_MAX`] times a power of two granules each: as many as five bits of the count
    /// at a time (Linux).
    fn by_ranges(
        &self,
        token: RangeInvalidation,
        vmid: Vmid,
        depth: Depth,
        range: IovaRange,
    ) -> Option<Batch> {
        let Granules { start, count } = granules(self.granule, range);
        let (mut at, mut left) = (start, count);
        let mut batch = Batch::new();
        while left != 0 {
            let scale = left.trailing_zeros().min(TlbSpan::SCALE_MAX.into());
            let units = (left >> scale) % u64::from(TlbSpan::UNITS_MAX);
            let (units, scale) = match units {
                // Only where the scale is at its largest.
                0 => (TlbSpan::UNITS_MAX, TlbSpan::SCALE_MAX),
                // Below the number of units.
                units => (units as u8, scale as u8),
            };
            let span = match (units, scale) {
                // One granule whose level is not known is no range.
                (1, 0) => TlbSpan::address(Iova::new(at)),
                _ => TlbSpan::range(token, self.granule, Iova::new(at), units, scale, None)?,
            };
            batch
                .try_push(Command::tlb_second_address(vmid, &span, depth))
                .ok()?;
            let done = u64::from(units) << scale;
            left = left.saturating_sub(done);
            at = at.checked_add(done.checked_mul(self.granule.bytes())?)?;
        }
        Some(batch)
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

    fn flush(ranges: bool, granule: Granule, span: FlushSpan, depth: FlushDepth) -> Vec<[u64; 2]> {
        let ranges = Idr3::new().with_ril(ranges).range_invalidation();
        let request = FlushRequest {
            domain: DOMAIN,
            span,
            depth,
        };
        let mut batch = Batch::new();
        Invalidator { granule, ranges }.commands(request, &mut batch);
        batch.iter().map(Command::words).collect()
    }

    /// What a command covers, decoded by hand: first byte and length, `None` for the whole domain.
    fn covered([w0, w1]: [u64; 2]) -> Option<(u64, u64)> {
        assert_eq!(w0 >> 32 & 0xffff, 7, "the domain's VMID");
        match w0 & 0xff {
            0x28 => None,
            0x2a => {
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
        for granule in [Granule::Size4K, Granule::Size16K, Granule::Size64K] {
            for count in pages {
                for start in [0, 0x5000, 0x4000_0000, 0x7fff_f000] {
                    let span = FlushSpan::Pages(range(start, count));
                    for depth in [FlushDepth::Leaves, FlushDepth::WalkCaches] {
                        for ranges in [false, true] {
                            let commands = flush(ranges, granule, span, depth);
                            let mut at = start / granule.bytes() * granule.bytes();
                            for command in &commands {
                                let Some((first, bytes)) = covered(*command) else {
                                    assert_eq!(commands.len(), 1);
                                    at = u64::MAX;
                                    break;
                                };
                                assert_eq!(first, at, "no gap, no overlap");
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
    fn a_whole_domain_is_one_command_of_both_stages() {
        for ranges in [false, true] {
            let commands = flush(
                ranges,
                Granule::Size4K,
                FlushSpan::Domain,
                FlushDepth::Leaves,
            );
            assert_eq!(commands, [[7 << 32 | 0x28, 0]]);
        }
    }

    #[test]
    fn pages_one_by_one_are_few() {
        let of = |pages| {
            let span = FlushSpan::Pages(range(0x1000, pages));
            flush(false, Granule::Size4K, span, FlushDepth::Leaves)
        };
        assert_eq!(of(1), [[7 << 32 | 0x2a, 0x1001]]);
        assert_eq!(of(16).len(), 16);
        assert_eq!(of(17), [[7 << 32 | 0x28, 0]]);
    }
}
