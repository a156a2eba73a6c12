//! Class 3 by a guest's own requests: how much of a page that was written is told in the bitmap that it gave.

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GpaRange, GuestMemory, Iova, Perms, UserManaged, VmId};
use hv_iommu::front::{Code, Front, SpaceMaker};
use hv_iommu::{AddressSpace, Claimed, Domain, Group, InterruptsIsolated, Needs};
use hv_rig::{Machine, Outcome, Rig};

use super::stand::{Backend, PAGE, count, iovas, on_machines, pci, small, smallest};

/// Bytes of a page of the tables.
const BYTES: u64 = PAGE << 12;
/// Where the guest sees its memory, how many such pages that is, and in which of them its bitmaps are.
const AT: u64 = 0x100_0000;
const PAGES: u64 = 8;
const BITS: u64 = AT + 7 * BYTES;
/// Where its devices see the first four.
const FIRST: u64 = 8 * BYTES;

struct Maker(Option<Group<Backend, Claimed<UserManaged>>>);

impl SpaceMaker<Backend> for Maker {
    fn make(&mut self, _address_bits: u8) -> Result<AddressSpace<Backend>, Code> {
        let needs = Needs {
            dirty_tracking: true,
            ..Needs::default()
        };
        let group = self.0.as_ref().ok_or(Code::NoSuchSpace)?;
        let domain = Domain::user_domain_alloc(group, small().with(needs)).unwrap();
        AddressSpace::new(domain, None).map_err(|(_, error)| error.into())
    }
}

/// A request as a guest writes it: command, and fields with their widths in bytes.
fn request(command: u16, fields: &[(u64, usize)]) -> Vec<u8> {
    let length = 8 + fields.iter().map(|(_, width)| width).sum::<usize>() as u32;
    let mut bytes = [&[1, 0], &command.to_le_bytes()[..], &length.to_le_bytes()].concat();
    for (value, width) in fields {
        bytes.extend(&value.to_le_bytes()[..*width]);
    }
    bytes
}

struct Guest<'s> {
    rig: &'s Rig,
    memory: GuestMemory,
    front: Front<Backend>,
    maker: Maker,
}

impl Guest<'_> {
    fn done(&mut self, request: &[u8]) -> u64 {
        let reply = self
            .front
            .call(&self.memory, self.rig, &mut self.maker, request);
        assert_eq!(reply.refused, None, "{request:x?}");
        reply.values[0]
    }

    /// The pages of 4 KiB that are told of as many from `first` on, with the pages of the tables that are shown.
    fn told(&mut self, id: u64, keep: bool, first: u64, pages: u64) -> (u64, Vec<u64>) {
        let bytes = pages.div_ceil(8) as usize;
        self.memory
            .write(self.rig, Gpa::new(BITS), &vec![0; bytes])
            .unwrap();
        let fields = [
            (id, 4),
            (keep.into(), 4),
            (first << 12, 8),
            (pages << 12, 8),
            (BITS, 8),
        ];
        let shown = self.done(&request(12, &fields));
        let mut bits = vec![0; bytes];
        self.memory
            .read(self.rig, Gpa::new(BITS), &mut bits)
            .unwrap();
        let all =
            (0..bytes as u64 * 8).filter(|bit| bits[(bit / 8) as usize] >> (bit % 8) & 1 != 0);
        (shown, all.map(|bit| first + bit).collect())
    }
}

/// Units that note what is written; devices write when they are told to.
fn notes(machine: &mut Machine) {
    machine.temper.background = false;
    for unit in &mut machine.units {
        unit.set_coherent(true);
        unit.smmu().unwrap().httu = 2;
    }
}

/// Of a page that was written all is told, as far as the guest asks, and nothing beside it.
#[test]
fn bc03_a_guest_is_told_all_of_a_page_that_was_written() {
    on_machines(8, notes, |stand| {
        let vm = VmId::new(1).unwrap();
        let mut memory = GuestMemory::new(vm);
        let frames = stand.rig.alloc_frames(count(PAGES * PAGE), smallest());
        memory.give(Gpa::new(AT), frames.unwrap()).unwrap();
        let group = stand.take(pci(0, 2, 0)).claim_for_guest(vm);
        let members = group.members().to_vec();
        let mut guest = Guest {
            rig: &stand.rig,
            memory,
            front: Front::new().unwrap(),
            maker: Maker(Some(group)),
        };
        let id = guest.done(&request(1, &[(31, 4), (0, 4)]));
        let (tenant, range) = (stand.tenant(), iovas(FIRST, 4 * PAGE));
        let gpas = GpaRange::new(Gpa::new(AT), range.pages()).unwrap();
        let pin = guest.memory.pin(gpas).unwrap();
        stand
            .rig
            .mapping(tenant, range, pin.range(), Perms::ReadWrite);
        guest.memory.unpin(pin).unwrap();
        let fields = [(id, 4), (3, 4), (FIRST, 8), (AT, 8), (4 * BYTES, 8)];
        guest.done(&request(3, &fields));
        stand.rig.mapped(tenant, range, Perms::ReadWrite);
        let space = guest.front.space(id as u32).unwrap();
        stand.rig.attaching(&members, tenant);
        let isolated = InterruptsIsolated::override_unsafe_interrupts("a test");
        let group = guest.maker.0.take().unwrap();
        let group = group.attach_for_guest(space.domain(), &isolated).unwrap();
        stand.rig.attached(&members, tenant);
        group.enable_bus_mastering(members[0]).unwrap();

        let first = FIRST >> 12;
        for (page, inside) in [(1, PAGE / 2), (3, PAGE - 1), (0, 0)] {
            // What was written before is forgotten.
            guest.told(id, false, first, 4 * PAGE);
            assert_eq!(guest.told(id, true, first, 4 * PAGE), (0, vec![]));
            let at = Iova::new(FIRST + page * BYTES + (inside << 12));
            let sent = stand.rig.access(members[0], at, Access::Write);
            assert!(matches!(sent, Outcome::Reached { .. }), "{sent}");
            let mine = first + page * PAGE;
            let all = (mine..mine + PAGE).collect::<Vec<_>>();
            assert_eq!(guest.told(id, true, first, 4 * PAGE), (1, all.clone()));
            // Of a part that begins and ends inside of it, that part.
            let part = all[1..all.len() - 1].to_vec();
            assert_eq!(guest.told(id, true, mine + 1, PAGE - 2), (1, part));
            assert_eq!(guest.told(id, false, mine, PAGE), (1, all));
        }
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        guest.front.end(&guest.memory).unwrap();
        stand.rig.ended(tenant);
    });
}
