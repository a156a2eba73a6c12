//! A guest with memory, a device and an address space.

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GuestMemory, Iova, PageSize, Perms, Shared, UserManaged, VmId};
use hv_iommu::{AddressSpace, Attached, Domain, Group, SpaceMapping, TableQuota};
use hv_tests::fake::Fake;

use super::machine::{Machine, PLAIN, gpas};

pub(crate) const PAGE: u64 = 4096;

pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) group: Group<Fake, Attached<UserManaged, Fake>>,
    pub(crate) space: AddressSpace<Fake>,
    pub(crate) memory: GuestMemory,
}

/// A guest with 64 pages at address 0, and the device attached and sending.
pub(crate) fn guest(vm: VmId) -> Guest {
    guest_on(Machine::new(), vm, None)
}

pub(crate) fn guest_on(mut machine: Machine, vm: VmId, quota: Option<Shared<TableQuota>>) -> Guest {
    let passthrough = machine.guest(super::machine::NIC, vm);
    let space = AddressSpace::new(passthrough.domain, quota).unwrap();
    Guest {
        machine,
        group: passthrough.group,
        space,
        memory: passthrough.memory,
    }
}

impl Guest {
    pub(crate) fn vm(&self) -> VmId {
        self.memory.vm()
    }

    /// Gives the guest more memory, aligned to 2 MiB.
    pub(crate) fn give(&mut self, gpa: u64, pages: u64) {
        let frames = self.machine.host().frames_aligned(pages, PageSize::Size2M);
        self.memory.give(Gpa::new(gpa), frames).unwrap();
    }

    /// Maps for reading and writing.
    pub(crate) fn map(&mut self, at: u64, gpa: u64, pages: u64) -> SpaceMapping {
        self.space
            .map(
                &self.memory,
                Iova::new(at),
                gpas(gpa, pages),
                Perms::ReadWrite,
            )
            .unwrap()
    }

    /// A second space of the same guest, with no device.
    pub(crate) fn other_space(&mut self) -> AddressSpace<Fake> {
        let group = self
            .machine
            .take(super::machine::FAR)
            .claim_for_guest(self.vm());
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        AddressSpace::new(domain, None).unwrap()
    }

    /// Whether the device's write arrives.
    pub(crate) fn writes(&self, at: u64) -> bool {
        let access = Access::Write;
        self.machine
            .fake
            .dma(super::machine::NIC, Iova::new(at), access)
            .is_ok()
    }

    /// What is mapped: addresses and guest addresses, in pages.
    pub(crate) fn listed(&self) -> Vec<(u64, u64, u64)> {
        listed(&self.space)
    }

    /// Ends everything; nothing may be left over.
    pub(crate) fn end(self) {
        let Self {
            machine,
            group,
            space,
            mut memory,
        } = self;
        drop(group.detach().unwrap());
        end_space(space, &memory);
        assert_eq!(memory.pinned_pages(), 0, "pins are left");
        let slots: Vec<_> = memory.slots().map(|slot| slot.range.start()).collect();
        for slot in slots {
            machine.host().free_frames(memory.take_back(slot).unwrap());
        }
        assert_eq!(machine.host().frames_out(), 0, "frames are left");
        assert_eq!(machine.iommu.domains_in_use(), 0);
    }
}

pub(crate) fn listed(space: &AddressSpace<Fake>) -> Vec<(u64, u64, u64)> {
    let mappings = space.mappings().map(|mapping| {
        (
            mapping.span.start().as_u64(),
            mapping.gpa.start().as_u64(),
            mapping.span.pages().get(),
        )
    });
    mappings.collect()
}

pub(crate) fn end_space(space: AddressSpace<Fake>, memory: &GuestMemory) {
    space.destroy().unwrap().finish(memory);
}
