//! Addresses that a domain chooses: where they lie, that they come back, and that nothing reserved is given out.

use hv_core::{Iova, Owner, PageSize};
use hv_iommu::{Domain, Free, IovaAlign, Range, SpaceError};
use hv_tests::fake::Fake;

use super::machine::{FAR, Machine, NIC, PLAIN, iovas, pages, vm};

/// What a device of 32 address bits can send.
const BELOW_4G: Iova = Iova::new(u32::MAX as u64);

/// Takes all addresses below 4 GiB that there are for 2 MiB, and for each page length up to 32 one more range.
fn take_and_give_back<O: Owner>(domain: &Domain<O, Fake>) {
    let free = domain.free_pages();
    let mut out: Vec<Range<O, Fake, Free>> = vec![];
    for count in 1..=32 {
        let count = pages(count);
        let range = domain
            .allocate_within(count, IovaAlign::natural(count), BELOW_4G)
            .unwrap();
        out.push(range);
    }
    let large = pages(512);
    while let Ok(range) = domain.allocate_within(large, PageSize::Size2M, BELOW_4G) {
        out.push(range);
    }
    assert!(out.len() > 2000, "{}", out.len());
    let align = PageSize::Size2M.into();
    let full = SpaceError::Full {
        pages: large,
        align,
        limit: BELOW_4G,
    };
    assert_eq!(
        domain.allocate_within(large, align, BELOW_4G).unwrap_err(),
        full
    );
    let above = domain
        .allocate_within(large, PageSize::Size2M, Iova::new(u64::MAX))
        .unwrap();
    assert!(above.span().start() > BELOW_4G);
    out.push(above);

    let window = iovas(0xfee0_0000, 256);
    let taken: u64 = out.iter().map(|range| range.span().pages().get()).sum();
    assert_eq!(domain.free_pages(), free - taken);
    let mut spans: Vec<_> = out.iter().map(Range::span).collect();
    spans.sort_by_key(|span| span.start());
    assert!(spans.windows(2).all(|pair| !pair[0].overlaps(&pair[1])));
    for span in spans {
        let align = IovaAlign::natural(span.pages()).bytes();
        assert!(span.start().as_u64().is_multiple_of(align) && !span.overlaps(&window));
    }
    for range in out {
        range.release().unwrap();
    }
    assert_eq!(domain.free_pages(), free);
    // Exact ranges see what came back, wherever it is kept.
    domain
        .reserve(iovas(0, 0xfee00))
        .unwrap()
        .release()
        .unwrap();
    assert!(domain.reserve(iovas(0xfedf_f000, 2)).is_err());
}

#[test]
fn ranges_by_length_come_and_go_in_a_drivers_domain() {
    let mut machine = Machine::new();
    let driver = machine.driver_with(NIC, PLAIN);
    take_and_give_back(&driver.domain);
}

#[test]
fn ranges_by_length_come_and_go_in_a_guests_domain() {
    let mut machine = Machine::new();
    let guest = machine.guest(FAR, vm(1));
    take_and_give_back(&guest.domain);
}

#[test]
fn a_range_that_was_cut_comes_back_in_pieces() {
    let mut machine = Machine::new();
    let driver = machine.driver_with(NIC, PLAIN);
    let free = driver.domain.free_pages();
    let mut rest = driver
        .domain
        .allocate(pages(512), PageSize::Size2M)
        .unwrap();
    let whole = rest.span();
    let mut pieces: Vec<Range<_, Fake, Free>> = vec![];
    for number in 0..511 {
        let (piece, more) = rest.split_at(pages(1)).expect("two pages at least");
        rest = more;
        // Every second page at once, the others when there are gaps between all of them.
        match number % 2 {
            0 => piece.release().unwrap(),
            _ => pieces.push(piece),
        }
    }
    assert!(driver.domain.reserve(whole).is_err());
    pieces.push(rest);
    for piece in pieces {
        piece.release().unwrap();
    }
    assert_eq!(driver.domain.free_pages(), free);
    assert_eq!(driver.domain.reserve(whole).unwrap().span(), whole);
}
