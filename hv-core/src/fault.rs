//! Deliberate faults: protections taken out by name, to see that a test notices.
//!
//! They exist only in builds with `cfg(hv_fault)`; in every other build [`Fault::is_on`] is the
//! constant `false` and the faulty path is not compiled in.

use core::fmt;

/// A protection that a test build can take out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// The last device scope of each unit is dropped when firmware tables are read.
    DropLastScope,
    /// Pairs of 4 KiB pages of a mapping get each other's address.
    SwapNeighbours,
    /// Every mapping gets read and write permission.
    IgnorePermissions,
    /// Bring-up ends without turning translation on.
    LeaveTranslationOff,
    /// Translations are not invalidated, but the wait for them is done.
    SkipIotlbFlush,
    /// The entry that binds a device to its domain is not invalidated at detach.
    SkipContextFlush,
    /// A table is linked by a plain store where a compare-and-swap belongs.
    InstallByStore,
    /// Redeeming an unmapped range loses its last frame.
    LoseLastFrame,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 8] = [
        Self::DropLastScope,
        Self::SwapNeighbours,
        Self::IgnorePermissions,
        Self::LeaveTranslationOff,
        Self::SkipIotlbFlush,
        Self::SkipContextFlush,
        Self::InstallByStore,
        Self::LoseLastFrame,
    ];

    /// The name by which a fault is chosen.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DropLastScope => "drop_last_scope",
            Self::SwapNeighbours => "swap_neighbours",
            Self::IgnorePermissions => "ignore_permissions",
            Self::LeaveTranslationOff => "leave_translation_off",
            Self::SkipIotlbFlush => "skip_iotlb_flush",
            Self::SkipContextFlush => "skip_context_flush",
            Self::InstallByStore => "install_by_store",
            Self::LoseLastFrame => "lose_last_frame",
        }
    }

    /// The fault with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Whether this fault is switched on.
    #[inline]
    pub fn is_on(self) -> bool {
        #[cfg(hv_fault)]
        {
            // ORDERING: Relaxed, faults are switched on before the code under test starts.
            chosen::ON.load(core::sync::atomic::Ordering::Relaxed) & (1 << self as u32) != 0
        }
        #[cfg(not(hv_fault))]
        {
            false
        }
    }

    /// Switches this fault on. Only builds with `cfg(hv_fault)` have it.
    #[cfg(hv_fault)]
    pub fn switch_on(self) {
        // ORDERING: Relaxed, as in `is_on`.
        chosen::ON.fetch_or(1 << self as u32, core::sync::atomic::Ordering::Relaxed);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(hv_fault)]
mod chosen {
    //! Which faults are on: one bit each. The machine's own atomic, not a modelled one.
    use core::sync::atomic::AtomicU32;
    pub(super) static ON: AtomicU32 = AtomicU32::new(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for fault in Fault::ALL {
            assert_eq!(Fault::from_name(fault.name()), Some(fault));
        }
        assert_eq!(Fault::from_name("no_such_fault"), None);
    }
}
