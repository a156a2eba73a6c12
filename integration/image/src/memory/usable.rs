//! Which physical memory the image may hand out: RAM of the memory map minus what is reserved.

use arrayvec::ArrayVec;
use hv_core::{PageCount, PageSize, PhysAddr, PhysRange};
use thiserror::Error;

/// Most ranges that are kept apart; more than firmware maps and reservations make on known
/// machines.
pub const MAX_RANGES: usize = 64;

/// Most spans that firmware and boot loader may reserve.
pub const MAX_RESERVED: usize = 32;

/// Most spans of RAM, and of what is firmware's, that are told apart from device space.
pub const MAX_SPANS: usize = 128;

/// Whole pages of usable RAM, ascending and disjoint.
pub type UsableRanges = ArrayVec<PhysRange, MAX_RANGES>;

/// The memory map cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemoryMapError {
    /// More separate ranges than are kept.
    #[error("the memory map splits into more than {MAX_RANGES} usable ranges")]
    TooManyRanges,
    /// No range is large enough for the heap.
    #[error("no usable range holds {wanted} bytes for the heap; give the machine more memory")]
    NoRoomForHeap {
        /// The bytes that the heap needs.
        wanted: u64,
    },
}

/// A half-open run of bytes: of RAM, or of something that must be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u64,
    end: u64,
}

impl Span {
    /// `bytes` bytes from `start`, cut off at the end of the 64-bit space.
    pub fn new(start: PhysAddr, bytes: u64) -> Self {
        Self {
            start: start.as_u64(),
            end: start.as_u64().saturating_add(bytes),
        }
    }

    /// The bytes from `start` up to `end`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// Whether the span holds all of `range`.
    pub fn covers(&self, range: PhysRange) -> bool {
        self.start <= range.start().as_u64() && self.end > range.last().as_u64()
    }

    /// Whether the span holds a byte of `range`.
    pub fn overlaps(&self, range: PhysRange) -> bool {
        self.start < self.end
            && self.start <= range.last().as_u64()
            && self.end > range.start().as_u64()
    }

