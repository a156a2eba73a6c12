//! Invalidation descriptors by meaning: what the rest of the crate submits.

use hv_core::PhysAddr;
use hv_core::fault::Fault;
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, HwDomainId};

use crate::spec::capability::Cap;
use crate::spec::invalidation::{
    ContextInvalidation, DOMAIN, GLOBAL, IotlbInvalidation, IotlbRange, SELECTIVE, TYPE_CONTEXT,
    TYPE_IOTLB, TYPE_WAIT, WaitLow,
};

/// A descriptor: the low and the high word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// Domain id 0 tags what is cached about entries that are not present, and no domain has it.
pub(crate) const NO_DOMAIN: HwDomainId = HwDomainId::new(0);

const PAGE_SHIFT: u32 = 12;

impl Descriptor {
    /// Forget all root and context entries.
    pub(crate) const fn context_global() -> Self {
        let low = ContextInvalidation::new()
            .with_kind(TYPE_CONTEXT)
            .with_g(GLOBAL);
        Self {
            low: low.into_bits(),
            high: 0,
        }
    }

    /// Forget the context entry of one requester, cached under `domain`.
    pub(crate) const fn context_device(domain: HwDomainId, requester: u16) -> Self {
        let low = ContextInvalidation::new()
            .with_kind(TYPE_CONTEXT)
            .with_g(SELECTIVE)
            .with_did(domain.get())
            .with_sid(requester);
        Self {
            low: low.into_bits(),
            high: 0,
        }
    }

    /// Its type, whatever it is.
    pub(crate) const fn kind(&self) -> u8 {
        WaitLow::from_bits(self.low).kind()
    }

    /// Whether it is a wait.
    pub(crate) const fn is_wait(&self) -> bool {
        self.kind() == TYPE_WAIT
    }

    /// Completes, by writing `data` to `status`, when all descriptors before it have.
    pub(crate) const fn wait(status: PhysAddr, data: u32) -> Self {
        let low = WaitLow::new()
            .with_kind(TYPE_WAIT)
            .with_sw(true)
            .with_fn(true)
            .with_data(data);
        Self {
            low: low.into_bits(),
            high: status.as_u64(),
        }
    }
}

/// How a unit's IOTLB is flushed: what its capabilities allow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IotlbFlusher {
    cap: Cap,
}

impl IotlbFlusher {
    pub(crate) const fn new(cap: Cap) -> Self {
        Self { cap }
    }

    fn low(&self, granularity: u8, domain: HwDomainId) -> u64 {
        let drain = !Fault::SkipDrain.is_on();
        IotlbInvalidation::new()
            .with_kind(TYPE_IOTLB)
            .with_g(granularity)
            .with_dw(drain && self.cap.dwd())
            .with_dr(drain && self.cap.drd())
            .with_did(domain.get())
            .into_bits()
    }

    /// Forget all translations.
    pub(crate) fn global(&self) -> Descriptor {
        Descriptor {
            low: self.low(GLOBAL, NO_DOMAIN),
            high: 0,
        }
    }

    /// Forget all translations of a domain.
    pub(crate) fn domain(&self, domain: HwDomainId) -> Descriptor {
        Descriptor {
            low: self.low(DOMAIN, domain),
            high: 0,
        }
    }

    /// Forget what the request names, or more where the unit cannot be that exact.
    pub(crate) fn request(&self, mut request: FlushRequest) -> Descriptor {
        if Fault::FlushWrongDomain.is_on() {
            request.domain = HwDomainId::new(request.domain.get().wrapping_add(1));
        }
        let FlushSpan::Pages(range) = request.span else {
            return self.domain(request.domain);
        };
        let first = range.start().as_u64() >> PAGE_SHIFT;
        let last = range.last().as_u64() >> PAGE_SHIFT;
        let mut span = AlignedSpan::covering(first, last);
        if !self.cap.psi() || span.mask > self.cap.mamv() {
            return self.domain(request.domain);
        }
        if Fault::FlushRangeShort.is_on() {
            span = span.without_last();
        }
        // The hint promises that only leaves changed; without it, links are forgotten too.
        let high = IotlbRange::new()
            .with_am(span.mask)
            .with_ih(request.depth == FlushDepth::Leaves || Fault::LeafHintAlways.is_on())
            .with_page(span.page);
        Descriptor {
            low: self.low(SELECTIVE, request.domain),
            high: high.into_bits(),
        }
    }
}

/// 2^`mask` pages from `page`, which is a multiple of as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AlignedSpan {
    page: u64,
    mask: u8,
}

impl AlignedSpan {
    /// The smallest span that holds the pages `first` to `last`, which are below 2^52.
    const fn covering(first: u64, last: u64) -> Self {
        // All address bits up to the highest in which the two ends differ are inside the span.
        let mask = u64::BITS - (first ^ last).leading_zeros();
        let inside = match 1u64.checked_shl(mask) {
            Some(pages) => pages - 1,
            None => u64::MAX,
        };
        Self {
            page: first & !inside,
            mask: mask as u8,
        }
    }

