//! Why memory was not lent to a device, and what comes back then.

use core::fmt;

use hv_core::PageCount;
use thiserror::Error;

use super::body::ByteWindow;
use super::mask::DmaMask;
use crate::flush::FlushError;
use crate::iova::{IovaAlign, SpaceError};
use crate::pending::RedeemRefusal;
use crate::range::MapRefusal;

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DmaRefusal {
    /// The domain has no such range.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The domain has no such range that the device can name.
    #[error("no free range of {pages} aligned to {align} within the device's {mask}")]
    BeyondMask {
        /// The length that was asked for.
        pages: PageCount,
        /// The alignment that was asked for.
        align: IovaAlign,
        /// What the device can say.
        mask: DmaMask,
    },
    /// The mapping was refused.
    #[error(transparent)]
    Map(#[from] MapRefusal),
    /// The buffer is not page-whole, the device must not see its neighbours, and the pool of bounce pages is
    /// empty: see [`Domain::fill_bounce_pool`](crate::Domain::fill_bounce_pool).
    #[error(
        "the domain's pool of bounce pages is too small: {missing} missing, see `Domain::fill_bounce_pool`"
    )]
    NoBouncePages {
        /// How many frames are missing.
        missing: u64,
    },
    /// There are no bytes, they pass the end of the run, or they do not begin in its first page and end in its last.
    #[error("{}", window.misfit(*pages))]
    Window {
        /// The bytes that were asked for.
        window: ByteWindow,
        /// The length of the run.
        pages: PageCount,
    },
    /// A buffer that CPU and device see at once was asked for, for a device that does not snoop.
    #[error("the device does not snoop the CPU's caches: use streaming mappings, and sync them")]
    DoesNotSnoop,
    /// The list of runs is empty.
    #[error("there is no run of frames to map")]
    Empty,
}

/// What a failed map gives back: `V` is what was to be mapped, `M` the mapping, `P` its pending value.
pub enum DmaMapError<V, M, P> {
    /// Nothing was mapped.
    Refused {
        /// What was to be mapped.
        value: V,
        /// Why.
        reason: DmaRefusal,
    },
    /// A part could not be mapped, and a unit did not answer the flush for the parts that had been: all of it
    /// comes back by receipt.
    Stuck {
        /// Holds what was to be mapped.
        pending: P,
        /// Why a part was not mapped.
        reason: DmaRefusal,
        /// Why the rest is not back.
        flush: RedeemRefusal,
    },
    /// It is mapped, but a unit that must be told of new mappings did not take that: it is wedged, or was
    /// busy. Devices behind it may fault on the range.
    NotVisible {
        /// The mapping.
        mapping: M,
        /// Why.
        reason: FlushError,
    },
}

impl<V, M, P> fmt::Display for DmaMapError<V, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { reason, .. } => write!(f, "nothing was mapped: {reason}"),
            Self::Stuck { reason, flush, .. } => {
                write!(
                    f,
                    "not all was mapped ({reason}), and what was is pending: {flush}"
                )
            }
            Self::NotVisible { reason, .. } => write!(f, "mapped, but not visible: {reason}"),
        }
    }
}

impl<V, M, P> fmt::Debug for DmaMapError<V, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<V, M, P> core::error::Error for DmaMapError<V, M, P> {}

/// A pending value that could not be opened, and why.
pub struct PendingError<P> {
    /// The pending value, unchanged.
    pub pending: P,
    /// Why.
    pub reason: RedeemRefusal,
}

impl<P> fmt::Display for PendingError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what was unmapped stays pending: {}", self.reason)
    }
}

impl<P> fmt::Debug for PendingError<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<P> core::error::Error for PendingError<P> {}
