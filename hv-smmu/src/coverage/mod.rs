//! Which unit translates for which requester, and as which stream: a total map, from firmware's word.
//!
//! A requester has one unit and one StreamID, or nobody can claim it: one that firmware sends nowhere, past the units, to
//! something that is not driven here, or to two places. Requesters of one stream of a unit cannot be told apart, so they
//! have to be claimed together; where they are not of one group, or one of them is no PCI function, nobody can claim them.
//! Virtual and phantom functions have requester ids of their own here, and are looked up by them.

mod messages;

use alloc::vec::Vec;
use core::fmt;

use hv_core::list::push;
use hv_core::{OutOfMemory, PciAddress, PhysRange};
use hv_iommu::{PciFunction, UnitIndex, group_plans};
use log::warn;
use thiserror::Error;

use crate::firmware::{
    Firmware, FirmwareFinding, MessageWriter, PciHost, RequestTarget, RequesterLimits, Route,
};
use crate::window::{Resolved, resolve};
use crate::{DeviceId, StreamId};

/// What to do with a machine of which some function belongs to no unit, or whose firmware tables are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CoveragePolicy {
    /// Refuse the machine and say why.
    #[default]
    Strict,
    /// Log it. The function can never be claimed; a table is taken as it reads.
    Lenient,
}

/// Why some requesters belong to no unit, or may seem to belong to the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CoverageProblem {
    /// Firmware's tables are damaged.
    #[error("firmware may mean something else: {0}")]
    Doubtful(#[from] FirmwareFinding),
    /// Firmware sends a requester nowhere.
    #[error("{requester}: expected one SMMU that it goes through, found none")]
    Uncovered {
        /// The requester.
        requester: PciAddress,
    },
    /// Firmware sends a requester to memory past every unit.
    #[error("{requester}: expected one SMMU that it goes through, found a way past all")]
    Bypasses {
        /// The requester.
        requester: PciAddress,
    },
    /// Firmware sends a requester to something that is not driven here.
    #[error("{requester}: expected an SMMUv3, found another IOMMU, or one that is off or damaged")]
    Foreign {
        /// The requester.
        requester: PciAddress,
    },
    /// Firmware sends a requester to two places.
    #[error("{requester}: expected one way, found {first} and {second}")]
    Conflict {
        /// The requester.
        requester: PciAddress,
        /// One of them.
        first: Way,
        /// The other.
        second: Way,
    },
    /// Two requesters of different groups are one stream.
    #[error(
        "{requester}: expected a stream of its own, found {stream} of {unit}, which {other} has too"
    )]
    SharedStream {
        /// One of the requesters.
        requester: PciAddress,
        /// The other.
        other: PciAddress,
        /// Their unit.
        unit: UnitIndex,
        /// Their stream.
        stream: StreamId,
    },
    /// A requester is one stream with a device that is no PCI function.
    #[error(
        "{requester}: expected a stream of its own, found {stream} of {unit}, which a platform device has too"
    )]
    SharedWithPlatform {
        /// The requester.
        requester: PciAddress,
        /// Its unit.
        unit: UnitIndex,
        /// Its stream.
        stream: StreamId,
    },
    /// Two units lie in each other's registers.
    #[error("expected registers of its own, found {registers} of two units")]
    SharedRegisters {
        /// The registers of one.
        registers: PhysRange,
    },
}

/// Where a requester goes, as a message says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to.
    pub to: RequestTarget,
    /// As what.
    pub id: u32,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            RequestTarget::Unit(unit) => write!(f, "{} of {unit}", StreamId::new(self.id)),
            RequestTarget::Foreign => write!(f, "id {:#x} of another IOMMU", self.id),
            RequestTarget::Memory => write!(f, "memory as id {:#x}", self.id),
        }
    }
}

/// Why there is no coverage map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CoverageError {
    /// The policy does not accept it.
    #[error("a device could go round every SMMU: {0}; a lenient policy would leave it unclaimable")]
    Refused(#[from] CoverageProblem),
    /// There was no memory for the map.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A requester that belongs to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The unit that translates for it.
    pub unit: UnitIndex,
    /// As which stream.
    pub stream: StreamId,
    /// Who it is to interrupt services, if firmware says so, once.
    pub messages: Option<MessageWriter>,
    /// What it may do, as far as firmware knows.
    pub limits: RequesterLimits,
}

/// A requester of a listed function, and its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    unit: UnitIndex,
    stream: StreamId,
    /// It is a port, which is bound to nothing itself: behind those of its stream that are.
    is_port: bool,
    requester: PciAddress,
    /// The number of its group.
    group: usize,
}

/// A stream that nobody can claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Barred {
    unit: UnitIndex,
    stream: StreamId,
}

