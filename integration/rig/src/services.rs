//! Interrupt translation services (ITS): from whom a message comes, what it raises, and for whom that is.
//!
//! A message is a write to the one register of an ITS that devices reach, through their SMMU like any other write. The word
//! says which event; who writes comes beside it, from the bus, as the IORT says for the sender's stream (a DeviceID). A
//! table that the hypervisor fills says which interrupt an event of a device is; what it does not have is dropped. Tests
//! fill it with [`Rig::give_event`], and say who has the witness of isolated interrupts with [`Rig::isolated`]: the watcher
//! knows who really sends, and that nobody with a witness raises, or has raised, what is another tenant's.

use std::collections::BTreeMap;

use hv_core::{Access, Iova, PciAddress, PhysAddr};

use crate::bus::Bus;
use crate::interrupt::DOORBELL;
use crate::ledger::Tenant;
use crate::machine::{Machine, Source};
use crate::request::{Outcome, Request};
use crate::rig::Rig;
use crate::rng::Rng;
use crate::rule::Rule;
use crate::smmu::spec::iort::RequesterRange;
use crate::smmu::spec::services::{self as spec, FRAME_BYTES, TRANSLATER};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It came to no services.
    Elsewhere(Outcome),
    /// Services had nothing for that event of that writer.
    Dropped {
        /// Which services.
        services: usize,
        /// Who wrote, as they know it.
        device: u32,
    },
    /// It raised an interrupt.
    Raised {
        /// Which services.
        services: usize,
        /// Who wrote, as they know it.
        device: u32,
        /// Whose the interrupt is.
        tenant: Tenant,
    },
}

/// An interrupt that an event stands for.
#[derive(Clone, Copy, Debug)]
struct Given {
    tenant: Tenant,
    /// The device that it is meant for.
    device: usize,
}

/// The services of a machine.
#[derive(Default)]
pub(crate) struct Services {
    count: usize,
    /// Which of them take the messages of each unit's devices.
    routes: Vec<Option<usize>>,
    /// Requesters that write as others.
    same: BTreeMap<Source, Source>,
    /// By services, writer and event.
    events: BTreeMap<(usize, u32, u32), Given>,
    /// Devices with the witness.
    isolated: Vec<usize>,
    /// What the last message came to.
    last: Option<Message>,
}

/// Where the registers of services are.
pub(crate) const fn base_of(services: usize) -> u64 {
    DOORBELL - FRAME_BYTES + services as u64 * 2 * FRAME_BYTES
}

/// Where the frame of them is that devices reach.
pub(crate) const fn frame_of_messages(services: usize) -> u64 {
    base_of(services) + FRAME_BYTES
}

/// Who a requester is to services.
fn device_id((unit, requester): Source) -> u32 {
    0x10_0000 + ((unit as u32) << 16 | u32::from(requester))
}

impl Services {
    pub(crate) fn of(machine: &Machine) -> Self {
        let units = 0..machine.units.len();
        let same = machine.same_writers.iter();
        let same = same.filter_map(|(function, _)| {
            let source = (machine.unit_of(*function)?, function.requester());
            Some((source, machine.writes_as(source)))
        });
        Self {
            count: machine.services.len(),
            routes: units.map(|unit| machine.services_of(unit)).collect(),
            same: same.collect(),
            ..Self::default()
        }
    }

    /// Which services have this address in the frame that devices reach.
    pub(crate) fn at(&self, address: u64) -> Option<usize> {
        let inside = |services: &usize| {
            let frame = frame_of_messages(*services);
            (frame..frame + FRAME_BYTES).contains(&address)
        };
        (0..self.count).find(inside)
    }

    /// Which services a requester's messages go to, and who it is there.
    fn writer(&self, source: Source) -> Option<(usize, u32)> {
        let services = (*self.routes.get(source.0)?)?;
        let as_whom = self.same.get(&source).copied().unwrap_or(source);
        Some((services, device_id(as_whom)))
    }

    /// These devices are nobody's any more: what was given to them, and their witness, is taken back.
    pub(crate) fn let_go(&mut self, devices: impl Fn(usize) -> bool) {
        self.events.retain(|_, given| !devices(given.device));
        self.isolated.retain(|device| !devices(*device));
    }
}

