//! PASIDs: a function's requests with one have a context descriptor of their own, that of the substream with its number.
//!
//! A substream selects a first stage, so domains that have to do with PASIDs are of first-stage tables, where a unit has
//! both as well ([`hv_iommu::Needs::pasids`]); a guest's are second-stage ones, and substreams are for it to have, in a
//! first stage of its own. Domains of first-stage tables are filed under ASIDs of VMID 0, which no domain of second-stage
//! ones ever has. Substream 0 is
//! the descriptor of requests without one (S1DSS 2), and requests that say they are of substream 0 are aborted (IHI
//! 0070, 5.2): there is no such [`Pasid`].

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use hv_core::platform::Platform;
use hv_core::{Pasid, PciAddress};
use hv_iommu::{Binding, FlushTicket, HwDomainId, PasidBackend, UnitError, UnitIndex};

use crate::backend::Smmu;
use crate::vmsa::Tables;

// SAFETY: a substream that is not bound has no descriptor, or one that is not valid: its requests are aborted. A descriptor
// is written while it is not valid, forgotten, made valid by one store and forgotten again (`Update::of_context`); it comes
// down by one store of the word that makes it valid, and is forgotten, with all translations of its domain. Its ASID is the
// domain's id, under which flushes name what was made of it.
unsafe impl<P: Platform, F: Tables> PasidBackend for Smmu<P, F> {
    fn pasid_bits(&self, unit: UnitIndex, requester: PciAddress) -> u8 {
        let stream = self.stream(unit, requester, HwDomainId::new(0));
        stream.map_or(0, |stream| stream.substream_bits)
    }

    unsafe fn bind_pasid(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let stream = self.stream(unit, requester, binding.domain)?;
        let unit = self.unit(unit)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { unit.bind_substream::<F>(self.platform_of(), stream, pasid.into(), binding) }
    }

    fn unbind_pasid(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, domain)?;
        let unit = self.unit(unit)?;
        unit.unbind_substream(self.platform_of(), stream, pasid.into(), domain)
    }
}
