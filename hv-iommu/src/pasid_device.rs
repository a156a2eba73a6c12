//! The PASID capability of a function: how wide its PASIDs are, and whether it may send any.
//!
//! Switched on when a group opens its PASIDs and off when it closes them, while none is bound: it is attached before and
//! detached after. A reset clears the switch, so it is set again when the group comes back, before its PASIDs do. What a
//! function sends with a PASID that nobody bound reaches nothing in any case: the switch keeps it from trying.

use hv_core::fault::Fault;
use hv_core::platform::PciConfig;
use hv_core::{Pasid, PciAddress};
use log::warn;
use thiserror::Error;

use crate::backend::{Backend, UnitIndex};
use crate::capability::{PasidBackend, Unmet};
use crate::device_tlb::stop_leftover;
use crate::domain::{DomainCore, DomainUid};
use crate::group::{GroupId, Inner};
use crate::spec::{
    ATS_CONTROL_ENABLE, ATS_REGISTERS, COMMAND, EXTENDED_ATS, EXTENDED_PASID, PASID_ENABLE,
    PASID_REGISTERS, PASID_WIDTH_MASK, PASID_WIDTH_SHIFT,
};
use crate::topology::{extended, halves};

/// What is said where a backend finds no bits of a PASID: its registers have none, or firmware tells of none on the way.
const NO_REQUESTS: Unmet =
    Unmet::absent("requests with a PASID, or firmware does not say that they reach it");

/// Why a group's PASIDs were not opened, or a function's not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PasidsRefused {
    /// The unit looks at none of the group's, or firmware says of none that they reach it.
    #[error(transparent)]
    Unit(#[from] Unmet),
    /// No function of the group has any.
    #[error("no function of {group} has a PASID capability")]
    NoneHas {
        /// The group.
        group: GroupId,
    },
    /// The function has none.
    #[error("{function} has no PASID capability")]
    NoCapability {
        /// The function.
        function: PciAddress,
    },
    /// The domain was not made for PASIDs, and the unit tells them apart by other tables than it is made of.
    #[error(
        "{domain} is of tables that {unit} has no PASIDs with: ask for a domain with `Needs::pasids`"
    )]
    NotAskedFor {
        /// The domain.
        domain: DomainUid,
        /// The unit.
        unit: UnitIndex,
    },
    /// The function does not answer: it was removed.
    #[error("{function} does not answer any more")]
    Gone {
        /// The function.
        function: PciAddress,
    },
    /// The function asks for translations, because its group's holder let it or because it goes on where it is told to
    /// stop; and its PASIDs may be switched only before that (PCI Express Base, "PASID Control Register").
    #[error(
        "{function} asks for translations (ATS): expected that to be off while its PASIDs are switched"
    )]
    AsksForTranslations {
        /// The function.
        function: PciAddress,
    },
    /// The function did not take the setting.
    #[error("{function} did not switch its PASIDs on: its control register reads {control:#06x}")]
    NotTaken {
        /// The function.
        function: PciAddress,
        /// The register.
        control: u16,
    },
}

/// The capability of a function.
#[derive(Clone, Copy, Debug)]
struct Capability {
    function: PciAddress,
    /// Where its registers are.
    at: u16,
    /// Bits of the widest PASID.
    width: u8,
    control: u16,
    /// Whether the function asks for translations.
    asks: bool,
}

impl Capability {
    /// Looks for it.
    fn of(config: &impl PciConfig, function: PciAddress) -> Result<Option<Self>, PasidsRefused> {
        if config.config_read32(function, COMMAND) == u32::MAX {
            return Err(PasidsRefused::Gone { function });
        }
        let (mut found, mut asks) = (None, false);
        for (id, place) in extended(config, function) {
            match id {
                EXTENDED_PASID if found.is_none() => {
                    let at = place + PASID_REGISTERS;
                    let (capability, control) = halves(config.config_read32(function, at));
                    let width = (capability >> PASID_WIDTH_SHIFT & PASID_WIDTH_MASK) as u8;
                    found = Some((at, width.min(Pasid::BITS), control));
                }
                EXTENDED_ATS => {
                    let (_, control) =
                        halves(config.config_read32(function, place + ATS_REGISTERS));
                    asks = control & ATS_CONTROL_ENABLE != 0;
                }
                _ => {}
            }
        }
        Ok(found.map(|(at, width, control)| Self {
            function,
            at,
            width,
            control,
            asks,
        }))
    }

