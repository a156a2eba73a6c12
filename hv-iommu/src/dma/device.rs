//! A domain as one of its devices sees it: address bits, trust, snooping.

use core::fmt;

use hv_core::{Iova, IovaRange, Owner, PageCount, Shared};

use super::coherent::{self, BufferRequest, CoherentBuffer, DmaError};
use super::error::DmaRefusal;
use super::mask::DmaMask;
use super::{DmaOwner, Hold};
use crate::backend::Backend;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::iova::{IovaAlign, SpaceError};

/// Whether a device may see bytes beside its buffers. Fixed when its [`DmaDevice`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trust {
    /// It sees the bytes of its buffers and zeros, nothing else: plugged in by anybody, or with firmware from
    /// elsewhere.
    #[default]
    Untrusted,
    /// It may see what shares a page with a buffer, and keep a buffer for a moment longer where its driver
    /// asks for that (deferred flush).
    Trusted,
}

/// Whether a device's requests see what is in the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Snooping {
    /// They do, as on PCI Express unless it is told otherwise.
    #[default]
    Snoops,
    /// They go past the caches: streaming mappings write lines back and drop them.
    DoesNotSnoop,
}

/// What is to be known of a device before memory is lent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DmaConfig {
    /// The addresses that it can say.
    pub mask: DmaMask,
    /// Whether it may see more than its buffers.
    pub trust: Trust,
    /// Whether it snoops.
    pub snooping: Snooping,
}

/// A domain of the hypervisor's drivers as one of its devices sees it: what lends memory to that device.
///
/// Drivers that share a domain have one each; what one of them maps, the others' devices reach too. One may
/// be made before any device is attached. The domain does not end while one exists.
pub struct DmaDevice<B: Backend> {
    pub(super) core: Shared<DomainCore<B>>,
    pub(super) config: DmaConfig,
    _hold: Hold<B>,
}

impl<O: Owner, B: Backend> Domain<O, B> {
    /// The DMA API for a device of this domain.
    pub fn dma_device(&self, config: DmaConfig) -> DmaDevice<B>
    where
        O: DmaOwner,
    {
        if config.trust == Trust::Trusted {
            log::info!(
                "{}: a device is trusted with what shares pages with its buffers",
                self.uid()
            );
        }
        let hold = Hold::new(&self.core);
        DmaDevice {
            core: self.core.clone(),
            config,
            _hold: hold,
        }
    }
}

impl<B: Backend> DmaDevice<B> {
    /// What is known of the device.
    pub fn config(&self) -> DmaConfig {
        self.config
    }

    /// The domain.
    pub fn domain(&self) -> DomainUid {
        self.core.uid
    }

    /// A zeroed buffer that the CPU and the domain's devices see at once.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is taken then.
    pub fn alloc_coherent(&self, request: BufferRequest) -> Result<CoherentBuffer<B>, DmaError> {
        if self.config.snooping == Snooping::DoesNotSnoop {
            return Err(DmaRefusal::DoesNotSnoop.into());
        }
        coherent::alloc(&self.core, self.config.mask, request)
    }

    /// Addresses that the device can say.
    #[inline]
    pub(super) fn addresses(
        &self,
        pages: PageCount,
        align: IovaAlign,
    ) -> Result<IovaRange, DmaRefusal> {
        addresses(&self.core, self.config.mask, pages, align)
    }

    /// The same, with a hold on the domain.
    #[inline]
    pub(super) fn addresses_held(
        &self,
        pages: PageCount,
        align: IovaAlign,
    ) -> Result<(Hold<B>, IovaRange), DmaRefusal> {
        let (core, mask) = (&*self.core, self.config.mask);
        Hold::with_addresses(core, pages, align, last_of(core, mask))
            .map_err(|error| refused(core, mask, error))
    }
}

/// Addresses of the domain that `mask` has.
#[inline]
pub(super) fn addresses<B: Backend>(
    core: &DomainCore<B>,
    mask: DmaMask,
    pages: PageCount,
    align: IovaAlign,
) -> Result<IovaRange, DmaRefusal> {
    core.alloc_iova(pages, align, last_of(core, mask))
        .map_err(|error| refused(core, mask, error))
}

/// Why there are no addresses: whether the domain or the device has too few.
#[cold]
fn refused<B: Backend>(core: &DomainCore<B>, mask: DmaMask, error: SpaceError) -> DmaRefusal {
    match error {
        SpaceError::Full { pages, align, .. } if last_of(core, mask) < core.caps.last => {
            DmaRefusal::BeyondMask { pages, align, mask }
        }
        other => other.into(),
    }
}

/// The last address of the domain that the device can say.
#[inline]
fn last_of<B: Backend>(core: &DomainCore<B>, mask: DmaMask) -> Iova {
    limit(mask).min(core.caps.last)
}

fn limit(mask: DmaMask) -> Iova {
    if hv_core::fault::Fault::IgnoreDmaMask.is_on() {
        return Iova::new(u64::MAX);
    }
    mask.last()
}

impl<B: Backend> fmt::Debug for DmaDevice<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DMA through {} ({:?})", self.core.uid, self.config)
    }
}
