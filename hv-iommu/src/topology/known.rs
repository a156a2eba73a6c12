//! The functions that the subsystem was told of, which group each is in, and what of them changed since.

use alloc::vec::Vec;
use core::fmt;

use hv_core::list::push;
use hv_core::platform::PciConfig;
use hv_core::{OutOfMemory, PciAddress};
use thiserror::Error;

use super::registers::Registers;
use super::{AccessControl, BusRange, FunctionKind, PciFunction};
use crate::group::GroupId;
use crate::spec::FUNCTION_NUMBER_BITS;

/// A fact about a function on which its group's isolation stands, and which is no longer as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolationFact {
    /// Its access control (ACS) lets requests past the IOMMU, also after it was set again.
    AccessControl {
        /// As it was.
        expected: AccessControl,
        /// As it is.
        found: AccessControl,
    },
    /// Its device has more functions than one now.
    MultiFunction,
    /// The buses behind it are others: ids behind it are not what they were.
    Buses {
        /// As they were.
        expected: BusRange,
        /// As they are.
        found: BusRange,
    },
    /// Whether it forwards to functions above number 7 (ARI) changed.
    AriForwarding,
    /// Its virtual functions are switched on with other ids.
    VirtualFunctions,
}

impl fmt::Display for IsolationFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AccessControl { expected, found } => {
                write!(f, "expected access control {expected}, found {found}")
            }
            Self::MultiFunction => f.write_str("expected a device of one function, found several"),
            Self::Buses { expected, found } => write!(
                f,
                "expected buses {:02x}-{:02x} behind it, found {:02x}-{:02x}",
                expected.secondary, expected.subordinate, found.secondary, found.subordinate
            ),
            Self::AriForwarding => {
                f.write_str("expected ARI forwarding as before, found it changed")
            }
            Self::VirtualFunctions => {
                f.write_str("expected its virtual functions where they were, found them moved")
            }
        }
    }
}

/// Why a group does not go on: nobody knows that it is still apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IsolationError {
    /// What keeps it apart is no longer as it was when the function came in.
    #[error(
        "{group} is not kept apart any more: {function}: {fact}; set it as it was and try again"
    )]
    Lost {
        /// The group.
        group: GroupId,
        /// The function that changed.
        function: PciAddress,
        /// What changed.
        fact: IsolationFact,
    },
    /// There was no memory to look.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A function, as it was given and as its registers were then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) given: PciFunction,
    /// `None` when it did not answer.
    seen: Option<Registers>,
}

/// What is known of a function now.
pub(crate) struct Look {
    /// It, as far as that counts for groups.
    pub(crate) now: PciFunction,
    /// What changed for the worse.
    pub(crate) changed: Option<IsolationFact>,
    /// Whether it did not answer. It sends nothing then, but has to be looked at before it does.
    pub(crate) silent: bool,
    /// Whether that is so of its virtual functions, which are switched off.
    pub(crate) virtual_off: bool,
}

impl Known {
    /// A function that comes in.
    pub(crate) fn new(config: &impl PciConfig, given: PciFunction) -> Self {
        let seen = Registers::read(config, &given);
        Self { given, seen }
    }

    /// The function, given once more. What its registers were at first stays known, but where something else is given
    /// now: they may be as a reset left them.
    pub(crate) fn again(&self, config: &impl PciConfig, given: PciFunction) -> Self {
        let (old, now) = (&self.given, Registers::read(config, &given));
        let Some(mut seen) = self.seen else {
            return Self { given, seen: now };
        };
        if given.kind.buses() != old.kind.buses() {
            seen.buses = now.and_then(|now| now.buses);
        }
        if given.access_control != old.access_control {
            seen.acs = now.and_then(|now| now.acs);
        }
        let places = now.and_then(|now| now.virtual_places);
        let same = given.virtual_functions == old.virtual_functions;
        seen.virtual_places = seen.virtual_places.filter(|_| same).or(places);
        let seen = Some(seen);
        Self { given, seen }
    }

    /// What is known of it now, and whether it answers. Only of the `own` functions of a group, or on
    /// their way, is set again what was lost, and counts what moves ids.
    ///
    /// # Errors
    /// The fact, where nothing can be said of groups any more.
    pub(crate) fn look(&self, config: &impl PciConfig, own: bool) -> Result<Look, IsolationFact> {
        let given = self.given;
        let as_given = |silent| Look {
            now: given,
            changed: None,
            silent,
            virtual_off: false,
        };
        let Some(now) = Registers::read(config, &given) else {
            return Ok(as_given(true));
        };
        let Some(then) = &self.seen else {
            // It did not answer when it came in: nothing is known of it but what was given.
            return Ok(as_given(false));
        };
        let now = match own {
            true => now.set_again(config, &given, then),
            false => Some(now),
        };
        let Some(now) = now else {
            return Ok(as_given(true));
        };
        let virtual_off = then.virtual_places.is_some() && now.virtual_places.is_none();
        if own {
            if let (Some(expected), Some(found)) = (then.buses, now.buses)
                && expected != found
            {
                return Err(IsolationFact::Buses { expected, found });
            }
            if then.ari_forwarding != now.ari_forwarding {
                return Err(IsolationFact::AriForwarding);
            }
            if let (Some(then), Some(now)) = (then.virtual_places, now.virtual_places)
                && then != now
            {
                return Err(IsolationFact::VirtualFunctions);
            }
        }
        let (mut given, mut changed) = (given, None);
        if now.multi_function && !then.multi_function && !given.multi_function {
            given.multi_function = true;
            changed = Some(IsolationFact::MultiFunction);
        }
        if let Some(was) = then.acs {
            let (capability, control) = now.acs.map_or((0, 0), |acs| (acs.capability, acs.control));
            if let Some(change) = AccessControl::change(was.control, control) {
                given.access_control = given.access_control.changed(change);
                changed = Some(IsolationFact::AccessControl {
                    expected: AccessControl::from_registers(was.capability, was.control),
                    found: AccessControl::from_registers(capability, control),
                });
            }
        }
        Ok(Look {
            now: given,
            changed,
            silent: false,
            virtual_off,
        })
    }
}

