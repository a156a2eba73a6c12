//! Where the driver's memory comes from.

use hv_core::{Iova, OutOfBounds};

/// A buffer that both the CPU and the device see.
///
/// The device sees it as one run of addresses from [`iova`](Self::iova) on, which is a multiple of
/// 4 KiB. Either side may read while the other writes; nothing but the protocol between driver and
/// device says who is next.
pub trait DmaBuffer {
    /// Where the device sees the first byte; a multiple of 4 KiB.
    fn iova(&self) -> Iova;

    /// Size in bytes.
    fn bytes(&self) -> usize;

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfBounds`] when the buffer ends before the bytes do; nothing is copied then.
    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Copies bytes in, to be seen by the device before any later register write.
    ///
    /// # Errors
    /// [`OutOfBounds`] when the buffer ends before the bytes do; nothing is copied then.
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfBounds>;

    /// Reads an aligned word in one access that later reads stay behind.
    ///
    /// # Errors
    /// [`OutOfBounds`] when the word is not in the buffer.
    fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds>;
}

/// Gives out buffers.
pub trait DmaMemory {
    /// Its buffers.
    type Buffer: DmaBuffer;
    /// Why it gave none.
    type Error: core::fmt::Debug;

    /// A buffer of at least `bytes` bytes, mapped for the device to read and write.
    ///
    /// # Errors
    /// The memory's own error.
    fn alloc(&mut self, bytes: usize) -> Result<Self::Buffer, Self::Error>;
}
