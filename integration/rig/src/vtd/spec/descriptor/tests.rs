//! Descriptors by their literal words.

use super::*;

const LIMITS: DescriptorLimits = DescriptorLimits {
    domain_id_bits: 8,
    psi: true,
    mamv: 9,
};

fn good(low: u64, high: u64) -> Descriptor {
    decode(low, high, &LIMITS).unwrap()
}

fn bad(low: u64, high: u64) -> BadDescriptor {
    decode(low, high, &LIMITS).unwrap_err()
}

#[test]
fn context_invalidations() {
    assert_eq!(good(0x11, 0), Descriptor::ContextGlobal);
    assert_eq!(
        good(0x0012_0021, 0),
        Descriptor::ContextDomain { domain: 0x12 }
    );
    let (domain, source, function_mask) = (0x12, 0x0210, 3);
    let device = Descriptor::ContextDevice {
        domain,
        source,
        function_mask,
    };
    assert_eq!(good(0x0003_0210_0012_0031, 0), device);
    assert_eq!(bad(0x01, 0), BadDescriptor::Granularity);
    assert_eq!(
        bad(0x0100_0021, 0),
        BadDescriptor::DomainIdTooWide {
            found: 0x100,
            bits: 8
        }
    );
    assert_eq!(
        bad(0x0100_0031, 0),
        BadDescriptor::DomainIdTooWide {
            found: 0x100,
            bits: 8
        }
    );
    for (low, high, reserved) in [
        (0x51, 0, 0x40),
        (0x111, 0, 0x100),
        (0x8011, 0, 0x8000),
        (0x0004_0000_0000_0031, 0, 1 << 50),
        (0x11, 1, 0),
        // What the granularity has no use for: domain, requester, function mask.
        (0x1_0011, 0, 0x1_0000),
        (0x1_0000_0021, 0, 1 << 32),
        (0x1_0000_0000_0021, 0, 1 << 48),
    ] {
        assert_eq!(
            bad(low, high),
            BadDescriptor::Reserved {
                low: reserved,
                high
            }
        );
    }
}

#[test]
fn iotlb_invalidations() {
    let both = Descriptor::IotlbGlobal {
        drain_reads: true,
        drain_writes: true,
    };
    assert_eq!(good(0xd2, 0), both);
    let writes = Descriptor::IotlbDomain {
        domain: 0x12,
        drain_reads: false,
        drain_writes: true,
    };
    assert_eq!(good(0x0012_0062, 0), writes);
    let mut pages = Descriptor::IotlbPages {
        domain: 0x12,
        page: 0x12_3400,
        mask: 9,
        leaf_hint: true,
        drain_reads: true,
        drain_writes: false,
    };
    assert_eq!(good(0x0012_00b2, 0x1_2340_0049), pages);
    if let Descriptor::IotlbPages {
        leaf_hint,
        mask,
        page,
        ..
    } = &mut pages
    {
        (*leaf_hint, *mask, *page) = (false, 0, 0xf_ffff_ffff_ffff);
    }
    assert_eq!(good(0x0012_00b2, 0xffff_ffff_ffff_f000), pages);
}

#[test]
fn bad_iotlb_invalidations() {
    assert_eq!(bad(0x02, 0), BadDescriptor::Granularity);
    assert_eq!(
        bad(0x32, 0x00a),
        BadDescriptor::MaskTooLarge { found: 10, mamv: 9 }
    );
    assert_eq!(
        bad(0x32, 0x10_0009),
        BadDescriptor::Misaligned {
            page: 0x100,
            mask: 9
        }
    );
    assert_eq!(
        bad(0x32, 0x1001),
        BadDescriptor::Misaligned { page: 1, mask: 1 }
    );
    let all = DescriptorLimits { mamv: 63, ..LIMITS };
    assert!(decode(0x32, 0x3f, &all).is_ok());
    let without = DescriptorLimits {
        psi: false,
        ..LIMITS
    };
    assert_eq!(
        decode(0x32, 0, &without),
        Err(BadDescriptor::PageSelectiveWithoutPsi)
    );
    assert!(decode(0x22, 0, &without).is_ok());
    for low in [0x0100_0022, 0x0100_0032] {
        assert_eq!(
            bad(low, 0),
            BadDescriptor::DomainIdTooWide {
                found: 0x100,
                bits: 8
            }
        );
    }
    for (low, high, reserved) in [
        (0x132, 0, (0x100, 0)),
        (0x1032, 0, (0x1000, 0)),
        (0x1_0000_0032, 0, (1 << 32, 0)),
        (0x32, 0x80, (0, 0x80)),
        (0x32, 0x800, (0, 0x800)),
        (0x1_0012, 0, (0x1_0000, 0)),
        (0x12, 0x1000, (0, 0x1000)),
        (0x22, 0x40, (0, 0x40)),
    ] {
        assert_eq!(
            bad(low, high),
            BadDescriptor::Reserved {
                low: reserved.0,
                high: reserved.1
            }
        );
    }
}

#[test]
fn waits() {
    let (mut interrupt, mut status, mut fence) = (false, Some((0x1_2345_6784, 0xcafe_0001)), false);
    assert_eq!(
        good(0xcafe_0001_0000_0025, 0x1_2345_6784),
        Descriptor::Wait {
            interrupt,
            status,
            fence
        }
    );
    (interrupt, fence) = (true, true);
    assert_eq!(
        good(0xcafe_0001_0000_0075, 0x1_2345_6784),
        Descriptor::Wait {
            interrupt,
            status,
            fence
        }
    );
    (interrupt, status) = (false, None);
    assert_eq!(
        good(0x45, 0),
        Descriptor::Wait {
            interrupt,
            status,
            fence
        }
    );
    assert_eq!(bad(0x25, 0x1002), BadDescriptor::StatusMisaligned(0x1002));
    for (low, high, reserved) in [
        (0xa5, 0, (0x80, 0)),
        (0x125, 0, (0x100, 0)),
        (0x8000_0025, 0, (1 << 31, 0)),
        // Without a status to write: its data and its address.
        (0x1_0000_0045, 0, (1 << 32, 0)),
        (0x45, 4, (0, 4)),
    ] {
        assert_eq!(
            bad(low, high),
            BadDescriptor::Reserved {
                low: reserved.0,
                high: reserved.1
            }
        );
    }
}

#[test]
fn types_that_this_unit_does_not_have() {
    for (low, kind) in [
        (0x0, 0),
        (0x3, 3),
        (0x4, 4),
        (0x16, 6),
        (0xf, 15),
        (0x211, 0x11),
        (0x825, 0x45),
    ] {
        assert_eq!(bad(low, 0), BadDescriptor::UnknownType(kind));
        assert_eq!(bad(low, 0).code(), 3);
    }
    assert_eq!(bad(0x01, 0).code(), 4);
    assert!(bad(0x32, 0x00a).to_string().contains("at most 9, found 10"));
}