    const fn is_on(&self) -> bool {
        self.control & PASID_ENABLE != 0
    }

    /// Writes the control register, whose other bits allow what nobody asked for, and reads it back.
    fn set(&self, config: &impl PciConfig, on: bool) -> Result<(), PasidsRefused> {
        let function = self.function;
        if self.is_on() == on && self.control == if on { PASID_ENABLE } else { 0 } {
            return Ok(());
        }
        // The group's holder lets none ask beside its PASIDs, so it is somebody's from before.
        if self.asks && self.is_on() != on && !stop_leftover(config, function) {
            return Err(PasidsRefused::AsksForTranslations { function });
        }
        let control = if on { PASID_ENABLE } else { 0 };
        // The lower half is read-only.
        config.config_write32(function, self.at, u32::from(control) << 16);
        let word = config.config_read32(function, self.at);
        if word == u32::MAX {
            return Err(PasidsRefused::Gone { function });
        }
        let (_, control) = halves(word);
        if (control & PASID_ENABLE != 0) != on {
            return Err(PasidsRefused::NotTaken { function, control });
        }
        Ok(())
    }
}

/// How many bits of a PASID count for a function: what it sends, and what the unit looks at.
///
/// # Errors
/// [`PasidsRefused`], where one of the two knows none.
pub(crate) fn pasid_bits<B: PasidBackend>(
    backend: &B,
    unit: UnitIndex,
    function: PciAddress,
) -> Result<u8, PasidsRefused> {
    let bits = backend.pasid_bits(unit, function);
    if bits == 0 {
        return Err(NO_REQUESTS.into());
    }
    match Capability::of(backend.platform(), function)? {
        Some(found) => Ok(bits.min(found.width)),
        None => Err(PasidsRefused::NoCapability { function }),
    }
}

impl<B: PasidBackend> Inner<B> {
    /// Refuses a domain of tables that the unit has no PASIDs with.
    ///
    /// # Errors
    /// [`PasidsRefused::NotAskedFor`].
    pub(crate) fn check_for_pasids(&self, core: &DomainCore<B>) -> Result<(), PasidsRefused> {
        let (domain, unit) = (core.uid, self.unit);
        match self.system.backend.pasid_caps(unit) {
            Some(caps) if caps.second_stage == core.caps.second_stage => Ok(()),
            _ => Err(PasidsRefused::NotAskedFor { domain, unit }),
        }
    }

    /// Whether any function can send with PASIDs that the unit looks at.
    ///
    /// # Errors
    /// [`PasidsRefused`].
    pub(crate) fn can_open_pasids(&self) -> Result<(), PasidsRefused> {
        let backend = &self.system.backend;
        let mut lacks = PasidsRefused::NoneHas { group: self.id };
        let mut any = false;
        for function in &self.members {
            match pasid_bits(backend, self.unit, *function) {
                Ok(_) => any = true,
                Err(refused @ PasidsRefused::Gone { .. }) => return Err(refused),
                Err(refused @ PasidsRefused::Unit(_)) => lacks = refused,
                Err(_) => {}
            }
        }
        match any {
            true => Ok(()),
            false => Err(lacks),
        }
    }

    /// Lets the functions send with PASIDs that can: all of them, or none.
    ///
    /// # Errors
    /// [`PasidsRefused`]: nothing is on then.
    pub(crate) fn switch_pasids_on(&self) -> Result<(), PasidsRefused> {
        let backend = &self.system.backend;
        for function in &self.members {
            let switched = match Capability::of(backend.platform(), *function) {
                Ok(Some(found)) if backend.pasid_bits(self.unit, *function) != 0 => {
                    found.set(backend.platform(), true)
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = switched {
                self.switch_pasids_off();
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<B: Backend> Inner<B> {
    /// Stops the functions from sending with PASIDs. One that goes on reaches nothing with them, and is named in the
    /// log.
    pub(crate) fn switch_pasids_off(&self) {
        if Fault::PasidsStayOn.is_on() {
            return;
        }
        let platform = self.system.backend.platform();
        for function in &self.members {
            let off = match Capability::of(platform, *function) {
                Ok(Some(found)) => found.set(platform, false),
                Ok(None) | Err(PasidsRefused::Gone { .. }) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = off {
                warn!("PASIDs of {function} stay on: {error}");
            }
        }
    }
}
