//! A domain as one of its devices sees it: address bits, snooping, and whether it is trusted.

use core::fmt;

use hv_core::{Iova, IovaRange, Owner, PageCount, Shared};

use super::coherent::{self, BufferRequest, CoherentBuffer, DmaError};
use super::error::DmaRefusal;
use super::mask::DmaMask;
use super::trust::Trust;
use super::{DmaOwner, Hold};
use crate::backend::Backend;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::iova::{IovaAlign, SpaceError};

/// Whether a device's requests see what is in the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Snooping {
    /// They do, as on PCI Express unless it is told otherwise. Where firmware says that the domain's devices do not, this is
    /// taken for [`DoesNotSnoop`](Self::DoesNotSnoop).
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
    pub(super) trust: Trust,
    _hold: Hold<B>,
}

impl<O: Owner, B: Backend> Domain<O, B> {
    /// The DMA API for a device of this domain that is not trusted: it sees no byte beside its buffers, nor any after
    /// its receipt. Made once its device is attached, or where the domain was made for it, it does not count on a snoop that
    /// firmware denies. [`trusting_dma_device`](Self::trusting_dma_device) is for others.
    pub fn dma_device(&self, config: DmaConfig) -> DmaDevice<B>
    where
        O: DmaOwner,
    {
        DmaDevice::new(&self.core, config, Trust::Untrusted)
    }
}

impl<B: Backend> DmaDevice<B> {
    /// For callers that hold the domain, and know whether its devices are trusted.
    pub(super) fn new(core: &Shared<DomainCore<B>>, config: DmaConfig, trust: Trust) -> Self {
        let hold = Hold::new(core);
        let snooping = match core.snooping() {
            Snooping::Snoops => config.snooping,
            Snooping::DoesNotSnoop => Snooping::DoesNotSnoop,
        };
        Self {
            core: core.clone(),
            config: DmaConfig { snooping, ..config },
            trust,
            _hold: hold,
        }
    }

    /// What is known of the device.
    pub fn config(&self) -> DmaConfig {
        self.config
    }

    /// Whether it may see more than its buffers.
    pub fn trust(&self) -> Trust {
        self.trust
    }

    /// The domain.
    pub fn domain(&self) -> DomainUid {
        self.core.uid
    }

    /// A zeroed buffer that the CPU and the domain's devices see at once.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is taken then, but for what is [`Stuck`](DmaError::Stuck).
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
        let (uid, trust) = (self.core.uid, self.trust);
        write!(
            f,
            "DMA of a {trust} device through {uid} ({:?})",
            self.config
        )
    }
}
