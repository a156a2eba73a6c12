//! The cell that a table entry lives in, so that a test can stand between the engine and memory.

use crate::sync::{AtomicU64, Ordering};

/// One 64-bit word of memory that hardware reads, and sometimes writes, while software changes it.
///
/// Real platforms use [`AtomicU64`]; loom and a software IOMMU bring cells of their own. Each
/// method has the meaning of the atomic operation of the same name.
pub trait EntryCell: Send + Sync {
    /// Reads the word.
    fn load(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn store(&self, word: u64, order: Ordering);
    /// Replaces `current` by `new`, or gives the word that was there instead.
    ///
    /// # Errors
    /// The word found, when it was not `current`.
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64>;
    /// Sets `bits` and gives the word before.
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    /// Clears the bits that are not in `bits` and gives the word before.
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    /// Replaces the word and gives the one before.
    fn swap(&self, word: u64, order: Ordering) -> u64;
}

impl EntryCell for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        // ORDERING: the caller's, who says what it needs.
        self.load(order)
    }
    #[inline]
    fn store(&self, word: u64, order: Ordering) {
        // ORDERING: the caller's.
        self.store(word, order);
    }
    #[inline]
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        // ORDERING: the caller's.
        self.compare_exchange(current, new, success, failure)
    }
    #[inline]
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        self.fetch_or(bits, order)
    }
    #[inline]
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        self.fetch_and(bits, order)
    }
    #[inline]
    fn swap(&self, word: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        self.swap(word, order)
    }
}
