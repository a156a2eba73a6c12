//! Streams of one unit that are on users' first stages: those whose context descriptors a user may have forgotten.
//!
//! A user names streams of its own, which are none of ours, so its CFGI_CD becomes a CFGI_CD_ALL for each stream of its
//! domain (IHI 0070, 4.3.3: all streams whose entries lead to a descriptor may have it cached).

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::platform::Platform;
use hv_iommu::{FlushTicket, UnitError};
use spin::mutex::SpinMutex;

use super::{Enabled, Unit};
use crate::invalidate::Batch;
use crate::spec::command::Command;
use crate::{StreamId, Vmid};

/// How many streams of a user are named one by one. For users of more, all configuration is forgotten.
const NAMED: usize = 32;

/// The streams, with the ids of their domains.
///
/// # Invariants
/// From before an entry with a user's first stage goes live until its taking down was asked of the unit, its stream is
/// here. Each stream is here once at most.
pub(super) struct NestedStreams(SpinMutex<Vec<(Vmid, StreamId)>>);

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
        // INVARIANT: one that was left behind, by an entry whose taking down was not asked for, is replaced.
        if let Some(there) = streams.iter_mut().find(|(_, there)| *there == stream) {
            *there = (vmid, stream);
            return Ok(());
        }
        push(&mut streams, (vmid, stream))
    }

    /// It does no longer, whether or not it did, and the unit was asked to forget it: a command that is given later is
    /// carried out later.
    pub(super) fn leave(&self, vmid: Vmid, stream: StreamId) {
        let mut streams = self.0.lock();
        streams.retain(|there| *there != (vmid, stream));
    }

    /// The streams of a domain; `None` where they are too many to be named.
    fn of(&self, vmid: Vmid) -> Option<ArrayVec<StreamId, NAMED>> {
        let mut named = ArrayVec::new();
        let streams = self.0.lock();
        let mut ours = streams.iter().filter(|(of, _)| *of == vmid);
        let all = ours.all(|(_, stream)| named.try_push(*stream).is_ok());
        all.then_some(named)
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Has the context descriptors forgotten of all streams that are on first stages of a user's domain.
    pub(crate) fn forget_users_contexts(
        &self,
        platform: &P,
        vmid: Vmid,
    ) -> Result<FlushTicket, UnitError> {
        let (context, commands) = (self.queue_with(platform), &self.state.commands);
        let most = commands.batch_most();
        let mut batch = Batch::new();
        match self.state.nested.of(vmid) {
            _ if Fault::UserContextsKept.is_on() => {}
            Some(streams) if streams.len() <= most => {
                batch.extend(streams.into_iter().map(Command::config_contexts));
            }
            _ => {
                let _ = batch.try_push(Command::config_all());
            }
        }
        commands.submit(&context, &batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Vmid = Vmid::new(7);

    #[test]
    fn a_users_streams_are_found_and_nobody_elses() {
        let streams = NestedStreams::new();
        streams.enter(OURS, StreamId::new(0x108)).unwrap();
        streams.enter(Vmid::new(8), StreamId::new(0x109)).unwrap();
        streams.enter(OURS, StreamId::new(u32::MAX)).unwrap();
        let found = streams.of(OURS).unwrap();
        assert_eq!(found[..], [StreamId::new(0x108), StreamId::new(u32::MAX)]);
        streams.leave(OURS, StreamId::new(0x109));
        streams.leave(OURS, StreamId::new(0x108));
        streams.leave(OURS, StreamId::new(0x108));
        assert_eq!(streams.of(OURS).unwrap()[..], [StreamId::new(u32::MAX)]);
        assert_eq!(streams.of(Vmid::new(8)).unwrap().len(), 1);
        assert!(streams.of(Vmid::new(9)).unwrap().is_empty());
        // Another domain's now.
        streams
            .enter(Vmid::new(9), StreamId::new(u32::MAX))
            .unwrap();
        assert!(streams.of(OURS).unwrap().is_empty());
        assert_eq!(streams.of(Vmid::new(9)).unwrap().len(), 1);
    }

    /// However a stream left: its entry may have been made to abort, by a cut-off, before it was taken down.
    #[test]
    fn only_who_has_too_many_streams_is_not_named_them_and_only_for_so_long() {
        let streams = NestedStreams::new();
        let all = (0..=NAMED as u32).map(StreamId::new);
        for stream in all.clone() {
            streams.enter(OURS, stream).unwrap();
            streams
                .enter(Vmid::new(8), StreamId::new(1000 + stream.get()))
                .unwrap();
        }
        assert_eq!(streams.of(OURS), None);
        streams.leave(OURS, StreamId::new(5));
        assert_eq!(streams.of(OURS).unwrap().len(), NAMED);
        assert_eq!(
            streams.of(Vmid::new(8)),
            None,
            "the other still has too many"
        );
        assert!(
            streams.of(Vmid::new(9)).unwrap().is_empty(),
            "and others none"
        );
        streams.enter(OURS, StreamId::new(5)).unwrap();
        assert_eq!(streams.of(OURS), None);
        all.for_each(|stream| streams.leave(OURS, stream));
        assert!(streams.of(OURS).unwrap().is_empty());
    }
}
