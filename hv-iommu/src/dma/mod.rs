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
//! ([`DmaMask`]), whether it is trusted ([`Trust`]), whether it snoops the CPU's caches ([`Snooping`]). Since all devices
//! of a domain reach what one was lent, a domain trusts one only where all its groups are trusted. An
//! untrusted device sees no byte beside a buffer: where a buffer begins or ends inside a page, that page stays
//! with the CPU, and the device gets a bounce page with the buffer's bytes and zeros, out of a pool that is
//! filled beforehand.
//!
//! Flushes are strict: memory comes back by receipt. [`Domain::allow_deferred_flush`](crate::Domain::allow_deferred_flush)
//! is the named exception, for trusted devices.
//!
//! No map, unmap or flush here allocates from the heap. All of it is for domains of
//! [`KernelPaging`](hv_core::KernelPaging): a guest decides for itself what it maps.

#![expect(
    unsafe_code,
    reason = "holds a domain by a count that lies in the domain"
)]

mod body;
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
mod trust;

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use hv_core::{Iova, IovaRange, KernelPaging, Owner, PageCount, Shared};

use crate::backend::Backend;
use crate::domain::DomainCore;
use crate::format::Format;
use crate::iova::{IovaAlign, SpaceError};

pub use body::ByteWindow;
pub use bounce::BounceError;
pub use coherent::{BufferRequest, CoherentBuffer, DmaError, FreeError};
pub use deferred::{DeferError, DeferRefusal, DeferredConfig, DeferredError};
pub use device::{DmaConfig, DmaDevice, Snooping};
pub use direction::{Bidirectional, CpuWrites, Direction, FromDevice, ToDevice};
pub use error::{DmaMapError, DmaRefusal, PendingError};
pub use mask::DmaMask;
pub use scatter::{PendingScatter, ScatterError, ScatterFull, ScatterList, ScatterMapping};
pub use stream::{PendingStream, StreamError, StreamMapping};
pub use sync::{SeenByCpu, StreamOnCpu, UnmappedInTurn};
pub use trust::{Trust, TrustRefusal};

pub(crate) use deferred::DmaState;
pub(crate) use trust::Gate;

/// Owners whose domains have the DMA API: [`KernelPaging`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "the DMA API is for domains of the hypervisor's drivers, this one is `{Self}`",
    label = "a guest, or its VMM, decides what this domain maps",
    note = "map the guest's own memory instead: `AddressSpace`, or `GuestMemory::pin`, `Domain::reserve` and `Range::map`; \
            what is unmapped comes back by receipt alone"
)]
pub trait DmaOwner: Owner {}
impl DmaOwner for KernelPaging {}

/// Keeps a domain from ending, and its core where it is: the CPU reaches memory that its table holds, or the
/// table holds memory for a value that says what becomes of it.
///
/// One count does for both, not a counted pointer besides: mappings come and go by the million, and each count is a
/// locked operation unless it goes with the addresses of the mapping.
///
/// # Invariants
/// The core, which is in its system's register of domains, counts it among the holders of its addresses. The register
/// keeps a core that counts any (`System::sweep`), and the core keeps the system, whose the register is.
struct Hold<B: Backend>(NonNull<DomainCore<B>>);

// SAFETY: a hold gives `&DomainCore` on whichever thread has it, as a `Shared` does, and takes nothing apart when it
// is dropped; the count may begin on one CPU and end on another.
unsafe impl<B: Backend> Send for Hold<B> where Shared<DomainCore<B>>: Send {}
// SAFETY: as above.
unsafe impl<B: Backend> Sync for Hold<B> where Shared<DomainCore<B>>: Sync {}

impl<B: Backend> Hold<B> {
    /// For callers that hold the domain, or a hold.
    #[inline]
    fn new(core: &DomainCore<B>) -> Self {
        core.space.hold();
        // INVARIANT: counted just now; only domains that were registered have callers.
        Self(NonNull::from(core))
    }

    /// A hold with addresses, counted together. For callers that hold the domain, or a hold.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing was taken then.
    #[inline]
    fn with_addresses(
        core: &DomainCore<B>,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<(Self, IovaRange), SpaceError> {
        let cpus = core.system.backend.platform();
        // As `alloc_iova`.
        let smallest = IovaAlign::of_shift(B::Format::PAGE_SHIFT);
        let span = core
            .space
            .alloc_held(cpus, pages, align.max(smallest), limit)?;
        // INVARIANT: counted with the addresses; only domains that were registered have callers.
        Ok((Self(NonNull::from(core)), span))
    }

    /// Gives addresses back, whole, and lets go.
    #[inline]
    fn end_with(self, span: IovaRange) {
        let hold = ManuallyDrop::new(self);
        let core: &DomainCore<B> = &hold;
        let cpus = core.system.backend.platform();
        // Counted with the addresses: nothing of the core is looked at after this.
        if let Err(error) = core.space.release_held(cpus, span) {
            core.report_taken(span, error);
            drop(ManuallyDrop::into_inner(hold));
        }
    }
}

impl<B: Backend> Deref for Hold<B> {
    type Target = DomainCore<B>;
    #[inline]
    fn deref(&self) -> &DomainCore<B> {
        // SAFETY: the pointer came from a reference. By the invariant the core is counted in for as long as
        // `self` lives, and so stays in the register; nobody has it mutably there.
        unsafe { self.0.as_ref() }
    }
}

impl<B: Backend> Drop for Hold<B> {
    #[inline]
    fn drop(&mut self) {
        // Nothing of the core is looked at after this.
        self.space.let_go();
    }
}
