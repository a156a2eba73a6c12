//! Another CPU that comes in between two steps of the driver.

use std::sync::PoisonError;

use super::Core;

/// What another CPU does.
pub(super) type Other = Box<dyn FnOnce() + Send>;

impl Core {
    /// Has something done by another CPU after so many steps; `None`, and what is left of it, takes that back.
    pub(crate) fn meanwhile(&self, other: Option<(u64, Other)>) -> Option<Other> {
        let mut meanwhile = self
            .meanwhile
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *meanwhile, other).map(|(_, other)| other)
    }

    /// Lets the other CPU do its part, if it is its turn. The caller holds no lock of the rig.
    pub(crate) fn let_in(&self) {
        let mut meanwhile = self
            .meanwhile
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let turn = match &mut *meanwhile {
            None => return,
            Some((0, _)) => meanwhile.take(),
            Some((left, _)) => {
                *left -= 1;
                None
            }
        };
        drop(meanwhile);
        if let Some((_, other)) = turn {
            other();
        }
    }
}
