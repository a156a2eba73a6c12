//! Streams of groups that are cut off: their faults are recorded no more, and what their devices keep is of no use.
//!
//! Entries change under their owners' hands here, so word by word and by comparing, and only to less.

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{HwDomainId, UnitError};

use super::first_stage::forget_context;
use super::{Enabled, Stream, Unit};
use crate::StreamId;
use crate::spec::command::{Command, Depth};
use crate::spec::stream_entry::{Config, StreamTableEntry, is_asking, without_records};

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
            let [from, ..] = before;
            let asks = is_asking(&before) && !Fault::QuietKeepsAsking.is_on();
            let all = match (Config::of(&before), &self.state.contexts) {
                // Behind a device that may ask, the gate: nothing passes one that aborts, nor is any of it recorded.
                (Some(Config::First | Config::Second), _) if asks => None,
                (Some(Config::First), Some(contexts)) if !self.info.always_stalls() => {
                    return self.quiet_first(&reach, contexts, stream, &entry, not_bound);
                }
                // What its own first stage has recorded is the user's to say, and a malformed one is recorded in any case:
                // only an entry that aborts is quiet.
                (Some(Config::Nested), _) if Fault::QuietSkipsNested.is_on() => return Ok(()),
                // What stands still is recorded whatever an entry says of records.
                (Some(Config::Nested | Config::First | Config::Second), _)
                    if self.info.always_stalls() || Config::of(&before) != Some(Config::Second) =>
                {
                    None
                }
                _ => Some(without_records(&before).ok_or(not_bound)?),
            };
            let Some(quiet) = all else {
                let [to, ..] = StreamTableEntry::ABORT.words();
                if entry.replace(&reach, 0, from, to) {
                    return Ok(());
                }
                continue;
            };
            let mut words = before.into_iter().zip(quiet).enumerate();
            let replaced =
                words.all(|(word, (from, to))| from == to || entry.replace(&reach, word, from, to));
            // Whose owner changed it meanwhile is looked at as it is now.
            if replaced {
                return Ok(());
            }
        }
    }

    /// Has the entry of a stream read anew. See [`hv_iommu::Backend::reread`].
    pub(crate) fn reread(&self, platform: &P, stream: StreamId) -> Result<(), UnitError> {
        let context = self.queue_with(platform);
        let entry = Command::config_stream(stream, Depth::Leaves);
        let forget = [entry, forget_context(stream)];
        // Nobody but a first stage of ours has a descriptor that we write.
        let count = 1 + usize::from(self.state.contexts.is_some());
        let count = match Fault::RereadForgetsNothing.is_on() {
            true => 0,
            false => count,
        };
        let forget = forget.get(..count).unwrap_or_default();
        self.state.commands.submit(&context, forget)?;
        Ok(())
    }
}
