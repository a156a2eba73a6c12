//! Streams of groups that are cut off: their entries abort.
//!
//! Nothing else is quiet. The bits that keep faults from being recorded are for translation faults alone; a PASID that
//! nobody bound, a translated request where there should be none, or a request for a translation is recorded whatever
//! they say (IHI 0070, 5.5), and a device that is cut off because it went astray may send any of these. Of a stream whose
//! entry aborts nothing is recorded that takes a look at the entry (5.2, Config). What a unit refuses before it looks is
//! recorded all the same: transactions of kinds that it does not take (F_UUT; 3.12, 7.3.2, 7.3.22). No entry stops those, nor
//! that it is read anew, which is not asked for on their account.
//!
//! Entries change under their owners' hands here, so by comparing, and only to less.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{HwDomainId, UnitError};

use super::{Enabled, Stream, Unit};
use crate::StreamId;
use crate::spec::command::{Command, Depth};
use crate::spec::stream_entry::{Config, StreamTableEntry, is_asking};

impl<P: Platform> Unit<P, Enabled> {
    /// Stops faults of a bound stream from being recorded. See [`hv_iommu::Backend::quiet`].
    pub(crate) fn quiet(&self, platform: &P, stream: Stream) -> Result<(), UnitError> {
        let reach = self.reach(platform);
        let not_bound = UnitError::NotBound {
            requester: stream.requester,
            domain: HwDomainId::new(0),
        };
        let entry = self
            .state
            .streams
            .entry(&reach, stream.id)?
            .ok_or(not_bound)?;
        loop {
            let before = entry.read();
            match Config::of(&before) {
                None => return Err(not_bound),
                Some(Config::Abort) if Fault::QuietOnceIsQuiet.is_on() => return Err(not_bound),
                // It was made quiet before. Whether the unit has read that is the caller's to see to.
                Some(Config::Abort) => return Ok(()),
                Some(Config::Nested) if Fault::QuietSkipsNested.is_on() => return Ok(()),
                Some(_) if is_asking(&before) && Fault::QuietKeepsAsking.is_on() => return Ok(()),
                Some(_) => {}
            }
            let ([from, ..], [to, ..]) = (before, StreamTableEntry::ABORT.words());
            // Whose owner changed it meanwhile is looked at as it is now.
            if entry.replace(&reach, 0, from, to) {
                return Ok(());
            }
        }
    }

    /// Has the entry of a stream read anew. See [`hv_iommu::Backend::reread`].
    pub(crate) fn reread(&self, platform: &P, stream: StreamId) -> Result<(), UnitError> {
        let context = self.queue_with(platform);
        let entry = [Command::config_stream(stream, Depth::Leaves)];
        let forget = match Fault::RereadForgetsNothing.is_on() {
            true => &[],
            false => &entry[..],
        };
        self.state.commands.submit(&context, forget)?;
        Ok(())
    }
}
