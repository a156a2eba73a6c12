//! What a random life does with shared ranges: single pages in and out, by compare-and-swap.

use hv_core::{Iova, IovaRange, Perms};
use hv_iommu::{RedeemRefusal, SharedError};

use super::granule::Lives;
use super::space::{Done, Household, Space};
use super::world::Memories;
use crate::rng::Rng;
use crate::rule::Rule;

impl<O: Household, B: Lives> Space<O, B> {
    /// Maps some pages of a shared range, takes them out again, and gives the range back. What a failing
    /// unit leaves there stays until the domain ends.
    pub(crate) fn share(&mut self, memories: &Memories, choice: [u64; 3]) -> Done {
        let (rig, mut rng) = (&memories.rig, Rng::new(choice[0]));
        let start = Iova::new(rng.below(512) * B::smallest().bytes());
        let pages = B::pages(1 + rng.below(8));
        let span = IovaRange::new(start, pages).ok();
        let Some(free) = span.and_then(|span| self.domain.reserve(span).ok()) else {
            return Done::Fine;
        };
        let Ok(shared) = free.share() else {
            return Done::Fine;
        };
        let mut inside = Vec::new();
        let one = B::pages(1);
        let firsts = (0..pages.get()).step_by(B::PAGE as usize);
        for page in firsts.filter_map(|page| shared.span().page(page)) {
            let frames = O::frames(memories, self.owner, one, B::smallest(), rng.next());
            let (Some(frames), Ok(range)) = (frames, IovaRange::new(page, one)) else {
                continue;
            };
            let phys = frames.range();
            rig.mapping(self.tenant, range, phys, Perms::ReadWrite);
            match shared.map(page, frames, Perms::ReadWrite) {
                Ok(()) => {
                    rig.mapped(self.tenant, range, Perms::ReadWrite);
                    inside.push((range, phys));
                }
                Err(error) => {
                    let reason = error.reason;
                    if let Some(frames) = error.frames {
                        rig.returned(self.tenant, range);
                        O::give_back(memories, frames);
                    }
                    match reason {
                        SharedError::NotVisible(error) => {
                            self.forgot = true;
                            return Done::Unit(error);
                        }
                        // No frame for a table.
                        SharedError::Refused(_) => {}
                        other => {
                            rig.broken(Rule::WrongAnswer, format!("{page} was not shared: {other}"))
                        }
                    }
                }
            }
        }
        for (range, phys) in inside {
            rig.unmapping(self.tenant, range);
            let pending = match shared.unmap(range.start(), B::smallest()) {
                Ok(pending) => pending,
                Err(error) => {
                    rig.broken(
                        Rule::WrongAnswer,
                        format!("{range} is mapped and not unmapped: {error}"),
                    );
                    return Done::Fine;
                }
            };
            match pending.flush() {
                Ok(frames) => {
                    rig.expect_frames(self.tenant, range, frames.range());
                    if frames.range() != phys {
                        rig.broken(
                            Rule::LostFrames,
                            format!("{range} gave {} back", frames.range()),
                        );
                    }
                    rig.returned(self.tenant, range);
                    O::give_back(memories, frames);
                }
                Err((_, RedeemRefusal::Flush(error))) => {
                    self.forgot = true;
                    return Done::Unit(error);
                }
                Err((_, other)) => {
                    rig.broken(Rule::WrongAnswer, format!("{range} stays closed: {other}"));
                    return Done::Fine;
                }
            }
        }
        match shared.unshare() {
            Ok(free) => self.release(memories, free),
            Err(shared) => rig.broken(
                Rule::Leak,
                format!("{shared:?} does not become exclusive again"),
            ),
        }
        Done::Fine
    }
}
