//! Which unit translates for which requester: a total map, built from the table and the machine.
//!
//! Rules (Linux `dmar.c`, Xen `vtd/dmar.c`): a scope that names the function, or a bridge scope
//! behind which the function lies, beats the unit that covers the rest of the segment. Two units
//! with such a claim disagree, and the function belongs to neither. No scope can name a virtual or phantom
//! function: its requests pass the unit of the function that it is one of (Linux
//! `device_lookup_iommu`, Xen `acpi_find_matched_drhd_unit`).

mod scope;

use alloc::vec::Vec;
use core::fmt;

use hv_core::list::push;
use hv_core::platform::PciConfig;
use hv_core::{OutOfMemory, PciAddress, Segment};
use hv_iommu::{BusRange, PciFunction, UnitIndex};
use log::warn;
use thiserror::Error;

pub use scope::Unresolved;
pub(crate) use scope::{Target, is_present, resolve};

use crate::dmar::{Dmar, Place};

/// What to do with a machine of which some function belongs to no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CoveragePolicy {
    /// Refuse the machine and name the function.
    #[default]
    Strict,
    /// Log it. The function can never be claimed.
    Lenient,
}

/// Why some requesters belong to no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CoverageProblem {
    /// No unit covers a function.
    #[error("{function}: expected one unit that covers it, found none")]
    Uncovered {
        /// The function.
        function: PciAddress,
    },
    /// Two units claim a function.
    #[error("{function}: expected one unit that claims it, found {first} and {second}")]
    Conflict {
        /// The function.
        function: PciAddress,
        /// One of the units.
        first: UnitIndex,
        /// The other.
        second: UnitIndex,
    },
    /// A scope of a unit leads nowhere, so what it was to cover is not known.
    #[error("{unit}, {place}: {why}")]
    Unresolved {
        /// The unit.
        unit: UnitIndex,
        /// Where the scope stands in the table.
        place: Place,
        /// What is wrong with its path.
        why: Unresolved,
    },
}

/// Why there is no coverage map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CoverageError {
    /// The policy does not accept it.
    #[error("a device could go round every unit: {0}; a lenient policy would leave it unclaimable")]
    Refused(#[from] CoverageProblem),
    /// More units than can be numbered.
    #[error("too many units: expected at most {}, found {found}", UnitIndex::LIMIT)]
    TooManyUnits {
        /// How many there are.
        found: usize,
    },
    /// There was no memory for the map.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A unit's claim to a function.
#[derive(Clone, Copy, Debug)]
struct FunctionClaim {
    function: PciAddress,
    unit: UnitIndex,
}

/// A unit's claim to all that is behind a bridge.
#[derive(Clone, Copy, Debug)]
struct BusClaim {
    segment: Segment,
    buses: BusRange,
    unit: UnitIndex,
}

/// The unit that covers what nobody else claims in a segment.
#[derive(Clone, Copy, Debug)]
struct Rest {
    segment: Segment,
    unit: UnitIndex,
}

/// Buses where a scope that could not be resolved may have claimed anything.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    segment: Segment,
    from_bus: u8,
    unit: UnitIndex,
}

/// An id that a function sends with beside its own.
#[derive(Clone, Copy, Debug)]
struct OtherId {
    id: PciAddress,
    of: PciAddress,
}

/// The map from requesters to units.
#[derive(Debug)]
pub struct Coverage {
    /// Sorted by id.
    other_ids: Vec<OtherId>,
    functions: Vec<FunctionClaim>,
    buses: Vec<BusClaim>,
    rest: Vec<Rest>,
    doubts: Vec<Doubt>,
    problems: Vec<CoverageProblem>,
}

/// What the map says about a requester.
enum Verdict {
    Covered(UnitIndex),
    Uncovered,
    Conflict(UnitIndex, UnitIndex),
}

impl Coverage {
    /// Builds the map for the units of `dmar` and judges the machine's `functions` by it.
    ///
    /// Bridges on the way are read through `config`, so the bus numbers must be assigned. What is
    /// wrong is kept in [`problems`](Self::problems); [`check`](Self::check) applies a policy.
    ///
    /// # Errors
    /// [`CoverageError::TooManyUnits`] or [`CoverageError::OutOfMemory`].
    pub fn new<C: PciConfig>(
        config: &C,
        dmar: &Dmar,
        functions: &[PciFunction],
    ) -> Result<Self, CoverageError> {
        let mut map = Self {
            other_ids: other_ids(functions)?,
            functions: Vec::new(),
            buses: Vec::new(),
            rest: Vec::new(),
            doubts: Vec::new(),
            problems: Vec::new(),
        };
        for (number, drhd) in dmar.units.iter().enumerate() {
            let unit = UnitIndex::new(number).ok_or(CoverageError::TooManyUnits {
                found: dmar.units.len(),
            })?;
            let segment = drhd.segment;
            if drhd.include_all() {
                push(&mut map.rest, Rest { segment, unit })?;
            }
            // Interrupt sources and ACPI devices are no PCI functions: no group has them, so
            // nobody claims them, and an entry for their requester ids is never made.
            for scope in drhd.scopes.iter().filter(|scope| scope.kind.is_pci()) {
                match resolve(config, segment, scope) {
                    Ok(target) => map.claim(unit, target)?,
                    Err(why) => {
                        let place = drhd.place.scope(scope.offset);
                        push(
                            &mut map.problems,
                            CoverageProblem::Unresolved { unit, place, why },
                        )?;
                        let from_bus = scope.start_bus;
                        push(
                            &mut map.doubts,
                            Doubt {
                                segment,
                                from_bus,
                                unit,
                            },
                        )?;
                    }
                }
            }
        }
        for &PciFunction { address, .. } in functions {
            let function = address;
            match map.verdict(function) {
                Verdict::Covered(_) => {}
                Verdict::Uncovered => {
                    push(&mut map.problems, CoverageProblem::Uncovered { function })?;
                }
                Verdict::Conflict(first, second) => push(
                    &mut map.problems,
                    CoverageProblem::Conflict {
                        function,
                        first,
                        second,
                    },
                )?,
            }
        }
        Ok(map)
    }

