//! Streams of one unit that are on users' first stages: those whose context descriptors a user may have forgotten.
//!
//! A user names streams of its own, which are none of ours, so its CFGI_CD becomes a CFGI_CD_ALL for each stream of its
//! domain (IHI 0070, 4.3.3: all streams whose entries lead to a descriptor may have it cached).

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_iommu::{FlushTicket, UnitError};
use spin::mutex::SpinMutex;

use super::{Enabled, Unit};
use crate::command_queue::BATCH_MAX;
use crate::invalidate::Batch;
use crate::spec::command::Command;
use crate::{StreamId, Vmid};

/// How many streams of a user are named one by one, in as many batches as that takes: as many functions as a bus has. For
/// users of more, all configuration is forgotten, that of everybody behind the unit.
const NAMED: usize = 256;

/// The streams, with the ids of their domains.
///
/// # Invariants
/// From before an entry with a user's first stage goes live until its taking down was asked of the unit, its stream is
/// here. Each stream is here once at most. They are in order: by their domains, and by their numbers.
pub(super) struct NestedStreams(SpinMutex<Vec<(Vmid, StreamId)>>);

/// Streams of a domain, some at a time.
struct Part {
    streams: ArrayVec<StreamId, BATCH_MAX>,
    /// How many of them there are behind these.
    left: usize,
}

impl NestedStreams {
    pub(super) const fn new() -> Self {
        // INVARIANT: no stream is here.
        Self(SpinMutex::new(Vec::new()))
    }

    /// A stream's entry is about to lead to a user's contexts.
    ///
    /// Whoever looks before this does not find the stream: what the user had written until then was there before the lock
    /// was taken here, and so before the entry, and what reads it, is.
    pub(super) fn enter(&self, vmid: Vmid, stream: StreamId) -> Result<(), OutOfMemory> {
        let mut streams = self.0.lock();
        let bytes = size_of::<(Vmid, StreamId)>();
        streams.try_reserve(1).map_err(|_| OutOfMemory { bytes })?;
        // INVARIANT: one that was left behind, by an entry whose taking down was not asked for, is replaced. The place is
        // the one that keeps the order.
        streams.retain(|(_, there)| *there != stream);
        let new = (vmid, stream);
        let place = streams.partition_point(|there| *there < new);
        streams.insert(place, new);
        Ok(())
    }

    /// It does no longer, whether or not it did, and the unit was asked to forget it: a command that is given later is
    /// carried out later.
    pub(super) fn leave(&self, vmid: Vmid, stream: StreamId) {
        let mut streams = self.0.lock();
        streams.retain(|there| *there != (vmid, stream));
    }

