//! Another CPU that comes in between two steps of the driver.

use std::sync::{Arc, PoisonError};

use super::{Core, State};

/// What another CPU does.
pub(super) type Other = Box<dyn FnOnce() + Send>;

/// What looks on while the driver waits for a unit, of this number.
pub(crate) type Watch = Arc<dyn Fn(usize) + Send + Sync>;

/// Looks at the clock in a row by which a driver that reads a register waits for something.
const WAITS: u32 = 3;

impl State {
    /// Whether the driver waits: it has done nothing lately but look.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.looks >= WAITS
    }
}

impl Core {
    /// Has something done by another CPU after so many steps; `None`, and what is left of it, takes that back.
    pub(crate) fn meanwhile(&self, other: Option<(u64, Other)>) -> Option<Other> {
        let mut meanwhile = self
            .meanwhile
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *meanwhile, other).map(|(_, other)| other)
    }

    /// Has `watch` look on where the driver waits for a unit; `None`: nobody any more.
    pub(crate) fn watch_waits(&self, watch: Option<Watch>) {
        let mut watching = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        *watching = watch;
    }

    /// The driver waits for a unit, and holds no lock of the rig.
    pub(crate) fn waits(&self, unit: usize) {
        let watching = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = watching.clone();
        drop(watching);
        if let Some(watch) = watch {
            watch(unit);
        }
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
