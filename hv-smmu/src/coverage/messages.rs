//! Interrupt messages: where a requester's go, and who it is to the services that take them.
//!
//! An SMMU translates the write that a message is, like any other, so a domain maps the page of the services that its
//! devices write to. Those tell devices apart by a DeviceID that comes with the write, from the bus and not from the
//! device. The IORT names services by the numbers that they have in the MADT: until
//! [`Firmware::place_services`](crate::firmware::Firmware::place_services) was told what [`madt::parse`](crate::madt::parse) says, nothing is mapped for messages and
//! devices send none.

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::{Iova, IovaRange, OutOfMemory, PageCount, PciAddress};
use hv_iommu::{MessageSource, NotIsolated, ReservedKind, ReservedRegion};

use super::Coverage;
use crate::firmware::{MessageServices, MessageWriter, RequestTarget, Route, ServicesIndex};
use crate::spec::granule::Granule;
use crate::spec::message::TRANSLATER;

impl Coverage {
    /// The page of tables of this granule that a requester's messages are written to; `None` where firmware does not say
    /// where they go.
    pub fn doorbell(&self, requester: PciAddress, granule: Granule) -> Option<ReservedRegion> {
        let services = self.requester(requester)?.messages?.services;
        let services = self.firmware.services.get(services.0)?;
        let base = services.base.filter(|_| services.tell_writers_apart)?;
        let register = match Fault::DoorbellOfControl.is_on() {
            true => base.as_u64(),
            false => base.as_u64().checked_add(TRANSLATER)?,
        };
        let page = granule.bytes();
        let start = Iova::new(register - register % page);
        let range = IovaRange::new(start, PageCount::for_bytes(page)?).ok()?;
        let kind = ReservedKind::Doorbell;
        Some(ReservedRegion { range, kind })
    }

    /// Who a requester is to interrupt services.
    ///
    /// # Errors
    /// [`NotIsolated`] when firmware does not say that, once, or when a unit or a device that is no PCI function writes
    /// messages as the same device.
    pub fn message_source(&self, requester: PciAddress) -> Result<MessageSource, NotIsolated> {
        let found = self.requester(requester);
        let writer = found.and_then(|found| found.messages);
        let writer = writer.ok_or(NotIsolated::NotTold { requester })?;
        let services = self.firmware.services.get(writer.services.0);
        if !services.is_some_and(|services| services.tell_writers_apart) {
            return Err(NotIsolated::NotRemapped { requester });
        }
        let source_id = MessageSource {
            controller: self.controller(writer.services) as u32,
            id: match Fault::WriterByRequester.is_on() {
                true => requester.requester().into(),
                false => writer.device.get(),
            },
        };
        match self.is_used_outside(writer) {
            true => Err(NotIsolated::SharedOutside {
                requester,
                source_id,
            }),
            false => Ok(source_id),
        }
    }

    /// Whether a requester is this source by any way that firmware gives it: by its own id, or by a stream that it may have. For
    /// one that firmware tells of in several ways; what goes through an IOMMU that is not driven here sends nothing.
    pub fn may_be_source(&self, requester: PciAddress, source: MessageSource) -> bool {
        let id = u32::from(requester.requester());
        let leads = |routes: &[Route<ServicesIndex>], id: u32| {
            routes.iter().any(|route| {
                let is_here = self.controller(route.to) as u32 == source.controller;
                let becomes = route.window.outputs_of((id, id));
                is_here && becomes.is_some_and(|(low, high)| (low..=high).contains(&source.id))
            })
        };
        self.hosts_of(requester).any(|host| {
            let mut streams = host.streams.iter();
            leads(&host.messages, id & host.message_mask)
                || streams.any(|route| {
                    let through = match route.to {
                        RequestTarget::Unit(unit) => self.firmware.units.get(unit.index()),
                        RequestTarget::Foreign | RequestTarget::Memory => None,
                    };
                    let id = id & host.stream_mask;
                    let stream = route.window.outputs_of((id, id));
                    through
                        .zip(stream)
                        .is_some_and(|(unit, (stream, _))| leads(&unit.messages, stream))
                })
        })
    }

    /// Which controller services are: the same number for all that share one.
    fn controller(&self, services: ServicesIndex) -> usize {
        let known = self.controllers.get(services.0);
        known.copied().unwrap_or(services.0)
    }

    /// Whether two are one and the same to the services that take their messages.
    pub(super) fn is_one_writer(&self, one: MessageWriter, other: MessageWriter) -> bool {
        let of = |writer: MessageWriter| (self.controller(writer.services), writer.device);
        of(one) == of(other)
    }

    /// Whether a unit, or a device that is no PCI function, may write messages as this device.
    fn is_used_outside(&self, writer: MessageWriter) -> bool {
        let units = &self.firmware.units;
        let is_it = |other: Option<MessageWriter>| {
            other.is_some_and(|other| self.is_one_writer(other, writer))
        };
        let by_unit = units.iter().any(|unit| is_it(unit.own_messages));
        let mut devices = self.firmware.devices.iter();
        by_unit
            || devices.any(|device| {
                is_it(device.messages)
                    || device.streams.iter().any(|&(unit, first, last)| {
                        let through = units.get(unit.index());
                        let mut routes = through.into_iter().flat_map(|unit| &unit.messages);
                        routes.any(|route| {
                            let streams = (first.get(), last.get());
                            let becomes = route.window.outputs_of(streams);
                            let id = writer.device.get();
                            self.controller(route.to) == self.controller(writer.services)
                                && becomes.is_some_and(|(low, high)| (low..=high).contains(&id))
                        })
                    })
            })
    }
}

/// Which controller each of the services is: the first of those that it has some in common with, over others too. Firmware
/// may name one of them in several places, and who writes to it is one writer all the same.
pub(super) fn controllers(services: &[MessageServices]) -> Result<Vec<usize>, OutOfMemory> {
    let mut controllers = Vec::new();
    for number in 0..services.len() {
        push(&mut controllers, number)?;
    }
    let pairs = || {
        let ones = services.iter().enumerate();
        ones.flat_map(|(number, one)| {
            let others = services.iter().enumerate().take(number);
            let shared = others.filter(move |(_, other)| one.share(other));
            shared.map(move |(other, _)| (number, other))
        })
    };
    // Numbers only fall, so this ends.
    while let Some((number, other)) =
        pairs().find(|(number, other)| controllers.get(*number) != controllers.get(*other))
    {
        let of = |number: usize| controllers.get(number).copied().unwrap_or(number);
        let lowest = of(number).min(of(other));
        for number in [number, other] {
            if let Some(controller) = controllers.get_mut(number) {
                *controller = lowest;
            }
        }
    }
    Ok(controllers)
}
