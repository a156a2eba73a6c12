//! Each refusal has a code of its own and changes nothing.

use hv_iommu::TableQuota;
use hv_iommu::front::Code;

use super::requests::{self, READ, WRITE};
use super::stand::{MEMORY, Stand};

const PAGE: u64 = 0x1000;

#[test]
fn requests_do_what_they_say() {
    let mut stand = Stand::new(100);
    let (one, two) = (stand.create(), stand.create());
    assert_ne!(one, two);
    let flags = stand.done(&requests::map(one, READ | WRITE, 0x9000, MEMORY, 4 * PAGE));
    assert_eq!(flags, READ | WRITE);
    let reply = stand.call(&requests::query(one, 0xa123));
    assert_eq!(reply.values, [0x9000, 4 * PAGE, MEMORY, READ | WRITE]);
    stand.done(&requests::split(one, 0xb000));
    let reply = stand.call(&requests::query(one, 0xb000));
    assert_eq!(
        reply.values,
        [0xb000, 2 * PAGE, MEMORY + 2 * PAGE, READ | WRITE]
    );
    stand.done(&requests::copy(two, READ, one, 0xb000, 0x5000, PAGE));
    let reply = stand.call(&requests::query(two, 0x5000));
    assert_eq!(reply.values, [0x5000, PAGE, MEMORY + 2 * PAGE, READ]);
    assert_eq!(stand.memory.pinned_pages(), 5);
    assert_eq!(
        stand.done(&requests::unmap(one, 0x9000, 2 * PAGE)),
        2 * PAGE
    );
    assert_eq!(stand.done(&requests::unmap_all(one)), 2 * PAGE);
    let allowed = stand.done(&requests::allow(one, 0x100_0000, 0x10 * PAGE)) as u32;
    let reserved = stand.done(&requests::reserve(one, 0x200_0000, PAGE)) as u32;
    assert_eq!(stand.front.objects(), 4);
    stand.done(&requests::drop_window(allowed));
    stand.done(&requests::drop_window(reserved));
    stand.done(&requests::reserve(one, 0x100_0000, PAGE));
    assert_eq!(stand.done(&requests::destroy(one)), 1);
    // Its window went with it.
    assert_eq!(stand.front.objects(), 1);
    let bytes = stand.call(&requests::query(two, 0)).to_wire();
    assert_eq!(bytes.code.get(), Code::NotMapped as u32);
    stand.end();
}

