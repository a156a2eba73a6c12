//! Witnesses: tokens that prove what an attachment for a guest needs.

/// Proof that a guest's device can raise only the interrupts that it was given.
///
/// A device behind an IOMMU without interrupt remapping can write any interrupt message and so reach
/// any vector of any CPU. No backend of this version remaps interrupts, so the only way to have
/// this witness is the override below, which says so in its name and in the log.
#[derive(Debug)]
pub struct InterruptsIsolated {
    reason: &'static str,
}

impl InterruptsIsolated {
    /// Pretends isolation where there is none. `reason` is logged with every attachment that uses it.
    ///
    /// Fit for demonstrations and for guests that are trusted not to forge interrupts; for nothing
    /// else.
    pub fn override_unsafe_interrupts(reason: &'static str) -> Self {
        log::warn!("OVERRIDE: interrupt isolation is assumed, not had: {reason}");
        Self { reason }
    }

    /// Why the override was used.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }
}
