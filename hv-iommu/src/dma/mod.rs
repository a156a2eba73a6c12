//! The DMA API of the hypervisor's own drivers: memory of the hypervisor, lent to a device and taken back.
//!
//! | what | who sees the memory | how it comes back |
//! |---|---|---|
//! | [`CoherentBuffer`] | CPU and device, all the time | [`free`](CoherentBuffer::free) |
//! | [`StreamMapping`] | the device; the CPU's view moved in as a run of frames | `unmap`, then a receipt gives the run back |
//! | [`StreamOnCpu`] | the CPU's turn at a stream that stays mapped | `sync_for_device`, for the device's turn |
//! | [`ScatterMapping`] | as a stream, of many runs behind one range of addresses | one `unmap` and one receipt for all |
//!
//! A [`DmaDevice`] is a domain as one of its devices sees it: how many address bits the device has
//! ([`DmaMask`]), whether it is trusted ([`Trust`]), whether it snoops the CPU's caches ([`Snooping`]). An
//! untrusted device sees no byte beside a buffer: where a buffer begins or ends inside a page, that page stays
//! with the CPU, and the device gets a bounce page with the buffer's bytes and zeros, out of a pool that is
//! filled beforehand.
//!
//! Flushes are strict: memory comes back by receipt. [`Domain::allow_deferred_flush`](crate::Domain::allow_deferred_flush)
//! is the named exception, for trusted devices.
//!
//! No map, unmap or flush here allocates from the heap. All of it is for domains of
//! [`KernelPaging`](hv_core::KernelPaging): a guest decides for itself what it maps.

mod bounce;
mod coherent;
mod deferred;
mod device;
mod direction;
mod error;
mod mask;
mod parts;
mod scatter;
mod stream;
mod sync;

use hv_core::sync::Ordering;
use hv_core::{KernelPaging, Owner, Shared};

use crate::backend::Backend;
use crate::domain::DomainCore;

pub use bounce::BounceError;
pub use coherent::{BufferRequest, CoherentBuffer, DmaError, FreeError};
pub use deferred::{DeferError, DeferRefusal, DeferredConfig, DeferredError};
pub use device::{DmaConfig, DmaDevice, Snooping, Trust};
pub use direction::{Bidirectional, CpuWrites, Direction, FromDevice, ToDevice};
pub use error::{DmaMapError, DmaRefusal, PendingError};
pub use mask::DmaMask;
pub use scatter::{PendingScatter, ScatterError, ScatterFull, ScatterList, ScatterMapping};
pub use stream::{ByteWindow, PendingStream, StreamError, StreamMapping};
pub use sync::StreamOnCpu;

pub(crate) use deferred::DmaState;

/// Owners whose domains have the DMA API: [`KernelPaging`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "the DMA API is for domains of the hypervisor's drivers, this one is `{Self}`",
    label = "a guest, or its VMM, decides what this domain maps",
    note = "map the guest's own memory instead: `AddressSpace`, or `GuestMemory::pin`, `Domain::reserve` and `Range::map`; \
            what is unmapped comes back by receipt alone"
)]
pub trait DmaOwner: Owner {}
impl DmaOwner for KernelPaging {}

/// Keeps a domain from ending: the CPU reaches memory that its table holds, or the table holds memory for a
/// value that says what becomes of it.
///
/// # Invariants
/// The domain counts it in `buffers`.
struct Hold<B: Backend>(Shared<DomainCore<B>>);

impl<B: Backend> Hold<B> {
    /// For callers that hold the domain, or a hold.
    #[inline]
    fn new(core: &Shared<DomainCore<B>>) -> Self {
        // ORDERING: Relaxed: callers hold `&Domain` or are counted already, so `destroy` happens after this.
        core.buffers.fetch_add(1, Ordering::Relaxed);
        Self(core.clone())
    }
}

impl<B: Backend> Drop for Hold<B> {
    #[inline]
    fn drop(&mut self) {
        // ORDERING: Release: the last access under this hold happens before `destroy` sees the count.
        self.0.buffers.fetch_sub(1, Ordering::Release);
    }
}
