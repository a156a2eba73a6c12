//! What a hypervisor that migrates a guest hears of requests that take mappings out.

use hv_core::{GpaRange, Iova};
use hv_tests::fake::Fake;

use super::machine::{FAR, isolated};
use super::requests;
use super::stand::{MEMORY, Stand};

/// What a request told of, in pages from the begin of the guest's memory.
fn told(stand: &mut Stand, request: &[u8]) -> Vec<(u64, u64)> {
    let mut written: Vec<GpaRange> = Vec::new();
    let host = stand.machine.fake.host();
    let reply = stand.front.call_noting(
        &stand.memory,
        host,
        &mut stand.maker,
        request,
        &mut |gpas| written.push(gpas),
    );
    assert_eq!(reply.refused, None);
    let page = |gpas: &GpaRange| (gpas.start().as_u64() - MEMORY) >> 12;
    let mut told: Vec<_> = written
        .iter()
        .map(|gpas| (page(gpas), gpas.pages().get()))
        .collect();
    told.sort_unstable();
    told
}

#[test]
fn bc03_a_guest_that_unmaps_or_ends_its_space_hides_no_written_page() {
    let mut stand = Stand::new(100);
    stand.maker.dirty_tracking = true;
    let id = stand.create();
    let both = requests::READ | requests::WRITE;
    for (at, page) in [(0x1000, 0), (0x10_0000, 8), (0x20_0000, 16)] {
        stand.done(&requests::map(id, both, at, MEMORY + (page << 12), 0x4000));
    }
    let Stand {
        machine,
        memory,
        maker,
        front,
    } = stand;
    let super::stand::Maker {
        group,
        quota,
        dirty_tracking,
    } = maker;
    let space = front.space(id).unwrap();
    let group = group.attach_for_guest(space.domain(), &isolated()).unwrap();
    group.enable_bus_mastering(FAR).unwrap();
    let fake: &Fake = &machine.fake;
    for at in [0x2000, 0x10_1000, 0x10_3000, 0x20_0000] {
        fake.dma_write(FAR, Iova::new(at), 1).unwrap();
    }
    let group = group.detach().unwrap();
    let maker = super::stand::Maker {
        group,
        quota,
        dirty_tracking,
    };
    let mut stand = Stand {
        machine,
        memory,
        maker,
        front,
    };
    let one = requests::unmap(id, 0x10_0000, 0x4000);
    assert_eq!(told(&mut stand, &one), [(9, 1), (11, 1)]);
    // Cleared by the guest is heard of by the guest.
    let flags = 0;
    let bits = MEMORY + 0x3_0000;
    stand.done(&requests::dirty(id, flags, 0x1000, 0x4000, bits));
    assert_eq!(told(&mut stand, &requests::destroy(id)), [(16, 1)]);
    stand.end();
}