    /// The function whose id, or one of whose ids, this is.
    pub(crate) fn function_of(&self, requester: PciAddress) -> PciAddress {
        let found = self
            .other_ids
            .binary_search_by_key(&requester, |other| other.id);
        let other = found.ok().and_then(|index| self.other_ids.get(index));
        other.map_or(requester, |other| other.of)
    }

    fn claim(&mut self, unit: UnitIndex, target: Target) -> Result<(), OutOfMemory> {
        let function = target.function;
        push(&mut self.functions, FunctionClaim { function, unit })?;
        if let Some(buses) = target.buses {
            let segment = function.segment();
            push(
                &mut self.buses,
                BusClaim {
                    segment,
                    buses,
                    unit,
                },
            )?;
        }
        Ok(())
    }

    /// Accepts the map, or refuses it, as the policy says. Logs every problem either way.
    ///
    /// # Errors
    /// [`CoverageError::Refused`] with the first problem, under [`CoveragePolicy::Strict`].
    pub fn check(&self, policy: CoveragePolicy) -> Result<(), CoverageError> {
        for problem in &self.problems {
            warn!("VT-d coverage: {problem}");
        }
        match (policy, self.problems.first()) {
            (CoveragePolicy::Strict, Some(&problem)) => Err(CoverageError::Refused(problem)),
            _ => Ok(()),
        }
    }

    /// All that is wrong: scopes first, then functions in the order they were given.
    pub fn problems(&self) -> &[CoverageProblem] {
        &self.problems
    }

    /// The unit that translates for `requester`; `None` when no unit does, or several claim to.
    ///
    /// Any requester id may be asked for: functions, and aliases behind bridges too.
    pub fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex> {
        match self.verdict(requester) {
            Verdict::Covered(unit) => Some(unit),
            Verdict::Uncovered | Verdict::Conflict(..) => None,
        }
    }

    /// Whether some unit names `requester` or a bridge above it, instead of taking what is left.
    pub fn is_named(&self, requester: PciAddress) -> bool {
        let requester = self.function_of(requester);
        let (segment, bus) = (requester.segment(), requester.bus());
        let behind = |claim: &BusClaim| claim.segment == segment && claim.buses.contains(bus);
        self.functions
            .iter()
            .any(|claim| claim.function == requester)
            || self.buses.iter().any(behind)
    }

    fn verdict(&self, requester: PciAddress) -> Verdict {
        let requester = self.function_of(requester);
        let (segment, bus) = (requester.segment(), requester.bus());
        let named = self
            .functions
            .iter()
            .filter(|claim| claim.function == requester)
            .map(|claim| claim.unit);
        let behind = self
            .buses
            .iter()
            .filter(|claim| claim.segment == segment && claim.buses.contains(bus))
            .map(|claim| claim.unit);
        let mut claims = named.chain(behind);
        if let Some(first) = claims.next() {
            return match claims.find(|&unit| unit != first) {
                Some(second) => Verdict::Conflict(first, second),
                None => Verdict::Covered(first),
            };
        }
        let Some(rest) = self.rest.iter().find(|rest| rest.segment == segment) else {
            return Verdict::Uncovered;
        };
        // Nobody names it. The unit for the rest has it, unless a scope of another unit that leads
        // nowhere may have meant it.
        let doubted = self.doubts.iter().any(|doubt| {
            doubt.segment == segment && doubt.from_bus <= bus && doubt.unit != rest.unit
        });
        if doubted {
            Verdict::Uncovered
        } else {
            Verdict::Covered(rest.unit)
        }
    }
}

/// The ids of virtual and phantom functions that no listed function has for its own.
fn other_ids(functions: &[PciFunction]) -> Result<Vec<OtherId>, OutOfMemory> {
    let mut others = Vec::new();
    let mut listed = Vec::new();
    for function in functions {
        let of = function.address;
        push(&mut listed, of)?;
        for id in function.virtual_ids() {
            push(&mut others, OtherId { id, of })?;
        }
    }
    listed.sort_unstable();
    for function in functions {
        let of = function.address;
        let phantoms = function.phantom_ids();
        for id in phantoms.filter(|id| listed.binary_search(id).is_err()) {
            push(&mut others, OtherId { id, of })?;
        }
    }
    others.sort_unstable_by_key(|other| (other.id, other.of));
    Ok(others)
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut line = |f: &mut fmt::Formatter<'_>| {
            if core::mem::take(&mut first) {
                Ok(())
            } else {
                writeln!(f)
            }
        };
        for claim in &self.functions {
            line(f)?;
            write!(f, "{}  {}", claim.unit, claim.function)?;
        }
        for claim in &self.buses {
            line(f)?;
            write!(
                f,
                "{}  {:04x}:{:02x}-{:02x} (buses)",
                claim.unit, claim.segment.0, claim.buses.secondary, claim.buses.subordinate
            )?;
        }
        for rest in &self.rest {
            line(f)?;
            write!(f, "{}  {:04x}:* (all others)", rest.unit, rest.segment.0)?;
        }
        for problem in &self.problems {
            line(f)?;
            write!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