#[test]
fn every_refusal_has_its_own_code_and_changes_nothing() {
    let mut stand = Stand::new(7);
    let id = stand.create();
    let other = stand.create();
    stand.done(&requests::map(id, READ, 0x9000, MEMORY, 4 * PAGE));
    let window = stand.done(&requests::reserve(id, 0x20_0000, 4 * PAGE)) as u32;
    let allowed = stand.done(&requests::allow(other, 0x10_0000, 4 * PAGE)) as u32;
    let map = |at, gpa, bytes| requests::map(id, READ, at, gpa, bytes);
    let cases = [
        (Code::UnknownId, requests::unmap_all(0)),
        (Code::UnknownId, requests::unmap_all(id + 7)),
        // Another generation, an index past the end.
        (Code::UnknownId, requests::unmap_all(id ^ 1 << 16)),
        (Code::UnknownId, requests::unmap_all(id | 0xffff)),
        (Code::UnknownId, requests::unmap_all(u32::MAX)),
        (
            Code::UnknownId,
            requests::copy(id, READ, 99, 0x9000, 0x5000, PAGE),
        ),
        (Code::WrongKind, requests::unmap_all(window)),
        (Code::WrongKind, requests::destroy(window)),
        (Code::WrongKind, requests::drop_window(id)),
        (
            Code::WrongKind,
            requests::copy(id, READ, window, 0x9000, 0x5000, PAGE),
        ),
        (
            Code::WrongKind,
            requests::map(allowed, READ, 0x9000, MEMORY, PAGE),
        ),
        (Code::Empty, map(0x1000, MEMORY, 0)),
        (Code::Empty, requests::unmap(id, 0x9000, 0)),
        (Code::Unaligned, map(0x1001, MEMORY, PAGE)),
        (Code::Unaligned, map(0x1000, MEMORY + 1, PAGE)),
        (Code::Unaligned, map(0x1000, MEMORY, PAGE + 1)),
        (Code::Unaligned, requests::split(id, 0xa001)),
        (Code::Overflow, map(u64::MAX - 0xfff, MEMORY, 2 * PAGE)),
        (Code::Overflow, map(0x1000, u64::MAX - 0xfff, 2 * PAGE)),
        (
            Code::Overflow,
            requests::unmap(id, 0x2000, u64::MAX - 0xfff),
        ),
        (Code::Outside, map(1 << 39, MEMORY, PAGE)),
        (Code::Outside, map((1 << 39) - PAGE, MEMORY, 2 * PAGE)),
        (Code::Overlap, map(0x8000, MEMORY, 2 * PAGE)),
        (Code::Overlap, requests::reserve(id, 0xc000, PAGE)),
        (Code::Reserved, map(0x1f_f000, MEMORY, 2 * PAGE)),
        (Code::Reserved, map(0xfee0_0000, MEMORY, PAGE)),
        (Code::Reserved, requests::allow(id, 0x20_3000, PAGE)),
        (Code::Allowed, requests::reserve(other, 0x10_3000, PAGE)),
        (
            Code::NotAllowed,
            requests::map(other, READ, 0x9000, MEMORY, PAGE),
        ),
        (Code::NotMapped, requests::unmap(id, 0x1000, PAGE)),
        (Code::NotMapped, requests::split(id, 0x8000)),
        (Code::BeginsThere, requests::split(id, 0x9000)),
        (Code::NotMapped, requests::query(id, 0xd000)),
        (Code::Cuts, requests::unmap(id, 0xa000, 8 * PAGE)),
        (
            Code::Cuts,
            requests::copy(id, READ, id, 0xc000, 0x5000, 2 * PAGE),
        ),
        (
            Code::Widens,
            requests::copy(id, READ | WRITE, id, 0x9000, 0x5000, PAGE),
        ),
        (Code::NotMemory, map(0x1000, 0, PAGE)),
        (Code::NotMemory, map(0x1000, MEMORY + 63 * PAGE, 2 * PAGE)),
        (
            Code::NotMemory,
            requests::map(id, READ | 4, 0x1000, MEMORY, PAGE),
        ),
        (Code::NotMemory, requests::dirty(id, 1, 0x9000, PAGE, 0)),
        (
            Code::NoDirtyTracking,
            requests::dirty(id, 1, 0x9000, PAGE, MEMORY),
        ),
        (
            Code::TooLong,
            requests::dirty(id, 1, 0, (1 << 30) + PAGE, MEMORY),
        ),
        (Code::Quota, map(1 << 38, MEMORY, 16 * PAGE + PAGE)),
        (Code::NoSuchSpace, requests::create(64)),
        (Code::NoSuchSpace, requests::create(0x100)),
    ];
    // Uses the quota up.
    stand.done(&requests::map(other, READ, 0x10_0000, MEMORY, PAGE));
    let before = stand.state(&[id, other]);
    for (code, request) in cases {
        assert_eq!(stand.refused(&request), code, "{request:x?}");
        assert_eq!(stand.state(&[id, other]), before, "{code:?}");
    }
    stand.end();
}

#[test]
fn a_guest_with_all_its_mappings_is_told_so() {
    let mut stand = Stand::with(TableQuota::with_mappings(100, 2));
    let id = stand.create();
    stand.done(&requests::map(id, READ, 0x9000, MEMORY, 4 * PAGE));
    stand.done(&requests::split(id, 0xa000));
    let before = stand.state(&[id]);
    for request in [
        requests::map(id, READ, 0x1000, MEMORY, PAGE),
        requests::copy(id, READ, id, 0x9000, 0x1000, PAGE),
        requests::split(id, 0xb000),
    ] {
        assert_eq!(stand.refused(&request), Code::TooManyMappings);
        assert_eq!(stand.state(&[id]), before);
    }
    // Numbers never change their meaning.
    let numbers = [Code::Internal, Code::BeginsThere, Code::TooManyMappings];
    assert_eq!(numbers.map(|code| code as u32), [30, 31, 32]);
    stand.end();
}

#[test]
fn replace_a_stale_number_is_not_another_objects() {
    let mut stand = Stand::new(200);
    let mut seen = Vec::new();
    for _ in 0..100 {
        let id = stand.create();
        assert!(!seen.contains(&id));
        assert_eq!(stand.done(&requests::destroy(id)), 1);
        for stale in &seen {
            assert_eq!(stand.refused(&requests::unmap_all(*stale)), Code::UnknownId);
        }
        seen.push(id);
    }
    stand.end();
}

