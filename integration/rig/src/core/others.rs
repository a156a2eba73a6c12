//! Other CPUs that come in between: at a read of a unit's registers, or after so many steps.

use std::sync::PoisonError;

use super::Core;

/// A CPU that is held up when it reads a unit's registers.
pub(crate) struct Overtaken {
    pub(crate) unit: usize,
    /// After how many reads more.
    pub(crate) after: usize,
    /// What it is held up by.
    pub(crate) by: Box<dyn FnOnce() + Send>,
}

/// What another CPU does.
pub(super) type Other = Box<dyn FnOnce() + Send>;

impl Core {
    /// Says who is to be held up from now on, if anybody.
    pub(crate) fn hold_up(&self, who: Option<Overtaken>) {
        *self
            .overtaken
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = who;
    }

    /// A register of a unit is about to be read: others come first, if that was asked for.
    pub(crate) fn held_up(&self, unit: usize) {
        let due = {
            let mut who = self
                .overtaken
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match who.as_mut().filter(|who| who.unit == unit) {
                Some(who) if who.after > 0 => {
                    who.after -= 1;
                    None
                }
                Some(_) => who.take(),
                None => None,
            }
        };
        if let Some(who) = due {
            (who.by)();
        }
    }

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
