//! Streams of one unit that are on users' first stages: those whose context descriptors a user may have forgotten.
//!
//! A user names streams of its own, which are none of ours, so its CFGI_CD becomes a CFGI_CD_ALL for each stream of its
//! domain (IHI 0070, 4.3.3: all streams whose entries lead to a descriptor may have it cached).

use core::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::sync::{AtomicU64, AtomicUsize};
use hv_iommu::{FlushTicket, UnitError};

use super::{Enabled, Unit};
use crate::invalidate::Batch;
use crate::spec::command::Command;
use crate::{StreamId, Vmid};

/// How many streams are known one by one. For users of more, all configuration is forgotten.
const PLACES: usize = 32;

/// The streams, with the ids of their domains.
///
/// # Invariants
/// From before an entry with a user's first stage goes live until its taking down was asked of the unit, its stream has a
/// place here or is counted in `beyond`.
pub(super) struct NestedStreams {
    /// Zero for a free place.
    places: [AtomicU64; PLACES],
    /// At least how many more there are.
    beyond: AtomicUsize,
}

/// What stands in a place: never zero, since no domain has id 0.
const fn word(vmid: Vmid, stream: StreamId) -> u64 {
    (vmid.get() as u64) << u32::BITS | stream.get() as u64
}

impl NestedStreams {
    pub(super) fn new() -> Self {
        Self {
            places: core::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicUsize::new(0),
        }
    }

    /// A stream's entry is about to lead to a user's contexts.
    pub(super) fn enter(&self, vmid: Vmid, stream: StreamId) {
        let mut places = self.places.iter();
        // ORDERING: SeqCst, here and in `of`: whoever does not find the stream read its place before it was taken, so
        // that what the user had written until then was there before the entry, and what reads it, was.
        let taken = places.any(|place| {
            let order = Ordering::SeqCst;
            place
                .compare_exchange(0, word(vmid, stream), order, order)
                .is_ok()
        });
        if !taken {
            // ORDERING: SeqCst, as above.
            self.beyond.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// It does no longer, and the unit was asked to forget it: a command that is given later is carried out later. Says
    /// whether the stream had a place.
    pub(super) fn leave(&self, vmid: Vmid, stream: StreamId) -> bool {
        let mut places = self.places.iter();
        places.any(|place| {
            // ORDERING: SeqCst: what stands behind the request to forget the entry stays there. A stream has one binder.
            let order = Ordering::SeqCst;
            place
                .compare_exchange(word(vmid, stream), 0, order, order)
                .is_ok()
        })
    }

    /// As [`leave`](Self::leave), of one that may have been counted only.
    fn leave_counted(&self, vmid: Vmid, stream: StreamId) {
        if !self.leave(vmid, stream) {
            let less = |count: usize| count.checked_sub(1);
            // ORDERING: SeqCst, as in `enter`. Where there are none left, it was another's to count.
            let _ = self
                .beyond
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        }
    }

    /// The streams of a domain; `None` where not all of them have a place.
    fn of(&self, vmid: Vmid) -> Option<ArrayVec<StreamId, PLACES>> {
        let mut streams = ArrayVec::new();
        // ORDERING: SeqCst, see `enter`.
        for place in self.places.iter().map(|place| place.load(Ordering::SeqCst)) {
            if place != 0 && place >> u32::BITS == u64::from(vmid.get()) {
                // As many as there are places. The lower half is the stream.
                let _ = streams.try_push(StreamId::new(place as u32));
            }
        }
        // ORDERING: SeqCst, see `enter`.
        (self.beyond.load(Ordering::SeqCst) == 0).then_some(streams)
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// The stream's entry is down and its forgetting asked for; it was on a user's first stage, if `was_nested`.
    pub(super) fn left_nested(&self, vmid: Vmid, stream: StreamId, was_nested: bool) {
        match was_nested {
            true => self.state.nested.leave_counted(vmid, stream),
            // One that was made quiet aborts already.
            false => drop(self.state.nested.leave(vmid, stream)),
        }
    }

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
        streams.enter(OURS, StreamId::new(0x108));
        streams.enter(Vmid::new(8), StreamId::new(0x109));
        streams.enter(OURS, StreamId::new(0xffff_ffff));
        let found = streams.of(OURS).unwrap();
        assert_eq!(
            found[..],
            [StreamId::new(0x108), StreamId::new(0xffff_ffff)]
        );
        assert!(streams.leave(OURS, StreamId::new(0x108)));
        assert!(!streams.leave(OURS, StreamId::new(0x108)));
        assert_eq!(streams.of(OURS).unwrap()[..], [StreamId::new(0xffff_ffff)]);
        assert!(streams.of(Vmid::new(9)).unwrap().is_empty());
    }

    #[test]
    fn where_there_are_more_than_places_nobody_is_taken_for_all_of_them() {
        let streams = NestedStreams::new();
        let all = (0..=PLACES as u32).map(StreamId::new);
        all.clone().for_each(|stream| streams.enter(OURS, stream));
        assert_eq!(streams.of(OURS), None);
        assert_eq!(
            streams.of(Vmid::new(9)),
            None,
            "which of them it is is not known"
        );
        streams.leave_counted(OURS, StreamId::new(PLACES as u32));
        assert_eq!(streams.of(OURS).unwrap().len(), PLACES);
        // One with a place leaves that, whatever is counted.
        streams.enter(OURS, StreamId::new(100));
        streams.leave_counted(OURS, StreamId::new(3));
        assert_eq!(streams.of(OURS), None);
        streams.leave_counted(OURS, StreamId::new(100));
        assert_eq!(streams.of(OURS).unwrap().len(), PLACES - 1);
        streams.leave_counted(OURS, StreamId::new(100));
        assert!(streams.of(OURS).is_some(), "and none below zero");
    }
}