impl Bus {
    /// A request reached an address that is no memory: services may take it for a message.
    pub(crate) fn message_arrived(&mut self, request: &Request, to: u64) {
        let Some(services) = self.services.at(to) else {
            return;
        };
        let is_message = request.access == Access::Write && to % FRAME_BYTES == TRANSLATER;
        let source = (request.unit, request.requester);
        let Some((_, device)) = self.services.writer(source).filter(|_| is_message) else {
            return;
        };
        self.counts.messages += 1;
        // Of its own, so that what else happens does not depend on it.
        let chance = || Rng::new(request.number ^ 0x6d65_7373_6167_6521).below(8) as u32;
        let event = request.event.unwrap_or_else(chance);
        let given = self
            .services
            .events
            .get(&(services, device, event))
            .copied();
        let Some(given) = given else {
            self.services.last = Some(Message::Dropped { services, device });
            return;
        };
        let sender = self.ledger.holding(request.device, request.substream);
        let isolated = [request.device, given.device]
            .into_iter()
            .find(|device| self.services.isolated.contains(device));
        if sender.map(|holding| holding.tenant) != Some(given.tenant)
            && let Some(isolated) = isolated
        {
            let name = |device: usize| {
                let function = self.functions.get(device);
                function.map_or_else(String::new, |function| function.address.to_string())
            };
            let what = format!(
                "event {event} of writer {device:#x} is {:?}'s, for {}, and was raised by {} of {sender:?}, though the \
                 interrupts of {} are isolated",
                given.tenant,
                name(given.device),
                name(request.device),
                name(isolated),
            );
            self.broken(Rule::ForeignInterrupt, what);
        }
        self.services.last = Some(Message::Raised {
            services,
            device,
            tenant: given.tenant,
        });
    }
}

impl Rig {
    fn source(&self, function: PciAddress) -> Option<(usize, Source)> {
        let state = self.core.quiet();
        let mut functions = state.bus.functions.iter().enumerate();
        let (index, known) = functions.find(|(_, known)| known.address == function)?;
        Some((index, (known.unit, function.requester())))
    }

    /// Where a device writes its messages, if there are services for them.
    pub fn message_register(&self, function: PciAddress) -> Option<PhysAddr> {
        let (services, _) = self.message_writer(function)?;
        Some(PhysAddr::new(frame_of_messages(services) + TRANSLATER))
    }

    /// Which services take a device's messages, and who it is to them.
    pub fn message_writer(&self, function: PciAddress) -> Option<(usize, u32)> {
        let (_, source) = self.source(function)?;
        self.core.quiet().bus.services.writer(source)
    }

    /// The hypervisor has the services raise an interrupt of a tenant for this event of a device. Says whether there are
    /// any.
    pub fn give_event(&self, function: PciAddress, event: u32, tenant: Tenant) -> bool {
        let Some((device, source)) = self.source(function) else {
            return false;
        };
        let mut state = self.core.quiet();
        let services = &mut state.bus.services;
        let Some((number, writer)) = services.writer(source) else {
            return false;
        };
        let given = Given { tenant, device };
        services.events.insert((number, writer, event), given);
        true
    }

    /// Devices have the witness that their interrupts are isolated, until they are detached: from now on that is judged.
    pub fn isolated(&self, functions: &[PciAddress]) {
        let mut state = self.core.quiet();
        let bus = &mut state.bus;
        let known = bus.functions.iter().enumerate();
        let devices = known.filter(|(_, known)| functions.contains(&known.address));
        bus.services
            .isolated
            .extend(devices.map(|(index, _)| index));
    }

    /// A device writes a message, with its own id, where it thinks that messages go.
    pub fn send_message(&self, function: PciAddress, at: Iova, event: u32) -> Message {
        let Some((device, (_, own))) = self.source(function) else {
            return Message::Elsewhere(Outcome::Lost);
        };
        let mut state = self.core.quiet();
        state.bus.tick += 1;
        let request = match state.bus.may_send(device) {
            true => state.bus.request(device, None, at.as_u64(), Access::Write),
            false => None,
        };
        let Some(mut request) = request else {
            return Message::Elsewhere(Outcome::Lost);
        };
        (request.requester, request.event) = (own, Some(event));
        state.bus.services.last = None;
        let outcome = state.finish(&mut request);
        let last = state.bus.services.last.take();
        last.unwrap_or(Message::Elsewhere(outcome))
    }

    /// Firmware's MADT: where services are.
    pub fn madt(&self) -> Vec<u8> {
        let services = self.machine().services.iter().enumerate();
        let places: Vec<_> = services
            .map(|(index, services)| (services.number, base_of(index)))
            .collect();
        spec::madt(&places)
    }
}

/// Who a unit's requesters are to services, in runs.
pub(crate) fn writers_of(machine: &Machine, unit: usize) -> Vec<RequesterRange> {
    let mut ranges: Vec<RequesterRange> = Vec::new();
    let Some(services) = machine.services_of(unit) else {
        return ranges;
    };
    for requester in 0..=u16::MAX {
        let device = device_id(machine.writes_as((unit, requester)));
        match ranges.last_mut() {
            Some(last) if last.device + u32::from(requester - last.first) == device => {
                last.last = requester;
            }
            _ => ranges.push(RequesterRange {
                first: requester,
                last: requester,
                device,
                services,
            }),
        }
    }
    ranges
}
