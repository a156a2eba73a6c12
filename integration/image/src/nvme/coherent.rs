//! The driver's memory from the DMA API of the hypervisor: coherent buffers of a domain.

use hv_core::{Iova, KernelPaging, OutOfBounds, PageCount, PageSize, Perms};
use hv_iommu::{Backend, BufferRequest, CoherentBuffer, DmaError, Domain};

use super::dma::{DmaBuffer, DmaMemory};

impl<B: Backend> DmaBuffer for CoherentBuffer<B> {
    fn iova(&self) -> Iova {
        self.iova()
    }

    fn bytes(&self) -> usize {
        self.pages().bytes() as usize
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds> {
        self.read(offset as u64, out)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfBounds> {
        self.write(offset as u64, data)
    }

    fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        self.read_u32(offset as u64)
    }
}

/// Buffers of a domain that devices read and write.
pub struct DomainMemory<'d, B: Backend>(pub &'d Domain<KernelPaging, B>);

impl<B: Backend> DmaMemory for DomainMemory<'_, B> {
    type Buffer = CoherentBuffer<B>;
    type Error = DmaError;

    fn alloc(&mut self, bytes: usize) -> Result<CoherentBuffer<B>, DmaError> {
        self.0.alloc_coherent(BufferRequest {
            pages: PageCount::for_bytes(bytes as u64).unwrap_or(PageCount::ONE),
            align: PageSize::Size4K,
            perms: Perms::ReadWrite,
        })
    }
}
