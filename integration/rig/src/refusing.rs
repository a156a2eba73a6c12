//! Units that call legal commands illegal: one misread on its way, or a kind of them always.

use crate::rig::Rig;

/// Which of the commands that it reads a unit calls illegal, though they are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusing {
    /// None.
    #[default]
    Nothing,
    /// The next one, once: read again it is as it was written.
    OneMisread,
    /// Invalidations of translations that name addresses.
    Pages,
    /// All invalidations of translations.
    Translations,
    /// Invalidations of what binds devices.
    Configuration,
    /// Answers to devices that wait.
    Answers,
}

/// What a command is to a unit that refuses some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pages,
    Translations,
    Configuration,
    Answer,
    Other,
}

impl Refusing {
    /// Whether the unit refuses the next command, which is of this kind.
    pub(crate) fn refuses(&mut self, kind: Kind) -> bool {
        match *self {
            Self::Nothing => false,
            Self::OneMisread => {
                *self = Self::Nothing;
                true
            }
            Self::Pages => kind == Kind::Pages,
            Self::Translations => matches!(kind, Kind::Pages | Kind::Translations),
            Self::Configuration => kind == Kind::Configuration,
            Self::Answers => kind == Kind::Answer,
        }
    }
}

impl Rig {
    /// A unit calls some commands illegal from now on.
    pub fn refuse(&self, unit: usize, refusing: Refusing) {
        if let Some(unit) = self.core.quiet().units.get_mut(unit) {
            unit.refuses(refusing);
        }
    }
}
