//! What a random life asks about what devices have written, of domains that note it.

use hv_core::{Access, Iova, IovaRange, PageCount, PageSize, PciAddress};
use hv_iommu::{DirtyBitmap, DirtyError, FlushError, Level, ReclaimError};

use super::granule::Lives;
use super::space::{Done, Household, Space};
use super::world::World;
use crate::request::Outcome;
use crate::rig::Rig;
use crate::rule::Rule;

impl<B: Lives> World<B> {
    /// A device writes, and the page that it wrote is told.
    pub(crate) fn written(&mut self, choice: [u64; 3]) {
        let Some((members, tenant)) = self.attached(choice[0]) else {
            return;
        };
        let rig = self.rig().clone();
        let done = match (self.kernel.get(&tenant.0), self.guest.get(&tenant.0)) {
            (Some(space), _) => space.written(&rig, &members, choice),
            (_, Some(space)) => space.written(&rig, &members, choice),
            _ => Done::Fine,
        };
        if let Done::Unit(FlushError::Unit(error)) = done {
            self.failed(error);
        }
    }
}

impl<O: Household, B: Lives> Space<O, B> {
    /// Forgets what was written in a page of the tables, has devices write in it, and looks: all of the page is told,
    /// however large it is.
    fn written(&self, rig: &Rig, members: &[PciAddress], choice: [u64; 3]) -> Done {
        let (Some(tracking), Some((at, perms))) = (self.domain.dirty(), self.some_mapped(choice))
        else {
            return Done::Fine;
        };
        let found = self.domain.translate(at);
        let size = found.and_then(|found| Level::size::<B::Format>(found.level));
        let (Some(size), true) = (size, perms.writable()) else {
            return Done::Fine;
        };
        let Ok(page) = IovaRange::new(at.align_down(size), PageCount::of(size)) else {
            return Done::Fine;
        };
        let mut words = vec![0; page.pages().get().div_ceil(64) as usize];
        let Ok(mut bitmap) = DirtyBitmap::new(page, &mut words) else {
            return Done::Fine;
        };
        if let Err(error) = tracking.read_and_clear(&mut bitmap) {
            return untold(rig, error);
        }
        words.fill(0);
        let inside =
            choice[2] % page.pages().get() * PageSize::Size4K.bytes() + choice[2] % 512 * 8;
        let to = Iova::new(page.start().as_u64() + inside);
        let mut wrote = false;
        for member in members {
            let sent = rig.access(*member, to, Access::Write);
            wrote |= matches!(sent, Outcome::Reached { .. });
        }
        let Ok(mut bitmap) = DirtyBitmap::new(page, &mut words) else {
            return Done::Fine;
        };
        if let Err(error) = tracking.read(&mut bitmap) {
            return untold(rig, error);
        }
        if wrote && bitmap.count() != page.pages().get() {
            let what = format!(
                "a device wrote at {to}, in a page of {size}: {} of {page} is told",
                bitmap.count()
            );
            rig.broken(Rule::WrongAnswer, what);
        }
        Done::Fine
    }
}

/// Why it is not known what was written.
fn untold(rig: &Rig, error: DirtyError) -> Done {
    match error {
        DirtyError::Flush { reason, .. }
        | DirtyError::Merged {
            reason: ReclaimError::Flush(reason),
        } => Done::Unit(reason),
        other => {
            let what = format!("one whole page, and nobody else runs: {other}");
            rig.broken(Rule::WrongAnswer, what);
            Done::Fine
        }
    }
}
