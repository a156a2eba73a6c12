//! Deliberate faults: protections taken out by name, to see that a test notices.
//!
//! They exist only in builds with `cfg(hv_fault)`; in every other build [`Fault::is_on`] is the
//! constant `false` and the faulty path is not compiled in.

use core::fmt;

use crate::sync::Ordering;

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// A protection that a test build can take out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Fault {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Fault {
            /// All faults.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name by which a fault is chosen.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What it takes out, in a sentence.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),*).trim_ascii_start(),)*
                }
            }
        }
    };
}

#[macro_use]
mod smmu;

mod list;

pub use list::Fault;

impl Fault {
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
            self.word().load(Ordering::Relaxed) & self.bit() != 0
        }
        #[cfg(not(hv_fault))]
        {
            false
        }
    }

    /// The ordering at a site that this fault weakens to Relaxed.
    #[inline]
    pub fn weakens(self, order: Ordering) -> Ordering {
        if self.is_on() {
            // ORDERING: the deliberate fault.
            Ordering::Relaxed
        } else {
            order
        }
    }

    /// Switches this fault on. Only builds with `cfg(hv_fault)` have it.
    #[cfg(hv_fault)]
    pub fn switch_on(self) {
        // ORDERING: Relaxed, as in `is_on`.
        self.word().fetch_or(self.bit(), Ordering::Relaxed);
    }

    /// Switches this fault off again. Only builds with `cfg(hv_fault)` have it.
    #[cfg(hv_fault)]
    pub fn switch_off(self) {
        // ORDERING: Relaxed, as in `is_on`: nothing of the code under test runs meanwhile.
        self.word().fetch_and(!self.bit(), Ordering::Relaxed);
    }

    #[cfg(hv_fault)]
    const fn bit(self) -> u64 {
        1 << (self as u32 % u64::BITS)
    }

    #[cfg(hv_fault)]
    fn word(self) -> &'static core::sync::atomic::AtomicU64 {
        // There is a word for each.
        &chosen::ON[self as usize / u64::BITS as usize]
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
    use core::sync::atomic::AtomicU64;

    use super::Fault;

    const WORDS: usize = Fault::ALL.len().div_ceil(u64::BITS as usize);
    pub(super) static ON: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
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

    #[cfg(hv_fault)]
    #[test]
    fn each_fault_is_switched_alone() {
        for fault in Fault::ALL {
            fault.switch_on();
            let on = Fault::ALL.into_iter().filter(|other| other.is_on());
            assert!(on.eq([fault]));
            fault.switch_off();
            assert!(!fault.is_on());
        }
    }
}