/// The map from requesters to units and streams.
#[derive(Debug)]
pub struct Coverage {
    firmware: Firmware,
    /// Sorted: those of one stream stand together.
    listed: Vec<Listed>,
    /// Sorted.
    barred: Vec<Barred>,
    problems: Vec<CoverageProblem>,
    /// Which controller each of the services is.
    controllers: Vec<usize>,
}

/// What firmware says about a requester.
enum Verdict<'a> {
    Covered(&'a PciHost, UnitIndex, StreamId),
    Problem(CoverageProblem),
}

impl Coverage {
    /// Builds the map and judges the machine's `functions` by it.
    ///
    /// What is wrong is kept in [`problems`](Self::problems); [`check`](Self::check) applies a policy.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(firmware: Firmware, functions: &[PciFunction]) -> Result<Self, OutOfMemory> {
        let controllers = messages::controllers(&firmware.services)?;
        let mut map = Self {
            controllers,
            firmware,
            listed: Vec::new(),
            barred: Vec::new(),
            problems: Vec::new(),
        };
        map.judge_firmware()?;
        for sender in grouped(functions)? {
            map.judge(sender)?;
        }
        map.listed.sort_unstable();
        map.judge_sharing()?;
        Ok(map)
    }

    fn judge_firmware(&mut self) -> Result<(), OutOfMemory> {
        for &finding in &self.firmware.findings {
            if !finding.is_harmless() {
                push(&mut self.problems, finding.into())?;
            }
        }
        for (number, unit) in self.firmware.units.iter().enumerate() {
            let mut others = self.firmware.units.iter().take(number);
            if others.any(|other| other.registers.overlaps(&unit.registers)) {
                let registers = unit.registers;
                push(
                    &mut self.problems,
                    CoverageProblem::SharedRegisters { registers },
                )?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, sender: Sender) -> Result<(), OutOfMemory> {
        let Sender {
            requester,
            group,
            is_port,
        } = sender;
        match self.verdict(requester) {
            Verdict::Covered(_, unit, stream) => {
                let listed = Listed {
                    unit,
                    stream,
                    is_port,
                    requester,
                    group,
                };
                push(&mut self.listed, listed)
            }
            Verdict::Problem(problem) => push(&mut self.problems, problem),
        }
    }

    /// Bars streams that have requesters of two groups, or a device that is no PCI function.
    fn judge_sharing(&mut self) -> Result<(), OutOfMemory> {
        let together =
            |one: &Listed, other: &Listed| one.unit == other.unit && one.stream == other.stream;
        for sharing in self.listed.chunk_by(together) {
            let Some(&Listed {
                unit,
                stream,
                requester,
                group,
                ..
            }) = sharing.first()
            else {
                continue;
            };
            let stranger = sharing.iter().find(|listed| listed.group != group);
            let mut devices = self.firmware.devices.iter();
            let problem = if let Some(stranger) = stranger {
                CoverageProblem::SharedStream {
                    requester,
                    other: stranger.requester,
                    unit,
                    stream,
                }
            } else if devices.any(|device| device.has_stream(unit, stream)) {
                CoverageProblem::SharedWithPlatform {
                    requester,
                    unit,
                    stream,
                }
            } else {
                continue;
            };
            push(&mut self.problems, problem)?;
            push(&mut self.barred, Barred { unit, stream })?;
        }
        // INVARIANT: `listed` is sorted by unit and stream, and so is what was taken from it in order.
        Ok(())
    }

    /// Accepts the map, or refuses it, as the policy says. Logs every problem either way.
    ///
    /// # Errors
    /// [`CoverageError::Refused`] with the first problem, under [`CoveragePolicy::Strict`].
    pub fn check(&self, policy: CoveragePolicy) -> Result<(), CoverageError> {
        for problem in &self.problems {
            warn!("SMMU coverage: {problem}");
        }
        match (policy, self.problems.first()) {
            (CoveragePolicy::Strict, Some(&problem)) => Err(CoverageError::Refused(problem)),
            _ => Ok(()),
        }
    }

    /// All that is wrong: with firmware's tables first, then requesters.
    pub fn problems(&self) -> &[CoverageProblem] {
        &self.problems
    }

    /// What firmware says, as it was given.
    pub const fn firmware(&self) -> &Firmware {
        &self.firmware
    }

    /// The unit that translates for `requester`, and as which stream; `None` when no unit does, several claim to, or the
    /// stream is shared with somebody of another group.
    ///
    /// Any requester id may be asked for: functions, and aliases behind bridges too.
    pub fn unit_of(&self, requester: PciAddress) -> Option<(UnitIndex, StreamId)> {
        let Verdict::Covered(host, unit, stream) = self.verdict(requester) else {
            return None;
        };
        self.is_open(host, unit, stream, requester)
            .then_some((unit, stream))
    }

    /// All that firmware says about a requester that belongs to a unit.
    pub fn requester(&self, requester: PciAddress) -> Option<Requester> {
        let Verdict::Covered(host, unit, stream) = self.verdict(requester) else {
            return None;
        };
        self.is_open(host, unit, stream, requester)
            .then(|| Requester {
                unit,
                stream,
                messages: self.messages(host, requester, unit, stream),
                limits: host.limits,
            })
    }

    /// The requesters of listed functions that are one stream with `requester`, itself included: its aliases.
    pub fn aliases_of(&self, requester: PciAddress) -> impl Iterator<Item = PciAddress> {
        let place = match self.verdict(requester) {
            Verdict::Covered(_, unit, stream) => Some((unit, stream)),
            Verdict::Problem(_) => None,
        };
        let listed = self.listed.iter();
        let aliases = listed.filter(move |listed| Some((listed.unit, listed.stream)) == place);
        aliases.map(|listed| listed.requester)
    }

    /// The requester that sends as this stream: of several listed functions the first that can be bound; else the one that
    /// came later, where only one can. For events.
    pub fn requester_of(&self, unit: UnitIndex, stream: StreamId) -> Option<PciAddress> {
        self.listed_as(unit, stream)
            .or_else(|| self.only_requester_of(unit, stream))
    }

    /// The one requester that can be this stream, whether it is listed or not.
    fn only_requester_of(&self, unit: UnitIndex, stream: StreamId) -> Option<PciAddress> {
        let hosts = self.firmware.hosts.iter();
        let routes = hosts.flat_map(|host| host.streams.iter().map(move |route| (host, route)));
        let mut requesters = routes.filter_map(|(host, route)| {
            let (first, _) = route.window.input()?;
            let (start, end) = route.window.output();
            let is_here = route.to == RequestTarget::Unit(unit);
            let offset = stream.get().checked_sub(start)?;
            let id = u16::try_from(first.checked_add(offset)?).ok()?;
            (is_here && stream.get() <= end).then(|| PciAddress::from_requester(host.segment, id))
        });
        let requester = requesters.next()?;
        (self.unit_of(requester) == Some((unit, stream))).then_some(requester)
    }

    /// Whether no two requester ids can be this stream: nothing of an id is masked, no window takes all of them, and one
    /// window alone gives the stream out.
    fn is_ones_own(&self, host: &PciHost, unit: UnitIndex, stream: StreamId) -> bool {
        let whole = u32::from(u16::MAX);
        let hosts = self.firmware.hosts.iter();
        let windows = hosts.flat_map(|host| &host.streams).filter(|route| {
            let (start, end) = route.window.output();
            route.to == RequestTarget::Unit(unit) && (start..=end).contains(&stream.get())
        });
        let takes_all = |route: &Route<RequestTarget>| route.window.input().is_none();
        host.stream_mask & whole == whole
            && !host.streams.iter().any(takes_all)
            && windows.count() == 1
    }

    /// The requesters of listed functions that may be bound to a stream of this unit, and as which.
    pub(crate) fn listed_behind(
        &self,
        unit: UnitIndex,
    ) -> impl Iterator<Item = (PciAddress, StreamId)> {
        let listed = self.listed.iter();
        let behind = listed.filter(move |listed| listed.unit == unit && !listed.is_port);
        behind.map(|listed| (listed.requester, listed.stream))
    }

    /// Whether a listed function, or a device that is none, has one of these streams.
    pub(crate) fn has_any(&self, unit: UnitIndex, first: StreamId, last: StreamId) -> bool {
        let within =
            |listed: &Listed| listed.unit == unit && (first..=last).contains(&listed.stream);
        let mut devices = self.firmware.devices.iter();
        self.listed.iter().any(within)
            || devices.any(|device| {
                let mut streams = device.streams.iter();
                streams.any(|&(own, low, high)| own == unit && low <= last && first <= high)
            })
    }

    /// The requester of a listed function that sends as this stream: of several the first that is no port, if there is one.
    fn listed_as(&self, unit: UnitIndex, stream: StreamId) -> Option<PciAddress> {
        let at = self
            .listed
            .partition_point(|listed| (listed.unit, listed.stream) < (unit, stream));
        let listed = self.listed.get(at)?;
        (listed.unit == unit && listed.stream == stream).then_some(listed.requester)
    }

    /// Whether a stream can be claimed with this requester. One that is not listed, since it came later, is not told from
    /// whoever has the stream in the list, nor from another one that comes later unless no other can be that stream.
    fn is_open(
        &self,
        host: &PciHost,
        unit: UnitIndex,
        stream: StreamId,
        requester: PciAddress,
    ) -> bool {
        let barred = self.barred.binary_search(&Barred { unit, stream }).is_ok();
        let mut devices = self.firmware.devices.iter();
        let platform = devices.any(|device| device.has_stream(unit, stream));
        let is_listed = self.aliases_of(requester).any(|id| id == requester);
        let is_free =
            self.listed_as(unit, stream).is_none() && self.is_ones_own(host, unit, stream);
        !barred && !platform && (is_listed || is_free)
    }

    fn verdict(&self, requester: PciAddress) -> Verdict<'_> {
        let id = u32::from(requester.requester());
        let mut found: Option<(&PciHost, Way)> = None;
        for host in self.hosts_of(requester) {
            let routes = host.streams.iter().map(|route| (route.window, route.to));
            let way = match resolve(routes, id & host.stream_mask) {
                Resolved::Nothing => continue,
                Resolved::One(to, id) => Way { to, id },
                Resolved::Several(first, second) => {
                    let [first, second] = [first, second].map(|(to, id)| Way { to, id });
                    return Verdict::Problem(CoverageProblem::Conflict {
                        requester,
                        first,
                        second,
                    });
                }
            };
            match found {
                Some((_, other)) if other != way => {
                    return Verdict::Problem(CoverageProblem::Conflict {
                        requester,
                        first: other,
                        second: way,
                    });
                }
                _ => found = Some((host, way)),
            }
        }
        let problem = match found {
            Some((host, way)) => match way.to {
                RequestTarget::Unit(unit) => {
                    return Verdict::Covered(host, unit, StreamId::new(way.id));
                }
                RequestTarget::Memory => CoverageProblem::Bypasses { requester },
                RequestTarget::Foreign => CoverageProblem::Foreign { requester },
            },
            None => CoverageProblem::Uncovered { requester },
        };
        Verdict::Problem(problem)
    }

    fn hosts_of(&self, requester: PciAddress) -> impl Iterator<Item = &PciHost> {
        self.firmware.hosts.iter().filter(move |host| {
            let (first, last) = host.buses;
            host.segment == requester.segment() && (first..=last).contains(&requester.bus())
        })
    }

    /// Who a requester is to interrupt services: by its own id, or by its stream's. Nobody if the two disagree.
    fn messages(
        &self,
        host: &PciHost,
        requester: PciAddress,
        unit: UnitIndex,
        stream: StreamId,
    ) -> Option<MessageWriter> {
        let own = u32::from(requester.requester()) & host.message_mask;
        let through = self.firmware.units.get(unit.index());
        let through = through.map_or(&[][..], |unit| &unit.messages);
        let by_own = writer(&host.messages, own)?;
        let by_stream = writer(through, stream.get())?;
        match (by_own, by_stream) {
            (Some(one), Some(other)) => self.is_one_writer(one, other).then_some(one),
            (one, other) => one.or(other),
        }
    }
}

