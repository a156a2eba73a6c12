//! Random calls against a model that knows of each page whether it is free.

use hv_core::{Iova, IovaRange, PageCount};
use hv_iommu::SpaceError;
use hv_iommu::iova::{IovaAlign, IovaAllocator};
use proptest::prelude::*;

use super::{CPUS, Cpu, TOP, choose_fault, first_page, pages, range};

/// Pages of the space.
const PAGES: u64 = 700;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Free,
    Taken,
    Reserved,
}

struct Model {
    pages: Vec<Page>,
    out: Vec<IovaRange>,
}

impl Model {
    fn new(reserved: &[IovaRange]) -> Self {
        let is_reserved = |page| {
            let page = range(page, 1);
            reserved.iter().any(|reserved| reserved.overlaps(&page))
        };
        let page = |page| match is_reserved(page) {
            true => Page::Reserved,
            false => Page::Free,
        };
        Self {
            pages: (0..PAGES).map(page).collect(),
            out: vec![],
        }
    }

    fn free(&self) -> u64 {
        let free = self.pages.iter().filter(|page| **page == Page::Free);
        free.count() as u64
    }

    fn all_are(&self, first: u64, count: u64, what: Page) -> bool {
        let pages = self.pages.get(first as usize..(first + count) as usize);
        pages.is_some_and(|pages| pages.iter().all(|page| *page == what))
    }

    /// The highest place, by looking at all of them.
    fn highest(&self, count: u64, align: IovaAlign, limit: Iova) -> Option<u64> {
        let step = 1 << align.order();
        let below = PAGES.min(
            limit
                .as_u64()
                .checked_add(1)
                .map_or(u64::MAX, |end| end >> 12),
        );
        let starts = (1..below.div_ceil(step)).rev().map(|number| number * step);
        let fits = |first: &u64| first + count <= below && self.all_are(*first, count, Page::Free);
        { starts }.find(fits)
    }

    fn set(&mut self, range: &IovaRange, from: Page, to: Page) {
        let first = first_page(range) as usize;
        for page in &mut self.pages[first..first + range.pages().get() as usize] {
            assert_eq!(*page, from, "{range} overlaps");
            *page = to;
        }
    }

    fn take(&mut self, range: IovaRange) {
        self.set(&range, Page::Free, Page::Taken);
        self.out.push(range);
    }

    fn give(&mut self, range: IovaRange) {
        self.set(&range, Page::Taken, Page::Free);
    }
}

#[derive(Clone, Debug)]
enum Call {
    Alloc {
        pages: u64,
        align: Option<u64>,
        limit: u64,
    },
    Reserve(u64, u64),
    Release(usize),
    /// Gives the first pages back, and keeps the rest.
    ReleasePart(usize, u64),
}

fn call() -> impl Strategy<Value = Call> {
    let lengths =
        prop_oneof![4 => 1..=4_u64, 2 => (0..6_u32).prop_map(|order| 1 << order), 1 => 1..200_u64];
    let align = prop_oneof![3 => Just(None), 1 => (0..9_u32).prop_map(|order| Some(1 << order))];
    let limit = prop_oneof![3 => Just(u64::MAX), 2 => 0..PAGES << 12];
    prop_oneof![
        6 => (lengths, align, limit).prop_map(|(pages, align, limit)| Call::Alloc { pages, align, limit }),
        1 => (0..PAGES, 1..20_u64).prop_map(|(first, count)| Call::Reserve(first, count)),
        6 => any::<usize>().prop_map(Call::Release),
        1 => (any::<usize>(), 1..8_u64).prop_map(|(index, count)| Call::ReleasePart(index, count)),
    ]
}

