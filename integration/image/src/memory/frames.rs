//! The frame allocator: physically contiguous, aligned runs of 4 KiB frames out of the usable RAM.
//!
//! One bitmap under one spin lock. It favours being obviously right over speed; map paths that want
//! per-CPU caches put them in front.

use hv_core::platform::OutOfFrames;
use hv_core::{PageCount, PageSize, PhysAddr, PhysRange};
use spin::Mutex;
use thiserror::Error;

use super::bitmap::Bitmap;
use super::usable::UsableRanges;

/// The bitmap for the frames of the machine could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no heap left for a bitmap of {frames} frames")]
pub struct NoBitmap {
    /// Frames from the lowest to the highest usable address.
    pub frames: usize,
}

/// Frames were given back that this allocator has not handed out. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("frames {range} were given back, but {frame} is not handed out")]
pub struct NotAllocated {
    /// The range that was given back.
    pub range: PhysRange,
    /// The first frame of it that is not out.
    pub frame: PhysAddr,
}

/// How many frames there are and how many are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames that this allocator manages.
    pub total: usize,
    /// Frames that are handed out now.
    pub allocated: usize,
}

/// Hands out frames. All methods may be called from any CPU.
pub struct FrameAllocator {
    map: Mutex<Bitmap>,
    /// Frame number (address / 4 KiB) of bit 0.
    first_frame: u64,
    total: usize,
}

const FRAME_SHIFT: u32 = PageSize::Size4K.shift();

fn frame_number(address: PhysAddr) -> u64 {
    address.as_u64() >> FRAME_SHIFT
}

impl FrameAllocator {
    /// An allocator over `ranges`.
    ///
    /// # Errors
    /// [`NoBitmap`] when the heap has no room for one bit per frame.
    pub fn new(ranges: &UsableRanges) -> Result<Self, NoBitmap> {
        let first_frame = ranges
            .first()
            .map_or(0, |range| frame_number(range.start()));
        let last_frame = ranges
            .last()
            .map_or(0, |range| frame_number(range.last()) + 1);
        let frames = (last_frame - first_frame) as usize;
        let mut map = Bitmap::all_used(frames).map_err(|_| NoBitmap { frames })?;
        for range in ranges {
            let start = (frame_number(range.start()) - first_frame) as usize;
            // Usable ranges are disjoint and inside the bitmap, so this cannot be refused.
            let _ = map.release(start, range.pages().get() as usize);
        }
        Ok(Self {
            total: map.unused(),
            map: Mutex::new(map),
            first_frame,
        })
    }

    /// Takes a run of `pages` frames whose start is a multiple of `align`. Its content is whatever
    /// was left there.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no such run; nothing is taken then.
    pub fn take(&self, pages: PageCount, align: PageSize) -> Result<PhysRange, OutOfFrames> {
        let error = OutOfFrames { pages, align };
        let align_frames = align.pages();
        // Bit i is aligned when first_frame + i is: i = -first_frame modulo the alignment.
        let offset = (align_frames - self.first_frame % align_frames) % align_frames;
        let count = usize::try_from(pages.get()).map_err(|_| error)?;
        let index = self
            .map
            .lock()
            .take(count, align_frames as usize, offset as usize)
            .ok_or(error)?;
        let start = PhysAddr::new((self.first_frame + index as u64) << FRAME_SHIFT);
        PhysRange::new(start, pages).map_err(|_| error)
    }

    /// Gives frames back, in whatever pieces.
    ///
    /// # Errors
    /// [`NotAllocated`] when one of them is not out; nothing is changed then.
    pub fn give_back(&self, range: PhysRange) -> Result<(), NotAllocated> {
        let first = frame_number(range.start());
        let not_here = NotAllocated {
            range,
            frame: range.start(),
        };
        let start = first.checked_sub(self.first_frame).ok_or(not_here)? as usize;
        let count = usize::try_from(range.pages().get()).map_err(|_| not_here)?;
        self.map
            .lock()
            .release(start, count)
            .map_err(|index| NotAllocated {
                range,
                frame: PhysAddr::new((self.first_frame + index as u64) << FRAME_SHIFT),
            })
    }

    /// The counts at this moment.
    pub fn counts(&self) -> FrameCounts {
        FrameCounts {
            total: self.total,
            allocated: self.total - self.map.lock().unused(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), PageCount::new(pages).unwrap()).unwrap()
    }

    fn allocator(ranges: &[PhysRange]) -> FrameAllocator {
        FrameAllocator::new(&ranges.iter().copied().collect()).unwrap()
    }

    #[test]
    fn runs_are_aligned_and_never_in_holes() {
        let frames = allocator(&[range(0x10_1000, 200), range(0x28_0000, 2048)]);
        let large = frames
            .take(PageCount::of(PageSize::Size2M), PageSize::Size2M)
            .unwrap();
        assert_eq!(large.start(), PhysAddr::new(0x40_0000));
        let long = frames
            .take(PageCount::new(300).unwrap(), PageSize::Size4K)
            .unwrap();
        assert_eq!(long.start(), PhysAddr::new(0x28_0000));
        assert!(
            frames
                .take(PageCount::of(PageSize::Size1G), PageSize::Size1G)
                .is_err()
        );
    }

    #[test]
    fn counts_return_to_where_they_were() {
        let frames = allocator(&[range(0x10_0000, 64)]);
        let before = frames.counts();
        assert_eq!(
            before,
            FrameCounts {
                total: 64,
                allocated: 0
            }
        );
        let run = frames
            .take(PageCount::new(8).unwrap(), PageSize::Size4K)
            .unwrap();
        assert_eq!(frames.counts().allocated, 8);
        let (left, right) = run.split_at(PageCount::ONE).unwrap();
        frames.give_back(right).unwrap();
        frames.give_back(left).unwrap();
        assert_eq!(frames.counts(), before);
    }

    #[test]
    fn what_is_not_out_cannot_come_back() {
        let frames = allocator(&[range(0x10_0000, 4), range(0x20_0000, 4)]);
        let run = frames.take(PageCount::ONE, PageSize::Size4K).unwrap();
        frames.give_back(run).unwrap();
        assert_eq!(
            frames.give_back(run),
            Err(NotAllocated {
                range: run,
                frame: run.start()
            })
        );
        assert!(frames.give_back(range(0x1000, 1)).is_err());
        assert!(frames.give_back(range(0x24_0000, 1)).is_err());
    }
}