    /// A deliberate fault: the lower half of the span, which lacks the last page that it was made
    /// for. One page becomes its neighbour.
    const fn without_last(self) -> Self {
        let Self { page, mask } = self;
        match mask.checked_sub(1) {
            Some(mask) => Self { page, mask },
            None => Self {
                page: page ^ 1,
                mask,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_core::{Iova, IovaRange, PageCount};

    fn request(page: u64, pages: u64, depth: FlushDepth) -> FlushRequest {
        let pages = PageCount::new(pages).unwrap();
        FlushRequest {
            domain: HwDomainId::new(7),
            span: FlushSpan::Pages(IovaRange::new(Iova::new(page << 12), pages).unwrap()),
            depth,
        }
    }

    fn flusher(mamv: u8) -> IotlbFlusher {
        IotlbFlusher::new(Cap::new().with_psi(true).with_mamv(mamv).with_drd(true))
    }

    /// The pages that a descriptor flushes, read back from its bits by hand; `None` for all.
    fn flushed(descriptor: Descriptor) -> Option<(u64, u64)> {
        assert_eq!(descriptor.low & 0xf, 2, "an IOTLB descriptor");
        assert_eq!(descriptor.low >> 16 & 0xffff, 7, "the domain");
        match descriptor.low >> 4 & 3 {
            2 => None,
            3 => {
                let pages = 1u64 << (descriptor.high & 0x3f);
                let first = descriptor.high >> 12;
                assert_eq!(first % pages, 0, "hardware ignores the low address bits");
                Some((first, first + pages - 1))
            }
            other => panic!("granularity {other}"),
        }
    }

    #[test]
    fn the_span_is_the_smallest_that_covers() {
        let table = [
            ((0, 0), (0, 0)),
            ((5, 5), (5, 0)),
            ((4, 5), (4, 1)),
            ((1, 2), (0, 2)),
            ((0x1ff, 0x200), (0, 10)),
            ((0x200, 0x3ff), (0x200, 9)),
            (((1 << 52) - 1, (1 << 52) - 1), ((1 << 52) - 1, 0)),
            ((0, (1 << 52) - 1), (0, 52)),
        ];
        for ((first, last), (page, mask)) in table {
            assert_eq!(
                AlignedSpan::covering(first, last),
                AlignedSpan { page, mask }
            );
        }
    }

    #[test]
    fn flush_range_too_short_never() {
        // Every range of up to 40 pages around boundaries of every order, for several MAMV.
        for mamv in [0, 3, 9, 18, 63] {
            for order in 0..36 {
                let around = 1u64 << order;
                for first in around.saturating_sub(9)..around + 9 {
                    for pages in 1..40 {
                        let request = request(first, pages, FlushDepth::Leaves);
                        let last = first + pages - 1;
                        if let Some((low, high)) = flushed(flusher(mamv).request(request)) {
                            assert!(low <= first && last <= high, "{first}+{pages}");
                            assert!(high - low < 1 << mamv);
                            // Not needlessly wide: half the span would not do.
                            let half = (high - low).div_ceil(2);
                            assert!(high == low || (first < low + half && last >= low + half));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn units_without_page_ranges_flush_the_domain() {
        let exact = request(0x1000, 1, FlushDepth::Leaves);
        let coarse = IotlbFlusher::new(Cap::new().with_mamv(18));
        assert_eq!(flushed(coarse.request(exact)), None);
        assert_eq!(
            flushed(flusher(0).request(request(1, 2, FlushDepth::Leaves))),
            None
        );
    }

    #[test]
    fn the_hint_is_given_for_leaves_only() {
        let leaves = flusher(18).request(request(8, 8, FlushDepth::Leaves));
        let walks = flusher(18).request(request(8, 8, FlushDepth::WalkCaches));
        assert_eq!(leaves.high, 0x8000 | 0x40 | 3);
        assert_eq!(walks.high, 0x8000 | 3);
    }

    #[test]
    fn drains_are_asked_for_where_the_unit_has_them() {
        for (drd, dwd, bits) in [(false, false, 0), (true, false, 0x80), (true, true, 0xc0)] {
            let cap = Cap::new().with_drd(drd).with_dwd(dwd);
            let domain = IotlbFlusher::new(cap).domain(HwDomainId::new(0xabc));
            assert_eq!(domain.low, 0x0abc_0022 | bits);
            assert_eq!(IotlbFlusher::new(cap).global().low, 0x12 | bits);
        }
    }

    #[test]
    fn context_and_wait_descriptors_are_what_the_manual_shows() {
        assert_eq!(Descriptor::context_global().low, 0x11);
        let device = Descriptor::context_device(HwDomainId::new(0xabc), 0x00f8);
        assert_eq!(
            device,
            Descriptor {
                low: 0x00f8_0abc_0031,
                high: 0
            }
        );
        let wait = Descriptor::wait(PhysAddr::new(0x7000), 0xdead_beef);
        assert_eq!(
            wait,
            Descriptor {
                low: 0xdead_beef_0000_0065,
                high: 0x7000
            }
        );
    }
}