/// An id that a listed function may send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sender {
    requester: PciAddress,
    /// The number of its group. Ports that are in no group have a number of their own.
    group: usize,
    is_port: bool,
}

/// Every id that a listed function may send with.
fn grouped(functions: &[PciFunction]) -> Result<Vec<Sender>, OutOfMemory> {
    let plans = group_plans(functions)?;
    let mut grouped = Vec::new();
    let mut add = |group, requester, is_port| {
        let sender = Sender {
            requester,
            group,
            is_port,
        };
        push(&mut grouped, sender)
    };
    for (group, plan) in plans.iter().enumerate() {
        for &requester in &plan.requesters {
            add(group, requester, false)?;
        }
        for &port in &plan.ports {
            add(group, port, true)?;
        }
    }
    for (number, function) in functions.iter().enumerate() {
        add(plans.len() + number, function.address, true)?;
    }
    // Of an id's entries the one of its group comes first, and there the one that can be bound.
    grouped.sort_unstable();
    grouped.dedup_by_key(|sender| sender.requester);
    Ok(grouped)
}

/// Who an id is to interrupt services; the outer `None` if that is told twice.
fn writer(
    routes: &[Route<crate::firmware::ServicesIndex>],
    id: u32,
) -> Option<Option<MessageWriter>> {
    let routes = routes.iter().map(|route| (route.window, route.to));
    match resolve(routes, id) {
        Resolved::Nothing => Some(None),
        Resolved::One(services, id) => Some(Some(MessageWriter {
            services,
            device: DeviceId::new(id),
        })),
        Resolved::Several(..) => None,
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, unit) in self.firmware.units.iter().enumerate() {
            writeln!(f, "unit {number}: {unit}")?;
        }
        for listed in &self.listed {
            writeln!(
                f,
                "{}  {} of {}",
                listed.requester, listed.stream, listed.unit
            )?;
        }
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        Ok(())
    }
}
