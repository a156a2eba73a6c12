//! Interrupt messages: who a requester is to which interrupt controller, and whether a write is one.

use hv_core::{Iova, PciAddress};
use hv_iommu::{MessageSource, NotIsolated};

use super::{DmaFault, Fake, lock};

impl<T> Fake<T> {
    /// An interrupt controller takes `requester` for that sender from now on.
    pub fn knows_as(&self, requester: PciAddress, source: MessageSource) {
        let mut sources = lock(&self.inner.sources);
        sources.retain(|(other, _)| *other != requester);
        sources.push((requester, source));
    }

    /// Firmware says of `requester` that it is that sender, whatever else it says.
    pub fn also_tells_as(&self, requester: PciAddress, source: MessageSource) {
        lock(&self.inner.sources).push((requester, source));
    }

    pub(super) fn source_of(&self, requester: PciAddress) -> Result<MessageSource, NotIsolated> {
        let sources = lock(&self.inner.sources);
        let mut known = sources.iter().filter(|(other, _)| *other == requester);
        match (known.next(), known.next()) {
            (Some((_, source)), None) => Ok(*source),
            (None, _) => Err(NotIsolated::NotRemapped { requester }),
            (Some(_), Some(_)) => Err(NotIsolated::NotTold { requester }),
        }
    }

    pub(super) fn is_told_as(&self, requester: PciAddress, source: MessageSource) -> bool {
        lock(&self.inner.sources).contains(&(requester, source))
    }

    /// Whether a device's write to `at` is told to be none to memory.
    ///
    /// # Errors
    /// [`DmaFault`].
    pub fn rings(&self, requester: PciAddress, at: Iova) -> Result<bool, DmaFault> {
        let unit = self.index_of(requester).ok_or(DmaFault::NoUnit)?;
        lock(&self.inner.units[unit]).rings(self.host(), requester, at)
    }
}