fn check(reserved: &[IovaRange], cpus: usize, calls: Vec<(u32, Call)>) {
    let space = IovaAllocator::new(range(0, PAGES), reserved, cpus).unwrap();
    let mut model = Model::new(reserved);
    let all = model.free();
    for (cpu, call) in calls {
        let cpu = Cpu(cpu);
        match call {
            Call::Alloc {
                pages: count,
                align,
                limit,
            } => {
                let align = align.and_then(PageCount::new).unwrap_or(pages(count));
                let (align, limit) = (IovaAlign::natural(align), Iova::new(limit));
                let expected = model.highest(count, align, limit);
                match space.alloc(&cpu, pages(count), align, limit) {
                    Ok(taken) => {
                        assert!(expected.is_some());
                        assert!(taken.start().as_u64().is_multiple_of(align.bytes()));
                        assert!(taken.last() <= limit && first_page(&taken) != 0);
                        assert_eq!(taken.pages().get(), count);
                        if cpus == 0 {
                            assert_eq!(Some(first_page(&taken)), expected);
                        }
                        model.take(taken);
                    }
                    Err(error) => {
                        let full = SpaceError::Full {
                            pages: pages(count),
                            align,
                            limit,
                        };
                        assert_eq!((error, expected), (full, None));
                    }
                }
            }
            Call::Reserve(first, count) => {
                let wanted = range(first, count);
                let free = model.all_are(first, count, Page::Free);
                match space.reserve(wanted) {
                    Ok(taken) => {
                        assert_eq!((taken, free), (wanted, true));
                        model.take(taken);
                    }
                    Err(error) => {
                        assert_eq!((error, free), (SpaceError::NotFree { wanted }, false));
                    }
                }
            }
            Call::Release(index) if !model.out.is_empty() => {
                let back = model.out.swap_remove(index % model.out.len());
                space.release(&cpu, back).unwrap();
                model.give(back);
            }
            Call::ReleasePart(index, count) if !model.out.is_empty() => {
                let index = index % model.out.len();
                if let Some((part, rest)) = model.out[index].split_at(pages(count)) {
                    space.release(&cpu, part).unwrap();
                    model.give(part);
                    model.out[index] = rest;
                }
            }
            Call::Release(_) | Call::ReleasePart(..) => {}
        }
        assert_eq!(space.free_pages(), model.free());
    }
    for back in std::mem::take(&mut model.out) {
        space.release(&Cpu(0), back).unwrap();
        model.give(back);
    }
    assert_eq!((space.free_pages(), model.free()), (all, all));
    // All of it is one range again between what is reserved.
    let mut runs: Vec<(u64, u64)> = vec![];
    for page in (0..PAGES).filter(|page| model.pages[*page as usize] == Page::Free) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page => *count += 1,
            _ => runs.push((page, 1)),
        }
    }
    for (first, count) in runs {
        space.reserve(range(first, count)).unwrap();
    }
    assert_eq!(space.free_pages(), 0);
    let none = space.alloc(&Cpu(0), PageCount::ONE, IovaAlign::PAGE, TOP);
    assert!(none.is_err());
}

fn reserved() -> impl Strategy<Value = Vec<IovaRange>> {
    let one = (0..PAGES, 1..60_u64).prop_map(|(first, count)| range(first, count));
    prop::collection::vec(one, 0..4)
}

fn calls() -> impl Strategy<Value = Vec<(u32, Call)>> {
    prop::collection::vec((0..CPUS as u32, call()), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The free ranges alone: the very place that a search of all places finds.
    #[test]
    fn free_ranges_are_the_models(reserved in reserved(), calls in calls()) {
        choose_fault();
        check(&reserved, 0, calls);
    }

    /// With caches: no page twice, none lost, full only when nothing would do.
    #[test]
    fn caches_change_nothing_but_the_place(reserved in reserved(), calls in calls()) {
        choose_fault();
        check(&reserved, CPUS, calls);
    }
}

/// iommufd's `area_auto_iova`: by default aligned to the largest power of two that divides the length, and never in a
/// reserved range.
#[test]
fn by_length_as_iommufd_does() {
    let whole = range(0, 1 << 20);
    let reserved = [range(0xfee00, 0x100), range(1, 7), range(0x8_0001, 3)];
    let space = IovaAllocator::new(whole, &reserved, CPUS).unwrap();
    let mut out: Vec<IovaRange> = vec![];
    for round in 0..8 {
        for bit in 0..12 {
            let count = pages((1 << bit) * (2 * round + 1));
            let align = IovaAlign::natural(count);
            let taken = space.alloc(&Cpu(0), count, align, TOP).unwrap();
            let divides = 1 << count.get().trailing_zeros();
            assert!(first_page(&taken).is_multiple_of(divides));
            assert!(
                !reserved
                    .iter()
                    .chain(&out)
                    .any(|other| other.overlaps(&taken))
            );
            out.push(taken);
        }
    }
    let sum: u64 = out.iter().map(|taken| taken.pages().get()).sum();
    assert_eq!(space.free_pages(), (1 << 20) - 0x100 - 7 - 3 - sum);
}

/// A device with few address bits finds low addresses, since others were given high ones, and those that a wide device
/// gave back are not what it gets from a cache.
#[test]
fn low_addresses_are_left_for_devices_that_need_them() {
    let space = IovaAllocator::new(range(0, 1 << 21), &[], CPUS).unwrap();
    let below_4g = Iova::new(u64::from(u32::MAX));
    let wide: Vec<_> = (0..1000)
        .map(|_| {
            space
                .alloc(&Cpu(0), pages(2), IovaAlign::PAGE, TOP)
                .unwrap()
        })
        .collect();
    assert!(wide.iter().all(|wide| wide.start() > below_4g));
    for wide in wide {
        space.release(&Cpu(0), wide).unwrap();
    }
    let narrow = space.alloc(&Cpu(0), pages(2), IovaAlign::PAGE, below_4g);
    let narrow = narrow.unwrap();
    assert!(narrow.last() <= below_4g);
    space.release(&Cpu(0), narrow).unwrap();
    assert_eq!(
        space.alloc(&Cpu(0), pages(2), IovaAlign::PAGE, below_4g),
        Ok(narrow),
        "from the cache"
    );
}

#[test]
fn lengths_are_rounded_up_as_far_as_caches_go() {
    let rounded =
        [1, 3, 8, 9, 17, 32, 33].map(|count| IovaAllocator::cached_length(pages(count)).get());
    assert_eq!(rounded, [1, 4, 8, 16, 32, 32, 33]);
}
