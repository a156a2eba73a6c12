//! The addresses that a device can say.

use hv_core::platform::FrameSource;
use hv_core::{PageSize, Perms};
use hv_iommu::{
    BufferRequest, DmaConfig, DmaError, DmaMapError, DmaMask, DmaRefusal, ScatterList, Snooping,
    SpaceError, ToDevice,
};

use crate::machine::{Machine, NIC, pages};

fn narrow(bits: u8) -> DmaConfig {
    DmaConfig {
        mask: DmaMask::new(bits).unwrap(),
        ..DmaConfig::default()
    }
}

fn request(count: u64) -> BufferRequest {
    BufferRequest {
        pages: pages(count),
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    }
}

#[test]
fn nothing_lies_above_a_devices_mask() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    // 16 pages, of which page 0 is never given.
    let dma = driver.domain.dma_device(narrow(16));
    let last = dma.config().mask.last();
    let mut mapped = Vec::new();
    let refused = loop {
        match dma.map(machine.host().frames(2), ToDevice) {
            Ok(mapping) => {
                assert!(mapping.span().last() <= last, "{mapping:?}");
                mapped.push(mapping);
            }
            Err(error) => break error,
        }
        assert!(mapped.len() < 16, "there is no limit");
    };
    let DmaMapError::Refused { value, reason } = refused else {
        panic!("{refused}");
    };
    assert!(
        matches!(reason, DmaRefusal::BeyondMask { mask, .. } if mask == dma.config().mask),
        "{reason}"
    );
    // The domain has room; a device that can say more uses it.
    let wide = driver.domain.dma_device(narrow(32));
    let above = wide.map(value, ToDevice).unwrap();
    assert!(above.span().start() > last || above.span().last() <= DmaMask::LOW_4G.last());
    // What goes makes room again.
    let freed = mapped.pop().unwrap().unmap().flush().unwrap();
    let again = dma.map(freed, ToDevice).unwrap();
    assert!(again.span().last() <= last);
}

#[test]
fn buffers_and_lists_keep_the_mask_too() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(narrow(15));
    let buffer = dma.alloc_coherent(request(7)).unwrap();
    assert!(buffer.iova().as_u64() + 7 * 4096 <= 1 << 15);
    let out = machine.host().frames_out();
    let error = dma.alloc_coherent(request(1)).unwrap_err();
    assert!(matches!(
        error,
        DmaError::Device(DmaRefusal::BeyondMask { .. })
    ));
    assert_eq!(machine.host().frames_out(), out);
    let mut list = ScatterList::with_capacity(2).unwrap();
    for _ in 0..2 {
        list.push(machine.host().frames(1)).unwrap();
    }
    let error = dma.map_scatter(list, ToDevice).unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert!(matches!(reason, DmaRefusal::BeyondMask { .. }), "{reason}");
    assert_eq!(value.len(), 2);
    buffer.free().unwrap();
    assert!(dma.map_scatter(value, ToDevice).is_ok());
}

#[test]
fn where_the_domain_ends_first_the_domain_is_full() {
    let small = hv_iommu::UnitCaps {
        iova_bits: 14,
        ..crate::machine::full_unit()
    };
    let config = hv_iommu::DomainConfig {
        address_bits: 14,
        ..crate::machine::PLAIN
    };
    let mut machine = Machine::with_units(small, small);
    let driver = machine.driver_with(NIC, config);
    let dma = driver.domain.dma_device(narrow(32));
    let error = dma.map(machine.host().frames(4), ToDevice).unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert!(
        matches!(reason, DmaRefusal::Space(SpaceError::Full { .. })),
        "{reason}"
    );
    machine.host().free_frames(value);
}

#[test]
fn a_device_that_does_not_snoop_has_no_coherent_buffer() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(DmaConfig {
        snooping: Snooping::DoesNotSnoop,
        ..DmaConfig::default()
    });
    let error = dma.alloc_coherent(request(1)).unwrap_err();
    assert_eq!(error, DmaError::Device(DmaRefusal::DoesNotSnoop));
    assert_eq!(machine.host().frames_out(), driver.domain.table_pages());
}