/// Which group a function that does DMA is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) member: PciAddress,
    pub(crate) group: GroupId,
}

/// All functions that are known, and their groups.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    pub(crate) functions: Vec<Known>,
    /// Sorted by member. Those of groups that nobody can claim are not here.
    pub(crate) placed: Vec<Placed>,
    /// The number of the next group.
    pub(crate) next: u32,
    /// How often any of this changed.
    pub(crate) changes: u64,
}

impl Topology {
    /// A copy, to work on without a lock.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn copy(&self) -> Result<Self, OutOfMemory> {
        Ok(Self {
            functions: copied(&self.functions)?,
            placed: copied(&self.placed)?,
            next: self.next,
            changes: self.changes,
        })
    }

    /// The group that a function is in, if it is in one that can be claimed.
    pub(crate) fn group_of(&self, member: PciAddress) -> Option<GroupId> {
        let found = self
            .placed
            .binary_search_by_key(&member, |placed| placed.member);
        found
            .ok()
            .and_then(|index| self.placed.get(index))
            .map(|placed| placed.group)
    }

    /// The function that sends with this id: itself, or the one whose virtual or phantom function it is.
    pub(crate) fn sender(&self, requester: PciAddress) -> PciAddress {
        let is = |known: &&Known| known.given.address == requester;
        if self.functions.iter().any(|known| is(&known)) {
            return requester;
        }
        let sends = |known: &&Known| {
            let mut ids = known.given.virtual_ids().chain(known.given.phantom_ids());
            ids.any(|id| id == requester)
        };
        let found = self.functions.iter().find(sends);
        found.map_or(requester, |known| known.given.address)
    }
}

impl Topology {
    /// The function whose registers speak for the whole device that a function is of: number 0 of it. Behind a port of PCI
    /// Express there is one device on a bus, whatever the numbers of its functions (ARI).
    pub(crate) fn first_of_device(&self, function: PciAddress) -> PciAddress {
        let port_to = |known: &Known| match known.given.kind {
            FunctionKind::RootPort(buses) | FunctionKind::DownstreamPort(buses) => {
                buses.secondary == function.bus()
                    && known.given.address.segment() == function.segment()
            }
            _ => false,
        };
        let is_alone = self.functions.iter().any(port_to);
        let others =
            (1 << if is_alone {
                u8::BITS
            } else {
                FUNCTION_NUMBER_BITS.into()
            }) - 1;
        let first = function.requester() & !others;
        PciAddress::from_requester(function.segment(), first)
    }
}

fn copied<T: Copy>(list: &[T]) -> Result<Vec<T>, OutOfMemory> {
    let mut copy = Vec::new();
    let bytes = size_of_val(list);
    copy.try_reserve(list.len())
        .map_err(|_| OutOfMemory { bytes })?;
    copy.extend_from_slice(list);
    Ok(copy)
}

/// Which function sends with which id, where that is not its own.
pub(crate) struct Senders(Vec<(PciAddress, PciAddress)>);

impl Senders {
    /// For these functions.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(crate) fn new(functions: &[PciFunction]) -> Result<Self, OutOfMemory> {
        let mut senders = Vec::new();
        for function in functions {
            let of = function.address;
            push(&mut senders, (of, of))?;
            for id in function.virtual_ids().chain(function.phantom_ids()) {
                push(&mut senders, (id, of))?;
            }
        }
        // An id that a function has for its own is that function's, whoever else may send with it.
        senders.sort_unstable_by_key(|&(id, of)| (id, id != of, of));
        senders.dedup_by_key(|sender| sender.0);
        Ok(Self(senders))
    }

    /// The function that sends with this id; the id itself if none is known to (an alias of a bridge).
    pub(crate) fn of(&self, id: PciAddress) -> PciAddress {
        let found = self.0.binary_search_by_key(&id, |sender| sender.0);
        let sender = found.ok().and_then(|index| self.0.get(index));
        sender.map_or(id, |sender| sender.1)
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use hv_core::Segment;

    use super::*;

    struct Nobody;

    impl PciConfig for Nobody {
        fn config_read32(&self, _function: PciAddress, _offset: u16) -> u32 {
            u32::MAX
        }

        fn config_write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
    }

    #[test]
    fn a_device_is_spoken_for_by_its_function_of_number_0() {
        let at = |requester| PciAddress::from_requester(Segment(0), requester);
        let buses = BusRange {
            secondary: 1,
            subordinate: 2,
        };
        let port = FunctionKind::RootPort(buses);
        let given = PciFunction::new(at(0x00e0), port);
        let mut topology = Topology::default();
        topology.functions.push(Known::new(&Nobody, given));
        for (function, first) in [
            (0x00e1, 0x00e0),
            (0x0017, 0x0010),
            (0x0100, 0x0100),
            // Behind the port there is one device, of up to 256 functions.
            (0x0117, 0x0100),
            // On another bus behind it there may be more.
            (0x0217, 0x0210),
        ] {
            assert_eq!(topology.first_of_device(at(function)), at(first));
        }
        let elsewhere = PciAddress::from_requester(Segment(1), 0x0117);
        assert_eq!(topology.first_of_device(elsewhere).requester(), 0x0110);
    }
}
