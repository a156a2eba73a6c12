//! A guest that talks to a front.

use hv_core::{Gpa, GuestMemory, Shared, UserManaged};
use hv_iommu::front::{Code, Front, Reply, SpaceMaker};
use hv_iommu::{AddressSpace, Claimed, Domain, DomainConfig, Group, Needs, TableQuota};
use hv_tests::fake::Fake;

use super::machine::{FAR, Machine, PLAIN, vm};
use super::requests;

/// Makes spaces for one group.
pub(crate) struct Maker {
    pub(crate) group: Group<Fake, Claimed<UserManaged>>,
    pub(crate) quota: Shared<TableQuota>,
    pub(crate) dirty_tracking: bool,
}

impl SpaceMaker<Fake> for Maker {
    fn make(&mut self, address_bits: u8) -> Result<AddressSpace<Fake>, Code> {
        let config = DomainConfig {
            address_bits,
            ..PLAIN
        };
        let needs = Needs {
            dirty_tracking: self.dirty_tracking,
            coherent_walks: false,
            coherent_dma: false,
            pasids: false,
        };
        let domain = Domain::user_domain_alloc(&self.group, config.with(needs))
            .map_err(|_| Code::NoSuchSpace)?;
        AddressSpace::new(domain, Some(self.quota.clone())).map_err(|(domain, error)| {
            assert_eq!(domain.destroy().unwrap().count(), 0);
            error.into()
        })
    }
}

pub(crate) struct Stand {
    pub(crate) machine: Machine,
    pub(crate) memory: GuestMemory,
    pub(crate) maker: Maker,
    pub(crate) front: Front<Fake>,
}

/// Where the guest's 64 pages are.
pub(crate) const MEMORY: u64 = 0x10_0000;

impl Stand {
    pub(crate) fn new(quota: u64) -> Self {
        Self::with(TableQuota::new(quota))
    }

    pub(crate) fn with(quota: TableQuota) -> Self {
        let vm = vm(1);
        let mut machine = Machine::new();
        let mut memory = GuestMemory::new(vm);
        memory
            .give(Gpa::new(MEMORY), machine.host().frames(64))
            .unwrap();
        let group = machine.take(FAR).claim_for_guest(vm);
        let quota = Shared::try_new(quota).unwrap();
        Self {
            machine,
            memory,
            maker: Maker {
                group,
                quota,
                dirty_tracking: false,
            },
            front: Front::new().unwrap(),
        }
    }

    pub(crate) fn call(&mut self, request: &[u8]) -> Reply {
        let host = self.machine.fake.host();
        self.front
            .call(&self.memory, host, &mut self.maker, request)
    }

    /// A call that must be done; its first value.
    pub(crate) fn done(&mut self, request: &[u8]) -> u64 {
        let reply = self.call(request);
        assert_eq!(reply.refused, None, "{request:x?}");
        reply.values[0]
    }

    /// A call that must be refused.
    pub(crate) fn refused(&mut self, request: &[u8]) -> Code {
        let reply = self.call(request);
        assert_eq!(reply.values, [0; 4]);
        reply
            .refused
            .unwrap_or_else(|| panic!("{request:x?} was done"))
    }

    pub(crate) fn create(&mut self) -> u32 {
        self.done(&requests::create(39)) as u32
    }

    /// All that the front has and holds, to see that nothing has changed.
    pub(crate) fn state(&self, ids: &[u32]) -> String {
        let spaces = ids.iter().map(|id| {
            let space = self.front.space(*id)?;
            let mappings: Vec<_> = space.mappings().collect();
            let reserved: Vec<_> = space.reserved().collect();
            Some((
                *id,
                mappings,
                reserved,
                space.domain().free_pages(),
                space.charged(),
            ))
        });
        let spaces: Vec<_> = spaces.collect();
        let held = (
            self.memory.pinned_pages(),
            self.machine.host().frames_out(),
            self.maker.quota.used(),
            self.maker.quota.mappings_used(),
            self.front.objects(),
        );
        format!("{spaces:x?} {held:?}")
    }

    /// Ends everything; nothing may be left.
    pub(crate) fn end(self) {
        let Self {
            machine,
            mut memory,
            maker,
            front,
        } = self;
        front.end(&memory).unwrap();
        assert_eq!(memory.pinned_pages(), 0);
        let frames = memory.take_back(Gpa::new(MEMORY)).unwrap();
        hv_core::platform::FrameSource::free_frames(machine.host(), frames);
        assert_eq!(machine.host().frames_out(), 0);
        assert_eq!(machine.iommu.domains_in_use(), 0);
        assert_eq!((maker.quota.used(), maker.quota.mappings_used()), (0, 0));
    }
}
