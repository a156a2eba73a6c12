//! What a random life does beside moving groups: buffers, domains' ends, requests, faults, mishaps.

use std::time::Duration;

use hv_core::{Access, Iova, KernelPaging, PciAddress, Perms, UserManaged};
use hv_iommu::{
    BufferRequest, DestroyRefusal, DmaError, FaultNotice, FlushError, RedeemRefusal, UnitError,
};

use super::granule::Lives;
use super::space::{Household, Space};
use super::world::{Held, Memories, World};
use crate::ledger::Tenant;
use crate::request::Outcome;
use crate::rule::Rule;

impl<B: Lives> World<B> {
    /// The members of an attached group, by choice, and its domain.
    pub(crate) fn attached(&self, choice: u64) -> Option<(Vec<PciAddress>, Tenant)> {
        let index = (choice % self.groups.len() as u64) as usize;
        match &self.groups[index] {
            Held::KernelOn(group, tenant) => Some((group.members().to_vec(), *tenant)),
            Held::GuestOn(group, tenant) => Some((group.members().to_vec(), *tenant)),
            _ => None,
        }
    }

    /// A coherent buffer of a kernel domain: CPU and device write, and each sees the other's.
    pub(crate) fn buffer(&mut self, choice: [u64; 3]) {
        let Some((members, tenant)) = self.attached(choice[0]) else {
            return;
        };
        if choice[1] >> 40 & 1 == 1 {
            return self.lend(&members, tenant, choice);
        }
        let rig = self.rig().clone();
        let Some(space) = self.kernel.get_mut(&tenant.0) else {
            return;
        };
        let pages = B::pages(1 + choice[1] % 8);
        let request = BufferRequest {
            pages,
            align: B::smallest(),
            perms: Perms::ReadWrite,
        };
        rig.lending(Some(tenant));
        let made = space.domain.alloc_coherent(request);
        rig.lending(None);
        let buffer = match made {
            Ok(buffer) => buffer,
            Err(DmaError::NotVisible(FlushError::Unit(error))) => {
                self.failed(error);
                return;
            }
            Err(DmaError::Stuck(FlushError::Unit(error))) => {
                space.forgot = true;
                self.failed(error);
                return;
            }
            Err(_) => return,
        };
        let Ok(range) = hv_core::IovaRange::new(buffer.iova(), pages) else {
            return;
        };
        let Ok(frames) = hv_core::PhysRange::new(buffer.phys(), pages) else {
            return;
        };
        rig.mapping(tenant, range, frames, Perms::ReadWrite);
        rig.mapped(tenant, range, buffer.granted());
        let offset = choice[2] % pages.bytes() / 8 * 8;
        let at = Iova::new(buffer.iova().as_u64() + offset);
        let word = choice[2].to_le_bytes();
        let mut seen = [0; 8];
        let device = members.iter().find(|member| rig.may_send(**member));
        if let Some(device) = device {
            let written = buffer.write(offset, &word).is_ok();
            let read = rig.device_read(*device, at, &mut seen).is_ok();
            let unit = self.memories.rig.machine().unit_of(*device);
            if written && read && seen != word {
                rig.broken(
                    Rule::WrongAnswer,
                    "a device read something else than the CPU wrote",
                );
            } else if !read
                && !unit.is_some_and(|unit| self.wedged.contains(&unit) || self.lost == Some(unit))
            {
                rig.broken(
                    Rule::MappedFaulted,
                    "a device cannot read a coherent buffer",
                );
            }
        }
        rig.leaving(tenant, range);
        match buffer.free() {
            Ok(()) => {}
            Err(error) => {
                rig.unmapping(tenant, range);
                let reason = error.reason;
                // It is tried again with whatever else is pending.
                if let Some(space) = self.kernel.get_mut(&tenant.0) {
                    space.pending.push(error.pending);
                }
                if let RedeemRefusal::Flush(FlushError::Unit(error)) = reason {
                    self.failed(error);
                } else {
                    rig.broken(
                        Rule::WrongAnswer,
                        format!("a buffer is not freed: {reason}"),
                    );
                }
            }
        }
    }

    /// Ends a domain, by choice.
    pub(crate) fn destroy(&mut self, choice: [u64; 3]) {
        if choice[0] & 1 == 0 {
            let nth = choice[1].checked_rem(self.kernel.len() as u64);
            let key = nth.and_then(|nth| self.kernel.keys().nth(nth as usize).copied());
            if let Some(space) = key.and_then(|key| self.kernel.remove(&key))
                && let Some(space) = end::<KernelPaging, B>(&self.memories, space)
            {
                self.kernel.insert(space.tenant.0, space);
            }
        } else {
            let nth = choice[1].checked_rem(self.guest.len() as u64);
            let key = nth.and_then(|nth| self.guest.keys().nth(nth as usize).copied());
            if let Some(space) = key.and_then(|key| self.guest.remove(&key))
                && let Some(space) = end::<UserManaged, B>(&self.memories, space)
            {
                self.guest.insert(space.tenant.0, space);
            }
        }
    }