    /// The streams of a domain behind `last`, or from the first one on: `most` of them at the most.
    fn behind(&self, vmid: Vmid, last: Option<StreamId>, most: usize) -> Part {
        let streams = self.0.lock();
        let before = |there: &(Vmid, StreamId)| match last {
            None => there.0 < vmid,
            Some(last) => *there <= (vmid, last),
        };
        let from = streams.partition_point(before);
        let end = streams.partition_point(|(of, _)| *of <= vmid);
        let ours = streams.get(from..end).unwrap_or(&[]);
        let part = ours.iter().map(|(_, stream)| *stream);
        let streams: ArrayVec<_, BATCH_MAX> = part.take(most.min(BATCH_MAX)).collect();
        let left = ours.len() - streams.len();
        Part { streams, left }
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Has the context descriptors forgotten of all streams that are on first stages of a user's domain.
    ///
    /// Batch by batch, each with a sync behind it: the last ticket stands for all. A stream that enters meanwhile need not be
    /// named, see [`NestedStreams::enter`].
    pub(crate) fn forget_users_contexts(
        &self,
        platform: &P,
        vmid: Vmid,
    ) -> Result<FlushTicket, UnitError> {
        let (context, commands) = (self.queue_with(platform), &self.state.commands);
        if Fault::UserContextsKept.is_on() {
            return commands.submit(&context, &[]);
        }
        let mut part = self.state.nested.behind(vmid, None, commands.batch_most());
        if part.streams.len() + part.left > NAMED {
            return commands.submit(&context, &[Command::config_all()]);
        }
        // However many enter while it goes on, no more are named than there may be.
        let mut budget = NAMED;
        let mut earlier = None;
        loop {
            budget = budget.saturating_sub(part.streams.len());
            let last = part.streams.last().copied();
            let batch: Batch = part
                .streams
                .into_iter()
                .map(Command::config_contexts)
                .collect();
            let ticket = commands.submit(&context, &batch)?;
            // A refused command of any batch fails it.
            let ticket = earlier.map_or(ticket, |earlier| ticket.and(earlier));
            if part.left == 0 || Fault::FirstBatchAlone.is_on() {
                return Ok(ticket);
            }
            if budget == 0 {
                // Some of those that were named came meanwhile, and some that were there before are left.
                // That is instead of what was named.
                return commands.submit(&context, &[Command::config_all()]);
            }
            earlier = Some(ticket);
            let most = commands.batch_most().min(budget);
            part = self.state.nested.behind(vmid, last, most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Vmid = Vmid::new(7);

    /// All streams of a domain, so many at a time.
    fn of(streams: &NestedStreams, vmid: Vmid, most: usize) -> Vec<StreamId> {
        let (mut all, mut last) = (Vec::new(), None);
        loop {
            let part = streams.behind(vmid, last, most);
            assert!(part.streams.len() <= most);
            all.extend(part.streams.iter().copied());
            last = part.streams.last().copied();
            if part.left == 0 {
                return all;
            }
        }
    }

    #[test]
    fn a_users_streams_are_found_and_nobody_elses() {
        let streams = NestedStreams::new();
        let of = |vmid| of(&streams, vmid, 2);
        streams.enter(OURS, StreamId::new(u32::MAX)).unwrap();
        streams.enter(Vmid::new(8), StreamId::new(0x109)).unwrap();
        streams.enter(OURS, StreamId::new(0)).unwrap();
        streams.enter(OURS, StreamId::new(0x108)).unwrap();
        let ours = [0, 0x108, u32::MAX].map(StreamId::new);
        assert_eq!(of(OURS), ours);
        streams.leave(OURS, StreamId::new(0x109));
        streams.leave(OURS, StreamId::new(0x108));
        streams.leave(OURS, StreamId::new(0x108));
        streams.leave(OURS, StreamId::new(0));
        assert_eq!(of(OURS), [StreamId::new(u32::MAX)]);
        assert_eq!(of(Vmid::new(8)).len(), 1);
        assert!(of(Vmid::new(6)).is_empty() && of(Vmid::new(9)).is_empty());
        // Another domain's now.
        streams
            .enter(Vmid::new(9), StreamId::new(u32::MAX))
            .unwrap();
        assert!(of(OURS).is_empty());
        assert_eq!(of(Vmid::new(9)), [StreamId::new(u32::MAX)]);
    }

    /// However many there are, and in however small pieces they are asked for; and however a stream left: its entry may have
    /// been made to abort, by a cut-off, before it was taken down.
    #[test]
    fn all_streams_are_named_batch_by_batch() {
        let streams = NestedStreams::new();
        let all: Vec<_> = (0..3 * BATCH_MAX as u32 + 1)
            .map(|number| StreamId::new(number * 7))
            .collect();
        for stream in all.iter().rev() {
            streams.enter(OURS, *stream).unwrap();
            let other = StreamId::new(stream.get() + 1);
            streams.enter(Vmid::new(8), other).unwrap();
        }
        for most in [1, 2, 63, BATCH_MAX, 3 * BATCH_MAX] {
            assert_eq!(of(&streams, OURS, most), all, "{most} at a time");
        }
        let first = streams.behind(OURS, None, BATCH_MAX);
        assert_eq!(first.left, all.len() - BATCH_MAX);
        // One that went meanwhile is no hole.
        let last = first.streams.last().copied();
        streams.leave(OURS, all[BATCH_MAX - 1]);
        streams.leave(OURS, all[BATCH_MAX]);
        let second = streams.behind(OURS, last, BATCH_MAX);
        assert_eq!(second.streams[..], all[BATCH_MAX + 1..][..BATCH_MAX]);
        all.iter().for_each(|stream| streams.leave(OURS, *stream));
        assert!(of(&streams, OURS, 1).is_empty());
        assert_eq!(of(&streams, Vmid::new(8), 64).len(), all.len());
    }
}
