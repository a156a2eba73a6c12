//! The PCI functions of a machine and what decides whether they can be told apart and kept apart, as the
//! embedder enumerated them.

mod acs;
mod known;
mod partition;
mod registers;

use core::fmt;

use hv_core::{PciAddress, Segment};

pub use acs::AccessControl;
pub use known::{IsolationError, IsolationFact};
pub(crate) use known::{Known, Placed, Senders, Topology};
pub use partition::{GroupPlan, group_plans};
pub(crate) use registers::{extended, halves};

use crate::spec::{
    CONTROL_VF_ENABLE, DEVICE_PHANTOM_MASK, DEVICE_PHANTOM_SHIFT, FUNCTION_NUMBER_BITS,
};

/// The buses behind a bridge, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The bus right behind the bridge.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
}

impl BusRange {
    /// Whether `bus` is behind the bridge.
    pub const fn contains(&self, bus: u8) -> bool {
        self.secondary <= bus && bus <= self.subordinate
    }
}

/// What a PCI function is, as far as isolation cares (PCI Express Base, device/port type in the PCI Express
/// capabilities register; none for conventional PCI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// A PCI Express endpoint, legacy or not, inside the root complex or behind a port.
    Endpoint,
    /// A function without ports that can have no access control: conventional PCI, an event collector, or a
    /// type that is not known.
    Conventional,
    /// A port of the root complex.
    RootPort(BusRange),
    /// A switch's port towards the root.
    UpstreamPort(BusRange),
    /// A switch's port away from the root.
    DownstreamPort(BusRange),
    /// A bridge that has a conventional bus at one end at least: what is behind it cannot be told apart.
    ConventionalBridge(BusRange),
}

impl FunctionKind {
    /// The buses behind it, if it is a bridge of any kind.
    pub const fn buses(&self) -> Option<BusRange> {
        match *self {
            Self::Endpoint | Self::Conventional => None,
            Self::RootPort(buses)
            | Self::UpstreamPort(buses)
            | Self::DownstreamPort(buses)
            | Self::ConventionalBridge(buses) => Some(buses),
        }
    }
}

/// How many bits of its function number a function may vary in what it sends, from the highest down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PhantomBits(u8);

impl PhantomBits {
    /// The function uses its own number only.
    pub const NONE: Self = Self(0);

    /// As many as the device capabilities register of the PCI Express capability says. What the function
    /// could do counts, not whether it is allowed to now: its owner can change that.
    pub const fn from_device_capabilities(word: u32) -> Self {
        Self((word >> DEVICE_PHANTOM_SHIFT & DEVICE_PHANTOM_MASK) as u8)
    }
}

/// The virtual functions of a function (SR-IOV): each sends with an id of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualFunctions {
    /// How far the first one's id is from that of the function itself.
    pub first_offset: u16,
    /// How far they are from each other.
    pub stride: u16,
    /// How many there are now.
    pub count: u16,
}

impl VirtualFunctions {
    /// As the SR-IOV capability describes them: its control register, the number of VFs, the offset of the
    /// first and their stride. `None` while they are switched off.
    pub const fn from_registers(
        control: u16,
        count: u16,
        offset: u16,
        stride: u16,
    ) -> Option<Self> {
        if control & CONTROL_VF_ENABLE == 0 || count == 0 {
            return None;
        }
        Some(Self {
            first_offset: offset,
            stride,
            count,
        })
    }
}

/// One PCI function of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: FunctionKind,
    /// Whether its device says that it has more functions than one.
    pub multi_function: bool,
    /// What it does against requests from function to function past the IOMMU.
    pub access_control: AccessControl,
    /// Which other function numbers it may send with.
    pub phantoms: PhantomBits,
    /// Its virtual functions, if they are switched on. They are not listed themselves: one
    /// that is counts as a function of a device, with all its neighbours.
    pub virtual_functions: Option<VirtualFunctions>,
}

impl PciFunction {
    /// A function of which nothing more is known: the worse is assumed. It is one of several in its device
    /// and controls no access. It has neither phantom nor virtual functions.
    pub const fn new(address: PciAddress, kind: FunctionKind) -> Self {
        Self {
            address,
            kind,
            multi_function: true,
            access_control: AccessControl::NONE,
            phantoms: PhantomBits::NONE,
            virtual_functions: None,
        }
    }

    /// The ids beside its own that its requests may carry, as functions of its device.
    pub fn phantom_ids(&self) -> impl Iterator<Item = PciAddress> + use<> {
        let bits = self.phantoms.0.min(FUNCTION_NUMBER_BITS);
        let (segment, requester) = (self.address.segment(), self.address.requester());
        let step = 1_u16 << (FUNCTION_NUMBER_BITS - bits);
        let own = requester & (step - 1);
        let device = requester & !((1 << FUNCTION_NUMBER_BITS) - 1);
        (0..1_u16 << bits)
            .map(move |number| device | (number * step) | own)
            .filter(move |id| *id != requester)
            .map(move |id| PciAddress::from_requester(segment, id))
    }

    /// The ids of its virtual functions. One whose id would be no 16-bit number cannot be, and is left out.
    pub fn virtual_ids(&self) -> impl Iterator<Item = PciAddress> + use<> {
        let (segment, requester) = (self.address.segment(), self.address.requester());
        let found = self.virtual_functions;
        let id = move |number: u16| {
            let functions = found?;
            let place = u32::from(functions.first_offset)
                + u32::from(functions.stride) * u32::from(number)
                + u32::from(requester);
            u16::try_from(place).ok()
        };
        (0..found.map_or(0, |functions| functions.count))
            .filter_map(id)
            .map(move |id| PciAddress::from_requester(segment, id))
    }

    /// For a bridge that may send in another's name: the id of the first function of the bus behind it.
    /// Its own id it may use too.
    pub(crate) fn alias(&self) -> Option<PciAddress> {
        let FunctionKind::ConventionalBridge(buses) = self.kind else {
            return None;
        };
        let id = u16::from(buses.secondary) << 8;
        Some(PciAddress::from_requester(self.address.segment(), id))
    }

    /// The ids with which it sends what comes from `function`, if it is a bridge that does so: its own, and that of the first
    /// function of the bus behind it.
    pub fn ids_for(&self, function: PciAddress) -> impl Iterator<Item = PciAddress> + use<> {
        let is_above = self.is_above(function.segment(), function.bus());
        let alias = self.alias().filter(|_| is_above);
        let own = alias.map(|_| self.address);
        own.into_iter().chain(alias)
    }

    /// Whether it is a bridge on the way to functions on that bus.
    fn is_above(&self, segment: Segment, bus: u8) -> bool {
        let behind = self.kind.buses().is_some_and(|buses| buses.contains(bus));
        behind && self.address.segment() == segment
    }
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        let what = match self.kind {
            FunctionKind::Endpoint | FunctionKind::Conventional => return Ok(()),
            FunctionKind::RootPort(_) => "root port",
            FunctionKind::UpstreamPort(_) => "upstream port",
            FunctionKind::DownstreamPort(_) => "downstream port",
            FunctionKind::ConventionalBridge(_) => "bridge",
        };
        let Some(buses) = self.kind.buses() else {
            return Ok(());
        };
        let (first, last) = (buses.secondary, buses.subordinate);
        write!(f, " ({what} to buses {first:02x}-{last:02x})")
    }
}