    /// Devices send: to what their domain maps, and beside it.
    pub(crate) fn send(&mut self, choice: [u64; 3]) {
        for round in 0..32 {
            let choice = choice.map(|choice| choice.rotate_left(round * 7));
            let Some((members, tenant)) = self.attached(choice[0]) else {
                continue;
            };
            let spot = match (self.kernel.get(&tenant.0), self.guest.get(&tenant.0)) {
                (Some(space), _) => space.some_mapped(choice),
                (_, Some(space)) => space.some_mapped(choice),
                _ => None,
            };
            let (page, _) = spot.unwrap_or((
                Iova::new(choice[2] % 4096 * B::smallest().bytes()),
                Perms::Read,
            ));
            let at = Iova::new(page.as_u64() + choice[2] % 512 * 8);
            let access = if choice[1] & 1 == 0 {
                Access::Read
            } else {
                Access::Write
            };
            let believed = match (self.kernel.get(&tenant.0), self.guest.get(&tenant.0)) {
                (Some(space), _) => space.domain.translate(at),
                (_, Some(space)) => space.domain.translate(at),
                _ => None,
            };
            for member in members {
                // A device that gets through gets to where the domain says, unless that says nothing any more.
                if let Outcome::Reached { at: reached } = self.rig().access(member, at, access)
                    && believed.is_some_and(|there| there.to.as_u64() != reached)
                {
                    let what = format!(
                        "{at} leads a device to {reached:#x}, and the domain says {believed:?}"
                    );
                    self.rig().broken(Rule::WrongAnswer, what);
                }
            }
        }
    }

    /// A device sends what is not mapped, as fast as it can; the fault log overflows, and the look at it
    /// stays bounded.
    pub(crate) fn storm(&mut self, choice: [u64; 3]) {
        let Some((members, _)) = self.attached(choice[0]) else {
            return;
        };
        for round in 0..200 {
            let at = Iova::new((1 << 30) + (choice[1] + round) % 1000 * 4096);
            if let Some(member) = members.first() {
                self.rig().access(*member, at, Access::Write);
            }
        }
        self.take_faults();
    }

    /// Takes the fault logs, and looks whether what they say can be.
    pub(crate) fn take_faults(&mut self) {
        let rig = self.rig().clone();
        let (mut count, mut ill) = (0, Vec::new());
        self.iommu.take_faults(|notice| {
            count += 1;
            if let FaultNotice::Failed(unit) = notice {
                ill.push(unit);
            }
            if let FaultNotice::Fault(report) = notice
                && !rig.recorded_fault(report.unit.index(), &report.fault)
            {
                let what = format!(
                    "{} reports {:?}, which it never recorded",
                    report.unit, report.fault
                );
                rig.broken(Rule::FaultReport, what);
            }
        });
        // As if a request had failed.
        for unit in ill {
            self.failed(UnitError::Wedged { unit });
        }
        let units = rig.machine().units.len();
        if count > units * 600 {
            rig.broken(
                Rule::Deadline,
                format!("{count} faults were taken in one call"),
            );
        }
    }

    /// A unit hangs, now or in the middle of what comes, sometimes for longer than any deadline; or its queue
    /// stops at an error.
    pub(crate) fn hang(&mut self, choice: [u64; 3]) {
        let units = self.rig().machine().units.len() as u64;
        let unit = (choice[0] % units) as usize;
        let time = match choice[1] % 4 {
            0 => Duration::from_millis(30),
            _ => Duration::from_secs(5),
        };
        match choice[2] % 8 {
            0 => self.rig().fail_queue(unit),
            1 | 2 => self.rig().hang(unit, time),
            // An operation takes between some dozens and some thousands of steps.
            _ => self
                .rig()
                .hang_after(unit, 1 << ((choice[2] >> 8) % 12), time),
        }
    }

    /// A device is pulled out, or comes back.
    pub(crate) fn plug(&mut self, choice: [u64; 3]) {
        let endpoints: Vec<PciAddress> = self.rig().endpoints();
        if let Some(index) = choice[0].checked_rem(endpoints.len() as u64) {
            let (function, present) = (endpoints[index as usize], choice[1] & 1 == 0);
            let what = if present {
                "is plugged in"
            } else {
                "is pulled out"
            };
            self.rig().say(format!("{function} {what}"));
            self.rig().plug(function, present);
        }
    }
}

/// Ends a domain, if nothing is attached to it; else it comes back.
pub(crate) fn end<O: Household, B: Lives>(
    memories: &Memories,
    space: Space<O, B>,
) -> Option<Space<O, B>> {
    let rig = &memories.rig;
    let mut space = space;
    space.unstick(rig);
    match space.domain.destroy() {
        Ok(teardown) => {
            if space.attached != 0 {
                let what = format!("a domain ended with {} groups attached", space.attached);
                rig.broken(Rule::WrongAnswer, what);
            }
            rig.ended(space.tenant);
            for run in teardown {
                O::give_back(memories, run);
            }
            // What was deferred is the CPU's already, and the domain has flushed it.
            for (_, run) in space.waiting {
                O::give_back(memories, run);
            }
            None
        }
        Err(error) => {
            if !(matches!(error.reason, DestroyRefusal::Attached { .. }) && space.attached != 0) {
                rig.broken(
                    Rule::WrongAnswer,
                    format!("a domain does not end: {}", error.reason),
                );
            }
            Some(Space {
                domain: error.domain,
                ..space
            })
        }
    }
}