    /// The starts of its GiBs.
    pub fn gibs(&self) -> impl Iterator<Item = PhysAddr> {
        (self.start / GIB..self.end.div_ceil(GIB)).map(|number| PhysAddr::new(number * GIB))
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

const PAGE: u64 = PageSize::Size4K.bytes();
const GIB: u64 = PageSize::Size1G.bytes();

/// The whole GiBs below `limit` that hold a byte of `ram`, ascending; neighbours are one span.
///
/// # Errors
/// [`MemoryMapError::TooManyRanges`].
pub fn whole_gibs(
    ram: &[Span],
    limit: PhysAddr,
) -> Result<ArrayVec<Span, MAX_SPANS>, MemoryMapError> {
    let mut spans = ArrayVec::<Span, MAX_SPANS>::new();
    for number in 0..limit.as_u64() / GIB {
        let gib = Span::between(number * GIB, (number + 1) * GIB);
        let holds_ram =
            |span: &Span| span.start < span.end && span.start < gib.end && span.end > gib.start;
        if !ram.iter().any(holds_ram) {
            continue;
        }
        match spans.last_mut() {
            Some(last) if last.end == gib.start => last.end = gib.end,
            _ => spans
                .try_push(gib)
                .map_err(|_| MemoryMapError::TooManyRanges)?,
        }
    }
    Ok(spans)
}

/// The pages of `ram` that lie below `limit` and touch no span of `reserved`.
///
/// `ram` may be unordered and overlap. A page of which one byte is reserved, or which is not RAM
/// throughout, is out.
///
/// # Errors
/// [`MemoryMapError::TooManyRanges`].
pub fn usable(
    ram: &[Span],
    reserved: &[Span],
    limit: PhysAddr,
) -> Result<UsableRanges, MemoryMapError> {
    let mut ranges = UsableRanges::new();
    let mut from = 0;
    // Each round finds the lowest usable run that starts at or after `from`.
    while let Some(start) = next_start(ram, reserved, from) {
        if start >= limit.as_u64() {
            break;
        }
        let end = run_end(ram, reserved, start).min(limit.as_u64());
        from = end.max(start + PAGE);
        let pages = PageCount::new((end - start) / PAGE);
        let range = pages.and_then(|pages| PhysRange::new(PhysAddr::new(start), pages).ok());
        if let Some(range) = range {
            // INVARIANT: `from` only grows, so ranges are ascending and disjoint.
            ranges
                .try_push(range)
                .map_err(|_| MemoryMapError::TooManyRanges)?;
        }
    }
    Ok(ranges)
}

/// The first page boundary at or after `from` that lies in RAM and in nothing reserved.
fn next_start(ram: &[Span], reserved: &[Span], from: u64) -> Option<u64> {
    let mut best: Option<u64> = None;
    for span in ram {
        let mut start = span.start.max(from).checked_next_multiple_of(PAGE);
        // Every reserved span that is stepped over lies behind `start` from then on, so this ends.
        while let Some(at) = start {
            match reserved
                .iter()
                .find(|r| r.start < at + PAGE && r.end > at && r.start < r.end)
            {
                Some(obstacle) => start = obstacle.end.checked_next_multiple_of(PAGE),
                None => break,
            }
        }
        if let Some(at) = start
            && at < span.end
            && best.is_none_or(|best| at < best)
        {
            best = Some(at);
        }
    }
    best
}

/// Where the usable run from `start` ends: at the end of RAM or before the next reserved span.
fn run_end(ram: &[Span], reserved: &[Span], start: u64) -> u64 {
    let mut end = start;
    // Overlapping or adjoining RAM spans make one run; each round passes at least one more span.
    while let Some(span) = ram.iter().find(|span| span.start <= end && span.end > end) {
        end = span.end;
    }
    let obstacle = reserved
        .iter()
        .filter(|r| r.start >= start && r.start < r.end)
        .map(|r| r.start)
        .min();
    let end = obstacle.map_or(end, |obstacle| obstacle.min(end));
    end - end % PAGE
}

/// Cuts `pages` pages out of the top of the largest range.
///
/// # Errors
/// [`MemoryMapError::NoRoomForHeap`] when no range holds that many pages and one more.
pub fn carve(ranges: &mut UsableRanges, pages: PageCount) -> Result<PhysRange, MemoryMapError> {
    let error = MemoryMapError::NoRoomForHeap {
        wanted: pages.bytes(),
    };
    let largest = ranges
        .iter_mut()
        .max_by_key(|range| range.pages())
        .ok_or(error)?;
    let keep = largest
        .pages()
        .get()
        .checked_sub(pages.get())
        .and_then(PageCount::new)
        .ok_or(error)?;
    let (rest, carved) = largest.split_at(keep).ok_or(error)?;
    *largest = rest;
    Ok(carved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span { start, end }
    }

    #[test]
    fn every_gib_with_ram_is_told_however_much_there_is() {
        let limit = PhysAddr::new(4 << 40);
        // Two TiB in a row, as no list of single GiBs would hold, and a byte far above them.
        let ram = [
            span(GIB, 2049 * GIB),
            span(3000 * GIB + 5, 3000 * GIB + 6),
            span(5 << 40, 6 << 40),
        ];
        let found = whole_gibs(&ram, limit).unwrap();
        assert_eq!(
            found[..],
            [span(GIB, 2049 * GIB), span(3000 * GIB, 3001 * GIB)]
        );
        assert_eq!(found[0].gibs().count(), 2048);
        assert_eq!(found[1].gibs().next(), Some(PhysAddr::new(3000 * GIB)));
        // A tree of two MiB may lie across the end of one.
        let across: Vec<_> = span(3 * GIB - 1, 3 * GIB + 1).gibs().collect();
        assert_eq!(across, [PhysAddr::new(2 * GIB), PhysAddr::new(3 * GIB)]);
        let scattered: Vec<Span> = (0..MAX_SPANS as u64 + 1)
            .map(|number| span(2 * number * GIB, 2 * number * GIB + 1))
            .collect();
        assert_eq!(
            whole_gibs(&scattered, limit),
            Err(MemoryMapError::TooManyRanges)
        );
    }

    fn ends(ranges: &UsableRanges) -> Vec<(u64, u64)> {
        ranges
            .iter()
            .map(|range| (range.start().as_u64(), range.last().as_u64() + 1))
            .collect()
    }

    const TOP: PhysAddr = PhysAddr::new(1 << 39);

    #[test]
    fn reserved_spans_cut_ram_at_page_bounds() {
        let ram = [span(0, 0x9_fc00), span(0x10_0000, 0x1000_0000)];
        let reserved = [
            span(0, 0x10_0000),
            span(0x20_0000, 0x28_0123),
            span(0xfff_f000, 0xfff_f001),
        ];
        let ranges = usable(&ram, &reserved, TOP).unwrap();
        assert_eq!(
            ends(&ranges),
            [(0x10_0000, 0x20_0000), (0x28_1000, 0xfff_f000)]
        );
    }

    #[test]
    fn overlapping_unordered_and_ragged_ram_is_merged() {
        let ram = [
            span(0x5000, 0x9000),
            span(0x1001, 0x5800),
            span(0x9000, 0xa800),
        ];
        let ranges = usable(&ram, &[], TOP).unwrap();
        assert_eq!(ends(&ranges), [(0x2000, 0xa000)]);
    }

    #[test]
    fn damaged_spans_are_harmless() {
        let ram = [
            span(u64::MAX - 0x10, u64::MAX),
            span(0x4000, 0x3000),
            span(0x1000, 0x1800),
        ];
        assert_eq!(usable(&ram, &[span(7, 7)], TOP).unwrap().len(), 0);
        assert_eq!(
            usable(&[span(0, u64::MAX)], &[span(0, u64::MAX)], TOP)
                .unwrap()
                .len(),
            0
        );
        let all = usable(&[span(0, u64::MAX)], &[], TOP).unwrap();
        assert_eq!(ends(&all), [(0, 1 << 39)]);
    }

    #[test]
    fn too_many_ranges_are_an_error() {
        let reserved: Vec<Span> = (0..100).map(|i| span(i * 0x2000, i * 0x2000 + 1)).collect();
        assert_eq!(
            usable(&[span(0, 1 << 30)], &reserved, TOP),
            Err(MemoryMapError::TooManyRanges)
        );
    }

    #[test]
    fn the_heap_comes_from_the_largest_range() {
        let ram = [span(0x1000, 0x3000), span(0x10_0000, 0x20_0000)];
        let mut ranges = usable(&ram, &[], TOP).unwrap();
        let heap = carve(&mut ranges, PageCount::new(16).unwrap()).unwrap();
        assert_eq!(heap.start(), PhysAddr::new(0x1f_0000));
        assert_eq!(ends(&ranges), [(0x1000, 0x3000), (0x10_0000, 0x1f_0000)]);
        assert!(carve(&mut ranges, PageCount::new(0x1000).unwrap()).is_err());
    }
}
