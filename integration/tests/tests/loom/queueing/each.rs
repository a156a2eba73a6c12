//! The models of the queue again, with hardware that needs a sync behind each batch: it looks whether there is one.

use std::cell::Cell;

use hv_iommu::queue::QueueShape;

use super::{stalls, two_producers_around_the_end};
use crate::explore::models;

thread_local! {
    /// Whether the next unit is such hardware. All threads of a model run on this one.
    static NEXT: Cell<bool> = const { Cell::new(false) };
}

/// The shape for the unit that is made now.
pub(super) fn asked(shape: QueueShape) -> QueueShape {
    match NEXT.take() {
        true => shape.with_sync_each(),
        false => shape,
    }
}

/// A model, with its unit as such hardware.
fn with_sync_each(model: fn()) {
    NEXT.set(true);
    model();
}

models! {
    /// Whoever rings, hardware is told of whole batches, and finds a sync between any two.
    /// Shows: bc14.
    bc14_two_producers_with_a_sync_each_wrap_the_ring: Two(2),
        sees [], || with_sync_each(two_producers_around_the_end);

    /// A stall costs others their deadline here too, and hardware is told of no half of a batch.
    /// Shows: bc14.
    bc14_a_stalled_producer_with_a_sync_loses_nothing: Two(3),
        sees ["the other gives up", "the other goes first"], || with_sync_each(stalls::a_producer_stalls);

    /// What is published is rung with its sync, by whoever had the bell.
    /// Shows: bc14.
    bc14_what_nobody_waits_for_is_rung_with_its_sync: Two(3),
        sees ["one did not wait"], || with_sync_each(stalls::nobody_waits_for_the_bell);

    /// The same behind a CPU that stands still.
    /// Shows: bc14.
    bc14_what_nobody_waits_for_behind_a_gap_is_rung_with_its_sync: Three(1),
        sees ["one did not wait"], || with_sync_each(stalls::nobody_waits_behind_a_gap);

    /// Who was admitted before a reset writes neither command nor sync into the ring after it.
    /// Shows: bc14.
    bc14_a_reset_meets_a_late_producer_with_a_sync: Three(1),
        sees ["the late one was in time", "the late one is refused"],
        || with_sync_each(stalls::a_reset_and_a_producer);
}