#[test]
fn objects_are_bounded_and_a_busy_space_stays() {
    let mut stand = Stand::new(200);
    let id = stand.create();
    for number in 1..64 {
        stand.done(&requests::allow(id, number << 20, PAGE));
    }
    let before = stand.state(&[id]);
    for request in [requests::create(39), requests::allow(id, 1 << 30, PAGE)] {
        assert_eq!(stand.refused(&request), Code::TooManyObjects);
        assert_eq!(stand.state(&[id]), before);
    }
    // A device is attached.
    let isolated = super::machine::isolated();
    let far = super::machine::FAR;
    let Stand {
        machine,
        memory,
        maker,
        mut front,
    } = stand;
    let group = maker
        .group
        .attach_for_guest(front.space(id).unwrap().domain(), &isolated)
        .unwrap();
    let mut none = NoSpaces;
    let mut call = |request: &[u8]| front.call(&memory, machine.fake.host(), &mut none, request);
    let busy = call(&requests::destroy(id));
    assert_eq!(busy.refused, Some(Code::Busy));
    assert_eq!(
        call(&requests::map(id, READ, 1 << 20, MEMORY, PAGE)).refused,
        None
    );
    let (front, _) = front.end(&memory).unwrap_err();
    group.enable_bus_mastering(far).unwrap();
    assert!(
        machine
            .fake
            .dma_read(far, hv_core::Iova::new(1 << 20))
            .is_ok()
    );
    drop(group.detach().unwrap());
    front.end(&memory).unwrap();
    assert_eq!(memory.pinned_pages(), 0);
}

/// iommufd `get_dirty_bitmap`: bits in guest memory, also where the bitmap is not aligned.
#[test]
fn get_dirty_bitmap_sets_a_bit_for_each_page_that_was_written() {
    let mut stand = Stand::new(100);
    stand.maker.dirty_tracking = true;
    let id = stand.create();
    stand.done(&requests::map(
        id,
        READ | WRITE,
        0x10_0000,
        MEMORY,
        20 * PAGE,
    ));
    let Stand {
        machine,
        memory,
        maker,
        mut front,
    } = stand;
    let (host, far) = (machine.fake.host(), super::machine::FAR);
    let isolated = super::machine::isolated();
    let domain = front.space(id).unwrap().domain();
    let group = maker.group.attach_for_guest(domain, &isolated).unwrap();
    group.enable_bus_mastering(far).unwrap();
    for page in [0, 9, 10, 19] {
        let at = hv_core::Iova::new(0x10_0000 + page * PAGE);
        machine.fake.dma_write(far, at, page).unwrap();
    }
    let bitmap = MEMORY + 40 * PAGE + 3;
    let bits = || {
        let mut bytes = [0; 4];
        let at = hv_core::Gpa::new(bitmap);
        memory.read(host, at, &mut bytes).unwrap();
        bytes
    };
    memory
        .write(host, hv_core::Gpa::new(bitmap), &[0; 4])
        .unwrap();
    let mut call = |flags, at, pages| {
        let request = requests::dirty(id, flags, at, pages * PAGE, bitmap);
        front.call(&memory, host, &mut NoSpaces, &request)
    };
    assert_eq!(call(1, 0x10_1000, 19).values[0], 3);
    assert_eq!(bits(), [0, 0b11, 0b100, 0]);
    assert_eq!(call(0, 0x10_0000, 20).values[0], 4);
    assert_eq!(bits(), [1, 0b111, 0b1100, 0], "bits are only set");
    assert_eq!(call(0, 0x10_0000, 20).values[0], 0);
    // A bitmap that leaves the guest's memory: nothing is cleared.
    machine
        .fake
        .dma_write(far, hv_core::Iova::new(0x10_0000), 1)
        .unwrap();
    let over = requests::dirty(id, 0, 0x10_0000, 20 * PAGE, MEMORY + 64 * PAGE - 2);
    let refused = front.call(&memory, host, &mut NoSpaces, &over);
    assert_eq!(refused.refused, Some(Code::NotMemory));
    let mut call = |flags| {
        let request = requests::dirty(id, flags, 0x10_0000, 20 * PAGE, bitmap);
        front.call(&memory, host, &mut NoSpaces, &request)
    };
    assert_eq!(call(1).values[0], 1);
    drop(group.detach().unwrap());
    front.end(&memory).unwrap();
}

struct NoSpaces;

impl hv_iommu::front::SpaceMaker<hv_tests::fake::Fake> for NoSpaces {
    fn make(
        &mut self,
        _address_bits: u8,
    ) -> Result<hv_iommu::AddressSpace<hv_tests::fake::Fake>, Code> {
        Err(Code::NoSuchSpace)
    }
}
